"""The text of a kernel for GPUs: that of `native_source`, but for flat passes and for the gradients of weights."""

from __future__ import annotations

from typing import Any

from ..kernel import Kernel
from ..language.axes import Domain
from ..language.symbols import Operand
from ..lower import Schedule
from .cuda_flat import facts_of_flat, flat_backward, flat_forward
from .native_source import Backward, Forward, Member, native_source


def cuda_source(kernel: Kernel, schedule: Schedule) -> tuple[str, list[list[int]]]:
    """The text of a CUDA C++ file that computes a kernel and its gradients; what a plan must know of flat passes."""
    forward, backward = CudaForward(kernel, schedule), CudaBackward(kernel, schedule)
    text = native_source(kernel, schedule, "cuda/kernel.cu.jinja", [forward, backward])
    return text, facts_of_flat(forward.flat, backward.flat)


class CudaForward(Forward):
    """The forward pass, which may be flat."""

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        super().__init__(kernel, schedule)
        self.flat = flat_forward(self)

    def context(self) -> dict[str, Any]:
        return {**super().context(), "flat": self.flat}


class CudaBackward(Backward):
    """The backward pass, which may be flat, and whose blocks leave a sum for each filter and tap."""

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        self.bank_sinks: list[dict[str, str]] = []
        super().__init__(kernel, schedule)
        self.flat = flat_backward(self)

    def context(self) -> dict[str, Any]:
        return {"bank_sinks": self.bank_sinks, **super().context(), "flat": self.flat}

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
