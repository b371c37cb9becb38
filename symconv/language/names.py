"""Names: which mean something already, and which a declaration may take."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

import sympy as sp

from ..accumulators import KINDS
from ..errors import FormulaError, Span
from ..functions import FUNCTIONS
from ..reductions import REDUCTIONS, TRANSFORMS
from .symbols import AXES, BUILTIN

CONSTANTS: dict[str, sp.Expr] = {"pi": sp.pi, "inf": sp.oo}
WINDOW_FUNCTIONS = REDUCTIONS | TRANSFORMS
#: Functions that derivatives are written with: their text is read back, but nobody is told to use them.
OF_DERIVATIVES = frozenset(name for name, record in FUNCTIONS.items() if record.internal) | frozenset(
    name for name, record in WINDOW_FUNCTIONS.items() if record.internal
)
#: Names that a declaration may not take: they mean something already, in the language or as arguments of layers.
RESERVED = frozenset((*FUNCTIONS, *WINDOW_FUNCTIONS, *BUILTIN, *CONSTANTS, *AXES, "Sum", "y")) | frozenset(
    """
    bias weight input param const field kernel init device dtype backend fast_math in_channels out_channels
    kernel_size stride padding dilation groups padding_mode padding_value
    self super torch forward backward grad
    """.split()
)
#: Names that generated code numbers.
GENERATED = re.compile(
    rf"({'|'.join(result.name for kind in KINDS for result in kind.results)}|value|kept)_\d+"
    r"|(count|position)(_.*)?|(running|grad|forward|backward|gradient)_.*"
)
#: How the names end that generated code makes of those of operands, and two words of which it makes some as well.
MADE, MAKERS = ("_planes", "_values", "_total"), frozenset(["take", "values"])


def check_name(name: str, text: str = "", span: Span | None = None) -> None:
    """Refuse a name that cannot be declared."""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name.startswith("_"):
        raise FormulaError(
            f"{name!r} is not a usable name; start with a letter, then letters, digits and _", text, span
        )
    if name in RESERVED or GENERATED.fullmatch(name):
        raise _taken(name, text, span)


def check_operand(name: str, others: Iterable[str], text: str = "", span: Span | None = None) -> None:
    """Refuse an operand if generated code makes its name of another's, or the other's of its own: x and x_planes."""
    check_name(name, text, span)
    made = {f"{other}{ending}" for other in others for ending in MADE}
    if name in made | MAKERS or not {f"{name}{ending}" for ending in MADE}.isdisjoint(others):
        raise _taken(name, text, span)


def _taken(name: str, text: str, span: Span | None) -> FormulaError:
    message = f"the name {name!r} is taken, by the language or by generated code; choose another one"
    return FormulaError(message, text, span)
