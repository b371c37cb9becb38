"""What the forward pass keeps for the backward pass: as few values per window as gradients are made of."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import sympy as sp

from .language.axes import Value


def merged(
    exprs: Sequence[sp.Expr], kept: Iterable[Value], known: Iterable[sp.Symbol]
) -> tuple[Sequence[sp.Expr], dict[Value, sp.Expr]]:
    """Keep parts of `exprs`, each in place of two or more values that occur nowhere else.

    Args:
        exprs: what the backward pass computes.
        kept: the values per window that it asks for.
        known: what it knows without their being kept: numbers of taps, and numbers that belong to the layer.

    Returns:
        The expressions with names for those parts, and what the names stand for.

    >>> a, b = Value("sum_1"), Value("sum_2")
    >>> merged([1 / (a + b), (a + b) ** 2], [a, b], [])
    ([1/kept_1, kept_1**2], {kept_1: sum_1 + sum_2})
    """
    found: dict[Value, sp.Expr] = {}
    waiting, plain = frozenset(kept), frozenset(known)
    while spared := dict(_spared(exprs, waiting, plain)):
        # The part that spares most; of several the simplest, which leaves least for the forward pass to do.
        part = min(spared, key=lambda each: (-len(spared[each]), sp.count_ops(each), str(each)))
        name = Value(f"kept_{len(found) + 1}")
        exprs = [expr.xreplace({part: name}) for expr in exprs]
        waiting = waiting - spared[part] | {name}
        found[name] = part.xreplace(found)
    return exprs, {name: part for name, part in found.items() if name in waiting}


def _spared(
    exprs: Sequence[sp.Expr], kept: frozenset[Value], known: frozenset[sp.Symbol]
) -> Iterator[tuple[sp.Expr, frozenset[Value]]]:
    """The parts that contain two or more kept values which occur in them alone, and these."""
    occurrences = _occurrences(exprs, kept)
    for part, times in occurrences.items():
        symbols = _symbols(part)
        if isinstance(part, sp.Expr) and len(symbols & kept) > 1 and symbols <= kept | known:
            inside = _occurrences([part], kept)
            alone = frozenset(each for each in kept if each in inside and inside[each] * times == occurrences[each])
            if len(alone) > 1:
                yield part, alone


def _occurrences(exprs: Iterable[sp.Basic], kept: frozenset[Value]) -> Counter[sp.Basic]:
    """How often each part occurs that contains a kept value."""
    found: Counter[sp.Basic] = Counter()
    waiting = [*exprs]
    while waiting:
        part = waiting.pop()
        if not kept.isdisjoint(_symbols(part)):
            found[part] += 1
            waiting += part.args
    return found


@functools.lru_cache(maxsize=65536)
def _symbols(part: sp.Basic) -> frozenset[sp.Symbol]:
    """The symbols of an expression: SymPy looks for them anew in every part."""
    return frozenset([part] if part.is_Symbol else ()).union(*map(_symbols, part.args))
