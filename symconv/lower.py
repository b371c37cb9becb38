"""From derivatives to a schedule: sweeps over the window, and the small functions that each of them evaluates.

A *sweep* visits every tap once and fills accumulators.  Everything that is the same at all taps is taken out of the
sweep and computed once per window.  Window nodes become accumulators and guarded expressions by the rules of their
records.  Values that the forward pass accumulated and the backward pass needs are *kept*; tap values are computed
again.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import sympy as sp

from .derive import partials, tidy
from .functions import BY_CLASS, Pointwise, kinked, power, typed
from .language.formula import Formula
from .language.symbols import Operand
from .reductions import BY_NODE, WindowNode

GRAD_OUTPUT = sp.Symbol("grad_output", real=True)
#: The scan position of a tap, and how many taps of a window count.
POSITION = sp.Symbol("position", integer=True)
COUNT = sp.Symbol("count", positive=True)


@dataclass(frozen=True)
class Accumulator:
    """One running value of a sweep.

    Args:
        kind: "sum", "product", "first_max" or "logsumexp".
        symbols: what it yields: one value, or for "first_max" the maximum and its position.
        value: the tap value that goes in.
    """

    kind: str
    symbols: tuple[sp.Symbol, ...]
    value: sp.Expr


@dataclass(frozen=True)
class Block:
    """A straight-line function: arguments, named temporaries, results."""

    arguments: tuple[sp.Symbol, ...]
    temporaries: tuple[tuple[sp.Symbol, sp.Expr], ...]
    results: tuple[sp.Expr, ...]

    @property
    def operations(self) -> Counter[str]:
        """How many operations of each sort one evaluation takes."""
        return sum((count_operations(expr) for _, expr in self.temporaries), Counter()) + sum(
            map(count_operations, self.results), Counter()
        )


@dataclass(frozen=True)
class Sweep:
    """One visit to every tap of the window.

    Args:
        names: window values computed before the sweep, in the order of `before.results`.
        before: the function that computes them.
        taps: the function evaluated at each tap.
        accumulators: where its results go; empty for the sweep that gives gradients.
    """

    names: tuple[sp.Symbol, ...]
    before: Block
    taps: Block
    accumulators: tuple[Accumulator, ...]


@dataclass(frozen=True)
class Schedule:
    """How a kernel is computed, forward and backward.

    Args:
        forward: the sweeps of the forward pass.
        output: the function that gives the output from what they accumulated.
        kept: the window values that the forward pass hands to the backward pass.
        backward: the sweeps of the backward pass; the last one gives gradients, if any arises at taps.
        tap_gradients: the operands whose gradient the last backward sweep gives, in the order of its results.
        window_gradients: the operands with a gradient that arises once per window, in the order of `at_windows`.
        at_windows: the function that gives those.
    """

    forward: tuple[Sweep, ...]
    output: Block
    kept: tuple[sp.Symbol, ...]
    backward: tuple[Sweep, ...]
    tap_gradients: tuple[Operand, ...]
    window_gradients: tuple[Operand, ...]
    at_windows: Block

    @property
    def has_gradient(self) -> frozenset[str]:
        """The names of the operands whose gradient is not identically 0."""
        return frozenset(operand.name for operand in (*self.tap_gradients, *self.window_gradients))


def lower(formula: Formula) -> Schedule:
    """The schedule of a formula, gradients included."""
    lowering = _Lowering(formula)
    output = lowering.lower(kinked(formula.expr))
    forward_accumulators = tuple(lowering.accumulators)
    forward = [lowering.sweep(group) for group in lowering.stages(forward_accumulators)]

    derivatives = partials(formula)
    at_taps = {operand: lowering.gradient(partial.tap) for operand, partial in derivatives.items() if partial.tap != 0}
    at_windows = {
        operand: lowering.gradient(partial.window) for operand, partial in derivatives.items() if partial.window != 0
    }
    new = lowering.accumulators[len(forward_accumulators) :]
    backward = [lowering.sweep(group) for group in lowering.stages(new)]
    if at_taps:
        backward.append(lowering.tap_sweep(tuple(at_taps.values()), ()))
    window_block = lowering.block(at_windows.values())

    used = {symbol for sweep in backward for block in (sweep.before, sweep.taps) for symbol in block.arguments}
    used.update(window_block.arguments)
    kept = tuple(symbol for each in forward_accumulators for symbol in each.symbols if symbol in used)
    return Schedule(
        tuple(forward), lowering.block([output]), kept, tuple(backward), tuple(at_taps), tuple(at_windows), window_block
    )


class _Lowering:
    """Turns expressions with window nodes into expressions of accumulators, and orders the accumulators."""

    def __init__(self, formula: Formula) -> None:
        self.formula = formula
        self.accumulators: list[Accumulator] = []
        self._known: dict[tuple[str, sp.Expr], Accumulator] = {}
        taken = {operand.name for operand in formula.operands}
        self._fresh = (name for name in map("v{}".format, itertools.count(1)) if name not in taken)
        self._temporary = [name for name in map("u{}".format, range(1, 2000)) if name not in taken]
        self.lower = functools.cache(self._lower)

    # -- Expressions ---------------------------------------------------------------------------------------------

    def _lower(self, expr: sp.Basic) -> sp.Basic:
        if not expr.args and not isinstance(expr, WindowNode):
            return expr
        args = [self.lower(argument) for argument in expr.args]
        if isinstance(expr, WindowNode):
            lowered = self.lower(kinked(BY_NODE[type(expr)].lower(self, *args)))
        elif (definition := getattr(type(expr), "definition", None)) is not None:
            lowered = self.lower(kinked(definition(*args)))
        else:
            lowered = _with_typed_numbers(expr.func(*args))
        return lowered

    def gradient(self, partial: sp.Expr) -> sp.Expr:
        """`grad_output` times a partial derivative."""
        return tidy(GRAD_OUTPUT * self.lower(kinked(partial)))

    # -- The accumulators that `reductions` asks for -------------------------------------------------------------

    def sum(self, value: sp.Expr) -> sp.Symbol:
        return self._accumulate("sum", value)[0]

    def product(self, value: sp.Expr) -> sp.Symbol:
        return self._accumulate("product", value)[0]

    def first_max(self, value: sp.Expr) -> tuple[sp.Symbol, ...]:
        return self._accumulate("first_max", value)

    def logsumexp(self, value: sp.Expr) -> sp.Symbol:
        return self._accumulate("logsumexp", value)[0]

    position, count = POSITION, COUNT

    def _accumulate(self, kind: str, value: sp.Expr) -> tuple[sp.Symbol, ...]:
        if (kind, value) not in self._known:
            number = len(self.accumulators) + 1
            names = ("max", "argmax") if kind == "first_max" else (kind,)
            symbols = tuple(sp.Symbol(f"{name}_{number}", real=True) for name in names)
            accumulator = Accumulator(kind, symbols, value)
            self.accumulators.append(accumulator)
            self._known[kind, value] = accumulator
        return self._known[kind, value].symbols

    # -- Sweeps --------------------------------------------------------------------------------------------------

    def stages(self, accumulators: Sequence[Accumulator]) -> Iterator[tuple[Accumulator, ...]]:
        """Accumulators in groups that can share a sweep: each needs only those of earlier groups."""
        waiting = list(accumulators)
        while waiting:
            pending = {symbol for each in waiting for symbol in each.symbols}
            ready = tuple(each for each in waiting if not each.value.free_symbols & pending)
            yield ready
            waiting = [each for each in waiting if each not in ready]

    def sweep(self, accumulators: tuple[Accumulator, ...]) -> Sweep:
        return self.tap_sweep(tuple(each.value for each in accumulators), accumulators)

    def tap_sweep(self, values: Sequence[sp.Expr], accumulators: tuple[Accumulator, ...]) -> Sweep:
        hoisted: dict[sp.Expr, sp.Symbol] = {}
        values = [self._hoist(value, hoisted) for value in values]
        return Sweep(tuple(hoisted.values()), self.block(hoisted), self.block(values), accumulators)

    def _hoist(self, expr: sp.Expr, hoisted: dict[sp.Expr, sp.Symbol]) -> sp.Expr:
        """`expr` with its largest parts that are the same at all taps replaced by names."""
        if not expr.args or expr.is_number:
            return expr
        if isinstance(expr, sp.Expr) and not _is_tap(expr):
            if (-expr).is_Symbol or not expr.free_symbols - set(self.formula.operands):
                return expr  # a negation, or parameters only: as cheap at a tap as a name
            if expr not in hoisted:
                hoisted[expr] = sp.Symbol(next(self._fresh), real=True)
            return hoisted[expr]
        args = expr.args
        if expr.is_Add or expr.is_Mul:
            shared = [argument for argument in args if not _is_tap(argument)]
            if any(not argument.is_number for argument in shared) and len(shared) > 1:
                args = (expr.func(*shared), *(argument for argument in args if _is_tap(argument)))
        new = [self._hoist(argument, hoisted) for argument in args]
        return expr if tuple(new) == expr.args else expr.func(*new)

    def block(self, results: Iterable[sp.Expr]) -> Block:
        """Results as a function, with common subexpressions named."""
        results = tuple(results)
        names = (sp.Symbol(name, real=True) for name in self._temporary)
        temporaries, reduced = sp.cse(results, symbols=names, order="canonical") if results else ([], [])
        symbols = set().union(*(expr.free_symbols for expr in results))
        return Block(tuple(sorted(symbols, key=self._rank)), tuple(temporaries), tuple(reduced))

    def _rank(self, symbol: sp.Symbol) -> tuple[int, int, str]:
        """Operands first, in the formula's order, then accumulators, then the rest."""
        if symbol in self.formula.operands:
            return 0, self.formula.operands.index(symbol), ""
        produced = [each for accumulator in self.accumulators for each in accumulator.symbols]
        return (1, produced.index(symbol), "") if symbol in produced else (2, 0, symbol.name)


def _with_typed_numbers(expr: sp.Basic) -> sp.Basic:
    """`expr` with a number given the dtype of a neighbour where the function would not find it out by itself."""
    like = next(
        (s for s in sorted(expr.free_symbols, key=str) if not (s == POSITION or s.name.startswith("arg"))), None
    )
    if isinstance(expr, sp.Piecewise) and like is not None and all(value.is_number for value, _ in expr.args):
        (value, condition), *others = expr.args
        return sp.Piecewise((typed(value, like), condition), *others)
    if isinstance(expr, Pointwise) and len(expr.args) > 1 and not isinstance(expr, (power, typed)):
        return expr.func(*(typed(argument, like) if argument.is_number else argument for argument in expr.args))
    return expr


def _is_tap(expr: sp.Basic) -> bool:
    """Whether a lowered expression differs between the taps of a window."""
    return any(
        symbol == POSITION or (isinstance(symbol, Operand) and bool(symbol.tap_axes)) for symbol in expr.free_symbols
    )


def count_operations(expr: sp.Basic) -> Counter[str]:
    """The operations of one evaluation of `expr`, by the names that people use: add, mul, div, sqrt, tan, ..."""
    counts: Counter[str] = Counter()
    for node in sp.preorder_traversal(expr):
        if node.is_Add:
            counts["add"] += len(node.args) - 1
        elif node.is_Mul:
            above = [factor for factor in node.args if not (factor.is_Pow and factor.exp == -1) and factor != -1]
            counts["mul"] += max(len(above) - 1, 0)
        elif node.is_Pow:
            counts[{-1: "div", sp.Rational(1, 2): "sqrt"}.get(node.exp, "mul" if node.exp == 2 else "pow")] += 1
        elif isinstance(node, sp.Piecewise):
            counts["where"] += len(node.args) - 1
        elif isinstance(node, sp.core.relational.Relational):
            counts["compare"] += 1
        elif type(node) in BY_CLASS:
            counts[BY_CLASS[type(node)].name] += 1
    return counts
