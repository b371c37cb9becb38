"""Prints expressions and formulas in the text language, so that parsing gives them back."""

from __future__ import annotations

from typing import Any

import sympy as sp

from ..errors import FormulaError
from ..functions import COMPARISONS, FUNCTIONS, case, custom_grad
from ..language.axes import WindowNode
from ..language.formula import Formula
from ..language.symbols import BUILTIN, TAP_AXES, Operand
from ..reductions import record_of
from ..rewrite import oriented
from .common import SourcePrinter

#: The language's name for the node of each SymPy class.
_NAMES = {record.sympy_class or record.cls: record.name for record in FUNCTIONS.values() if record.name != "sqrt"}

#: The most terms of a `sympy.Sum`.
MAX_TERMS = 256


class TextPrinter(SourcePrinter):
    """Prints SymPy expressions in the text language."""

    def _print_Function(self, expr: sp.Function) -> str:
        if isinstance(expr, WindowNode):
            return self._window(expr)
        name = _NAMES.get(type(expr))
        if name is None:
            known = type(expr).__name__
            other = f"; symconv.{known} is one, defined as in PyTorch" if known in FUNCTIONS else ""
            raise FormulaError(
                f"{known} of SymPy is not a function of the formula language{other}: {sp.sstr(expr)[:80]}"
            )
        args = expr.args[:1] if isinstance(expr, (sp.Heaviside, custom_grad)) else expr.args
        printed = [self._print(argument) for argument in args]
        if isinstance(expr, custom_grad):
            for operand, slope in zip(expr.args[1::2], expr.args[2::2]):
                if not isinstance(operand, Operand) or operand != operand.operand:
                    raise FormulaError(f"custom_grad gives slopes for operands, x=... or w=..., not for {operand}")
                printed.append(f"{operand.name}={self._print(slope)}")
        return f"{name}({', '.join(printed)})"

    def _window(self, expr: WindowNode) -> str:
        record = record_of(expr)
        args, weight = expr.args, []
        if record.weighted and len(args) > record.arity[0]:
            args, weight = args[:-1], [f"weight={self._print(args[-1])}"]
        over = [] if expr.dims == TAP_AXES else [f"dim={''.join(expr.dims)}"]
        return f"{record.name}({', '.join([*map(self._print, args), *over, *weight])})"

    def _print_spread(self, expr: sp.Expr) -> str:
        value, *like = expr.args
        return " + ".join([self._print(value)] * (value != 0) + [f"0*{self._print(each)}" for each in like])

    def _print_Abs(self, expr: sp.Abs) -> str:
        return f"abs({self._print(oriented(expr.args[0]))})"

    _print_Heaviside = _print_sign = _print_floor = _print_ceiling = _print_Function

    def _print_Max(self, expr: sp.Max | sp.Min) -> str:
        name = "max" if isinstance(expr, sp.Max) else "min"
        return f"{name}({', '.join(map(self._print, sorted(expr.args, key=sp.default_sort_key)))})"

    _print_Min = _print_Max

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

    _print_ComplexInfinity = _print_NaN = emptyPrinter


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
    expr = expr.replace(sp.Sum, _unrolled).replace(sp.Heaviside, _step)
    for symbol in sorted(expr.free_symbols, key=sp.default_sort_key):
        if not isinstance(symbol, Operand):
            if symbol.name in BUILTIN:
                raise FormulaError(
                    f"this {symbol} is a symbol of SymPy's; use the one that symconv has, symconv.{symbol}"
                )
            raise FormulaError(
                f"the symbol {symbol} was not declared; use symconv.const, param, weight, input or field, or one of "
                f"{', '.join(BUILTIN)}"
            )
    return print_formula(Formula.of((), expr))


def _step(z: sp.Expr, at_zero: sp.Expr) -> sp.Expr:
    """A step whose value at 0 is not 1/2 as that of the language, which reads `heaviside(z)`."""
    step = sp.Heaviside(z)
    return step if at_zero == sp.Rational(1, 2) else case(COMPARISONS[sp.Eq](z, sp.S.Zero), at_zero, step)


def _unrolled(body: sp.Expr, *ranges: sp.Tuple) -> sp.Expr:
    """A sum over whole numbers, term by term."""
    for variable, first, last in ranges:
        if not (first.is_Integer and last.is_Integer and last - first < MAX_TERMS):
            raise FormulaError(
                f"Sum runs over whole numbers, at most {MAX_TERMS} of them, not ({variable}, {first}, {last})"
            )
        body = sp.Add(*(body.subs(variable, number) for number in range(int(first), int(last) + 1)))
    return body
