"""Properties over random shapes, strides, paddings, dilations, groups, layouts: values and gradients of every backend.

The oracle unfolds and broadcasts, and takes its gradients from autograd, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import BACKENDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import random, weights, windows
from torch import Tensor

import symconv as sc

ORACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum(w*x)": lambda x, w: (x * w).sum(-1),
    "-sum(abs(x - w))": lambda x, w: -(x - w).abs().sum(-1),
    "prod(tan((x + w)/4))": lambda x, w: torch.tan((x + w) / 4).prod(-1),
    "max(x + w)": lambda x, w: (x + w).amax(-1),
    "min(x - w) + mean(w*x)": lambda x, w: (x - w).amin(-1) + (x * w).mean(-1),
    "logsumexp(3*(x + w))/3": lambda x, w: torch.logsumexp(3 * (x + w), -1) / 3,
    "sum(w*x)/(norm(w)*norm(x) + 0.1)": lambda x, w: (
        (x * w).sum(-1) / (w.square().sum(-1).sqrt() * x.square().sum(-1).sqrt() + 0.1)
    ),
    "exp(-mean((x - w)**2))": lambda x, w: torch.exp(-(x - w).square().mean(-1)),
    "sum(x*softmax(x*w))": lambda x, w: (x * torch.softmax(x * w, -1)).sum(-1),
}
MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    per_axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel_size, stride, dilation, padding = per_axis(1, 3), per_axis(1, 3), per_axis(1, 2), per_axis(0, 2)
    least = [max(d * (k - 1) + 1, p + 1) for k, d, p in zip(kernel_size, dilation, padding)]
    size = tuple(low + draw(st.integers(0, 3)) for low in least)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    return {
        "formula": draw(st.sampled_from([*ORACLES])),
        "shape": (draw(st.integers(0, 3)), groups * draw(st.integers(1, 3)), *size),
        "weight": (groups * draw(st.integers(1, 3)), kernel_size),
        "options": {"stride": stride, "dilation": dilation, "groups": groups},
        "padding": padding,
        "mode": draw(st.sampled_from([*MODES])),
        "layout": draw(st.sampled_from(["contiguous", "channels last", "sliced", "expanded"])),
        "upstream": draw(st.sampled_from(["contiguous", "expanded", "transposed"])),
        "seed": draw(st.integers(0, 2**16)),
    }


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values (except for "expanded") in another memory layout."""
    if layout == "channels last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        return torch.stack([x, x], -1)[..., 0]
    if layout == "expanded":
        return x[..., :1].expand_as(x)
    return x


def check_case(case: dict[str, Any], backend: str) -> None:
    torch.manual_seed(case["seed"])
    rank, groups = len(case["padding"]), case["options"]["groups"]
    x = laid_out(torch.randn(case["shape"], dtype=torch.float64), case["layout"]).requires_grad_()
    out, kernel_size = case["weight"]
    w = torch.randn(out, case["shape"][1] // groups, *kernel_size, dtype=torch.float64, requires_grad=True)
    conv = (sc.conv1d, sc.conv2d, sc.conv3d)[rank - 1]
    y = conv(
        case["formula"], x, w, padding=case["padding"], padding_mode=case["mode"], backend=backend, **case["options"]
    )
    flat = [side for p in reversed(case["padding"]) for side in (p, p)]
    seen = windows(
        F.pad(x, flat, MODES[case["mode"]]), kernel_size, case["options"]["stride"], case["options"]["dilation"], groups
    )
    expected = ORACLES[case["formula"]](seen, weights(w, groups)).flatten(1, 2)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(y)
    if case["upstream"] == "expanded":
        direction = torch.ones(1, dtype=y.dtype).expand_as(y)
    elif case["upstream"] == "transposed":
        direction = torch.randn(y.shape[::-1], dtype=y.dtype).permute(*reversed(range(y.dim())))
    if case["layout"] == "expanded" and "max" in case["formula"] + case["mode"] + "min":
        return  # ties, which autograd of amax and amin shares out by another rule
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, w), direction), torch.autograd.grad(expected, (x, w), direction)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_random_layers(backend: str, case: dict[str, Any]) -> None:
    check_case(case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [each for each in BACKENDS if each != "cuda-emu"])
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_many_random_layers(backend: str, case: dict[str, Any]) -> None:
    check_case(case, backend)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_random_layers_emulated(case: dict[str, Any]) -> None:
    """Fewer, because each thread of a GPU takes its turn."""
    check_case(case, "cuda-emu")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(case=cases(), mode=st.sampled_from(["ignore"]))
def test_ignored_padding_equals_the_window_that_is_left(backend: str, case: dict[str, Any], mode: str) -> None:
    """With `ignore`, padding by the reduction's identity gives the same sums, maxima and products."""
    torch.manual_seed(case["seed"])
    rank, groups = len(case["padding"]), case["options"]["groups"]
    x = torch.randn(case["shape"], dtype=torch.float64)
    out, kernel_size = case["weight"]
    w = torch.randn(out, case["shape"][1] // groups, *kernel_size, dtype=torch.float64)
    conv = (sc.conv1d, sc.conv2d, sc.conv3d)[rank - 1]
    for formula, padded, value in (
        ("sum(w*x)", "sum(w*x)", 0.0),
        ("max(x + w)", "max(x + w)", -torch.inf),
        ("min(x - w)", "min(x - w)", torch.inf),
        ("logsumexp(x + w)", "logsumexp(x + w)", -torch.inf),
        ("prod(x)", "prod(x)", 1.0),
    ):
        options = dict(case["options"], padding=case["padding"], backend=backend)
        named = {} if "w" in formula else {"kernel_size": kernel_size, "out_channels": out}
        tensors = (x, w) if "w" in formula else (x,)
        ours = conv(formula, *tensors, padding_mode=mode, **options, **named)
        theirs = conv(padded, *tensors, padding_mode="constant", padding_value=value, **options, **named)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "image"),
    [((2, 5), (2, 3), (4, 6), (5, 9)), ((3, 3), (1, 1), (1, 1), (4, 4)), ((1, 6), (1, 4), (0, 6), (3, 1))],
    ids=["windows that see zeros alone", "one zero between rows", "an image of one column"],
)
def test_rows_share_the_zeros_between_them(
    backend: str,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    image: tuple[int, int],
) -> None:
    """However far windows reach beyond both ends of a row."""
    x, w = random(2, 3, *image).requires_grad_(), random(6, 1, *kernel_size).requires_grad_()
    outputs = [
        sc.conv2d("sum(w*x)", x, w, stride=stride, padding=padding, groups=3, backend=backend),
        F.conv2d(x, w, None, stride, padding, 1, 3),
    ]
    upstream = random(*outputs[1].shape)
    ours, theirs = ([y, *torch.autograd.grad(y, (x, w), upstream)] for y in outputs)
    torch.testing.assert_close(ours, theirs)
