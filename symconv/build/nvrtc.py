"""NVIDIA's run-time compiler: from generated CUDA C++ to machine code for one architecture, without a GPU or nvcc."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BackendError, CompilationError
from .cache import Cache
from .key import content_key
from .run import progress
from .toolchain import keep

CUBIN, LOG = "kernel.cubin", "ptxas.txt"
#: Everything is device code; no PTX, which a driver would compile anew.
FLAGS = ("--std=c++17", "--device-as-default-execution-space", "--ptxas-options=-v", "-DSYMCONV_CUDA")
INSTALL = "pip install '.[cuda]' in the directory of symconv's sources"


@functools.cache
def _nvrtc() -> tuple[Any, str]:
    """The bindings of NVRTC and its version.

    Raises:
        BackendError: if there are none.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise BackendError(f"the Python bindings of CUDA are missing ({error}); {INSTALL}") from error
    try:
        _, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # the bindings load the library when first used, and say so in their own ways
        raise BackendError(f"NVRTC, the run-time compiler of CUDA, cannot be loaded ({error}); {INSTALL}") from error
    return nvrtc, f"{major}.{minor}"


def nvrtc_version() -> str:
    """The version of NVRTC, as "13.0".

    Raises:
        BackendError: if there is none.
    """
    return _nvrtc()[1]


def architectures() -> list[str]:
    """The architectures for which NVRTC compiles, as "sm_90"."""
    nvrtc, _ = _nvrtc()
    _, found = nvrtc.nvrtcGetSupportedArchs()
    return [f"sm_{number}" for number in found]


def cubin(
    source: str, headers: Mapping[str, str], options: Sequence[str], architecture: str, description: str
) -> tuple[bytes, str]:
    """Machine code for `architecture`, and what ptxas says of its registers; from the cache or compiled.

    Raises:
        BackendError: if NVRTC is missing.
        CompilationError: if it refuses the source.
    """
    _, version = _nvrtc()
    flags = [*FLAGS, *options, f"--gpu-architecture={architecture}"]
    key = content_key({**headers, "nvrtc": version, "text": source, "options": json.dumps(flags)})

    def build(directory: Path) -> None:
        (directory / "kernel.cu").write_text(source, encoding="utf-8")
        with progress(description, f"NVRTC {version}"):
            code, log = _compile(directory / "kernel.cu", headers, flags)
        (directory / CUBIN).write_bytes(code)
        (directory / LOG).write_text(log, encoding="utf-8")

    entry = Cache().get(key, build, description)
    return entry.path_of(CUBIN).read_bytes(), entry.read(LOG)


def _compile(path: Path, headers: Mapping[str, str], flags: Sequence[str]) -> tuple[bytes, str]:
    nvrtc, _ = _nvrtc()
    source = path.read_text(encoding="utf-8")
    names, texts = [name.encode() for name in headers], [text.encode() for text in headers.values()]
    _checked(nvrtc, *(made := nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", len(names), texts, names))[:1])
    program = made[1]
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        log = _read(nvrtc, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        text = log.rstrip(b"\0 \n").decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompilationError("NVRTC refuses the source", ["nvrtc", *flags], text, keep(path))
        return _read(nvrtc, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), text
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _read(nvrtc: Any, size_of: Any, get: Any, program: Any) -> bytes:
    status, size = size_of(program)
    _checked(nvrtc, status)
    buffer = bytes(size)
    _checked(nvrtc, *get(program, buffer))
    return buffer


def _checked(nvrtc: Any, status: Any) -> None:
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"NVRTC: {status.name}")


class Resources(NamedTuple):
    """What ptxas says that each thread of a function takes: registers, and bytes of stack and of spilled registers."""

    registers: int
    stack: int
    spilled: int


def resources_of(log: str) -> dict[str, Resources]:
    """The resources of each function that a log of ptxas names.

    >>> resources_of('''ptxas info    : Compiling entry function 'f' for 'sm_90'
    ... ptxas         .     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
    ... ptxas info    : Used 40 registers, used 1 barriers''')
    {'f': Resources(registers=40, stack=8, spilled=8)}
    """
    found = {}
    for entry in log.split("Compiling entry function '")[1:]:
        name, _, rest = entry.partition("'")
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", rest)
        registers = re.search(r"Used (\d+) registers", rest)
        if memory and registers:
            stack, stores, loads = map(int, memory.groups())
            found[name] = Resources(int(registers[1]), stack, stores + loads)
    return found
