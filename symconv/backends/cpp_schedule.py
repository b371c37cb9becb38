"""How the C++ backend cuts the work: register tiles per kernel, strips of windows per call.

`Tiles` are compiled in; they follow from the number of vector registers and from what a kernel accumulates.  A `Plan`
is made once per shape; it follows from the size of the caches.  Both print what they decided.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..geometry import Geometry
from ..kernel import Kernel
from ..language.axes import domain
from ..lower import Schedule, Sweep

#: Vectors that an accumulator of each kind holds.
STATE = {"sum": 1, "product": 1, "max": 1, "first_max": 2, "exponentials": 2, "mean": 3, "moment": 4}
#: Functions that take many instructions and many registers.
HEAVY = frozenset(
    "exp log sin cos tan tanh sigmoid pow expm1 log1p softplus asin acos atan atan2 sinh cosh erf sinc".split()
)


class Facts(NamedTuple):
    """What a call needs to know of a kernel, in plain data: it is kept beside the source."""

    tensors: list[str]
    roles: list[str]
    axes: list[str]
    kept: list[str]
    has_gradient: list[str]
    per_filter: bool
    state: list[int]
    sinks: list[int]
    heavy: list[int]
    values: list[list[int]]


def facts_of(kernel: Kernel, schedule: Schedule) -> Facts:
    """The facts of a kernel.  Pairs are for the forward and the backward pass."""
    signature = kernel.signature
    places = [place for sweep in schedule.backward for place in sweep.gradients]
    per_filter = any("o" in axes for role, axes in zip(signature.roles, signature.axes) if role != "bias")
    passes = schedule.forward, schedule.backward
    return Facts(
        list(signature.tensors),
        list(signature.roles),
        list(signature.axes),
        ["position" if symbol.position else "value" for symbol in schedule.kept],
        sorted(schedule.has_gradient),
        per_filter,
        [max((sum(STATE.get(a.kind, 0) for a in sweep.accumulators) for sweep in each), default=1) for each in passes],
        [
            sum(place.operand.role == "input" for place in places),
            sum(place.operand.role != "input" for place in places),
        ],
        [
            sum(count for sweep in each for name, count in sweep.taps.operations.items() if name in HEAVY)
            for each in passes
        ],
        [_values(sweeps, extra) for sweeps, extra in zip(passes, (1, 1 + len(schedule.kept)))],
    )


def _values(sweeps: Sequence[Sweep], extra: int) -> list[int]:
    """How many values per window, per window and channel, per window and tap are held."""
    found = [extra, 0, 0]
    for sweep in sweeps:
        found[0] += len(sweep.names)
        for each in sweep.accumulators:
            found[{"": 0, "c": 1, "t": 2}[domain(each.left).axes]] += len(each.symbols)
    return found


@dataclass(frozen=True)
class Tiles:
    """What the innermost loops hold in registers.

    Args:
        filters, vectors: of a tile of the forward pass.
        row: vectors of a tile of one filter.
        again: vectors of a tile of sweeps that the backward pass repeats.
        image_taps: taps of a tile of the gradients of images.
        bank_filters, bank_taps: of a tile of the gradients of weights.
    """

    filters: int
    vectors: int
    row: int
    again: int
    image_taps: int
    bank_filters: int
    bank_taps: int

    def options(self) -> list[str]:
        """The tiles as options of the compiler."""
        named = {
            "FORWARD_FILTERS": self.filters,
            "FORWARD_VECTORS": self.vectors,
            "FORWARD_ROW": self.row,
            "BACKWARD_FILTERS": 1,
            "BACKWARD_VECTORS": self.again,
            "BACKWARD_ROW": self.again,
            "IMAGE_TAPS": self.image_taps,
            "BANK_FILTERS": self.bank_filters,
            "BANK_TAPS": self.bank_taps,
        }
        return [f"-D{name}={value}" for name, value in named.items()]


def tiles_of(facts: Facts, vector_bytes: int) -> Tiles:
    """The tiles of a kernel: as large as the registers hold, smaller where functions need registers of their own."""
    registers = 32 if vector_bytes == 64 else 16
    room = registers // 2
    if facts.heavy[0]:
        room //= 2
    state = max(facts.state[0], 1)
    vectors = 2 if room // state >= 2 else 1
    filters = _power_below(room // (state * vectors)) if facts.per_filter else 1
    back = room if not facts.heavy[1] else registers // 8
    images, banks = (max(count, 1) for count in facts.sinks)
    bank = _power_below(max(back // banks, 1))
    bank_filters = _power_below(max(math.isqrt(bank), 1)) if facts.per_filter else 1
    return Tiles(
        filters,
        vectors,
        max(vectors, min(4, _power_below(room // state))),
        2,
        _power_below(max(back // (4 * images), 1)),
        bank_filters,
        min(bank // bank_filters, 4),
    )


def _power_below(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


@functools.cache
def cache_bytes() -> int:
    """The size of a core's second-level cache in bytes; 512 KiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 512 * 1024


class _Geometry(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "groups", "filters", "channels")),
        *((name, ctypes.c_int64 * 3) for name in ("image", "size", "kernel", "stride", "before", "dilation")),
        ("strip", ctypes.c_int64),
        ("filter_step", ctypes.c_int64),
    ]


#: The roles of operands that are read as they lie in memory, without steps.
PACKED = ("weight", "bias", "param")
#: Numbers per tensor: data, channels, group, and the steps along n, channel, tap, z, y, x.
TENSOR = 9


@dataclass(frozen=True)
class Plan:
    """How one call is cut, for tensors of given shapes.

    Args:
        strip: windows of a strip.
        filter_step: filters that are computed together.
        threads: that share the strips.
        output_shape: `[N, out_channels, *size]`.
        geometry: the same and the geometry, as the library reads it.
    """

    strip: int
    filter_step: int
    threads: int
    output_shape: tuple[int, ...]
    geometry: Any = field(repr=False)
    groups: int = field(repr=False)
    function: Any = field(default=None, repr=False)
    _scratch: list[int] = field(default_factory=list, repr=False)
    _layouts: dict[Any, Any] = field(default_factory=dict, repr=False)

    def with_function(self, function: Any) -> Plan:
        return replace(self, function=function)

    def scratch_bytes(self, arguments: Any) -> int:
        """The memory that a call needs besides its tensors."""
        if not self._scratch:
            numbers = (ctypes.c_double * 16)()
            self._scratch.append(self.function(self.geometry, arguments, numbers, None, self.threads))
        return self._scratch[0]

    def arguments(
        self, tensors: Sequence[torch.Tensor | None], lying: Sequence[tuple[str, str]]
    ) -> tuple[Any, list[torch.Tensor | None]]:
        """The tensors as the library reads them, and those that must live until it returns.

        Args:
            tensors: operands, values per window, gradients; None for a gradient that is not wanted.
            lying: the role and the axes of each.
        """
        tensors = [
            tensor.contiguous() if tensor is not None and role in PACKED else tensor
            for tensor, (role, _) in zip(tensors, lying)
        ]
        strides = tuple(None if tensor is None else tensor.stride() for tensor in tensors)
        found = self._layouts.get(strides)
        if found is None:
            numbers = [n for tensor, each in zip(tensors, lying) for n in self._layout(tensor, *each)]
            found = self._layouts[strides] = (ctypes.c_int64 * len(numbers))(*numbers)
        arguments = type(found).from_buffer_copy(found)  # other threads may be calling
        for index, tensor in enumerate(tensors):
            if tensor is not None:
                arguments[index * TENSOR] = tensor.data_ptr()
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


def plan_of(
    facts: Facts,
    direction: str,
    tiles: Tiles,
    vector_bytes: int,
    tensors: Sequence[torch.Tensor],
    geometry: Geometry,
    threads: int,
) -> Plan:
    """The plan for tensors of these shapes."""
    x, rank = tensors[0], len(geometry.kernel_size)
    size = geometry.output_size(x.shape[2:])
    real = 8 if x.dtype == torch.float64 else 4
    width = vector_bytes // real
    backward = direction == "backward"
    step = width * (tiles.again if backward else tiles.vectors)

    def axes(values: Sequence[int], absent: int) -> tuple[int, ...]:
        return (absent,) * (3 - rank) + tuple(values)

    kernel, stride, dilation = (axes(v, 1) for v in (geometry.kernel_size, geometry.stride, geometry.dilation))
    image, full = axes(x.shape[2:], 1), axes(size, 1)
    reach = [(k - 1) * d // s for k, d, s in zip(kernel, dilation, stride)]
    planes = kernel[0] * math.prod(
        len({t * d % s for t in range(k)}) for k, d, s in zip(kernel[1:], dilation[1:], stride[1:])
    )
    pitch = full[2] + reach[2]
    length = (full[1] - 1) * pitch + full[2]
    inputs = [each for each, role in zip(tensors, facts.roles) if role == "input"]
    channels = [each.shape[1] // (geometry.groups if each.shape[1] % geometry.groups == 0 else 1) for each in inputs]
    filters = geometry.out_channels // geometry.groups

    per_place = real * planes * sum(channels) * (2 if backward else 1)
    halo = per_place * (reach[1] * pitch + reach[2])
    whole, per_channel, per_tap = facts.values[backward]
    per_filter = real * (whole + per_channel * max(channels) + per_tap * math.prod(kernel))
    budget = cache_bytes() // 2
    room = max(budget - halo, budget // 4)
    strip = room // max(per_place + per_filter * min(filters, 16), 1)
    strip = min(max(strip // step, 1) * step, -(-length // step) * step)
    # Enough strips for all threads, but none so short that its halo is most of it.
    others = x.shape[0] * geometry.groups * full[0]
    if not backward and others < 2 * threads and length > 4 * step:
        pieces = -(-2 * threads // max(others, 1))
        strip = min(strip, max(-(-length // (pieces * step)) * step, 2 * step))
    pieces = -(-length // strip)
    strip = -(-length // (pieces * step)) * step  # of about the same length
    filter_step = filters
    if per_filter * strip * filters > budget:
        filter_step = max(budget // (per_filter * strip) // tiles.filters * tiles.filters, min(tiles.filters, filters))
    if not backward and others * pieces < threads and filters >= 2 * tiles.filters:
        parts = -(-threads // max(others * pieces, 1))
        filter_step = min(filter_step, -(-filters // (parts * tiles.filters)) * tiles.filters)
    told = _Geometry(
        x.shape[0],
        geometry.groups,
        filters,
        x.shape[1] // geometry.groups,
        *((ctypes.c_int64 * 3)(*v) for v in (image, full, kernel, stride)),
        (ctypes.c_int64 * 3)(*axes([before for before, _ in geometry.padding], 0)),
        (ctypes.c_int64 * 3)(*dilation),
        strip,
        filter_step,
    )
    work = others * pieces * -(-filters // filter_step)
    used = min(threads, max(work, 1))
    shape = (x.shape[0], geometry.out_channels, *size)
    return Plan(strip, filter_step, used, shape, ctypes.pointer(told), geometry.groups)
