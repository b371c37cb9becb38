"""Calls that were checked before: a training loop repeats itself.

To check a call and plan it takes several times as long as what a small layer computes.  All that decides it is how the
call is written and the shapes, dtypes and devices of its tensors, never their values.  So these are the key of a
dictionary of calls that went through, and a call whose key is in it goes straight to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import sympy as sp
import torch
from torch import Tensor

from .arguments import ARGUMENTS, check_layout
from .autograd import convolve_now, is_plain
from .kernel import Kernel
from .ops import Call
from .tracing import is_replaced

#: All that checks look at, which is everything but the values of tensors.
CallKey: TypeAlias = tuple[Any, ...]

#: Options whose value decides even where it is given as a tensor.
BY_VALUE = frozenset(
    ["kernel_size", "out_channels", "stride", "padding", "dilation", "groups", "padding_value"],
)
MAX_CALLS = 4096


class CheckedCall:
    """A call that went through, ready for other tensors with the same key.

    Args:
        call: the use of the kernel.
        names: its tensors, in the order in which the kernel takes them.
    """

    def __init__(self, call: Call, names: tuple[str, ...]) -> None:
        self.call, self.names = call, names
        self._repeated: Callable[[Sequence[Tensor]], Tensor] | None = None

    def __call__(self, given: Mapping[str, Any]) -> Tensor:
        """The output for operands by name."""
        tensors = [given[name] for name in self.names]
        if not is_plain(tensors):
            return convolve_now(self.call, tensors)
        if self._repeated is None:
            self._repeated = self.call.compiled.repeated(tensors, self.call.numbers, self.call.geometry)
        return self._repeated(tensors)


_CALLS: dict[CallKey, CheckedCall] = {}


def cached_output(key: CallKey | None, given: Mapping[str, Any]) -> Tensor | None:
    """The output for operands by name, if a call with this key went through before."""
    if key is None or (call := _CALLS.get(key)) is None:
        return None
    return call(given)


def remember(key: CallKey, call: CheckedCall) -> None:
    """Keep a call that went through; when there are too many, begin anew."""
    if len(_CALLS) >= MAX_CALLS:
        _CALLS.clear()
    _CALLS[key] = call


def function_key(
    given: Mapping[str, Any], options: Mapping[str, Any], kind: str, rank: int, kernel: object, *others: Any
) -> CallKey | None:
    """The key of a function's call, before anything was made of what the caller wrote; None if there is none.

    While `torch.jit.trace` records, sizes are tensors, and the key is equal to no other; where `make_fx` and the like
    look on, they may be symbols.
    """
    if torch.compiler.is_compiling() or is_replaced():
        return None
    if isinstance(kernel, Kernel):
        kernel = kernel.text
    elif not isinstance(kernel, (str, sp.Expr)):
        return None
    key = [kind, rank, kernel, repr(others) if others else "", *operand_key(given)]
    return (*key, "by name", *operand_key(options)) if options else tuple(key)


def operand_key(given: Mapping[str, Any]) -> list[Any]:
    """What is known of operands and options without the values of tensors.

    By their spelling: True is equal to 1, and as a stride it is refused.
    """
    key: list[Any] = []
    for name, value in given.items():
        if isinstance(value, Tensor) and name not in BY_VALUE:
            try:
                key += (name, value.shape, value.dtype, value.device, value.layout)
            except RuntimeError:  # a nested tensor has no shape
                check_layout(ARGUMENTS.get(name, name), value)
                raise
        else:
            key += (name, repr(value))
    return key
