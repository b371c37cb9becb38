"""The backends: who renders a kernel, and who can run which call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Protocol

import torch

from ..errors import ArgumentError
from ..geometry import Geometry
from ..tracing import constant

if TYPE_CHECKING:
    from ..kernel import Kernel

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: The device and dtype for which "auto" stands where there are no tensors.
TYPICAL = torch.device("cpu"), torch.float32


class Compiled(Protocol):
    """A kernel that is ready to run.

    `kept` says of each window value that `forward` keeps whether it is "value" (a number in the dtype of computation)
    or "position" (an int32).  `has_gradient` are the operands whose gradient is not identically 0.
    """

    kept: tuple[str, ...]
    has_gradient: frozenset[str]

    def forward(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The output `[N, out_channels, *size]` and the kept window values."""

    def repeated(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
        """What gives the output for other tensors of the same shapes, dtype and device, and keeps nothing."""

    def backward(
        self,
        grad_output: torch.Tensor,
        kept: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor],
        numbers: Sequence[float],
        geometry: Geometry,
        needs: AbstractSet[str],
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradient of each tensor that `needs` names, None for the others."""


class Backend(Protocol):
    """One way to run kernels.

    `language` is that of its source, by the name that highlighters know it by.
    """

    name: str
    language: str

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine, with the remedy; None if it can."""

    def can_run(self, device: torch.device, dtype: torch.dtype, raise_error: bool = False) -> bool:
        """Whether it can run on tensors of this device and dtype.

        Raises:
            BackendError: if it cannot and `raise_error` asks to say why.
        """

    def source(self, kernel: Kernel) -> str:
        """The source text generated for a kernel."""

    def compile(self, kernel: Kernel, fast_math: bool = False) -> Compiled:
        """The kernel, rendered and built, or from the cache.

        `fast_math` allows functions of the hardware that are faster and less exact, where there are any.
        """


#: The backends that "auto" chooses from, the preferred ones first; the last one can run all that can be run.
AUTOMATIC = ("cpp", "cuda", "torch")


@functools.cache
def backends() -> dict[str, Backend]:
    """All backends by name."""
    from .cpp import CppBackend
    from .cuda import CudaBackend, EmulationBackend
    from .torch import TorchBackend

    return {each.name: each for each in (CppBackend(), CudaBackend(), TorchBackend(), EmulationBackend())}


def backend(name: str) -> Backend:
    """The backend called `name`; of "auto" the one that runs float32 on this CPU.

    Raises:
        ArgumentError: if there is none.
    """
    if name == "auto":
        name = choose(name, *TYPICAL)
    if (found := backends().get(name)) is None:
        raise ArgumentError(f"backend must be 'auto' or one of {', '.join(map(repr, backends()))}, not {name!r}")
    return found


@constant
def choose(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend for a call: the one asked for, or for "auto" the first that can run it."""
    if name != "auto":
        backend(name).can_run(device, dtype, raise_error=True)
        return name
    for each in AUTOMATIC:
        if backend(each).can_run(device, dtype):
            return each
    backend(AUTOMATIC[-1]).can_run(device, dtype, raise_error=True)
    return AUTOMATIC[-1]
