"""What the printers of generated text share: the order of terms and a refusal of unknown nodes."""

from __future__ import annotations

from typing import Any

import sympy as sp
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from ..errors import InternalError
from ..language.symbols import Access, ordered_terms
from ..operations import is_denominator


def positive_first(expr: sp.Add) -> list[sp.Expr]:
    """The terms of a sum in the order of people, but first one without a minus where there is one: w - x."""
    terms = ordered_terms(expr)
    positive = next((term for term in terms if not term.could_extract_minus_sign()), terms[0])
    return [positive, *(term for term in terms if term is not positive)]


def is_exact(number: sp.Expr) -> bool:
    """Whether a number is a fraction that may be written as one: integers of C++ and PyTorch have 64 bits."""
    return isinstance(number, sp.Rational) and max(abs(number.p), number.q) <= 2**53


class SourcePrinter(StrPrinter):  # type: ignore[misc]
    """Prints an expression as source text on one line; the same expression always gives the same text.

    Sums come in the order of `Operand.sort_key` (x, then w, then the rest) and begin with a positive term where there
    is one; products come in SymPy's canonical order.
    """

    _default_settings = StrPrinter._default_settings | {"order": "none"}
    #: What comes last among the factors of a product, but for sums.
    last: tuple[type[sp.Symbol], ...] = (Access,)

    def _as_ordered_terms(self, expr: sp.Add, order: Any = None) -> list[sp.Expr]:
        return positive_first(expr)

    def _print_Mul(self, expr: sp.Mul) -> str:
        coefficient, rest = expr.as_coeff_Mul()
        factors = sorted(sp.Mul.make_args(rest), key=lambda factor: (factor.is_Add, isinstance(factor, self.last)))
        above = [factor for factor in factors if not is_denominator(factor)]
        below = [sp.Pow(factor.base, -factor.exp) for factor in factors if is_denominator(factor)]
        first = sp.S.One  # what divides first: SymPy would multiply 3*(a + b) out when the text is read again
        if coefficient not in (1, -1) and coefficient.is_Rational:
            numbers_above = [sp.Integer(abs(coefficient.p))] * (abs(coefficient.p) != 1)
            if any(factor.is_Add for factor in below):
                first = sp.Integer(coefficient.q)
            else:
                below = [sp.Integer(coefficient.q)] * (coefficient.q != 1) + below
        else:
            numbers_above = [abs(coefficient)] * (coefficient not in (1, -1))
        # Python reads -(a + b)/c as (-(a + b))/c, and SymPy would multiply that out: brackets keep the product whole.
        if above and all(factor.is_Add for factor in above) and (numbers_above or coefficient.is_negative):
            whole = self._quotient(above, below, first)
            return ("-" if coefficient.is_negative else "") + "*".join([*map(self._print, numbers_above), f"({whole})"])
        return ("-" if coefficient.is_negative else "") + self._quotient([*numbers_above, *above], below, first)

    def _quotient(self, above: list[sp.Expr], below: list[sp.Expr], first: sp.Expr) -> str:
        numerator = "*".join(self.parenthesize(factor, PRECEDENCE["Mul"]) for factor in above) or self._print(sp.S.One)
        numerator = numerator if first == 1 else f"{numerator}/{self._print(first)}"
        if not below:
            return numerator
        if len(below) == 1:
            return f"{numerator}/{self.parenthesize(below[0], PRECEDENCE['Mul'], strict=False)}"
        return f"{numerator}/({'*'.join(self.parenthesize(factor, PRECEDENCE['Mul']) for factor in below)})"

    def emptyPrinter(self, expr: Any) -> str:
        raise InternalError(f"{type(self).__name__} cannot print {type(expr).__name__}: {sp.srepr(expr)[:200]}")

    def _print_Symbol(self, expr: sp.Symbol) -> str:
        return str(expr.name)

    def _print_And(self, expr: sp.And) -> str:
        return " & ".join(self._condition(part) for part in sorted(expr.args, key=sp.default_sort_key))

    def _print_Or(self, expr: sp.Or) -> str:
        return " | ".join(self._condition(part) for part in sorted(expr.args, key=sp.default_sort_key))

    def _print_Not(self, expr: sp.Not) -> str:
        return f"~{self._condition(expr.args[0])}"

    def _print_Relational(self, expr: sp.core.relational.Relational) -> str:
        left, right = (self.parenthesize(side, PRECEDENCE["Relational"] + 1) for side in expr.args)
        return f"{left} {expr.rel_op} {right}"

    _print_Comparison = _print_Relational

    def _condition(self, part: sp.Basic) -> str:
        return f"({self._print(part)})"

    def _print_NegativeInfinity(self, expr: sp.Expr) -> str:
        return f"-{self._print(sp.oo)}"
