"""The names of the formula language, as SymPy symbols.

`x` is the input under the tap, `w` the weight of the tap and `b` the bias of the filter.  `const`, `param`,
`weight` and `input` declare more operands.  Axes are named `c` (input channel within the group), `t` (tap) and
`o` (output channel).
"""

from __future__ import annotations

from typing import Any, ClassVar

import sympy as sp
from sympy.utilities.iterables import NotIterable  # SymPy must not take what has __getitem__ for a sequence

from ..errors import FormulaError

#: The axes a declaration or a reduction may name, in the order in which shapes list them.
AXES = ("o", "c", "t")
#: The axes that a reduction removes.  A value without them belongs to the window, not to a tap.
TAP_AXES = frozenset("ct")


class Operand(sp.Symbol, NotIterable):  # type: ignore[misc]
    """A symbol of a formula together with its declaration.

    Args:
        name: the name used in the formula and, for operands given at call time, as keyword.
        role: one of `ROLES`.
        axes: the axes along which the value varies, for `param`; the other roles fix their own.
        init: the value of a `const` (None: it must be given when the layer is made), the initial value of a `param`.
    """

    #: role: the axes it varies along (besides batch and pixels).  The order is the order of printing.
    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {
        "input": ("c", "t"),
        "weight": ("o", "c", "t"),
        "bias": ("o",),
        "param": (),
        "const": (),
        "offset": ("t",),
        "size": (),
    }

    role: str
    axes: tuple[str, ...]
    init: float | None

    def __new__(
        cls, name: str, role: str = "input", axes: tuple[str, ...] | None = None, init: float | None = None
    ) -> Operand:
        obj: Operand = sp.Symbol.__xnew__(cls, name, real=True)
        obj.role = role
        obj.axes = cls.ROLES[role] if axes is None else tuple(a for a in AXES if a in axes)
        obj.init = init
        return obj

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.name, self.role, self.axes, self.init), {}

    def __getstate__(self) -> None:
        return None

    def _hashable_content(self) -> tuple[Any, ...]:
        # SymPy sorts these, so None must not meet a float.
        return (*super()._hashable_content(), self.role, self.axes, str(self.init))

    def sort_key(self, order: Any = None) -> Any:
        # Sums print x first, then w, then the rest: the order in which people write them.
        rank = (*self.ROLES,).index(self.role)
        return self.class_key(), (1, (f"{rank}{self.name}",)), sp.S.One.sort_key(), sp.S.One

    def __getitem__(self, index: Any) -> sp.Expr:
        raise FormulaError(
            f"indexing is not supported yet: {self.name}[{index}]; write {self.name} for the tap's value"
        )

    @property
    def tap_axes(self) -> frozenset[str]:
        """The axes, among those a reduction removes, along which the operand varies."""
        return TAP_AXES.intersection(self.axes)

    @property
    def is_tensor(self) -> bool:
        """Whether the operand is a tensor that has a gradient."""
        return self.role in ("input", "weight", "bias", "param")

    @property
    def declaration(self) -> str:
        """The operand's line in a formula's text, empty for a name that the language knows by itself."""
        if self == BUILTIN.get(self.name):
            return ""
        index = f"[{', '.join(self.axes)}]" if self.role == "param" and self.axes else ""
        value = "" if self.init is None else f" = {self.init!r}"
        return f"{self.name}: {self.role}{index}{value}"


x = Operand("x", "input")
w = Operand("w", "weight")
b = Operand("b", "bias")
#: The tap's offset from the centre of the window in input pixels, dilation included; the last axis is `dx`.
dx, dy, dz = (Operand(name, "offset") for name in ("dx", "dy", "dz"))
#: Taps per window, channels per group, and their product.
T, C, N = (Operand(name, "size") for name in "TCN")
#: Axes, for `param(..., per=o)`.
c, t, o = (sp.Symbol(name, integer=True, nonnegative=True) for name in "cto")

#: The operands that need no declaration.
BUILTIN: dict[str, Operand] = {operand.name: operand for operand in (x, w, b, dx, dy, dz, T, C, N)}


def weight(name: str) -> Operand:
    """One more weight per tap, shaped like `w`: `[out_channels, in_channels / groups, *kernel_size]`.

    >>> import symconv as sc
    >>> print(sc.Kernel(sc.sum(sc.w * (sc.x - sc.weight("v")))).text)
    v: weight
    sum(w*(x - v))
    """
    return _declared(name, "weight")


def input(name: str) -> Operand:
    """One more input seen through the same window, with as many channels as `x`, or one that all share."""
    return _declared(name, "input")


def const(name: str, value: float | None = None) -> Operand:
    """A number fixed when the layer is made; `Conv2d(..., name=value)` changes it.

    >>> import symconv as sc
    >>> beta = sc.const("beta", 20)
    >>> print(sc.Kernel(sc.logsumexp(beta * (sc.x + sc.w)) / beta).text)
    beta: const = 20.0
    logsumexp(beta*(x + w))/beta
    """
    return _declared(name, "const", init=None if value is None else float(value))


def param(name: str, per: Any = (), init: float = 1.0) -> Operand:
    """A learned number for the layer, or `per` filter (`o`), channel (`c`) and tap (`t`), or several of them.

    Shapes: `[]`; `[out_channels]` for `o`; `[in_channels / groups]` for `c`; `[*kernel_size]` for `t`; several
    in this order.

    >>> import symconv as sc
    >>> gamma = sc.param("gamma", per=sc.o, init=0.1)
    >>> print(sc.Kernel(sc.exp(-gamma * sc.sum((sc.x - sc.w)**2))).text)
    gamma: param[o] = 0.1
    exp(-gamma*sum((x - w)**2))
    """
    axes = tuple(str(axis) for axis in (per if isinstance(per, (tuple, list)) else (per,)))
    for axis in axes:
        if axis not in AXES:
            raise FormulaError(f"param({name!r}, per={axis}): the axes are o (filter), c (channel) and t (tap)")
    return _declared(name, "param", axes, float(init))


def ordered_terms(expr: sp.Expr) -> list[sp.Expr]:
    """The terms of a sum as people write them: those with x first, then w, then the other operands, then numbers."""
    terms = expr.as_ordered_terms() if expr.is_Add else [expr]
    return sorted(terms, key=lambda term: min((symbol.sort_key()[1] for symbol in term.free_symbols), default=(2,)))


def _declared(name: str, role: str, axes: tuple[str, ...] | None = None, init: float | None = None) -> Operand:
    from .parser import check_name  # the parser owns the rule for names, and imports this module

    check_name(name)
    return Operand(name, role, axes, init)
