"""What a run ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("symconv", "torch", "numba", "llvmlite", "jax", "jaxlib", "numpy", "sympy")


def cpu() -> str:
    """The processor by its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    compiler = subprocess.run([os.environ.get("CXX", "g++"), "--version"], capture_output=True, text=True, check=False)
    return found | {"compiler": compiler.stdout.partition("\n")[0]}


def facts(threads: int, device: str) -> dict[str, object]:
    return {
        "cpu": cpu() if device == "cpu" else torch.cuda.get_device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load": os.getloadavg()[0],
        "platform": platform.platform(terse=True),
        "versions": versions(),
    }
