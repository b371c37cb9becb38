"""How the C++ backend cuts the work of a call: strips of windows that fit the cache, and which thread does what.

A plan prints what was decided.
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
from .cpp_tiles import CHANNEL_VECTORS, FEW_FILTERS, Lanes
from .native import ShapeError
from .native_facts import Facts, PassFacts
from .native_plan import Line, Plan, Tiles, channels_of, line_of, real_bytes


@functools.cache
def cache_bytes() -> int:
    """The size of a core's second-level cache in bytes; 512 KiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 512 * 1024


#: From so many taps of a window on it is less work to go to one that has gradients than to pass by all.
MANY_TAPS = 64
#: For so many filters per thread what each of them sees costs little to read.
MANY_FILTERS = 16
#: Gradients of weights sum about so many windows before the lanes of their vectors are added, if strips are shorter.
MANY_WINDOWS = 768
#: They hold the values of so many filters together where threads share out filters, see `strip.hpp`.
JOINT_FILTERS = 16
#: Pixels whose lanes are channels add up so many filters at once, where weights come from memory.
NEAR_FILTERS = 32
#: Places in the planes that a strip sees of a group's channels are 32-bit numbers, below this one.
MOST_PLACES = 2**31
#: So many bytes of scratch memory each thread may have, however small a call is.
LEAST_SCRATCH = 64 * 1024
#: So many bytes of scratch memory a plan keeps between calls.
KEPT_SCRATCH = 16 * 1024


@dataclass(frozen=True)
class CppPlan(Plan):
    """A plan for the threads of a CPU.

    Args:
        threads: that share the strips.
        by_filters: whether they share the filters instead for the gradients of weights.
        more_strips: that are at hand together with one, but for gradients of images.
        more_images: whose gradients are at hand together with those of one.
        by_positions: whether gradients go straight to the taps that a maximum has chosen.
        lanes: of its vectors.
        geometry: the strips and the geometry, as the library reads them.
        function: of the library.
    """

    threads: int
    by_filters: bool
    by_positions: bool
    lanes: Lanes
    more_strips: int
    more_images: int
    geometry: Any = field(repr=False)
    function: Any = field(repr=False)
    _scratch_bytes: list[int] = field(default_factory=list, repr=False, init=False)
    _idle: list[torch.Tensor] = field(default_factory=list, repr=False, init=False)

    @property
    def overwrites(self) -> bool:
        return bool(self.geometry.contents.overwrites)

    def scratch(self, arguments: Any, numbers: Any) -> torch.Tensor:
        """The memory that a call with these arguments needs besides its tensors, for this call alone."""
        try:
            return self._idle.pop()
        except IndexError:
            pass
        if not self._scratch_bytes:
            self._scratch_bytes.append(self.function(self.geometry, arguments, numbers, None))
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
    lanes: Lanes = "windows",
) -> CppPlan:
    """The plan for tensors of these shapes.

    Args:
        facts: of the kernel.
        direction: the pass.
        tiles: which the library has.
        vector_bytes: of a register.
        tensors, geometry: of the call.
        threads: that may share it.
        function: of the library.
        lanes: of its vectors.

    Raises:
        ShapeError: if a strip sees too much of the image.
    """
    real = real_bytes(tensors[0].dtype)
    backward = direction == "backward"
    layer = _Layer(facts, backward, tiles, vector_bytes // real, real, tensors, geometry, threads, lanes)
    strip = layer.strip()
    places = max(layer.channels) * layer.line.planes * (strip + layer.line.halo + layer.width)
    if places >= MOST_PLACES:
        raise ShapeError(f"a strip of windows sees {places} places of the image; C++ kernels count fewer than 2**31")
    filter_step = layer.filter_step(strip)
    by_filters, by_positions = layer.by_filters(), layer.by_positions()
    more_strips, more_images = layer.more_strips(strip), layer.more_images(strip, filter_step)
    joint = 1 if backward else 1 + more_strips
    work = -(-layer.lines * -(-layer.line.length // strip) // joint) * -(-layer.filters // filter_step)
    team = threads if by_filters else min(threads, max(work, 1))
    chosen = {"by_filters": by_filters, "by_positions": by_positions, "margin": layer.margin(strip), "threads": team}
    chosen |= {"more_strips": more_strips, "more_images": more_images}
    chosen |= {"overwrites": layer.backward and layer.line.sees_all}
    return CppPlan(
        strip,
        filter_step,
        geometry.output_shape(tensors[0].shape),
        geometry.groups,
        team,
        by_filters,
        by_positions,
        lanes,
        more_strips,
        more_images,
        ctypes.pointer(layer.line.native_geometry(strip, filter_step, **chosen)),
        function,
    )


@dataclass(frozen=True)
class _Layer:
    """What a plan follows from: a pass of a kernel, and the shapes of a call.

    Args:
        width: numbers of a vector.
        real: bytes of a number.
    """

    facts: Facts
    backward: bool
    tiles: Tiles
    width: int
    real: int
    tensors: Sequence[torch.Tensor]
    geometry: Geometry
    threads: int
    lanes: Lanes

    @property
    def work(self) -> PassFacts:
        """What the pass has to do."""
        return self.facts.backward if self.backward else self.facts.forward

    @functools.cached_property
    def line(self) -> Line:
        return line_of(self.tensors[0], self.geometry)

    @functools.cached_property
    def channels(self) -> list[int]:
        """Those of each input that a group sees."""
        return channels_of(self.facts, self.tensors, self.geometry.groups)

    @property
    def filters(self) -> int:
        return self.geometry.out_channels // self.geometry.groups

    @property
    def lines(self) -> int:
        """Lines of windows in all images and groups."""
        return self.tensors[0].shape[0] * self.geometry.groups * self.line.lines

    @property
    def taps(self) -> int:
        return math.prod(self.geometry.kernel_size)

    @property
    def step(self) -> int:
        """Places of a tile of vectors, of which a strip is a multiple."""
        return self.width * (self.tiles.backward_vectors if self.backward else self.tiles.vectors)

    @property
    def block(self) -> int:
        """Filters of a tile of the forward pass."""
        return CHANNEL_VECTORS * self.width if self.lanes == "filters" else self.tiles.filters

    @functools.cached_property
    def share(self) -> int:
        """The bytes of the call for each thread: scratch memory should be less, however large a cache is.

        Of weights a quarter, because they are packed as well, and of outputs what keeps room for values that are kept.
        Gradients take it for half of the call: their strips decide in which order they are summed, and that should not
        depend on the number of threads.
        """
        inputs, others = (
            sum(each.numel() for each, role in zip(self.tensors, self.facts.roles) if (role == "input") == is_input)
            for is_input in (True, False)
        )
        outputs = math.prod(self.geometry.output_shape(self.tensors[0].shape))
        forward, backward = inputs + outputs // 4 + others // 8, inputs + outputs // 2 + others // 4
        share = backward // 2 if self.backward else forward // self.threads
        return max(self.real * share, LEAST_SCRATCH)

    @functools.cached_property
    def budget(self) -> int:
        """The bytes that are at hand again and again: half a cache, or a small call's share."""
        return min(cache_bytes() // 2, self.share)

    @property
    def per_seen(self) -> int:
        """The bytes of a place in the planes of all channels."""
        pixels = sum(self.channels[index] for index in self.work.pixels)
        return self.real * self.line.planes * (sum(self.channels) + pixels)

    @property
    def per_place(self) -> int:
        """The same, with the planes of their gradients."""
        return self.per_seen + (self.real * self.line.planes * sum(self.channels) if self.backward else 0)

    @property
    def per_filter(self) -> int:
        """The bytes of a window for each filter."""
        work = self.work
        return self.real * (work.per_window + work.per_channel * max(self.channels) + work.per_tap * self.taps)

    def strip(self) -> int:
        """Windows of a strip: what fits the cache, and enough strips for all threads."""
        step, length = self.step, -(-self.line.length // self.step) * self.step
        room = max(self.budget - self.per_place * self.line.halo, self.budget // 4)
        strip = room // max(self.per_place + self.per_filter * min(self.filters, 16), 1)
        pieces = -(-self.line.length // max(strip * 5 // 4, 1))  # one less, where the rest would be short
        strip = min(max(-(-self.line.length // (pieces * step)), 1) * step, length)
        if not self.backward and self.lines < 2 * self.threads and self.line.length > 4 * step:
            pieces = -(-2 * self.threads // max(self.lines, 1))
            # None so short that its halo is most of it.
            strip = min(strip, max(-(-self.line.length // (pieces * step)) * step, 2 * step))
        pieces = -(-self.line.length // strip)
        return -(-self.line.length // (pieces * step)) * step  # of about the same length

    def filter_step(self, strip: int) -> int:
        """Filters whose values are held together: what fits the cache, and enough ranges for all threads."""
        rows, filters = self.block, self.filters
        step, per_filter = filters, self.per_filter * (strip + self.margin(strip))
        budget = self.budget // 2 if self.lanes == "channels" else self.budget  # pixels add up many filters at once
        if per_filter * filters > budget:
            step = max(budget // per_filter // rows * rows, min(rows, filters))
        strips = self.lines * -(-self.line.length // strip)
        if not self.backward and strips < self.threads and filters >= 2 * rows:
            parts = -(-self.threads // max(strips, 1))
            step = min(step, -(-filters // (parts * rows)) * rows)
        if self.lanes == "filters":
            return rows if self.streams_weights() else -(-step // rows) * rows
        # Few enough for their weights at a block of channels to be near while all pixels pass.
        return min(step, NEAR_FILTERS) if self.lanes == "channels" and self.streams_weights() else step

    @functools.cached_property
    def weight_bytes(self) -> int:
        """The bytes of the weights of a group that have an element for each filter, channel and tap."""
        sizes = [each.numel() for each, axes in zip(self.tensors, self.facts.axes) if {*"oct"} <= {*axes}]
        return self.real * sum(sizes) // self.geometry.groups

    def streams_weights(self) -> bool:
        """Whether the weights of a group do not stay in the cache from one strip to the next."""
        return self.weight_bytes > cache_bytes() // 2

    @property
    def beside_weights(self) -> int:
        """The bytes that are at hand beside a block of weights, where those come from memory."""
        blocks = (self.channels[0] if self.backward else self.filters) / (CHANNEL_VECTORS * self.width)
        return min(cache_bytes() - int(self.weight_bytes / max(blocks, 1)), self.share)

    def by_positions(self) -> bool:
        """Whether it is less work to go to the taps that have gradients than to pass by all."""
        return self.backward and 0 < self.facts.positions * MANY_TAPS <= self.channels[0] * self.taps

    def margin(self, strip: int) -> int:
        """The places before and behind a strip where pixels look for windows, 0 if they do not sum their gradients.

        As far as windows reach, and a tile of pixels.
        """
        if self.lanes == "channels":
            return -(-(self.line.halo + self.tiles.image_row) // self.width) * self.width
        few = self.filters < FEW_FILTERS and 2 * strip >= self.filters * self.line.halo
        if not (self.backward and self.facts.gathers and few) or self.by_positions():
            return 0
        tile = (self.tiles.image_row + 1) * self.width
        margin = -(-(self.line.halo + tile) // self.width) * self.width
        return margin if self.per_filter * self.filters * margin <= cache_bytes() // 8 else 0

    def by_filters(self) -> bool:
        """Whether the gradients of weights are a pass of their own, in which each thread has some of the filters.

        Then no thread has totals of its own, which take memory and are added up afterwards; but each sees all images.
        Not for kernels whose backward pass begins with sweeps of its own, which would be made twice.
        """
        if not self.backward or self.facts.repeats:
            return False
        operands = zip(self.tensors, self.facts.axes, self.facts.roles)
        weights = sum(each.numel() for each, axes, role in operands if "o" in axes and role != "input")
        blocks = self.geometry.groups * -(-self.filters // self.tiles.bank_filters)
        balanced = -(-blocks // self.threads) * self.threads <= 1.25 * blocks
        many = self.filters >= MANY_FILTERS * self.threads or self.threads * weights >= self.tensors[0].numel()
        return balanced and many

    def more_strips(self, strip: int) -> int:
        """The strips beyond the first that are at hand together.

        In a forward pass a block of weights, where they come from memory, serves them all.  The gradients of weights
        sum their windows together, so that fewer are added up; no others where functions take so long at each tap that
        adding lanes is little, and the memory of strips much.
        """
        strips = self.tensors[0].shape[0] * self.line.lines * -(-self.line.length // strip)
        if self.lanes == "filters" and self.streams_weights():
            held = self.per_seen * (strip + self.line.halo) + self.per_filter * self.block * strip
            return min(max(self.beside_weights // held, 1), max(strips, 1)) - 1
        if not self.by_filters() or self.by_positions() or self.facts.backward.heavy:
            return 0
        turns = max(round(strips * strip / MANY_WINDOWS), 1)
        held = self.per_seen * (strip + self.line.halo) + self.per_filter * min(self.filters, JOINT_FILTERS) * strip
        turns = max(turns, -(-strips * held // (self.share if self.lanes == "channels" else 2 * self.share)))
        return max(-(-strips // turns), 1) - 1

    def more_images(self, strip: int, filter_step: int) -> int:
        """The images beyond the first for whose gradients weights come once, where they come from memory."""
        if self.lanes != "channels" or strip < self.line.length or not self.by_filters() or not self.streams_weights():
            return 0
        held = self.per_place * (strip + self.line.halo) + self.per_filter * filter_step * (strip + self.margin(strip))
        each = -(-self.tensors[0].shape[0] * self.geometry.groups // self.threads)  # of a thread
        turns = -(-each // max(self.beside_weights // held, 1))
        return max(-(-each // max(turns, 1)), 1) - 1
