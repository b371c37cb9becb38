"""From text to a `Formula`, without evaluating anything.

`ast.parse` gives a syntax tree; a whitelist of its nodes is turned into SymPy expressions, and each value carries
the axes along which it still varies within the window, with the place in the text where each axis came in.  Whatever
is not on the list is refused with a caret under it.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import keyword
import math
import re
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy as sp
import torch

from ..errors import FormulaError, Span
from ..functions import FUNCTIONS, numeric, spread
from ..reductions import REDUCTIONS, TRANSFORMS, Reduction
from .axes import domain, labels_of
from .formula import Formula, in_order, line_symbol
from .symbols import AXES, BUILTIN, MAX_BANK, TAP_AXES, Access, Operand, indexed

#: Caps that keep every formula quick to read, differentiate and print.
MAX_LENGTH, MAX_DEPTH, MAX_SIZE, MAX_EXPONENT = 10_000, 64, 5_000, 100

CONSTANTS: dict[str, sp.Expr] = {"pi": sp.pi, "inf": sp.oo}
WINDOW_FUNCTIONS = REDUCTIONS | TRANSFORMS
#: The kinds of declaration, each with the axes that its brackets may name, and other words.
DECLARED: dict[str, tuple[str, tuple[str, ...]]] = {
    "const": ("", ()),
    "param": ("oct", ("positive",)),
    "weight": ("k", ()),
    "input": ("", ()),
    "field": ("ot", ()),
}
#: Names that a declaration may not take: they mean something already, here, in PyTorch or in generated code.
RESERVED = frozenset((*FUNCTIONS, *WINDOW_FUNCTIONS, *BUILTIN, *CONSTANTS, *AXES, "Sum", "y")) | frozenset(
    """
    bias weight input param const field kernel init device dtype backend in_channels out_channels
    kernel_size stride padding dilation groups padding_mode padding_value
    grad grad_output layout windows tap kept given needs gradients place value names name like output shape
    forward backward combine torch math functools itertools max map zip tuple
    Layout Block Tensor Product Max FirstMax Exponentials Mean Moment Rank FirstRank
    ImageGradient BankGradient FieldGradient
    Iterator Sequence NamedTuple ClassVar
    """.split()
)
#: Names that generated code numbers.
GENERATED = re.compile(
    r"(sum|product|(arg)?(max|rank)|peak|exponentials|moment|mean|value)_\d+|(count|position)(_.*)?"
    r"|(running|grad|forward|backward|gradient)_.*"
)


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
    text = textwrap.dedent(text.replace("\r\n", "\n")).strip()
    formula = _Parser(text).formula(_syntax_tree(text))
    while formula.text != text:  # SymPy simplifies some terms only when they are read again
        text = formula.text
        formula = _Parser(text).formula(_syntax_tree(text))
    return formula


def check_name(name: str, text: str = "", span: Span | None = None) -> None:
    """Refuse a name that cannot be declared."""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name.startswith("_"):
        raise FormulaError(
            f"{name!r} is not a usable name; start with a letter, then letters, digits and _", text, span
        )
    if name in RESERVED or GENERATED.fullmatch(name):
        raise FormulaError(
            f"the name {name!r} is taken, by the language or by generated code; choose another one", text, span
        )


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
            word = re.match(r"\s*([a-z]+)\s*[:=]", line)
            if word and keyword.iskeyword(word[1]):
                message = f"{word[1]} is a keyword of Python; choose another name, such as {word[1]}_"
                raise FormulaError(message, text, Span(number, word.start(1), word.end(1))) from None
        row, start = (error.lineno or 1) - 1, max((error.offset or 1) - 1, 0)
        end = (error.end_offset or 0) - 1 if error.end_lineno == error.lineno else start + 1
        raise FormulaError(f"syntax error: {error.msg}", text, Span(row, start, max(end, start + 1))) from None
    except (RecursionError, MemoryError, ValueError):
        raise FormulaError("the formula is nested too deeply", text, Span(0, 0, 1)) from None


@dataclass(frozen=True)
class _Value:
    """An expression, and what is known of it.

    Args:
        expr: the expression.
        axes: the axes (`language.axes` says which) along which it varies, with the place where each came in.
        size: how many nodes it has with all lines put in.
        pixels: those of the axes that only centre pixels, `x[c, 0]`, brought in.
        lacks: the axes that a reduction with `dim=` has removed.
    """

    expr: sp.Basic
    axes: dict[str, Span] = field(default_factory=dict)
    size: int = 1
    pixels: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()


_BINARY: dict[type[ast.operator], Callable[[sp.Expr, sp.Expr], sp.Expr]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_COMPARE: dict[type[ast.cmpop], Callable[[sp.Expr, sp.Expr], sp.Basic]] = {
    ast.Lt: sp.Lt,
    ast.LtE: sp.Le,
    ast.Gt: sp.Gt,
    ast.GtE: sp.Ge,
    ast.Eq: sp.Eq,
    ast.NotEq: sp.Ne,
}
_LOGIC: dict[type[ast.operator], type[sp.Basic]] = {ast.BitAnd: sp.And, ast.BitOr: sp.Or}


def _axis_name(axis: str) -> str:
    return {"c": "c (input channel)", "t": "t (tap)"}.get(axis, f"the channels of {axis[2:]}")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.operands = dict(BUILTIN)
        self.lines: dict[str, _Value] = {}
        self.inlined: dict[sp.Symbol, sp.Basic] = {}  # what each line stands for
        self.bound: dict[str, int] = {}  # the variables of Sum(..., (k, 0, 7)) around the place being read
        self.used: dict[Operand, Span] = {}
        self.depth = 0

    # -- Statements ----------------------------------------------------------------------------------------------

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
        self.check_level(result)
        self.check_use(module)
        assert isinstance(result.expr, sp.Expr)
        whole = result.expr.xreplace(self.inlined)
        left = {operand.operand for operand in whole.free_symbols if isinstance(operand, Operand)}
        return Formula(tuple(named), result.expr, in_order(left))

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
        self.inlined[line_symbol(name)] = value.expr.xreplace(self.inlined)
        return name, value.expr  # type: ignore[return-value]

    def declare(self, statement: ast.AnnAssign) -> None:
        target, annotation = statement.target, statement.annotation
        if not isinstance(target, ast.Name):
            raise self.error(target, "a declaration names one operand: beta: const = 5")
        check_name(target.id, self.text, self.span(target))
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
                raise self.error(statement.value, f"a {kind} is a tensor given by the layer; it takes no value here")
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
            raise self.error(annotation, f"a {kind} takes no brackets; write {self.source(annotation.value)}")
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

    def check_level(self, result: _Value) -> None:
        if not isinstance(result.expr, sp.Expr):
            raise FormulaError(
                "the result is a comparison; use it inside where(condition, value, otherwise)", self.text
            )
        varies = labels_of(result.expr.xreplace(self.inlined)) - result.pixels
        axes = {axis: span for axis, span in result.axes.items() if axis in varies}
        if axes:
            span = min(axes.values())
            name = self.text.split("\n")[span.line][span.start : span.end]
            left = " and ".join(map(_axis_name, sorted(axes)))
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

    # -- Expressions ---------------------------------------------------------------------------------------------

    def value(self, node: ast.expr) -> _Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(node, f"more than {MAX_DEPTH} nested operations")
        try:
            method = getattr(self, f"parse_{type(node).__name__}", None)
            if method is None:
                raise self.error(node, f"{self.describe(node)} is not part of the formula language")
            value: _Value = method(node)
        finally:
            self.depth -= 1
        if value.expr.has(sp.zoo, sp.nan, sp.I):
            raise self.error(node, "this has no real, defined value (a division by 0, inf - inf, or a root of -1)")
        return value

    def parse_Constant(self, node: ast.Constant) -> _Value:
        if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            raise self.error(node, f"{self.describe(node)} is not part of the formula language; numbers are real")
        try:
            finite = math.isfinite(float(node.value))
        except OverflowError:
            finite = False
        if not finite:
            raise self.error(node, "the number is too large for float64; write inf for infinity")
        return _Value(sp.Integer(node.value) if isinstance(node.value, int) else sp.Float(node.value))

    def parse_Name(self, node: ast.Name) -> _Value:
        name, span = node.id, self.span(node)
        if name in self.lines:
            line = self.lines[name]
            return dataclasses.replace(line, axes=dict.fromkeys(line.axes, span))
        if name in self.operands:
            operand = self.operands[name]
            self.used.setdefault(operand, span)
            if operand.bank is not None:
                raise self.error(node, f"{name} is a bank of {operand.bank} weights; name one of them, {name}[0]")
            return _Value(operand, dict.fromkeys(operand.labels, span))
        if name in self.bound:
            return _Value(sp.Integer(self.bound[name]))
        if name in CONSTANTS:
            return _Value(CONSTANTS[name])
        if name in FUNCTIONS or name in WINDOW_FUNCTIONS:
            raise self.error(node, f"{name} is a function; call it: {name}(...)")
        raise self.unknown(node, name, [*self.lines, *self.operands, *self.bound, *CONSTANTS])

    def parse_Subscript(self, node: ast.Subscript) -> _Value:
        operand = self.operands.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if operand is None:
            raise self.error(node.value, f"{self.source(node.value)} takes no index; only inputs and weights do")
        self.used.setdefault(operand, self.span(node))
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        try:
            value = indexed(operand, tuple(self.value(item).expr for item in items))
        except FormulaError as error:
            raise (error if error.span else self.error(node, error.message)) from None
        pixels = value.labels if isinstance(value, Access) and value.shift is None else ()
        return _Value(value, dict.fromkeys(value.labels, self.span(node)), pixels=frozenset(pixels))

    def parse_UnaryOp(self, node: ast.UnaryOp) -> _Value:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Invert):
            if isinstance(value.expr, sp.Expr):
                raise self.error(node.operand, "~ takes a condition, such as x > 0")
            return dataclasses.replace(value, expr=sp.Not(value.expr), size=value.size + 1)
        if isinstance(node.op, ast.Not):
            raise self.error(node, "write ~(condition) instead of not")
        self.number(node.operand, value)
        expr = -value.expr if isinstance(node.op, ast.USub) else value.expr
        return dataclasses.replace(value, expr=expr, size=value.size + 1)

    def parse_BinOp(self, node: ast.BinOp) -> _Value:
        left, right = self.value(node.left), self.value(node.right)
        if type(node.op) in _LOGIC:
            for side, value in ((node.left, left), (node.right, right)):
                if isinstance(value.expr, sp.Expr):
                    raise self.error(side, "& and | take conditions in brackets, such as (x > 0) & (w > 0)")
            return self.join(node, _LOGIC[type(node.op)], left, right)
        if type(node.op) not in _BINARY:
            raise self.error(node, f"{self.describe(node.op)} is not part of the formula language; it has + - * / **")
        for side, value in ((node.left, left), (node.right, right)):
            self.number(side, value)
        if isinstance(node.op, ast.Pow):
            self.check_power(node, left.expr, right.expr)
        return self.join(node, _BINARY[type(node.op)], left, right)

    def check_power(self, node: ast.BinOp, base: sp.Basic, exponent: sp.Basic) -> None:
        # SymPy works numbers out exactly: 9**9**9 would have 370 million digits.
        if exponent.is_number:
            size = abs(float(exponent))  # type: ignore[arg-type]
            if base.is_number:
                size *= abs(math.log2(abs(float(base)))) / 10 if float(base) != 0 else 0  # type: ignore[arg-type]
            if size > MAX_EXPONENT:
                raise self.error(node.right, f"the power is too large; exponents go up to {MAX_EXPONENT}")

    def parse_Compare(self, node: ast.Compare) -> _Value:
        sides = [node.left, *node.comparators]
        values = [self.number(side, self.value(side)) for side in sides]
        parts = []
        for op, left, right in zip(node.ops, values, values[1:]):
            if type(op) not in _COMPARE:
                raise self.error(node, "comparisons are < <= > >= == !=")
            parts.append(_COMPARE[type(op)](left.expr, right.expr))
        return self.join(node, lambda *_: sp.And(*parts), *values)

    def parse_Call(self, node: ast.Call) -> _Value:
        if not isinstance(node.func, ast.Name):
            raise self.error(node.func, f"{self.describe(node.func)} cannot be called; functions have plain names")
        name = node.func.id
        if name in WINDOW_FUNCTIONS and not (name in ("max", "min") and len(node.args) > 1):
            return self.reduction(node, WINDOW_FUNCTIONS[name])
        if name == "Sum":
            return self.unrolled(node)
        elementwise = {"max": "maximum", "min": "minimum"}.get(name, name)
        if elementwise not in FUNCTIONS:
            raise self.unknown(node.func, name, [*FUNCTIONS, *WINDOW_FUNCTIONS, "Sum"], "function")
        record = FUNCTIONS[elementwise]
        least, most = (2, 16) if name in ("max", "min") else record.arity
        self.check_arity(node, name, least, most)
        values = [self.value(argument) for argument in node.args]
        for index, (argument, value) in enumerate(zip(node.args, values)):
            if name == "where" and index == 0:
                if isinstance(value.expr, sp.Expr):
                    raise self.error(argument, "the first argument of where is a condition, such as x > 0")
            else:
                self.number(argument, value)
        if name == "custom_grad":
            values += self.slopes(node)
            if not values[0].axes and any(value.axes for value in values):
                message = (
                    "slopes belong to taps, and this has one value per window; put custom_grad inside the reduction"
                )
                raise self.error(node, message)
        elif node.keywords:
            raise self.error(node.keywords[0].value, f"{name}() takes no keyword {node.keywords[0].arg}=")
        if name in ("max", "min"):
            return self.join(node, record.native or record.build, *values)
        value = self.join(node, record.build, *values)
        if record.domain and all(each.expr.is_number for each in values):
            arguments = [torch.tensor(float(each.expr), dtype=torch.float64) for each in values]  # type: ignore[arg-type]
            if not math.isfinite(record.reference(*arguments)):
                raise self.error(node, "this has no finite value")
        return dataclasses.replace(value, expr=numeric(value.expr))

    def slopes(self, node: ast.Call) -> list[_Value]:
        """The pairs of operand and slope in custom_grad(value, x=slope, w=slope)."""
        if not node.keywords:
            raise self.error(node, "custom_grad(value, x=..., w=...) names the operands whose slopes it gives")
        pairs = []
        for item in node.keywords:
            name = item.arg or ""
            if name not in self.operands or not self.operands[name].is_tensor or self.operands[name].bank:
                raise self.error(item.value, f"custom_grad takes slopes for operands, x=... or w=..., not {name}=")
            operand = self.operands[name]
            span = self.span(item.value)
            self.used.setdefault(operand, span)
            pairs += [
                _Value(operand, dict.fromkeys(operand.labels, span)),
                self.number(item.value, self.value(item.value)),
            ]
        return pairs

    def unrolled(self, node: ast.Call) -> _Value:
        """Sum(expression, (k, first, last)), term by term."""
        if (
            len(node.args) != 2
            or node.keywords
            or not isinstance(node.args[1], ast.Tuple)
            or len(node.args[1].elts) != 3
        ):
            raise self.error(node, "Sum(expression, (k, first, last)) takes an expression and a range of whole numbers")
        variable, *ends = node.args[1].elts
        if not isinstance(variable, ast.Name):
            raise self.error(variable, "the first of the three is a new name, such as k")
        name = variable.id
        check_name(name, self.text, self.span(variable))
        if name in self.operands or name in self.lines or name in self.bound:
            raise self.error(variable, f"{name!r} is defined twice; a name is given once")
        first, last = (self.value(end).expr for end in ends)
        for end, number in zip(ends, (first, last)):
            if not number.is_Integer or abs(number) > MAX_SIZE:  # type: ignore[operator]
                raise self.error(end, "the range runs over whole numbers, such as (k, 0, 7)")
        terms = []
        for number in range(int(first), int(last) + 1):  # type: ignore[arg-type]
            self.bound[name] = number
            terms.append(self.number(node.args[0], self.value(node.args[0])))
            if sum(term.size for term in terms) > MAX_SIZE:
                raise self.error(node, f"the sum has more than {MAX_SIZE} operations with all its terms written out")
        self.bound.pop(name, None)
        return self.join(node, sp.Add, *terms)

    def reduction(self, node: ast.Call, record: Reduction) -> _Value:
        name = record.name
        keywords = {item.arg: item.value for item in node.keywords}
        allowed = ["dim"] + ["weight"] * record.weighted
        for item in node.keywords:
            if item.arg not in allowed:
                raise self.error(item.value, f"{name}() takes no keyword {item.arg}=; it takes {' and '.join(allowed)}")
        self.check_arity(node, name, *record.arity)
        dims = self.dims(keywords["dim"]) if "dim" in keywords else TAP_AXES
        arguments = [*node.args, *([keywords["weight"]] if "weight" in keywords else [])]
        values = [self.spread(self.number(argument, self.value(argument))) for argument in arguments]
        if name == "quantile":
            self.check_quantile(node.args[1], values[1])
        if arguments:
            self.check_axes(node, name, values, dims, "dim" in keywords)
        value = self.join(node, record.cls.over(dims), *values)
        span = self.span(node)
        before = frozenset(value.axes)
        after = [axis for axis in before if axis[0] not in dims] if record.reduces else domain(before, dims).labels
        lacks = value.lacks | (dims if record.reduces and dims != TAP_AXES else frozenset())
        return _Value(value.expr, dict.fromkeys(after, span), value.size, value.pixels.intersection(after), lacks)

    def dims(self, node: ast.expr) -> frozenset[str]:
        items = node.elts if isinstance(node, ast.Tuple) else [node]
        names = [item.id if isinstance(item, ast.Name) else "" for item in items]
        if not names or not TAP_AXES.issuperset(names):
            raise self.error(node, "dim is c (channels), t (taps) or (c, t)")
        return frozenset(names)

    def check_axes(self, node: ast.Call, name: str, values: list[_Value], dims: frozenset[str], given: bool) -> None:
        """Refuse a reduction over an axis that its argument does not have."""
        shown = self.source(node.args[0])
        present = {axis[0] for value in values for axis in value.axes}
        if not present:
            raise self.error(
                node.args[0],
                f"{shown} has one value per window, so there is nothing for {name} to run over; multiply by N (the "
                f"number of taps and channels) or by total(1, x) (of those that are not ignored) if that is meant",
            )
        lacking = sorted(dims - present)
        reduced = {axis for value in values for axis in value.lacks} | (
            {"t"} if all(value.pixels.issuperset(value.axes) for value in values) else set()
        )
        if lacking and (given or reduced.intersection(lacking)):
            has = sorted(present)
            raise self.error(
                node.args[0],
                f"{shown} does not vary over {' and '.join(map(_axis_name, lacking))}, so {name} cannot run over it; "
                f"write {name}(..., dim={has[0] if len(has) == 1 else '(c, t)'})",
            )

    def check_quantile(self, node: ast.expr, value: _Value) -> None:
        symbols = value.expr.free_symbols
        if symbols and not (isinstance(value.expr, Operand) and value.expr.role == "const"):
            raise self.error(node, "the second argument of quantile is a number or a const between 0 and 1")
        if not symbols and not 0 <= float(value.expr) <= 1:  # type: ignore[arg-type]
            raise self.error(node, "the second argument of quantile lies between 0 and 1")

    def check_arity(self, node: ast.Call, name: str, least: int, most: int) -> None:
        if not least <= len(node.args) <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}"
            raise self.error(node, f"{name}() takes {allowed} argument{'s' * (most > 1)}, not {len(node.args)}")

    def spread(self, value: _Value) -> _Value:
        """The value with the axes that SymPy has simplified away: x - x is 0, and still there are N of them."""
        lost = frozenset(value.axes) - labels_of(value.expr.xreplace(self.inlined))
        if not lost:
            return value
        return dataclasses.replace(value, expr=spread(value.expr, *domain(lost).representatives))

    # -- Small parts ---------------------------------------------------------------------------------------------

    def join(self, node: ast.expr, build: Callable[..., sp.Basic], *values: _Value) -> _Value:
        """`build` of the values' expressions, unless it would grow too large or SymPy refuses it."""
        size = 1 + sum(value.size for value in values)
        if size > MAX_SIZE:
            raise self.error(node, f"the formula has more than {MAX_SIZE} operations with all its lines put in")
        axes: dict[str, Span] = {}
        for value in values:
            for axis, span in value.axes.items():
                axes[axis] = min(span, axes.get(axis, span))
        try:
            expr = build(*(value.expr for value in values))
        except (ValueError, TypeError) as error:
            raise self.error(node, f"SymPy refuses this: {error}") from None
        # An axis is one of centre pixels where nothing but centre pixels brought it in.
        pixels = [axis for axis in axes if all(axis in value.pixels for value in values if axis in value.axes)]
        lacks = frozenset().union(*(value.lacks for value in values)) if values else frozenset()
        return _Value(expr, axes, size, frozenset(pixels), lacks - {axis[0] for axis in axes})

    def number(self, node: ast.expr, value: _Value) -> _Value:
        if not isinstance(value.expr, sp.Expr):
            raise self.error(node, "a comparison is a condition, not a number; use where(condition, 1, 0)")
        return value

    def span(self, node: ast.AST) -> Span:
        line, start = node.lineno - 1, node.col_offset  # type: ignore[attr-defined]
        one_line = node.end_lineno == node.lineno  # type: ignore[attr-defined]
        end = node.end_col_offset if one_line else len(self.text.split("\n")[line])  # type: ignore[attr-defined]
        return Span(line, start, end)

    def source(self, node: ast.AST) -> str:
        source = ast.get_source_segment(self.text, node) or "this"
        return source if len(source) < 40 else f"{source[:36]}..."

    def describe(self, node: ast.AST) -> str:
        names = {
            "Attribute": "attribute access",
            "Lambda": "a lambda",
            "ListComp": "a comprehension",
            "GeneratorExp": "a comprehension",
            "IfExp": "if ... else (use where)",
            "BoolOp": "and / or (use & and | inside where)",
            "Mod": "the remainder %",
            "FloorDiv": "the division //",
            "MatMult": "the product @",
            "BitXor": "^ (a power is **)",
            "Constant": f"the constant {getattr(node, 'value', '')!r:.40}",
        }
        return names.get(type(node).__name__, f"{type(node).__name__!r}")

    def unknown(self, node: ast.expr, name: str, known: list[str], what: str = "name") -> FormulaError:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"declare it in a line of its own, {name}: param = 1"
        if what == "function" and not close:
            hint = f"the functions are {', '.join(sorted(known))}"
        return self.error(node, f"unknown {what} {name!r}; {hint}")

    def error(self, node: ast.AST, message: str) -> FormulaError:
        return FormulaError(message, self.text, self.span(node))
