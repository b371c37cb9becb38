"""What the backends of native code share: kernels whose calls are planned once per shape, and what serves instead."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Generic, TypeVar

import torch

from ..build.lock import ForkSafeLock
from ..errors import BackendError, CacheError, CompilationError, SymconvWarning
from ..geometry import Geometry
from ..kernel import Kernel, kernel_of
from . import DTYPES, Compiled, backend
from .generated import GeneratingBackend
from .native_facts import Facts
from .native_plan import Plan

#: How tensors of a dtype are stored and computed with, as options of a compiler.
STORAGE = {
    torch.float32: ("-DSYMCONV_REAL=float",),
    torch.float64: ("-DSYMCONV_REAL=double",),
    torch.float16: ("-DSYMCONV_REAL=float", "-DSYMCONV_FLOAT16"),
    torch.bfloat16: ("-DSYMCONV_REAL=float", "-DSYMCONV_BFLOAT16"),
}
#: So many shapes a kernel remembers.
MAX_PLANS = 1024

#: The files of a kernel that every native backend keeps beside its source.
FACTS = "facts.json"

P = TypeVar("P", bound=Plan)


def defines_of(direction: str, dtype: torch.dtype, ignores_padding: bool, ranked: int) -> list[str]:
    """The options of a compiler that every native backend has.

    Args:
        direction: "forward" or "backward".
        dtype: of the tensors.
        ignores_padding: see `Geometry`.
        ranked: how many values are put in order in registers, 0 if none are.
    """
    options = [f"-DSYMCONV_{direction.upper()}", *STORAGE[dtype]]
    return options + ["-DSYMCONV_IGNORE"] * ignores_padding + [f"-DRANKED={ranked}"] * (ranked > 0)


class ShapeError(BackendError):
    """A call that a backend cannot compute because of its shapes; calls of other shapes it can."""


class NativeKernel(Generic[P]):
    """A generated file and what is built from it, for each pass, dtype and kind of padding when first called for.

    A backend says how a call is cut (`planned`) and carried out (`call`).
    """

    def __init__(self, text: str, title: str, source: str, facts: Facts, fast_math: bool) -> None:
        self.text, self.title, self.source, self.facts, self.fast_math = text, title, source, facts, fast_math
        self.kept = tuple(facts.kept)
        self.has_gradient = frozenset(facts.has_gradient)
        #: The inputs that have gradients.
        self._images = self.has_gradient & {name for name, role in zip(facts.tensors, facts.roles) if role == "input"}
        self._broken = False
        self._plans: dict[tuple[Any, ...], P | None] = {}
        self._lock = ForkSafeLock()
        operands, values = [*zip(facts.roles, facts.axes)], [("values", "o")] * (1 + len(facts.kept))
        #: For each tensor of a call, in its order: its role, and the axes of one element.
        self.roles_and_axes = [*operands, *values, *operands]

    #: What `planned` is asked for where nothing is kept: "forward", or a pass of its own.
    inference = "forward"

    def plan_key(self, device: torch.device) -> Any:
        """What the plans for a device depend on besides shapes."""
        raise NotImplementedError

    def planned(self, direction: str, tensors: Sequence[torch.Tensor], geometry: Geometry) -> P:
        """How a call is cut, with what computes it.

        Raises:
            ShapeError: if it cannot be computed for these shapes.
            CompilationError, CacheError, BackendError, OSError: if that cannot be built.
        """
        raise NotImplementedError

    def call(self, plan: P, tensors: Sequence[torch.Tensor | None], numbers: Sequence[float]) -> None:
        """Carry out a call, for the tensors in the order of `roles_and_axes`."""
        raise NotImplementedError

    def empty(self, x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory that a call will write, where x is and of its dtype or another one."""
        return x.new_empty(shape, dtype=dtype)

    def forward(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        plan = self._plan("forward", tensors, geometry)
        if plan is None:
            return self._fallback.forward(tensors, numbers, geometry)
        kept = []
        for kind in self.kept:
            dtype = torch.int32 if kind == "position" else torch.promote_types(tensors[0].dtype, torch.float32)
            kept.append(self.empty(tensors[0], plan.output_shape, dtype))
        return self._output(plan, tensors, kept, numbers), tuple(kept)

    def _output(
        self,
        plan: P,
        tensors: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor | None],
        numbers: Sequence[float],
    ) -> torch.Tensor:
        output = self.empty(tensors[0], plan.output_shape)
        self.call(plan, [*tensors, output, *kept], numbers)
        return output

    def repeated(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
        key, plan = self.plan_key(tensors[0].device), self._plan(self.inference, tensors, geometry)
        nothing = (None,) * len(self.kept)

        def output(given: Sequence[torch.Tensor]) -> torch.Tensor:
            now = plan if self.plan_key(given[0].device) == key else self._plan(self.inference, given, geometry)
            if now is None:
                return self._fallback.forward(given, numbers, geometry)[0]
            return self._output(now, given, nothing, numbers)

        return output

    def backward(
        self,
        grad_output: torch.Tensor,
        kept: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor],
        numbers: Sequence[float],
        geometry: Geometry,
        needs: AbstractSet[str],
    ) -> tuple[torch.Tensor | None, ...]:
        plan = self._plan("backward", tensors, geometry)
        if plan is None:
            return self._fallback.backward(grad_output, kept, tensors, numbers, geometry, needs)
        x = tensors[0]
        real = torch.promote_types(x.dtype, torch.float32)
        gradients: list[torch.Tensor | None] = []
        for name, each in zip(self.facts.tensors, tensors):
            begun = torch.empty if plan.overwrites and name in self._images else torch.zeros
            gradients.append(begun(each.shape, dtype=real, device=x.device) if name in needs else None)
        wanted = [each if name in self.has_gradient else None for name, each in zip(self.facts.tensors, gradients)]
        if any(each is not None for each in wanted):
            self.call(plan, [*tensors, grad_output, *kept, *wanted], numbers)
        return tuple(each if each is None or each.dtype == x.dtype else each.to(x.dtype) for each in gradients)

    @functools.cached_property
    def _fallback(self) -> Compiled:
        """The same kernel on the torch backend, which needs no compiler; both keep the same for a backward pass."""
        return backend("torch").compile(kernel_of(self.text))

    def _plan(self, direction: str, tensors: Sequence[torch.Tensor], geometry: Geometry) -> P | None:
        """The plan of a call; None where it cannot be built or its shapes are refused."""
        x = tensors[0]
        key = (direction, geometry, self.plan_key(x.device), x.dtype, *[each.shape for each in tensors])
        found = self._plans.get(key)
        if found is not None or self._broken or key in self._plans:
            return found
        if len(self._plans) >= MAX_PLANS:  # of a model whose images are all of different sizes
            self._plans.clear()
        try:
            found = self._plans[key] = self.planned(direction, tensors, geometry)
        except (CompilationError, CacheError, BackendError, OSError) as error:
            if isinstance(error, ShapeError):
                self._plans[key] = None
            else:  # another build would fail like this one, and take its time
                self._broken = True
            warnings.warn(f"{error}\nThe torch backend computes {self.title!r} instead.", SymconvWarning, stacklevel=2)
        return found


N = TypeVar("N", bound=NativeKernel[Any])


class NativeBackend(GeneratingBackend[N]):
    """Renders kernels as native code, builds and runs them on one type of device."""

    #: The type of the device, and what errors call it.
    device: str
    what: str
    #: What its kernels are.
    kernel_type: type[N]

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine, with the remedy; None if it can."""
        raise NotImplementedError

    def can_run(self, device: torch.device, dtype: torch.dtype, raise_error: bool = False) -> bool:
        reason = None
        if device.type != self.device:
            reason = f"backend {self.name!r} computes on {self.what}, not on {device}"
        elif dtype not in DTYPES:
            reason = f"backend {self.name!r} computes in {', '.join(map(str, DTYPES))}, not in {dtype}"
        else:
            reason = self.unavailable()
        if reason and raise_error:
            raise BackendError(reason)
        return reason is None

    def source(self, kernel: Kernel) -> str:
        return self.compile(kernel).source

    def loaded(self, kernel: Kernel, files: Mapping[str, str], fast_math: bool) -> N:
        source, facts = (files[name] for name in self.files)
        return self.kernel_type(kernel.text, kernel.title, source, Facts.from_json(facts), fast_math)
