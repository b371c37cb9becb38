"""What a peer is: ways to compute one case, of which the fastest counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Computes the output, or with backward the output and the gradients of x and, if there is one, w.
Run = Callable[[], Sequence[Any]]

DIRECTIONS = ("forward", "training")

GIB = 2**30


@dataclass(frozen=True)
class Form:
    """One way to write it.

    Args:
        name: of this way, among those of the peer.
        prepare: makes the step that is timed, for a direction.
        memory: the bytes that the step is going to take, where that is known and much, for a direction.
        limit: how many may be; the form is left out where it would take more.
        directions: those for which it is worth a try.
    """

    name: str
    prepare: Callable[[str], Run]
    memory: Callable[[str], float] = lambda direction: 0.0
    limit: float = float("inf")
    directions: tuple[str, ...] = DIRECTIONS


@dataclass(frozen=True)
class Peer:
    """One competitor.

    Args:
        name: as on the command line.
        forms: ways to write it.
        counted: whether its memory can be counted.
        compiles: whether its first call compiles something, which may take a minute.
    """

    name: str
    forms: tuple[Form, ...]
    counted: bool = False
    compiles: bool = False
