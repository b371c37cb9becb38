"""How native backends hand a call to a kernel: `Tiles` are compiled in; a `Plan` is made once per shape."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import BackendError
from ..geometry import Geometry
from .native_facts import OTHER_CHANNELS, Facts


def real_bytes(dtype: torch.dtype) -> int:
    """The bytes of a number as it is computed with, for tensors of a dtype."""
    return 8 if dtype == torch.float64 else 4


@dataclass(frozen=True)
class Tiles:
    """What the innermost loops hold in registers.

    Args:
        filters, vectors: of a tile of the forward pass; windows, and vectors of filters, if lanes are filters.
        row: vectors of a tile of one filter.
        backward_vectors: vectors of a tile of sweeps of the backward pass.
        image_taps: taps of a tile of the gradients of images.
        image_row: vectors of a tile of one tap, or of pixels that sum their gradients; pixels if lanes are channels.
        bank_filters, bank_taps: of a tile of the gradients of weights.
    """

    filters: int
    vectors: int
    row: int
    backward_vectors: int
    image_taps: int
    image_row: int
    bank_filters: int
    bank_taps: int

    def options(self) -> list[str]:
        """The tiles as options of the compiler."""
        named = {
            "FORWARD_FILTERS": self.filters,
            "FORWARD_VECTORS": self.vectors,
            "FORWARD_ROW": self.row,
            "BACKWARD_FILTERS": 1,
            "BACKWARD_VECTORS": self.backward_vectors,
            "BACKWARD_ROW": self.backward_vectors,
            "IMAGE_TAPS": self.image_taps,
            "IMAGE_ROW": self.image_row,
            "BANK_FILTERS": self.bank_filters,
            "BANK_TAPS": self.bank_taps,
        }
        return [f"-D{name}={value}" for name, value in named.items()]


def power_below(n: int) -> int:
    """The greatest power of two that is not more, at least 1."""
    return 1 << (max(n, 1).bit_length() - 1)


class NativeGeometry(ctypes.Structure):
    """`Geometry` of the static headers: axes are z, y, x; those that the image lacks have one element."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "groups", "filters", "channels")),
        *((name, ctypes.c_int64 * 3) for name in ("image", "size", "kernel", "stride", "before", "dilation")),
        ("pitch", ctypes.c_int64),
        ("strip", ctypes.c_int64),
        ("filter_step", ctypes.c_int64),
        ("by_filters", ctypes.c_int64),
        ("more_strips", ctypes.c_int64),
        ("more_images", ctypes.c_int64),
        ("margin", ctypes.c_int64),
        ("by_positions", ctypes.c_int64),
        ("overwrites", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    ]


@dataclass(frozen=True)
class Line:
    """The windows of one image and one z, row after row, see `window.hpp`.

    Args:
        geometry: of the call, without strips.
        pitch: places of a row.
        length: places of the line.
        reach: for each axis, how many windows further on the last tap of a window is the first one.
        planes: for each channel, the planes that hold what its windows see.
    """

    geometry: NativeGeometry
    pitch: int
    length: int
    reach: tuple[int, int, int]
    planes: int

    @property
    def halo(self) -> int:
        """The places that a strip sees beyond its windows."""
        return self.reach[1] * self.pitch + self.reach[2]

    @property
    def lines(self) -> int:
        """How many such lines an image has."""
        return int(self.geometry.size[0])

    @property
    def sees_all(self) -> bool:
        """Whether each pixel of the image lies in a plane of the one line that there is."""
        native = self.geometry
        if (native.image[0], native.size[0], native.kernel[0], native.before[0]) != (1, 1, 1, 0):
            return False
        for axis in (1, 2):
            stride, taps = native.stride[axis], native.kernel[axis]
            whole = taps >= stride and math.gcd(native.dilation[axis], stride) == 1
            if not whole or (native.size[axis] + self.reach[axis]) * stride < native.image[axis] + native.before[axis]:
                return False
        return True

    def native_geometry(self, strip: int, filter_step: int, **chosen: int) -> NativeGeometry:
        """The geometry, with what a plan has chosen."""
        geometry = NativeGeometry.from_buffer_copy(self.geometry)
        for name, value in {"strip": strip, "filter_step": filter_step, **chosen}.items():
            setattr(geometry, name, value)
        return geometry


def line_of(x: torch.Tensor, geometry: Geometry) -> Line:
    """The line of windows of a call for an input `[N, channels, *size]`."""
    rank = len(geometry.kernel_size)

    def axes(values: Sequence[int], absent: int) -> tuple[int, ...]:
        return (absent,) * (3 - rank) + tuple(values)

    kernel, stride, dilation = (axes(v, 1) for v in (geometry.kernel_size, geometry.stride, geometry.dilation))
    image, size = axes(x.shape[2:], 1), axes(geometry.output_size(x.shape[2:]), 1)
    z, y, across = ((k - 1) * d // s for k, d, s in zip(kernel, dilation, stride))
    residues = [{t * d % s for t in range(k)} for k, d, s in zip(kernel[1:], dilation[1:], stride[1:])]
    native = NativeGeometry(
        x.shape[0],
        geometry.groups,
        geometry.out_channels // geometry.groups,
        x.shape[1] // geometry.groups,
        *((ctypes.c_int64 * 3)(*v) for v in (image, size, kernel, stride)),
        (ctypes.c_int64 * 3)(*axes([before for before, _ in geometry.padding], 0)),
        (ctypes.c_int64 * 3)(*dilation),
    )
    native.pitch = pitch = size[2] + across - _shared_zeros(native, across, residues[1])
    return Line(
        native, pitch, (size[1] - 1) * pitch + size[2], (z, y, across), kernel[0] * math.prod(map(len, residues))
    )


def _shared_zeros(native: NativeGeometry, reach: int, residues: set[int]) -> int:
    """The places where the windows of a row look beyond the image at its end, and those of the next row before it."""
    image, before, stride = (values[2] for values in (native.image, native.before, native.stride))
    at_begin = min(-((residue - before) // stride) for residue in residues)
    at_end = native.size[2] + reach - max(-((residue - before - image) // stride) for residue in residues)
    return max(min(at_begin, at_end, reach), 0)  # windows that see zeros alone have places of their own


#: So many values at most are put in order in registers.
FEW = 32


def ranked(facts: Facts, x: torch.Tensor, geometry: Geometry) -> int:
    """How many values a kernel puts in order, 0 if they are many, or not always as many."""
    if len(facts.ranked) != 1 or facts.ranked[0].endswith(OTHER_CHANNELS):
        return 0
    sizes = {"t": math.prod(geometry.kernel_size), "c": x.shape[1] // geometry.groups}
    count = math.prod(sizes[axis] for axis in facts.ranked[0])
    return count if count <= FEW else 0


def channels_of(facts: Facts, tensors: Sequence[torch.Tensor], groups: int) -> list[int]:
    """The channels of each input that a group sees."""
    inputs = [each for each, role in zip(tensors, facts.roles) if role == "input"]
    return [each.shape[1] // (groups if each.shape[1] % groups == 0 else 1) for each in inputs]


#: The roles of operands that are read as they lie in memory, without steps.
PACKED = ("weight", "bias", "param")
#: How a tensor lies whose values stand in memory with the other sign, such as the imaginary part of a conjugate.
NEGATED = "negated"
#: Numbers per tensor: data, channels, group, and the steps along n, channel, tap, z, y, x.
TENSOR = 9
#: So many ways in which the tensors of one shape may lie a plan remembers.
MAX_LAYOUTS = 256


def in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, if it has memory, or the zeros that one without any stands for where PyTorch adds up derivatives.

    Raises:
        BackendError: if it is neither.
    """
    if tensor.data_ptr() or tensor.numel() == 0:
        return tensor
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    raise BackendError(
        f"a {type(tensor).__name__} of shape {list(tensor.shape)} has no memory that a kernel could read"
    )


@dataclass(frozen=True)
class Plan:
    """How one call is cut, for tensors of given shapes.

    Args:
        strip: windows of a strip.
        filter_step: filters that are computed together.
        output_shape: `[N, out_channels, *size]`.
        groups: of the call.
    """

    strip: int
    filter_step: int
    output_shape: tuple[int, ...]
    groups: int = field(repr=False)
    _layouts: dict[Any, Any] = field(default_factory=dict, repr=False, init=False)

    @property
    def overwrites(self) -> bool:
        """Whether a call writes all of the gradients of inputs; else it adds to zeros."""
        return False

    def arguments(
        self, tensors: Sequence[torch.Tensor | None], roles_and_axes: Sequence[tuple[str, str]]
    ) -> tuple[Any, Sequence[torch.Tensor | None]]:
        """The tensors as the library reads them, and those that must live until it returns.

        Args:
            tensors: operands, values per window, gradients; None for a gradient that is not wanted.
            roles_and_axes: of each.
        """
        said = tuple(
            [
                None if each is None else NEGATED if each.is_neg() else each.is_contiguous() or each.stride()
                for each in tensors
            ]
        )
        if NEGATED in said:
            return self.arguments([each if each is None else each.resolve_neg() for each in tensors], roles_and_axes)
        found = self._layouts.get(said)
        if found is None:
            tensors = [
                tensor.contiguous() if tensor is not None and role in PACKED else tensor
                for tensor, (role, _) in zip(tensors, roles_and_axes)
            ]
            numbers = [n for tensor, each in zip(tensors, roles_and_axes) for n in self._layout(tensor, *each)]
            found = (ctypes.c_int64 * len(numbers))(*numbers)
            if all(each is None or each is True or role not in PACKED for each, (role, _) in zip(said, roles_and_axes)):
                if len(self._layouts) >= MAX_LAYOUTS:  # of views, say, that are cut from images of many sizes
                    self._layouts.clear()
                self._layouts[said] = found
        arguments = type(found).from_buffer_copy(found)  # other threads may be calling
        for index, tensor in enumerate(tensors):
            if tensor is not None:
                arguments[index * TENSOR] = address = tensor.data_ptr()
                if address == 0 and tensor.numel() > 0:
                    return self.arguments(
                        [each if each is None else in_memory(each) for each in tensors], roles_and_axes
                    )
        return arguments, tensors

    def _layout(self, tensor: torch.Tensor | None, role: str, axes: str) -> list[int]:
        """One tensor as the library reads it, without its data."""
        if tensor is None or role in PACKED:
            return [0] * TENSOR
        stride, rank = tensor.stride(), len(self.output_shape) - 2
        channels = group = 0
        along = {"o": 0, "t": 0}
        if role == "input":
            along["o"] = stride[1]
            shared = tensor.shape[1] % self.groups != 0
            channels = tensor.shape[1] if shared else tensor.shape[1] // self.groups
            group = 0 if shared else channels
        else:
            along |= dict(zip(axes, stride[1:]))
        steps = [stride[0], along["o"], along["t"], *[0] * (3 - rank), *stride[len(stride) - rank :]]
        return [0, channels, group, *steps]
