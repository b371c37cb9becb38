"""How the windows lie on an image: PyTorch's convolution arguments, checked and made explicit."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import torch

from .errors import ArgumentError, ArgumentTypeError

IntOrInts: TypeAlias = SupportsIndex | Sequence[SupportsIndex]

#: Along an axis of a padded image.
MOST_PIXELS = 2**31 - 1

PADDING_MODES = ("zeros", "reflect", "replicate", "circular", "constant", "ignore")


class Geometry(NamedTuple):
    """The windows of one call, per axis of the image.

    `padding` are rows before the image and after it.  A tap there leaves the window where `ignore` says so, and reads 0
    otherwise; padding with anything else is already part of the image.
    """

    kernel_size: tuple[int, ...]
    out_channels: int
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    ignore: bool = True

    def output_size(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """The number of windows along each axis, as `torch.nn.Conv2d` counts them."""
        axes = zip(image_size, self.kernel_size, self.stride, self.padding, self.dilation)
        return tuple((i + sum(p) - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in axes)

    def output_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """`[N, out_channels, *size]`, for an input `[N, channels, *image]`."""
        return (x_shape[0], self.out_channels, *self.output_size(x_shape[2:]))

    @property
    def is_padded(self) -> bool:
        """Whether there are rows around the image, of whatever kind."""
        return any(map(any, self.padding))

    @property
    def ignores_padding(self) -> bool:
        """Whether windows have fewer taps at the border of the image."""
        return self.ignore and self.is_padded

    def numbers(self) -> list[int]:
        """The geometry as a flat list, for an operator's signature."""
        flat = [*self.kernel_size, *self.stride, *(side for pair in self.padding for side in pair), *self.dilation]
        return [self.out_channels, self.groups, int(self.ignore), *flat]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Geometry:
        """The inverse of `numbers`."""
        out_channels, groups, ignore, *flat = numbers
        rank = len(flat) // 5
        kernel_size, stride, before_after, dilation = (
            tuple(flat[:rank]),
            tuple(flat[rank : 2 * rank]),
            flat[2 * rank : 4 * rank],
            tuple(flat[4 * rank :]),
        )
        padding = tuple(zip(before_after[::2], before_after[1::2]))
        return cls(kernel_size, out_channels, stride, padding, dilation, groups, bool(ignore))


def whole(value: Any) -> int | None:
    """An int, NumPy's too, as one of Python's; None for what is none, and for a bool.

    >>> import numpy
    >>> whole(numpy.int64(3)), whole(True), whole(3.0)
    (3, None, None)
    """
    if type(value) is int:
        return value
    if isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def count(value: Any, name: str) -> int:
    """A number of channels or groups.

    Raises:
        ArgumentError: if it is no positive int.
    """
    number = whole(value)
    if number is None or number < 1:
        raise ArgumentError(f"{name} must be a positive int, not {value!r}")
    return number


def per_axis(value: IntOrInts, rank: int, name: str, least: int) -> tuple[int, ...]:
    """An int or one int per axis as a tuple.

    Raises:
        ArgumentTypeError: if it is neither.
        ArgumentError: if there is a wrong number of them, or one is below `least`.
    """
    given = value if isinstance(value, (tuple, list)) else (value,)
    values = tuple(number for number in map(whole, given) if number is not None)
    if len(values) < len(given):
        raise ArgumentTypeError(f"{name} must be an int or a tuple of {rank} ints, not {value!r}")
    if len(values) == 1:
        values *= rank
    if len(values) != rank:
        raise ArgumentError(
            f"{name} must be an int or a tuple of {rank} ints, one per axis of the image, not {value!r}"
        )
    if any(v < least for v in values):
        raise ArgumentError(f"{name} must be at least {least}, not {value!r}")
    return values


def padding_pairs(
    padding: str | IntOrInts,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """The padding before and after the image along each axis; "same" and "valid" as `torch.nn.Conv2d`.

    Raises:
        ArgumentError: for another string, for "same" with a stride, for a negative padding.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * len(kernel_size)
        if padding != "same":
            raise ArgumentError(f"padding must be an int, a tuple of ints, 'same' or 'valid', not {padding!r}")
        if any(s != 1 for s in stride):
            raise ArgumentError(f"padding='same' needs stride 1, not {stride}; give the padding as a number")
        totals = [d * (k - 1) for k, d in zip(kernel_size, dilation)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in per_axis(padding, len(kernel_size), "padding", 0))


def check_padding_mode(mode: str, value: Any) -> None:
    """Refuse an unknown padding mode, a value that is no number, and one for a mode that pads with something else.

    As `torch.nn.functional.pad` does; 0 and None say nothing.
    """
    if mode not in PADDING_MODES:
        raise ArgumentError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, not {mode!r}")
    if not isinstance(value, (numbers.Real, torch.Tensor, NoneType)) and getattr(value, "ndim", None) != 0:
        raise ArgumentTypeError(f"padding_value must be a number, not {value!r}")
    if mode != "constant" and value is not None and value != 0:
        raise ArgumentError(
            f"padding_value={value!r} is for padding_mode='constant', and padding_mode is {mode!r}, which takes no "
            "value: give padding_mode='constant', or leave padding_value out"
        )


def check_windows_fit(
    image_size: Sequence[int], padding: Sequence[tuple[int, int]], geometry: Geometry, padding_mode: str
) -> None:
    """Refuse an image that holds no window, or that is too small to be reflected or wrapped.

    Args:
        image_size: before padding.
        padding: before and after the image, of any mode.
        geometry: the windows.
        padding_mode: one of `PADDING_MODES`.
    """
    widest = {"reflect": -1, "circular": 0}.get(padding_mode, math.inf)
    for axis, (size, sides) in enumerate(zip(image_size, padding)):
        if max(sides) > size + widest:
            raise ArgumentError(
                f"padding {max(sides)} with padding_mode={padding_mode!r} is too wide for an image of size "
                f"{tuple(image_size)}: along axis {axis} it can be at most {size + widest}"
            )
        if padding_mode == "replicate" and size == 0 and max(sides) > 0:
            raise ArgumentError(f"an image of size {tuple(image_size)} has no border to replicate")
        extent = geometry.dilation[axis] * (geometry.kernel_size[axis] - 1) + 1
        if max(extent, size + sum(sides)) > MOST_PIXELS:
            raise ArgumentError(
                f"along axis {axis} the window spans {extent} pixels and the padded image {size + sum(sides)}: at most "
                f"{MOST_PIXELS} are possible, so use less dilation or padding"
            )
        if size + sum(sides) < extent:
            raise ArgumentError(
                f"the window is larger than the image: along axis {axis} kernel_size {geometry.kernel_size[axis]} with "
                f"dilation {geometry.dilation[axis]} spans {extent}, the padded image has {size + sum(sides)} "
                f"({size} and padding {sides[0]} + {sides[1]})"
            )
