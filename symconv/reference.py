"""The meaning of a formula, computed plainly: unfold, broadcast, reduce.

An interpreter of the formula itself, with none of the derivation, lowering or generated code.  It holds the unfolded
image and every tap value, so it is for small inputs: `Kernel.check` and the tests compare the backends with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import DerivativeError, InternalError
from .functions import BY_CLASS, Comparison
from .geometry import Geometry
from .kernel import Kernel
from .language.axes import Domain, WindowNode, domain, labels_of
from .language.symbols import Access, Operand
from .reductions import record_of
from .rewrite import kinked

_RELATIONS = {
    sp.StrictLessThan: torch.lt,
    sp.LessThan: torch.le,
    sp.StrictGreaterThan: torch.gt,
    sp.GreaterThan: torch.ge,
    sp.Equality: torch.eq,
    sp.Unequality: torch.ne,
}
#: What stands at taps that are ignored: inside the domain of log and powers, so that autograd makes no NaN of it.
IGNORED = 0.5
_LOGIC = {sp.And: torch.logical_and, sp.Or: torch.logical_or}


def reference(kernel: Kernel, given: Mapping[str, Any], geometry: Geometry) -> Tensor:
    """The output of a kernel, differentiable by autograd away from kinks.

    Args:
        kernel: the kernel.
        given: every operand by name; inputs batched and padded, except for `geometry.padding`, which is ignored.
        geometry: the windows.

    Returns:
        `[N, out_channels, *size]`.
    """
    return _Evaluation(kernel, given, geometry).output()


class _Evaluation:
    """Values as `[n, g, f, *size, c, t]`, with 1 for the axes that they lack."""

    def __init__(self, kernel: Kernel, given: Mapping[str, Any], geometry: Geometry) -> None:
        self.kernel, self.geometry = kernel, geometry
        x = given["x"]
        self.like, self.rank = x, len(geometry.kernel_size)
        self.size = geometry.output_size(x.shape[2:])
        self.channels = x.shape[1] // geometry.groups
        self.taps = math.prod(geometry.kernel_size)
        self.centre = 0
        for k in geometry.kernel_size:
            self.centre = self.centre * k + (k - 1) // 2
        self.valid = self.unfolded(torch.ones_like(x[:1, :1])).bool()  # [1, 1, 1, *size, 1, t]
        self.given = given
        symbols = [each for each in kernel.expr.free_symbols if isinstance(each, Operand)]
        self.values = {operand: self.operand(operand) for operand in symbols}

    def output(self) -> Tensor:
        value = self.value(kinked(self.kernel.expr))
        groups, out_channels = self.geometry.groups, self.geometry.out_channels
        full = (self.like.shape[0], groups, out_channels // groups, *self.size, 1, 1)
        return value.to(self.like.dtype).expand(full)[..., 0, 0].flatten(1, 2)

    # -- Operands ------------------------------------------------------------------------------------------------

    def operand(self, operand: Operand) -> Tensor:
        given: Any = self.given.get(operand.operand.name)
        if operand.role == "input":
            value = self.unfolded(given, 0.0 if isinstance(operand, Access) else IGNORED)
        elif operand.role == "field":
            value = self.field(given, operand.axes)
        elif operand.role in ("weight", "bias", "param"):
            element = getattr(operand, "element", None)
            value = self.bank(given if element is None else given[element], operand.operand.axes)
        elif operand.role == "offset":
            axis = -1 - ("dx", "dy", "dz").index(operand.name)
            count, dilation = self.geometry.kernel_size[axis], self.geometry.dilation[axis]
            steps = (torch.arange(count) - (count - 1) // 2) * dilation
            shape = [1] * self.rank
            shape[axis] = count
            value = steps.reshape(shape).expand(self.geometry.kernel_size).reshape(-1).to(self.like)
        elif operand.role == "index":
            outputs = torch.arange(self.geometry.out_channels).reshape(self.geometry.groups, -1, *[1] * (self.rank + 2))
            numbers = {"c": torch.arange(self.channels)[:, None], "t": torch.arange(self.taps), "o": outputs}
            value = numbers[operand.name].to(self.like)
        else:
            sizes = {"T": self.taps, "C": self.channels, "N": self.taps * self.channels}
            value = self.like.new_tensor(sizes.get(operand.name, given))
        return self.elsewhere(value, operand) if isinstance(operand, Access) else value

    def elsewhere(self, value: Tensor, access: Access) -> Tensor:
        """A value `[..., c, t]` read at another tap, or at the output's own channel."""
        if access.own and access.role == "input":
            value = value.movedim(-2, 2).squeeze(3).unsqueeze(-2)
        elif access.own:
            value = value.diagonal(dim1=1, dim2=-2).movedim(-1, 1).unsqueeze(-2)
        if access.shift is None:
            return value[..., self.centre : self.centre + 1]
        taps = [tap + access.shift for tap in range(self.taps)]
        inside = torch.tensor([0 <= tap < self.taps for tap in taps])
        return torch.where(inside, value[..., [min(max(tap, 0), self.taps - 1) for tap in taps]], 0.0)

    def bank(self, value: Tensor, axes: tuple[str, ...]) -> Tensor:
        groups = self.geometry.groups
        by_axis: dict[str, tuple[int, ...]] = {
            "o": (groups, value.shape[0] // groups) if "o" in axes else (1, 1),
            "c": (self.channels,) if "c" in axes else (1,),
            "t": (self.taps,) if "t" in axes else (1,),
        }
        return value.reshape(*by_axis["o"], *[1] * self.rank, *by_axis["c"], *by_axis["t"])

    def field(self, value: Tensor, axes: tuple[str, ...]) -> Tensor:
        value = value.unflatten(1, (self.geometry.groups, -1)) if "o" in axes else value[:, None, None]
        value = value if "t" in axes else value.unsqueeze(3)
        return value.movedim(3, -1).unsqueeze(-2)

    def unfolded(self, image: Tensor, outside: float = 0.0) -> Tensor:
        flat = [side for pair in reversed(self.geometry.padding) for side in pair]
        image = F.pad(image, flat, value=outside)
        for axis in range(self.rank):
            k, s, d = (each[axis] for each in (self.geometry.kernel_size, self.geometry.stride, self.geometry.dilation))
            image = image.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
        image = image.flatten(2 + self.rank)  # [n, channels, *size, t]
        groups = self.geometry.groups if image.shape[1] % self.geometry.groups == 0 else 1
        by_group = image.unflatten(1, (groups, 1, -1))  # [n, g, 1, c, *size, t]
        return by_group.movedim(3, -2)

    # -- Expressions ---------------------------------------------------------------------------------------------

    def value(self, expr: sp.Basic) -> Any:
        if expr in self.values:
            return self.values[expr]
        if isinstance(expr, WindowNode):
            return self.window(expr)
        if isinstance(expr, sp.Expr) and expr.is_number:
            return self.like.new_tensor(float(expr))
        args = [self.value(argument) for argument in expr.args]
        combine: Any
        for cls, combine in ((sp.Add, torch.add), (sp.Mul, torch.mul), *_LOGIC.items()):
            if isinstance(expr, cls):
                return functools.reduce(combine, args)
        if isinstance(expr, sp.Pow):
            return torch.pow(*args)
        if isinstance(expr, sp.Not):
            return torch.logical_not(*args)
        if isinstance(expr, (sp.core.relational.Relational, Comparison)):
            return _RELATIONS[getattr(expr, "relation", type(expr))](*args)
        if type(expr) in BY_CLASS:
            return BY_CLASS[type(expr)].reference(*args)
        raise InternalError(f"the reference cannot evaluate {sp.sstr(expr)}")

    def window(self, node: WindowNode) -> Tensor:
        record = record_of(node)
        if record.reference is None:
            raise DerivativeError(f"{record.name} stands in derivatives alone: there is nothing to compare it with")
        where = domain(frozenset().union(*map(labels_of, node.args)), node.dims)
        channels, taps = self.extents(where)
        values = [self.value(argument) for argument in node.args]
        valid = self.valid if "t" in where.axes else torch.ones_like(self.valid[..., :1])
        full = torch.broadcast_shapes(*(value.shape for value in (*values, valid)), (channels, taps))
        arguments = [value.expand(full) for value in (*values, valid)]
        if node.dims == {"c"}:
            arguments = [value.transpose(-1, -2) for value in arguments]
        elif node.dims == {"c", "t"}:
            arguments = [value.flatten(-2) for value in arguments]
        result = record.reference(*arguments)
        result = result.unsqueeze(-1) if record.reduces else result
        if node.dims == {"c"}:
            return result.transpose(-1, -2)
        if node.dims == {"c", "t"}:
            return result.unsqueeze(-1) if record.reduces else result.unflatten(-1, (channels, taps))
        return result

    def extents(self, where: Domain) -> tuple[int, int]:
        """How many channels and taps a domain has."""
        channels = [self.channels] if "c" in where.axes else [1]
        if where.inputs:
            groups = self.geometry.groups
            counts = [self.given[name].shape[1] for name in where.inputs]
            channels = [count // groups if count % groups == 0 else count for count in counts]
        return max(channels), self.taps if "t" in where.axes else 1
