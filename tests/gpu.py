"""The CUDA backend for tensors of the CPU: copied there and back, so that the whole suite runs on a GPU as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

from symconv.backends import backends
from symconv.backends.cuda import CudaBackend, CudaKernel
from symconv.geometry import Geometry
from symconv.kernel import Kernel

#: Its name.
GPU = "cuda-copied"


class CopyingKernel:
    """A kernel whose tensors are copied to a device, and its results back."""

    def __init__(self, kernel: CudaKernel, device: str) -> None:
        self.kernel, self.device = kernel, device
        self.kept, self.has_gradient, self.source = kernel.kept, kernel.has_gradient, kernel.source

    def there(self, tensor: Tensor) -> Tensor:
        """A copy with the same strides."""
        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)
        return copy.copy_(tensor) if all(tensor.stride()) else tensor.to(self.device)

    def forward(
        self, tensors: Sequence[Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        output, kept = self.kernel.forward([*map(self.there, tensors)], numbers, geometry)
        return output.cpu(), tuple(each.cpu() for each in kept)

    def repeated(
        self, tensors: Sequence[Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> Callable[[Sequence[Tensor]], Tensor]:
        output = self.kernel.repeated([*map(self.there, tensors)], numbers, geometry)
        return lambda given: output([*map(self.there, given)]).cpu()

    def backward(
        self,
        grad_output: Tensor,
        kept: Sequence[Tensor],
        tensors: Sequence[Tensor],
        numbers: Sequence[float],
        geometry: Geometry,
        needs: AbstractSet[str],
    ) -> tuple[Tensor | None, ...]:
        copies = [*map(self.there, kept)], [*map(self.there, tensors)]
        found = self.kernel.backward(self.there(grad_output), *copies, numbers, geometry, needs)
        return tuple(None if each is None else each.cpu() for each in found)


class CopyingBackend(CudaBackend):
    """The CUDA backend, for tensors of the CPU."""

    name = GPU
    device = "cpu"
    what = "copies of tensors of the CPU"

    def loaded(self, kernel: Kernel, files: Mapping[str, str], fast_math: bool) -> CopyingKernel:  # type: ignore[override]
        return CopyingKernel(super().loaded(kernel, files, fast_math), "cuda")


def install() -> None:
    """Make it known by its name."""
    backends()[GPU] = CopyingBackend()
