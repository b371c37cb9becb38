"""The formulas that are timed, the layers on which, and the numbers that go in."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from shapes import SHAPES, Shape
from torch import Tensor

import symconv as sc


@dataclass(frozen=True)
class Formula:
    """A kernel of the benchmark.

    Args:
        name: as on the command line.
        text: the formula.
        shapes: where it is timed by default.
        window: for a pooling kernel the size of its window and its stride.
        image: the mean and the deviation of the input's numbers; of a pooling kernel's, which lie in [0, 1], None.
        weight: the mean and the deviation of the weight's.
        tolerance: the relative error, in the norm, that float32 explains.
    """

    name: str
    text: str
    shapes: tuple[str, ...] = ("stage1", "depthwise")
    window: tuple[int, int] | None = None
    image: tuple[float, float] | None = (0.0, 1.0)
    weight: tuple[float, float] = (0.0, 1.0)
    tolerance: float = 1e-4

    @property
    def layers(self) -> tuple[str, ...]:
        """Where it is timed by default: on a GPU on layers with more images."""
        if device().type == "cpu":
            return self.shapes
        if self.window is not None:
            return ("maps_large",)
        more = ("stage1", "stage3_large") if "stage3" in self.shapes else ()
        return ("stage1_large", *more, "depthwise_large")


_EVERY = ("stage1", "stage3", "stem", "depthwise", "audio", "volume", "tiny")
_POOLS = ("maps", "image")

FORMULAS: dict[str, Formula] = {
    each.name: each
    for each in (
        Formula("linear", "sum(w*x)", _EVERY),
        # Where x is w in float32, as in a few of 1e8 taps, the slope of abs is 0 for some and 1 for others.
        Formula("adder", sc.zoo.adder.text, _EVERY, tolerance=1e-3),
        Formula("adder_published", sc.zoo.adder_published.text),
        # Where two taps come out equal in float32 the gradient goes to one or the other.
        Formula("dilation", sc.zoo.dilation.text, ("stage1", "stage3", "depthwise", "audio"), tolerance=1e-2),
        # Tangents of about 1, also at the rim where x is 0: a product of 2304 neither vanishes nor overflows.
        Formula(
            "tangent_product",
            sc.zoo.tangent_product.text,
            ("stage1", "stage3", "depthwise"),
            image=(0.0, 0.02),
            weight=(math.pi / 4, 0.02),
            tolerance=2e-3,
        ),
        Formula("gaussian", "exp(-sum((x - w)**2)/N)"),
        Formula("sine", "sum(sin(x*w))"),
        Formula("exponential", "sum(exp(x*w))", image=(0.0, 0.5)),
        Formula("rational", "sum(w*x/(1 + x**2))"),
        Formula("soft_pool", sc.zoo.soft_pool.text, _POOLS, (2, 2), image=None),
        Formula("bilateral", sc.zoo.bilateral.text, _POOLS, (5, 1), image=None),
        Formula("median", sc.zoo.median_pool.text, _POOLS, (3, 1), image=None, tolerance=1e-2),
        Formula("ssim", sc.zoo.ssim.text, _POOLS, (7, 1), image=None, tolerance=1e-3),
    )
}


def device() -> torch.device:
    """Where the benchmark runs: `bench.py --device`, which its processes find in the environment."""
    return torch.device(os.environ.get("SYMCONV_BENCH_DEVICE", "cpu"))


@dataclass(frozen=True)
class Case:
    """One formula on one layer, with its numbers."""

    formula: Formula
    shape: Shape

    @property
    def x(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.formula.image is None:
            return torch.rand(self.shape.x, generator=generator).to(device())
        mean, deviation = self.formula.image
        return (mean + deviation * torch.randn(self.shape.x, generator=generator)).to(device())

    @property
    def w(self) -> Tensor | None:
        """The weight; a pooling kernel has none."""
        mean, deviation = self.formula.weight
        if self.shape.pools:
            return None
        return (mean + deviation * torch.randn(self.shape.w, generator=torch.Generator().manual_seed(2))).to(device())

    @property
    def g(self) -> Tensor | None:
        """The second image, for the kernel that compares two."""
        if self.formula.name != "ssim":
            return None
        noise = torch.randn(self.shape.x, generator=torch.Generator().manual_seed(3)).to(device())
        return (self.x + 0.1 * noise).clamp(0, 1)

    @property
    def grad_y(self) -> Tensor:
        """The gradient that reaches the output."""
        return torch.randn(self.shape.y, generator=torch.Generator().manual_seed(4)).to(device())

    @property
    def bytes(self) -> dict[str, int]:
        """Inputs and outputs of each direction; with backward, the gradients too."""
        given = math.prod(self.shape.x) * (2 if self.formula.name == "ssim" else 1)
        learned = math.prod(self.shape.x) + (0 if self.shape.pools else math.prod(self.shape.w))
        given += learned - math.prod(self.shape.x)
        output = math.prod(self.shape.y)
        return {"forward": 4 * (given + output), "training": 4 * (given + 2 * output + learned)}


def case(formula: str, shape: str) -> Case:
    found = FORMULAS[formula]
    layer = SHAPES[shape]
    return Case(found, layer.with_window(*found.window) if found.window else layer)


def cases(formulas: list[str], shapes: list[str] | None) -> Iterator[Case]:
    """Each formula on its own layers, or on those of `shapes` that it fits."""
    for name in formulas:
        pools = FORMULAS[name].window is not None
        for shape in FORMULAS[name].layers if shapes is None else shapes:
            if SHAPES[shape].pools == pools:
                yield case(name, shape)
