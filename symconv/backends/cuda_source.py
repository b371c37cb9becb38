"""The text of a kernel for GPUs: that of `native_source`, but for flat passes and for the gradients of weights.

What is computed once per weight is computed where weights are packed; once per pixel, where pixels come into memory.
"""

from __future__ import annotations

from typing import Any

from ..kernel import Kernel
from ..language.axes import Domain
from ..language.symbols import Operand
from ..schedule import Schedule, Sweep
from .cuda_flat import backward_facts, flat_backward, flat_forward, forward_facts
from .cuda_reader import is_number
from .lifting import LiftingPass
from .native_facts import FlatBackward, FlatForward
from .native_members import Member
from .native_source import Backward, Forward, native_source


def cuda_source(kernel: Kernel, schedule: Schedule) -> tuple[str, FlatForward | None, FlatBackward | None]:
    """The text of a CUDA C++ file that computes a kernel and its gradients; the facts of its flat passes."""
    forward, backward = CudaForward(kernel, schedule), CudaBackward(kernel, schedule)
    text = native_source(kernel, schedule, "cuda/kernel.cu.jinja", [forward, backward])
    flat_forward = None if forward.flat is None else forward_facts(forward.flat)
    flat_backward = None if backward.flat is None else backward_facts(backward.flat)
    return text, flat_forward, flat_backward


class CudaForward(LiftingPass, Forward):
    """The forward pass, which may be flat."""

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        super().__init__(kernel, schedule)
        self.flat = flat_forward(self)

    def context(self) -> dict[str, Any]:
        return {**super().context(), "flat": self.flat}


class CudaBackward(LiftingPass, Backward):
    """The backward pass, which may be flat, and whose blocks leave a sum for each filter and tap."""

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        self.bank_sinks: list[dict[str, str]] = []
        super().__init__(kernel, schedule)
        self.flat = flat_backward(self)

    def context(self) -> dict[str, Any]:
        return {"bank_sinks": self.bank_sinks, **super().context(), "flat": self.flat}

    def sweep(self, sweep: Sweep, name: str) -> dict[str, Any]:
        """As on a CPU, but sums of gradients of weights are multiplied by numbers alone.

        Anything else is a factor at each tap: it may be infinite, and some blocks see no window.
        """
        printed = super().sweep(sweep, name)
        banks = iter(printed["banks"])
        for place, factor in zip(sweep.gradients, sweep.factors):
            if place.operand.role in ("input", "field"):
                continue
            sink = next(banks)
            if factor is not None and not all(map(is_number, factor.arguments)):
                sink |= {"value": f"{sink['value']} * {sink['factor']}", "factor": ""}
        return printed

    def bank_sink(self, name: str, place: Operand, where: Domain) -> Member:
        domain = self.id(where)
        sums = f"{domain}_{name}_sums"
        self.bank_sinks.append(
            {
                "name": f"{domain}.{name}",
                "of": place.operand.name,
                "id": domain,
                "elements": self.elements(self.identifier(place), place, where),
                "sums": sums,
            }
        )
        return Member(name, "BankSink", f"{sums}, windows.geometry.filter_step, shared.{domain}.count")
