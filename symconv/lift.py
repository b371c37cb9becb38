"""Parts of a tap function that belong to one pixel, or to one weight, and so need not be computed at each tap.

A pixel lies under the taps of many windows and is seen by all filters: `tanh(x)` in `sum(w*tanh(x))` is the same for
all of them.  A weight is seen by all windows: `exp(-(dx**2 + dy**2)/s**2)` is the same for all of those.  What is left
of such formulas at a tap is often a product, so that they run as fast as a convolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import sympy as sp

from .functions import BY_CLASS, sigmoid, typed
from .language.axes import Value, labels_of
from .language.symbols import Operand, w
from .operations import COSTLY, Block, count_operations, is_denominator


class Lifted(Value):
    """A part of a tap function that is computed once for each pixel of an input, or once for each weight.

    Args:
        name: of the value.
        expr: what it stands for at a tap.
        block: its function, of what lies at the pixel or weight.
        pixel: the place where the input is read, None for a weight.
    """

    expr: sp.Expr
    block: Block
    pixel: Operand | None

    def __new__(cls, name: str, expr: sp.Expr, block: Block, pixel: Operand | None) -> Lifted:  # type: ignore[misc]
        obj: Lifted = super().__new__(cls, name, labels_of(expr))  # type: ignore[assignment]
        obj.expr, obj.block, obj.pixel = expr, block, pixel
        return obj

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), self.expr)  # another kernel gives the name to something else

    @property
    def axes(self) -> str:
        """The axes along which what belongs to a weight varies."""
        return "".join(axis for axis in "oct" if any(axis in each.axes for each in self.block.arguments))


class Lifting:
    """Names the parts of tap functions that are worth computing once.

    Args:
        block: makes a function of an expression.
        taken: the names that a formula uses.
    """

    def __init__(self, block: Callable[[Iterable[sp.Expr]], Block], taken: Iterable[str]) -> None:
        self._block, taken = block, {*taken}
        self._found: dict[sp.Expr, Lifted] = {}
        self._names = {
            home: (name for name in map(f"{home}_{{}}".format, itertools.count(1)) if name not in taken)
            for home in ("pixel", "weight")
        }

    def lift(self, expr: sp.Expr) -> sp.Expr:
        """`expr` with names for its largest parts that belong to one pixel or one weight, if they are costly."""
        if not expr.args or expr.is_number or isinstance(expr, typed):
            return expr
        home = home_of(expr)
        if home is not None and is_worth_lifting(expr, home):
            return self._named(expr, home)
        if expr.is_Add:
            expr = gathered(expr)
        args = [*expr.args]
        if expr.is_Mul:
            for home in homes(args):
                factors = [each for each in args if home_of(each) == home]
                part = sp.Mul(*factors)
                # Not a reciprocal alone: w/x is rounded once, and w*(1/x) would be twice.
                if not all(map(is_denominator, factors)) and is_safe(factors) and is_worth_lifting(part, home):
                    args = [self._named(part, home), *(each for each in args if each not in factors)]
        new = [self._under(each) if expr.is_Mul and is_denominator(each) else self.lift(each) for each in args]
        return expr if tuple(new) == expr.args else expr.func(*new)

    def _under(self, reciprocal: sp.Pow) -> sp.Expr:
        """A reciprocal in a product, with what is lifted below the bar."""
        return self.lift(reciprocal.base) ** reciprocal.exp

    def _named(self, expr: sp.Expr, home: Operand) -> Lifted:
        if expr not in self._found:
            pixel = home if home.role == "input" else None
            block = self._block([expr.xreplace({home: home.operand}) if pixel else expr])
            self._found[expr] = Lifted(next(self._names["pixel" if pixel else "weight"]), expr, block, pixel)
        return self._found[expr]


def home_of(expr: sp.Basic) -> Operand | None:
    """The place of an input to which an expression belongs, `w` for what depends on weights alone, None for neither."""
    symbols = {each for each in expr.free_symbols if getattr(each, "role", "") not in ("const", "size")}
    if not symbols or not all(isinstance(each, Operand) and each.role != "field" for each in symbols):
        return None
    if all(each.role != "input" for each in symbols):
        return w
    return symbols.pop() if len(symbols) == 1 else None


def homes(exprs: Iterable[sp.Basic]) -> list[Operand]:
    """The homes of expressions, each once."""
    return sorted({home for home in map(home_of, exprs) if home is not None}, key=str)


def gathered(terms: sp.Add) -> sp.Expr:
    """w*f(x) + w*g(x) as w*(f(x) + g(x)), where what is left in the brackets belongs to one pixel or weight."""
    for home in homes(factor for term in terms.args for factor in sp.Mul.make_args(term)):
        parts, rests = [], set()
        for term in terms.args:
            factors = sp.Mul.make_args(term)
            own = [each for each in factors if each.is_number or home_of(each) == home]
            parts.append(own)
            rests.add(sp.Mul(*(each for each in factors if each not in own)))
        if len(rests) == 1 and all(map(is_safe, parts)) and not any(map(is_multiplied_out, parts)):
            return sp.Mul(*rests, sp.Add(*(sp.Mul(*own) for own in parts)))
    return terms


def is_safe(factors: Iterable[sp.Expr]) -> bool:
    """Whether a product of some factors may be computed by itself, before it meets the other factors.

    Only if all but one of those above the bar are at most 1: x*exp(x) may be inf where w makes up for it.
    """
    above = [each for each in factors if not each.is_number and not is_denominator(each)]
    return sum(not is_at_most_1(each) for each in above) <= 1


def is_multiplied_out(factors: Iterable[sp.Expr]) -> bool:
    """Whether SymPy multiplies out a product: 3*x - 3*w for 3*(x - w), which is less exact where x is near w."""
    sums = [each for each in factors if each.is_Add]
    number = sp.Mul(*(each for each in factors if each.is_number))
    return len(sums) == 1 and number not in (1, -1) and all(each.is_number or each.is_Add for each in factors)


def is_at_most_1(factor: sp.Expr) -> bool:
    """Whether the absolute value of a factor never exceeds 1."""
    if factor.is_Pow and factor.exp.is_Integer:
        return bool(factor.exp > 0) and is_at_most_1(factor.base)
    if factor.is_Add:  # 1 - sigmoid(x), 1 - tanh(x)**2
        rest = 1 - factor
        return rest.func == sigmoid or bool(rest.is_Pow and rest.exp == 2 and is_at_most_1(rest.base))
    if factor.func == sp.exp:  # exp(-(dx**2 + dy**2)/s**2)
        return all(is_at_most_0(term) for term in sp.Add.make_args(factor.args[0]))
    return factor.func in BY_CLASS and BY_CLASS[factor.func].bounded


def is_at_most_0(term: sp.Expr) -> bool:
    """Whether a term is the negative of a product of even powers."""
    number, rest = term.as_coeff_Mul()
    return bool(number < 0) and all(each.is_Pow and each.exp.is_even for each in sp.Mul.make_args(rest))


def factored(expr: sp.Expr, place: Operand) -> tuple[sp.Expr, sp.Expr]:
    """The factors of a gradient that are the same for all terms of its sum, and the rest of it.

    The gradient at a pixel is a sum over filters, that of a weight a sum over windows.
    """
    if expr == 0 or place.role == "field" or ("o" in place.axes and place.role == "input"):
        return sp.S.One, expr

    def is_same(factor: sp.Expr) -> bool:
        parts = [each.expr if isinstance(each, Lifted) else each for each in factor.free_symbols]
        symbols = set().union(*(each.free_symbols for each in parts))
        if not all(isinstance(each, Operand) and each.role != "field" for each in symbols):
            return False
        if place.role == "input":
            return not any("o" in each.axes for each in symbols)
        return not any(each.role == "input" for each in symbols)

    factors = sp.Mul.make_args(expr)
    numbers = [each for each in factors if each.is_number]
    others = [each for each in factors if not each.is_number and is_same(each)]
    others = sorted(others, key=lambda each: not isinstance(each, Lifted))[:1]  # several could overflow together
    if is_multiplied_out([*numbers, *others]):
        others = []
    same = [*numbers, *others]
    factor = sp.Mul(*same)
    if factor in (1, -1):
        return sp.S.One, expr
    return factor, sp.Mul(*(each for each in factors if each not in same))


def is_worth_lifting(expr: sp.Basic, home: Operand) -> bool:
    """Whether a value of its own, which is stored and loaded, is cheaper than to compute it at each tap."""
    if not isinstance(expr, sp.Expr) or not expr.args or (-expr).is_Symbol:
        return False
    if any(name in COSTLY for name in count_operations(expr)):
        return True
    # A weight is read as often as it is computed with, and packed anyway: there abs(w) is worth it too.
    return home.role != "input" and any("o" in each.axes for each in expr.free_symbols) and not expr.is_Mul
