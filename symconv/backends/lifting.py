"""What native passes compute once per pixel or once per weight, and then read as they read an image or a weight."""

from __future__ import annotations

import re
from typing import Any

import sympy as sp

from ..kernel import Kernel
from ..language.axes import Domain
from ..language.symbols import Operand
from ..lift import Lifted
from ..schedule import Schedule
from .native_members import SIZES, Member, flags, varies_along
from .native_source import Pass

PIXEL = "The same for all taps that see a pixel: computed once."
WEIGHT = "The same for all windows: computed once per weight."


class LiftingPass(Pass):
    """A pass with values that are computed once per pixel or weight."""

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        self.pixels: dict[str, dict[str, Any]] = {}
        super().__init__(kernel, schedule)

    def context(self) -> dict[str, Any]:
        return {**super().context(), "pixels": [*self.pixels.values()]}

    def member(self, name: str, symbol: sp.Symbol, where: Domain) -> Member:
        if not isinstance(symbol, Lifted):
            return super().member(name, symbol, where)
        if symbol.pixel is None:
            varies = varies_along(symbol.axes)
            packed = self.shared_name(where, name, "packed")
            make = self.weight(name, symbol, where, varies)
            self.shared[packed] = ("const real*", make)  # after what it is made of
            return self.bank_member(name, packed, where, varies)
        self.pixels.setdefault(name, self.pixel(name, symbol, symbol.pixel, where))
        return self.image(name, symbol.pixel, where, f"{name}_planes")

    def pixel(self, name: str, symbol: Lifted, pixel: Operand, where: Domain) -> dict[str, Any]:
        """A value that is computed once per pixel."""
        self.seen.add(pixel.operand.name)
        arguments = [
            f"load({each.name}_planes + q)" if each.role == "input" else self.read(each, where)
            for each in symbol.block.arguments
        ]
        call = self.function(name, PIXEL, symbol.block, arguments)["call"]
        return {"name": name, "call": call, "index": self.tensors.index(pixel.operand.name)}

    def weight(self, name: str, symbol: Lifted, where: Domain, varies: tuple[bool, bool]) -> str:
        """How a value that is computed once per weight is made, for filters and taps or the same for all."""
        kind, element = f"laid_out<{flags(*varies)}>", self.element(name, symbol, where)
        return f"{kind}({self.layout(varies)}{{}}, windows, {self.id(where)}.count, arena, {element})"

    def element(self, name: str, symbol: Operand | Lifted, where: Domain, shared: str = "") -> str:
        """A function of the group, the filter and the tap that gives what is packed; `shared` is where tables are."""
        if isinstance(symbol, Lifted):
            arguments = [f"splat({self.element_value(each, where, shared)})" for each in symbol.block.arguments]
            value = self.function(name, WEIGHT, symbol.block, arguments)["call"] + "[0]"
        else:
            value = self.element_value(symbol, where, shared)
        used = (f" {each}" * bool(re.search(rf"\b{each}\b", value)) for each in ("group", "f", "k"))
        return f"[&]({', '.join(map('int64_t{}'.format, used))}) {{ return {value}; }}"

    def element_value(self, symbol: Operand, where: Domain, shared: str) -> str:
        """A weight, parameter or number for a group, filter and tap."""
        if symbol.role in ("offset", "index"):
            of_filter = "group * windows.geometry.filters + f"
            return f"real({of_filter if symbol.name == 'o' else self.number(symbol, shared + self.id(where))})"
        if (number := self.constant(symbol)) is not None:
            return f"real({number})"
        elements = self.elements(self.identifier(symbol), symbol, where)
        return f"value_of(tensors[{self.tensors.index(symbol.operand.name)}], {shared}{elements}, group, f, k)"

    def constant(self, symbol: Operand) -> str | None:
        """What is the same for all weights, as a number of C++; None for anything else."""
        if symbol.role == "const":
            return f"numbers[{self.numbers.index(symbol.name)}]"
        return SIZES[symbol.name] if symbol.role == "size" else None
