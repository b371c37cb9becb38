"""How the C++ backend cuts the work: register tiles per kernel, strips of windows per call.

`Tiles` follow from the number of vector registers and from what a kernel accumulates, a plan from the size of the
caches.  Both print what they decided.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..geometry import Geometry
from .native_schedule import Facts, Line, Plan, Tiles, channels_of, line_of, power_below


def tiles_of(facts: Facts, vector_bytes: int) -> Tiles:
    """The tiles of a kernel: as large as the registers hold, smaller where functions need registers of their own."""
    registers = 32 if vector_bytes == 64 else 16
    room = registers // 2
    if facts.heavy[0]:
        room //= 2
    state = max(facts.state[0], 1)
    vectors = 2 if room // state >= 2 else 1
    filters = power_below(room // (state * vectors)) if facts.per_filter and not facts.ranked else 1
    back = room if not facts.heavy[1] else registers // (4 if facts.heavy[1] == 1 else 8)
    images, banks = (max(count, 1) for count in facts.sinks)
    bank = power_below(max(back // banks, 1))
    bank_filters = power_below(max(math.isqrt(bank), 1)) if facts.per_filter else 1
    return Tiles(
        filters,
        vectors,
        max(vectors, min(4, power_below(room // state))),
        2,
        power_below(max(back // (4 * images), 1)),
        bank_filters,
        min(bank // bank_filters, 4),
    )


@functools.cache
def cache_bytes() -> int:
    """The size of a core's second-level cache in bytes; 512 KiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 512 * 1024


#: For fewer filters pixels sum their gradients, because adding to them tap by tap would be most of the work; unless a
#: strip is short for what its windows see, which each of these filters then looks at once more.
FEW_FILTERS = 4
#: From so many taps of a window on it is less work to go to one that has gradients than to pass by all.
MANY_TAPS = 64
#: So many bytes of scratch memory a plan keeps between calls.
KEPT_SCRATCH = 16 * 1024


@dataclass(frozen=True)
class CppPlan(Plan):
    """A plan for the threads of a CPU.

    Args:
        threads: that share the strips.
        by_filters: whether they share the filters instead for the gradients of weights.
        by_positions: whether gradients go straight to the taps that a maximum has chosen.
        geometry: the strips and the geometry, as the library reads them.
        function: of the library.
    """

    threads: int
    by_filters: bool
    by_positions: bool
    geometry: Any = field(repr=False)
    function: Any = field(repr=False)
    _scratch_bytes: list[int] = field(default_factory=list, repr=False, init=False)
    _idle: list[torch.Tensor] = field(default_factory=list, repr=False, init=False)

    def scratch(self, arguments: Any) -> torch.Tensor:
        """The memory that a call needs besides its tensors, for this call alone."""
        try:
            return self._idle.pop()
        except IndexError:
            pass
        if not self._scratch_bytes:
            numbers = (ctypes.c_double * 16)()
            self._scratch_bytes.append(self.function(self.geometry, arguments, numbers, None, self.threads))
        return torch.empty(self._scratch_bytes[0], dtype=torch.uint8, device="cpu")

    def give_back(self, scratch: torch.Tensor) -> None:
        """Keep scratch memory for the next call, if there is so little that taking it anew takes longer than a call."""
        if scratch.numel() <= KEPT_SCRATCH:
            self._idle.append(scratch)


def plan_of(
    facts: Facts,
    direction: str,
    tiles: Tiles,
    vector_bytes: int,
    tensors: Sequence[torch.Tensor],
    geometry: Geometry,
    threads: int,
    function: Any,
) -> CppPlan:
    """The plan for tensors of these shapes."""
    x = tensors[0]
    real = 8 if x.dtype == torch.float64 else 4
    backward = direction == "backward"
    step = vector_bytes // real * (tiles.again if backward else tiles.vectors)
    line, channels = line_of(x, geometry), channels_of(facts, tensors, geometry.groups)
    filters, length = geometry.out_channels // geometry.groups, line.length

    planes = sum(channels) * (2 if backward else 1) + sum(channels[index] for index in facts.pixels[backward])
    per_place = real * line.planes * planes
    whole, per_channel, per_tap = facts.values[backward]
    per_filter = real * (whole + per_channel * max(channels) + per_tap * math.prod(geometry.kernel_size))
    budget = cache_bytes() // 2
    room = max(budget - per_place * line.halo, budget // 4)
    strip = room // max(per_place + per_filter * min(filters, 16), 1)
    strip = min(max(strip // step, 1) * step, -(-length // step) * step)
    # Enough strips for all threads, but none so short that its halo is most of it.
    others = x.shape[0] * geometry.groups * line.lines
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
    work = others * pieces * -(-filters // filter_step)
    shape = (x.shape[0], geometry.out_channels, *geometry.output_size(x.shape[2:]))
    by_filters = backward and _by_filters(facts, tiles, tensors, geometry.groups, filters, threads)
    used = threads if by_filters else min(threads, max(work, 1))
    taps = channels[0] * math.prod(geometry.kernel_size)
    by_positions = backward and 0 < facts.positions * MANY_TAPS <= taps
    few = filters < FEW_FILTERS and 2 * strip >= filters * line.halo
    gathers = backward and facts.gathers and few and not by_positions
    margin = _margin(tiles, line, vector_bytes // real) if gathers else 0
    if per_filter * filters * 2 * margin > budget // 4:
        margin = 0
    chosen = {"by_filters": by_filters, "margin": margin, "by_positions": by_positions}
    told = ctypes.pointer(line.told(strip, filter_step, **chosen))
    return CppPlan(strip, filter_step, shape, geometry.groups, used, by_filters, by_positions, told, function)


def _margin(tiles: Tiles, line: Line, width: int) -> int:
    """The places around a strip where pixels look for windows: as far as windows reach, and a tile of pixels."""
    return -(-(line.halo + (tiles.image_taps * tiles.again + 1) * width) // width) * width


def _by_filters(
    facts: Facts, tiles: Tiles, tensors: Sequence[torch.Tensor], groups: int, filters: int, threads: int
) -> bool:
    """Whether the gradients of weights are a pass of their own, in which each thread has some of the filters.

    Then no thread has totals of its own, which take memory and are added up afterwards; but each sees all images.  Not
    for kernels whose backward pass begins with sweeps of its own, which would be made twice.
    """
    shared = [each for each, axes, role in zip(tensors, facts.axes, facts.roles) if "o" in axes and role != "input"]
    weights, pixels = sum(each.numel() for each in shared), tensors[0].numel()
    blocks = groups * -(-filters // tiles.bank_filters)
    balanced = -(-blocks // threads) * threads <= 1.25 * blocks
    return balanced and not facts.again and threads * weights >= pixels
