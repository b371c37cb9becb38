"""The part of every generated PyTorch file that never varies: windows, blocks, accumulators, gradients.

Shapes: n batch, g groups, f filters per group, c channels per group, t taps, o = g*f output channels.  The image is
visited through shifted views; nothing of the size of an unfolded image is ever held.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

# -- cut here: what follows is copied into generated files ---------------------------------------------------------


class Layout:
    """How the tensors of one call lie, and the blocks of windows in which they are visited.

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
        self.stride = stride
        self.tap_count = math.prod(kernel_size)
        self.centre = 0
        for k in kernel_size:
            self.centre = self.centre * k + (k - 1) // 2
        #: For each tap its offset from the centre, its shift in the image, and along each axis the outputs that see it.
        self.taps = [tuple(zip(*parts)) for parts in itertools.product(*map(self._along, axes, self.size))]
        self.window_shape = (self.batch, out_channels, *self.size)

    @staticmethod
    def _along(axis: tuple[int, int, int, tuple[int, int], int], size: int) -> list[tuple[int, int, range]]:
        i, k, s, (before, _), d = axis
        taps = []
        for tap in range(k):
            shift = tap * d - before
            first, last = max(0, -(shift // s)), min(size - 1, (i - 1 - shift) // s)
            taps.append(((tap - (k - 1) // 2) * d, shift, range(first, max(last + 1, first))))
        return taps

    def image(self, x: Tensor) -> Tensor:
        """An input as [n, g, c, *image]; one g where its channels do not divide by the groups: they all share it."""
        return x.unflatten(1, (self.groups, -1)) if x.shape[1] % self.groups == 0 else x[:, None]

    def bank(self, weight: Tensor, axes: str) -> Tensor:
        """A weight or parameter as [g, f, c, t], with 1 for the axes that it lacks; before them the axis "k"."""
        sizes = {"o": (self.groups, self.filters), "c": (self.channels,), "t": (self.tap_count,)}
        shape = itertools.chain.from_iterable(sizes[a] if a in axes else (1,) * len(sizes[a]) for a in "oct")
        banks = weight.shape[:1] if "k" in axes else ()
        return weight.to(self.dtype).reshape(*banks, *shape)

    def field(self, field: Tensor, axes: str) -> Tensor:
        """A value per output pixel as [n, g, f, t, *size], with 1 for the axes that it lacks."""
        field = field.unflatten(1, (self.groups, self.filters)) if "o" in axes else field[:, None, None]
        return field if "t" in axes else field.unsqueeze(3)

    def number(self, value: float) -> Tensor:
        """A number as a tensor of the dtype in which the kernel computes."""
        return torch.full((), value, dtype=self.dtype, device=self.device)

    def windows(self, dtype: torch.dtype | None = None) -> Tensor:
        """One value per window, to be written: [n, o, *size]."""
        return torch.empty(self.window_shape, dtype=dtype or self.dtype, device=self.device)

    def blocks(self, held: int = 1) -> Iterator[Block]:
        """All windows in blocks, for passes that hold `held` values per window."""
        budget = self.BLOCK.get(self.device.type, self.BLOCK_ELSEWHERE)
        # Values held are fewer at a time than they are: a larger block of them spares more calls than it costs.
        windows = budget if held <= 1 else max(4 * budget // held, 1)
        row = max(math.prod(self.size[1:]), 1)
        rows = _step(self.size[0], windows // row)
        g = _step(self.groups, windows // (rows * row))
        f = _step(self.filters, windows // (rows * row * g))
        self.channel_step = _step(self.channels, budget // (rows * row * g * f))
        n = _step(self.batch, min(windows, budget // self.channel_step) // (rows * row * g * f))
        for batch, groups, filters, lines in itertools.product(
            _pieces(self.batch, n), _pieces(self.groups, g), _pieces(self.filters, f), _pieces(self.size[0], rows)
        ):
            output = (range(lines.start, lines.stop), *map(range, self.size[1:]))
            yield Block(self, batch, groups, filters, output, output, slice(0, 1), None, False)


class Block(NamedTuple):
    """A block of windows, or one tap for a range of channels of them: values of shape [n, g, f, c, *pixels].

    `whole` are the pixels of the block, `output` those of them for which the tap exists.  `position` is the tap's
    number in scan order, None for the windows themselves.  `own` says that the channel is the output's own.
    """

    layout: Layout
    batch: slice
    groups: slice
    filters: slice
    whole: tuple[range, ...]
    output: tuple[range, ...]
    channels: slice
    position: int | None
    own: bool

    # -- Where -------------------------------------------------------------------------------------------------------

    def taps(self, axes: str = "ct", channels: int = 0) -> Iterator[Block]:
        """Every tap and channel of these windows, or only all taps ("t") or all channels ("c"), in scan order."""
        extent = (channels or self.layout.channels) if "c" in axes else 1
        seen = [(position, self._seeing(position)) for position in range(self.layout.tap_count)]
        taps = [tap for tap in seen if all(tap[1])] if "t" in axes else [(None, self.output)]
        for part, (position, output) in itertools.product(_pieces(extent, self.layout.channel_step), taps):
            yield self._replace(channels=part, position=position, output=output)

    @property
    def centre(self) -> Block:
        """The centre of the window."""
        return self._replace(position=self.layout.centre)

    @property
    def own_channel(self) -> Block:
        """The output's own channel."""
        return self._replace(own=True)

    def next(self, steps: int) -> Block:
        """The tap so many steps further on in scan order."""
        return self._replace(position=(self.position or 0) + steps)

    def _seeing(self, position: int) -> tuple[range, ...]:
        """The pixels of `output` for which a tap lies in the image."""
        if not 0 <= position < self.layout.tap_count:
            return (range(0),) * self.layout.rank
        return tuple(
            range(max(a.start, b.start), max(min(a.stop, b.stop), a.start, b.start))
            for a, b in zip(self.output, self.layout.taps[position][2])
        )

    # -- Operands ----------------------------------------------------------------------------------------------------

    def image(self, x: Tensor) -> Tensor:
        """The block of an input, a shifted view; 0 where the tap lies outside the image: [n, g, f, c, *pixels]."""
        seen, inside = self._pixels(x)
        if inside is not None:
            whole = seen.new_zeros([*seen.shape[:3], *map(len, self.output)])
            whole[..., *inside] = seen
            seen = whole
        return seen.unsqueeze(3 if self.own else 2).to(self.layout.dtype)

    def bank(self, weight: Tensor) -> Tensor:
        """The block of a weight or parameter; 0 past the last tap: [g, f, c, 1, ...]."""
        part = self._weights(weight)
        if part is None:
            part = weight.new_zeros([1, 1, 1])
        return part[(..., *[None] * self.layout.rank)]

    def field(self, field: Tensor) -> Tensor:
        """The block of a value per output pixel: [n, g, f, 1, *pixels]."""
        return self._field(field).unsqueeze(3).to(self.layout.dtype)

    def window(self, value: Tensor) -> Tensor:
        """The block of a value that was accumulated: [n, g, f, c, *pixels]; a number is the same everywhere."""
        if value.dim() == 0:
            return value
        value = value[self.position] if value.dim() == 5 + self.layout.rank else value
        return value[:, :, :, _pick(value, 3, self.channels), *map(_slice, self.output, self.whole)]

    def offset(self, axis: int) -> Tensor:
        """The tap's offset from the centre along an axis counted from the last (-1 is dx), in input pixels."""
        return self.layout.number(self.layout.taps[self.position][0][axis])

    def index(self, axis: str) -> Tensor:
        """The number of the tap ("t"), of the channel ("c") or of the filter ("o")."""
        if axis == "t":
            return self.layout.number(self.position)
        numbers = torch.arange(self.layout.window_shape[1], device=self.layout.device, dtype=self.layout.dtype)
        if axis == "o":
            numbers = numbers.unflatten(0, (self.layout.groups, -1))[self.groups, self.filters, None]
        else:
            numbers = self._channels().to(self.layout.dtype)
        return numbers[(..., *[None] * self.layout.rank)]

    def place(self, axes: str = "ct") -> Tensor:
        """The scan position of the tap among those that a reduction over `axes` sees.

        As wide as the numbers in which the kernel computes: `same` makes such numbers of it.
        """
        dtype = torch.int64 if self.layout.dtype == torch.float64 else torch.int32
        if axes == "t":
            return torch.full((), self.position, dtype=dtype, device=self.layout.device)
        numbers = self._channels() * self.layout.tap_count + self.position if axes == "ct" else self._channels()
        return numbers.to(dtype)[(..., *[None] * self.layout.rank)]

    def count(self, axes: str = "ct", channels: int = 0) -> Tensor:
        """How many taps, channels or both each window has inside the image, [1, 1, 1, 1, *pixels]."""
        extent = (channels or self.layout.channels) if "c" in axes else 1
        count = torch.zeros([1, 1, 1, 1, *map(len, self.whole)], dtype=self.layout.dtype, device=self.layout.device)
        if "t" not in axes:
            return count + extent
        for tap in self.taps("t"):
            count[..., *map(_slice, tap.output, self.whole)] += extent
        return count

    def over(self, value: Tensor | float, *dims: int) -> Tensor:
        """`value` repeated (as a view) along those of its dimensions of size 1 that are about to be reduced."""
        if not isinstance(value, Tensor):
            value = self.layout.number(value)
        value = value[(None,) * (4 + self.layout.rank - value.dim())]
        shape = [*map(_length, (self.batch, self.groups, self.filters, self.channels)), *map(len, self.output)]
        return value.expand([shape[d] if d in dims else -1 for d in range(value.dim())])

    # -- Values per window, and views to be added to -----------------------------------------------------------------

    def full(self, value: float, left: str = "", channels: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """A value for each window, and for each tap and channel of it that is `left`: [n, g, f, c, *pixels]."""
        shape = [*map(_length, (self.batch, self.groups, self.filters)), *map(len, self.whole)]
        shape.insert(3, (channels or self.layout.channels) if "c" in left else 1)
        taps = [self.layout.tap_count] * ("t" in left)
        return torch.full([*taps, *shape], value, dtype=dtype or self.layout.dtype, device=self.layout.device)

    def read(self, values: Tensor) -> Tensor:
        """The block of values that lie as [n, o, *size]."""
        block = self._of_windows(values)
        return block.to(self.layout.dtype) if block.is_floating_point() else block

    def write(self, values: Tensor, block: Tensor | float) -> None:
        """Put a block of values in their place in [n, o, *size]."""
        self._of_windows(values).copy_(block if isinstance(block, Tensor) else self.layout.number(block))

    def _of_windows(self, values: Tensor) -> Tensor:
        by_group = values.unflatten(1, (self.layout.groups, self.layout.filters))
        return by_group[self.batch, self.groups, self.filters, None, *map(_slice, self.whole)]

    def _pixels(self, x: Tensor) -> tuple[Tensor, tuple[slice, ...] | None]:
        """The pixels of [n, g, c, *image] that the tap sees, and which of the outputs see them (None: all)."""
        there = self._seeing(self.position)
        if all(there):
            steps = zip(there, self.layout.taps[self.position][1], self.layout.stride)
            image = [slice(r.start * s + shift, (r.stop - 1) * s + shift + 1, s) for r, shift, s in steps]
        else:
            image, there = [slice(0, 0)] * self.layout.rank, tuple(range(r.start, r.start) for r in self.output)
        channels = _pick(x, 2, self.filters if self.own else self.channels)
        seen = x[self.batch, _pick(x, 1, self.groups), channels, *image]
        return seen, None if there == self.output else tuple(map(_slice, there, self.output))

    def _weights(self, bank: Tensor) -> Tensor | None:
        if self.position is not None and not 0 <= self.position < self.layout.tap_count:
            return None
        position = self.position if bank.shape[3] > 1 else 0
        parts = [_pick(bank, d, part) for d, part in enumerate((self.groups, self.filters, self.channels))]
        if self.own:
            return bank[parts[0], parts[1], parts[1], position].diagonal(dim1=1, dim2=2)[:, :, None]
        return bank[*parts, position]

    def _field(self, field: Tensor) -> Tensor:
        parts = [_pick(field, 1, self.groups), _pick(field, 2, self.filters)]
        return field[self.batch, *parts, self.position if field.shape[3] > 1 else 0, *map(_slice, self.output)]

    def _channels(self) -> Tensor:
        return torch.arange(self.channels.start, self.channels.stop, device=self.layout.device)


def _step(extent: int, budget: int) -> int:
    return max(min(extent, budget), 1)


def _pieces(extent: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, extent)) for start in range(0, extent, step)]


def _pick(tensor: Tensor, dim: int, part: slice) -> slice:
    return part if tensor.shape[dim] > 1 else slice(None)


def _slice(part: range, whole: range = range(0)) -> slice:
    """A range of pixels as a slice, counted from the start of another range."""
    return slice(part.start - whole.start, part.stop - whole.start)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


class Sum:
    """The sum of a tap value over the axes `over` of each window, for each tap or channel that is `left`."""

    IDENTITY: ClassVar[float] = 0.0

    def __init__(self, windows: Block, over: str = "ct", left: str = "", channels: int = 0) -> None:
        self.windows, self.over, self.left, self.channels = windows, over, left, channels
        self.value = self.full(self.IDENTITY)

    def full(self, value: float, dtype: torch.dtype | None = None) -> Tensor:
        return self.windows.full(value, self.left, self.channels, dtype)

    def seen(self, value: Tensor, tap: Block) -> Tensor:
        """A tap value with all the channels that are about to be reduced."""
        return tap.over(value, 3) if "c" in self.over else tap.over(value)

    def reduced(self, value: Tensor, reduce: str) -> Tensor:
        """A tap value without its channels, if they are reduced."""
        return getattr(torch, reduce)(value, 3, keepdim=True) if "c" in self.over else value

    def add(self, tap: Block, value: Tensor) -> None:
        tap.window(self.value).add_(self.reduced(self.seen(value, tap), "sum"))

    def result(self) -> tuple[Tensor, ...]:
        return (self.value,)


class Product(Sum):
    """The product of a tap value."""

    IDENTITY = 1.0

    def add(self, tap: Block, value: Tensor) -> None:
        tap.window(self.value).mul_(self.reduced(self.seen(value, tap), "prod"))


class Factors(Product):
    """The product of a tap value, that of the values that are not 0, and how many are."""

    def __init__(self, windows: Block, over: str = "ct", left: str = "", channels: int = 0) -> None:
        super().__init__(windows, over, left, channels)
        self.nonzero, self.zeros = self.full(1.0), self.full(0.0)

    def add(self, tap: Block, value: Tensor) -> None:
        super().add(tap, value)
        value = self.seen(value, tap)
        zero = value == 0
        tap.window(self.nonzero).mul_(self.reduced(value.masked_fill(zero, 1), "prod"))
        tap.window(self.zeros).add_(self.reduced(zero, "sum"))

    def result(self) -> tuple[Tensor, ...]:
        return self.value, self.nonzero, self.zeros


class Max(Sum):
    """The maximum of a tap value; NaN wins."""

    IDENTITY = -torch.inf

    def add(self, tap: Block, value: Tensor) -> None:
        best = tap.window(self.value)
        torch.maximum(best, self.reduced(self.seen(value, tap), "amax"), out=best)


class FirstMax(Max):
    """The maximum of a tap value and the scan position of the first tap that attains it; NaN wins."""

    def __init__(self, windows: Block, over: str = "ct", left: str = "", channels: int = 0) -> None:
        super().__init__(windows, over, left, channels)
        self.position = self.full(torch.iinfo(torch.int32).max, torch.int32)

    def add(self, tap: Block, value: Tensor) -> None:
        best, position, value = tap.window(self.value), tap.window(self.position), self.seen(value, tap)
        if "c" not in self.over:  # taps come in scan order, so only a larger value takes the place
            better = ~(value <= best) & (best == best) | (value == best) & (position > tap.position)
            torch.maximum(best, value, out=best)
            position.masked_fill_(better, tap.position)
            return
        top, channel = value.max(3, keepdim=True)
        here = tap.channels.start + channel
        here = here * tap.layout.tap_count + tap.position if "t" in self.over else here
        earlier = here < position
        better = (top > best) | ((top == best) & earlier) | (top.isnan() & (~best.isnan() | earlier))
        best.copy_(torch.where(better, top, best))
        position.copy_(torch.where(better, here, position))

    def result(self) -> tuple[Tensor, ...]:
        return self.value, self.position


class Exponentials(Sum):
    """The maximum of a tap value, made finite, and the sum of exp(value - maximum)."""

    def __init__(self, windows: Block, over: str = "ct", left: str = "", channels: int = 0) -> None:
        super().__init__(windows, over, left, channels)
        self.top = self.full(-torch.inf)

    def add(self, tap: Block, value: Tensor) -> None:
        total, top = tap.window(self.value), tap.window(self.top)
        value = self.seen(value, tap)
        new = torch.maximum(top, self.reduced(value, "amax"))
        peak = finite(new)
        total.mul_(torch.exp(top - peak)).add_(self.reduced(torch.exp(value - peak), "sum"))
        top.copy_(new)

    def result(self) -> tuple[Tensor, ...]:
        return finite(self.top), self.value


class Mean(Sum):
    """The running mean of a tap value (Welford); for a constant it is that constant."""

    def __init__(self, windows: Block, over: str = "ct", left: str = "", channels: int = 0) -> None:
        super().__init__(windows, over, left, channels)
        self.mean = self.full(0.0)
        self.count = windows.full(0.0, left.replace("c", ""))[..., :1, :1, :1, :1, *[slice(None)] * windows.layout.rank]

    def add(self, tap: Block, value: Tensor) -> None:
        total, mean, count = tap.window(self.value), tap.window(self.mean), tap.window(self.count)
        value = self.seen(value, tap)
        total.add_(self.reduced(value, "sum"))
        if "c" in self.over:  # from the first channel on, so that a constant stays what it is
            count.add_(value.shape[3])
            first = value[:, :, :, :1]
            mean.add_((first + torch.mean(value - first, 3, keepdim=True) - mean) * (value.shape[3] / count))
        else:
            count.add_(1)
            mean.add_((value - mean) / count)

    def result(self) -> tuple[Tensor, ...]:
        # Beside an infinite value the running mean is NaN; the sum knows better.
        return (torch.where(self.mean.isfinite(), self.mean, self.value / self.count.clamp(min=1)),)


class Rank(Sum):
    """The value of a rank, counted from 0 for the smallest; NaN wins.  Holds every tap value of the block."""

    IDENTITY = torch.inf

    def __init__(self, windows: Block, over: str = "ct", left: str = "", channels: int = 0) -> None:
        super().__init__(windows, over, over + left, channels)
        self.valid = windows.full(False, "t" if "t" in self.left else "", dtype=torch.bool)

    def add(self, tap: Block, value: Tensor) -> None:
        tap.window(self.value).copy_(self.seen(value, tap))
        tap.window(self.valid).fill_(True)

    def taps(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The values in scan order, and which of them count."""
        values, valid = torch.broadcast_tensors(self.value, self.valid)
        if self.over == "ct":
            values, valid = (each.movedim(4, 0).flatten(0, 1).unsqueeze(4) for each in (values, valid))
        along = 0 if "t" in self.over else values.dim() - 1 - self.windows.layout.rank
        if along:
            return values.split(1, along), valid.split(1, along)
        return values.unbind(0), valid.unbind(0)

    def result(self, rank: Tensor | float) -> tuple[Tensor, ...]:
        values, valid = self.taps()
        rank, ordered = torch.as_tensor(rank, device=values[0].device), list(values)
        for low, high in _comparators(len(ordered)):
            a, b = ordered[low], ordered[high]
            ordered[low], ordered[high] = torch.minimum(a, b), torch.maximum(a, b)
        found = ordered[0]
        for k in range(1, len(ordered)):
            found = torch.where(rank == k, ordered[k], found)
        some, broken = valid[0], valid[0] & values[0].isnan()
        for value, counts in zip(values[1:], valid[1:]):
            some, broken = some | counts, broken | (counts & value.isnan())
        return (torch.where(broken, torch.nan, torch.where(some, found, 0.0)),)


class FirstRank(Rank):
    """The value of a rank, and the scan position of the first tap that has it; -1 where no tap counts."""

    def result(self, rank: Tensor | float) -> tuple[Tensor, ...]:
        (found,) = super().result(rank)
        values, valid = self.taps()
        position = torch.full(found.shape, -1, dtype=torch.int32, device=found.device)
        for k in reversed(range(len(values))):
            here = valid[k] & ((values[k] == found) | (values[k].isnan() & found.isnan()))
            position.masked_fill_(here, k)
        return found, position


@functools.cache
def _comparators(n: int) -> list[tuple[int, int]]:
    """Pairs to be put in order, one after the other, to sort n values (Batcher's odd-even merge sort)."""
    pairs = []
    size = 1
    while size < n:
        step = size
        while step:
            for start in range(step % size, n - step, 2 * step):
                for low in range(start, min(start + step, n - step)):
                    if low // (2 * size) == (low + step) // (2 * size):
                        pairs.append((low, low + step))
            step //= 2
        size *= 2
    return pairs


class ImageGradient:
    """The gradient of an input, gathered tap by tap into the pixels that the tap saw."""

    def __init__(self, layout: Layout, x: Tensor) -> None:
        self.total = torch.zeros(x.shape, dtype=layout.dtype, device=layout.device)
        self.by_group = layout.image(self.total)

    def add(self, tap: Block, value: Tensor) -> None:
        seen, inside = tap._pixels(self.by_group)
        channel, absent = (2, 3) if tap.own else (3, 2)
        dims = [absent, *[1] * (seen.shape[1] == 1), *[channel] * (seen.shape[2] == 1)]
        part = tap.over(value, *dims).sum(dims, keepdim=True).squeeze(absent)
        seen.add_(part if inside is None else part.expand([*part.shape[:3], *map(len, tap.output)])[..., *inside])

    def result(self, like: Tensor) -> Tensor:
        return self.total.to(like.dtype)


class BankGradient:
    """The gradient of a weight or parameter, summed over the batch, the pixels and the axes that it lacks."""

    def __init__(self, layout: Layout, bank: Tensor) -> None:
        self.total = torch.zeros_like(bank)

    def add(self, tap: Block, value: Tensor, element: int | None = None) -> None:
        total = self.total if element is None else self.total[element]
        place = tap._weights(total)
        if place is None:
            return
        lacking = [d for d in (1, 2, 3) if place.shape[d - 1] == 1]
        dims = [0, *lacking, *range(4, 4 + tap.layout.rank)]
        part = tap.over(value, *dims).sum(dims, keepdim=True)
        place.add_(part.reshape(part.shape[1:4]))

    def result(self, like: Tensor) -> Tensor:
        return self.total.reshape(like.shape).to(like.dtype)


class FieldGradient:
    """The gradient of a value per output pixel, summed over the axes that it lacks."""

    def __init__(self, layout: Layout, field: Tensor) -> None:
        self.total = torch.zeros(field.shape, dtype=layout.dtype, device=layout.device)

    def add(self, tap: Block, value: Tensor) -> None:
        place = tap._field(self.total)
        dims = [3, *(d for d in (1, 2) if place.shape[d] == 1)]
        place.add_(tap.over(value, *dims).sum(dims, keepdim=True).squeeze(3))

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
    """1 where a position kept by a reduction is the tap's, else 0, in the dtype in which the kernel computes."""
    return (a == b).to(torch.float64 if torch.int64 in (a.dtype, b.dtype) else torch.float32)


def reciprocal(r: Tensor) -> Tensor:
    """1 / r, and 0 where r is 0."""
    return torch.where(r == 0, 0.0, 1 / r)


def shift(r: Tensor) -> Tensor:
    """r, and 0 where r is -inf."""
    return torch.where(r == -torch.inf, 0.0, r)


def finite(r: Tensor) -> Tensor:
    """r, and the largest or the smallest number where r is infinite."""
    largest = torch.finfo(r.dtype).max
    return r.clamp(-largest, largest)
