"""From a formula to its derivatives, as SymPy expressions of the same language.

A formula is a chain of pointwise expressions and window nodes.  `Chain` writes it as statements, one per node.  The
reverse sweep over the statements gives the partial derivatives of a window's value for every operand; the forward
sweep gives the directional derivative.  SymPy differentiates the pointwise parts and each node contributes the rule
of its record in `reductions`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import sympy as sp

from .errors import DerivativeError
from .functions import is_bounded, power_log
from .functions import where as choice
from .language.axes import WINDOW, Domain, Value, WindowNode, domain, labels_of, without
from .language.formula import Formula
from .language.symbols import Access, Operand
from .reductions import record_of, sum_of
from .rewrite import kinked, readable, to_sympy

#: The derivative of one window's value for one operand, by where it arises: along the axes of a domain, where it is
#: added up over the taps that share the operand's element, or (`WINDOW`) once per window.
Partial = dict[Domain, sp.Expr]


class Chain:
    """A formula as statements: `nodes[symbol]` is a window node of operands and earlier symbols."""

    def __init__(self, expr: sp.Expr) -> None:
        self.nodes: dict[Value, WindowNode] = {}
        self.unbounded: set[Value] = set()  # those that may be infinite or NaN where all operands are finite
        self._symbols: dict[WindowNode, Value] = {}
        self.result = kinked(self._flatten(expr))

    def _flatten(self, expr: sp.Basic) -> sp.Basic:
        if not expr.args:
            return expr
        flat = expr.func(*(self._flatten(argument) for argument in expr.args)) if expr.has(WindowNode) else expr
        if not isinstance(flat, WindowNode):
            return flat
        flat = flat.func(*(kinked(argument) for argument in flat.args))
        if flat not in self._symbols:
            symbol = Value(f"(node {len(self.nodes) + 1})", labels_of(flat))
            self.nodes[symbol], self._symbols[flat] = flat, symbol
            if not all(map(self.is_bounded, flat.args)):
                self.unbounded.add(symbol)
        return self._symbols[flat]

    def whole(self, expr: sp.Expr) -> sp.Expr:
        """`expr` with the statements' symbols replaced by what they stand for."""
        for symbol, node in reversed(self.nodes.items()):
            expr = expr.xreplace({symbol: node})
        return expr

    def domain(self, node: WindowNode) -> Domain:
        """The taps and channels that a node looks at."""
        return domain(frozenset().union(*map(labels_of, node.args)), node.dims)

    def sum_over(self, expr: sp.Expr, where: Domain, dims: frozenset[str]) -> sp.Expr:
        """The sum over `dims` of `expr`, a value of the domain `where`, constant factors taken out.

        Not those that are infinite at a window without taps, as a maximum is: there a sum of nothing is 0.
        """
        dims = dims.intersection(where.axes)
        if not dims or expr == 0:
            return expr
        inside: dict[sp.Expr, sp.Expr] = {}
        for term in sp.Add.make_args(tidy(expr)):
            stays = {
                factor: without(labels_of(factor), dims) != labels_of(factor) or self._is_infinite_without_taps(factor)
                for factor in sp.Mul.make_args(term)
            }
            outside = sp.Mul(*(factor for factor, each in stays.items() if not each))
            inside[outside] = inside.get(outside, 0) + sp.Mul(*(factor for factor, each in stays.items() if each))
        like = where.representatives
        return sp.Add(*(outside * self._total(total, dims, like) for outside, total in inside.items()))

    def _is_infinite_without_taps(self, factor: sp.Expr) -> bool:
        values = {symbol: self.without_taps[symbol] for symbol in factor.free_symbols & self.without_taps.keys()}
        infinite = {symbol: value for symbol, value in values.items() if value.is_infinite}
        return bool(infinite) and not is_finite(replaced(factor, infinite))

    @functools.cached_property
    def without_taps(self) -> dict[sp.Symbol, sp.Expr]:
        """What the nodes of a window are if it has no taps."""
        found: dict[sp.Symbol, sp.Expr] = {}
        for symbol, node in self.nodes.items():
            if node.reduces and "t" in node.dims:
                found[symbol] = record_of(node).without_taps
            elif node.reduces and node.args[0].free_symbols & found.keys():  # reduced over channels that are all alike
                found[symbol] = replaced(node.args[0], found)
        return found

    def settled(self, slope: sp.Expr) -> sp.Expr:
        """A slope of the window, finite also if no tap counts, as far as is known: then it is that of other nodes.

        Any finite one will do where what it multiplies is 0 in such a window, as the motion of a sum is.
        """
        empty = {symbol: value for symbol, value in self.without_taps.items() if symbol in slope.free_symbols}
        if not empty or is_finite(replaced(slope, empty)):
            return slope
        for value in STAND_INS:
            others = dict.fromkeys(empty, value)
            if not is_finite(replaced(slope, others)):
                continue
            for symbol in empty:
                fewer = {**others, symbol: empty[symbol]}
                others = fewer if is_finite(replaced(slope, fewer)) else others
            no_taps = sp.Eq(sum_of(sp.S.One, frozenset("t")), 0)
            needed = [symbol for symbol in empty if others[symbol] != empty[symbol]]
            return slope.xreplace({symbol: choice(no_taps, value, symbol) for symbol in needed})
        return slope

    def times(self, gradient: sp.Expr, slope: sp.Expr) -> sp.Expr:
        """The product of both, and 0 where the branch of a `where` that is not taken makes the gradient 0.

        There the slope may be infinite or NaN: `where(min(x) > 0, sum(log(x)), 0)`.  Where it is finite for all finite
        operands the product stays one.
        """
        if not gradient.has(choice) or (self.is_bounded(gradient) and self.is_bounded(slope)):
            return gradient * slope
        return guarded(gradient, slope)

    def is_bounded(self, expr: sp.Expr) -> bool:
        """Whether an expression is finite wherever its operands are."""
        return self.unbounded.isdisjoint(expr.free_symbols) and is_bounded(expr)

    @staticmethod
    def _total(value: sp.Expr, dims: frozenset[str], like: tuple[Operand, ...]) -> sp.Expr:
        if value.is_number:
            return value * sum_of(sp.S.One, dims, *like)
        return sum_of(value, dims, *like)


#: Values of nodes where they are of no account, of which few formulas have all for poles.
STAND_INS = (sp.S.One, sp.Integer(2), sp.Rational(5, 7))


def replaced(expr: sp.Expr, values: Mapping[sp.Symbol, sp.Expr]) -> sp.Expr:
    """`expr` at these values of symbols; NaN where it compares what is no real number, such as a root of -oo."""
    try:
        return expr.xreplace(values)
    except TypeError:
        return sp.nan


def is_finite(expr: sp.Expr) -> bool:
    """Whether an expression is finite for finite symbols, as far as SymPy knows, and nothing in it is infinite.

    The sine of infinity is not: SymPy gives its bounds, and everything else NaN.
    """
    return bool(expr.is_finite) and not expr.has(sp.oo, -sp.oo, sp.zoo, sp.nan, sp.AccumBounds)


def guarded(product: sp.Expr, factor: sp.Expr) -> sp.Expr:
    """`product*factor`, with the factor inside the branches of each `where` that has a 0 beside them."""
    if is_guard(product):
        condition, *branches = product.args
        return choice(condition, *(sp.S.Zero if each == 0 else guarded(each, factor) for each in branches))
    if product.is_Add and any(map(is_guard, product.args)):
        return sp.Add(*(guarded(term, factor) for term in product.args))
    guards = [each for each in sp.Mul.make_args(product) if is_guard(each) or (each.is_Add and each.has(choice))]
    if not product.is_Mul or not guards:
        return product * factor
    return guarded(guards[0], factor * sp.Mul(*(each for each in product.args if each != guards[0])))


def is_guard(expr: sp.Basic) -> bool:
    """Whether an expression is 0 where the branch of a `where` is not taken."""
    return isinstance(expr, choice) and 0 in expr.args[1:]


def tidy(expr: sp.Expr) -> sp.Expr:
    """`expr` with numbers taken out of the sums inside products: g*(2*x - 2*w) becomes 2*g*(x - w)."""

    def taken_out(product: sp.Expr) -> sp.Expr:
        contents = [factor.primitive() if factor.is_Add else (sp.S.One, factor) for factor in product.args]
        return sp.Mul(*(part for pair in contents for part in pair))

    return expr.replace(lambda node: node.is_Mul and sum(not arg.is_number for arg in node.args) > 1, taken_out)


def differentiate(expr: sp.Expr, symbol: sp.Symbol) -> sp.Expr:
    """The derivative of a pointwise expression, with the rules of `functions` at kinks.

    Raises:
        DerivativeError: where SymPy leaves a derivative standing; it is never compiled, never taken for 0.  And where a
            derivative is not real.
    """
    derivative = kinked(expr.diff(symbol))
    if any(each.args[0].is_number and each.args[0].is_negative for each in derivative.atoms(power_log)):
        raise DerivativeError(
            f"{sp.sstr(to_sympy(expr))} has no real derivative for {symbol}: it is a power of a negative number"
        )
    if derivative.has(sp.Derivative, sp.Subs, sp.DiracDelta):
        raise DerivativeError(f"SymPy has no derivative of {sp.sstr(to_sympy(expr))} for {symbol}")
    return derivative


def partials(formula: Formula) -> dict[Operand, Partial]:
    """The derivatives of a window's value for every tensor operand, by the reverse sweep.

    >>> from symconv.language.parser import parse
    >>> from symconv.language.symbols import x, w
    >>> from symconv.language.axes import Domain
    >>> partials(parse("sum(w*x**2)"))[x][Domain("ct")]
    2*x*w
    """
    chain = Chain(formula.expr)
    # What reaches a node, by where: each channel of x gives some, also where all of them share one channel of the node.
    upstream = {symbol: {domain(symbol.labels): differentiate(chain.result, symbol)} for symbol in chain.nodes}
    arriving = [(chain.result, sp.S.One, WINDOW)]  # what reaches an argument: the argument, the gradient, where
    for symbol, node in reversed(chain.nodes.items()):
        for channels, total in upstream[symbol].items():
            if total == 0:
                continue
            where = domain(chain.domain(node).labels | channels.labels)
            for argument, gradient in zip(node.args, record_of(node).adjoint(node, total)):
                if gradient == 0:
                    continue
                arriving.append((argument, gradient, where))
                for earlier in sorted(argument.free_symbols & chain.nodes.keys(), key=str):
                    part = chain.times(gradient, differentiate(argument, earlier))
                    lacking = frozenset(where.axes) - _axes(earlier.labels)
                    reached = domain(earlier.labels | without(where.labels, lacking))
                    sums = upstream[earlier]
                    sums[reached] = sums.get(reached, 0) + chain.sum_over(part, where, lacking)
    found: dict[Operand, Partial] = {operand: {} for operand in accesses(formula)}
    for argument, gradient, where in arriving:
        for operand in found:
            slope = differentiate(argument, operand) if operand in argument.free_symbols else 0
            if slope != 0:
                part = chain.times(gradient, slope)
                # What arrives may vary along the channels of x, where one channel of the operand is shared by all.
                along = domain(where.labels | labels_of(part)) if where != WINDOW else where
                found[operand][along] = found[operand].get(along, 0) + part
    whole = {operand: {d: tidy(chain.whole(e)) for d, e in partial.items()} for operand, partial in found.items()}
    return {operand: {d: e for d, e in partial.items() if e != 0} for operand, partial in whole.items()}


def accesses(formula: Formula) -> list[Operand]:
    """The tensor operands of a formula, each followed by the other places at which the formula reads it."""
    symbols = formula.expr.free_symbols
    found: list[Operand] = []
    for operand in formula.operands:
        if not operand.is_tensor:
            continue
        others = [each for each in symbols if isinstance(each, Access) and each.operand == operand]
        if operand in symbols or not others:
            found.append(operand)
        found += sorted(others, key=lambda each: each.sort_key()[1])
    return found


def _axes(labels: frozenset[str]) -> frozenset[str]:
    return frozenset(label[0] for label in labels)


def gradients(formula: Formula) -> dict[Operand, sp.Expr]:
    """The derivatives for people to read: one expression per tensor operand.

    For an operand with an element per tap (x, a weight) it is the derivative at a tap, for the others the derivative
    of the window's value.  An operand that is read at several places, `x` and `x[c, 0]`, has one for each of them.
    """
    chain = Chain(formula.expr)

    def readable_sum(operand: Operand, partial: Partial) -> sp.Expr:
        lacking = [frozenset(where.axes) - _axes(operand.labels) for where in partial]
        return readable(sp.Add(*(chain.sum_over(e, d, dims) for (d, e), dims in zip(partial.items(), lacking))))

    return {operand: readable_sum(operand, partial) for operand, partial in partials(formula).items()}


def tangent(formula: Formula, names: Mapping[str, str]) -> Formula:
    """The directional derivative of a formula, as a formula.

    Args:
        formula: what to differentiate.
        names: for each operand that moves, the name of the operand that says in which direction.

    Example: the tangent of `sum(w*x)` for x along `x_dot` and w along `w_dot` is `sum(w*x_dot + w_dot*x)`.
    """
    chain = Chain(formula.expr)
    directions = {
        operand: Operand(
            names[operand.name],
            "param" if operand.role == "bias" else operand.role,
            operand.axes if operand.role in ("bias", "param", "field") else None,
            bank=operand.bank,
        )
        for operand in formula.operands
        if operand.name in names
    }
    dots: dict[sp.Symbol, sp.Expr] = {
        place: place.of(directions[place.operand]) if isinstance(place, Access) else directions[place]
        for place in accesses(formula)
        if place.operand in directions
    }

    still: set[sp.Symbol] = set()  # the nodes that do not move in a window without taps

    def dot(expr: sp.Expr) -> sp.Expr:
        slopes = {symbol: differentiate(expr, symbol) for symbol in _moving(expr, dots)}
        slopes |= {symbol: chain.settled(slope) for symbol, slope in slopes.items() if symbol in still}
        return sp.Add(*(chain.times(slope, dots[symbol]) for symbol, slope in slopes.items()))

    for symbol, node in chain.nodes.items():
        record = record_of(node)
        if (record.reduces and "t" in node.dims) or all(still.issuperset(_moving(each, dots)) for each in node.args):
            still.add(symbol)
        if record.reduces:
            along = zip(record.adjoint(node, sp.S.One), map(dot, node.args))
            total = sp.Add(*(slope * motion for slope, motion in along))
            dots[symbol] = chain.sum_over(total, chain.domain(node), node.dims)
        else:
            motion = dot(node.args[0])
            dots[symbol] = record.adjoint(node, motion)[0] if motion != 0 else sp.S.Zero
    return Formula.of((), to_sympy(tidy(chain.whole(dot(chain.result)))))


def _moving(expr: sp.Expr, dots: Mapping[sp.Symbol, sp.Expr]) -> list[sp.Symbol]:
    """The symbols of an expression that move, in a fixed order."""
    return sorted(expr.free_symbols & dots.keys(), key=sp.default_sort_key)
