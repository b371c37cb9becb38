"""The pointwise functions of the language: one record each.

A record says how a function is built in SymPy, how each backend spells it, what its partial derivatives are
(kinks included), where a test may sample it and what PyTorch computes for it.  Every other module, and every
test that walks the table, learns about a function from its record alone.

Three sorts of function share the table.  SymPy's own smooth functions (`exp`, `tan`) need only a spelling.
Functions that SymPy differentiates into something that cannot be computed (`Abs`, `sign`, `Max`, `floor`) have a
*kinked twin* here: formulas hold SymPy's class, `rewrite.kinked` swaps in the twin before anything is differentiated,
and `rewrite.to_sympy` swaps back for people to read.  Functions with a `definition` (`silu`, `gelu`) are
differentiated and lowered through it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import sympy as sp
import torch
from sympy.logic.boolalg import BooleanFunction
from sympy.printing.precedence import PRECEDENCE

from .errors import FormulaError
from .language.symbols import BUILTIN

Partials = Callable[..., tuple[sp.Expr, ...]]


@dataclass(frozen=True)
class Function:
    """Everything symconv knows about one pointwise function.

    Args:
        name: the name in formulas.
        build: makes the SymPy expression from the arguments.
        cls: the SymPy class of the node that the lowering and the printers see.
        torch: the PyTorch spelling, with `{0}`, `{1}` for the arguments; empty for a class with a `definition`.
        reference: the same function in PyTorch, for the reference evaluator and the tests.
        domain: for each argument an interval in which a test may sample it, away from poles.
        kinks: values of the first argument at which the derivative is a rule and not a limit.
        sympy_class: SymPy's own class, where `cls` is its kinked twin.
        flat: whether the derivative is 0 wherever it exists, so that no gradient passes.
        arity: how many arguments a formula may give, at least and at most.
        heavy: whether it takes many instructions, more than a division or a root.
        periodic: whether its argument loses its multiples of pi first.
        bounded: whether a product may count on its absolute value being at most 1.
        internal: whether only derivatives and lowered code contain it: their text is read back, but nobody is told
            to use it.
    """

    name: str
    build: Callable[..., sp.Expr]
    cls: type[sp.Basic]
    torch: str
    reference: Callable[..., Any]
    domain: tuple[tuple[float, float], ...]
    kinks: tuple[float, ...] = ()
    sympy_class: type[sp.Basic] | None = None
    flat: bool = False
    arity: tuple[int, int] = (1, 1)
    heavy: bool = False
    periodic: bool = False
    bounded: bool = False
    internal: bool = False


class Pointwise(sp.Function):  # type: ignore[misc]
    """A function of our own: real, and with the partial derivatives of its record."""

    is_real = True
    is_number = False  # SymPy must not try to evaluate one: numbers are worked out where they arise, see `numeric`
    partials: Partials
    #: The function in terms of others, where it has no spelling of its own.
    definition: Callable[..., sp.Expr] | None = None

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return type(self).partials(*self.args)[argindex - 1]

    @classmethod
    def _should_evalf(cls, arg: sp.Basic) -> int:
        return -1


def pointwise(name: str, partials: Partials) -> Any:
    """A SymPy function class called `name` whose derivatives are `partials(*args)`."""
    return type(name, (Pointwise,), {"partials": staticmethod(partials), "__module__": __name__})


def defined(name: str, definition: Callable[..., sp.Expr]) -> Any:
    """A SymPy function class that is differentiated and lowered through its definition."""

    def partials(*args: sp.Expr) -> tuple[sp.Expr, ...]:
        from .rewrite import kinked  # which knows the records, and so imports this module

        slots = [sp.Dummy(real=True) for _ in args]
        body = kinked(definition(*slots))
        return tuple(body.diff(slot).xreplace(dict(zip(slots, args))) for slot in slots)

    cls = pointwise(name, partials)
    cls.definition = staticmethod(definition)
    return cls


def none(*args: sp.Expr) -> tuple[sp.Expr, ...]:
    """The partial derivatives of a function that is flat wherever it is differentiable."""
    return (sp.S.Zero,) * len(args)


class where(Pointwise):  # type: ignore[misc]  # noqa: N801 (the name in formulas)
    """`where(condition, a, b)`: SymPy's Piecewise without its rewriting of conditions."""

    @classmethod
    def eval(cls, condition: Any, value: sp.Expr, otherwise: sp.Expr) -> sp.Expr | None:
        if condition in (sp.true, sp.false):
            return value if condition == sp.true else otherwise
        return value if value == otherwise else None

    def _eval_derivative(self, symbol: sp.Symbol) -> sp.Expr:
        condition, value, otherwise = self.args
        return where(condition, value.diff(symbol), otherwise.diff(symbol))


def case(condition: Any, value: Any, otherwise: Any = 0) -> sp.Expr:
    """`value` where `condition` holds, else `otherwise`."""
    return where(sp.sympify(condition), sp.sympify(value), sp.sympify(otherwise))


class Comparison(BooleanFunction):  # type: ignore[misc]
    """A comparison that is left to arithmetic: to SymPy x < inf and x == x are true, and ~(x > 0) is x <= 0.

    It has a twin for each of SymPy's classes, see `COMPARISONS`.
    """

    rel_op: ClassVar[str]
    relation: ClassVar[type[sp.Basic]]


def _comparison(relation: type[sp.Basic]) -> type[Comparison]:
    members = {"rel_op": relation.rel_op, "relation": relation, "__module__": __name__}
    return type(f"Comparison_{relation.__name__}", (Comparison,), members)


COMPARISONS: dict[type[sp.Basic], type[Comparison]] = {
    relation: _comparison(relation) for relation in (sp.Lt, sp.Le, sp.Gt, sp.Ge, sp.Eq, sp.Ne)
}


# -- Classes of our own.  Those called as a function of SymPy are its kinked twin. ---------------------------------

sign = pointwise("sign", none)
absolute = pointwise("abs", lambda z: (sign(z),))
floor = pointwise("floor", none)
ceil = pointwise("ceil", none)
round_ = pointwise("round", none)
heaviside = pointwise("heaviside", none)
#: 1 where a > b, 1/2 at a tie, else 0: the share of max(a, b)'s gradient that belongs to a.
share = pointwise("share", none)
maximum = pointwise("maximum", lambda a, b: (share(a, b), share(b, a)))
minimum = pointwise("minimum", lambda a, b: (share(b, a), share(a, b)))
#: 1 where z > 0, else 0 (also at 0).
positive = pointwise("positive", none)
#: 1 where z == 0, else 0.  Opaque on purpose: SymPy "knows" that exp(z) is never 0, and floats know better.
is_zero = pointwise("is_zero", none)
#: 1 where two scan positions are the same, else 0.
same = pointwise("same", none)
#: 1 / r, and 0 where r is 0.
reciprocal: Any = pointwise("reciprocal", lambda r: (-(reciprocal(r) ** 2),))

#: r, and 0 where r is -inf: what may be subtracted from a logarithm.
shift = pointwise("shift", lambda r: (sp.S.One,))
#: r, and the largest or the smallest number where r is infinite: what may be subtracted from infinities.
finite = pointwise("finite", lambda r: (sp.S.One,))
#: a - b, rounded before anything is added to it: SymPy reorders sums.
less = pointwise("less", lambda a, b: (sp.S.One, -sp.S.One))

#: The number v, as a value of the same dtype as `like`: for functions that take no plain numbers.
typed = pointwise("typed", none)
power = pointwise("power", lambda a, p: (power_slope(a, p), power_log(a, p)))
#: p*a**(p - 1), and 0 where p is 0; a**p*log(a), and 0 where a is 0 and p is not negative: PyTorch's rules for pow.
power_slope: Any = defined("power_slope", lambda a, p: case(sp.Eq(p, 0), 0, p * power(a, p - 1)))
power_log: Any = defined("power_log", lambda a, p: case(sp.And(sp.Eq(a, 0), p >= 0), 0, power(a, p) * sp.log(a)))
# Where p is 0 a**p has the slope 0 for a, whatever a is, but not so the slope of that for p: 1/a.
power_slope.partials = staticmethod(
    lambda a, p: (
        case(sp.Eq(p, 0), 0, p * power_slope(a, p - 1)),
        case(sp.And(sp.Eq(a, 0), sp.Eq(p, 0)), 0, power(a, p - 1) + p * power_log(a, p - 1)),
    )
)
expm1 = pointwise("expm1", lambda z: (sp.exp(z),))
log1p = pointwise("log1p", lambda z: (1 / (1 + z),))
sigmoid: Any = pointwise("sigmoid", lambda z: (sigmoid(z) * (1 - sigmoid(z)),))
relu = pointwise("relu", lambda z: (positive(z),))
softplus = pointwise("softplus", lambda z: (sigmoid(z),))
xlogx = pointwise("xlogx", lambda z: (sp.log(z) + 1,))
hypot: Any = pointwise("hypot", lambda a, b: (a * reciprocal(hypot(a, b)), b * reciprocal(hypot(a, b))))
clip = pointwise(
    "clip",
    lambda z, lo, hi: (
        case(sp.And(lo <= z, z <= hi), 1),
        case(sp.And(z < lo, lo <= hi), 1),
        case(sp.Or(z > hi, lo > hi), 1),
    ),
)
silu = defined("silu", lambda z: z * sigmoid(z))
gelu = defined("gelu", lambda z: z * (1 + sp.erf(z / sp.sqrt(2))) / 2)

#: Gradients by choice.  `custom_grad(f, e1, g1, e2, g2, ...)` has the value f and the slope g1 along e1, ...
custom_grad = defined("custom_grad", lambda f, *rest: f)
custom_grad.partials = staticmethod(lambda f, *rest: (sp.S.Zero, *(s for g in rest[1::2] for s in (g, sp.S.Zero))))
ste = defined("ste", lambda hard, soft: hard)
ste.partials = staticmethod(lambda hard, soft: (sp.S.Zero, sp.S.One))
spread = defined("spread", lambda v, *like: v)
spread.precedence = PRECEDENCE["Add"]  # it is printed as one: 1 + 0*x
spread.partials = staticmethod(lambda v, *like: (sp.S.One, *(sp.S.Zero for _ in like)))
detach = defined("detach", lambda z: z)
detach.partials = staticmethod(none)


def _sinc_slope(z: sp.Expr) -> sp.Expr:
    # (cos(pi z) - sinc(z))/z cancels near 0, so a Taylor polynomial takes over there; all its derivatives are right.
    u = sp.pi * z
    series = sp.Add(*[sp.pi * (-1) ** k * 2 * k * u ** (2 * k - 1) / sp.factorial(2 * k + 1) for k in range(1, 9)])
    return case(absolute(z) < 0.25, series, (sp.cos(u) - sinc(z)) / z)


sinc_slope = defined("sinc_slope", _sinc_slope)
sinc = pointwise("sinc", lambda z: (sinc_slope(z),))


def _bspline(z: sp.Expr, degree: sp.Expr) -> sp.Expr:
    n = int(degree)
    slot = sp.Dummy(real=True)
    knots = tuple(sp.Rational(2 * k - n - 1, 2) for k in range(n + 2))
    return sp.bspline_basis(n, knots, 0, slot).xreplace({slot: z})


class bspline(defined("bspline", _bspline)):  # type: ignore[misc]  # noqa: N801 (the name in formulas)
    """The centred cardinal B-spline of a whole degree from 1 to 5; its support is `[-(n + 1)/2, (n + 1)/2]`."""

    @classmethod
    def eval(cls, z: sp.Expr, degree: sp.Expr) -> None:
        if not (degree.is_Integer and 1 <= degree <= 5):
            raise ValueError(f"bspline(z, degree) takes a whole degree from 1 to 5, not {degree}")

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        slot = sp.Dummy(real=True)
        return _bspline(slot, self.args[1]).diff(slot).xreplace({slot: self.args[0]}) if argindex == 1 else sp.S.Zero


def _reference_bspline(z: torch.Tensor, degree: Any) -> torch.Tensor:
    # Truncated powers (de Boor, A Practical Guide to Splines, ch. IX), centred.
    n = int(degree)
    terms = ((-1) ** k * math.comb(n + 1, k) * (z + (n + 1) / 2 - k).clamp(min=0) ** n for k in range(n + 2))
    return functools.reduce(torch.add, terms) / math.factorial(n)


_LINE = ((-2.0, 2.0),)
_PLANE = ((-2.0, 2.0), (-2.0, 2.0))


def _smooth(cls: type[sp.Basic], domain: tuple[tuple[float, float], ...] = _LINE, **facts: Any) -> Function:
    """The record of one of SymPy's smooth functions: a spelling is all it needs."""
    name = cls.__name__
    return Function(name, cls, cls, f"torch.{name}({{0}})", getattr(torch, name), domain, heavy=True, **facts)


def _own(
    cls: Any, spelling: str, reference: Callable[..., Any], domain: Any, kinks: tuple[float, ...] = (), **facts: Any
) -> Function:
    """The record of a class of our own that has the function's name and builds it."""
    return Function(cls.__name__, cls, cls, spelling, reference, domain, kinks, **facts)


#: The record of a part of derivatives or of lowered code.  One with a spelling is a function of the static header.
_part = functools.partial(_own, internal=True)

_RECORDS = (
    # SymPy's smooth functions.
    _smooth(sp.exp),
    _smooth(sp.sin, periodic=True, bounded=True),
    _smooth(sp.cos, periodic=True, bounded=True),
    _smooth(sp.atan),
    _smooth(sp.sinh),
    _smooth(sp.cosh),
    _smooth(sp.tanh, bounded=True),
    _smooth(sp.erf, bounded=True),
    _smooth(sp.tan, ((-1.2, 1.2),), periodic=True),
    _smooth(sp.log, ((0.3, 3.0),)),
    _smooth(sp.asin, ((-0.9, 0.9),)),
    _smooth(sp.acos, ((-0.9, 0.9),)),
    Function(
        "atan2",
        sp.atan2,
        sp.atan2,
        "torch.atan2({0}, {1})",
        torch.atan2,
        ((0.2, 2.0), (-2.0, 2.0)),
        arity=(2, 2),
        heavy=True,
    ),
    Function("sqrt", sp.sqrt, sp.Pow, "torch.sqrt({0})", torch.sqrt, ((0.2, 3.0),)),
    Function(
        "pow",
        sp.Pow,
        power,
        "torch.pow({0}, {1})",
        torch.pow,
        ((0.2, 2.0), (-2.0, 2.0)),
        sympy_class=sp.Pow,
        arity=(2, 2),
        heavy=True,
    ),
    # Kinked twins of SymPy's functions.
    Function("abs", sp.Abs, absolute, "torch.abs({0})", torch.abs, _LINE, (0.0,), sympy_class=sp.Abs),
    Function("sign", sp.sign, sign, "torch.sign({0})", torch.sign, _LINE, (0.0,), sympy_class=sp.sign, flat=True),
    Function(
        "floor", sp.floor, floor, "torch.floor({0})", torch.floor, _LINE, (-1, 0, 1), sympy_class=sp.floor, flat=True
    ),
    Function(
        "ceil", sp.ceiling, ceil, "torch.ceil({0})", torch.ceil, _LINE, (-1, 0, 1), sympy_class=sp.ceiling, flat=True
    ),
    Function(
        "heaviside",
        lambda z: sp.Heaviside(z, sp.Rational(1, 2)),
        heaviside,
        "share({0}, torch.zeros_like({0}))",
        lambda z: torch.where(z > 0, 1.0, torch.where(z == 0, 0.5, 0.0)),
        _LINE,
        (0.0,),
        sympy_class=sp.Heaviside,
        flat=True,
    ),
    Function(
        "maximum", sp.Max, maximum, "torch.maximum({0}, {1})", torch.maximum, _PLANE, sympy_class=sp.Max, arity=(2, 2)
    ),
    Function(
        "minimum", sp.Min, minimum, "torch.minimum({0}, {1})", torch.minimum, _PLANE, sympy_class=sp.Min, arity=(2, 2)
    ),
    # Functions of our own.
    _own(round_, "torch.round({0})", torch.round, _LINE, (-0.5, 0.5), flat=True),
    _own(expm1, "torch.expm1({0})", torch.expm1, _LINE, heavy=True),
    _own(log1p, "torch.log1p({0})", torch.log1p, ((-0.7, 2.0),), heavy=True),
    _own(sigmoid, "torch.sigmoid({0})", torch.sigmoid, _LINE, heavy=True, bounded=True),
    _own(relu, "torch.relu({0})", torch.relu, _LINE, (0.0,)),
    _own(silu, "", torch.nn.functional.silu, _LINE),
    _own(gelu, "", torch.nn.functional.gelu, _LINE),
    _own(
        softplus,
        "torch.logaddexp({0}, torch.zeros_like({0}))",
        lambda z: torch.logaddexp(z, z.new_zeros(())),
        _LINE,
        heavy=True,
    ),
    _own(xlogx, "torch.special.xlogy({0}, {0})", lambda z: z * z.log(), ((0.2, 3.0),), heavy=True),
    _own(sinc, "torch.sinc({0})", torch.sinc, _LINE, (0.0,), heavy=True),
    _own(hypot, "torch.hypot({0}, {1})", torch.hypot, _PLANE, arity=(2, 2)),
    _own(
        clip,
        "torch.minimum(torch.maximum({0}, {1}), {2})",
        lambda z, lo, hi: torch.clip(z, lo, hi),
        ((-2.0, 2.0), (-1.0, -0.5), (0.5, 1.0)),
        arity=(3, 3),
    ),
    _own(bspline, "", _reference_bspline, ((-2.5, 2.5), (3, 3)), arity=(2, 2)),
    _own(
        custom_grad,
        "",
        lambda f, *rest: f.detach() + sum(g.detach() * (e - e.detach()) for e, g in zip(rest[::2], rest[1::2])),
        (),
        arity=(1, 1),
    ),
    _own(ste, "", lambda hard, soft: hard.detach() + (soft - soft.detach()), (), arity=(2, 2)),
    _own(detach, "", torch.Tensor.detach, ()),
    #: A value with the axes of others besides its own: what a formula says varies, and SymPy has found to be constant.
    _part(spread, "", lambda v, *like: v, (), arity=(2, 16)),
    Function("where", case, where, "torch.where({0}, {1}, {2})", torch.where, (), arity=(3, 3)),
    # Parts of derivatives and of lowered code.
    _part(
        share,
        "share({0}, {1})",
        lambda a, b: torch.where(a > b, 1.0, torch.where(a == b, 0.5, 0.0)),
        _PLANE,
        flat=True,
        arity=(2, 2),
    ),
    _part(positive, "positive({0})", lambda z: (z > 0) * 1.0, _LINE, (0.0,), flat=True),
    _part(is_zero, "is_zero({0})", lambda z: (z == 0) * 1.0, _LINE, (0.0,), flat=True),
    _part(same, "same({0}, {1})", lambda a, b: (a == b) * 1.0, _PLANE, flat=True, arity=(2, 2)),
    _part(reciprocal, "reciprocal({0})", lambda r: 1 / r, ((0.2, 2.0),)),
    _part(shift, "shift({0})", lambda r: r, _LINE),
    _part(finite, "finite({0})", lambda r: r, _LINE),
    _part(less, "({0} - {1})", torch.sub, _PLANE, arity=(2, 2)),
    _part(typed, "{1}.new_full((), {0})", lambda v, like: v, _PLANE, arity=(2, 2)),
    _part(power_slope, "", lambda a, p: p * torch.pow(a, p - 1), ((0.2, 2.0), (0.5, 2.0)), arity=(2, 2)),
    _part(power_log, "", lambda a, p: torch.pow(a, p) * torch.log(a), ((0.2, 2.0), (0.5, 2.0)), arity=(2, 2)),
    _part(sinc_slope, "", lambda z: (torch.cos(torch.pi * z) - torch.sinc(z)) / z, ((0.1, 2.0),)),
)

#: The functions of the language by name.  `max(a, b, ...)` and `min(a, b, ...)` build `maximum` and `minimum`.
FUNCTIONS: dict[str, Function] = {record.name: record for record in _RECORDS}

#: Every record by the class of its node in derived and lowered expressions.
BY_CLASS: dict[type[sp.Basic], Function] = {record.cls: record for record in _RECORDS}

#: The records with a twin, by SymPy's class.
BY_SYMPY_CLASS: dict[type[sp.Basic], Function] = {
    record.sympy_class: record for record in _RECORDS if record.sympy_class
}


#: Functions that are infinite or NaN at some finite arguments, as powers may be.
UNBOUNDED: tuple[Any, ...] = (
    *(sp.log, sp.exp, sp.tan, sp.sinh, sp.cosh, sp.asin, sp.acos, sp.oo),
    *(power, power_slope, power_log, expm1, log1p, xlogx),
)


def is_bounded(expr: sp.Expr) -> bool:
    """Whether an expression is finite wherever its operands are."""
    if expr.has(*UNBOUNDED):
        return False
    return all(
        each.is_number or (each.exp.is_Integer and each.exp > 0) or (each.exp.is_Rational and is_at_least_1(each.base))
        for each in expr.atoms(sp.Pow)
    )


def is_at_least_1(base: sp.Expr) -> bool:
    """Whether an expression is a number from 1 on and what is never negative: 1 + x**2."""
    number, rest = base.as_coeff_Add()
    return bool(number >= 1) and bool(rest.is_nonnegative)


def with_slopes(value: sp.Expr, slopes: Any = None, /, **named: sp.Expr) -> sp.Expr:
    """An expression with partial derivatives by choice: `custom_grad(f, x=..., w=...)`.

    Args:
        value: the value f.
        slopes: a dict from operand to slope; for operands that the language knows and for those that `value` names,
            keywords do.  An operand that is not named gets no gradient.

    >>> import symconv as sc
    >>> x, w = sc.x, sc.w
    >>> sc.Kernel(sc.sum(sc.custom_grad(-sc.abs(x - w), x=sc.clip(w - x, -1, 1), w=x - w))).gradients()[w]
    x - w
    """
    by_name = {str(symbol): symbol for symbol in (*BUILTIN.values(), *sp.sympify(value).free_symbols)}
    for name in named:
        if name not in by_name:
            raise FormulaError(
                f"custom_grad: {name}= is not an operand of {value}; give slopes as a dict {{operand: slope}}"
            )
    pairs = {**(slopes or {}), **{by_name[name]: slope for name, slope in named.items()}}
    return custom_grad(value, *(part for pair in pairs.items() for part in pair))
