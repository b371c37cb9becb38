"""Prints lowered expressions as PyTorch code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp
from sympy.printing.precedence import PRECEDENCE

from ..accumulators import KINDS, SUM
from ..functions import BY_CLASS
from ..language.symbols import Operand
from .common import SourcePrinter, is_exact

#: Words of the generated functions that a formula may use as names.
TAKEN = frozenset(
    """
    layout output windows tap kept place value needs given gradients names name like
    zip map tuple combine make
    Layout ImageGradient BankGradient FieldGradient
    """.split()
).union(kind.name for kind in KINDS if kind is not SUM)  # no formula may use that one


def identifier(name: str) -> str:
    """A name of a formula as a name in Python: one more `_` if it is taken or ends in one."""
    return f"{name}_" if name in TAKEN or name.endswith("_") else name


class TorchPrinter(SourcePrinter):
    """Prints lowered SymPy expressions as PyTorch expressions; every symbol is a tensor of one dtype.

    Args:
        names: the Python names of symbols whose own name is none.
    """

    def __init__(self, names: Mapping[sp.Symbol, str] | None = None) -> None:
        super().__init__()
        self.names = names or {}

    def _print_Symbol(self, expr: sp.Symbol) -> str:
        return self.name(expr)

    def name(self, symbol: sp.Symbol) -> str:
        """The Python name of a symbol."""
        name = self.names.get(symbol, str(symbol.name))
        return identifier(name) if isinstance(symbol, Operand) else name

    def _print(self, expr: Any, **kwargs: Any) -> str:
        if isinstance(expr, sp.Expr) and expr.is_number and not is_exact(expr) and expr not in (sp.oo, -sp.oo):
            return repr(float(expr))
        return str(super()._print(expr, **kwargs))

    def _print_Function(self, expr: sp.Function) -> str:
        if type(expr) not in BY_CLASS:
            return self.emptyPrinter(expr)
        return BY_CLASS[type(expr)].torch.format(*map(self._print, expr.args))

    def _print_Pow(self, expr: sp.Pow, rational: bool = False) -> str:
        base = self._print(expr.base)
        spelled = {2: "torch.square({})", sp.Rational(1, 2): "torch.sqrt({})", sp.Rational(-1, 2): "torch.rsqrt({})"}
        if expr.exp in spelled:
            return spelled[expr.exp].format(base)
        atom = self.parenthesize(expr.base, PRECEDENCE["Pow"])
        if expr.exp.is_Integer:
            return f"1/{atom}" if expr.exp == -1 else f"{atom}**{expr.exp}"
        return f"torch.pow({base}, {float(expr.exp)!r})"

    def _print_Infinity(self, expr: sp.Expr) -> str:
        return "torch.inf"
