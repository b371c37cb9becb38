"""Straight-line functions, and what one evaluation of an expression takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import sympy as sp

from .functions import BY_CLASS, FUNCTIONS, Comparison

#: Functions that take many instructions.
HEAVY = frozenset(record.name for record in FUNCTIONS.values() if record.heavy)
#: Those whose arguments lose their multiples of pi first.
PERIODIC = frozenset(record.name for record in FUNCTIONS.values() if record.periodic)
#: Operations that are worth a value of their own, stored and loaded.
COSTLY = HEAVY | {"div", "sqrt"}


@dataclass(frozen=True)
class Block:
    """A straight-line function: arguments, named temporaries, results."""

    arguments: tuple[sp.Symbol, ...]
    temporaries: tuple[tuple[sp.Symbol, sp.Expr], ...]
    results: tuple[sp.Expr, ...]

    @property
    def expressions(self) -> tuple[sp.Expr, ...]:
        """All that one evaluation computes."""
        return (*(expr for _, expr in self.temporaries), *self.results)

    @property
    def whole(self) -> tuple[sp.Expr, ...]:
        """The results without temporaries."""
        found: dict[sp.Basic, sp.Expr] = {}
        for name, expr in self.temporaries:
            found[name] = expr.xreplace(found)
        return tuple(expr.xreplace(found) for expr in self.results)

    @property
    def operations(self) -> Counter[str]:
        """How many operations of each sort one evaluation takes."""
        return sum(map(count_operations, self.expressions), Counter())


#: A function without results.
NOTHING = Block((), (), ())


def count_operations(expr: sp.Basic) -> Counter[str]:
    """The operations of one evaluation of `expr`, by the names that people use: add, mul, div, sqrt, tan, ..."""
    counts: Counter[str] = Counter()
    for node in sp.preorder_traversal(expr):
        if node.is_Add:
            counts["add"] += len(node.args) - 1
        elif node.is_Mul:
            above = [factor for factor in node.args if not (factor.is_Pow and factor.exp == -1) and factor != -1]
            counts["mul"] += max(len(above) - 1, 0)
        elif node.is_Pow:
            counts[{-1: "div", sp.Rational(1, 2): "sqrt"}.get(node.exp, "mul" if node.exp == 2 else "pow")] += 1
        elif isinstance(node, (sp.core.relational.Relational, Comparison)):
            counts["compare"] += 1
        elif type(node) in BY_CLASS:
            counts[BY_CLASS[type(node)].name] += 1
    return counts


def is_denominator(factor: sp.Expr) -> bool:
    """Whether a factor of a product stands below the fraction bar."""
    return bool(factor.is_Pow and factor.exp.is_Rational and factor.exp.is_negative)
