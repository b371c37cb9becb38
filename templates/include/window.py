"""The part of every generated PyTorch file that never varies: windows, blocks, accumulators, gradients.

Shapes: n batch, g groups, f filters per group, c channels per group, t taps, o = g*f output channels.  The image is
visited through shifted views; nothing of the size of an unfolded image is ever held.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

# -- cut here: what follows is copied into generated files ---------------------------------------------------------


class Tap(NamedTuple):
    """One tap of the window: its scan position, its offset from the centre, and the pixels for which it exists."""

    position: int
    offset: tuple[int, ...]
    image: tuple[slice, ...]
    output: tuple[slice, ...]


class Layout:
    """How the tensors of one call lie, and the blocks in which they are visited.

    `padding` are the rows (columns, ...) before the image whose taps leave the window, and those after it.
    """

    #: Values per temporary: small enough for the cache of a CPU core, large enough to keep an accelerator busy.
    BLOCK: ClassVar[dict[str, int]] = {"cpu": 2**18}
    BLOCK_ELSEWHERE = 2**24

    def __init__(
        self,
        x: Tensor,
        kernel_size: Sequence[int],
        out_channels: int,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
    ) -> None:
        self.batch, self.groups = x.shape[0], groups
        self.filters, self.channels = out_channels // groups, x.shape[1] // groups
        self.device, self.dtype = x.device, torch.promote_types(x.dtype, torch.float32)
        self.rank = len(kernel_size)
        axes = list(zip(x.shape[2:], kernel_size, stride, padding, dilation))
        self.size = [(i + sum(p) - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in axes]
        along = [[self._along(*axis, size, tap) for tap in range(axis[1])] for axis, size in zip(axes, self.size)]
        self.taps = [
            Tap(position, *zip(*parts)) for position, parts in enumerate(itertools.product(*along)) if all(parts)
        ]
        self.tap_count = math.prod(kernel_size)
        self.window_shape = (self.batch, out_channels, *self.size)

    @staticmethod
    def _along(
        i: int, k: int, s: int, p: tuple[int, int], d: int, size: int, tap: int
    ) -> tuple[int, slice, slice] | tuple[()]:
        """Along one axis: the tap's offset, the pixels it sees, and the outputs for which they lie in the image."""
        shift = tap * d - p[0]
        first, last = max(0, -(shift // s)), min(size - 1, (i - 1 - shift) // s)
        if first > last:
            return ()
        image = slice(first * s + shift, last * s + shift + 1, s)
        return (tap - (k - 1) // 2) * d, image, slice(first, last + 1)

    def image(self, x: Tensor) -> Tensor:
        """An input as [n, g, c, *size]; one channel may serve all."""
        return x[:, None] if x.shape[1] == 1 else x.unflatten(1, (self.groups, -1))

    def bank(self, weight: Tensor, axes: str) -> Tensor:
        """A weight or parameter as [g, f, c, t], with 1 for the axes that it lacks."""
        sizes = {"o": (self.groups, self.filters), "c": (self.channels,), "t": (self.tap_count,)}
        shape = itertools.chain.from_iterable(sizes[a] if a in axes else (1,) * len(sizes[a]) for a in "oct")
        return weight.to(self.dtype).reshape(*shape)

    def number(self, value: float) -> Tensor:
        """A number as a tensor of the dtype in which the kernel computes."""
        return torch.full((), value, dtype=self.dtype, device=self.device)

    def windows(self, value: float, dtype: torch.dtype | None = None) -> Tensor:
        """One value per window: [n, o, *size]."""
        return torch.full(self.window_shape, value, dtype=dtype or self.dtype, device=self.device)

    def per_window(self, bank: Tensor) -> Tensor:
        """A parameter without channel and tap as [o, 1, ...], beside window values."""
        return bank.reshape(-1, *[1] * self.rank)

    def count(self) -> Tensor:
        """How many taps of each window lie in the image, times the channels: [1, 1, *size]."""
        count = torch.zeros(1, 1, *self.size, dtype=self.dtype, device=self.device)
        for tap in self.taps:
            count[..., *tap.output] += self.channels
        return count.clamp(min=1)

    def blocks(self) -> Iterator[Block]:
        """Every tap of every window, in blocks; within a window in scan order (c, then t)."""
        budget = max(self.BLOCK.get(self.device.type, self.BLOCK_ELSEWHERE) // max(math.prod(self.size), 1), 1)
        steps = []
        for extent in (self.groups, self.filters, self.channels, self.batch):
            steps.append(max(min(extent, budget), 1))
            budget = max(budget // steps[-1], 1)
        g, f, c, n = steps
        for batch, groups, filters in itertools.product(
            _pieces(self.batch, n), _pieces(self.groups, g), _pieces(self.filters, f)
        ):
            for channels, tap in itertools.product(_pieces(self.channels, c), self.taps):
                yield Block(self, batch, groups, filters, channels, tap)


class Block(NamedTuple):
    """One tap for a range of samples, groups, filters and channels: values of shape [n, g, f, c, *pixels]."""

    layout: Layout
    batch: slice
    groups: slice
    filters: slice
    channels: slice
    tap: Tap

    def image(self, x: Tensor) -> Tensor:
        """The block of an input, a shifted view: [n, g, 1, c, *pixels]."""
        return self._pixels(x)[:, :, None].to(self.layout.dtype)

    def bank(self, weight: Tensor) -> Tensor:
        """The block of a weight or parameter: [g, f, c, 1, ...]."""
        return self._weights(weight)[(..., *[None] * self.layout.rank)]

    def window(self, value: Tensor) -> Tensor:
        """The block of a window value: [n, g, f, 1, *pixels]."""
        return self.running(value)[:, :, :, None]

    def running(self, value: Tensor) -> Tensor:
        """The block of a window value as a view to be updated: [n, g, f, *pixels]."""
        if value.shape[1] == 1:  # the same for all samples and filters
            return value[:, :, None, ..., *self.tap.output]
        by_group = value.unflatten(1, (self.layout.groups, self.layout.filters))
        return by_group[self.batch, self.groups, self.filters, *self.tap.output]

    def offset(self, axis: int) -> Tensor:
        """The tap's offset from the centre along an axis counted from the last (-1 is dx): [1, ...]."""
        return self.layout.number(self.tap.offset[axis]).reshape((1,) * (4 + self.layout.rank))

    def position(self) -> Tensor:
        """The scan position of the tap in each channel: [c, 1, ...]."""
        channels = torch.arange(self.channels.start, self.channels.stop, device=self.layout.device)
        return (channels * self.layout.tap_count + self.tap.position).reshape(-1, *[1] * self.layout.rank)

    def over(self, value: Tensor, *dims: int) -> Tensor:
        """`value` repeated (as a view) along those of its dimensions of size 1 that are about to be reduced."""
        value = value[(None,) * (4 + self.layout.rank - value.dim())]
        shape = [*map(_length, self[1:5]), *map(_length, self.tap.output)]
        return value.expand([shape[d] if d in dims else -1 for d in range(value.dim())])

    def _pixels(self, x: Tensor) -> Tensor:
        return x[self.batch, _pick(x, 1, self.groups), _pick(x, 2, self.channels), *self.tap.image]

    def _weights(self, bank: Tensor) -> Tensor:
        parts = [_pick(bank, d, part) for d, part in enumerate((self.groups, self.filters, self.channels))]
        return bank[*parts, self.tap.position if bank.shape[3] > 1 else 0]


def _pieces(extent: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, extent)) for start in range(0, extent, step)]


def _pick(tensor: Tensor, dim: int, part: slice) -> slice:
    return part if tensor.shape[dim] > 1 else slice(None)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


class Sum:
    """The sum of a tap value over each window."""

    def __init__(self, layout: Layout) -> None:
        self.value = layout.windows(0.0)

    def add(self, value: Tensor, block: Block) -> None:
        self.value_at(block).add_(block.over(value, 3).sum(3))

    def value_at(self, block: Block) -> Tensor:
        return block.running(self.value)

    def result(self) -> tuple[Tensor, ...]:
        return (self.value,)


class Product(Sum):
    """The product of a tap value over each window."""

    def __init__(self, layout: Layout) -> None:
        self.value = layout.windows(1.0)

    def add(self, value: Tensor, block: Block) -> None:
        self.value_at(block).mul_(block.over(value, 3).prod(3))


class FirstMax(Sum):
    """The maximum over each window and the scan position of the first tap that attains it; NaN wins."""

    def __init__(self, layout: Layout) -> None:
        self.value = layout.windows(-torch.inf)
        self.position = layout.windows(torch.iinfo(torch.int32).max, torch.int32)

    def add(self, value: Tensor, block: Block) -> None:
        best, position = self.value_at(block), block.running(self.position)
        top, channel = block.over(value, 3).max(3)
        here = (block.channels.start + channel) * block.layout.tap_count + block.tap.position
        earlier = here < position
        better = (top > best) | ((top == best) & earlier) | (top.isnan() & (~best.isnan() | earlier))
        best.copy_(torch.where(better, top, best))
        position.copy_(torch.where(better, here, position))

    def result(self) -> tuple[Tensor, ...]:
        return self.value, self.position


class LogSumExp(Sum):
    """log(sum(exp(value))) over each window, shifted by the running maximum."""

    def __init__(self, layout: Layout) -> None:
        self.value = layout.windows(0.0)
        self.top = layout.windows(-torch.inf)

    def add(self, value: Tensor, block: Block) -> None:
        total, top = self.value_at(block), block.running(self.top)
        value = block.over(value, 3)
        new = torch.maximum(top, value.amax(3))
        shift = torch.where(new.isfinite(), new, 0.0)
        total.copy_(total * torch.exp(top - shift) + torch.exp(value - shift[:, :, :, None]).sum(3))
        top.copy_(new)

    def result(self) -> tuple[Tensor, ...]:
        return (torch.where(self.top.isfinite(), self.top, 0.0) + torch.log(self.value),)


class ImageGradient:
    """The gradient of an input, gathered tap by tap into the pixels that the tap saw."""

    def __init__(self, layout: Layout, x: Tensor) -> None:
        self.total = torch.zeros(x.shape, dtype=layout.dtype, device=layout.device)
        self.by_group = layout.image(self.total)

    def add(self, value: Tensor, block: Block) -> None:
        shared = [d for d in (1, 3) if self.by_group.shape[{1: 1, 3: 2}[d]] == 1]
        block._pixels(self.by_group).add_(block.over(value, 2, *shared).sum([2, *shared], keepdim=True).squeeze(2))

    def result(self, like: Tensor) -> Tensor:
        return self.total.to(like.dtype)


class BankGradient:
    """The gradient of a weight or parameter, summed over the batch, the pixels and the axes that it lacks."""

    def __init__(self, layout: Layout, bank: Tensor) -> None:
        self.total = torch.zeros_like(bank)

    def add(self, value: Tensor, block: Block) -> None:
        lacking = [d for d in (1, 2, 3) if self.total.shape[d - 1] == 1]
        dims = [0, *lacking, *range(4, value.dim())]
        part = block.over(value, *dims).sum(dims, keepdim=True)
        block._weights(self.total).add_(part.reshape(part.shape[1:4]))

    def add_windows(self, value: Tensor, layout: Layout) -> None:
        by_filter = value.expand(layout.window_shape).sum([0, *range(2, value.dim())])
        self.total[:, :, 0, 0] += by_filter.reshape(layout.groups, layout.filters).sum_to_size(*self.total.shape[:2])

    def result(self, like: Tensor) -> Tensor:
        return self.total.reshape(like.shape).to(like.dtype)


def share(a: Tensor, b: Tensor) -> Tensor:
    """1 where a > b, 1/2 at a tie, else 0."""
    return ((a > b).to(a.dtype) + (a >= b).to(a.dtype)) / 2  # comparisons are cheaper than torch.where on a CPU


def positive(z: Tensor) -> Tensor:
    """1 where z > 0, else 0."""
    return (z > 0).to(z.dtype)


def is_zero(z: Tensor) -> Tensor:
    """1 where z is 0, else 0."""
    return (z == 0).to(z.dtype)


def same(a: Tensor, b: Tensor) -> Tensor:
    """1 where two positions are the same, else 0."""
    return (a == b).to(torch.float32)


def reciprocal(r: Tensor) -> Tensor:
    """1 / r, and 0 where r is 0."""
    return torch.where(r == 0, 0.0, 1 / r)


def shift(r: Tensor) -> Tensor:
    """r, and 0 where r is -inf."""
    return torch.where(r == -torch.inf, 0.0, r)
