"""The text of a kernel for GPUs: that of `native_source`, but for the gradients of weights, which many blocks share."""

from __future__ import annotations

from typing import Any

from ..kernel import Kernel
from ..language.axes import Domain
from ..language.symbols import Operand
from ..lower import Schedule
from ..printers.cpp import CppPrinter
from .native_source import Backward, Member, native_source


def cuda_source(kernel: Kernel, schedule: Schedule) -> str:
    """The text of a CUDA C++ file that computes a kernel and its gradients."""
    return native_source(kernel, schedule, "cuda/kernel.cu.jinja", CudaBackward)


class CudaBackward(Backward):
    """The backward pass, whose blocks leave a sum for each filter and tap."""

    def __init__(self, kernel: Kernel, schedule: Schedule, printer: CppPrinter) -> None:
        self.bank_sinks: list[dict[str, str]] = []
        super().__init__(kernel, schedule, printer)

    def context(self) -> dict[str, Any]:
        return {"bank_sinks": self.bank_sinks, **super().context()}

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
