"""Oracles that share nothing with symconv: unfolding, looping, autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def windows(
    x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> Tensor:
    """An unfolded copy of an image: [n, g, 1, *size, c*t] in scan order (c, then t)."""
    rank = len(kernel_size)
    for axis, (k, s, d) in enumerate(zip(kernel_size, stride, dilation)):
        x = x.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
    x = x.unflatten(1, (groups, 1, -1))  # [n, g, 1, c, *size, *kernel]
    return x.movedim(3, 3 + rank).flatten(3 + rank)


def weights(w: Tensor, groups: int = 1) -> Tensor:
    """A weight beside `windows`: [g, f, 1, ..., c*t]."""
    rank = w.dim() - 2
    return w.flatten(1).unflatten(0, (groups, -1)).reshape(groups, w.shape[0] // groups, *[1] * rank, -1)


def unfolded(
    function: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    w: Tensor,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    value: float = 0.0,
) -> Tensor:
    """A layer written the slow way: `function(windows, weights)` reduces the last axis."""
    rank = w.dim() - 2
    x = F.pad(x, [padding] * 2 * rank, value=value)
    seen = windows(x, w.shape[2:], (stride,) * rank, (dilation,) * rank, groups)
    return function(seen, weights(w, groups)).flatten(1, 2)


def same_values_and_gradients(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], tensors: Sequence[Tensor], tolerance: float = 1e-10
) -> None:
    """Both give the same output and the same gradient for every tensor."""
    mine = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    other = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    y, z = ours(*mine), theirs(*other)
    torch.testing.assert_close(y, z, rtol=tolerance, atol=tolerance)
    direction = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, mine, direction, allow_unused=True),
        torch.autograd.grad(z, other, direction, allow_unused=True),
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def random(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal float64 numbers."""
    return scale * torch.randn(shape, dtype=torch.float64)
