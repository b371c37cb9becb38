"""The C++ compiler (first version)."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Toolchain:
    compiler: str
    vector_bytes: int
    sleef: bool
    flags: tuple[str, ...]

    def fields(self) -> dict[str, str]:
        return {"compiler": self.compiler, "flags": " ".join(self.flags)}

    def compile(self, source: Path, output: Path, options: Sequence[str] = (), include: Sequence[Path] = ()) -> None:
        command = [self.compiler, *self.flags, *options, *(f"-I{path}" for path in include)]
        done = subprocess.run([*command, str(source), "-o", str(output)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[:4000])


@functools.cache
def find_toolchain() -> Toolchain:
    flags = "-std=c++17 -O3 -march=native -fPIC -shared -fno-math-errno -fno-trapping-math -ffp-contract=fast -fopenmp"
    return Toolchain("g++", 64, True, tuple(flags.split()))


@functools.cache
def _promote() -> None:
    lib = Path(torch.__file__).parent / "lib"
    for name in ("libgomp.so.1", "libtorch_cpu.so"):
        ctypes.CDLL(str(lib / name), mode=ctypes.RTLD_GLOBAL)


def load(path: Path) -> ctypes.CDLL:
    _promote()
    return ctypes.CDLL(str(path))
