"""What looks at a whole window: the reductions of the language, and the tap values that their gradients need.

A *reduction* (`sum`, `prod`, `max`, ...) turns a tap value into one without the axes it runs over.  A *window
transform* (`softmax`, `others`, `first_max`) turns a tap value into a tap value that depends on the other taps too.
Each is one record: how a gradient passes through it, how it is computed from the accumulators that every backend
provides, and the same thing in PyTorch over an explicit axis, for the reference.

The gradient of every reduction is written with these same nodes, so a gradient is another formula, and so is the
gradient of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy as sp
import torch

from .accumulators import Accumulators
from .errors import DerivativeError, FormulaError
from .functions import absolute, case, ceil, floor, is_zero, less, reciprocal, same, shift
from .language.axes import WindowNode, domain, labels_of, without

Adjoint = Callable[[Any, sp.Expr], tuple[sp.Expr, ...]]
Lowering = Callable[..., sp.Expr]


@dataclass(frozen=True)
class Reduction:
    """Everything symconv knows about one function of the window.

    Args:
        name: the name in formulas.
        cls: the SymPy class of its node, over both axes.
        adjoint: `adjoint(node, upstream)` gives, for each argument, the gradient at a tap.  For a window transform
            `upstream` is itself a tap value, and because the Jacobian over the taps is symmetric the same rule
            gives the directional derivative.
        lower: `lower(accumulators, *arguments)` gives the value, in terms of accumulators.
        reference: the same in PyTorch: arguments `[..., taps]` and, last, a mask of the taps that count, to the
            reduced (or, for a transform, equally shaped) tensor.  None for nodes that only gradients contain.
        zeros_matter: whether a zero from the padding changes the result where people do not expect it.
        arity: how many arguments a formula may give, without `weight`, at least and at most.
        weighted: whether it takes `weight=`, which is then its last argument.
        without_taps: its value at a window without taps.
        internal: whether only derivatives contain it: their text is read back, but nobody is told to use it.
    """

    name: str
    cls: type[WindowNode]
    adjoint: Adjoint
    lower: Lowering
    reference: Callable[..., torch.Tensor] | None
    zeros_matter: bool = False
    arity: tuple[int, int] = (1, 1)
    weighted: bool = False
    without_taps: sp.Expr = sp.S.Zero
    internal: bool = False

    @property
    def reduces(self) -> bool:
        """Whether the result lacks the axes reduced (else it is a tap value)."""
        return self.cls.reduces


def _node(name: str, reduces: bool = True) -> type[WindowNode]:
    cls: type[WindowNode] = type(name, (WindowNode,), {"__module__": __name__, "reduces": reduces})
    cls.whole = cls
    return cls


Sum, Prod, Mean, LargestOf, SmallestOf = map(_node, ("sum", "prod", "mean", "max", "min"))
LogSumExp, Norm, Var, Std, Cov = map(_node, ("logsumexp", "norm", "var", "std", "cov"))
Median, Quantile = map(_node, ("median", "quantile"))
#: `total(v, like)`: the sum of v over as many taps and channels as v and like have; `total(1, like)` counts them.
Total = _node("total")
#: Tap values: exp(e) over the window's sum of exp(e); the product of e over all the *other* taps; 1 at the first tap
#: that attains the maximum (minimum) and 0 elsewhere; the share of each tap in a quantile; and the directional
#: derivative of `others`.
Softmax, Others, FirstMax, FirstMin, OthersSlope, Chosen = (
    _node(name, reduces=False) for name in ("softmax", "others", "first_max", "first_min", "others_slope", "chosen")
)


# -- Gradients -----------------------------------------------------------------------------------------------------


def sum_of(value: sp.Expr, dims: frozenset[str], *like: sp.Expr) -> sp.Expr:
    """The sum of `value` over `dims`, over as many taps and channels as `like` has."""
    labels = labels_of(value)
    whole = domain(labels.union(*map(labels_of, like)), dims)
    if value != 1 and domain(labels) == whole:
        return Sum.over(dims)(value)
    return Total.over(dims)(value, *whole.representatives)


def _softmax_adjoint(node: Any, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    return (node * (upstream - sum_of(node * upstream, node.dims, node)),)


def _mean_adjoint(node: Any, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    e, *weight = node.args
    share = upstream * _over_total(node)
    return (share * weight[0], share * (e - node)) if weight else (share,)


def _over_total(node: Any) -> sp.Expr:
    """1 over the count, or over the weights' sum; 0 where that is 0."""
    *values, weight = node.args if len(node.args) > BY_NODE[node.whole].arity[0] else (*node.args, sp.S.One)
    total = sum_of(weight, node.dims, *values)
    return reciprocal(total)


def _deviation(node: Any, e: sp.Expr, *weight: sp.Expr) -> sp.Expr:
    return e - node.twin(Mean, e, *weight)


def _var_adjoint(node: Any, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    weight = node.args[1:]
    share, deviation = upstream * _over_total(node), _deviation(node, *node.args)
    slope = 2 * share * sp.Mul(*weight) * deviation
    return (slope, share * (deviation**2 - node)) if weight else (slope,)


def _std_adjoint(node: Any, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    return _var_adjoint(node.twin(Var, *node.args), upstream * reciprocal(node) / 2)


def _cov_adjoint(node: Any, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    a, b, *weight = node.args
    share = upstream * _over_total(node)
    by_a, by_b = _deviation(node, a, *weight), _deviation(node, b, *weight)
    slopes = share * sp.Mul(*weight) * by_b, share * sp.Mul(*weight) * by_a
    return (*slopes, share * (by_a * by_b - node)) if weight else slopes


def _quantile_adjoint(node: Any, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    return (upstream * node.twin(Chosen, *node.args), *(sp.S.Zero for _ in node.args[1:]))


def _flat(node: Any, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    return (sp.S.Zero,) * len(node.args)


def _refuse(node: Any, upstream: sp.Expr) -> tuple[sp.Expr, ...]:
    raise DerivativeError("third derivatives of prod are not available; first and second derivatives are")


# -- Values from accumulators --------------------------------------------------------------------------------------


def _nonzero(e: sp.Expr) -> sp.Expr:
    """e, with 1 in place of 0."""
    return e + is_zero(e)


def _lower_others(acc: Accumulators, e: sp.Expr) -> sp.Expr:
    _, product, zeros = acc.factors(e)
    # Without a zero every tap gets product/e; with one, its tap gets the product, the others 0; with more, all 0.
    return case(sp.Eq(zeros, 0), product) / _nonzero(e) + case(sp.Eq(zeros, 1), product) * is_zero(e)


def _lower_others_slope(acc: Accumulators, e: sp.Expr, v: sp.Expr) -> sp.Expr:
    # sum_{i != j} v_i prod_{k != i, j} e_k.  The smallest factor stands apart: it may be 0, and where it is near 0 its
    # v/e is so large that those of the others would be lost beside it.
    here = sp.Eq(same(acc.first_max(-absolute(e))[1], acc.position(e)), 1)
    smallest, motion = acc.sum(case(here, e)), acc.sum(case(here, v))
    e, v = case(here, 1, e), case(here, 0, v)
    _, product, zeros = acc.factors(e)
    slope, at_zeros = acc.sum(v / _nonzero(e) * (1 - is_zero(e))), acc.sum(v * is_zero(e))
    all_others = case(sp.Eq(zeros, 0), product * slope, case(sp.Eq(zeros, 1), product * at_zeros))
    two_fewer = case(sp.Eq(zeros, 0), product / e * (slope - v / e))  # beside a 0 the smallest is one too
    return case(here, all_others, motion * _lower_others(acc, e) + smallest * two_fewer)


def _lower_first(acc: Accumulators, e: sp.Expr) -> sp.Expr:
    return same(acc.first_max(e)[1], acc.position(e))


def _lower_logsumexp(acc: Accumulators, e: sp.Expr) -> sp.Expr:
    peak, total = acc.exponentials(e)
    return peak + sp.log(total)


def _lower_softmax(acc: Accumulators, e: sp.Expr) -> sp.Expr:
    peak, total = acc.exponentials(e)
    # The peak goes first: together with the logarithm it would round the shares of large values.  One exponential of
    # it all has a logarithm that stays finite where the share underflows.
    return sp.exp(less(e, peak) - shift(sp.log(total)))


def _lower_sum(acc: Accumulators, e: sp.Expr, *like: sp.Expr) -> sp.Expr:
    # sum(v*softmax(e)) is sum(v*exp(e - peak)) over sum(exp(e - peak)): one exponential at a tap serves both sums.
    inside, totals = [], []
    for factor in sp.Mul.make_args(e):
        share, total = _share_and_total(factor)
        varies = without(labels_of(total), acc.dims) != labels_of(total)
        inside.append(factor if varies else share)
        totals.append(sp.S.One if varies else total)
    value, total = sp.Mul(*inside), sp.Mul(*totals)
    if total == 1:
        return acc.sum(value, *like)
    if isinstance(value, sp.exp):
        return acc.sum(value, *like) * reciprocal(total)
    # Means of both: they are no larger than the largest value, as sums may be.
    share_of_one = reciprocal(acc.count(e, *like))
    return acc.sum(value * share_of_one, *like) * reciprocal(total * share_of_one)


def _share_and_total(expr: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """A share, as `_lower_softmax` writes it, as an exponential and the total that it is over; anything else, and 1."""
    if isinstance(expr, sp.exp) and expr.exp.is_Add:
        for part in expr.exp.args:
            total = -part
            if isinstance(total, shift) and isinstance(total.args[0], sp.log) and isinstance(expr.exp - part, less):
                return sp.exp(expr.exp - part), total.args[0].args[0]
    return expr, sp.S.One


def divided(expr: sp.Expr) -> sp.Expr:
    """`expr` with a division per window in place of a logarithm for each share that softmax gives."""

    def quotient(node: sp.Expr) -> sp.Expr:
        share, total = _share_and_total(node)
        return node if total == 1 else share * reciprocal(total)

    return expr.replace(lambda node: isinstance(node, sp.exp), quotient)


def weighs_sums(expr: sp.Expr) -> bool:
    """Whether softmax weighs a sum or mean in a formula, and no logsumexp is there to accumulate exponentials."""
    nodes = [node for node in sp.preorder_traversal(expr) if isinstance(node, WindowNode)]
    sums = [node for node in nodes if node.whole in (Sum, Mean)]
    weighs = any(type(each) is Softmax.over(node.dims) for node in sums for each in sp.Mul.make_args(node.args[-1]))
    return weighs and all(node.whole is not LogSumExp for node in nodes)


def _lower_mean(acc: Accumulators, e: sp.Expr, *weight: sp.Expr) -> sp.Expr:
    if not weight:
        return acc.mean(e)
    return _lower_sum(acc, weight[0] * e) * reciprocal(_lower_sum(acc, weight[0], e))


def _lower_cov(acc: Accumulators, a: sp.Expr, b: sp.Expr, *weight: sp.Expr) -> sp.Expr:
    # Two passes: the means first, then the products of deviations from them; all 0 for a constant.
    share = reciprocal(acc.sum(weight[0], a, b) if weight else acc.count(a, b))

    def deviation(e: sp.Expr) -> sp.Expr:
        by = less(e, acc.mean(e))
        return less(by, acc.sum(weight[0] * by, a, b) * share) if weight else by

    return acc.sum(sp.Mul(*weight) * deviation(a) * deviation(b), a, b) * share


def _lower_var(acc: Accumulators, e: sp.Expr, *weight: sp.Expr) -> sp.Expr:
    return _lower_cov(acc, e, e, *weight)


def _ranked(acc: Accumulators, e: sp.Expr, q: sp.Expr) -> tuple[sp.Expr, tuple[sp.Expr, ...]]:
    """How far a quantile lies between two ranks, and what stands at them: value and position, twice."""
    rank = q * (acc.count(e) - 1)
    return rank - floor(rank), (*acc.first_rank(e, floor(rank)), *acc.first_rank(e, ceil(rank)))


def _median(acc: Accumulators, e: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """The lower median, as torch, and its position."""
    return acc.first_rank(e, floor((acc.count(e) - 1) / 2))


def _lower_quantile(acc: Accumulators, e: sp.Expr, q: sp.Expr) -> sp.Expr:
    part, (low, _, high, _) = _ranked(acc, e, q)
    # Where both are the same (also inf) there is nothing between them.
    return case(sp.Eq(low, high), low, low + part * (high - low))


def _lower_chosen(acc: Accumulators, e: sp.Expr, q: sp.Expr | None = None) -> sp.Expr:
    if q is None:
        return same(_median(acc, e)[1], acc.position(e))
    part, (_, at_low, _, at_high) = _ranked(acc, e, q)
    return (1 - part) * same(at_low, acc.position(e)) + part * same(at_high, acc.position(e))


# -- Values over an explicit axis, for the reference ---------------------------------------------------------------


def _filled(identity: float, reduce: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda values, valid: reduce(torch.where(valid, values, identity), -1)


def _reference_total(values: torch.Tensor, *like_and_valid: torch.Tensor) -> torch.Tensor:
    return torch.where(like_and_valid[-1], values, 0.0).sum(-1)


def _reference_norm(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.where(valid, values, 0.0), dim=-1)


def _reference_softmax(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    some = valid.any(-1, keepdim=True)  # where no tap counts there is nothing to share out
    return torch.where(some, torch.softmax(torch.where(valid | ~some, values, -torch.inf), -1), 0.0)


def _weights(weight: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The weights as shares of their sum; all 0 where there are none."""
    given = torch.where(valid, weight, 0.0)
    total = given.sum(-1, keepdim=True)
    return torch.where(total == 0, 0.0, given / torch.where(total == 0, 1.0, total))


def _reference_mean(values: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    *weight, valid = rest
    return (torch.where(valid, values, 0.0) * _weights(weight[0] if weight else torch.ones_like(values), valid)).sum(-1)


def _reference_cov(a: torch.Tensor, b: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    by_a, by_b = (value - _reference_mean(value, *rest)[..., None] for value in (a, b))
    return _reference_mean(by_a * by_b, *rest)


def _reference_var(values: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    return _reference_cov(values, values, *rest)


def _reference_std(values: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    var = _reference_var(values, *rest)
    return torch.where(var == 0, 0.0, torch.where(var == 0, 1.0, var).sqrt())


def _reference_quantile(values: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    *q, valid = rest
    last = valid.sum(-1, keepdim=True).clamp(min=1) - 1
    rank = torch.floor(last / 2) if not q else q[0][..., :1] * last
    ordered = torch.where(valid, values, torch.inf).sort(dim=-1, stable=True).values
    low, high = (ordered.gather(-1, at.expand(*ordered.shape[:-1], 1).long()) for at in (rank.floor(), rank.ceil()))
    found = torch.where(low == high, low, low + (rank - rank.floor()) * (high - low))[..., 0]
    found = torch.where((valid & values.isnan()).any(-1), torch.nan, found)
    return torch.where(valid.any(-1), found, 0.0)


_RECORDS = (
    Reduction("sum", Sum, lambda node, up: (up,), _lower_sum, _filled(0.0, torch.sum)),
    Reduction(
        "prod",
        Prod,
        lambda node, up: (up * node.twin(Others, *node.args),),
        lambda acc, e: acc.factors(e)[0],
        _filled(1.0, torch.prod),
        zeros_matter=True,
        without_taps=sp.S.One,
    ),
    Reduction("mean", Mean, _mean_adjoint, _lower_mean, _reference_mean, weighted=True),
    Reduction(
        "max",
        LargestOf,
        lambda node, up: (up * node.twin(FirstMax, *node.args),),
        lambda acc, e: acc.first_max(e)[0],
        _filled(-torch.inf, lambda values, dim: values.max(dim).values),
        zeros_matter=True,
        without_taps=-sp.oo,
    ),
    Reduction(
        "min",
        SmallestOf,
        lambda node, up: (up * node.twin(FirstMin, *node.args),),
        lambda acc, e: -acc.first_max(-e)[0],
        _filled(torch.inf, lambda values, dim: values.min(dim).values),
        zeros_matter=True,
        without_taps=sp.oo,
    ),
    Reduction(
        "logsumexp",
        LogSumExp,
        lambda node, up: (up * node.twin(Softmax, *node.args),),
        _lower_logsumexp,
        _filled(-torch.inf, torch.logsumexp),
        zeros_matter=True,
        without_taps=-sp.oo,
    ),
    Reduction(
        "norm",
        Norm,
        lambda node, up: (up * node.args[0] * reciprocal(node),),
        lambda acc, e: sp.sqrt(acc.sum(e**2)),
        _reference_norm,
    ),
    Reduction("var", Var, _var_adjoint, _lower_var, _reference_var, weighted=True),
    Reduction(
        "std", Std, _std_adjoint, lambda acc, *args: sp.sqrt(_lower_var(acc, *args)), _reference_std, weighted=True
    ),
    Reduction("cov", Cov, _cov_adjoint, _lower_cov, _reference_cov, arity=(2, 2), weighted=True),
    Reduction(
        "median",
        Median,
        _quantile_adjoint,
        lambda acc, e: _median(acc, e)[0],
        _reference_quantile,
        zeros_matter=True,
    ),
    Reduction(
        "quantile", Quantile, _quantile_adjoint, _lower_quantile, _reference_quantile, zeros_matter=True, arity=(2, 2)
    ),
)
#: The functions of the window by name.
REDUCTIONS: dict[str, Reduction] = {record.name: record for record in _RECORDS}

#: The tap values that gradients of the above contain, and what counts taps.
TRANSFORMS: dict[str, Reduction] = {
    record.name: record
    for record in (
        Reduction(
            "softmax",
            Softmax,
            _softmax_adjoint,
            _lower_softmax,
            _reference_softmax,
        ),
        Reduction(
            "others",
            Others,
            lambda node, up: (node.twin(OthersSlope, node.args[0], up),),
            _lower_others,
            None,
            internal=True,
        ),
        Reduction("others_slope", OthersSlope, _refuse, _lower_others_slope, None, arity=(2, 2), internal=True),
        Reduction("first_max", FirstMax, _flat, _lower_first, None, internal=True),
        Reduction("first_min", FirstMin, _flat, lambda acc, e: _lower_first(acc, -e), None, internal=True),
        Reduction("chosen", Chosen, _flat, _lower_chosen, None, arity=(1, 2), internal=True),
        Reduction(
            "total",
            Total,
            lambda node, up: (up, *(sp.S.Zero for _ in node.args[1:])),
            lambda acc, v, *like: acc.count(*like) if v == 1 else acc.sum(v, *like),
            _reference_total,
            arity=(2, 16),
        ),
    )
}

#: Every record by the class of its node over both axes.
BY_NODE: dict[type[WindowNode], Reduction] = {
    record.cls: record for record in (*REDUCTIONS.values(), *TRANSFORMS.values())
}


def record_of(node: sp.Basic) -> Reduction:
    """The record of a window node, over whichever axes it runs."""
    return BY_NODE[node.whole]


def max_(*values: sp.Expr, dim: Any = None) -> sp.Expr:
    """The maximum over the window of one value; of two or more, the largest of them at each tap (Python's own rule)."""
    return _extremum(LargestOf, sp.Max, values, dim)


def min_(*values: sp.Expr, dim: Any = None) -> sp.Expr:
    """The minimum over the window of one value; of two or more, the smallest of them at each tap."""
    return _extremum(SmallestOf, sp.Min, values, dim)


def _extremum(of_window: Any, of_several: Any, values: tuple[sp.Expr, ...], dim: Any) -> sp.Expr:
    if len(values) == 1:
        return of_window(*values, dim=dim)
    if dim is not None:
        raise FormulaError(f"{of_window.__name__} of {len(values)} values is one at each tap, without dim={dim}")
    return of_several(*values)
