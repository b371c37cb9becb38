"""How flat kernels are cut for a GPU: tiles in registers, stages in shared memory, launches per shape.

Nothing here changes a result but the order of the sums of a gradient of weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch

from ..geometry import Geometry
from .cuda_plan import WARP, Cut, Launch
from .native_facts import Facts, FlatBackward, FlatForward
from .native_plan import Line, NativeGeometry, line_of, power_below, real_bytes

#: Threads of a block, and how many blocks run at a time on a multiprocessor.  Gradients of weights want more registers
#: for each thread.
THREADS, BLOCKS = 256, 2
WEIGHT_THREADS, WEIGHT_BLOCKS = 128, 3
WARPS, WEIGHT_WARPS = THREADS // WARP, WEIGHT_THREADS // WARP
#: Results that a thread holds, at most.
MOST = 32
#: Bytes of shared memory that a stage may take: two blocks of a multiprocessor then leave most of it to the cache.
STAGE = 40 * 1024
#: The same for gradients of weights: what a block may have without asking for more.
WEIGHT_STAGE = 48 * 1024
#: Bytes beside them, for `Windows`.
WINDOWS = 512
#: Instructions that it takes a warp to begin and to end; the vectors of windows or pixels that they count as, at least.
WARP_COST, LEAST_WARP_COST = 500, 0.5
#: Windows of a strip of the gradients of weights, at most, and blocks that share them.
WEIGHT_STRIP, SHARES = 256, 128
#: Instructions of a thread: to stage a number, around the arithmetic of a turn, and to begin with a strip.
STAGING_COST, TURN_COST, STRIP_COST = 20, 10, 100


class Tile(NamedTuple):
    """What the warps of a block hold: `rows` of them one below the other, each `first` results by `second`.

    Args:
        first: filters or channels of a warp.
        second: vectors of windows or taps of a warp.
        rows: warps that have other filters or channels.
        columns: warps beside one another in each row.
    """

    first: int
    second: int
    rows: int
    columns: int


class Banks(NamedTuple):
    """How the gradients of weights are cut.

    Args:
        cost: about how many instructions each window takes.
        tiles: for the compiler: the filters and taps of a thread, and how many threads of a warp have tiles of their
            own below and beside one another; the others share the windows.
        launch: the launch.
        shares: blocks that share the windows.
        sums: blocks that leave sums.
    """

    cost: float
    tiles: dict[str, int]
    launch: Launch
    shares: int
    sums: int


def power_above(n: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(n - 1, 0).bit_length()


def room_of(facts: Facts, direction: str, held: int, real: int) -> int:
    """How many results a thread holds: `MOST` where the mathematics leaves it the registers."""
    work = facts.of(direction)
    room = 8 if work.heavy > 2 or work.cost > 24 else 16 if work.heavy or work.cost > 6 else MOST
    return max(power_below(room * 4 // real // power_above(held)), 1)


def tiled(room: int, most: int, count: int) -> Tile:
    """A tile for `count` filters or channels, of which a warp holds `most`, with the most vectors beside them."""
    first = min(most, power_above(count), room)
    rows = min(WARPS, power_above(-(-count // first)))
    return Tile(first, max(min(8 if first == 1 else 4, room // first), 1), rows, WARPS // rows)


def narrowed(tile: Tile, length: int, others: int, count: int, processors: int, each: int) -> Tile:
    """The tile with so many vectors that the blocks are done soonest.

    Args:
        tile: with the most vectors.
        length: places of a line.
        others: how many lines there are.
        count: filters or channels.
        processors: that share the blocks.
        each: instructions for a result.
    """
    beside = max(WARP_COST / (tile.first * each), LEAST_WARP_COST)
    ranges = others * -(-count // (tile.first * tile.rows))

    def rounds(vectors: int) -> float:
        strips = -(-length // (tile.columns * vectors * WARP))
        return -(-strips * ranges // processors) * (vectors + beside)

    candidates = [1 << k for k in range(tile.second.bit_length())]
    return tile._replace(second=min(reversed(candidates), key=rounds))


def flat_cut(
    facts: Facts,
    direction: str,
    tensors: Sequence[torch.Tensor],
    geometry: Geometry,
    processors: int,
    smaller: Mapping[str, int] = MappingProxyType({}),
) -> Cut | None:
    """How a pass is cut; None if it is not flat, or does not fit into shared memory.

    `smaller` says how many times the tiles of a function are halved, because it would spill registers.
    """
    flat = facts.flat_backward if direction == "backward" else facts.flat_forward
    if flat is None:
        return None
    x, line = tensors[0], line_of(tensors[0], geometry)
    here = _Shape(facts, line, x.shape[0], geometry, real_bytes(x.dtype), processors, smaller)
    return here.backward(flat) if isinstance(flat, FlatBackward) else here.forward(flat)


@dataclass(frozen=True)
class _Shape:
    facts: Facts
    line: Line
    batch: int
    geometry: Geometry
    real: int
    processors: int
    smaller: Mapping[str, int]

    def room(self, function: str, direction: str, held: int) -> int:
        """How many results a thread holds in a function; see `room_of`."""
        return max(room_of(self.facts, direction, held, self.real) >> self.smaller.get(f"symconv_{function}", 0), 1)

    @property
    def filters(self) -> int:
        return int(self.line.geometry.filters)

    @property
    def channels(self) -> int:
        return int(self.line.geometry.channels)

    @property
    def taps(self) -> int:
        return math.prod(self.geometry.kernel_size)

    @property
    def images(self) -> int:
        return self.batch * self.geometry.groups

    def plane(self, strip: int) -> int:
        """Numbers of a plane, as `Windows` rounds them up."""
        return -(-(strip + self.line.halo) // WARP) * WARP

    def planes(self, strip: int) -> int:
        """Numbers of all planes of a channel."""
        return self.line.planes * self.plane(strip)

    def staged(self, beside: int, each: int, tables: int, count: int, once: int = 0) -> tuple[int, int]:
        """How many channels or filters a stage has, 0 if not one finds room, and the bytes of shared memory.

        Args:
            beside: numbers that are there anyway.
            each: numbers in a buffer for each of `count` channels or filters.
            tables: numbers for each, whichever buffer it is in.
            once: numbers in a buffer beside.
        """
        room = STAGE // self.real - beside
        stage, buffers = min((room - once) // (each + tables), count), 1
        if stage < count:
            stage, buffers = (room - 2 * once) // (2 * each + tables), 2
        stage = -(-count // -(-count // stage)) if stage > 0 else 0  # of about the same size
        return stage, WINDOWS + (beside + buffers * (stage * each + once) + stage * tables) * self.real

    @property
    def blocks_at_a_time(self) -> int:
        """Blocks of a multiprocessor: half the registers for each; or all, also where the smallest tile would spill."""
        smallest = any(1 << times > MOST for times in self.smaller.values())
        return 1 if self.real == 8 or smallest else BLOCKS

    def taps_at_a_time(self, flat: FlatForward | FlatBackward) -> int:
        """Rounds of an innermost loop that are under way at a time, so that none waits for what it reads."""
        work = self.facts.backward if isinstance(flat, FlatBackward) else self.facts.forward
        if work.heavy:
            return 1
        if isinstance(flat, FlatBackward):
            return 4 if work.cost <= 4 else 2 if work.cost <= 6 else 1
        return 6 // (flat.weights + self.facts.state - 1 or 1) if work.cost <= 2 else 2

    def defines(self, **tiles: int) -> tuple[str, ...]:
        named = {
            "THREADS": THREADS,
            "WEIGHT_THREADS": WEIGHT_THREADS,
            "WEIGHT_BLOCKS": WEIGHT_BLOCKS,
            "BLOCKS_AT_A_TIME": self.blocks_at_a_time,
            **tiles,
        }
        return ("-DFLAT", *[f"-D{name}={value}" for name, value in named.items()])

    def launched(self, function: str, units: int, native: NativeGeometry) -> Launch:
        room = self.processors * self.blocks_at_a_time
        return Launch(function, max(min(units, room), 1), THREADS, native)

    def forward(self, flat: FlatForward, vectors: int = 8) -> Cut | None:
        """The cut with up to so many vectors in a tile, fewer where shared memory has no room for their planes."""
        room = self.room("forward", "forward", self.facts.state)
        tile = tiled(room, 8, self.filters)
        tile = tile._replace(second=min(tile.second, vectors))
        lines = self.images * self.line.lines
        each = self.channels * self.taps * max(self.facts.forward.cost, 1)
        tile = narrowed(tile, self.line.length, lines, self.filters, self.processors, each)
        strip, step = tile.columns * tile.second * WARP, tile.first * tile.rows
        beside = self.planes(strip) if self.geometry.ignores_padding else 0
        tables = (flat.tables + self.geometry.ignores_padding) * self.taps
        stage, shared_bytes = self.staged(beside, flat.sets * self.planes(strip), tables, self.channels)
        if stage < 1:
            return self.forward(flat, tile.second // 2) if tile.second > 1 else None
        units = lines * -(-self.line.length // strip) * -(-self.filters // step)
        native = self.line.native_geometry(strip, step)
        launch = self.launched("symconv_forward", units, native)._replace(shared_bytes=shared_bytes, stage=stage)
        prepare = launch._replace(function="symconv_forward_prepare", blocks=2 * self.processors, shared_bytes=0)
        defines = self.defines(FORWARD_FILTERS=tile.first, FORWARD_VECTORS=tile.second)
        return Cut(defines, (prepare, launch), self.taps_at_a_time(flat))

    def backward(self, flat: FlatBackward) -> Cut | None:
        if flat.counts and self.geometry.ignores_padding:
            return None
        if flat.pixel_sums and self.geometry.kernel_size[:-2] not in ((), (1,)):
            return None
        tiles: dict[str, int] = {}
        launches: list[Launch] = []
        if flat.pixel_sums:
            room = self.room("backward_pixels", "backward", 2 * flat.pixel_sums)
            most = power_below(max(8 // max(flat.pixel_weights, 2), 1))
            found = self._pixels(tiled(room, most, self.channels), flat.values)
            if found is None:
                return None
            tile, launch = found
            tiles |= {"PIXEL_CHANNELS": tile.first, "PIXEL_VECTORS": tile.second}
            launches.append(launch)
        # The sums of a tile, and the weights that they depend on, are 48 numbers at most.
        room = self.room("backward_weights", "backward", 1)
        room = max(min(room, 3 * room // (2 * max(flat.weight_sums + flat.weight_weights, 1))), 1)
        weights = self._weights(room, flat)
        if weights is None:
            return None
        tiles |= weights.tiles
        launch = weights.launch
        beside = launch._replace(blocks=2 * self.processors, shared_bytes=0)
        prepare = beside._replace(function="symconv_backward_prepare", gradients=None)
        gather = beside._replace(function="symconv_backward_gather")
        launches = [prepare, *launches, launch, gather]
        taps = self.taps_at_a_time(flat)
        return Cut(self.defines(**tiles), tuple(launches), taps, weights.shares, weights.sums)

    def _pixels(self, tile: Tile, values: int) -> tuple[Tile, Launch] | None:
        lines = self.images * self.line.lines * self.line.planes
        length = self.line.length + self.line.halo
        each = self.filters * self.taps * max(self.facts.backward.cost, 1)
        tile = narrowed(tile, length, lines, self.channels, self.processors, each)
        strip = tile.columns * tile.second * WARP
        wide = strip + self.line.halo
        stage, shared_bytes = self.staged(2 * self.taps, values * wide, 0, self.filters, wide)
        if stage < 1:
            return self._pixels(tile._replace(second=tile.second // 2), values) if tile.second > 1 else None
        units = lines * -(-length // strip) * -(-self.channels // (tile.first * tile.rows))
        launch = self.launched("symconv_backward_pixels", units, self.line.native_geometry(strip, 1))
        return tile, launch._replace(shared_bytes=shared_bytes, stage=stage, gradients=("input",))

    def _weights(self, room: int, flat: FlatBackward) -> Banks | None:
        """The tiles with which the gradients of weights are soonest done: the same ones for every size of a batch."""
        lanes = [(down, across) for down in (1, 2, 4, 8) for across in (1, 2, 4, 8) if down * across <= WARP // 2]
        found = [self._banks(room, flat, *each) for each in lanes]
        return min((each for each in found if each is not None), key=lambda each: each.cost, default=None)

    def _banks(self, room: int, flat: FlatBackward, down: int, across: int) -> Banks | None:
        """Tiles for warps of `down` times `across` threads that have tiles of their own; None without room for them."""
        count = self.channels * self.taps
        first = min(4, power_above(self.filters), room)
        if down > 1 and first * down >= 2 * self.filters:
            return None
        rows = min(2, power_above(-(-self.filters // (first * down))))
        second = min(8, room // first, -(-count // across))
        columns = min(WEIGHT_WARPS // rows, power_above(-(-count // (second * across))))
        step, wide = first * down * rows, second * across * columns
        most = flat.sets * min(max((wide - 2) // self.taps + 2, 1), self.channels)

        def staged(strip: int) -> int:
            planes = (most + self.geometry.ignores_padding) * self.planes(strip)
            return planes + (flat.values * step + 1) * (strip + WARP // down)

        def shared_bytes(strip: int) -> int:
            return WINDOWS + 2 * staged(strip) * self.real

        strip = min(WEIGHT_STRIP, -(-self.line.length // WARP) * WARP)
        while strip > WARP and shared_bytes(strip) > WEIGHT_STAGE:
            strip = -(-strip // (2 * WARP)) * WARP
        if shared_bytes(strip) > WEIGHT_STAGE:
            return None
        strips = self.batch * self.line.lines * -(-self.line.length // strip)
        ranges = self.geometry.groups * -(-self.filters // step)
        units, together = ranges * -(-count // wide), self.processors * WEIGHT_BLOCKS

        def rounds(shares: int) -> float:
            return -(-units * shares // together) * -(-strips // shares) + 0.1 * shares

        # Each share leaves sums of its own: no more of them than the blocks that run at a time have a use for.
        most_shares = max(min(strips, SHARES, -(-2 * together // units)), 1)
        shares = min(range(1, most_shares + 1), key=lambda n: (rounds(n), n))
        slices = WEIGHT_WARPS // (rows * columns)
        turns = -(-strip * down * across // (WARP * slices))
        arithmetic = turns * (first * second * max(self.facts.backward.cost, 1) + first + second + TURN_COST)
        cost = units / strip * (arithmetic + staged(strip) / WEIGHT_THREADS * STAGING_COST + STRIP_COST)
        launch = Launch(
            "symconv_backward_weights",
            min(units * shares, together),
            WEIGHT_THREADS,
            self.line.native_geometry(strip, step),
            shared_bytes=shared_bytes(strip),
            columns=columns,
            gradients=("weight", "bias", "param"),
        )
        tiles = {"BANK_FILTERS": first, "BANK_TAPS": second, "LANE_FILTERS": down, "LANE_TAPS": across}
        return Banks(cost, tiles, launch, shares, ranges * shares)
