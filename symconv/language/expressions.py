"""Expressions of a formula: from nodes of a syntax tree to SymPy expressions that know their axes.

Each value carries the axes along which it still varies within the window, with the place in the text where each axis
came in.  A node that is not on the whitelist, the methods `parse_...`, is refused with a caret under it.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import sympy as sp
import torch

from ..errors import FormulaError, Span
from ..functions import COMPARISONS, FUNCTIONS, spread
from ..reductions import Reduction
from ..rewrite import numeric
from .axes import domain, labels_of
from .names import CONSTANTS, OF_DERIVATIVES, WINDOW_FUNCTIONS, check_name
from .symbols import BUILTIN, TAP_AXES, Access, Operand, indexed

#: Caps that keep every formula quick to read, differentiate and print.
MAX_DEPTH, MAX_SIZE, MAX_EXPONENT = 64, 5_000, 100
#: What people write for operands, as they are called elsewhere.
MEANT = {"input": "x", "X": "x", "weight": "w", "W": "w", "bias": "b", "B": "b"}
#: And for functions.
MEANT_FUNCTIONS = {"ln": "log", "avg": "mean", "average": "mean", "cosine": "cos", "sine": "sin", "power": "pow"}


@dataclass(frozen=True)
class Term:
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
_COMPARE: dict[type[ast.cmpop], type[sp.Basic]] = {
    ast.Lt: sp.Lt,
    ast.LtE: sp.Le,
    ast.Gt: sp.Gt,
    ast.GtE: sp.Ge,
    ast.Eq: sp.Eq,
    ast.NotEq: sp.Ne,
}


def _undecided(condition: sp.Basic) -> sp.Basic:
    """A condition in which SymPy takes no comparison for the contrary of another: of NaN both are false."""
    return condition.replace(lambda each: type(each) in COMPARISONS, lambda each: COMPARISONS[type(each)](*each.args))


def _either(left: sp.Basic, right: sp.Basic) -> sp.Basic:
    either = sp.Or(left, right)
    return sp.Or(_undecided(left), _undecided(right)) if either is sp.true else either


_LOGIC: dict[type[ast.operator], Callable[[sp.Basic, sp.Basic], sp.Basic]] = {ast.BitAnd: sp.And, ast.BitOr: _either}


def axis_name(axis: str) -> str:
    return {"c": "c (input channel)", "t": "t (tap)"}.get(axis, f"the channels of {axis[2:]}")


class Expressions:
    """Reads expressions in which the names defined so far may occur."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.operands = dict(BUILTIN)
        self.lines: dict[str, Term] = {}
        self.inlined: dict[sp.Symbol, sp.Basic] = {}  # what each line stands for
        self.bound: dict[str, int] = {}  # the variables of Sum(..., (k, 0, 7)) around the place being read
        self.used: dict[Operand, Span] = {}
        self.depth = 0

    def value(self, node: ast.expr) -> Term:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(node, f"more than {MAX_DEPTH} nested operations")
        try:
            method = getattr(self, f"parse_{type(node).__name__}", None)
            if method is None:
                raise self.error(node, f"{self.describe(node)} is not part of the formula language")
            value: Term = method(node)
        finally:
            self.depth -= 1
        self.check_defined(node, value.expr)
        return value

    def check_defined(self, node: ast.expr, expr: sp.Basic) -> None:
        """Refuse an expression with a number in it that is no float64."""
        numbers = [each for each in expr.atoms(sp.Pow, sp.Function) if each.is_number]  # (-1)**(1/3), acos(2)
        if expr.has(sp.zoo, sp.nan, sp.I) or not all(each.is_real and math.isfinite(each) for each in numbers):
            reasons = "a division by 0, inf - inf, a root of -1, an overflow"
            raise self.error(node, f"this has no real, defined value ({reasons})")

    def parse_Constant(self, node: ast.Constant) -> Term:
        if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            raise self.error(node, f"{self.describe(node)} is not part of the formula language; numbers are real")
        try:
            finite = math.isfinite(float(node.value))
        except OverflowError:
            finite = False
        if not finite:
            raise self.error(node, "the number is too large for float64; write inf for infinity")
        return Term(sp.Integer(node.value) if isinstance(node.value, int) else sp.Float(node.value))

    def parse_Name(self, node: ast.Name) -> Term:
        name, span = node.id, self.span(node)
        if name in self.lines:
            line = self.lines[name]
            return dataclasses.replace(line, axes=dict.fromkeys(line.axes, span))
        if name in self.operands:
            operand = self.operands[name]
            self.used.setdefault(operand, span)
            if operand.bank is not None:
                raise self.error(node, f"{name} is a bank of {operand.bank} weights; name one of them, {name}[0]")
            return Term(operand, dict.fromkeys(operand.labels, span))
        if name in self.bound:
            return Term(sp.Integer(self.bound[name]))
        if name in CONSTANTS:
            return Term(CONSTANTS[name])
        if name in FUNCTIONS or name in WINDOW_FUNCTIONS:
            raise self.error(node, f"{name} is a function; call it: {name}(...)")
        raise self.unknown(node, name, [*self.lines, *self.operands, *self.bound, *CONSTANTS])

    def parse_Subscript(self, node: ast.Subscript) -> Term:
        operand = self.operands.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if operand is None:
            raise self.error(node.value, f"{self.source(node.value)} takes no index; only inputs and weights do")
        self.used.setdefault(operand, self.span(node))
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        self.check_index(node, operand)
        try:
            value = indexed(operand, tuple(self.value(item).expr for item in items))
        except FormulaError as error:
            raise (error if error.span else self.error(node, error.message)) from None
        pixels = value.labels if isinstance(value, Access) and value.shift is None else ()
        return Term(value, dict.fromkeys(value.labels, self.span(node)), pixels=frozenset(pixels))

    def check_index(self, node: ast.Subscript, operand: Operand) -> None:
        """Refuse a name in an index that has no value, as a number of a bank has outside of Sum."""
        known = {*self.lines, *self.operands, *self.bound, *CONSTANTS}
        for each in ast.walk(node.slice):
            if isinstance(each, ast.Name) and each.id not in known:
                use = f"an index is [channel, tap], such as {operand.name}[c, 0]"
                if operand.bank is not None:
                    use = f"Sum(..., ({each.id}, 0, {operand.bank - 1})) adds up over all {operand.bank} weights of "
                    use += operand.name
                raise self.error(each, f"the index {each.id!r} has no value; {use}")

    def parse_UnaryOp(self, node: ast.UnaryOp) -> Term:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Invert):
            if isinstance(value.expr, sp.Expr):
                raise self.error(node.operand, "~ takes a condition, such as x > 0")
            return dataclasses.replace(value, expr=sp.Not(_undecided(value.expr)), size=value.size + 1)
        if isinstance(node.op, ast.Not):
            raise self.error(node, "write ~(condition) instead of not")
        self.number(node.operand, value)
        expr = -value.expr if isinstance(node.op, ast.USub) else value.expr
        return dataclasses.replace(value, expr=expr, size=value.size + 1)

    def parse_BinOp(self, node: ast.BinOp) -> Term:
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
            self.check_power(node.right, left.expr, right.expr)
        return self.join(node, _BINARY[type(node.op)], left, right)

    def check_power(self, node: ast.expr, base: sp.Basic, exponent: sp.Basic) -> None:
        # SymPy works numbers out exactly: 9**9**9 would have 370 million digits.
        base, exponent = base.xreplace(self.inlined), exponent.xreplace(self.inlined)
        if exponent.is_number:
            size = abs(float(exponent))  # type: ignore[arg-type]
            if base.is_number:
                size *= abs(math.log2(abs(float(base)))) / 10 if float(base) != 0 else 0  # type: ignore[arg-type]
            if size > MAX_EXPONENT:
                raise self.error(node, f"the power is too large; exponents go up to {MAX_EXPONENT}")

    def parse_Compare(self, node: ast.Compare) -> Term:
        sides = [node.left, *node.comparators]
        values = [self.number(side, self.value(side)) for side in sides]
        parts = []
        for op, left, right in zip(node.ops, values, values[1:]):
            if type(op) not in _COMPARE:
                raise self.error(node, "comparisons are < <= > >= == !=")
            parts.append(self.comparison(_COMPARE[type(op)], left.expr, right.expr))
        return self.join(node, lambda *_: sp.And(*parts), *values)

    def comparison(self, relation: type[sp.Basic], left: sp.Basic, right: sp.Basic) -> sp.Basic:
        """A comparison; of our own where SymPy, to which all names are finite numbers, would decide it."""
        whole = left.xreplace(self.inlined), right.xreplace(self.inlined)
        decided = relation(*whole) in (sp.true, sp.false) and not all(side.is_number for side in whole)
        return (COMPARISONS[relation] if decided else relation)(left, right)

    def parse_Call(self, node: ast.Call) -> Term:
        if not isinstance(node.func, ast.Name):
            plain = f", {node.func.attr}(...)" if isinstance(node.func, ast.Attribute) else ""
            raise self.error(
                node.func, f"{self.describe(node.func)} cannot be called; functions have plain names{plain}"
            )
        name = node.func.id
        for item in node.keywords:
            if item.arg is None:
                raise self.error(item.value, "** before an argument is not part of the formula language")
        if name in WINDOW_FUNCTIONS and not (name in ("max", "min") and len(node.args) > 1):
            return self.reduction(node, WINDOW_FUNCTIONS[name])
        if name == "Sum":
            return self.unrolled(node)
        # SymPy's own spelling of a derivative is read back.
        elementwise = {"max": "maximum", "min": "minimum", "Abs": "abs"}.get(name, name)
        if elementwise not in FUNCTIONS:
            known = {*FUNCTIONS, *WINDOW_FUNCTIONS, "Sum"} - OF_DERIVATIVES
            raise self.unknown(node.func, name, sorted(known), "function")
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
        if name == "pow":
            self.check_power(node.args[1], values[0].expr, values[1].expr)
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
            return self.join(node, record.sympy_class or record.build, *values)
        value = self.join(node, record.build, *values)
        if record.domain and all(each.expr.is_number for each in values):
            arguments = [torch.tensor(float(each.expr), dtype=torch.float64) for each in values]  # type: ignore[arg-type]
            if not math.isfinite(record.reference(*arguments)):
                raise self.error(node, "this has no finite value")
        return dataclasses.replace(value, expr=numeric(value.expr))

    def slopes(self, node: ast.Call) -> list[Term]:
        """The pairs of operand and slope in custom_grad(value, x=slope, w=slope)."""
        if not node.keywords:
            raise self.error(node, "custom_grad(value, x=..., w=...) names the operands whose slopes it gives")
        pairs = []
        for item in node.keywords:
            name = str(item.arg)
            if name not in self.operands or not self.operands[name].is_tensor or self.operands[name].bank:
                raise self.error(item.value, f"custom_grad takes slopes for operands, x=... or w=..., not {name}=")
            operand = self.operands[name]
            span = self.span(item.value)
            self.used.setdefault(operand, span)
            pairs += [
                Term(operand, dict.fromkeys(operand.labels, span)),
                self.number(item.value, self.value(item.value)),
            ]
        return pairs

    def unrolled(self, node: ast.Call) -> Term:
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
                raise self.error(end, f"the range runs over whole numbers of at most {MAX_SIZE}, such as (k, 0, 7)")
        terms = []
        for number in range(int(first), int(last) + 1):  # type: ignore[arg-type]
            self.bound[name] = number
            terms.append(self.number(node.args[0], self.value(node.args[0])))
            if sum(term.size for term in terms) > MAX_SIZE:
                raise self.error(node, f"the sum has more than {MAX_SIZE} operations with all its terms written out")
        self.bound.pop(name, None)
        return self.join(node, sp.Add, *terms)

    def reduction(self, node: ast.Call, record: Reduction) -> Term:
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
        return Term(value.expr, dict.fromkeys(after, span), value.size, value.pixels.intersection(after), lacks)

    def dims(self, node: ast.expr) -> frozenset[str]:
        items = node.elts if isinstance(node, ast.Tuple) else [node]
        names = [item.id if isinstance(item, ast.Name) else "" for item in items]
        if not names or not TAP_AXES.issuperset(names):
            raise self.error(node, "dim is c (channels), t (taps) or (c, t)")
        return frozenset(names)

    def check_axes(self, node: ast.Call, name: str, values: list[Term], dims: frozenset[str], given: bool) -> None:
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
                f"{shown} does not vary over {' and '.join(map(axis_name, lacking))}, so {name} cannot run over it; "
                f"write {name}(..., dim={has[0] if len(has) == 1 else '(c, t)'})",
            )

    def check_quantile(self, node: ast.expr, value: Term) -> None:
        symbols = value.expr.free_symbols
        if symbols and not (isinstance(value.expr, Operand) and value.expr.role == "const"):
            raise self.error(node, "the second argument of quantile is a number or a const between 0 and 1")
        if not symbols and not 0 <= float(value.expr) <= 1:  # type: ignore[arg-type]
            raise self.error(node, "the second argument of quantile lies between 0 and 1")

    def check_arity(self, node: ast.Call, name: str, least: int, most: int) -> None:
        if not least <= len(node.args) <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}"
            of_one = {"maximum": "max", "minimum": "min"}.get(name) if len(node.args) == 1 else None
            hint = f"; over the window it is {of_one}(...)" if of_one else ""
            if name in WINDOW_FUNCTIONS and len(node.args) > most == 1:
                joined = " + ".join(map(self.source, node.args))
                hint = f"; write one expression, such as {name}({joined}), and axes as dim=c or dim=t"
            raise self.error(node, f"{name}() takes {allowed} argument{'s' * (most > 1)}, not {len(node.args)}{hint}")

    def spread(self, value: Term) -> Term:
        """The value with the axes that SymPy has simplified away: x - x is 0, and still there are N of them."""
        lost = frozenset(value.axes) - labels_of(value.expr.xreplace(self.inlined))
        if not lost:
            return value
        return dataclasses.replace(value, expr=spread(value.expr, *domain(lost).representatives))

    # -- Small parts ---------------------------------------------------------------------------------------------

    def join(self, node: ast.expr, build: Callable[..., sp.Basic], *values: Term) -> Term:
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
        return Term(expr, axes, size, frozenset(pixels), lacks - {axis[0] for axis in axes})

    def number(self, node: ast.expr, value: Term) -> Term:
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
        # ReLU is relu; of names that differ only in their case, Sum and sum, the one in lower case.
        spelled = {each.lower(): each for each in sorted(known)}
        meant = (MEANT_FUNCTIONS if what == "function" else MEANT).get(name) or spelled.get(name.lower())
        close = [meant] if meant else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        new = f"the functions are {', '.join(known)}"
        if what == "name":
            new = f"declare it in a line of its own, {name}: param = 1"
        hint = f"did you mean {close[0]!r}?" + f" Else {new}" * (what == "name" and not meant) if close else new
        return self.error(node, f"unknown {what} {name!r}; {hint}")

    def error(self, node: ast.AST, message: str) -> FormulaError:
        return FormulaError(message, self.text, self.span(node))
