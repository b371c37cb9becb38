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

from .errors import InternalError
from .functions import BY_CLASS, kinked
from .geometry import Geometry
from .kernel import Kernel
from .reductions import BY_NODE, Count, WindowNode

_RELATIONS = {
    sp.StrictLessThan: torch.lt,
    sp.LessThan: torch.le,
    sp.StrictGreaterThan: torch.gt,
    sp.GreaterThan: torch.ge,
    sp.Equality: torch.eq,
    sp.Unequality: torch.ne,
}
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
    """Values as `[n, g, f, *size, c, t]`."""

    def __init__(self, kernel: Kernel, given: Mapping[str, Any], geometry: Geometry) -> None:
        self.kernel, self.geometry = kernel, geometry
        x = given["x"]
        self.like, self.rank = x, len(geometry.kernel_size)
        self.size = geometry.output_size(x.shape[2:])
        self.channels = x.shape[1] // geometry.groups
        self.taps = math.prod(geometry.kernel_size)
        outside = self.unfolded(torch.ones_like(x[:1, :1]))
        self.valid = outside[..., 0, :].bool()  # [1, 1, 1, *size, t]
        self.values = {operand: self.operand(operand, given) for operand in kernel.formula.operands}

    def output(self) -> Tensor:
        value = self.value(kinked(self.kernel.expr))
        groups, out_channels = self.geometry.groups, self.geometry.out_channels
        full = (self.like.shape[0], groups, out_channels // groups, *self.size)
        return torch.as_tensor(value, dtype=self.like.dtype).expand(full).flatten(1, 2)

    # -- Operands ------------------------------------------------------------------------------------------------

    def operand(self, operand: Any, given: Mapping[str, Any]) -> Tensor:
        if operand.role == "input":
            return self.unfolded(given[operand.name])
        if operand.role == "const":
            return self.like.new_tensor(given[operand.name])
        if operand.role == "size":
            sizes = {"T": self.taps, "C": self.channels, "N": self.taps * self.channels}
            return self.like.new_tensor(sizes[operand.name])
        if operand.role == "offset":
            axis = -1 - ("dx", "dy", "dz").index(operand.name)
            count, dilation = self.geometry.kernel_size[axis], self.geometry.dilation[axis]
            steps = (torch.arange(count) - (count - 1) // 2) * dilation
            shape = [1] * self.rank
            shape[axis] = count
            grid = steps.reshape(shape).expand(self.geometry.kernel_size).reshape(-1)
            return grid.to(self.like)
        axes = operand.axes
        value = given[operand.name]
        groups = self.geometry.groups
        by_axis: dict[str, tuple[int, ...]] = {
            "o": (groups, value.shape[0] // groups) if "o" in axes else (1, 1),
            "c": (self.channels,) if "c" in axes else (1,),
            "t": (self.taps,) if "t" in axes else (1,),
        }
        g, f = by_axis["o"]
        value = value.reshape(g, f, *[1] * self.rank, *by_axis["c"], *by_axis["t"])
        return value if operand.tap_axes else value[..., 0, 0]

    def unfolded(self, image: Tensor) -> Tensor:
        flat = [side for pair in reversed(self.geometry.padding) for side in pair]
        image = F.pad(image, flat)
        for axis in range(self.rank):
            k, s, d = (each[axis] for each in (self.geometry.kernel_size, self.geometry.stride, self.geometry.dilation))
            image = image.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
        image = image.flatten(2 + self.rank)  # [n, channels, *size, t]
        groups = 1 if image.shape[1] == 1 else self.geometry.groups
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
        if isinstance(expr, sp.Piecewise):
            *cases, (last, _) = expr.args
            whole = self.value(last)
            for value, condition in reversed(cases):
                whole = torch.where(self.value(condition), self.value(value), whole)
            return whole
        args = [self.value(argument) for argument in expr.args]
        combine: Any
        for cls, combine in ((sp.Add, torch.add), (sp.Mul, torch.mul), *_LOGIC.items()):
            if isinstance(expr, cls):
                return functools.reduce(combine, args)
        if isinstance(expr, sp.Pow):
            return torch.pow(*args)
        if isinstance(expr, sp.Not):
            return torch.logical_not(*args)
        if type(expr) in _RELATIONS:
            return _RELATIONS[type(expr)](*args)
        if type(expr) in BY_CLASS:
            return BY_CLASS[type(expr)].reference(*args)
        raise InternalError(f"the reference cannot evaluate {sp.sstr(expr)}")

    def window(self, node: WindowNode) -> Tensor:
        valid = self.valid.unsqueeze(-2).expand(*self.valid.shape[:-1], self.channels, self.taps).flatten(-2)
        if isinstance(node, Count):
            return valid.sum(-1).clamp(min=1).to(self.like.dtype)
        reduce = BY_NODE[type(node)].reference
        if reduce is None:
            raise InternalError(f"{type(node).__name__} has no reference; it occurs only in derivatives")
        values = self.value(node.args[0])
        values = values.expand(torch.broadcast_shapes(values.shape, (*self.size, self.channels, self.taps))).flatten(-2)
        reduced = reduce(*torch.broadcast_tensors(values, valid))
        return reduced if BY_NODE[type(node)].reduces else reduced.unflatten(-1, (self.channels, self.taps))
