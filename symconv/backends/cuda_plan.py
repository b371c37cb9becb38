"""How the CUDA backend cuts the work: register tiles per kernel; strips, ranges of filters and launches per shape.

A *launch* is data: which function, how many blocks, which strips.  Driver and emulation carry out the same ones.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..geometry import Geometry
from .native_facts import Facts
from .native_plan import TENSOR, NativeGeometry, Plan, Tiles, channels_of, line_of, power_below, real_bytes

#: Threads of a warp, which hold a vector together, and of a block.
WARP, THREADS = 32, 128
#: Windows of a strip, if there are so many, and the bytes that the pixels they see and their values may take: each
#: block has its own, and all blocks together should find room in the second-level cache.
STRIP, MEMORY = 256, 128 * 1024
#: What it takes a block to read the pixels of a strip, in filters.
READING_COST = 4


def tiles_of(facts: Facts) -> Tiles:
    """The tiles of a kernel: about 16 accumulators for each thread, fewer where the mathematics needs registers."""
    room, back = (4 if each.heavy else 16 if each.cost <= 6 else 8 for each in (facts.forward, facts.backward))
    state = max(facts.state, 1)
    room = min(room, 16 // state)
    vectors = 2 if room // state >= 2 else 1
    filters = power_below(room // (state * vectors)) if facts.per_filter and not facts.ranked else 1
    bank = power_below(max(back // max(facts.weight_sums, 1), 1))
    bank_filters = power_below(max(math.isqrt(bank), 1)) if facts.per_filter else 1
    image_taps = min(power_below(max(back // (2 * max(facts.image_sums, 1)), 1)), 4)
    return Tiles(filters, vectors, vectors, 2, image_taps, 2 * image_taps, bank_filters, min(bank // bank_filters, 4))


def taps_at_a_time(facts: Facts, direction: str) -> int:
    """The rounds of an innermost loop that are under way at a time: several, with their loads, where they are short."""
    work = facts.of(direction)
    return 1 if work.heavy or work.cost > 8 else 2 if work.cost > 4 or direction == "backward" else 4


def blocks_at_a_time(facts: Facts, direction: str) -> int:
    """The blocks that run together on a multiprocessor: they share its registers."""
    work = facts.of(direction)
    many = direction == "backward" and (facts.image_sums + facts.weight_sums > 2 or work.per_window > 2)
    return 2 if work.heavy or work.cost > 4 or many else 3


class Launch(NamedTuple):
    """One launch of a call.

    Args:
        function: of the generated file.
        blocks, threads: how many, and of how many threads each.
        geometry: the strips and the geometry, as kernels read them.
        colour, colours: which strips: those whose number leaves `colour` when divided by `colours`.
        gradients: the roles of operands whose gradients are its work; None if it is always there, for all tensors.
        shared_bytes: bytes of shared memory.
        stage, columns: of a flat kernel, see `stages.hpp`: channels or filters of a stage, warps side by side.
    """

    function: str
    blocks: int
    threads: int
    geometry: NativeGeometry
    colour: int = 0
    colours: int = 1
    gradients: tuple[str, ...] | None = None
    shared_bytes: int = 0
    stage: int = 0
    columns: int = 1


class Cut(NamedTuple):
    """How a pass is cut, for one shape: what is compiled in, and what is launched.

    Args:
        defines: options of the compiler.
        launches: in their order.
        taps_at_a_time: how many rounds of an innermost loop are under way at a time, which is compiled in, too.
        shares: blocks that share the gradients of one range of filters.
        blocks: that have scratch memory of their own, at most.
    """

    defines: tuple[str, ...]
    launches: tuple[Launch, ...]
    taps_at_a_time: int = 1
    shares: int = 1
    blocks: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """All options of the compiler."""
        return (*self.defines, f"-DTAPS_AT_A_TIME={self.taps_at_a_time}")


class Packed(NamedTuple):
    """A launch, ready but for where tensors and scratch memory are.

    Args:
        launch: which one.
        before, behind: its argument before and behind the place of the scratch memory; numbers and tensors come last.
        others: the numbers of the tensors that are the work of other launches.
    """

    launch: Launch
    before: bytes
    behind: bytes
    others: list[int]

    def argument(self, scratch: int, numbers: Sequence[float], tensors: Any) -> bytes:
        """The argument.

        Args:
            scratch: the address of scratch memory.
            numbers: the constants of the formula.
            tensors: as `Plan.arguments` lays them out.
        """
        if self.others:
            tensors = type(tensors).from_buffer_copy(tensors)
            for index in self.others:
                tensors[index * TENSOR] = 0
        values = (ctypes.c_double * max(len(numbers), 1))(*numbers)
        return b"".join((self.before, scratch.to_bytes(8, sys.byteorder), self.behind, values, tensors))


@dataclass(frozen=True)
class CudaPlan(Plan):
    """A plan for the blocks of a GPU.

    Args:
        direction: "forward" or "backward".
        cut: the launches.
        module: what has their functions.
        device: where it runs.
    """

    direction: str
    cut: Cut = field(repr=False)
    module: Any = field(repr=False)
    device: torch.device = field(repr=False)
    #: Bytes of scratch memory for all blocks together and for each, once they are known.
    scratch: list[int] = field(default_factory=list, repr=False, init=False)
    _packed: dict[Any, list[Packed]] = field(default_factory=dict, repr=False, init=False)

    def launches(self, gradients: Sequence[str | None]) -> list[Packed]:
        """The launches of a call, one after the other.

        Args:
            gradients: the roles of the tensors of a call that are gradients and are wanted; None for all others.
        """
        found = self._packed.get(said := tuple(gradients))
        if found is None:
            roles = {*gradients} - {None}
            wanted = [each for each in self.cut.launches if each.gradients is None or {*each.gradients} & roles]
            found = self._packed[said] = [self.packed(each, gradients) for each in wanted]
        return found

    def packed(self, launch: Launch, gradients: Sequence[str | None] = ()) -> Packed:
        """A launch with what is always the same of its argument; see `launches`."""
        own = self.scratch[1] if self.scratch else 0
        beside = (own, launch.colour, launch.colours, self.cut.shares, launch.stage, launch.columns)
        behind = bytes((ctypes.c_int64 * 6)(*beside))
        others = [
            index
            for index, role in enumerate(gradients)
            if role and launch.gradients is not None and role not in launch.gradients
        ]
        return Packed(launch, bytes(launch.geometry), behind, others)


def _filter_step(filters: int, tile: int, most: int, units: int, room: int) -> int:
    """The filters of a range: those for which the blocks are done soonest.

    Each of `units` strips is the work of a block for each range, `room` blocks run at a time, and every block reads its
    pixels first, which takes about as long as `READING_COST` filters.
    """
    candidates = {min(max(-(-filters // parts) // tile, 1) * tile, filters) for parts in range(1, filters + 1)}
    allowed = [step for step in candidates if step <= most] or [min(candidates)]
    return min(allowed, key=lambda step: (-(-units * -(-filters // step) // room) * (step + READING_COST), -step))


def block_cut(
    facts: Facts, direction: str, tensors: Sequence[torch.Tensor], geometry: Geometry, processors: int
) -> Cut:
    """How a pass is cut on a GPU of so many multiprocessors: a block has a strip and some filters at a time."""
    x, tiles = tensors[0], tiles_of(facts)
    backward = direction == "backward"
    line, channels = line_of(x, geometry), channels_of(facts, tensors, geometry.groups)
    filters = geometry.out_channels // geometry.groups
    real = real_bytes(x.dtype)
    per_place = real * line.planes * sum(channels) * (2 if backward else 1)
    work = facts.of(direction)
    per_filter = work.per_window + work.per_channel * max(channels) + work.per_tap * math.prod(geometry.kernel_size)
    per_filter *= real

    step = WARP * (tiles.backward_vectors if backward else tiles.vectors)
    strip = min(STRIP, -(-line.length // step) * step)
    while strip > step and per_place * (strip + line.halo) + per_filter * tiles.filters * strip > MEMORY:
        strip = -(-strip // (2 * step)) * step
    pieces = -(-line.length // strip)
    strip = -(-line.length // (pieces * step)) * step  # of about the same length
    pieces = -(-line.length // strip)
    room = processors * blocks_at_a_time(facts, direction)
    strips = x.shape[0] * line.lines * pieces
    most = max(MEMORY // (per_filter * strip), 1)
    filter_step = _filter_step(filters, tiles.filters, most, strips * geometry.groups, room)
    ranges = geometry.groups * -(-filters // filter_step)
    blocks = min(max(strips * ranges, 1), room)
    native = line.native_geometry(strip, filter_step)
    defines = (
        f"-DTHREADS={THREADS}",
        f"-DBLOCKS_AT_A_TIME={blocks_at_a_time(facts, direction)}",
        *tiles.options(),
    )
    taps = taps_at_a_time(facts, direction)
    prepare = Launch(f"symconv_{direction}_prepare", blocks, THREADS, native)
    if not backward:
        return Cut(defines, (prepare, prepare._replace(function="symconv_forward")), taps, blocks=blocks)
    apart = (line.reach[0] + 1) * pieces if line.reach[0] else -(-line.halo // strip) + 1
    colours = min(apart, max(line.lines * pieces, 1))
    images = Launch("symconv_backward_images", blocks, THREADS, native, colours=colours, gradients=("input", "field"))
    shares = min(max(room // ranges, 1), max(strips, 1))  # one more would not be done sooner: it takes a second round
    banks = "weight", "bias", "param"
    weights = Launch("symconv_backward_weights", shares * ranges, THREADS, native, gradients=banks)
    gather = weights._replace(function="symconv_backward_gather", blocks=blocks)
    by_colour = [images._replace(colour=colour) for colour in range(colours)]
    return Cut(defines, (prepare, *by_colour, weights, gather), taps, shares, max(blocks, shares * ranges))
