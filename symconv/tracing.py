"""Who takes down PyTorch's operators or carries them out in its own way, and what `torch.compile` does not trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

#: The modes that carry out operators; others, such as counters, look on.
REPLACING = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)


def is_recorded() -> bool:
    """Whether `torch.compile`, `torch.export` or `torch.jit.trace` takes down operators, and sees no others."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def is_replaced() -> bool:
    """Whether a mode carries out operators in its own way, with fake tensors, say, or to record them for `make_fx`."""
    if torch._C._len_torch_dispatch_stack() == 0:  # which is quick to ask
        return False
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in REPLACING)


def constant(function: Function) -> Function:
    """Let `torch.compile` call a function once and keep what it gives, instead of tracing it: SymPy, say.

    This is what `torch.compiler.assume_constant_result` sets; that would import torch._dynamo, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def untraced(function: Function) -> Function:
    """Let `torch.compile` call a function as it stands, between two graphs.

    This is what `torch.compiler.disable` sets; that would import torch._dynamo as well.
    """
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function
