"""The record of one published operator."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from ..kernel import Initializer, Kernel

#: An open or half-open interval of values; infinite ends are common.
Interval = tuple[float, float]
REAL: Interval = (-math.inf, math.inf)
POSITIVE: Interval = (0.0, math.inf)
UNIT: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class Operator:
    """A published operator: a formula, and the facts that a user wants to know before using it.

    Args:
        name: of the kernel, `symconv.zoo.<name>`.
        summary: what it computes, in a line.
        formula: in the text language.
        reference: who published it: authors, year, title; or how it is defined.
        layer: the layer it is meant for, with the arguments that matter, `{kernel}` in place of the kernel.
        domain: the values of x for which it is defined, or meant.
        weights: the same for its weights.
        traps: what goes wrong, and what to do; empty where nothing is known.
        init: how `reset_parameters` fills the weights, where Kaiming's rule is not what is meant.
    """

    name: str
    summary: str
    formula: str
    reference: str
    layer: str = "Conv2d({kernel}, 3, 16, 3)"
    domain: Interval = REAL
    weights: Interval = REAL
    traps: str = ""
    init: Initializer | None = None

    @functools.cached_property
    def kernel(self) -> Kernel:
        """The kernel, made when it is first asked for."""
        return Kernel(self.formula, name=self.name, init=self.init)

    @property
    def pools(self) -> bool:
        """Whether it is meant for a pooling layer: one window per channel."""
        return self.layer.startswith("Pool")
