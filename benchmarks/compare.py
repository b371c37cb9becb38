"""Time and peak memory of one layer, forward and backward, against the ways people write it today.

    python benchmarks/compare.py [--json out.json]

Every row runs in this process, on the same tensors, warmed up, with the same number of threads.  Memory is counted
exactly: the bytes of every storage that an operator returns, from its making to its end, beyond the inputs.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable

import rich.box
import torch
import torch.nn.functional as F
from memory import measure
from rich.console import Console
from rich.table import Table
from torch import Tensor

import symconv as sc

Layer = Callable[[Tensor, Tensor], Tensor]


def unfolded(function: Callable[[Tensor, Tensor], Tensor]) -> Layer:
    """Unfold the image, broadcast against the weight, reduce."""

    def layer(x: Tensor, w: Tensor) -> Tensor:
        k = w.shape[-1]
        columns = F.unfold(x, k, padding=k // 2)[:, None]  # [n, 1, c*t, pixels]
        return function(columns, w.flatten(1)[None, :, :, None]).unflatten(2, x.shape[2:])

    return layer


def looped(tap: Callable[[Tensor, Tensor], Tensor], combine: Callable[[Tensor, Tensor], Tensor]) -> Layer:
    """Loop over the taps and channels in Python, with shifted views."""

    def layer(x: Tensor, w: Tensor) -> Tensor:
        k = w.shape[-1]
        padded = F.pad(x, [k // 2] * 4)
        total = None
        for c, i, j in itertools.product(range(x.shape[1]), range(k), range(k)):
            seen = padded[:, c : c + 1, i : i + x.shape[2], j : j + x.shape[3]]
            value = tap(seen, w[None, :, c, i, j, None, None])
            total = value if total is None else combine(total, value)
        return total

    return layer


def small_networks(x: Tensor, w: Tensor) -> Tensor:
    """One small network per window position, all sharing their parameters."""
    k = w.shape[-1]
    padded = F.pad(x, [k // 2] * 4)
    outputs = [
        torch.tan(padded[:, None, :, i : i + k, j : j + k] + w).flatten(2).prod(-1)
        for i, j in itertools.product(range(x.shape[2]), range(x.shape[3]))
    ]
    return torch.stack(outputs, -1).unflatten(2, x.shape[2:])


def distances(x: Tensor, w: Tensor) -> Tensor:
    """AdderNet through torch.cdist on unfolded columns."""
    k = w.shape[-1]
    columns = F.unfold(x, k, padding=k // 2).transpose(1, 2)
    return -torch.cdist(columns, w.flatten(1), p=1).transpose(1, 2).unflatten(2, x.shape[2:])


def generated(formula: str) -> Layer:
    kernel = sc.Kernel(formula)
    return lambda x, w: sc.conv2d(kernel, x, w, padding=w.shape[-1] // 2, backend="torch")


ROWS: dict[str, dict[str, Layer]] = {
    "prod(tan(x + w))": {
        "symconv": generated("prod(tan(x + w))"),
        "unfold + broadcast": unfolded(lambda x, w: torch.tan(x + w).prod(2)),
        "loop over taps": looped(lambda x, w: torch.tan(x + w), torch.mul),
        "many small networks": small_networks,
    },
    "-sum(abs(x - w))": {
        "symconv": generated("-sum(abs(x - w))"),
        "unfold + broadcast": unfolded(lambda x, w: -(x - w).abs().sum(2)),
        "loop over taps": looped(lambda x, w: -(x - w).abs(), torch.add),
        "torch.cdist": distances,
    },
    "max(x + w)": {
        "symconv": generated("max(x + w)"),
        "unfold + broadcast": unfolded(lambda x, w: (x + w).amax(2)),
        "loop over taps": looped(lambda x, w: x + w, torch.maximum),
    },
    "sum(w*x)": {
        "symconv": generated("sum(w*x)"),
        "unfold + broadcast": unfolded(lambda x, w: (x * w).sum(2)),
        "F.conv2d": lambda x, w: F.conv2d(x, w, padding=w.shape[-1] // 2),
    },
}


def step(layer: Layer, x: Tensor, w: Tensor) -> None:
    y = layer(x, w)
    torch.autograd.grad(y, (x, w), torch.ones_like(y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the numbers there")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each row")
    parser.add_argument("--shape", type=int, nargs=4, default=(4, 16, 32, 32), help="of the input")
    parser.add_argument("--filters", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    x = (0.1 * torch.randn(*options.shape)).requires_grad_()
    w = (0.5 + 0.1 * torch.randn(options.filters, options.shape[1], 3, 3)).requires_grad_()
    shape = f"{list(x.shape)} -> {options.filters} filters 3x3, float32"
    title = f"{shape}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in ("formula", "way", "ms", "times symconv", "MiB", "times symconv"):
        table.add_column(column, justify="left" if column in ("formula", "way") else "right")
    results = []
    for formula, ways in ROWS.items():
        base: tuple[float, float] | None = None
        for way, layer in ways.items():
            seconds, peak = measure(functools.partial(step, layer, x, w), options.seconds)
            base = base or (seconds, peak)
            results.append({"formula": formula, "way": way, "seconds": seconds, "peak_bytes": peak})
            table.add_row(
                formula,
                way,
                f"{1e3 * seconds:.1f}",
                f"{seconds / base[0]:.2f}",
                f"{peak / 2**20:.1f}",
                f"{peak / base[1]:.1f}",
            )
        table.add_section()
    Console(width=110).print(table)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"title": title, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
