"""Prints expressions and formulas in the text language, so that parsing gives them back."""

from __future__ import annotations

from typing import Any

import sympy as sp

from ..errors import FormulaError
from ..functions import FUNCTIONS, oriented
from ..language.formula import Formula, in_order
from ..language.symbols import BUILTIN, Operand
from ..reductions import BY_NODE
from .common import SourcePrinter

#: The language's name for the node of each SymPy class.
_NAMES = {record.native or record.cls: record.name for record in FUNCTIONS.values() if record.name != "sqrt"}


class TextPrinter(SourcePrinter):
    """Prints SymPy expressions in the text language."""

    def _print_Function(self, expr: sp.Function) -> str:
        name = _NAMES.get(type(expr)) or (BY_NODE[type(expr)].name if type(expr) in BY_NODE else None)
        if name is None:
            raise FormulaError(f"{type(expr).__name__} is not a function of the formula language: {sp.sstr(expr)[:80]}")
        args = expr.args[:1] if isinstance(expr, sp.Heaviside) else expr.args
        return f"{name}({', '.join(self._print(argument) for argument in args)})"

    def _print_Abs(self, expr: sp.Abs) -> str:
        return f"abs({self._print(oriented(expr.args[0]))})"

    _print_Heaviside = _print_sign = _print_floor = _print_ceiling = _print_Function

    def _print_Max(self, expr: sp.Expr) -> str:
        return f"max({', '.join(self._print(argument) for argument in sorted(expr.args, key=sp.default_sort_key))})"

    def _print_Min(self, expr: sp.Expr) -> str:
        return f"min({', '.join(self._print(argument) for argument in sorted(expr.args, key=sp.default_sort_key))})"

    def _print_Piecewise(self, expr: sp.Piecewise) -> str:
        *cases, (last, condition) = expr.args
        if condition != True:  # noqa: E712 (SymPy's true)
            raise FormulaError(f"the Piecewise has no last branch (value, True): {sp.sstr(expr)[:80]}")
        text = self._print(last)
        for value, condition in reversed(cases):
            text = f"where({self._print(condition)}, {self._print(value)}, {text})"
        return str(text)

    def _print_Float(self, expr: sp.Float) -> str:
        return repr(float(expr))

    def _print_Exp1(self, expr: sp.Expr) -> str:
        return "exp(1)"

    def _print_Infinity(self, expr: sp.Expr) -> str:
        return "inf"

    def emptyPrinter(self, expr: Any) -> str:
        raise FormulaError(f"{type(expr).__name__} is not part of the formula language: {str(expr)[:80]}")


def print_formula(formula: Formula) -> str:
    """The formula in the text language: declarations, lines, result."""
    printer = TextPrinter()
    declarations = [operand.declaration for operand in formula.operands if operand.declaration]
    lines = [f"{name} = {printer.doprint(expr)}" for name, expr in formula.lines]
    return "\n".join([*declarations, *lines, printer.doprint(formula.result)])


def print_expression(expr: Any) -> str:
    """A SymPy expression as the text of a formula, with the declarations of the operands that it names.

    Raises:
        FormulaError: for a symbol that symconv did not hand out, or a node outside the language.
    """
    expr = sp.sympify(expr, strict=True) if not isinstance(expr, sp.Basic) else expr
    for symbol in sorted(expr.free_symbols, key=sp.default_sort_key):
        if not isinstance(symbol, Operand):
            raise FormulaError(
                f"the symbol {symbol} was not declared; use symconv.const, param, weight or input, or one of "
                f"{', '.join(BUILTIN)}"
            )
    return print_formula(Formula((), expr, in_order(expr.free_symbols)))
