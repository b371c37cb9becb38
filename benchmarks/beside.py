"""Kernels beside F.conv2d on four layers: the least time of calls in turn, as multiples of its time.

python benchmarks/beside.py [FORMULA ...] [--threads N] [--calls N] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import rich.box
import torch
import torch.nn.functional as F
from kernels import FORMULAS
from machine import facts
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import symconv as sc

#: Channels, as many filters, and the size of the four images; windows are 3x3 with padding 1.
LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
KERNELS = ("linear", "adder", "dilation", "gaussian", "sine", "exponential", "rational")
PASSES = ("forward", "x", "w", "all")

Layer = Callable[[Tensor, Tensor], Tensor]


def layers() -> dict[str, Layer]:
    """F.conv2d, and symconv's function for each kernel."""
    found: dict[str, Layer] = {"F.conv2d": functools.partial(F.conv2d, padding=1)}
    for name in FORMULAS:
        found[name] = functools.partial(_layer, sc.Kernel(FORMULAS[name].text))
    return found


def _layer(kernel: sc.Kernel, x: Tensor, w: Tensor) -> Tensor:
    return sc.conv2d(kernel, x, w, padding=1, padding_mode="constant", backend="cpp")


def steps(layer: Layer, x: Tensor, w: Tensor) -> dict[str, Callable[[], object]]:
    """The passes: the output alone, a gradient alone, and all of it."""
    learned = x.detach().requires_grad_(), w.detach().requires_grad_()
    output = layer(*learned)
    grad_y = torch.randn_like(output)

    def forward() -> None:
        with torch.no_grad():
            layer(x, w)

    def gradient(of: Tensor) -> None:
        torch.autograd.grad(output, of, grad_y, retain_graph=True)

    def both() -> None:
        torch.autograd.grad(layer(*learned), learned, grad_y)

    x_, w_ = learned
    return dict(zip(PASSES, (forward, functools.partial(gradient, x_), functools.partial(gradient, w_), both)))


def least(calls: list[Callable[[], object]], times: int) -> list[float]:
    """The least milliseconds of each of some calls, which are made in turn."""
    for call in calls:
        call()
    found = [float("inf")] * len(calls)
    for _ in range(times):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            found[i] = min(found[i], 1e3 * (time.perf_counter() - start))
    return found


def measured(kernels: list[str], channels: int, size: int, times: int) -> dict[str, dict[str, float]]:
    """The milliseconds of each kernel and pass on a layer; F.conv2d in the better of two memory formats."""
    torch.manual_seed(0)
    x, w = torch.randn(4, channels, size, size), 0.1 * torch.randn(channels, channels, 3, 3)
    known = layers()
    runs = {("F.conv2d", "contiguous"): steps(known["F.conv2d"], x, w)}
    last = [each.contiguous(memory_format=torch.channels_last) for each in (x, w)]
    runs["F.conv2d", "channels last"] = steps(known["F.conv2d"], *last)
    runs |= {(name, ""): steps(known[name], x, w) for name in kernels}
    found: dict[str, dict[str, float]] = {}
    for pass_ in PASSES:
        for (name, _), ms in zip(runs, least([each[pass_] for each in runs.values()], times)):
            passes = found.setdefault(name, {})
            passes[pass_] = min(passes.get(pass_, ms), ms)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", metavar="FORMULA", nargs="*", default=KERNELS, help=f"of {', '.join(FORMULAS)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--calls", type=int, default=24, help="of each pass")
    parser.add_argument("--json", type=Path, help="write the milliseconds there")
    options = parser.parse_args()
    if unknown := {*options.kernels} - {*FORMULAS}:
        parser.error(f"no formula {min(unknown)!r}; there are {', '.join(FORMULAS)}")
    torch.set_num_threads(options.threads)
    console = Console()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for channels, size in track(LAYERS, description="layers", console=console, transient=True):
        title = f"[4, {channels}, {size}, {size}] to {channels}"
        results[title] = measured(options.kernels, channels, size, options.calls)
    table = Table(title=f"multiples of F.conv2d, threads: {options.threads}", box=rich.box.SIMPLE_HEAD)
    for column in ("kernel", "pass"):
        table.add_column(column)
    for title in results:
        table.add_column(title, justify="right")
    for name, pass_ in itertools.product(("F.conv2d", *options.kernels), PASSES):
        row = []
        for passes in results.values():
            ms, base = passes[name][pass_], passes["F.conv2d"][pass_]
            row.append(f"{ms:.1f} ms" if name == "F.conv2d" else f"{ms / base:.2f}")
        table.add_row(name if pass_ == PASSES[0] else "", pass_, *row, end_section=pass_ == PASSES[-1])
    console.print(table)
    if options.json:
        record = {"machine": facts(options.threads, "cpu"), "milliseconds": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
