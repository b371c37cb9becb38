"""From text to a `Formula`, without evaluating anything.

`ast.parse` gives a syntax tree; a whitelist of its nodes is turned into SymPy expressions, and each value carries
the tap axes along which it still varies, with the place in the text where each axis came in.  Whatever is not on
the list is refused with a caret under it.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

import sympy as sp
import torch

from ..errors import FormulaError, Span
from ..functions import FUNCTIONS
from ..reductions import REDUCTIONS, TRANSFORMS
from .formula import Formula, in_order, line_symbol
from .symbols import AXES, BUILTIN, Operand

#: Caps that keep every formula quick to read, differentiate and print.
MAX_LENGTH, MAX_DEPTH, MAX_SIZE, MAX_EXPONENT = 10_000, 64, 5_000, 100

CONSTANTS: dict[str, sp.Expr] = {"pi": sp.pi, "inf": sp.oo}
WINDOW_FUNCTIONS = REDUCTIONS | TRANSFORMS
#: Names that a declaration may not take: they mean something already, here, in PyTorch or in generated code.
RESERVED = frozenset((*FUNCTIONS, *WINDOW_FUNCTIONS, *BUILTIN, *CONSTANTS, *AXES, "Sum", "y")) | frozenset(
    """
    bias weight input param const field kernel init device dtype backend in_channels out_channels
    kernel_size stride padding dilation groups padding_mode padding_value
    grad_output layout block kept given needs gradients names name value output at_taps at_windows like position count
    forward backward combine gradient_tap gradient_windows torch math itertools zip tuple
    Layout Block Tap Tensor Product FirstMax LogSumExp ImageGradient BankGradient Iterator Sequence NamedTuple ClassVar
    """.split()
)
#: Names that generated code numbers.
GENERATED = re.compile(r"(sum|product|max|argmax|logsumexp|value)_\d+|running_.*|(forward|backward|gradient)_.*")


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
    text = textwrap.dedent(text).strip()
    return _Parser(text).formula(_syntax_tree(text))


def check_name(name: str, text: str = "", span: Span | None = None) -> None:
    """Refuse a name that cannot be declared."""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name.startswith("_"):
        raise FormulaError(
            f"{name!r} is not a usable name; start with a letter, then letters, digits and _", text, span
        )
    if name in RESERVED or GENERATED.fullmatch(name):
        raise FormulaError(f"the name {name!r} is taken; choose another one", text, span)


def _syntax_tree(text: str) -> ast.Module:
    """`ast.parse` behind checks that keep its own recursion short."""
    if not text:
        raise FormulaError("the formula is empty; an example is 'sum(w*x) + b'")
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"the formula has {len(text)} characters; at most {MAX_LENGTH} are allowed")
    depth = 0
    for number, line in enumerate(text.splitlines()):
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
        return ast.parse(text)
    except SyntaxError as error:
        row, start = (error.lineno or 1) - 1, max((error.offset or 1) - 1, 0)
        end = (error.end_offset or 0) - 1 if error.end_lineno == error.lineno else start + 1
        raise FormulaError(f"syntax error: {error.msg}", text, Span(row, start, max(end, start + 1))) from None
    except (RecursionError, MemoryError, ValueError):
        raise FormulaError("the formula is nested too deeply", text, Span(0, 0, 1)) from None


@dataclass(frozen=True)
class _Value:
    """An expression, where each tap axis came into it, and how many nodes it has with all lines put in."""

    expr: sp.Basic
    axes: dict[str, Span] = field(default_factory=dict)
    size: int = 1


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


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.operands = dict(BUILTIN)
        self.lines: dict[str, _Value] = {}
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
        return Formula(tuple(named), result.expr, in_order(self.used))

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
        self.lines[name] = _Value(line_symbol(name), value.axes, value.size)
        return name, value.expr

    def declare(self, statement: ast.AnnAssign) -> None:
        target, annotation = statement.target, statement.annotation
        if not isinstance(target, ast.Name):
            raise self.error(target, "a declaration names one operand: beta: const = 5")
        check_name(target.id, self.text, self.span(target))
        if target.id in self.operands or target.id in self.lines:
            raise self.error(target, f"{target.id!r} is defined twice; a name is given once")
        base = annotation.value if isinstance(annotation, ast.Subscript) else annotation
        kind = base.id if isinstance(base, ast.Name) else ""
        if kind not in ("const", "param", "weight", "input"):
            known = ", ".join(("const", "param", "weight", "input"))
            raise self.error(annotation, f"unknown declaration {self.source(annotation)!r}; the kinds are {known}")
        axes = None
        if isinstance(annotation, ast.Subscript):
            axes = self.param_axes(kind, annotation)
        init = None if kind != "param" else 1.0
        if statement.value is not None:
            if kind not in ("const", "param"):
                raise self.error(statement.value, f"a {kind} is a tensor given by the layer; it takes no value here")
            number = self.value(statement.value).expr
            if not number.is_number:
                raise self.error(statement.value, f"the value of a {kind} must be a number")
            init = float(number)  # type: ignore[arg-type]
        self.operands[target.id] = Operand(target.id, kind, axes, init)

    def param_axes(self, kind: str, annotation: ast.Subscript) -> tuple[str, ...]:
        index = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if kind != "param":
            raise self.error(
                annotation.slice, f"{self.source(annotation)!r} is not supported yet; only param takes axes"
            )
        axes = [item.id if isinstance(item, ast.Name) else "" for item in index]
        for axis, item in zip(axes, index):
            if axis not in AXES or axes.count(axis) > 1:
                raise self.error(item, "param[...] takes the axes o (filter), c (channel) and t (tap), each once")
        return tuple(axes)

    # -- Checks on the whole -------------------------------------------------------------------------------------

    def check_level(self, result: _Value) -> None:
        if not isinstance(result.expr, sp.Expr):
            raise FormulaError(
                "the result is a comparison; use it inside where(condition, value, otherwise)", self.text
            )
        if result.axes:
            span = min(result.axes.values())
            name = self.text.splitlines()[span.line][span.start : span.end]
            names = {"c": "c (input channel)", "t": "t (tap)"}
            left = " and ".join(names[axis] for axis in sorted(result.axes))
            raise FormulaError(
                f"the result still varies over {left}, because {name} is not inside a reduction; wrap it in one of "
                f"{', '.join(REDUCTIONS)}, for example sum(...)",
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
            return _Value(line.expr, dict.fromkeys(line.axes, span), line.size)
        if name in self.operands:
            operand = self.operands[name]
            self.used.setdefault(operand, span)
            return _Value(operand, dict.fromkeys(operand.tap_axes, span))
        if name in CONSTANTS:
            return _Value(CONSTANTS[name])
        if name in FUNCTIONS or name in WINDOW_FUNCTIONS:
            raise self.error(node, f"{name} is a function; call it: {name}(...)")
        if name in AXES:
            raise self.error(node, f"the axis {name} is not supported in expressions yet")
        raise self.unknown(node, name, [*self.lines, *self.operands, *CONSTANTS])

    def parse_UnaryOp(self, node: ast.UnaryOp) -> _Value:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Invert):
            if isinstance(value.expr, sp.Expr):
                raise self.error(node.operand, "~ takes a condition, such as x > 0")
            return _Value(sp.Not(value.expr), value.axes, value.size + 1)
        if isinstance(node.op, ast.Not):
            raise self.error(node, "write ~(condition) instead of not")
        self.number(node.operand, value)
        return _Value(-value.expr if isinstance(node.op, ast.USub) else value.expr, value.axes, value.size + 1)

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
                size *= abs(math.log2(abs(float(base)))) / 10 if base != 0 else 0  # type: ignore[arg-type]
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
        if node.keywords:
            keywords = ", ".join(f"{item.arg}=" for item in node.keywords)
            raise self.error(node.keywords[0].value, f"{name}() takes no keyword {keywords} yet")
        if name in WINDOW_FUNCTIONS and not (name in ("max", "min") and len(node.args) > 1):
            return self.reduction(node, name)
        elementwise = {"max": "maximum", "min": "minimum"}.get(name, name)
        if elementwise not in FUNCTIONS:
            raise self.unknown(node.func, name, [*FUNCTIONS, *WINDOW_FUNCTIONS], "function")
        record = FUNCTIONS[elementwise]
        least, most = (2, 16) if name in ("max", "min") else record.arity
        if not least <= len(node.args) <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}"
            raise self.error(node, f"{name}() takes {allowed} argument{'s' * (most > 1)}, not {len(node.args)}")
        values = [self.value(argument) for argument in node.args]
        for index, (argument, value) in enumerate(zip(node.args, values)):
            if name == "where" and index == 0:
                if isinstance(value.expr, sp.Expr):
                    raise self.error(argument, "the first argument of where is a condition, such as x > 0")
            else:
                self.number(argument, value)
        if name != "where" and all(value.expr.is_number for value in values):
            arguments = [torch.tensor(float(value.expr), dtype=torch.float64) for value in values]  # type: ignore[arg-type]
            if not math.isfinite(record.reference(*arguments)):
                raise self.error(node, "this has no finite value")
        return self.join(node, record.build, *values)

    def reduction(self, node: ast.Call, name: str) -> _Value:
        record = WINDOW_FUNCTIONS[name]
        wanted = {"count": 0, "others_slope": 2}.get(name, 1)
        if len(node.args) != wanted:
            raise self.error(node, f"{name}() takes {wanted} argument{'s' * (wanted != 1)}, not {len(node.args)}")
        values = [self.number(argument, self.value(argument)) for argument in node.args]
        if values and not values[0].axes:
            raise self.error(
                node.args[0],
                f"{self.source(node.args[0])} has one value per window, so there is nothing for {name} to run over; "
                f"multiply by N (the number of taps and channels) if that is meant",
            )
        value = self.join(node, record.cls, *values)
        span = self.span(node)
        return _Value(value.expr, {} if record.reduces else dict.fromkeys(values[0].axes, span), value.size)

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
        return _Value(expr, axes, size)

    def number(self, node: ast.expr, value: _Value) -> _Value:
        if not isinstance(value.expr, sp.Expr):
            raise self.error(node, "a comparison is a condition, not a number; use where(condition, 1, 0)")
        return value

    def span(self, node: ast.AST) -> Span:
        line, start = node.lineno - 1, node.col_offset  # type: ignore[attr-defined]
        one_line = node.end_lineno == node.lineno  # type: ignore[attr-defined]
        end = node.end_col_offset if one_line else len(self.text.splitlines()[line])  # type: ignore[attr-defined]
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
            "Subscript": "indexing (not supported yet)",
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
