"""What varies along what: the axes of an expression, and the nodes that remove them.

A value varies over taps ("t") and over channels.  The channels of x, of weights and of parameters are one axis, "c".
Another input g has channels of its own, the axis "c:g"; where it meets the axis "c" the two are one, and g has as
many channels as x or one that all share.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import sympy as sp

from ..errors import FormulaError
from .symbols import TAP_AXES, Operand, c, dx, x

Labels = frozenset[str]


class WindowNode(sp.Function):  # type: ignore[misc]
    """A function of the values at all taps of the window, or along one of its axes.

    Attributes:
        dims: the axes over which it runs, "c" and "t".
        reduces: whether the result lacks those axes (else it is again a tap value).
        whole: the class that runs over both axes; each has a twin for either, see `over`.
    """

    is_real = True
    is_number = False  # a count of numbers has no symbols, and still is no number
    dims: ClassVar[frozenset[str]] = TAP_AXES
    reduces: ClassVar[bool] = True
    whole: ClassVar[type[WindowNode]]

    def __new__(cls, *args: Any, dim: Any = None, weight: Any = None, **options: Any) -> Any:
        args = args if weight is None else (*args, weight)
        return super().__new__(cls if dim is None else cls.over(axes_named(dim)), *args, **options)

    @classmethod
    def _should_evalf(cls, arg: sp.Basic) -> int:
        return -1

    @classmethod
    def over(cls, dims: Iterable[str]) -> type[WindowNode]:
        """The same function over the axes `dims`."""
        return _over(cls.whole, frozenset(dims))  # type: ignore[arg-type]

    def twin(self, cls: type[WindowNode], *args: sp.Expr) -> Any:
        """The function `cls` over the same axes."""
        return cls.over(self.dims)(*args)


def axes_named(dim: Any) -> frozenset[str]:
    """The axes that a `dim=` argument names: c, t or both, as symbols or as text."""
    axes = [str(axis) for axis in (dim if isinstance(dim, (tuple, list, frozenset, set)) else (dim,))]
    if not axes or not TAP_AXES.issuperset(axes):
        raise FormulaError(f"dim is c (channels), t (taps) or (c, t), not {dim}")
    return frozenset(axes)


@functools.cache
def _over(whole: type[WindowNode], dims: frozenset[str]) -> type[WindowNode]:
    if dims == TAP_AXES:
        return whole
    return type(f"{whole.__name__}_{''.join(sorted(dims))}", (whole,), {"dims": dims, "__module__": whole.__module__})


class Value(sp.Symbol):  # type: ignore[misc]
    """A symbol that stands for a value computed on the way, with the axes along which it varies."""

    labels: Labels

    def __new__(cls, name: str, labels: Iterable[str] = ()) -> Value:
        obj: Value = sp.Symbol.__xnew__(cls, name, real=True)
        obj.labels = frozenset(labels)
        return obj

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), tuple(sorted(self.labels)))


class Position(Value):
    """The scan position of a tap, a whole number."""


class TapPosition(Position):
    """That of the tap that reads it: known wherever a tap is, and stored nowhere."""


@functools.lru_cache(maxsize=65536)
def labels_of(expr: sp.Basic) -> Labels:
    """The axes along which an expression varies within a window."""
    if isinstance(expr, (Operand, Value)):
        return expr.labels
    found: Labels = frozenset().union(*map(labels_of, expr.args)) if expr.args else frozenset()
    if not isinstance(expr, WindowNode):
        return found
    return without(found, expr.dims) if expr.reduces else domain(found, expr.dims).labels


def without(labels: Labels, dims: Iterable[str]) -> Labels:
    """The axes that are left after a reduction over `dims`."""
    return frozenset(label for label in labels if label[0] not in dims)


class Domain(NamedTuple):
    """What a sweep runs over: taps, channels or both, and whose channels.

    Args:
        axes: "", "c", "t" or "ct".
        inputs: the inputs whose own channels are meant, empty for the channels of x.
    """

    axes: str
    inputs: tuple[str, ...] = ()

    @property
    def labels(self) -> Labels:
        channels = [f"c:{name}" for name in self.inputs] or ["c"]
        return frozenset((*(channels if "c" in self.axes else ()), *("t" if "t" in self.axes else "")))

    @property
    def name(self) -> str:
        """Part of an identifier, which no other domain has: `ct`, `t`, `c_g`, `ct_2_g_h`; empty for whole windows.

        Of several inputs a name begins at each underscore before a letter; their own ones are written `_0`.
        """
        several = len(self.inputs) > 1
        names = [name.replace("_", "_0") if several else name for name in self.inputs]
        return "_".join([self.axes, *[str(len(names))] * several, *names])

    @property
    def representatives(self) -> tuple[Operand, ...]:
        """Operands that together vary along just these axes."""
        inputs = tuple(Operand(name, "input") for name in self.inputs)
        channels = tuple(each[c, 0] for each in inputs) or (c,)
        return {"ct": inputs or (x,), "c": channels, "t": (dx,), "": ()}[self.axes]


WINDOW = Domain("")


def domain(labels: Labels, dims: Iterable[str] = ()) -> Domain:
    """The domain of a value that varies along `labels` and is reduced over `dims`."""
    channels = {label for label in labels if label[0] == "c"}
    axes = ("c" if channels or "c" in dims else "") + ("t" if "t" in labels or "t" in dims else "")
    inputs = () if "c" in channels else tuple(sorted(label[2:] for label in channels))
    return Domain(axes, inputs)
