"""What looks at a whole window: the reductions of the language, and the tap values that their gradients need.

A *reduction* (`sum`, `prod`, `max`, ...) turns a tap value into a window value.  A *window transform* (`softmax`,
`others`, `first_max`) turns a tap value into a tap value that depends on the other taps too.  Each is one record:
how a gradient passes through it, how it is computed from the four accumulators that every backend provides, and
the same thing in PyTorch over an explicit axis, for the reference.

The gradient of every reduction is written with these same nodes, so a gradient is another formula, and so is the
gradient of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import sympy as sp
import torch

from .errors import DerivativeError
from .functions import case, is_zero, reciprocal, same, shift

Adjoint = Callable[[sp.Expr, sp.Expr], tuple[sp.Expr, ...]]


class Accumulators(Protocol):
    """What a backend computes in one sweep over a window.  Each call asks for one and returns its symbols."""

    def sum(self, value: sp.Expr) -> sp.Expr:
        """The sum of a tap value."""

    def product(self, value: sp.Expr) -> sp.Expr:
        """The product of a tap value."""

    def first_max(self, value: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        """The maximum, and the scan position of the first tap that attains it."""

    def logsumexp(self, value: sp.Expr) -> sp.Expr:
        """log(sum(exp(value))), shifted by the running maximum."""

    @property
    def position(self) -> sp.Expr:
        """The scan position of the tap, `c*T + t`."""

    @property
    def count(self) -> sp.Expr:
        """How many taps of the window count: all, or with `padding_mode="ignore"` those inside the image."""


Lowering = Callable[..., sp.Expr]


class WindowNode(sp.Function):  # type: ignore[misc]
    """A function of the values at all taps of the window."""

    is_real = True
    is_number = False  # count() has no arguments, and still is no number


@dataclass(frozen=True)
class Reduction:
    """Everything symconv knows about one function of the window.

    Args:
        name: the name in formulas.
        cls: the SymPy class of its node.
        adjoint: `adjoint(node, upstream)` gives, for each argument, the gradient at a tap.  For a window transform
            `upstream` is itself a tap value, and because the Jacobian over the taps is symmetric the same rule
            gives the directional derivative.
        lower: `lower(accumulators, *arguments)` gives the value, in terms of accumulators.
        reference: the same in PyTorch: values `[..., taps]` and a mask of the taps that count, to the reduced (or,
            for a transform, equally shaped) tensor.  None for nodes that only gradients contain.
        reduces: whether the result is a window value (else it is a tap value).
        zeros_matter: whether a zero from the padding changes the result where people do not expect it.
    """

    name: str
    cls: type[WindowNode]
    adjoint: Adjoint
    lower: Lowering
    reference: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    reduces: bool = True
    zeros_matter: bool = False


def _node(name: str) -> type[WindowNode]:
    return type(name, (WindowNode,), {"__module__": __name__})


Sum, Prod, Mean, LargestOf, SmallestOf = map(_node, ("sum", "prod", "mean", "max", "min"))
LogSumExp, Norm, Count = map(_node, ("logsumexp", "norm", "count"))
#: Tap values: exp(e) over the window's sum of exp(e); the product of e over all the *other* taps; 1 at the first
#: tap that attains the maximum (minimum) and 0 elsewhere; and the directional derivative of `others`.
Softmax, Others, FirstMax, FirstMin, OthersSlope = map(
    _node, ("softmax", "others", "first_max", "first_min", "others_slope")
)


# -- Gradients -----------------------------------------------------------------------------------------------------


def _softmax_adjoint(node: sp.Expr, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    return (node * (upstream - Sum(node * upstream)),)


def _refuse(node: sp.Expr, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    raise DerivativeError("third derivatives of prod are not available; first and second derivatives are")


# -- Values from accumulators --------------------------------------------------------------------------------------


def _prod_and_zeros(acc: Accumulators, e: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """The product of the factors that are not 0, and how many are."""
    return acc.product(_nonzero(e)), acc.sum(is_zero(e))


def _nonzero(e: sp.Expr) -> sp.Expr:
    """e, with 1 in place of 0."""
    return e + is_zero(e)


def _lower_prod(acc: Accumulators, e: sp.Expr) -> sp.Expr:
    product, zeros = _prod_and_zeros(acc, e)
    return product * is_zero(zeros)  # a product, so that NaN and inf among the other factors survive


def _lower_others(acc: Accumulators, e: sp.Expr) -> sp.Expr:
    product, zeros = _prod_and_zeros(acc, e)
    # Without a zero every tap gets product/e; with one, its tap gets the product, the others 0; with more, all 0.
    return case(sp.Eq(zeros, 0), product) / _nonzero(e) + case(sp.Eq(zeros, 1), product) * is_zero(e)


def _lower_others_slope(acc: Accumulators, e: sp.Expr, v: sp.Expr) -> sp.Expr:
    # sum_{i != j} v_i prod_{k != i, j} e_k, by the number of factors that are exactly 0.
    product, zeros = _prod_and_zeros(acc, e)
    slope = acc.sum(v / _nonzero(e) * (1 - is_zero(e)))
    at_zeros = acc.sum(v * is_zero(e))
    here = sp.Eq(is_zero(e), 1)
    return sp.Piecewise(
        (product / e * (slope - v / e), sp.Eq(zeros, 0)),
        (product * case(here, slope, at_zeros / _nonzero(e)), sp.Eq(zeros, 1)),
        (product * case(here, at_zeros - v), sp.Eq(zeros, 2)),
        (0, True),
    )


def _lower_first(acc: Accumulators, e: sp.Expr) -> sp.Expr:
    return same(acc.first_max(e)[1], acc.position)


# -- Values over an explicit axis, for the reference ---------------------------------------------------------------


def _filled(
    identity: float, reduce: Callable[..., torch.Tensor]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda values, valid: reduce(torch.where(valid, values, identity), -1)


def _reference_mean(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return torch.where(valid, values, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)


def _reference_norm(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.where(valid, values, 0.0), dim=-1)


#: The functions of the window by name.
REDUCTIONS: dict[str, Reduction] = {
    record.name: record
    for record in (
        Reduction("sum", Sum, lambda node, up: (up,), lambda acc, e: acc.sum(e), _filled(0.0, torch.sum)),
        Reduction(
            "prod",
            Prod,
            lambda node, up: (up * Others(node.args[0]),),
            _lower_prod,
            _filled(1.0, torch.prod),
            zeros_matter=True,
        ),
        Reduction(
            "mean",
            Mean,
            lambda node, up: (up / Count(),),
            lambda acc, e: acc.sum(e) / acc.count,
            _reference_mean,
        ),
        Reduction(
            "max",
            LargestOf,
            lambda node, up: (up * FirstMax(node.args[0]),),
            lambda acc, e: acc.first_max(e)[0],
            _filled(-torch.inf, lambda values, dim: values.max(dim).values),
            zeros_matter=True,
        ),
        Reduction(
            "min",
            SmallestOf,
            lambda node, up: (up * FirstMin(node.args[0]),),
            lambda acc, e: -acc.first_max(-e)[0],
            _filled(torch.inf, lambda values, dim: values.min(dim).values),
            zeros_matter=True,
        ),
        Reduction(
            "logsumexp",
            LogSumExp,
            lambda node, up: (up * Softmax(node.args[0]),),
            lambda acc, e: acc.logsumexp(e),
            _filled(-torch.inf, torch.logsumexp),
            zeros_matter=True,
        ),
        Reduction(
            "norm",
            Norm,
            lambda node, up: (up * node.args[0] * reciprocal(node),),
            lambda acc, e: sp.sqrt(acc.sum(e**2)),
            _reference_norm,
        ),
    )
}

#: The tap values that gradients of the above contain.
TRANSFORMS: dict[str, Reduction] = {
    record.name: record
    for record in (
        Reduction(
            "softmax",
            Softmax,
            _softmax_adjoint,
            lambda acc, e: sp.exp(e - shift(acc.logsumexp(e))),
            _filled(-torch.inf, torch.softmax),
            reduces=False,
        ),
        Reduction(
            "others",
            Others,
            lambda node, up: (OthersSlope(node.args[0], up),),
            _lower_others,
            None,
            reduces=False,
        ),
        Reduction("others_slope", OthersSlope, _refuse, _lower_others_slope, None, reduces=False),
        Reduction("first_max", FirstMax, lambda node, up: (sp.S.Zero,), _lower_first, None, reduces=False),
        Reduction(
            "first_min",
            FirstMin,
            lambda node, up: (sp.S.Zero,),
            lambda acc, e: _lower_first(acc, -e),
            None,
            reduces=False,
        ),
        Reduction("count", Count, lambda node, up: (), lambda acc: acc.count, None),
    )
}

#: Every record by the class of its node.
BY_NODE: dict[type[WindowNode], Reduction] = {
    record.cls: record for record in (*REDUCTIONS.values(), *TRANSFORMS.values())
}


def max_(*values: sp.Expr) -> sp.Expr:
    """The maximum over the window of one value; of two or more, the largest of them at each tap (Python's own rule)."""
    return LargestOf(*values) if len(values) == 1 else sp.Max(*values)


def min_(*values: sp.Expr) -> sp.Expr:
    """The minimum over the window of one value; of two or more, the smallest of them at each tap."""
    return SmallestOf(*values) if len(values) == 1 else sp.Min(*values)
