"""Peak memory and time of ten zoo kernels, forward and backward, against unfolding the image by hand.

    python benchmarks/zoo.py [--shape N C H W] [--filters F] [--json out.json]

The unfolded way is written as people write it: `F.unfold`, broadcast, reduce, autograd.  Every row runs in this process
on the same tensors; outputs and gradients are compared before anything is measured.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from typing import Any

import rich.box
import torch
import torch.nn.functional as F
from memory import measure
from rich.console import Console
from rich.table import Table
from torch import Tensor

import symconv as sc

K = 3
#: Offsets of the taps from the centre, [t].
DY, DX = (axis.reshape(-1).float() for axis in torch.meshgrid(torch.arange(3) - 1, torch.arange(3) - 1, indexing="ij"))


def windows(x: Tensor) -> Tensor:
    """Unfolded: [n, 1, c, t, pixels]."""
    return F.unfold(x, K, padding=K // 2).unflatten(1, (x.shape[1], K * K))[:, None]


def taps(w: Tensor) -> Tensor:
    """A weight [out, c, k, k] as [1, out, c, t, 1]."""
    return w.flatten(2)[None, :, :, :, None]


def cosine(x: Tensor, w: Tensor) -> Tensor:
    norms = (x * x).sum((2, 3)).sqrt() * (w * w).sum((2, 3)).sqrt()
    return (x * w).sum((2, 3)) / (norms + 1e-6)


def fast_kan(x: Tensor, s: Tensor) -> Tensor:
    bases = torch.stack([torch.exp(-(((x + 2 - 4 * k / 7) * 7 / 4) ** 2)) for k in range(8)])
    return (bases * torch.stack([taps(each) for each in s])).sum((0, 3, 4))


def bilateral(x: Tensor, sigma: Tensor, tau: Tensor) -> Tensor:
    r = -((DX**2 + DY**2) / (2 * sigma**2))[:, None] - (x - x[:, :, :, 4:5]) ** 2 / (2 * tau**2)
    return (r.exp() * x).sum(3) / r.exp().sum(3)


def ssim(x: Tensor, g: Tensor) -> Tensor:
    mx, mg = x.mean(3), g.mean(3)
    cov = ((x - mx[:, :, :, None]) * (g - mg[:, :, :, None])).mean(3)
    luminance = (2 * mx * mg + 1e-4) / (mx**2 + mg**2 + 1e-4)
    return luminance * (2 * cov + 9e-4) / (x.var(3, correction=0) + g.var(3, correction=0) + 9e-4)


#: By kernel: the operands beside x, and the unfolded way; a pooling kernel has no weight.
ROWS: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]] = {
    "tangent_product": (("w",), lambda x, w: torch.tan(windows(x) + taps(w)).flatten(2, 3).prod(2)),
    "adder": (("w",), lambda x, w: -(windows(x) - taps(w)).abs().sum((2, 3))),
    "dilation": (("w",), lambda x, w: (windows(x) + taps(w)).flatten(2, 3).amax(2)),
    "tropical": (("w",), lambda x, w: (windows(x) + taps(w)).amax(3).sum(2)),
    "cosine": (("w",), lambda x, w: cosine(windows(x), taps(w))),
    "fast_kan": (("s",), lambda x, s: fast_kan(windows(x), s)),
    "onn_median": (("w",), lambda x, w: (windows(x) * taps(w)).median(3).values.sum(2)),
    "soft_pool": ((), lambda x: (windows(x) * windows(x).softmax(3)).sum(3)[:, 0]),
    "bilateral": (("sigma", "tau"), lambda x, sigma, tau: bilateral(windows(x), sigma, tau)[:, 0]),
    "ssim": (("g",), lambda x, g: ssim(windows(x), windows(g))[:, 0]),
}


def operands(names: tuple[str, ...], x: Tensor, filters: int) -> dict[str, Tensor]:
    weight = 0.5 + 0.1 * torch.randn(filters, x.shape[1], K, K)
    made = {
        "w": weight,
        "s": torch.stack([weight.roll(k, 0) for k in range(8)]),
        "g": torch.rand(x.shape),
        "sigma": torch.tensor(1.5),
        "tau": torch.tensor(0.2),
    }
    return {name: made[name].requires_grad_() for name in names}


def generated(name: str) -> Callable[..., Tensor]:
    kernel = sc.zoo.OPERATORS[name].kernel
    mode = {"padding": K // 2, "padding_mode": "zeros", "backend": "torch"}
    if sc.zoo.OPERATORS[name].pools:
        return lambda x, **given: sc.pool2d(kernel, x, K, 1, **mode, **given)

    def layer(x: Tensor, **given: Tensor) -> Tensor:
        filters = next(iter(given.values())).shape[-4]
        return sc.conv2d(kernel, x, given.pop("w", None), kernel_size=K, out_channels=filters, **mode, **given)

    return layer


def step(layer: Callable[..., Tensor], x: Tensor, given: dict[str, Tensor]) -> list[Tensor]:
    y = layer(x, **given)
    return [y.detach(), *torch.autograd.grad(y, (x, *given.values()), torch.ones_like(y))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the numbers there")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each row")
    parser.add_argument("--shape", type=int, nargs=4, default=(4, 16, 48, 48), help="of the input")
    parser.add_argument("--filters", type=int, default=16)
    options = parser.parse_args()
    torch.manual_seed(0)
    x = (0.3 * torch.rand(*options.shape)).requires_grad_()  # small, so that the product of tangents stays finite
    title = f"{list(x.shape)}, {options.filters} filters 3x3, float32, {torch.get_num_threads()} threads"
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in ("kernel", "symconv ms", "MiB", "unfolded ms", "MiB", "times the time", "times the memory"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    results: list[dict[str, Any]] = []
    for name, (names, unfolded) in ROWS.items():
        given = operands(names, x, options.filters)
        for ours, theirs in zip(step(generated(name), x, given), step(unfolded, x, given)):
            error = (ours.reshape(theirs.shape) - theirs).norm() / theirs.norm()
            assert error < 1e-2, f"{name}: {float(error)}"  # float32, and ties of a maximum fall to different taps
        seconds, peak = measure(functools.partial(step, generated(name), x, given), options.seconds)
        their_seconds, their_peak = measure(functools.partial(step, unfolded, x, given), options.seconds)
        results.append({"kernel": name, "seconds": seconds, "peak_bytes": peak})
        results[-1] |= {"unfolded_seconds": their_seconds, "unfolded_peak_bytes": their_peak}
        times = (1e3 * seconds, peak / 2**20, 1e3 * their_seconds, their_peak / 2**20)
        ratios = (their_seconds / seconds, their_peak / peak)
        table.add_row(name, *(f"{value:.1f}" for value in times), *(f"{value:.2f}" for value in ratios))
    Console(width=110).print(table)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"title": title, "rows": results}, file, indent=1)


if __name__ == "__main__":
    main()
