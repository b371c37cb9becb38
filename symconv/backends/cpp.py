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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..build.cache import Cache
from ..build.key import content_key
from ..build.toolchain import NO_SCHEDULING, SCHEDULING, Toolchain, find_toolchain, load
from ..errors import BackendError, CacheError, SymconvWarning
from ..geometry import Geometry
from ..kernel import Kernel
from ..render import template_directory, templates
from .cpp_plan import CppPlan, plan_of
from .cpp_tiles import Lanes, lanes_of, tiles_of
from .native import FACTS, NativeBackend, NativeKernel, defines_of
from .native_facts import Facts, facts_of
from .native_plan import ranked

log = logging.getLogger("symconv")

SOURCE, LIBRARY = "kernel.cpp", "kernel.so"
#: A child of fork has none of the threads of the OpenMP pool and would wait for them for ever.
_FORKED = threading.Event()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_FORKED.set)


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

    schedule = lower(kernel.formula, lift=True)
    return {
        SOURCE: cpp_source(kernel, schedule),
        FACTS: facts_of(kernel, schedule).to_json(),
    }


class CppKernel(NativeKernel[CppPlan]):
    """A generated C++ file and the libraries built from it."""

    def __init__(self, text: str, title: str, source: str, facts: Facts, fast_math: bool) -> None:
        super().__init__(text, title, source, facts, fast_math)
        self._libraries: dict[tuple[str, torch.dtype, bool, int, Lanes], Any] = {}
        if facts.inference_state is not None:
            self.inference = "inference"

    def plan_key(self, device: torch.device) -> int:
        """How many threads may share the work."""
        return 1 if _FORKED.is_set() else torch.get_num_threads()

    def planned(self, direction: str, tensors: Sequence[torch.Tensor], geometry: Geometry) -> CppPlan:
        vector_bytes, x = find_toolchain().vector_bytes, tensors[0]
        facts, threads = self._facts(direction), self.plan_key(x.device)
        lanes = lanes_of(facts, direction, vector_bytes, tensors, geometry)
        tiles = tiles_of(facts, vector_bytes, lanes)
        count = ranked(self.facts, x, geometry)
        function = self._library(direction, x.dtype, geometry.ignores_padding, count, lanes)
        return plan_of(facts, direction, tiles, vector_bytes, tensors, geometry, threads, function, lanes)

    def call(self, plan: CppPlan, tensors: Sequence[torch.Tensor | None], numbers: Sequence[float]) -> None:
        arguments, held = plan.arguments(tensors, self.roles_and_axes)
        values = (ctypes.c_double * len(numbers))(*numbers) if numbers else None
        scratch = plan.scratch(arguments, values)
        plan.function(plan.geometry, arguments, values, scratch.data_ptr())
        plan.give_back(scratch)
        del held

    def _facts(self, direction: str) -> Facts:
        """What tiles and strips of a pass follow from."""
        return self.facts.for_inference() if direction == "inference" else self.facts

    def _library(self, direction: str, dtype: torch.dtype, ignore: bool, count: int, lanes: Lanes) -> Any:
        """The compiled function for a pass, a dtype, a kind of padding, a count of values in order, a kind of lanes."""
        key = direction, dtype, ignore, count, lanes
        with self._lock.held():
            if key not in self._libraries:
                self._libraries[key] = self._built(find_toolchain(), *key)
            return self._libraries[key]

    def _built(
        self, toolchain: Toolchain, direction: str, dtype: torch.dtype, ignore: bool, count: int, lanes: Lanes
    ) -> Any:
        facts = self._facts(direction)
        tiles, heavy = tiles_of(facts, toolchain.vector_bytes, lanes), facts.of(direction).heavy
        keeps_nothing, direction = direction == "inference", direction.replace("inference", "forward")
        options = [
            *defines_of(direction, dtype, ignore, count),
            *["-DSYMCONV_FORGETS"] * keeps_nothing,
            f"-DSYMCONV_LANES_ARE_{lanes.upper()}",
            f"-DSYMCONV_VECTOR_BYTES={toolchain.vector_bytes}",
            *["-DSYMCONV_SLEEF"] * toolchain.sleef,
            *tiles.options(),
            # Additions and products are in the best order as they are written.
            *[NO_SCHEDULING] * (SCHEDULING in toolchain.flags and not heavy),
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
        function.argtypes = [ctypes.c_void_p] * 4
        return function


class CppBackend(NativeBackend[CppKernel]):
    """Renders kernels as C++, builds and runs them on the CPU."""

    name, language, files = "cpp", "cpp", (SOURCE, FACTS)
    device, what = "cpu", "the CPU"
    kernel_type = CppKernel

    def unavailable(self) -> str | None:
        return _unavailable()

    def generate(self, kernel: Kernel) -> dict[str, str]:
        return generate(kernel)
