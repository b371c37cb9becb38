"""What native backends know of a kernel when they plan a call: plain data, kept beside the source.

It spares a process that finds a kernel in the cache the derivation, and SymPy's view of the formula.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..kernel import Kernel
from ..language.axes import Position, domain
from ..operations import HEAVY
from ..schedule import Accumulator, Schedule, Sweep

#: Marks values that are put in order along channels that are not those of x.
OTHER_CHANNELS = "+"


@dataclass(frozen=True)
class PassFacts:
    """What there is to do and to hold in one pass.

    Args:
        heavy: how many functions of many instructions a tap evaluates, in all sweeps together.
        cost: the operations at a tap of the longest sweep; a quotient or a square root counts four times.
        per_window: numbers that are held for each window and filter.
        per_channel: those for each window, filter and channel.
        per_tap: those for each window, filter and tap.
        pixels: for each value that is computed once per pixel, of which input: its number among the inputs.
    """

    heavy: int
    cost: int
    per_window: int
    per_channel: int
    per_tap: int
    pixels: list[int]


@dataclass(frozen=True)
class FlatForward:
    """What a flat forward pass of a CUDA kernel reads, see `cuda_flat`.

    Args:
        tables: tables of places, one for each way in which x is read.
        weights: weights that are read at a tap.
        sets: sets of planes: of x, and of each value that is computed once per pixel.
    """

    tables: int
    weights: int
    sets: int


@dataclass(frozen=True)
class FlatBackward:
    """What a flat backward pass of a CUDA kernel reads and gives, see `cuda_flat`.

    Args:
        sets: sets of planes that gradients of weights are made of.
        values: values of a window that are read at a tap.
        pixel_sums: gradients of x that a tap gives; 0 if x has none.
        pixel_weights: weights that are read for those.
        weight_sums: gradients of weights and parameters that a tap gives.
        weight_weights: weights that are read for those.
        counts: whether it counts taps, which is not flat where some of them leave the image.
    """

    sets: int
    values: int
    pixel_sums: int
    pixel_weights: int
    weight_sums: int
    weight_weights: int
    counts: bool


@dataclass(frozen=True)
class Facts:
    """What a call needs to know of a kernel.

    Args:
        tensors: the names of the operands that are tensors, in the order of a call.
        roles: the role of each.
        axes: the axes of one element of each.
        kept: for each window value that the forward pass keeps, whether it is a "value" or a "position".
        has_gradient: the operands whose gradient is not identically 0.
        per_filter: whether an operand other than the bias has an element for each filter.
        ranked: the axes along which values are put in order, with `OTHER_CHANNELS` for channels of another input.
        state: the most vectors that the accumulators of a sweep of the forward pass hold.
        inference_state: the same for a forward pass that keeps nothing, if it needs less: no maximum must know where
            it was then, nor a product how many zeros it has.
        forward, backward: what each pass has to do.
        image_sums: gradients of inputs that the taps of all sweeps give.
        weight_sums: gradients of other operands that they give.
        repeats: whether the backward pass begins with sweeps that fill accumulators anew.
        gathers: whether pixels can sum their gradients.
        filter_lanes: whether the lanes of the vectors of a forward pass can be filters.
        channel_lanes: whether those of a backward pass can be channels.
        positions: the most positions of which a sweep knows that all other taps have no gradient; 0 if there is none.
        flat_forward, flat_backward: of the passes of a CUDA kernel that are flat.
    """

    tensors: list[str]
    roles: list[str]
    axes: list[str]
    kept: list[str]
    has_gradient: list[str]
    per_filter: bool
    ranked: list[str]
    state: int
    inference_state: int | None
    forward: PassFacts
    backward: PassFacts
    image_sums: int
    weight_sums: int
    repeats: bool
    gathers: bool
    filter_lanes: bool
    channel_lanes: bool
    positions: int
    flat_forward: FlatForward | None = None
    flat_backward: FlatBackward | None = None

    def of(self, direction: str) -> PassFacts:
        """What the pass "forward" or "backward" has to do."""
        return self.backward if direction == "backward" else self.forward

    def for_inference(self) -> Facts:
        """For a forward pass that keeps nothing."""
        return self if self.inference_state is None else dataclasses.replace(self, state=self.inference_state)

    def to_json(self) -> str:
        """The text in which they are kept."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """The inverse of `to_json`."""
        read = json.loads(text)
        records: dict[str, type[PassFacts] | type[FlatForward] | type[FlatBackward]] = {
            "forward": PassFacts,
            "backward": PassFacts,
            "flat_forward": FlatForward,
            "flat_backward": FlatBackward,
        }
        return cls(**read | {name: read[name] and record(**read[name]) for name, record in records.items()})


def facts_of(kernel: Kernel, schedule: Schedule) -> Facts:
    """The facts of a kernel, but for those of flat passes."""
    signature = kernel.signature
    inputs = signature.names("input")
    forward_pixels, backward_pixels = (
        [inputs.index(each.pixel.operand.name) for each in lifted if each.pixel] for lifted in schedule.lifted
    )
    per_filter = any("o" in axes for role, axes in zip(signature.roles, signature.axes) if role != "bias")
    sinks = [place.operand.role == "input" for sweep in schedule.backward for place in sweep.gradients]
    return Facts(
        tensors=list(signature.tensors),
        roles=list(signature.roles),
        axes=list(signature.axes),
        kept=["position" if isinstance(symbol, Position) else "value" for symbol in schedule.kept],
        has_gradient=sorted(schedule.has_gradient),
        per_filter=per_filter,
        ranked=_ranked(schedule),
        state=_state(sweep.accumulators for sweep in schedule.forward),
        inference_state=_inference_state(schedule),
        forward=_pass_facts(schedule.forward, forward_pixels, 1),  # the output
        backward=_pass_facts(schedule.backward, backward_pixels, 1 + len(schedule.kept)),  # its gradient
        image_sums=sum(sinks),
        weight_sums=len(sinks) - sum(sinks),
        repeats=any(not sweep.gradients for sweep in schedule.backward),
        gathers=any(sweep.gathers for sweep in schedule.backward),
        filter_lanes=schedule.filter_lanes and per_filter,
        channel_lanes=schedule.channel_lanes,
        positions=max((len(sweep.positions) for sweep in schedule.backward), default=0),
    )


def _pass_facts(sweeps: Sequence[Sweep], pixels: list[int], values: int) -> PassFacts:
    """The facts of a pass that also holds `values` numbers for each window."""
    held = {"": values + sum(len(sweep.names) for sweep in sweeps), "c": 0, "t": 0}
    for each in (each for sweep in sweeps for each in sweep.accumulators):
        held[domain(each.left).axes] += len(each.symbols)
    operations = [sweep.taps.operations for sweep in sweeps]
    return PassFacts(
        heavy=sum(count for each in operations for name, count in each.items() if name in HEAVY),
        cost=max((_cost(each) for each in operations), default=0),
        per_window=held[""],
        per_channel=held["c"],
        per_tap=held["t"],
        pixels=pixels,
    )


def _cost(operations: Mapping[str, int]) -> int:
    """How many they are, where a quotient or a square root counts four times."""
    return sum(count * (4 if name in ("div", "sqrt") else 1) for name, count in operations.items())


def _ranked(schedule: Schedule) -> list[str]:
    """The axes along which values are put in order."""
    sweeps = *schedule.forward, *schedule.backward
    ranks = [each for sweep in sweeps for each in sweep.accumulators if each.rank is not None]
    return sorted(
        {"".join(sorted(each.dims)) + OTHER_CHANNELS * bool("c" in each.dims and each.where.inputs) for each in ranks}
    )


def _state(sweeps: Iterable[Iterable[Accumulator]]) -> int:
    """The most vectors that the accumulators of a sweep hold."""
    return max((sum(each.kind.vectors for each in sweep) for sweep in sweeps), default=1)


def _inference_state(schedule: Schedule) -> int | None:
    """The state where accumulators yield what is plain; None where they do so anyway, or the output needs the rest."""
    accumulators = [each for sweep in schedule.forward for each in sweep.accumulators]
    read: frozenset[Any] = frozenset().union(schedule.output.arguments, *(each.needs for each in accumulators))
    plain = {each: each.yielding(read) for each in accumulators if each.kind.plain}
    if not plain or any(each.kind.plain for each in plain.values()):
        return None
    return _state([plain.get(each, each) for each in sweep.accumulators] for sweep in schedule.forward)
