"""What one call costs beside the arithmetic: a layer of [1, 1, 8, 8] to one filter 3x3.

python benchmarks/call.py [--seconds S] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import rich.box
import torch
import torch.nn.functional as F
from measure import backends
from rich.console import Console
from rich.table import Table
from torch import Tensor

import symconv as sc

FORMULAS = ("sum(w*x)", "-sum(abs(x - w))")

Layer = Callable[[Tensor, Tensor], Tensor]


def ways() -> dict[str, Layer]:
    """F.conv2d, and symconv's function on each backend; the formula is parsed before."""
    found: dict[str, Layer] = {"F.conv2d": functools.partial(F.conv2d, padding=1)}
    for text in FORMULAS:
        for backend in backends():
            options = {"padding": 1, "backend": backend}
            found[f"{text}, {backend}"] = functools.partial(_call, sc.Kernel(text), options)
    return found


def _call(kernel: sc.Kernel, options: dict[str, object], x: Tensor, w: Tensor) -> Tensor:
    return sc.conv2d(kernel, x, w, **options)


def microseconds(step: Callable[[], object], seconds: float) -> float:
    """The median over batches of calls, which are long enough for the clock."""
    for _ in range(20):
        step()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        for _ in range(50):
            step()
        times.append((time.perf_counter() - start) / 50)
    return 1e6 * sorted(times)[len(times) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each number")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a layer is one thread's work
    torch.manual_seed(0)
    x, w = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3)
    learned = x.clone().requires_grad_(), w.clone().requires_grad_()
    grad_y = torch.ones(1, 1, 8, 8)

    def forward(layer: Layer) -> None:
        with torch.no_grad():
            layer(x, w)

    def training(layer: Layer) -> None:
        torch.autograd.grad(layer(*learned), learned, grad_y)

    table = Table(title="one call on [1, 1, 8, 8]", box=rich.box.SIMPLE_HEAD, title_justify="left")
    table.add_column("way")
    for column in ("forward us", "x F.conv2d", "with backward us", "x F.conv2d"):
        table.add_column(column, justify="right")
    results: dict[str, list[float]] = {}
    for name, layer in ways().items():
        results[name] = [microseconds(functools.partial(step, layer), options.seconds) for step in (forward, training)]
        row: list[str] = []
        for value, base in zip(results[name], results["F.conv2d"]):
            row += [f"{value:.1f}", f"{value / base:.2f}"]
        table.add_row(name, *row)
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"microseconds": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
