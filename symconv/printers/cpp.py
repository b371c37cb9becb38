"""Prints lowered expressions as C++ on vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy as sp
from sympy.printing.precedence import PRECEDENCE

from ..functions import BY_CLASS, typed
from ..language.symbols import Access
from ..lift import Lifted
from ..operations import PERIODIC
from .common import SourcePrinter, is_exact

#: Words of C++ and of the headers that a formula may use as a name.
TAKEN = frozenset(
    """
    alignas alignof and asm auto bool break case catch char class compl concept const constexpr consteval constinit
    continue decltype default delete do double dynamic_cast else enum explicit export extern false float for friend goto
    if inline int long mutable namespace new noexcept not nullptr operator or private protected public register
    reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor
    bitand bitor and_eq or_eq not_eq xor_eq char8_t char16_t char32_t co_await co_return co_yield
    real integer vec ivec storage splat splat_int load store load_int store_int any total converted square rsqrt ipow
    infinity not_a_number less always each fused bits_of float_of spread meet lane vectors tiles gathered
    element natural threadIdx blockIdx blockDim gridDim is_window rounded copy fill read write add clear pack at inside
    range
    unix linux alloca offsetof strdupa strndupa issubnormal math_errhandling be16toh be32toh be64toh le16toh le32toh
    le64toh htobe16 htobe32 htobe64 htole16 htole32 htole64
    """.split()
)


def identifier(name: str) -> str:
    """A name of a formula as a name in C++: one more `_` if it is taken, may be a type's, or ends in one."""
    return f"{name}_" if name in TAKEN or (name[0].isupper() and len(name) > 1) or name.endswith("_") else name


class CppPrinter(SourcePrinter):
    """Prints lowered SymPy expressions as C++; symbols are vectors, numbers are of the type `real`.

    Args:
        names: the C++ names of symbols whose own name is none.
        ranged: whether periodic functions are told of the `range` of their arguments.
    """

    #: What is lifted is mostly a function, and those come last: products overflow or not as they would without lifting.
    last = (Access, Lifted)

    def __init__(self, names: Mapping[sp.Symbol, str] | None = None, ranged: bool = False) -> None:
        super().__init__()
        self.names = names or {}
        self.ranged = ranged

    def result(self, expr: sp.Expr) -> str:
        """An expression that is a vector, also where it is a number."""
        text = self.doprint(expr)
        return f"splat({text})" if expr.is_number else str(text)

    def _print_Symbol(self, expr: sp.Symbol) -> str:
        return identifier(self.names.get(expr, str(expr.name)))

    def _print(self, expr: Any, **kwargs: Any) -> str:
        if isinstance(expr, sp.Expr) and expr.is_number and not expr.is_Rational and expr not in (sp.oo, -sp.oo):
            return f"real({float(expr)!r})"
        return str(super()._print(expr, **kwargs))

    def _print_Function(self, expr: sp.Function) -> str:
        if type(expr) not in BY_CLASS:
            return self.emptyPrinter(expr)
        if isinstance(expr, typed):
            return f"splat({self._print(expr.args[0])})"
        name = BY_CLASS[type(expr)].name
        range_ = ["range"] if self.ranged and name in PERIODIC else []
        return f"{name}({', '.join([*map(self.result, expr.args), *range_])})"

    def _print_Pow(self, expr: sp.Pow, rational: bool = False) -> str:
        base = self.result(expr.base)
        spelled = {2: "square({})", sp.Rational(1, 2): "sqrt({})", sp.Rational(-1, 2): "rsqrt({})"}
        if expr.exp in spelled:
            return spelled[expr.exp].format(base)
        if expr.exp == -1:
            return f"real(1)/{self.parenthesize(expr.base, PRECEDENCE['Pow'])}"
        if expr.exp.is_Integer:
            return f"ipow<{expr.exp}>({base})"
        return f"pow({base}, splat(real({float(expr.exp)!r})))"

    def _print_Integer(self, expr: sp.Integer) -> str:
        return f"real({expr})" if is_exact(expr) else self._print_Float(expr)

    def _print_Rational(self, expr: sp.Rational) -> str:
        return f"(real({expr.p})/real({expr.q}))" if is_exact(expr) else self._print_Float(expr)

    def _print_Float(self, expr: sp.Expr) -> str:
        return f"real({float(expr)!r})"

    def _print_Infinity(self, expr: sp.Expr) -> str:
        return "infinity"
