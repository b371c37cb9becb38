"""Names for what makes a long derivative long, so that it prints as a few short lines."""

from __future__ import annotations

import itertools

import sympy as sp

from ..language.axes import WindowNode
from ..language.formula import Formula, line_symbol
from ..language.symbols import Operand
from ..rewrite import oriented

#: A derivative of more operations than this is broken up, and what is named has at least so many.
LONG, WORTH_A_NAME = 18, 4


def abbreviated(
    formula: Formula, derivatives: dict[Operand, sp.Expr]
) -> tuple[list[tuple[str, sp.Expr]], dict[Operand, sp.Expr]]:
    """The derivatives in terms of the formula's own lines, and of new lines for what they share.

    Returns:
        The new lines, name and expression, in an order in which each names only earlier ones; and the derivatives.
    """
    short = {operand: in_lines(formula, expr) for operand, expr in derivatives.items()}
    if all(expr.count_ops() <= LONG for expr in short.values()):
        return [], short
    taken = {operand.name for operand in formula.operands} | {name for name, _ in formula.lines}
    symbols = (sp.Symbol(name, real=True) for name in map("u{}".format, itertools.count(1)) if name not in taken)
    parts, results = sp.cse([*short.values()], symbols=(sp.Dummy() for _ in itertools.count()), order="canonical")
    inlined: dict[sp.Symbol, sp.Expr] = {}
    named: list[tuple[str, sp.Expr]] = []
    for symbol, part in parts:
        part = _oriented_signs(part.xreplace(inlined))
        if part.count_ops() < WORTH_A_NAME or not isinstance(part, sp.Expr):
            inlined[symbol] = part
        else:
            inlined[symbol] = next(symbols)
            named.append((inlined[symbol].name, part))
    return named, {operand: _oriented_signs(expr.xreplace(inlined)) for operand, expr in zip(short, results)}


def _oriented_signs(part: sp.Expr) -> sp.Expr:
    """sign(x - w) where `sympy.cse` has made -sign(w - x) of it."""
    return part.replace(sp.sign, lambda z: sp.sign(z) if oriented(z) == z else -sp.sign(-z))


def in_lines(formula: Formula, expr: sp.Expr) -> sp.Expr:
    """`expr` with the names of the formula's lines in place of what they stand for."""
    values: dict[sp.Symbol, sp.Expr] = {}
    for name, value in formula.lines:
        values[line_symbol(name)] = value.xreplace(values)
    for symbol, value in reversed(values.items()):
        if value.count_ops() > 1 or value.has(WindowNode):
            expr = expr.xreplace({value: symbol})
    return expr
