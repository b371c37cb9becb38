"""Prints formulas and gradients for people: two-dimensional text and LaTeX."""

from __future__ import annotations

import re
import sys
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter
from sympy.printing.pretty.pretty import PrettyPrinter
from sympy.printing.pretty.pretty_symbology import pretty_use_unicode
from sympy.printing.pretty.stringpict import prettyForm

from ..derive import gradients
from ..functions import BY_CLASS, FUNCTIONS, Comparison, where
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

    def _print_where(self, expr: where) -> str:
        return str(self._print(_piecewise(expr)))

    def _window(self, expr: WindowNode, exp: str | None) -> str:
        axes = ",".join(sorted(expr.dims))
        name, args = record_of(expr).name, expr.args
        if isinstance(expr, Total):
            if args[0] == 1:
                body = {"c,t": "N", "t": "T", "c": "C"}[axes]
                return body if exp is None else f"{body}^{{{exp}}}"
            args = args[:1]
        inside = ", ".join(self._print(argument) for argument in args)
        if isinstance(expr, Norm):
            body = rf"\left\lVert {inside} \right\rVert" + ("" if expr.dims == TAP_AXES else f"_{{{axes}}}")
        else:
            first = args[0]
            bare = first.is_Symbol or isinstance(first, (sp.Abs, sp.Max, sp.Min, sp.Function))
            bare = bare or (first.is_Mul and not first.could_extract_minus_sign() and not first.has(sp.Add))
            over = "" if expr.dims == TAP_AXES else f"_{{{axes}}}"
            other = {"c,t": r"(c',t') \neq (c,t)"}.get(axes, rf"{axes}' \neq {axes}")
            operator = _LATEX_WINDOW.get(name, rf"\operatorname*{{{{{name}}}}}_{{{{{{axes}}}}}} ")
            operator = operator.format(axes=axes, over=over, other=other)
            body = operator + (inside if bare and len(args) == 1 else rf"\left({inside}\right)")
            body = body if exp is None else rf"\left({body}\right)"
        return body if exp is None else f"{body}^{{{exp}}}"

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

    def _print_where(self, expr: where) -> prettyForm:
        return self._print(_piecewise(expr))

    def _window(self, expr: WindowNode) -> prettyForm:
        name, args = record_of(expr).name, expr.args
        axes = "".join(sorted(expr.dims))
        if isinstance(expr, Total):
            if args[0] == 1:
                return prettyForm({"ct": "N", "t": "T", "c": "C"}[axes])
            args = args[:1]
        symbol = _PRETTY_WINDOW.get(name, name) if self._use_unicode else name
        weight = args[-1] if record_of(expr).weighted and len(args) > record_of(expr).arity[0] else None
        form = self._print_seq(args if weight is None else args[:-1], delimiter=", ")
        if weight is not None:
            form = prettyForm(*form.right(", weight="))
            form = prettyForm(*form.right(self._print(weight)))
        if expr.dims != TAP_AXES:
            form = prettyForm(*form.right(f", dim={axes}"))
        form = prettyForm(*form.parens())
        return prettyForm(*form.left(symbol), binding=prettyForm.ATOM)

    def _print_Symbol(self, expr: sp.Symbol, bold_name: bool = False) -> prettyForm:
        return prettyForm(expr.name) if isinstance(expr, Access) else super()._print_Symbol(expr, bold_name)


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


def pretty(formula: Formula, name: str | None = None) -> str:
    """The formula and its partial derivatives as two-dimensional text, with notes on names and on kinks."""
    unicode = _terminal_shows("∑∏∂′")
    before = pretty_use_unicode(unicode)  # SymPy draws some symbols by this switch, whatever the printer's settings
    try:
        return _pretty(formula, name, unicode)
    finally:
        pretty_use_unicode(before)


def _pretty(formula: Formula, name: str | None, unicode: bool) -> str:
    printer = MathPrettyPrinter(unicode)
    d = "∂" if unicode else "d"
    whole = gradients(formula)
    named, derivatives = abbreviated(formula, whole)
    parts = [*formula.lines, ("y", formula.result), *named]
    parts += [(f"{d}y/{d}{printer.doprint(operand)}", gradient) for operand, gradient in derivatives.items()]
    width = max(len(label) for label, _ in parts)
    blocks = [_equation(printer, label.rjust(width), expr) for label, expr in parts]
    tall = any("\n" in block for block in blocks)
    head = ([name] if name else []) + [operand.declaration for operand in formula.operands if operand.declaration]
    text = "\n".join(head + [("\n\n" if tall else "\n").join(blocks)])
    notes = [note for note in glossary(whole.values()) if note != GLOSSARY["total"]] + kink_notes(formula)
    if unicode:
        notes = [note.replace("others(e)", "∏′(e)") for note in notes]
    return text + "".join(f"\n({note})" for note in notes)


def glossary(expressions: Any) -> list[str]:
    """What the names that only gradients contain stand for, for those that occur."""
    nodes = {node for expr in expressions for node in expr.atoms(WindowNode)}
    found = {record_of(node).name for node in nodes if not (isinstance(node, Total) and node.args[0] == 1)}
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


def _equation(printer: MathPrettyPrinter, label: str, expr: sp.Expr) -> str:
    form = printer._print(expr)
    text = str(prettyForm(*form.left(f"{label} = ")))
    return "\n".join(line.rstrip() for line in text.splitlines())


def _terminal_shows(characters: str) -> bool:
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
