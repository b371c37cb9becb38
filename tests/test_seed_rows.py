"""The rows that must always work (design, section 1), each a named test."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpu import GPU
from memory import PeakBytes
from oracles import random, same_values_and_gradients, unfolded, weights, windows
from torch import Tensor, nn

import symconv as sc

TAN = "prod(tan(x + w))"


def test_tangent_product_values_and_gradients(backend: str) -> None:
    x, w = random(2, 3, 7, 6, scale=0.3), random(4, 3, 3, 3, scale=0.3)
    same_values_and_gradients(
        lambda x, w: sc.conv2d(TAN, x, w, backend=backend),
        lambda x, w: unfolded(lambda x, w: torch.tan(x + w).prod(-1), x, w),
        (x, w),
    )


@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_tangent_product_where_factors_are_exactly_zero(backend: str, zeros: int) -> None:
    x, w = random(1, 1, 3, 3, scale=0.3), random(1, 1, 3, 3, scale=0.3)
    taps = [(0, 0), (1, 2), (2, 1)][:zeros]
    for row, column in taps:
        w[0, 0, row, column] = -x[0, 0, row, column]
    x.requires_grad_(), w.requires_grad_()
    y = sc.conv2d(TAN, x, w, backend=backend)
    assert y.item() == 0
    grad_x, grad_w = torch.autograd.grad(y.sum(), (x, w))
    expected = torch.zeros_like(x)
    if zeros == 1:  # the tap with the zero gets the product of the others, every other tap 0; tan'(0) = 1
        factors = torch.tan(x + w).flatten().tolist()
        product = 1.0
        for position, factor in enumerate(factors):
            product *= factor if position != 0 else 1.0
        expected[0, 0, 0, 0] = product
    torch.testing.assert_close(grad_x, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad_w, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("zeros", [0, 1, 2, 3])
def test_tangent_product_second_derivatives_with_zeros(backend: str, zeros: int) -> None:
    x, w = random(1, 1, 2, 3, scale=0.4), random(1, 1, 2, 3, scale=0.4)
    for position in range(zeros):
        w.view(-1)[position] = -x.view(-1)[position]
    x.requires_grad_(), w.requires_grad_()
    for by in (x, w):  # away from kinks everywhere: a product is smooth, also at 0
        assert torch.autograd.gradgradcheck(lambda x, w: sc.conv2d(TAN, x, w, backend=backend), (x, w)), by


LAYERS = [(nn.Conv1d, sc.Conv1d, 1), (nn.Conv2d, sc.Conv2d, 2), (nn.Conv3d, sc.Conv3d, 3)]
GRID = list(itertools.product((1, 2), (0, 1, 2), (1, 2), (1, 2)))  # stride, padding, dilation, groups


@pytest.mark.parametrize(("theirs", "ours", "rank"), LAYERS, ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), GRID)
def test_convolution_equals_torch(
    backend: str, theirs: Any, ours: Any, rank: int, bias: bool, stride: int, padding: int, dilation: int, groups: int
) -> None:
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "dtype": torch.float64}
    expected = theirs(4, 6, 3, bias=bias, **options)
    layer = ours("sum(w*x) + b" if bias else "sum(w*x)", 4, 6, 3, backend=backend, **options)
    layer.load_state_dict(expected.state_dict())
    x = random(2, 4, *(8, 7, 6)[:rank])
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = layer(mine), expected(other)
    torch.testing.assert_close(y, z)
    direction = torch.randn_like(y).expand_as(y)
    for a, b in zip(
        torch.autograd.grad(y, [mine, *layer.parameters()], direction),
        torch.autograd.grad(z, [other, *expected.parameters()], direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


class ManySmallNetworks(nn.Module):
    """One tiny network per window position, all with the same parameters: a hidden layer of tangents, multiplied."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        out, _, k, l = self.weight.shape  # noqa: E741
        rows, columns = x.shape[2] - k + 1, x.shape[3] - l + 1
        networks = []
        for row, column in itertools.product(range(rows), range(columns)):
            seen = x[:, None, :, row : row + k, column : column + l]
            hidden = torch.tan(seen + self.weight)
            networks.append(hidden.flatten(2).prod(-1))
        return torch.stack(networks, -1).reshape(x.shape[0], out, rows, columns)


def test_many_small_networks_with_shared_parameters(backend: str) -> None:
    weight = random(3, 2, 3, 2, scale=0.3)
    same_values_and_gradients(
        lambda x, w: sc.conv2d(TAN, x, w, backend=backend),
        lambda x, w: torch.func.functional_call(ManySmallNetworks(weight), {"weight": w}, (x,)),
        (random(2, 2, 6, 5, scale=0.3), weight),
    )


def extra_bytes(formula: str, kernel_size: int, backend: str) -> float:
    """Peak bytes of forward and backward beyond inputs, outputs and gradients, as a multiple of these."""
    x = torch.randn(2, 8, 160, 160).requires_grad_()  # large beside the constant size of a block
    w = torch.randn(8, 8, kernel_size, kernel_size).requires_grad_()
    with PeakBytes() as counter:
        y = sc.conv2d(formula, x, w, padding=kernel_size // 2, padding_mode="ignore", backend=backend)
        y.backward(torch.ones_like(y))
    wanted = 4 * (2 * y.numel() + x.numel() + w.numel())  # y, its gradient, the gradients of x and w
    return (counter.peak - wanted) / (4 * (x.numel() + y.numel()))


NESTED = [
    "sum(max(x + w, dim=t), dim=c)",
    "sum(softmax(sum(w*x, dim=c), dim=t)*x[o, t], dim=t)",
    "sum(median(w*x, dim=t), dim=c)",
    "cov(x, w)/(std(x)*std(w) + 1)",
]


@pytest.mark.parametrize("formula", ["sum(w*x)", "-sum(abs(x - w))", TAN, "max(x + w)", "logsumexp(x + w)", *NESTED])
def test_views_not_copies(backend: str, formula: str) -> None:
    if backend == GPU:
        pytest.skip("copies to the GPU are counted as well, and scratch memory is as large as a GPU, not as an image")
    small, large = extra_bytes(formula, 3, backend), extra_bytes(formula, 5, backend)
    assert large < small + 0.1, "the memory grows with the window"
    assert large < 9, "unfolding would take 25 images"


def test_the_byte_counter_sees_an_unfolded_copy() -> None:
    x = torch.randn(2, 8, 96, 96)
    with PeakBytes() as counter:
        F.unfold(x, 7, padding=3)
    assert counter.peak >= 49 * 4 * x.numel()
    assert counter.live == 0


def test_maps_channels_batches_filters(backend: str) -> None:
    formula = "v: weight\nsum(w*x) - norm(x - v) + b"
    for rank, conv in ((1, sc.conv1d), (2, sc.conv2d), (3, sc.conv3d)):
        size, kernel_size = (9, 8, 7)[:rank], (3, 2, 3)[:rank]
        x = random(2, 4, *size)
        w, v, b = random(6, 2, *kernel_size), random(6, 2, *kernel_size), random(6)

        def expected(x: Tensor, w: Tensor, v: Tensor, b: Tensor, rank: int = rank, k: Any = kernel_size) -> Tensor:
            seen = windows(F.pad(x, [1, 1] * rank), k, (2,) * rank, (1,) * rank, 2)
            y = (seen * weights(w, 2)).sum(-1) - (seen - weights(v, 2)).square().sum(-1).sqrt()
            return y.flatten(1, 2) + b.reshape(-1, *[1] * rank)

        same_values_and_gradients(
            lambda x, w, v, b, conv=conv: conv(formula, x, w, b, v=v, stride=2, padding=1, groups=2, backend=backend),
            expected,
            (x, w, v, b),
        )
