"""CUDA kernels on the CPU: the generated file, unchanged, behind a header that emulates CUDA."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InternalError
from ..render import template_directory
from .cache import Cache
from .key import content_key
from .lock import ForkSafeLock
from .toolchain import find_toolchain, load

LIBRARY, SOURCE = "kernel.so", "emulation.cpp"
#: No fused operations: whether a GPU fuses is its compiler's choice, and what must not be fused is said in the source.
FLAGS = ("-O1", "-ffp-contract=off", "-Wno-unknown-pragmas")
#: Launches run one at a time: the threads of a block are fibers of the thread that launches.
_LOCK = ForkSafeLock()


class EmulatedModule:
    """The functions of a generated CUDA file, run on the CPU.

    Args:
        library: the shared object.
        order: in which the threads of a block take turns: 0 ascending, 1 descending, else at random with that seed.
    """

    spilled: Sequence[str] = ()

    def __init__(self, library: Path, order: int = 0) -> None:
        self.order = order
        self._run = load(library).symconv_emulate
        self._run.restype = ctypes.c_char_p
        self._run.argtypes = [ctypes.c_char_p, *[ctypes.c_uint] * 3, ctypes.c_char_p, ctypes.c_uint]

    def launch(self, function: str, blocks: int, threads: int, shared_bytes: int, call: bytes) -> None:
        """Run a function in `blocks` blocks of `threads` threads, with so many bytes of shared memory for each block;
        `call` is its argument.

        Raises:
            InternalError: if its threads do not wait for one another as they must.
        """
        with _LOCK.held():
            failure = self._run(function.encode(), blocks, threads, shared_bytes, call, self.order)
        if failure:
            raise InternalError(f"{function}: {failure.decode()}")


def emulated(
    source: str, headers: Mapping[str, str], options: Sequence[str], description: str, order: int
) -> EmulatedModule:
    """A generated CUDA file as functions for the CPU, from the cache or built.

    Raises:
        BackendError: if there is no C++ compiler.
        CompilationError, CacheError: if it cannot be built.
    """
    toolchain = find_toolchain()
    options = [*FLAGS, "-DSYMCONV_CUDA", *options, *shlex.split(os.environ.get("SYMCONV_CXXFLAGS", ""))]
    key = content_key({**toolchain.fields(), **headers, "text": source, "options": json.dumps(options)})

    def build(directory: Path) -> None:
        (directory / "kernel.cu").write_text(source, encoding="utf-8")
        (directory / SOURCE).write_text(headers[SOURCE], encoding="utf-8")
        include = [directory, template_directory() / "include"]
        toolchain.compile(directory / SOURCE, directory / LIBRARY, options, include, description)

    return EmulatedModule(Cache().get(key, build, description).path_of(LIBRARY), order)
