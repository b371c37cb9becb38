"""The text of a kernel for CPUs: that of `native_source`, with what is computed once per pixel or weight.

Where filters are few, pixels sum their gradients: they look for the windows that see them.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from ..kernel import Kernel
from ..language.axes import Domain
from ..lift import Lifted
from ..lower import Schedule, Sweep
from .native_source import SIZES, Backward, Forward, Member, Pass, flags, native_source


def cpp_source(kernel: Kernel, schedule: Schedule) -> str:
    """The text of a C++ file that computes a kernel and its gradients."""
    passes = [CppForward(kernel, schedule), CppBackward(kernel, schedule)]
    return native_source(kernel, schedule, "cpp/kernel.cpp.jinja", passes)


class LiftingPass(Pass):
    """A pass with values that are computed once per pixel or weight."""

    ranged = True

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        self.pixels: dict[str, dict[str, Any]] = {}
        super().__init__(kernel, schedule)

    def context(self) -> dict[str, Any]:
        return {**super().context(), "pixels": [*self.pixels.values()]}

    def member(self, name: str, symbol: sp.Symbol, where: Domain) -> Member:
        if isinstance(symbol, Lifted):
            return self.lifted(name, symbol, where)
        return super().member(name, symbol, where)

    def lifted(self, name: str, symbol: Lifted, where: Domain) -> Member:
        """What is computed once per pixel or weight."""
        if symbol.pixel is not None:
            self.pixels.setdefault(name, self.pixel(name, symbol, where))
            return self.image(name, symbol.pixel, where, f"{name}_planes")
        varies = "o" in symbol.axes, bool({"c", "t"} & {*symbol.axes})
        domain, arguments = self.id(where), []
        for each in symbol.block.arguments:
            laid = f"{domain}_{self.identifier(each)}_of_{name}"
            if each.role in ("const", "size"):
                value = f"numbers[{self.numbers.index(each.name)}]" if each.role == "const" else SIZES[each.name]
                arguments.append(f"splat(real({value}))")
                continue
            if each.role in ("offset", "index"):
                element = "group * windows.geometry.filters + f" if each.name == "o" else self.number(each, domain)
                kind, unused = f"laid_out<{flags(*varies)}, {self.block}>", "(void)group, (void)f, (void)k"
                value = f"[&](int64_t group, int64_t f, int64_t k) {{ {unused}; return real({element}); }}"
                make = f"{kind}(windows, {domain}.count, arena, {value})"
            else:
                make = self.packed(self.identifier(each), each, where, varies)
            self.shared[laid] = ("const real*", make)
            arguments.append(f"load({laid} + i)")
        doc = "The same for all windows: computed once per weight."
        call = self.function(name, doc, symbol.block, arguments)["call"]
        packed = f"{domain}_{name}_packed"
        self.shared[packed] = (
            "const real*",
            f"computed<{flags(*varies)}, {self.block}>(windows, {domain}.count, arena, "
            f"[&](int64_t i) {{ (void)i; return {call}; }})",
        )
        return self.bank_member(name, packed, where, varies)

    def pixel(self, name: str, symbol: Lifted, where: Domain) -> dict[str, Any]:
        """A value that is computed once per pixel."""
        assert symbol.pixel is not None
        self.seen.add(symbol.pixel.operand.name)
        arguments = [
            f"load({each.name}_planes + q)" if each.role == "input" else self.read(each, where)
            for each in symbol.block.arguments
        ]
        doc = "The same for all taps that see a pixel: computed once."
        call = self.function(name, doc, symbol.block, arguments)["call"]
        return {"name": name, "call": call, "index": self.tensors.index(symbol.pixel.operand.name)}


class CppForward(LiftingPass, Forward):
    """The forward pass, which puts together and writes one row of outputs at a time."""

    def values(self) -> list[tuple[str, str, str]]:
        return [value for value in super().values() if value[0] != "output"]


class CppBackward(LiftingPass, Backward):
    """The backward pass, whose gradients of images pixels may sum."""

    def context(self) -> dict[str, Any]:
        if any(sweep.gathers for sweep in self.sweeps.values()):
            self.shared["looks"] = ("Looks", "windows, arena")
        return super().context()

    def sweep(self, sweep: Sweep, name: str) -> dict[str, Any]:
        printed = super().sweep(sweep, name)
        positions = [self.identifier(each) for each in sweep.positions]
        return {**printed, "gathers": sweep.gathers, "positions": [] if printed["others"] else positions}
