"""Prints formulas and gradients for people: two-dimensional text and LaTeX."""

from __future__ import annotations

import re
import sys
import textwrap
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.pretty.pretty import PrettyPrinter
from sympy.printing.pretty.pretty_symbology import pretty_use_unicode
from sympy.printing.pretty.stringpict import prettyForm

from ..derive import gradients
from ..functions import BY_CLASS, FUNCTIONS, Comparison, spread, where
from ..language.axes import WindowNode
from ..language.formula import Formula
from ..language.symbols import TAP_AXES, Access
from ..reductions import Norm, Total, record_of
from ..rewrite import kinked, learned, oriented
from .abbreviate import abbreviated
from .common import positive_first

#: How LaTeX writes nodes: `axes` are those it runs over, `other` the taps it runs over for a given one, `over` is empty
#: for a node over the whole window.
_LATEX_WINDOW = {
    "sum": r"\sum_{{{axes}}} ",
    "prod": r"\prod_{{{axes}}} ",
    "max": r"\max_{{{axes}}} ",
    "min": r"\min_{{{axes}}} ",
    "total": r"\sum_{{{axes}}} ",
    "others": r"\prod_{{{other}}} ",
    "first_max": r"\mathbf{{1}}_{{\operatorname{{argmax}}{over}}} ",
    "first_min": r"\mathbf{{1}}_{{\operatorname{{argmin}}{over}}} ",
    "chosen": r"\mathbf{{1}}_{{\operatorname{{chosen}}{over}}} ",
    "others_slope": r"\operatorname{{others\_slope}}{over} ",
}
#: Of those, which run over all factors that follow, and which have brackets around whatever they are of.
_LATEX_SUMS = frozenset(["sum", "prod", "total", "others"])
_LATEX_FUNCTIONS = frozenset(["first_max", "first_min", "chosen", "others_slope"])
_PRETTY_WINDOW = {"sum": "∑", "prod": "∏", "others": "∏′", "total": "∑"}
#: What the names that only gradients contain stand for.
GLOSSARY = {
    "others": "others(e) is the product of e over the other taps of the window",
    "others_slope": "others_slope(e, v) is the derivative of others(e) along v",
    "first_max": "first_max(e) is 1 at the first tap that attains the maximum, 0 elsewhere",
    "first_min": "first_min(e) is 1 at the first tap that attains the minimum, 0 elsewhere",
    "chosen": "chosen(e) is the share of each tap in the median or quantile: 1 at the tap chosen, 0 elsewhere",
    "softmax": "softmax(e) is exp(e) over its sum in the window",
    "total": "total(v, e) is the sum of v over all taps and channels that e has; total(1, e) is their number",
}


class MathLatexPrinter(LatexPrinter):  # type: ignore[misc]
    """SymPy's LaTeX with the nodes of a window."""

    def __init__(self) -> None:
        super().__init__({"order": "none"})

    def _as_ordered_terms(self, expr: sp.Add, order: Any = None) -> list[sp.Expr]:
        return positive_first(expr)

    def _print_Abs(self, expr: sp.Abs, exp: str | None = None) -> str:
        return str(super()._print_Abs(sp.Abs(oriented(expr.args[0]), evaluate=False), exp))

    def _print_Function(self, expr: sp.Function, exp: str | None = None) -> str:
        return self._window(expr, exp) if isinstance(expr, WindowNode) else str(super()._print_Function(expr, exp))

    def _print_Comparison(self, expr: Comparison) -> str:
        return str(self._print(expr.relation(*expr.args, evaluate=False)))

    def _print_spread(self, expr: sp.Expr, exp: str | None = None) -> str:
        value = expr.args[0]  # operators show their axes
        return str(self._print(value)) if exp is None else rf"{self.parenthesize(value, PRECEDENCE['Pow'])}^{{{exp}}}"

    def _print_where(self, expr: where, exp: str | None = None) -> str:
        cases = str(self._print(_piecewise(expr)))
        return cases if exp is None else rf"\left({cases}\right)^{{{exp}}}"

    def _needs_mul_brackets(self, expr: sp.Expr, first: bool = False, last: bool = False) -> bool:
        return bool(super()._needs_mul_brackets(expr, first, last)) or (not last and _reaches_on(expr))

    def _window(self, expr: WindowNode, exp: str | None) -> str:
        axes = ",".join(sorted(expr.dims))
        if _is_count(expr):
            body = {"c,t": "N", "t": "T", "c": "C"}[axes]
        elif isinstance(expr, Norm):
            body = rf"\left\lVert {self._print(expr.args[0])} \right\rVert"
            body += "" if expr.dims == TAP_AXES else f"_{{{axes}}}"
        else:
            body = self._operator(expr, axes)
            body = body if exp is None else rf"\left({body}\right)"
        return body if exp is None else f"{body}^{{{exp}}}"

    def _operator(self, expr: WindowNode, axes: str) -> str:
        name = record_of(expr).name
        over = "" if expr.dims == TAP_AXES else f"_{{{axes}}}"
        other = {"c,t": r"(c',t') \neq (c,t)"}.get(axes, rf"{axes}' \neq {axes}")
        operator = _LATEX_WINDOW.get(name, rf"\operatorname*{{{{{name}}}}}_{{{{{{axes}}}}}} ")
        args, weight = _arguments(expr)
        shown = [*map(self._print, args)] + ([] if weight is None else [rf"\mathrm{{weight}} = {self._print(weight)}"])
        inside = ", ".join(shown)
        first = args[0].args[0] if isinstance(args[0], spread) else args[0]
        bare = first.is_Symbol or isinstance(first, (sp.Abs, sp.Max, sp.Min, sp.Function))
        bare = bare or (first.is_Number and first.is_nonnegative)
        if name in _LATEX_SUMS and first.is_Mul:
            bare = not first.could_extract_minus_sign() and not first.has(sp.Add)
        bare = bare and _reaches_on(expr)
        return operator.format(axes=axes, over=over, other=other) + (inside if bare else rf"\left({inside}\right)")

    def _print_Symbol(self, expr: sp.Symbol, style: str = "plain") -> str:
        if not isinstance(expr, Access):  # letters beside one another would be read as a product
            return re.sub(r"^[A-Za-z]{2,}", r"\\mathit{\g<0>}", str(super()._print_Symbol(expr, style)))
        element = [] if expr.element is None else [str(expr.element)]
        index = expr.name.partition("[")[2].removesuffix("]").split(", ")[len(element) :]
        subscript = ", ".join([*element, *index])
        return rf"{{{self._print(expr.base)}}}_{{{subscript}}}"


class MathPrettyPrinter(PrettyPrinter):  # type: ignore[misc]
    """SymPy's two-dimensional text with the nodes of a window."""

    def __init__(self, unicode: bool) -> None:
        super().__init__({"order": "none", "use_unicode": unicode, "wrap_line": False})

    def _as_ordered_terms(self, expr: sp.Add, order: Any = None) -> list[sp.Expr]:
        return positive_first(expr)

    def _print_Abs(self, expr: sp.Abs) -> prettyForm:
        return super()._print_Abs(sp.Abs(oriented(expr.args[0]), evaluate=False))

    def _print_Function(self, expr: sp.Function, *args: Any, **kwargs: Any) -> prettyForm:
        return self._window(expr) if isinstance(expr, WindowNode) else super()._print_Function(expr, *args, **kwargs)

    def _print_Comparison(self, expr: Comparison) -> prettyForm:
        return self._print(expr.relation(*expr.args, evaluate=False))

    def _print_spread(self, expr: sp.Expr) -> prettyForm:
        value, *like = expr.args
        dot = "⋅" if self._use_unicode else "*"
        terms = [self._print(value)] * (value != 0) + [prettyForm(*self._print(each).left(f"0{dot}")) for each in like]
        form = terms[0]
        for term in terms[1:]:
            form = prettyForm(*form.right(" + ", term))
        return prettyForm(form.s, form.baseline, binding=prettyForm.ADD)

    def _print_where(self, expr: where) -> prettyForm:
        return self._print(_piecewise(expr))

    def _window(self, expr: WindowNode) -> prettyForm:
        name, axes = record_of(expr).name, "".join(sorted(expr.dims))
        if _is_count(expr):
            return prettyForm({"ct": "N", "t": "T", "c": "C"}[axes])
        symbol = _PRETTY_WINDOW.get(name, name) if self._use_unicode else name
        args, weight = _arguments(expr)
        form = self._print_seq(args, delimiter=", ")
        if weight is not None:
            form = prettyForm(*form.right(", weight="))
            form = prettyForm(*form.right(self._print(weight)))
        if expr.dims != TAP_AXES:
            form = prettyForm(*form.right(f", dim={axes}"))
        form = prettyForm(*form.parens())
        return prettyForm(*form.left(symbol), binding=prettyForm.ATOM)

    def _print_Symbol(self, expr: sp.Symbol, bold_name: bool = False) -> prettyForm:
        return prettyForm(expr.name) if isinstance(expr, Access) else super()._print_Symbol(expr, bold_name)


def _is_count(expr: WindowNode) -> bool:
    """Whether a node is the number of taps, channels or both."""
    return isinstance(expr, Total) and expr.args[0] == 1


def _arguments(expr: WindowNode) -> tuple[tuple[sp.Expr, ...], sp.Expr | None]:
    """What a node is shown with: its arguments, and its weight."""
    record, args = record_of(expr), expr.args
    if isinstance(expr, Total):
        return args[:1], None
    return (args[:-1], args[-1]) if record.weighted and len(args) > record.arity[0] else (args, None)


def _reaches_on(expr: sp.Expr) -> bool:
    """Whether LaTeX does not tell where an expression ends, so that a factor after it would seem to belong to it."""
    if not isinstance(expr, WindowNode) or _is_count(expr) or isinstance(expr, Norm):
        return isinstance(expr, where)
    args, weight = _arguments(expr)
    return len(args) == 1 and weight is None and record_of(expr).name not in _LATEX_FUNCTIONS


def _piecewise(expr: where) -> sp.Piecewise:
    condition, value, otherwise = expr.args
    return sp.Piecewise((value, condition), (otherwise, True), evaluate=False)


def latex_lines(formula: Formula) -> list[str]:
    """One line of LaTeX for each line of the formula, then for each partial derivative, aligned at `&=`."""
    printer = MathLatexPrinter()
    lines = [f"{printer.doprint(sp.Symbol(name))} &= {printer.doprint(expr)}" for name, expr in formula.lines]
    lines.append(f"y &= {printer.doprint(formula.result)}")
    named, derivatives = abbreviated(formula, gradients(formula))
    lines += [f"{printer.doprint(sp.Symbol(name))} &= {printer.doprint(expr)}" for name, expr in named]
    for operand, gradient in derivatives.items():
        lines.append(rf"\frac{{\partial y}}{{\partial {printer.doprint(operand)}}} &= {printer.doprint(gradient)}")
    return lines


def pretty(formula: Formula, name: str | None = None, columns: int | None = None) -> str:
    """The formula and its partial derivatives as two-dimensional text, with notes on names and on kinks.

    Args:
        formula: the formula.
        name: shown above it.
        columns: where to fold what is wider.
    """
    unicode = _terminal_shows("∑∏∂′")
    before = pretty_use_unicode(unicode)  # SymPy draws some symbols by this switch, whatever the printer's settings
    try:
        return _pretty(formula, name, unicode, columns)
    finally:
        pretty_use_unicode(before)


def _pretty(formula: Formula, name: str | None, unicode: bool, columns: int | None) -> str:
    printer = MathPrettyPrinter(unicode)
    d = "∂" if unicode else "d"
    whole = gradients(formula)
    named, derivatives = abbreviated(formula, whole)
    parts = [*formula.lines, ("y", formula.result), *named]
    parts += [(f"{d}y/{d}{printer.doprint(operand)}", gradient) for operand, gradient in derivatives.items()]
    width = max(len(label) for label, _ in parts)
    blocks = [_equation(printer, label.rjust(width), expr, columns) for label, expr in parts]
    tall = any("\n" in block for block in blocks)
    head = ([name] if name else []) + [operand.declaration for operand in formula.operands if operand.declaration]
    text = "\n".join(head + [("\n\n" if tall else "\n").join(blocks)])
    notes = [note for note in glossary(whole.values()) if note != GLOSSARY["total"]] + kink_notes(formula)
    if unicode:
        notes = [note.replace("others(e)", "∏′(e)") for note in notes]
    noted = [f"({note})" for note in notes]
    return "\n".join([text, *(noted if columns is None else [textwrap.fill(note, columns) for note in noted])])


def glossary(expressions: Any) -> list[str]:
    """What the names that only gradients contain stand for, for those that occur."""
    nodes = {node for expr in expressions for node in expr.atoms(WindowNode)}
    found = {record_of(node).name for node in nodes if not _is_count(node)}
    return [meaning for name, meaning in GLOSSARY.items() if name in found]


def kink_notes(formula: Formula) -> list[str]:
    """Which parts of the formula pass no gradient, by rule."""
    expr = kinked(learned(formula.expr))
    flat = sorted(
        record.name
        for record in FUNCTIONS.values()
        if record.flat and any(BY_CLASS.get(type(node)) is record for node in sp.preorder_traversal(expr))
    )
    if expr.has(sp.core.relational.Relational, Comparison):
        flat.append("comparisons")
    return [f"no gradient passes through {', '.join(flat)}: it is 0 by rule"] if flat else []


def _equation(printer: MathPrettyPrinter, label: str, expr: sp.Expr, columns: int | None) -> str:
    form = prettyForm(*printer._print(expr).left(f"{label} = "))
    unicode = printer._use_unicode
    text = str(form.render(wrap_line=columns is not None, num_columns=columns, use_unicode=unicode))
    return "\n".join(line.rstrip() for line in text.splitlines())


def _terminal_shows(characters: str) -> bool:
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
