"""Trying a C++ compiler out: whether what it builds runs here, and with which options."""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import os
import platform
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import BackendError, CacheError
from ..render import template_directory
from .run import RunError, run
from .toolchain import SCHEDULING, TORCH, Toolchain, load

#: Options of every compilation, those that start with -Wl of every link.  Never -ffast-math: it breaks NaN tests.
REQUIRED = ("-std=c++17", "-O3", "-fPIC")
#: Threads are those of PyTorch's OpenMP.
OPENMP = "-DSYMCONV_OPENMP"
#: Those that are left out where a compiler refuses them.
OPTIONAL = (
    *(OPENMP, "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden", "-fno-plt"),
    *("-fno-gnu-unique", "-Wl,-Bsymbolic"),
    *(SCHEDULING, "-fsched-pressure"),
)
#: A function of Sleef for vectors of so many bytes.
SLEEF = {64: "Sleef_expd8_u10avx512f", 32: "Sleef_expd4_u10avx2"}
#: Seconds for each run while compilers are tried out.
PROBE_TIMEOUT = 30.0
#: Runs if headers are there, vectors work and OpenMP is found.  On one thread: a pool would not survive a fork.
PROBE = """
#include <cmath>
#include <type_traits>
#include "threads.hpp"
typedef float vec __attribute__((vector_size(16)));
extern "C" __attribute__((visibility("default"))) int symconv_probe(int threads)
{
    int sum = 0;
    symconv::in_parallel(threads, [&](int64_t, int64_t) {
        for (int i = 0; i < 100; ++i)
            sum += i;
        symconv::barrier();
    });
    const vec values = vec{1, 2, 3, 4} * float(sum);
    return int(values[3]);
}
"""
ANSWER = 4 * 4950


def first_that_works(candidates: Mapping[str, list[str]], directory: Path) -> Toolchain:
    """The first of the compilers that works.

    Args:
        candidates: commands, by what messages call them; empty where the program is not there.
        directory: where files may be written and loaded.

    Raises:
        BackendError: if none does; it says what is wrong with each.
    """
    reasons = {}
    for name, command in candidates.items():
        reasons[name] = "not found"
        if command:
            try:
                with tempfile.TemporaryDirectory(dir=directory) as private:
                    return _probe(command, Path(private))
            except RunError as failure:
                reasons[name] = failure.reason
    raise _none_works(reasons)


def _none_works(reasons: Mapping[str, str]) -> BackendError:
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    own = next(iter(reasons)).startswith("$SYMCONV_CXX")
    remedy = "correct or unset SYMCONV_CXX" if own else "install g++ or clang++, or set SYMCONV_CXX to a compiler"
    return BackendError(f"no C++ compiler works: {listed}; {remedy}; meanwhile the torch backend serves")


def _probe(command: Sequence[str], directory: Path) -> Toolchain:
    """What a compiler can do."""
    tried = functools.partial(run, directory=directory, limit=PROBE_TIMEOUT)

    def accepts(flag: str) -> bool:
        mode = ["-shared", "-fPIC"] if flag.startswith("-Wl,") else ["-c"]
        try:
            tried([*command, flag, *mode, "-x", "c++", os.devnull, "-o", str(directory / "accepted")])
        except RunError as failure:
            if not failure.refused:
                raise
            return False
        return True

    lines = tried([*command, "--version"]).splitlines()
    version = "".join(filter(str.isprintable, lines[0])) if lines else ""
    native = [flag for flag in ("-march=native", "-mcpu=native") if accepts(flag)][:1]
    macros = sorted(tried([*command, *native, "-dM", "-E", "-x", "c++", os.devnull]).splitlines())
    names = {line.split()[1] for line in macros if line.startswith("#define ")}
    sets: dict[int, set[str]] = {
        64: {"__AVX512F__", "__AVX512DQ__", "__AVX512BW__", "__AVX512VL__"},
        32: {"__AVX2__", "__FMA__"},
        16: set(),
    }
    width = next(width for width, needed in sets.items() if needed <= names)
    target = f"{platform.machine()} {hashlib.sha256(os.linesep.join(macros).encode()).hexdigest()[:16]}"
    sleef = width in SLEEF and TORCH.exists() and hasattr(ctypes.CDLL(str(TORCH)), SLEEF[width])
    flags = (*REQUIRED, *native, *OPTIONAL)
    toolchain = Toolchain(shlex.join(command), version, target, width, True, sleef, flags)
    try:
        return _tried(toolchain, directory)
    except RunError as failure:
        if not failure.refused:
            raise
    toolchain = _without(toolchain, [flag for flag in OPTIONAL if not accepts(flag)])
    if toolchain.openmp:
        with contextlib.suppress(RunError):
            return _tried(toolchain, directory)
    return _tried(_without(toolchain, [OPENMP]), directory)


def _tried(toolchain: Toolchain, directory: Path) -> Toolchain:
    """The toolchain, once a small program that it built has run."""
    source, output = directory / "probe.cpp", Path(tempfile.mkdtemp(dir=directory)) / "probe.so"
    source.write_text(PROBE, encoding="utf-8")
    toolchain.build(source, output, include=[template_directory() / "include"], limit=PROBE_TIMEOUT)
    try:
        library = load(output)
        try:
            answer = library["symconv_probe"](1)
        finally:  # a file in use cannot be deleted everywhere
            _ctypes.dlclose(library._handle)
    except (CacheError, AttributeError) as error:
        raise RunError(f"what it builds does not load: {error}", True) from error
    if answer != ANSWER:
        raise RunError(f"what it builds computes {answer}, not {ANSWER}", True)
    return toolchain


def _without(toolchain: Toolchain, flags: Sequence[str]) -> Toolchain:
    left = tuple(flag for flag in toolchain.flags if flag not in flags)
    return dataclasses.replace(toolchain, flags=left, openmp=OPENMP in left)
