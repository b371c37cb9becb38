"""A validated formula: what the parser makes and everything after it reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy as sp

from .symbols import Operand, x


@dataclass(frozen=True)
class Formula:
    """A straight-line program that gives one window value.

    Args:
        lines: the named lines before the last, each an expression that may name the lines above it.
        result: the last line.
        operands: x (it gives the shapes) and every other operand that occurs, see `in_order`.
    """

    lines: tuple[tuple[str, sp.Expr], ...]
    result: sp.Expr
    operands: tuple[Operand, ...]

    @classmethod
    def of(cls, lines: Iterable[tuple[str, sp.Expr]], result: sp.Expr) -> Formula:
        """The formula of some lines and a result, with the operands that they name."""
        lines = tuple(lines)
        symbols = result.free_symbols.union(*(expr.free_symbols for _, expr in lines))
        return cls(lines, result, in_order(symbol for symbol in symbols if isinstance(symbol, Operand)))

    @property
    def expr(self) -> sp.Expr:
        """The whole formula as one expression, all lines put in."""
        values: dict[sp.Symbol, sp.Expr] = {}
        for name, expr in self.lines:
            values[line_symbol(name)] = expr.xreplace(values)
        return self.result.xreplace(values)

    @property
    def text(self) -> str:
        """The formula in the text language: declarations, lines, result.  Parsing it gives the formula back."""
        from ..printers.text import print_formula

        return print_formula(self)

    def operand(self, name: str) -> Operand | None:
        """The operand called `name`, if the formula has it."""
        return next((operand for operand in self.operands if operand.name == name), None)


def line_symbol(name: str) -> sp.Symbol:
    """The symbol by which later lines name the line `name`."""
    return sp.Symbol(name, real=True)


def in_order(operands: Iterable[Operand]) -> tuple[Operand, ...]:
    """X and the others as signatures list them: by role, the language's own names before declared ones."""
    ranks = [*Operand.ROLES]
    others = {operand.operand for operand in operands} - {x}
    return (x, *sorted(others, key=lambda each: (ranks.index(each.role), bool(each.declaration), each.name)))
