"""The PyTorch backend: generated vectorised Python, on whatever device the tensors are.

It is the definition of every kernel's values; the other backends are held to it.
"""

from __future__ import annotations

import json
import linecache
import logging
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch.nn.functional import pad

from ..build.key import content_key
from ..errors import BackendError
from ..geometry import Geometry
from ..kernel import Kernel
from ..language.axes import Position
from . import DTYPES
from .generated import GeneratingBackend
from .torch_source import torch_source

log = logging.getLogger("symconv")

SOURCE, FACTS = "kernel.py", "facts.json"


class TorchBackend(GeneratingBackend["TorchKernel"]):
    """Renders kernels as PyTorch code and runs them."""

    name, language = "torch", "python"
    files = (SOURCE, FACTS)

    def unavailable(self) -> str | None:
        return None

    def can_run(self, device: torch.device, dtype: torch.dtype, raise_error: bool = False) -> bool:
        if dtype in DTYPES:
            return True
        if raise_error:
            raise BackendError(f"backend 'torch' computes in {', '.join(map(str, DTYPES))}, not in {dtype}")
        return False

    def source(self, kernel: Kernel) -> str:
        return self.compile(kernel).source

    def generate(self, kernel: Kernel) -> dict[str, str]:
        return generate(kernel)

    def loaded(self, kernel: Kernel, files: Mapping[str, str], fast_math: bool) -> TorchKernel:
        return TorchKernel(files[SOURCE], files[FACTS])


def generate(kernel: Kernel) -> dict[str, str]:
    """The files of a cache entry: the source, and the facts that spare the next process the derivation."""
    from ..lower import lower

    schedule = lower(kernel.formula)
    facts = {
        "kept": ["position" if isinstance(symbol, Position) else "value" for symbol in schedule.kept],
        "has_gradient": sorted(schedule.has_gradient),
        "inputs": [role == "input" for role in kernel.signature.roles],
    }
    return {SOURCE: torch_source(kernel, schedule), FACTS: json.dumps(facts)}


class TorchKernel:
    """A generated PyTorch module, loaded."""

    def __init__(self, source: str, facts: str) -> None:
        read = json.loads(facts)
        self.source = source
        self.kept = tuple(read["kept"])
        self.has_gradient = frozenset(read["has_gradient"])
        self.inputs = tuple(read["inputs"])
        self._module = load(source)

    def forward(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        tensors, options = self._padded(tensors, geometry)
        result: tuple[torch.Tensor, tuple[torch.Tensor, ...]] = self._module["forward"](*tensors, *numbers, **options)
        return result

    def repeated(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
        return lambda given: self.forward(given, numbers, geometry)[0]

    def backward(
        self,
        grad_output: torch.Tensor,
        kept: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor],
        numbers: Sequence[float],
        geometry: Geometry,
        needs: AbstractSet[str],
    ) -> tuple[torch.Tensor | None, ...]:
        padded, options = self._padded(tensors, geometry)
        result: tuple[torch.Tensor | None, ...] = self._module["backward"](
            grad_output, kept, *padded, *numbers, needs=needs, **options
        )
        return tuple(
            gradient if gradient is None or gradient.shape == given.shape else self._image(gradient, given, geometry)
            for gradient, given in zip(result, tensors)
        )

    def _padded(
        self, tensors: Sequence[torch.Tensor], geometry: Geometry
    ) -> tuple[Sequence[torch.Tensor], dict[str, Any]]:
        """The tensors and the options for the generated code, which knows only padding that leaves the window."""
        options = geometry._asdict()
        del options["ignore"]
        if geometry.ignore or not geometry.is_padded:
            return tensors, options
        options["padding"] = ((0, 0),) * len(geometry.padding)
        flat = [side for pair in reversed(geometry.padding) for side in pair]
        return [pad(each, flat) if is_input else each for each, is_input in zip(tensors, self.inputs)], options

    @staticmethod
    def _image(gradient: torch.Tensor, image: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """The gradient of an image, from that of the padded one."""
        for axis, (before, _) in enumerate(geometry.padding, 2):
            gradient = gradient.narrow(axis, before, image.shape[axis])
        return gradient.contiguous()


def load(source: str) -> dict[str, Any]:
    """Run a generated module; tracebacks show its lines."""
    module = types.ModuleType("symconv_generated")
    filename = f"<symconv {content_key({'source': source})[:12]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), module.__dict__)  # our own text: rendered here, or read from our cache
    return module.__dict__
