"""From text to a `Formula`, without evaluating anything.

`ast.parse` gives a syntax tree; its statements are declarations, lines and the result, and `expressions` reads what
stands in them.  Whatever is not part of the language is refused with a caret under it.
"""

from __future__ import annotations

import ast
import dataclasses
import keyword
import re
import textwrap
import warnings
from typing import Any

import sympy as sp

from ..errors import FormulaError, Span
from ..reductions import REDUCTIONS
from .axes import labels_of
from .expressions import MAX_DEPTH, Expressions, Term, axis_name
from .formula import Formula, line_symbol
from .names import check_name, check_operand
from .symbols import BUILTIN, MAX_BANK, Operand

#: The longest text of a formula, and how often its own text is read again until it stays the same.
MAX_LENGTH, MAX_READINGS = 10_000, 8

#: What Python says, and what it means for a formula.
SAID = {
    "invalid decimal literal": "write a product as 2*x; no name begins with a digit",
    "invalid syntax. Perhaps you forgot a comma?": "a sign is missing; write a product as 2*x",
}

#: The kinds of declaration, each with the axes that its brackets may name, and other words.
DECLARED: dict[str, tuple[str, tuple[str, ...]]] = {
    "const": ("", ()),
    "param": ("oct", ("positive",)),
    "weight": ("k", ()),
    "input": ("", ()),
    "field": ("ot", ()),
}


def parse(text: str) -> Formula:
    """Read a formula.

    Args:
        text: declarations (`beta: const = 5`), lines (`name = expression`) and, last, the result.

    Raises:
        FormulaError: for anything outside the grammar, with the place.

    >>> parse("sum(w*x) + b").expr
    b + sum(x*w)
    """
    if not isinstance(text, str):
        raise FormulaError(f"a formula is a str or a SymPy expression, not {type(text).__name__}")
    text = textwrap.dedent(text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    formula = _Parser(text).formula(_syntax_tree(text))
    for _ in range(MAX_READINGS):  # SymPy simplifies some terms only when they are read again
        if formula.text == text:
            break
        text = formula.text
        formula = _Parser(text).formula(_syntax_tree(text))
    return formula


def _syntax_tree(text: str) -> ast.Module:
    """`ast.parse` behind checks that keep its own recursion short."""
    if not text:
        raise FormulaError("the formula is empty; an example is 'sum(w*x) + b'")
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"the formula has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    depth = 0
    for number, line in enumerate(text.split("\n")):
        code = line.partition("#")[0]
        foreign = re.search(r"[^\x20-\x7e\t]", code)
        if foreign:
            span = Span(number, foreign.start(), foreign.start() + 1)
            raise FormulaError(f"unexpected character {foreign.group()!r}; formulas are plain ASCII", text, span)
        for column, character in enumerate(code):
            depth += (character in "([{") - (character in ")]}")
            if depth > MAX_DEPTH:
                raise FormulaError(f"more than {MAX_DEPTH} nested brackets", text, Span(number, column, column + 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of 1if: it is refused below
            return ast.parse(text)
    except SyntaxError as error:
        for number, line in enumerate(text.split("\n")):
            word = re.match(r"\s*([A-Za-z]+)\s*[:=]", line)
            if word and keyword.iskeyword(word[1]):
                message = f"{word[1]} is a keyword of Python; choose another name, such as {word[1]}_"
                raise FormulaError(message, text, Span(number, word.start(1), word.end(1))) from None
        row, start = (error.lineno or 1) - 1, max((error.offset or 1) - 1, 0)
        end = (error.end_offset or 0) - 1 if error.end_lineno == error.lineno else start + 1
        span = Span(row, start, max(end, start + 1))
        raise FormulaError(f"syntax error: {_said(error, text, span)}", text, span) from None
    except (RecursionError, MemoryError, ValueError):
        raise FormulaError("the formula is nested too deeply", text, Span(0, 0, 1)) from None


def _said(error: SyntaxError, text: str, span: Span) -> str:
    """What Python says of an error, or where there are some, words that fit formulas."""
    lines = text.split("\n")
    place = lines[span.line][span.start : span.end] if span.line < len(lines) else ""
    if error.msg == "invalid syntax" and place:
        return f"unexpected {place!r}"
    return SAID.get(error.msg, error.msg)


class _Parser(Expressions):
    """Reads the statements of a formula."""

    def formula(self, module: ast.Module) -> Formula:
        if not module.body:
            raise FormulaError("the formula has no line that gives a value; an example is 'sum(w*x) + b'")
        *statements, last = module.body
        named: list[tuple[str, sp.Expr]] = []
        for statement in statements:
            if isinstance(statement, ast.AnnAssign):
                self.declare(statement)
            elif isinstance(statement, ast.Assign):
                named.append(self.line(statement))
            else:
                raise self.error(statement, "only the last line may stand without a name; write name = expression")
        if isinstance(last, ast.AnnAssign):
            raise self.error(last, "the last line must be the result, not a declaration")
        if isinstance(last, ast.Assign):
            self.target(last)
        elif not isinstance(last, ast.Expr):
            raise self.error(last, "only declarations, lines 'name = expression' and a result are allowed")
        result = self.value(last.value)
        self.check_defined(last.value, result.expr.xreplace(self.inlined))
        self.check_level(result)
        self.check_use(module)
        assert isinstance(result.expr, sp.Expr)
        return Formula.of(named, result.expr)  # what SymPy has cancelled is no operand: x + p - p has no p

    def target(self, statement: ast.Assign) -> str:
        target = statement.targets[0]
        if len(statement.targets) != 1 or not isinstance(target, ast.Name):
            raise self.error(target, "a line gives one name: name = expression")
        if target.id == "y" and "y" not in self.lines:
            return target.id
        check_name(target.id, self.text, self.span(target))
        if target.id in self.lines or target.id in self.operands:
            raise self.error(target, f"{target.id!r} is defined twice; a name is given once")
        return target.id

    def line(self, statement: ast.Assign) -> tuple[str, sp.Expr]:
        name = self.target(statement)
        value = self.value(statement.value)
        if not isinstance(value.expr, sp.Expr):
            raise self.error(statement.value, "a comparison is a condition, not a value; use it inside where(...)")
        value = self.spread(value)
        self.lines[name] = dataclasses.replace(value, expr=line_symbol(name))
        whole = value.expr.xreplace(self.inlined)
        self.check_defined(statement.value, whole)
        self.inlined[line_symbol(name)] = whole
        return name, value.expr  # type: ignore[return-value]

    def declare(self, statement: ast.AnnAssign) -> None:
        target, annotation = statement.target, statement.annotation
        if not isinstance(target, ast.Name):
            raise self.error(target, "a declaration names one operand: beta: const = 5")
        check_operand(target.id, self.operands, self.text, self.span(target))
        if target.id in self.operands or target.id in self.lines:
            raise self.error(target, f"{target.id!r} is defined twice; a name is given once")
        base = annotation.value if isinstance(annotation, ast.Subscript) else annotation
        kind = base.id if isinstance(base, ast.Name) else ""
        if kind not in DECLARED:
            known = ", ".join(DECLARED)
            raise self.error(annotation, f"unknown declaration {self.source(annotation)!r}; the kinds are {known}")
        options = self.declared_options(kind, annotation) if isinstance(annotation, ast.Subscript) else {}
        if kind in ("param", "field"):
            options.setdefault("axes", ())
        init = None if kind != "param" else 1.0
        if statement.value is not None:
            if kind not in ("const", "param"):
                raise self.error(
                    statement.value, f"{kind} declares a tensor, which is given later; it takes no value here"
                )
            number = self.value(statement.value).expr
            if not number.is_number:
                raise self.error(statement.value, f"the value of a {kind} must be a number")
            init = float(number)  # type: ignore[arg-type]
            if options.get("positive") and not init > 0:
                raise self.error(statement.value, "a positive param starts above 0")
        self.operands[target.id] = Operand(target.id, kind, init=init, **options)

    def declared_options(self, kind: str, annotation: ast.Subscript) -> dict[str, Any]:
        """What stands in the brackets of a declaration: axes, `positive`, or the size of a bank."""
        allowed, bounds = DECLARED[kind]
        items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if allowed == "" or not items:
            raise self.error(annotation, f"{kind} takes no brackets; write {self.source(annotation.value)}")
        if kind == "weight":
            value = items[0].value if len(items) == 1 and isinstance(items[0], ast.Constant) else None
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_BANK:
                raise self.error(annotation.slice, f"weight[...] takes the size of the bank, 1 to {MAX_BANK}")
            return {"bank": value}
        names = [item.id if isinstance(item, ast.Name) else "" for item in items]
        for name, item in zip(names, items):
            if (name not in allowed and name not in bounds) or not name or names.count(name) > 1:
                known = {"o": "o (filter)", "c": "c (channel)", "t": "t (tap)", "positive": "positive"}
                listed = ", ".join(known[each] for each in (*allowed, *bounds))
                raise self.error(item, f"{kind}[...] takes {listed}, each once")
        axes = tuple(name for name in names if name in allowed)
        return {"axes": axes} | ({"positive": True} if "positive" in names else {})

    # -- Checks on the whole -------------------------------------------------------------------------------------

    def check_level(self, result: Term) -> None:
        if not isinstance(result.expr, sp.Expr):
            raise FormulaError(
                "the result is a comparison; use it inside where(condition, value, otherwise)", self.text
            )
        varies = labels_of(result.expr.xreplace(self.inlined)) - result.pixels
        axes = {axis: span for axis, span in result.axes.items() if axis in varies}
        if axes:
            span = min(axes.values())
            name = self.text.split("\n")[span.line][span.start : span.end]
            left = " and ".join(map(axis_name, sorted(axes)))
            raise FormulaError(
                f"the result still varies over {left}, because {name} is not inside a reduction over it; wrap it in "
                f"one of {', '.join(REDUCTIONS)}, for example sum(...)",
                self.text,
                span,
            )

    def check_use(self, module: ast.Module) -> None:
        for name, operand in self.operands.items():
            if name not in BUILTIN and operand not in self.used:
                declared = next(
                    s for s in module.body if isinstance(s, ast.AnnAssign) and self.source(s.target) == name
                )
                raise self.error(declared.target, f"{name!r} is declared but never used; delete the line")
