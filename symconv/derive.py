"""From a formula to its derivatives, as SymPy expressions of the same language.

A formula is a chain of pointwise expressions and window nodes.  `Chain` writes it as statements, one per node.  The
reverse sweep over the statements gives the partial derivatives of a window's value for every operand; the forward
sweep gives the directional derivative.  SymPy differentiates the pointwise parts and each node contributes the rule
of its record in `reductions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy as sp

from .errors import DerivativeError
from .functions import kinked, native, readable
from .language.formula import Formula, in_order
from .language.symbols import Operand
from .reductions import BY_NODE, Count, Sum, WindowNode


@dataclass(frozen=True)
class Partial:
    """The derivative of one window's value for one operand.

    Args:
        tap: the part that arises at each tap; it is added up over the taps that share the operand's element.
        window: the part that arises once per window.
    """

    tap: sp.Expr
    window: sp.Expr


class Chain:
    """A formula as statements: `nodes[symbol]` is a window node of operands and earlier symbols."""

    def __init__(self, expr: sp.Expr) -> None:
        self.nodes: dict[sp.Symbol, WindowNode] = {}
        self._symbols: dict[WindowNode, sp.Symbol] = {}
        self.result = kinked(self._flatten(expr))

    def _flatten(self, expr: sp.Basic) -> sp.Basic:
        if not expr.args:
            return expr
        flat = expr.func(*(self._flatten(argument) for argument in expr.args)) if expr.has(WindowNode) else expr
        if not isinstance(flat, WindowNode):
            return flat
        flat = flat.func(*(kinked(argument) for argument in flat.args))
        if flat not in self._symbols:
            symbol = sp.Dummy(f"r{len(self.nodes) + 1}", real=True)
            self.nodes[symbol], self._symbols[flat] = flat, symbol
        return self._symbols[flat]

    def whole(self, expr: sp.Expr) -> sp.Expr:
        """`expr` with the statements' symbols replaced by what they stand for."""
        for symbol, node in reversed(self.nodes.items()):
            expr = expr.xreplace({symbol: node})
        return expr

    def is_tap(self, expr: sp.Basic) -> bool:
        """Whether the value of `expr` differs between the taps of a window."""
        return any(self._is_tap_symbol(symbol) for symbol in _outside_reductions(expr))

    def _is_tap_symbol(self, symbol: sp.Symbol) -> bool:
        if symbol in self.nodes:
            return not BY_NODE[type(self.nodes[symbol])].reduces
        return isinstance(symbol, Operand) and bool(symbol.tap_axes)

    def sum_over_taps(self, expr: sp.Expr) -> sp.Expr:
        """The sum of `expr` over the window, with the factors that are the same at all taps taken out."""
        inside: dict[sp.Expr, sp.Expr] = {}
        for term in sp.Add.make_args(tidy(expr)):
            factors = sp.Mul.make_args(term)
            outside = sp.Mul(*(factor for factor in factors if not self.is_tap(factor)))
            inside[outside] = inside.get(outside, 0) + sp.Mul(*(factor for factor in factors if self.is_tap(factor)))
        return sp.Add(
            *(outside * (Sum(total) if self.is_tap(total) else total * Count()) for outside, total in inside.items())
        )


def _outside_reductions(expr: sp.Basic) -> set[sp.Symbol]:
    """The symbols of `expr` other than those that a reduction has already run over."""
    if isinstance(expr, WindowNode) and BY_NODE[type(expr)].reduces:
        return set()
    if isinstance(expr, sp.Symbol):
        return {expr}
    return set().union(*(_outside_reductions(argument) for argument in expr.args))


def tidy(expr: sp.Expr) -> sp.Expr:
    """`expr` with numbers taken out of the sums inside products: g*(2*x - 2*w) becomes 2*g*(x - w)."""

    def taken_out(product: sp.Expr) -> sp.Expr:
        contents = [factor.primitive() if factor.is_Add else (sp.S.One, factor) for factor in product.args]
        return sp.Mul(*(part for pair in contents for part in pair))

    return expr.replace(lambda node: node.is_Mul and sum(not arg.is_number for arg in node.args) > 1, taken_out)


def differentiate(expr: sp.Expr, symbol: sp.Symbol) -> sp.Expr:
    """The derivative of a pointwise expression, with the rules of `functions` at kinks.

    Raises:
        DerivativeError: where SymPy leaves a derivative standing; it is never compiled, never taken for 0.
    """
    derivative = kinked(expr.diff(symbol))
    if derivative.has(sp.Derivative, sp.Subs, sp.DiracDelta):
        raise DerivativeError(f"SymPy has no derivative of {sp.sstr(native(expr))} for {symbol}")
    return derivative


def partials(formula: Formula) -> dict[Operand, Partial]:
    """The derivatives of a window's value for every tensor operand, by the reverse sweep.

    >>> from symconv.language.parser import parse
    >>> from symconv.language.symbols import x, w
    >>> partials(parse("sum(w*x**2)"))[x].tap
    2*x*w
    """
    chain = Chain(formula.expr)
    upstream: dict[sp.Symbol, sp.Expr] = {}
    for symbol in chain.nodes:
        upstream[symbol] = differentiate(chain.result, symbol)
    at_taps: list[tuple[sp.Expr, sp.Expr]] = []  # pairs of an argument of a node and the gradient that reaches it
    for symbol, node in reversed(chain.nodes.items()):
        if upstream[symbol] == 0:
            continue
        for argument, gradient in zip(node.args, BY_NODE[type(node)].adjoint(node, upstream[symbol])):
            if gradient == 0:
                continue
            at_taps.append((argument, gradient))
            for earlier in argument.free_symbols & chain.nodes.keys():
                part = gradient * differentiate(argument, earlier)
                upstream[earlier] += part if chain._is_tap_symbol(earlier) else chain.sum_over_taps(part)
    return {
        operand: Partial(
            tidy(chain.whole(sp.Add(*(gradient * differentiate(argument, operand) for argument, gradient in at_taps)))),
            tidy(chain.whole(differentiate(chain.result, operand))),
        )
        for operand in formula.operands
        if operand.is_tensor
    }


def gradients(formula: Formula) -> dict[Operand, sp.Expr]:
    """The derivatives for people to read: one expression per tensor operand.

    For an operand with an element per tap (x, a weight) it is the derivative at a tap, for the others the derivative
    of the window's value.
    """
    chain = Chain(formula.expr)
    return {
        operand: readable(partial.window + (partial.tap if operand.tap_axes else chain.sum_over_taps(partial.tap)))
        for operand, partial in partials(formula).items()
    }


def tangent(formula: Formula, names: Mapping[str, str]) -> Formula:
    """The directional derivative of a formula, as a formula.

    Args:
        formula: what to differentiate.
        names: for each operand that moves, the name of the operand that says in which direction.

    Example: the tangent of `sum(w*x)` for x along `x_dot` and w along `w_dot` is `sum(w*x_dot + w_dot*x)`.
    """
    chain = Chain(formula.expr)
    directions = {
        operand: Operand(names[operand.name], "param" if operand.role == "bias" else operand.role, operand.axes)
        for operand in formula.operands
        if operand.name in names
    }
    dots: dict[sp.Symbol, sp.Expr] = dict(directions)

    def dot(expr: sp.Expr) -> sp.Expr:
        moving = sorted(expr.free_symbols & dots.keys(), key=sp.default_sort_key)
        return sp.Add(*(differentiate(expr, symbol) * dots[symbol] for symbol in moving))

    for symbol, node in chain.nodes.items():
        record = BY_NODE[type(node)]
        if record.reduces:
            along = zip(record.adjoint(node, sp.S.One), map(dot, node.args))
            dots[symbol] = chain.sum_over_taps(sp.Add(*(slope * motion for slope, motion in along)))
        else:
            motion = dot(node.args[0])
            dots[symbol] = record.adjoint(node, motion)[0] if motion != 0 else sp.S.Zero
    expr = native(tidy(chain.whole(dot(chain.result))))
    operands = [operand for operand in (*formula.operands, *directions.values()) if operand in expr.free_symbols]
    return Formula((), expr, in_order(operands))
