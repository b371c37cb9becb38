"""Published operators by name: `symconv.zoo.adder` is a kernel, `symconv.zoo.OPERATORS["adder"]` its facts.

>>> import symconv as sc
>>> sc.zoo.adder
Kernel('-sum(abs(x - w))', name='adder')
>>> layer = sc.Conv2d(sc.zoo.adder, 3, 16, 3)
>>> print(sc.zoo.OPERATORS["soft_pool"].reference)
Stergiou, Poppe, Kalliatakis (2021), Refining Activation Downsampling with SoftPool
"""

from __future__ import annotations

import difflib

from ..kernel import Kernel
from .filters import FILTERS
from .morphology import MORPHOLOGY
from .neurons import NEURONS
from .operator import Operator
from .pooling import POOLING

#: The operators by what they are for.
GROUPS: dict[str, tuple[Operator, ...]] = {
    "neurons": NEURONS,
    "morphology": MORPHOLOGY,
    "pooling": POOLING,
    "filters": FILTERS,
}
#: Every operator by its name.
OPERATORS: dict[str, Operator] = {each.name: each for group in GROUPS.values() for each in group}

__all__ = ["GROUPS", "OPERATORS", "Operator"]


def __getattr__(name: str) -> Kernel:
    if name in OPERATORS:
        return OPERATORS[name].kernel
    close = difflib.get_close_matches(name, OPERATORS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close and not name.startswith("_") else ""
    raise AttributeError(f"the zoo has no operator {name!r}{hint}")


def __dir__() -> list[str]:
    return [*__all__, *OPERATORS]
