"""The C++ backend: generated code for the CPU, compiled at first use with the user's g++ or clang++.

A kernel is one source text.  What is built from it are *libraries*, one for each pass, dtype and kind of padding, each
when it is first called for; a forward pass never waits for the compilation of a backward pass.
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import os
import shlex
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch

from ..build.cache import Cache
from ..build.key import content_key
from ..build.toolchain import Toolchain, find_toolchain, load
from ..errors import BackendError, CacheError, CompilationError, SymconvWarning
from ..geometry import Geometry
from ..kernel import Kernel, kernel_of
from ..render import template_directory, templates
from . import DTYPES, Compiled, backend
from .cpp_schedule import Facts, Plan, facts_of, plan_of, tiles_of
from .generated import GeneratingBackend

log = logging.getLogger("symconv")

SOURCE, FACTS, LIBRARY = "kernel.cpp", "facts.json", "kernel.so"
#: How tensors of a dtype are stored and computed with, as options of the compiler.
STORAGE = {
    torch.float32: ("-DSYMCONV_REAL=float",),
    torch.float64: ("-DSYMCONV_REAL=double",),
    torch.float16: ("-DSYMCONV_REAL=float", "-DSYMCONV_FLOAT16"),
    torch.bfloat16: ("-DSYMCONV_REAL=float", "-DSYMCONV_BFLOAT16"),
}

#: So many shapes a kernel remembers.
MAX_PLANS = 1024
#: The process whose threads the OpenMP pool belongs to: a child of fork has none of them and would wait for ever.
_PARENT = os.getpid()


class CppBackend(GeneratingBackend["CppKernel"]):
    """Renders kernels as C++, builds and runs them on the CPU."""

    name = "cpp"
    files = (SOURCE, FACTS)

    def unavailable(self) -> str | None:
        return _unavailable()

    def can_run(self, device: torch.device, dtype: torch.dtype, raise_error: bool = False) -> bool:
        reason = None
        if device.type != "cpu":
            reason = f"backend 'cpp' computes on the CPU, not on {device}"
        elif dtype not in DTYPES:
            reason = f"backend 'cpp' computes in {', '.join(map(str, DTYPES))}, not in {dtype}"
        else:
            reason = _unavailable()
        if reason and raise_error:
            raise BackendError(reason)
        return reason is None

    def source(self, kernel: Kernel) -> str:
        return self.compile(kernel).source

    def generate(self, kernel: Kernel) -> dict[str, str]:
        return generate(kernel)

    def loaded(self, kernel: Kernel, files: Mapping[str, str]) -> CppKernel:
        return CppKernel(kernel.text, kernel.title, files[SOURCE], Facts(**json.loads(files[FACTS])))


@functools.cache
def _unavailable() -> str | None:
    """Why there is no native code on this machine; said once, in one line of the log."""
    try:
        find_toolchain()
    except BackendError as error:
        log.warning("symconv runs on the torch backend: %s", error)
        return str(error)
    return None


def generate(kernel: Kernel) -> dict[str, str]:
    """The files of a cache entry: the source, and the facts that spare the next process the derivation."""
    from ..lower import lower
    from .cpp_source import cpp_source

    schedule = lower(kernel.formula)
    return {SOURCE: cpp_source(kernel, schedule), FACTS: json.dumps(facts_of(kernel, schedule)._asdict())}


class CppKernel:
    """A generated C++ file and the libraries built from it."""

    def __init__(self, text: str, title: str, source: str, facts: Facts) -> None:
        self.text, self.title, self.source, self.facts = text, title, source, facts
        self._broken = False
        self.kept = tuple(facts.kept)
        self.has_gradient = frozenset(facts.has_gradient)
        self._libraries: dict[tuple[str, torch.dtype, bool], Any] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._lock = threading.RLock()
        operands, values = [*zip(facts.roles, facts.axes)], [("values", "o")] * (1 + len(facts.kept))
        self._lying = [*operands, *values, *operands]

    def forward(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[float], geometry: Geometry
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        x = tensors[0]
        plan = self._plan("forward", tensors, geometry)
        if plan is None:
            return self._instead.forward(tensors, numbers, geometry)
        real = torch.promote_types(x.dtype, torch.float32)
        output = torch.empty(plan.output_shape, dtype=x.dtype)
        kept = tuple(
            torch.empty(plan.output_shape, dtype=torch.int32 if kind == "position" else real) for kind in self.kept
        )
        self._call(plan, [*tensors, output, *kept], numbers)
        return output, kept

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
            return self._instead.backward(grad_output, kept, tensors, numbers, geometry, needs)
        dtype = tensors[0].dtype
        real = torch.promote_types(dtype, torch.float32)
        gradients = [
            torch.zeros(each.shape, dtype=real) if name in needs else None
            for name, each in zip(self.facts.tensors, tensors)
        ]
        wanted = [each if name in self.has_gradient else None for name, each in zip(self.facts.tensors, gradients)]
        if any(each is not None for each in wanted):
            self._call(plan, [*tensors, grad_output, *kept, *wanted], numbers)
        return tuple(each if each is None or each.dtype == dtype else each.to(dtype) for each in gradients)

    # -- Calls -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _instead(self) -> Compiled:
        """The same kernel on the torch backend, which needs no compiler; both keep the same for a backward pass."""
        return backend("torch").compile(kernel_of(self.text))

    def _plan(self, direction: str, tensors: Sequence[torch.Tensor], geometry: Geometry) -> Plan | None:
        """How a call is cut, with the function that computes it; None where that cannot be built."""
        x, threads = tensors[0], torch.get_num_threads() if os.getpid() == _PARENT else 1
        key = (direction, geometry, threads, x.dtype, *[each.shape for each in tensors])
        found = self._plans.get(key)
        if found is None:
            if self._broken:
                return None
            if len(self._plans) >= MAX_PLANS:  # of a model whose images are all of different sizes
                self._plans.clear()
            toolchain = find_toolchain()
            tiles = tiles_of(self.facts, toolchain.vector_bytes)
            plan = plan_of(self.facts, direction, tiles, toolchain.vector_bytes, tensors, geometry, threads)
            try:
                function = self._library(direction, x.dtype, geometry.ignore and any(map(any, geometry.padding)))
            except (CompilationError, CacheError, OSError) as error:
                self._broken = True
                warnings.warn(
                    f"{error}\nThe torch backend computes {self.title!r} instead.", SymconvWarning, stacklevel=2
                )
                return None
            found = self._plans[key] = plan.with_function(function)
        return found

    def _call(self, plan: Plan, tensors: Sequence[torch.Tensor | None], numbers: Sequence[float]) -> None:
        arguments, held = plan.arguments(tensors, self._lying)
        values = (ctypes.c_double * max(len(numbers), 1))(*numbers)
        scratch = torch.empty(plan.scratch_bytes(arguments), dtype=torch.uint8)
        plan.function(plan.geometry, arguments, values, scratch.data_ptr(), plan.threads)
        del held

    def _library(self, direction: str, dtype: torch.dtype, ignore: bool) -> Any:
        """The compiled function for a pass, a dtype and a kind of padding."""
        key = direction, dtype, ignore
        with self._lock:
            if key not in self._libraries:
                self._libraries[key] = self._built(find_toolchain(), direction, dtype, ignore)
            return self._libraries[key]

    def _built(self, toolchain: Toolchain, direction: str, dtype: torch.dtype, ignore: bool) -> Any:
        options = [
            f"-DSYMCONV_{direction.upper()}",
            f"-DSYMCONV_VECTOR_BYTES={toolchain.vector_bytes}",
            *STORAGE[dtype],
            *["-DSYMCONV_IGNORE"] * ignore,
            *["-DSYMCONV_SLEEF"] * toolchain.sleef,
            *tiles_of(self.facts, toolchain.vector_bytes).options(),
            *shlex.split(os.environ.get("SYMCONV_CXXFLAGS", "")),
        ]
        include = template_directory() / "include"
        headers = {name: text for name, text in templates().items() if name.endswith(".hpp")}
        key = content_key({**toolchain.fields(), **headers, "text": self.source, "options": json.dumps(options)})

        description = f"{self.title} (cpp, {direction}, {str(dtype).removeprefix('torch.')})"

        def build(directory: Path) -> None:
            source = directory / SOURCE
            source.write_text(self.source, encoding="utf-8")
            toolchain.compile(source, directory / LIBRARY, options, [include], description)

        try:
            library = load(Cache().get(key, build, description).path_of(LIBRARY))
        except CacheError as error:  # it can still be built for this process alone
            warnings.warn(f"{error}; {description} is compiled anew in each process", SymconvWarning, stacklevel=2)
            with tempfile.TemporaryDirectory(prefix="symconv-") as directory:
                build(Path(directory))
                library = load(Path(directory) / LIBRARY)
        function = library[f"symconv_{direction}"]
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        return function
