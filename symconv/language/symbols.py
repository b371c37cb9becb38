"""The names of the formula language, as SymPy symbols.

`x` is the input under the tap, `w` the weight of the tap and `b` the bias of the filter.  `const`, `param`, `weight`,
`input` and `field` declare more operands.  Axes are named `c` (input channel within the group), `t` (tap) and `o`
(output channel).  Indexing an operand reads it elsewhere than at the tap: `x[c, 0]` is the centre pixel.
"""

from __future__ import annotations

from typing import Any, ClassVar

import sympy as sp
from sympy.utilities.iterables import NotIterable  # SymPy must not take what has __getitem__ for a sequence

from ..errors import FormulaError
from ..geometry import whole

#: The axes a declaration or a reduction may name, in the order in which shapes list them.
AXES = ("o", "c", "t")
#: The axes that a reduction removes.  A value without them belongs to the window, not to a tap.
TAP_AXES = frozenset("ct")
#: The most weights of one bank.
MAX_BANK = 64


class Operand(sp.Symbol, NotIterable):  # type: ignore[misc]
    """A symbol of a formula together with its declaration.

    Args:
        name: the name used in the formula and, for operands given at call time, as keyword.
        role: one of `ROLES`.
        axes: the axes along which the value varies, for `param` and `field`; the other roles fix their own.
        init: the value of a `const` (None: it must be given when the layer is made), the initial value of a `param`.
        bank: how many weights a `weight` has per tap, None for one that is not a bank.
        positive: whether a layer keeps the `param` above 0.
    """

    #: role: the axes it varies along (besides batch and pixels).  The order is the order of printing.
    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {
        "input": ("c", "t"),
        "weight": ("o", "c", "t"),
        "bias": ("o",),
        "param": (),
        "field": (),
        "const": (),
        "offset": ("t",),
        "size": (),
        "index": (),
    }

    role: str
    axes: tuple[str, ...]
    init: float | None
    bank: int | None
    positive: bool

    def __new__(
        cls,
        name: str,
        role: str = "input",
        axes: tuple[str, ...] | None = None,
        init: float | None = None,
        bank: int | None = None,
        positive: bool = False,
    ) -> Operand:
        obj: Operand = sp.Symbol.__xnew__(cls, name, real=True)
        obj.role = role
        obj.axes = cls.ROLES[role] if axes is None else tuple(a for a in AXES if a in axes)
        obj.init, obj.bank, obj.positive = init, bank, positive
        return obj

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.name, self.role, self.axes, self.init, self.bank, self.positive), {}

    def __getstate__(self) -> None:
        return None

    def _hashable_content(self) -> tuple[Any, ...]:
        # SymPy sorts these, so None must not meet a float.
        declared = (self.role, self.axes, str(self.init), str(self.bank), self.positive)
        return (*super()._hashable_content(), *declared)

    def sort_key(self, order: Any = None) -> Any:
        # Sums print x first, then w, then the rest: the order in which people write them.
        rank = (*self.ROLES,).index(self.role)
        return self.class_key(), (1, (f"{rank}{self.name}",)), sp.S.One.sort_key(), sp.S.One

    def __getitem__(self, index: Any) -> sp.Expr:
        """The operand elsewhere than at the tap, `x[c, 0]`, or one weight of a bank, `s[3]` or `s[3, c, 0]`."""
        return indexed(self, index if isinstance(index, tuple) else (index,))

    @property
    def operand(self) -> Operand:
        """What was declared: the operand itself, or for an `Access` the operand that it reads."""
        return self

    @property
    def is_at_tap(self) -> bool:
        """Whether the operand is read at the tap, in its channel."""
        return True

    @property
    def labels(self) -> frozenset[str]:
        """The axes of the window along which the value varies: "t", and "c" or, for the channels of another input
        than x, "c:" with its name."""
        own = self.role == "input" and self.operand.name != "x"
        channel = f"c:{self.operand.name}" if own else "c"
        return frozenset(channel if axis == "c" else axis for axis in self.axes if axis in TAP_AXES)

    @property
    def is_tensor(self) -> bool:
        """Whether the operand is a tensor that has a gradient."""
        return self.role in ("input", "weight", "bias", "param", "field")

    @property
    def declaration(self) -> str:
        """The operand's line in a formula's text, empty for a name that the language knows by itself."""
        if self == BUILTIN.get(self.name):
            return ""
        listed = [*self.axes] if self.role in ("param", "field") else [str(self.bank)] if self.bank else []
        listed += ["positive"] * self.positive
        index = f"[{', '.join(listed)}]" if listed else ""
        value = "" if self.init is None else f" = {self.init!r}"
        return f"{self.name}: {self.role}{index}{value}"


class Access(Operand):
    """An operand read elsewhere than at the tap.

    Args:
        base: what is read: an input or a weight.
        element: which weight of a bank, None for what is no bank.
        own: whether the channel is the output's own, `x[o, t]`.
        shift: how many taps further on in scan order; None for the centre, `x[c, 0]`.
    """

    base: Operand
    element: int | None
    own: bool
    shift: int | None

    def __new__(cls, base: Operand, element: int | None, own: bool, shift: int | None) -> Access:  # type: ignore[misc]
        index = [] if element is None else [str(element)]
        if own or shift != 0:
            index += ["o" if own else "c", "0" if shift is None else f"t{shift:+d}" if shift else "t"]
        obj: Access = sp.Symbol.__xnew__(cls, f"{base.name}[{', '.join(index)}]", real=True)
        dropped = ("c" * own) + ("t" * (shift is None))
        axes = {*base.axes, *("o" * own)} - {*dropped}
        obj.role, obj.axes = base.role, tuple(a for a in AXES if a in axes)
        obj.init, obj.bank, obj.positive = None, None, False
        obj.base, obj.element, obj.own, obj.shift = base, element, own, shift
        return obj

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.base, self.element, self.own, self.shift), {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), *self.base._hashable_content())

    def __getitem__(self, index: Any) -> sp.Expr:
        raise FormulaError(f"{self.name} has an index already")

    @property
    def operand(self) -> Operand:
        return self.base

    @property
    def is_at_tap(self) -> bool:
        return not self.own and self.shift == 0

    def of(self, base: Operand) -> Access:
        """The same place of another operand."""
        return Access(base, self.element, self.own, self.shift)


class Element(sp.Function):  # type: ignore[misc]
    """`s[k]` for a symbol k, until a `sympy.Sum` over k puts a number in its place."""

    is_real = True

    @classmethod
    def eval(cls, base: Operand, element: sp.Expr, *index: sp.Expr) -> sp.Expr | None:
        return indexed(base, (int(element), *index)) if element.is_Integer else None


def indexed(base: Operand, index: tuple[Any, ...]) -> sp.Expr:
    """The value of `base[index]`.

    Raises:
        FormulaError: for an index that the operand does not have.
    """
    shown = f"{base.name}[{', '.join(map(str, index))}]"
    if base.role not in ("input", "weight"):
        raise FormulaError(f"{shown}: {base.name} is a {base.role}; only inputs and weights take an index")
    element, rest = None, index
    if base.bank is not None:
        element, *rest = index  # type: ignore[assignment]
        if isinstance(element, sp.Symbol) and not isinstance(element, Operand):
            return Element(base, element, *rest)
        element = whole(element)
        if element is None or not 0 <= element < base.bank:
            raise FormulaError(f"{shown}: {base.name} has {base.bank} weights, {base.name}[0] to [{base.bank - 1}]")
    channel, tap = (c, t) if not rest else rest if len(rest) == 2 else (None, None)
    if not isinstance(tap, sp.Expr):
        tap = sp.nan if (number := whole(tap)) is None else sp.Integer(number)
    shift = whole(tap - t)
    if channel not in (c, o) or not (tap == 0 or shift is not None):
        raise FormulaError(
            f"{shown}: an index is [channel, tap], with c or o for the channel and 0 (the centre), t, t + 1, t - 1, "
            f"... for the tap, such as {base.name}[c, 0]"
        )
    if element is None and channel == c and shift == 0:
        return base
    return Access(base, element, channel == o, None if tap == 0 else shift)


x = Operand("x", "input")
w = Operand("w", "weight")
b = Operand("b", "bias")
#: The tap's offset from the centre of the window in input pixels, dilation included; the last axis is `dx`.
dx, dy, dz = (Operand(name, "offset") for name in ("dx", "dy", "dz"))
#: Taps per window, channels per group, and their product.
T, C, N = (Operand(name, "size") for name in "TCN")
#: The axes, and as values the number of the channel within the group, of the tap in scan order, of the output channel.
c, t, o = (Operand(name, "index", (name,)) for name in "cto")

#: The operands that need no declaration.
BUILTIN: dict[str, Operand] = {operand.name: operand for operand in (x, w, b, dx, dy, dz, T, C, N, c, t, o)}


def weight(name: str, bank: int | None = None) -> Operand:
    """One more weight per tap, shaped like `w`: `[out_channels, in_channels / groups, *kernel_size]`.

    Args:
        name: of the weight.
        bank: for so many of them, `[bank, out_channels, in_channels / groups, *kernel_size]`, used as `s[k]`.

    >>> import symconv as sc
    >>> print(sc.Kernel(sc.sum(sc.w * (sc.x - sc.weight("v")))).text)
    v: weight
    sum(w*(x - v))
    >>> s = sc.weight("s", bank=2)
    >>> print(sc.Kernel(sc.sum(s[0]*sc.x + s[1]*sc.x**2)).text)
    s: weight[2]
    sum(x*s[0] + x**2*s[1])
    """
    size = whole(bank)
    if bank is not None and not (size and 1 <= size <= MAX_BANK):
        raise FormulaError(f"weight({name!r}, bank={bank}): a bank has 1 to {MAX_BANK} weights")
    return _declared(name, "weight", bank=size)


def input(name: str) -> Operand:
    """One more input seen through the same window: `[N, its own channels, *image]`.

    It follows the groups of x where its channels divide by them, and all groups share it where they do not; where it
    meets x or a weight it has as many channels as x, or one that all share.

    >>> import symconv as sc
    >>> g = sc.input("g")
    >>> print(sc.Kernel(sc.sum(sc.w*sc.x*g)/(sc.sum(sc.w*g) + 1e-6)).text)
    g: input
    sum(g*w*x)/(sum(g*w) + 1e-06)
    """
    return _declared(name, "input")


def const(name: str, value: float | None = None) -> Operand:
    """A number fixed when the layer is made; `Conv2d(..., name=value)` changes it.

    >>> import symconv as sc
    >>> beta = sc.const("beta", 20)
    >>> print(sc.Kernel(sc.logsumexp(beta * (sc.x + sc.w)) / beta).text)
    beta: const = 20.0
    logsumexp(beta*(x + w))/beta
    """
    return _declared(name, "const", init=None if value is None else _number(name, "const", value))


def param(name: str, per: Any = (), init: float = 1.0, positive: bool = False) -> Operand:
    """A learned number for the layer, or `per` filter (`o`), channel (`c`) and tap (`t`), or several of them.

    Shapes: `[]`; `[out_channels]` for `o`; `[in_channels / groups]` for `c`; `[*kernel_size]` for `t`; several
    in this order.

    Args:
        name: of the parameter.
        per: one axis or several.
        init: the initial value.
        positive: whether a layer keeps it above 0, as the softplus of what it learns.

    >>> import symconv as sc
    >>> gamma = sc.param("gamma", per=sc.o, init=0.1)
    >>> print(sc.Kernel(sc.exp(-gamma * sc.sum((sc.x - sc.w)**2))).text)
    gamma: param[o] = 0.1
    exp(-gamma*sum((x - w)**2))
    """
    start = _number(name, "param", init)
    if positive and not start > 0:
        raise FormulaError(f"param({name!r}, positive=True) needs an initial value above 0, not {init}")
    return _declared(name, "param", _axes(name, "param", per), init=start, positive=positive)


def field(name: str, per: Any = ()) -> Operand:
    """A value per output pixel, given at call time; `per` output channel (`o`), tap (`t`) or both.

    Shapes: `[N, *output size]`; `[N, out_channels, *output size]` for `o`; `[N, T, *output size]` for `t`;
    `[N, out_channels, T, *output size]` for both.

    >>> import symconv as sc
    >>> k = sc.field("k", per=sc.t)
    >>> print(sc.Kernel(sc.sum(k * sc.x)).text)
    k: field[t]
    sum(k*x)
    """
    axes = _axes(name, "field", per)
    if "c" in axes:
        raise FormulaError(f"field({name!r}, per=...): the axes are o (output channel) and t (tap)")
    return _declared(name, "field", axes)


def ordered_terms(expr: sp.Expr) -> list[sp.Expr]:
    """The terms of a sum as people write them: those with x first, then w, then the other operands, then numbers."""
    terms = expr.as_ordered_terms() if expr.is_Add else [expr]
    return sorted(terms, key=lambda term: min((symbol.sort_key()[1] for symbol in term.free_symbols), default=(2,)))


def _number(name: str, role: str, value: Any) -> float:
    """The value of a declaration, refused if it is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise FormulaError(f"the value of {role}({name!r}, ...) is a number, not {value!r}") from None


def _axes(name: str, role: str, per: Any) -> tuple[str, ...]:
    axes = tuple(str(axis) for axis in (per if isinstance(per, (tuple, list)) else (per,)))
    for axis in axes:
        if axis not in AXES:
            raise FormulaError(f"{role}({name!r}, per={axis}): the axes are o (filter), c (channel) and t (tap)")
    return axes


def _declared(
    name: str, role: str, axes: tuple[str, ...] | None = None, init: float | None = None, **options: Any
) -> Operand:
    from .names import check_name  # which knows the names of functions, and so imports this module

    check_name(name)
    return Operand(name, role, axes, init, **options)
