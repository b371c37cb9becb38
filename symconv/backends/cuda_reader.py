"""The symbols that flat passes read, as variables of the generated code.

Weights and x of a tap, values of a window and constants are variables, which printed functions are called with.  What
is computed once per pixel has planes of its own in shared memory, made of those of x when they have come.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from ..language.axes import Domain, Position, TapPosition
from ..language.symbols import Access, Operand
from ..lift import Lifted
from .lifting import LiftingPass
from .native_members import SIZES

#: The one domain of the sweeps of a flat pass.
ALL = "ct"
#: The variable of a pixel of which something is computed.
UNDER = "under"


class NotFlatError(Exception):
    """A pass does something that tiles in registers cannot."""


def here(name: str) -> str:
    """The variable of what is called `name` in formulas, which is no name of the template."""
    return f"{name}_here"


def is_number(symbol: sp.Symbol) -> bool:
    """Whether it is the same everywhere, and finite."""
    return isinstance(symbol, Operand) and symbol.role in ("const", "size")


def of_pixel(symbol: sp.Symbol) -> bool:
    """Whether it is the same at all taps that see a pixel."""
    if isinstance(symbol, Lifted):
        return symbol.pixel is not None
    return is_number(symbol) or (isinstance(symbol, Operand) and symbol.role == "input")


def unused(symbol: sp.Symbol) -> str:
    """What is passed for an argument on which the results in question do not depend."""
    return "splat_int(0)" if isinstance(symbol, Position) else "splat(0)"


class Reader:
    """The symbols that some functions read, as variables of the generated code."""

    def __init__(self, given: LiftingPass) -> None:
        self.given = given
        #: Reads of x, or of what is computed of it: variable, whether at the centre.
        self.images: dict[str, bool] = {}
        #: What is computed of it: variable, how, of a pixel.
        self.lifted: dict[str, str] = {}
        #: Reads of weights and parameters: variable, how they are packed.
        self.banks: dict[str, dict[str, Any]] = {}
        #: Constants: variable, value.
        self.numbers: dict[str, str] = {}
        #: Whether one of them counts taps, which is the same for all windows if none leaves the image.
        self.counts = False

    def variable(
        self, symbol: sp.Symbol, where: Domain, of_image: str = "", of_bank: str = "", of_value: str = ""
    ) -> str:
        """A symbol as it is read at a tap, with the indices of an image, of a bank or of a value of a window."""
        name = here(self.given.identifier(symbol))
        if symbol in self.given.schedule.counts:
            counted = self.given.schedule.counts[symbol]
            self.counts = True
            self.numbers[name] = "windows.taps * " * ("t" in counted.axes) + self.given.channels(counted)
            return name
        if isinstance(symbol, Lifted):
            return self.computed(name, symbol, where, of_image, of_bank)
        if not isinstance(symbol, Operand):
            if isinstance(symbol, TapPosition):
                if where.axes != ALL:
                    raise NotFlatError
                return "position"
            return name + of_value
        base = symbol.operand
        if base.role == "input":
            self.images[name] = self.is_centre(symbol)
            return name + of_image
        if base.role in ("weight", "bias", "param"):
            self.banks[name] = self.bank(name, symbol, where)
            return name + of_bank
        if base.role == "const":
            self.numbers[name] = f"numbers[{self.given.numbers.index(base.name)}]"
        elif base.role == "size":
            self.numbers[name] = SIZES[base.name]
        else:
            raise NotFlatError
        return name

    @staticmethod
    def is_centre(symbol: Operand) -> bool:
        """Whether x is read at the centre of the window, and not at the tap."""
        access = symbol if isinstance(symbol, Access) else None
        if symbol.operand.name != "x" or (access and (access.own or access.shift)):
            raise NotFlatError
        return access is not None and access.shift is None

    def computed(self, name: str, symbol: Lifted, where: Domain, of_image: str, of_bank: str) -> str:
        """What is computed once per pixel or weight."""
        if symbol.pixel is None:
            self.banks[name] = self.bank(name, symbol, where)
            return name + of_bank
        self.images[name] = self.is_centre(symbol.pixel)
        arguments = [UNDER if s.role == "input" else self.variable(s, where) for s in symbol.block.arguments]
        self.lifted[name] = f"{self.given.identifier(symbol)}({', '.join(arguments)})"
        return name + of_image

    def bank(self, name: str, symbol: Operand | Lifted, where: Domain) -> dict[str, Any]:
        per_filter, per_tap = "o" in symbol.axes, bool({"c", "t"} & {*symbol.axes})
        if where.axes == ALL:
            read = symbol.block.arguments if isinstance(symbol, Lifted) else (symbol,)
            if any(isinstance(each, Access) and each.own for each in read):
                raise NotFlatError
        return {
            "name": name,
            "packed": "shared." + self.given.shared_name(where, self.given.identifier(symbol), "packed"),
            "element": self.given.element(self.given.identifier(symbol), symbol, where, "shared."),
            "per_filter": per_filter,
            "per_tap": per_tap and where.axes == ALL,
            "flags": ", ".join("true" if each else "false" for each in (per_filter, per_tap)),
        }

    def facts(self) -> dict[str, Any]:
        """What the template is told; of images also which of several sets of planes has them."""
        raw = [name for name in self.images if name not in self.lifted]
        sets = dict.fromkeys(raw, 0) | {name: bool(raw) + k for k, name in enumerate(self.lifted)}
        return {
            "images": [(name, centre, sets[name]) for name, centre in self.images.items()],
            "lifted": [(name, call, sets[name]) for name, call in self.lifted.items()],
            "sets": bool(raw) + len(self.lifted),
            "banks": [*self.banks.values()],
            "numbers": [*self.numbers.items()],
            "counts": self.counts,
        }
