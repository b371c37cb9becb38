"""Rewriting of expressions: to twins whose derivatives can be computed and back, to numbers, to what people read."""

from __future__ import annotations

import functools
from collections.abc import Callable

import sympy as sp
import torch

from .functions import (
    BY_CLASS,
    BY_SYMPY_CLASS,
    Pointwise,
    custom_grad,
    detach,
    finite,
    less,
    maximum,
    minimum,
    positive,
    power,
    power_log,
    power_slope,
    reciprocal,
    share,
    shift,
    ste,
    where,
)
from .language.symbols import ordered_terms


def kinked(expr: sp.Expr) -> sp.Expr:
    """`expr` with SymPy's `Abs`, `sign`, `Max`, ... replaced by their twins, whose derivatives can be computed."""

    def twin(node: sp.Basic) -> sp.Basic:
        if isinstance(node, (sp.Max, sp.Min)):
            pair = maximum if isinstance(node, sp.Max) else minimum
            return functools.reduce(pair, sorted(node.args, key=sp.default_sort_key))
        if isinstance(node, sp.Piecewise):
            *cases, (last, condition) = node.args
            whole = last if condition == sp.true else where(condition, last, sp.nan)
            for value, condition in reversed(cases):
                whole = where(condition, value, whole)
            return whole
        if isinstance(node, sp.Pow):
            return node if node.exp.is_Number or node.is_number else power(*node.args)
        return BY_SYMPY_CLASS[type(node)].cls(oriented(node.args[0]) if isinstance(node, sp.Abs) else node.args[0])

    classes = (*(cls for cls in BY_SYMPY_CLASS if cls is not sp.Pow), sp.Piecewise, sp.Pow)
    return expr.replace(lambda node: isinstance(node, classes), twin) if expr.has(*classes) else expr


def numeric(node: sp.Basic) -> sp.Basic:
    """A function of numbers as a number, for functions of our own; anything else as it is."""
    if not isinstance(node, Pointwise) or not node.args or not all(arg.is_number for arg in node.args):
        return node
    arguments = [torch.tensor(float(argument), dtype=torch.float64) for argument in node.args]
    return sp.Float(float(BY_CLASS[type(node)].reference(*arguments)))


def oriented(expr: sp.Expr) -> sp.Expr:
    """`expr` or `-expr`, whichever begins with a positive term: SymPy turns abs(x - w) into Abs(w - x)."""
    return -expr if expr.is_Add and ordered_terms(expr)[0].could_extract_minus_sign() else expr


def to_sympy(expr: sp.Expr) -> sp.Expr:
    """`expr` with the twins replaced by SymPy's own classes: the inverse of `kinked`."""
    builds = {record.cls: record.build for record in BY_SYMPY_CLASS.values()}
    return _rebuilt(expr, builds)


def readable(expr: sp.Expr) -> sp.Expr:
    """`expr` as a mathematician would write it: without the guards that its derivatives carry at single points."""
    half = sp.Rational(1, 2)
    plain: dict[type[sp.Basic], Callable[..., sp.Expr]] = {
        share: lambda a, b: sp.Heaviside(a - b, half),
        positive: lambda z: sp.Heaviside(z, 0),
        reciprocal: lambda r: 1 / r,
        shift: lambda r: r,
        finite: lambda r: r,
        less: lambda a, b: a - b,
        power_slope: lambda a, p: p * a ** (p - 1),
        power_log: lambda a, p: a**p * sp.log(a),
    }
    return _rebuilt(to_sympy(expr), plain)


def learned(expr: sp.Expr) -> sp.Expr:
    """The part of `expr` that gradients see: gradients by choice in place of the functions they stand for."""
    seen: dict[type[sp.Basic], Callable[..., sp.Expr]] = {
        ste: lambda hard, soft: soft,
        detach: lambda z: sp.S.Zero,
        custom_grad: lambda f, *rest: sp.Add(*rest[1::2]),
    }
    return _rebuilt(expr, seen)


def _rebuilt(expr: sp.Expr, builds: dict[type[sp.Basic], Callable[..., sp.Expr]]) -> sp.Expr:
    return expr.replace(lambda node: type(node) in builds, lambda node: builds[type(node)](*node.args))
