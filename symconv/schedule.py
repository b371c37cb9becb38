"""The schedule of a kernel: sweeps over the window, what each of them accumulates, and what is handed on.

A *sweep* visits every tap of a block of windows once and fills accumulators, or gives gradients.  `lower` makes the
schedule of a formula; every backend renders it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import sympy as sp

from .accumulators import Kind
from .functions import is_bounded, same
from .language.axes import WINDOW, Domain, Labels, TapPosition, Value, domain, labels_of, without
from .language.symbols import Access, Operand
from .lift import Lifted
from .operations import NOTHING, Block

#: The gradient that reaches the output of a window.
GRAD = Value("grad")


@dataclass(frozen=True)
class Accumulator:
    """One running value of a sweep.

    Args:
        kind: its kind.
        symbols: what it yields.
        value: the tap value that goes in.
        where: the taps and channels that it runs over, those of its value and `dims`.
        dims: the axes that it reduces.
        rank: for a rank, which value it yields: a window value.
    """

    kind: Kind
    symbols: tuple[Value, ...]
    value: sp.Expr
    where: Domain
    dims: frozenset[str]
    rank: sp.Expr | None = None

    @property
    def left(self) -> Labels:
        """The axes that its result still has."""
        return without(self.where.labels, self.dims)

    @property
    def held(self) -> Domain:
        """How many values it holds for each window: one, or one for each of these taps and channels."""
        return self.where if self.rank is not None else domain(self.left)

    @property
    def needs(self) -> frozenset[sp.Symbol]:
        """The symbols that must be there before it."""
        return frozenset().union(*(expr.free_symbols for expr in self.takes))

    @property
    def takes(self) -> tuple[sp.Expr, ...]:
        """The expressions that go in: its value and its rank."""
        return (self.value,) if self.rank is None else (self.value, self.rank)

    def of(self, exprs: Mapping[sp.Expr, sp.Expr]) -> Accumulator:
        """The accumulator with each expression that goes in replaced by what `exprs` has for it."""
        return replace(self, value=exprs[self.value], rank=self.rank if self.rank is None else exprs[self.rank])

    def yielding(self, wanted: frozenset[sp.Symbol]) -> Accumulator:
        """The same with its first symbol alone, if nobody wants the others: a maximum without its position."""
        if self.kind.plain is None or not wanted.isdisjoint(self.symbols[1:]):
            return self
        return replace(self, kind=self.kind.plain, symbols=self.symbols[:1])


@dataclass(frozen=True)
class Sweep:
    """One visit to every tap of the window.

    Args:
        where: the taps and channels visited.
        names: window values computed before the sweep, in the order of `before.results`.
        before: the function that computes them.
        taps: the function evaluated at each tap.
        accumulators: where its results go, in their order; none for a sweep that gives gradients.
        gradients: for such a sweep the operand to which each result belongs.
        ranks: the function of the window that gives the ranks of its accumulators of a rank.
        factors: for gradients the function that gives what each of their sums is multiplied by, if there is one.
    """

    where: Domain
    names: tuple[sp.Symbol, ...]
    before: Block
    taps: Block
    accumulators: tuple[Accumulator, ...] = ()
    gradients: tuple[Operand, ...] = ()
    ranks: Block = NOTHING
    factors: tuple[Block | None, ...] = ()

    @property
    def gathers(self) -> bool:
        """Whether a pixel can sum its gradients: taps read and give to the pixels under them, and no others."""
        blocks = self.taps, *(block for block in self.factors if block is not None)
        read = [each for block in blocks for each in block.arguments]
        places = [*self.gradients, *(each.pixel if isinstance(each, Lifted) else each for each in read)]
        inputs = [each for each in places if isinstance(each, Operand) and each.operand.role == "input"]
        wanted = any(each.operand.role == "input" for each in self.gradients)
        return wanted and "t" in self.where.axes and not any(isinstance(each, Access) for each in inputs)

    @property
    def channel_lanes(self) -> bool:
        """Whether all channels and taps are alike: each reads and gives numbers of its own, or what all share.

        What the sum of a gradient is multiplied by belongs to the pixel or weight alone.  The lanes of vectors can be
        channels then.
        """
        factors = zip(self.gradients, self.factors or itertools.repeat(None))
        return (
            self.where == Domain("ct")
            and bool(self.gradients)
            and not self.positions
            and all(map(varies_by_channel, self.gradients))
            and all(varies_by_channel(each) or is_of_window(each) for each in self.taps.arguments)
            and all(
                isinstance(each, Operand | Lifted)
                and (varies_by_channel(each) or is_of_window(each))
                and is_of_input(each) in (None, is_of_input(place))
                for place, factor in factors
                if factor is not None
                for each in factor.arguments
            )
        )

    @property
    def filter_lanes(self) -> bool:
        """Whether all filters are alike: each reads the same pixels, and nothing else that its windows alone have.

        The lanes of vectors can be filters then.
        """
        return (
            self.where == Domain("ct")
            and not self.gradients
            and not any(each.left or each.rank is not None for each in self.accumulators)
            and not any(map(varies_by_window_and_filter, self.taps.arguments))
        )

    @property
    def is_bounded(self) -> bool:
        """Whether what its taps give is finite wherever what they read is, pixels and weights too."""
        lifted = [each.block for each in self.taps.arguments if isinstance(each, Lifted)]
        return all(is_bounded(expr) for block in (self.taps, *lifted) for expr in block.expressions)

    @property
    def positions(self) -> tuple[sp.Symbol, ...]:
        """The positions of the only taps of a window that have gradients; none where others may have some."""
        tests = set[sp.Expr]().union(*(expr.atoms(same) for expr in self.taps.expressions))
        found = {test for test in tests if not labels_of(test.args[0]) and labels_of(test.args[1]) == self.where.labels}
        elsewhere: dict[sp.Expr, sp.Expr] = dict.fromkeys(found, sp.S.Zero)
        for name, expr in self.taps.temporaries:
            elsewhere[name] = expr.xreplace(elsewhere)
        if not self.gradients or any(expr.xreplace(elsewhere) != 0 for expr in self.taps.results):
            return ()
        return tuple(sorted({test.args[0] for test in found}, key=str))


def varies_by_channel(symbol: sp.Symbol) -> bool:
    """Whether a symbol is a number of its own for each channel and tap, a pixel or a weight, read under the tap."""
    place = symbol.pixel or symbol if isinstance(symbol, Lifted) else symbol
    if isinstance(place, Operand) and not place.is_at_tap:
        return False
    return bool(is_of_input(symbol)) or (isinstance(place, Operand | Lifted) and set(place.axes) == set("oct"))


def varies_by_window_and_filter(symbol: sp.Symbol) -> bool:
    """Whether a symbol is a number of its own for each window of each filter: a value, a field, an own pixel."""
    if isinstance(symbol, Lifted):
        return symbol.pixel is not None and varies_by_window_and_filter(symbol.pixel)
    if isinstance(symbol, Operand):
        own = symbol.role == "input" and isinstance(symbol, Access) and symbol.own
        return own or (symbol.role == "field" and "o" in symbol.axes)
    return not isinstance(symbol, TapPosition)


def is_of_window(symbol: sp.Symbol) -> bool:
    """Whether a symbol is one number for all channels and taps of a window."""
    if isinstance(symbol, TapPosition) or (isinstance(symbol, Operand) and not symbol.is_at_tap):
        return False
    axes = symbol.axes if isinstance(symbol, Operand | Lifted) else domain(labels_of(symbol)).axes
    return not {"c", "t"} & {*axes} and not is_of_input(symbol) and getattr(symbol, "role", "") != "index"


def is_of_input(symbol: sp.Symbol) -> bool | None:
    """Whether a symbol belongs to a pixel; None for what is the same for all pixels and weights."""
    if isinstance(symbol, Lifted):
        return symbol.pixel is not None
    return symbol.role == "input" if isinstance(symbol, Operand) and symbol.axes else None


@dataclass(frozen=True)
class Schedule:
    """How a kernel is computed, forward and backward.

    Args:
        forward: the sweeps of the forward pass.
        output: the function that gives the output from what they accumulated.
        accumulated: the window values that the forward pass hands to the backward pass as they are.
        made: those that it makes of several, in the order of `make`.
        make: the function that gives those.
        backward: the sweeps of the backward pass: first what is accumulated again, then those that give gradients.
        window_gradients: the operands with a gradient that arises once per window, in the order of `at_windows`.
        at_windows: the function that gives those.
        counts: symbols for numbers of taps: the axes counted, and whose.
    """

    forward: tuple[Sweep, ...]
    output: Block
    accumulated: tuple[Value, ...]
    made: tuple[Value, ...]
    make: Block
    backward: tuple[Sweep, ...]
    window_gradients: tuple[Operand, ...]
    at_windows: Block
    counts: dict[sp.Symbol, Domain]

    @property
    def kept(self) -> tuple[Value, ...]:
        """The window values that the forward pass hands to the backward pass."""
        return self.accumulated + self.made

    @property
    def has_gradient(self) -> frozenset[str]:
        """The names of the operands whose gradient is not identically 0."""
        places = [*self.window_gradients, *(place for sweep in self.backward for place in sweep.gradients)]
        return frozenset(place.operand.name for place in places)

    @property
    def channel_lanes(self) -> bool:
        """Whether the lanes of vectors of the backward pass can be channels: one sweep over channels and taps."""
        over_taps = [sweep for sweep in self.backward if sweep.where != WINDOW]
        at_windows = [self.at_windows, *(sweep.before for sweep in self.backward)]
        at_windows += [sweep.taps for sweep in self.backward if sweep.where == WINDOW]
        read = [each for block in at_windows for each in block.arguments]
        return (
            len(over_taps) == 1
            and over_taps[0].channel_lanes
            and all(map(is_of_window, read))
            and not any(map(is_of_input, self.window_gradients))
        )

    @property
    def filter_lanes(self) -> bool:
        """Whether the lanes of vectors of the forward pass can be filters: of all its sweeps."""
        return bool(self.forward) and all(sweep.filter_lanes for sweep in self.forward)

    @property
    def lifted(self) -> tuple[list[Lifted], list[Lifted]]:
        """What is computed once per pixel or weight, for the forward and for the backward pass."""
        forward, backward = (
            sorted(
                {
                    each
                    for sweep in sweeps
                    for block in (sweep.taps, *filter(None, sweep.factors))
                    for each in block.arguments
                    if isinstance(each, Lifted)
                },
                key=str,
            )
            for sweeps in (self.forward, self.backward)
        )
        return forward, backward

    @staticmethod
    def held(sweeps: Iterable[Sweep]) -> list[Domain]:
        """What the sweeps hold for each window beyond one value: the taps and channels of each."""
        found = {each.held for sweep in sweeps for each in sweep.accumulators}
        return sorted(found - {WINDOW})
