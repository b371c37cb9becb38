"""What the C++ backend holds in registers: what lies in the lanes of vectors, and tiles of them.

Lanes follow from the shapes of a call, `Tiles` from the number of vector registers and from what a kernel accumulates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch

from ..geometry import Geometry
from .native_facts import Facts
from .native_plan import Tiles, channels_of, line_of, power_below, real_bytes

#: What lies in the lanes of the vectors of a library.
Lanes = Literal["windows", "filters", "channels"]

#: Vectors of channels or filters that lie side by side where they are the lanes, see `window.hpp`.
CHANNEL_VECTORS = 2
#: Channels or filters fill vectors if whole blocks of them have at most so many times as many.
MOST_PADDING = 1.25
#: Fewer taps of a window do not pay for turning what filters have found into rows of windows.
FEW_TAPS = 32
#: For fewer filters pixels sum their gradients, because adding to them tap by tap would be most of the work; unless a
#: strip is short for what its windows see, which each of these filters then looks at once more.
FEW_FILTERS = 4
#: More operations beside a function at a tap keep the units busy, and need registers of their own.
MUCH_BESIDE = 8
#: For fewer windows of an image most vectors of them are not full.
FEW_WINDOWS = 100


def lanes_of(
    facts: Facts, direction: str, vector_bytes: int, tensors: Sequence[torch.Tensor], geometry: Geometry
) -> Lanes:
    """What had better lie in the lanes of the vectors of a pass.

    Filters in a forward pass and channels in a backward pass leave no lane idle at the ends of rows of windows, load
    weights from aligned memory, and sum no lanes for the gradients of weights; but they must fill the vectors.  A tile
    of filters is turned into rows of windows at its end, which a few taps do not pay for.  Margins of zeros around the
    windows must not be most of a backward pass.  Where registers are few a tile of channels loads more for each
    product; it pays where taps do more than that, or windows are few.
    """
    backward, line = direction == "backward", line_of(tensors[0], geometry)
    filters = geometry.out_channels // geometry.groups
    channels, *others = channels_of(facts, tensors, geometry.groups)
    block = CHANNEL_VECTORS * vector_bytes // real_bytes(tensors[0].dtype)

    def fills(count: int) -> bool:
        return -(-count // block) * block <= MOST_PADDING * count

    if geometry.ignores_padding:
        return "windows"
    if not backward:
        enough = channels * math.prod(geometry.kernel_size) >= FEW_TAPS
        return "filters" if facts.filter_lanes and fills(filters) and enough else "windows"
    near = filters >= FEW_FILTERS and line.halo <= line.length and all(each == channels for each in others)
    pays = vector_bytes == 64 or facts.backward.cost > 2 or line.length < FEW_WINDOWS
    return "channels" if facts.channel_lanes and fills(channels) and near and pays else "windows"


def tiles_of(facts: Facts, vector_bytes: int, lanes: Lanes = "windows") -> Tiles:
    """The tiles of a kernel: as large as the registers hold, smaller where functions need registers of their own.

    Args:
        facts: of the kernel.
        vector_bytes: of a register.
        lanes: of its vectors.
    """
    registers, heavy = 32 if vector_bytes == 64 else 16, facts.backward.heavy
    state, image_sums, weight_sums = (max(n, 1) for n in (facts.state, facts.image_sums, facts.weight_sums))
    room = registers // (4 if facts.forward.heavy else 2)
    vectors = 2 if room // state >= 2 else 1
    filters = power_below(room // (state * vectors)) if facts.per_filter and not facts.ranked else 1
    row = max(vectors, min(4, power_below(room // state)))
    back = room if not heavy else registers // (4 if heavy == 1 else 8)
    bank = power_below(max(back // weight_sums, 1))
    bank_filters = power_below(math.isqrt(2 * bank)) if facts.per_filter else 1
    bank_taps = min(bank // bank_filters, 4)
    taps, places = ((back if heavy else light) // (4 * image_sums) for light in (registers, 16))
    tiles = Tiles(filters, vectors, row, 2, power_below(taps), 2 * power_below(places), bank_filters, bank_taps)
    # Registers without those of a tap's own numbers, for vectors of channels or filters that lie side by side.
    free = (28 if registers == 32 else 12) // CHANNEL_VECTORS
    if lanes == "filters":
        windows = max(free // state // (2 if facts.forward.heavy else 1), 1)
        return dataclasses.replace(tiles, filters=windows, vectors=CHANNEL_VECTORS)
    if lanes == "channels":
        sums = free // (1 if not heavy else 4 if heavy > 1 or facts.backward.cost > MUCH_BESIDE else 2)
        bank = max(sums // weight_sums, 1)
        bank_taps = min(bank, 3)
        bank_filters = power_below(bank // bank_taps)
        pixels = max(sums // image_sums, 1)
        return dataclasses.replace(tiles, image_row=pixels, bank_filters=bank_filters, bank_taps=bank_taps)
    return tiles
