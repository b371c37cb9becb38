"""The text of a kernel for CPUs: that of `native_source`, with what is computed once per pixel or weight.

The lanes of vectors can be filters or channels.  Where filters are few, or lanes are channels, pixels sum their
gradients: they look for the windows that see them.
"""

from __future__ import annotations

from typing import Any

from ..kernel import Kernel
from ..language.axes import Domain
from ..language.symbols import Operand
from ..lift import Lifted
from ..schedule import Schedule, Sweep
from .lifting import WEIGHT, LiftingPass
from .native_members import flags, varies_along
from .native_source import Backward, Forward, native_source


def cpp_source(kernel: Kernel, schedule: Schedule) -> str:
    """The text of a C++ file that computes a kernel and its gradients."""
    passes = [CppForward(kernel, schedule), CppBackward(kernel, schedule)]
    return native_source(kernel, schedule, "cpp/kernel.cpp.jinja", passes)


class CppPass(LiftingPass):
    """A pass whose weights are computed a vector at a time, from others that are laid out in the same way."""

    ranged = True

    def packing(self, symbol: Operand, where: Domain, varies: tuple[bool, bool]) -> str:
        as_in_memory = where == Domain("ct") and set(symbol.operand.axes) == set("oct") and symbol.is_at_tap
        return "pack_taps" if as_in_memory else super().packing(symbol, where, varies)  # see `Elements` for both

    def weight(self, name: str, symbol: Lifted, where: Domain, varies: tuple[bool, bool]) -> str:
        domain, arguments = self.id(where), []
        for each in symbol.block.arguments:
            ending = "packed" if varies == varies_along(each.axes) else f"of_{name}"
            laid = self.shared_name(where, self.identifier(each), ending)
            if (number := self.constant(each)) is not None:
                arguments.append(f"splat(real({number}))")
                continue
            if each.role in ("offset", "index"):
                element = "group * windows.geometry.filters + f" if each.name == "o" else self.number(each, domain)
                kind, unused = f"laid_out<{flags(*varies)}>", "(void)group, (void)f, (void)k"
                value = f"[&](int64_t group, int64_t f, int64_t k) {{ {unused}; return real({element}); }}"
                make = f"{kind}({self.layout(varies)}{{}}, windows, {domain}.count, arena, {value})"
            else:
                make = self.packed(self.identifier(each), each, where, varies)
            self.shared[laid] = ("const real*", make)
            arguments.append(f"load({laid} + i)")
        call = self.function(name, WEIGHT, symbol.block, arguments)["call"]
        value = f"[&](int64_t i) {{ (void)i; return {call}; }}"
        return f"computed<{flags(*varies)}>({self.layout(varies)}{{}}, windows, {domain}.count, arena, {value})"


class CppForward(CppPass, Forward):
    """The forward pass, which puts together and writes one row of outputs at a time."""

    def layout(self, varies: tuple[bool, bool]) -> str:
        return "ForwardLayout"

    def context(self) -> dict[str, Any]:
        return {**super().context(), "filter_lanes": self.schedule.filter_lanes}

    def sweep(self, sweep: Sweep, name: str) -> dict[str, Any]:
        return super().sweep(sweep, name) | {"filter_lanes": self.schedule.filter_lanes}

    def values(self) -> list[tuple[str, str, str]]:
        return [value for value in super().values() if value[0] != "output"]


class CppBackward(CppPass, Backward):
    """The backward pass, whose gradients of images pixels may sum."""

    def layout(self, varies: tuple[bool, bool]) -> str:
        return "GradientLayout" if all(varies) else super().layout(varies)

    def context(self) -> dict[str, Any]:
        if any(sweep.gathers for sweep in self.sweeps.values()):
            self.shared["looks"] = ("Looks", "windows, arena")
        channel_sweep = next((each for each in self.printed if each["channel_lanes"]), None)
        return {**super().context(), "channel_sweep": channel_sweep}

    def sweep(self, sweep: Sweep, name: str) -> dict[str, Any]:
        printed = super().sweep(sweep, name)
        positions = [self.identifier(each) for each in sweep.positions]
        bounded = bool(printed["banks"]) and not printed["ranged"] and sweep.is_bounded
        return {
            **printed,
            "gathers": sweep.gathers,
            "channel_lanes": self.schedule.channel_lanes and sweep.channel_lanes,
            "bounded": bounded,
            "positions": [] if printed["others"] else positions,
        }
