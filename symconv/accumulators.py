"""What a sweep accumulates: a record for each kind of accumulator, and what reductions ask a backend for.

A kind is a class of the same name in the headers of every backend, `window.py` and `accumulators.hpp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import sympy as sp


@dataclass(frozen=True)
class Result:
    """One of the values that an accumulator yields.

    Args:
        name: of its symbols, which are numbered, and of the method in C++ that gives it.
        meaning: what it is, with `{value}` for what is accumulated and `{first}` for the name of the first result.
        is_position: whether it is the scan position of a tap.
    """

    name: str
    meaning: str
    is_position: bool = False


@dataclass(frozen=True)
class Kind:
    """Everything symconv knows about one kind of accumulator.

    Args:
        name: of its classes.
        results: what it yields, in the order of `result()` in `window.py`.
        vectors: how many vectors it holds in C++; 0 for one that holds all values of a window.
        takes_position: whether it is told in C++ where each value stands.
        plain: for one whose other results may be done without, the kind that yields the first alone.
        headline: the number of the result that says what it is there for.
    """

    name: str
    results: tuple[Result, ...]
    vectors: int
    takes_position: bool = False
    plain: Kind | None = None
    headline: int = 0


_PRODUCT, _MAX = Result("product", "product of {value}"), Result("max", "max of {value}")
_RANK = Result("rank", "value at a rank of {value}")

SUM = Kind("Sum", (Result("sum", "sum of {value}"),), vectors=1)
PRODUCT = Kind("Product", (_PRODUCT,), vectors=1)
FACTORS = Kind(
    "Factors",
    (
        _PRODUCT,
        Result("nonzero", "product of {value} where it is not 0"),
        Result("zeros", "how many of {value} are 0"),
    ),
    vectors=3,
    plain=PRODUCT,
)
MEAN = Kind("Mean", (Result("mean", "mean of {value}"),), vectors=2)
EXPONENTIALS = Kind(
    "Exponentials",
    (
        Result("peak", "the maximum of {value}, made finite"),
        Result("exponentials", "sum of exp, less the maximum, of {value}"),
    ),
    vectors=2,
    headline=1,
)
MAX = Kind("Max", (_MAX,), vectors=1)
FIRST_MAX = Kind(
    "FirstMax",
    (_MAX, Result("argmax", "the first tap that attains {first}", is_position=True)),
    vectors=2,
    takes_position=True,
    plain=MAX,
)
RANK = Kind("Rank", (_RANK,), vectors=0)
FIRST_RANK = Kind(
    "FirstRank",
    (_RANK, Result("argrank", "the first tap that attains {first}", is_position=True)),
    vectors=0,
    plain=RANK,
)
KINDS = (SUM, PRODUCT, FACTORS, MEAN, EXPONENTIALS, MAX, FIRST_MAX, RANK, FIRST_RANK)


class Accumulators(Protocol):
    """What a backend computes in one sweep over a window, along the axes of one node.

    Each call asks for one and returns its symbols.
    """

    dims: frozenset[str]

    def sum(self, value: sp.Expr, *like: sp.Expr) -> sp.Expr:
        """The sum of a tap value, over as many taps and channels as it and `like` have."""

    def factors(self, value: sp.Expr) -> tuple[sp.Expr, sp.Expr, sp.Expr]:
        """The product of a tap value, that of the values that are not 0, and how many are."""

    def first_max(self, value: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        """The maximum, and the scan position of the first tap that attains it."""

    def mean(self, value: sp.Expr) -> sp.Expr:
        """The running mean of a tap value (Welford), which for a constant is that constant."""

    def exponentials(self, value: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        """The maximum, made finite, and the sum of exp(value - maximum): at once, or one after the other."""

    def first_rank(self, value: sp.Expr, rank: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
        """The value of a rank, counted from 0 for the smallest, and the scan position of the first tap that has it."""

    def count(self, *like: sp.Expr) -> sp.Expr:
        """How many taps and channels `like` has: all, or with `padding_mode="ignore"` those inside the image."""

    def position(self, *like: sp.Expr) -> sp.Expr:
        """The scan position of the tap, `c*T + t`, among the taps and channels that `like` has."""
