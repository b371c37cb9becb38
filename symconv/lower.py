"""From derivatives to a schedule: sweeps over the window, and the small functions that each of them evaluates.

A *sweep* visits every tap of a block of windows once and fills accumulators.  What is the same at all taps is taken
out of the sweep and computed once per window.  Window nodes become accumulators and guarded expressions by the rules
of their records; a reduction over one axis is an accumulator that has the other axis left.  Values per window that
the forward pass accumulated and the backward pass needs are *kept*; everything else is computed again.
"""

from __future__ import annotations

import functools
import graphlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import sympy as sp

from .accumulators import EXPONENTIALS, FACTORS, FIRST_MAX, FIRST_RANK, MEAN, SUM, Kind
from .derive import partials, tidy
from .functions import Pointwise, finite, less, power, typed
from .functions import where as choice
from .keep import merged
from .language.axes import WINDOW, Domain, Labels, Position, TapPosition, Value, WindowNode, domain, labels_of, without
from .language.formula import Formula
from .language.symbols import Operand
from .lift import Lifted, Lifting, factored
from .operations import NOTHING, Block, is_denominator
from .reductions import divided, record_of, weighs_sums
from .rewrite import kinked, numeric
from .schedule import GRAD, Accumulator, Schedule, Sweep


def lower(formula: Formula, lift: bool = False) -> Schedule:
    """The schedule of a formula, gradients included.

    Args:
        formula: what to compute.
        lift: whether costly parts of a tap that belong to one pixel, or to one weight, are `Lifted`.
    """
    lowering = _Lowering(formula, lift)
    output = lowering.lower(kinked(formula.expr))
    forward_accumulators = tuple(lowering.accumulators)
    at_taps: dict[Domain, dict[Operand, sp.Expr]] = {}
    for operand, partial in partials(formula).items():
        for where, expr in partial.items():
            at_taps.setdefault(where, {})[operand] = lowering.gradient(expr)
    at_windows = at_taps.pop(WINDOW, {})
    gradients = [expr for where in at_taps.values() for expr in where.values()] + [*at_windows.values()]
    wanted = frozenset().union(*(expr.free_symbols for expr in gradients))
    again = needed(wanted, lowering.accumulators, set(forward_accumulators))
    used = wanted.union(*(each.needs for each in again))
    read = output.free_symbols.union(*(each.needs for each in forward_accumulators))
    forward = [each.yielding(frozenset(read | used if not each.left else read)) for each in forward_accumulators]
    again = [each.yielding(used) for each in again]
    kept = [s for each in forward if not each.left for s in each.symbols if s in used]

    exprs = [*gradients, *(expr for each in again for expr in each.takes)]
    known = {*lowering.counts, *(operand for operand in formula.operands if operand.role == "const")}
    rewritten, parts = merged(exprs, (value for value in kept if not isinstance(value, Position)), known)
    new = dict(zip(exprs, rewritten))
    used = frozenset().union(*(expr.free_symbols for expr in rewritten))

    again = [each.of(new) for each in again]
    values = [each.value for each in (*forward, *again)]
    lowering.deviated = {each.args[0] for value in values for each in value.atoms(less)}
    forward_sweeps = [lowering.sweep(where, group) for where, group in stages(forward)]
    backward = [lowering.sweep(where, group) for where, group in stages(again)]
    for where, slopes in sorted(at_taps.items()):
        backward.append(lowering.gradient_sweep(where, {operand: new[expr] for operand, expr in slopes.items()}))
    return Schedule(
        tuple(forward_sweeps),
        lowering.block([output]),
        tuple(value for value in kept if value in used),
        tuple(parts),
        lowering.block(parts.values()),
        tuple(backward),
        tuple(at_windows),
        lowering.block(new[expr] for expr in at_windows.values()),
        lowering.counts,
    )


def needed(
    wanted: frozenset[sp.Symbol], accumulators: Sequence[Accumulator], forward: set[Accumulator]
) -> list[Accumulator]:
    """The accumulators that the backward pass computes: for `wanted`, all but what the forward pass kept."""
    found: list[Accumulator] = []
    for each in reversed(accumulators):
        is_kept = each in forward and not each.left
        if not is_kept and wanted.intersection(each.symbols):
            found.append(each)
            wanted |= each.needs
    return found[::-1]


def stages(accumulators: Sequence[Accumulator]) -> Iterator[tuple[Domain, tuple[Accumulator, ...]]]:
    """Accumulators in groups that can share a sweep: of one domain, and each needs only those of earlier groups."""
    waiting = list(accumulators)
    while waiting:
        pending = {symbol for each in waiting for symbol in each.symbols}
        ready = [each for each in waiting if not each.needs & pending]
        for where in sorted({each.where for each in ready}):
            yield where, tuple(each for each in ready if each.where == where)
        waiting = [each for each in waiting if each not in ready]


class _Lowering:
    """Turns expressions with window nodes into expressions of accumulators."""

    def __init__(self, formula: Formula, lift: bool) -> None:
        self.formula = formula
        #: Less work at a tap than a running maximum, and one sweep more: with filters a single one is flat on GPUs.
        self.maximum_first = weighs_sums(formula.expr) or not any("o" in each.axes for each in formula.operands)
        self.accumulators: list[Accumulator] = []
        self.counts: dict[sp.Symbol, Domain] = {}
        self.deviated: set[sp.Expr] = set()  # the values from whose means deviations are taken
        self._known: dict[tuple[object, ...], Accumulator] = {}
        taken = {operand.name for operand in formula.operands}
        self._fresh = (name for name in map("v{}".format, itertools.count(1)) if name not in taken)
        self._lifting = Lifting(self.block, taken) if lift else None
        self._temporary = [name for name in map("u{}".format, range(1, 2000)) if name not in taken]
        self.lower = functools.cache(self._lower)

    # -- Expressions ---------------------------------------------------------------------------------------------

    def _lower(self, expr: sp.Basic) -> sp.Basic:
        if not expr.args and not isinstance(expr, WindowNode):
            return expr
        if (definition := getattr(type(expr), "definition", None)) is not None:
            return self.lower(kinked(definition(*expr.args)))
        args = [self.lower(argument) for argument in expr.args]
        if isinstance(expr, WindowNode):
            labels = frozenset().union(*map(labels_of, expr.args))
            return self.lower(kinked(record_of(expr).lower(_Along(self, expr.dims, labels), *args)))
        return _with_typed_numbers(numeric(expr.func(*args)))

    def gradient(self, partial: sp.Expr) -> sp.Expr:
        """`grad` times a partial derivative."""
        return tidy(GRAD * divided(self.lower(kinked(partial))))

    # -- Sweeps --------------------------------------------------------------------------------------------------

    def sweep(self, where: Domain, accumulators: tuple[Accumulator, ...]) -> Sweep:
        deviated = [each.value in self.deviated for each in accumulators]
        names, before, taps = self._parts([each.value for each in accumulators], deviated)
        ranks = self.block(each.rank for each in accumulators if each.rank is not None)
        return Sweep(where, names, before, taps, accumulators, ranks=ranks)

    def gradient_sweep(self, where: Domain, exprs: dict[Operand, sp.Expr]) -> Sweep:
        if self._lifting is None:
            return Sweep(where, *self._parts([*exprs.values()]), gradients=tuple(exprs))
        parts = [factored(self._lifting.lift(expr), place) for place, expr in exprs.items()]
        factors = tuple(None if factor == 1 else self.block([factor]) for factor, _ in parts)
        return Sweep(where, *self._parts([rest for _, rest in parts]), gradients=tuple(exprs), factors=factors)

    def _parts(
        self, values: list[sp.Expr], deviated: Sequence[bool] = ()
    ) -> tuple[tuple[sp.Symbol, ...], Block, Block]:
        hoisted: dict[sp.Expr, sp.Symbol] = {}
        apart = any(deviated) or any(value.has(less) for value in values)
        values = [self._hoist(value, hoisted) for value in values]
        if self._lifting is not None:
            values = [self._lifting.lift(value) for value in values]
        return tuple(hoisted.values()), self.block(hoisted, itertools.repeat(apart)), self.block(values, deviated)

    def _hoist(self, expr: sp.Expr, hoisted: dict[sp.Expr, sp.Symbol]) -> sp.Expr:
        """`expr` with its largest parts that are the same at all taps replaced by names."""
        if not expr.args or expr.is_number:
            return expr
        if isinstance(expr, sp.Expr) and not _is_tap(expr):
            if (-expr).is_Symbol or all(isinstance(symbol, (Operand, Lifted)) for symbol in expr.free_symbols):
                return expr  # a negation, or parameters only: as cheap at a tap as a name
            if expr not in hoisted:
                hoisted[expr] = Value(next(self._fresh))
            return hoisted[expr]
        args = expr.args
        if expr.is_Add or expr.is_Mul:
            shared = [argument for argument in args if not _is_tap(argument)]
            if any(not argument.is_number for argument in shared) and len(shared) > 1:
                args = (expr.func(*shared), *(argument for argument in args if _is_tap(argument)))
        new = [self._hoist(argument, hoisted) for argument in args]
        return expr if tuple(new) == expr.args else expr.func(*new)

    def block(self, results: Iterable[sp.Expr], deviated: Iterable[bool] = ()) -> Block:
        """Results as a function, with common subexpressions named, and quotients that all filters share.

        Values from which deviations are taken have no parts in common with others: those under a `less`, and those
        results that are `deviated`.  A mean of equal values is one of them, and the deviation is 0 only if both sweeps
        round in the same way, whatever else is computed there.
        """
        results = tuple(results)
        if not results:
            return NOTHING
        names, last = _real(self._temporary), _real(reversed(self._temporary))
        alone = {expr for expr, each in zip(results, deviated) if each}
        alone |= {each.args[0] for expr in results for each in expr.atoms(less)}
        values: dict[sp.Symbol, sp.Expr] = {}
        own: dict[sp.Expr, sp.Symbol] = {}
        for expr in sorted(alone, key=lambda expr: (sp.count_ops(expr), str(expr))):
            if expr.args and not expr.is_number:
                found, (value,) = self._named([expr.xreplace(own)], names, last)
                own[expr] = next(last)
                values |= found | {own[expr]: value}
        found, reduced = self._named([expr.xreplace(own) for expr in results], names, last)
        values |= found
        for name in own.values():  # what is needed once, as it is, needs no name
            users = [expr for expr in (*values.values(), *reduced) for _ in range(expr.count(name))]
            if len(users) == 1 and (users[0] == name or any(each.args[0] == name for each in users[0].atoms(less))):
                known = {name: values.pop(name)}
                reduced = [expr.xreplace(known) for expr in reduced]
                values = {other: value.xreplace(known) for other, value in values.items()}
        while plain := [name for name, value in values.items() if value.is_number or value.is_Symbol]:  # needs no name
            known = {plain[0]: values.pop(plain[0])}  # one at a time: what it stands in may be a number then
            reduced = [expr.xreplace(known) for expr in reduced]
            values = {name: value.xreplace(known) for name, value in values.items()}
        needed = {name: sorted(value.free_symbols & values.keys(), key=str) for name, value in values.items()}
        ordered = [*graphlib.TopologicalSorter(needed).static_order()]
        named = dict(zip(ordered, _real(self._temporary)))
        temporaries = [(named[name], values[name].xreplace(named)) for name in ordered]
        symbols = set().union(*(expr.free_symbols for expr in results))
        return Block(
            tuple(sorted(symbols, key=self._rank)),
            tuple(temporaries),
            tuple(expr.xreplace(named) for expr in reduced),
        )

    def _named(
        self, exprs: list[sp.Expr], names: Iterator[sp.Symbol], last: Iterator[sp.Symbol]
    ) -> tuple[dict[sp.Symbol, sp.Expr], list[sp.Expr]]:
        """Common subexpressions by name, and the expressions in which they are named."""
        common: dict[sp.Expr, sp.Symbol] = {}
        grouped = [self._group(expr, common, last) for expr in exprs]
        found, reduced = sp.cse([*common, *grouped], symbols=names, order="canonical")
        return dict(found) | dict(zip(common.values(), reduced)), reduced[len(common) :]

    def _group(self, expr: sp.Expr, common: dict[sp.Expr, sp.Symbol], names: Iterator[sp.Symbol]) -> sp.Expr:
        """`expr` with a name for each quotient in it that all filters share: there is one division for all of them.

        Not for reciprocals alone: w/x is rounded once, and w*(1/x) would be twice.  A quotient may overflow by itself
        where w makes up for it in w*x/g; products, where only a multiplication would be spared, are left as they are.
        """
        if not expr.args or expr.is_number:
            return expr
        args = [self._group(each, common, names) for each in expr.args]
        if isinstance(expr, sp.Mul):
            shared = [each for each in args if _is_shared(each)]
            several = [each for each in shared if not each.is_number]
            if len({is_denominator(each) for each in several}) == 2 and len(shared) < len(args):
                product = sp.Mul(*shared)
                if product not in common:
                    common[product] = next(names)
                args = [common[product], *(each for each in args if each not in shared)]
        return expr if tuple(args) == expr.args else expr.func(*args)

    def _rank(self, symbol: sp.Symbol) -> tuple[int, int, str]:
        """Operands first, in the formula's order, then accumulators, then the rest."""
        if isinstance(symbol, Operand):
            return 0, self.formula.operands.index(symbol.operand), symbol.name
        produced = [each for accumulator in self.accumulators for each in accumulator.symbols]
        return (1, produced.index(symbol), "") if symbol in produced else (2, 0, symbol.name)


class _Along:
    """What `Accumulators` promises, along the axes of one node, whose arguments vary along `labels`."""

    def __init__(self, lowering: _Lowering, dims: frozenset[str], labels: Labels) -> None:
        self.lowering, self.dims, self.labels = lowering, dims, labels

    def sum(self, value: sp.Expr, *like: sp.Expr) -> sp.Expr:
        return self._yield(SUM, value, *like)[0]

    def factors(self, value: sp.Expr) -> tuple[sp.Expr, ...]:
        return self._yield(FACTORS, value)

    def first_max(self, value: sp.Expr) -> tuple[sp.Expr, ...]:
        return self._yield(FIRST_MAX, value)

    def mean(self, value: sp.Expr) -> sp.Expr:
        own = _Along(self.lowering, self.dims, labels_of(value))  # more taps of the same values have the same mean
        return own._yield(MEAN, value)[0]

    def exponentials(self, value: sp.Expr) -> tuple[sp.Expr, ...]:
        if not self.lowering.maximum_first:
            return self._yield(EXPONENTIALS, value)
        peak = finite(self.first_max(value)[0])
        return peak, self.sum(sp.exp(less(value, peak)))

    def first_rank(self, value: sp.Expr, rank: sp.Expr) -> tuple[sp.Expr, ...]:
        return self._yield(FIRST_RANK, value, rank=self.lowering.lower(kinked(rank)))

    def count(self, *like: sp.Expr) -> sp.Expr:
        name, counted = self._named("count", like)
        symbol = sp.Symbol(name, nonnegative=True)  # 0 of a window that lies outside the image
        self.lowering.counts[symbol] = counted
        return symbol

    def position(self, *like: sp.Expr) -> sp.Expr:
        name, among = self._named("position", like)
        return TapPosition(name, among.labels)

    def _named(self, name: str, like: Iterable[sp.Expr]) -> tuple[str, Domain]:
        """What the node runs over along its axes, and a name with that in it."""
        where = Domain("".join(sorted(self.dims)), self._where(like).inputs if "c" in self.dims else ())
        return name if where == Domain("ct") else f"{name}_{where.name}", where

    def _where(self, values: Iterable[sp.Expr]) -> Domain:
        return domain(self.labels.union(*map(labels_of, values)), self.dims)

    def _yield(self, kind: Kind, value: sp.Expr, *like: sp.Expr, rank: sp.Expr | None = None) -> tuple[Value, ...]:
        value = self.lowering.lower(kinked(value))
        where = self._where([value, *like])
        key = (kind, value, where, self.dims, rank)
        if key not in self.lowering._known:
            number = len(self.lowering.accumulators) + 1
            left = without(where.labels, self.dims)
            symbols = tuple(
                (Position if each.is_position else Value)(f"{each.name}_{number}", left) for each in kind.results
            )
            accumulator = Accumulator(kind, symbols, value, where, self.dims, rank)
            self.lowering.accumulators.append(accumulator)
            self.lowering._known[key] = accumulator
        return self.lowering._known[key].symbols


def _with_typed_numbers(expr: sp.Basic) -> sp.Basic:
    """`expr` with a number given the dtype of a neighbour where the function would not find it out by itself."""
    if not expr.free_symbols:
        return expr
    real = (symbol for symbol in sorted(expr.free_symbols, key=str) if not isinstance(symbol, Position))
    like = next(real, None)
    if isinstance(expr, choice):
        condition, value, otherwise = expr.args
        numbers = like is not None and value.is_number and otherwise.is_number
        return choice(condition, typed(value, like), otherwise) if numbers else expr
    if isinstance(expr, (Pointwise, sp.atan2)) and len(expr.args) > 1 and not isinstance(expr, (power, typed)):
        return expr.func(*(typed(argument, like) if argument.is_number else argument for argument in expr.args))
    return expr


def _is_tap(expr: sp.Basic) -> bool:
    """Whether a lowered expression differs between the taps of a window."""
    return bool(labels_of(expr))


def _real(names: Iterable[str]) -> Iterator[sp.Symbol]:
    """Symbols for real values, each made when it is asked for: there are many names."""
    return (sp.Symbol(name, real=True) for name in names)


def _is_shared(expr: sp.Basic) -> bool:
    """Whether an expression is the same for all filters."""
    return all(isinstance(symbol, Operand) and "o" not in symbol.axes for symbol in expr.free_symbols)
