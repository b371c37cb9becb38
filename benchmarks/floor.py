"""How fast each case could be on this machine: its arithmetic over the peak rate, its bytes over the bandwidth.

    python benchmarks/floor.py [--threads T]

The arithmetic is symconv's own count of the operations at each tap of the formula as it is written, with sums
and products fused in pairs and a function taken as the shortest polynomial that is known to give float32.  Who computes
something else, such as what depends on x alone once per pixel and not once per tap, can be faster than the floor.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import rich.box
import torch
from kernels import FORMULAS, Case, cases
from rich.console import Console
from rich.table import Table

import symconv as sc
from symconv.accumulators import EXPONENTIALS, FIRST_MAX, MAX, MEAN, PRODUCT, SUM, Kind
from symconv.build.driver import LoadedModule
from symconv.build.nvrtc import cubin
from symconv.lower import lower
from symconv.schedule import Schedule, Sweep

Peaks = dict[str, float]

#: Vector instructions per function, at least.
FUNCTIONS = {"exp": 9, "sin": 12, "cos": 12, "tan": 18, "log": 12, "pow": 22, "tanh": 14, "sqrt": 4, "norm": 4}

#: By kind of accumulator, what one more value costs.
ACCUMULATORS: dict[Kind, Counter[str]] = {
    SUM: Counter(add=1),
    MEAN: Counter(add=1),
    PRODUCT: Counter(mul=1),
    MAX: Counter(max=1),
    FIRST_MAX: Counter(max=1, select=1),
    EXPONENTIALS: Counter(max=1, exp=1, add=2),
}


@functools.cache
def peaks(threads: int) -> Peaks:
    """Numbers per second that this machine adds, multiplies and adds, divides; bytes per second that it copies."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "floor"
        source = Path(__file__).with_suffix(".cpp")
        compiler = [os.environ.get("CXX", "g++"), "-O3", "-march=native", "-std=c++17", "-pthread"]
        subprocess.run([*compiler, str(source), "-o", str(program)], check=True)
        measured = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True)
    found: Peaks = json.loads(measured.stdout)
    return found


@functools.cache
def peaks_of_gpu() -> Peaks:
    """The same of the current GPU, in float32."""
    major, minor = torch.cuda.get_device_capability()
    text = Path(__file__).with_name("floor.cu").read_text(encoding="utf-8")
    module = LoadedModule(cubin(text, {}, [], f"sm_{major}{minor}", "what this GPU can do")[0], "floor")
    sink = torch.zeros(1, device="cuda")
    blocks, threads, rounds = 8 * torch.cuda.get_device_properties(0).multi_processor_count, 256, 1000
    call = struct.pack("Pfi", sink.data_ptr(), 1.0, rounds)
    found = {}
    for name in ("add", "fma", "div"):
        run = functools.partial(module.launch, f"rate_{name}", blocks, threads, 0, call)
        found[name] = blocks * threads * rounds * 64 / seconds_on_gpu(run)
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    memory = 2 * source.nbytes / seconds_on_gpu(lambda: target.copy_(source))
    return {**found, "l2": memory, "memory": memory}


def seconds_on_gpu(run: Callable[[], object]) -> float:
    """The time that a GPU takes, the shortest of five."""
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return min(times)


@functools.cache
def schedule(text: str) -> Schedule:
    return lower(sc.Kernel(text).formula)


def at_taps(sweep: Sweep, taps: int) -> Counter[str]:
    """The operations of a sweep at one tap, running totals included."""
    counts = Counter(sweep.taps.operations)
    for each in sweep.accumulators:
        # To find a rank, each value is compared as often as a search among the taps halves.
        ranked = Counter(compare=math.ceil(math.log2(taps)))
        counts += ACCUMULATORS.get(each.kind, ranked)
    counts["add"] += len(sweep.gradients)
    return counts


def seconds_of(counts: Counter[str], times: int, peak: Peaks) -> float:
    """The least time for `times` evaluations."""
    fused = min(counts["mul"], counts["add"])
    simple = sum(FUNCTIONS.get(name, 1) * n for name, n in counts.items() if name != "div") - fused
    return times * ((simple - fused) / peak["add"] + fused / peak["fma"] + counts["div"] / peak["div"])


def floor(case: Case, direction: str, peak: Peaks) -> float:
    """The least time in which the case can be computed as it is written, in s."""
    plan = schedule(case.formula.text)
    taps, windows = case.shape.taps, math.prod(case.shape.y)
    in_window = taps // windows
    arithmetic = seconds_of(plan.output.operations, windows, peak)
    for sweep in plan.forward + (plan.backward if direction == "training" else ()):
        visited = in_window if "c" in sweep.where.axes and "t" in sweep.where.axes else math.prod(case.shape.window)
        arithmetic += seconds_of(sweep.before.operations, windows, peak)
        arithmetic += seconds_of(at_taps(sweep, in_window), windows * visited, peak)
    return max(arithmetic, case.bytes[direction] / peak["memory"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    console = Console()
    for threads in sorted({1, options.threads}):
        peak = peaks(threads)
        rates = ", ".join(f"{peak[name] / 1e9:.0f} G {name}/s" for name in ("fma", "add", "div"))
        console.print(
            f"{threads} threads: {rates}; copy {peak['l2'] / 1e9:.0f} GB/s in L2, {peak['memory'] / 1e9:.0f} in memory"
        )
    table = Table("kernel", "layer", box=rich.box.SIMPLE_HEAD)
    for column in ("operations at a tap", "forward ms", "Gtap/s", "with backward ms", "Gtap/s"):
        table.add_column(column, justify="left" if column.endswith("tap") else "right")
    for case in cases(list(FORMULAS), None):
        counts = sum((at_taps(sweep, 1) for sweep in schedule(case.formula.text).forward), Counter())
        row = [", ".join(f"{n} {name}" for name, n in sorted(counts.items()) if n)]
        for direction in ("forward", "training"):
            seconds = floor(case, direction, peak)
            row += [f"{1e3 * seconds:.3g}", f"{case.shape.taps / seconds / 1e9:.3g}"]
        table.add_row(case.formula.name, case.shape.name, *row)
    console.print(table)


if __name__ == "__main__":
    main()
