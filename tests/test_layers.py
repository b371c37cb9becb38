"""Layers and functions behave as PyTorch's, and refuse bad input as clearly."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from oracles import random, same_values_and_gradients
from torch import nn

import symconv as sc
from symconv.backends.torch import TorchBackend
from symconv.kernel import kernel_of

LINEAR = "sum(w*x) + b"


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding", [2, "same", "valid"])
def test_padding_modes_equal_torch(backend: str, mode: str, rank: int, padding: Any) -> None:
    theirs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](2, 3, (4, 3, 2)[:rank], padding=padding, padding_mode=mode)
    ours = (sc.Conv1d, sc.Conv2d, sc.Conv3d)[rank - 1](
        LINEAR, 2, 3, (4, 3, 2)[:rank], padding=padding, padding_mode=mode, backend=backend
    )
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 2, *(6, 5, 4)[:rank])
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular", "ignore"])
def test_only_constant_padding_has_a_value(mode: str) -> None:
    x, w = random(1, 4, 5, 5), random(2, 4, 3, 3)
    given = {"padding": 1, "padding_mode": mode}
    layer, pool = sc.Conv2d(LINEAR, 4, 2, 3, **given), sc.Pool2d("mean(x)", 2, **given)
    calls: list[Any] = [
        functools.partial(sc.conv2d, "sum(w*x)", x, w, **given),
        functools.partial(sc.pool2d, "mean(x)", x, 2, **given),
        functools.partial(sc.Conv2d, LINEAR, 4, 2, 3, **given),
        functools.partial(sc.Pool2d, "mean(x)", 2, **given),
    ]
    why = (
        rf"padding_value=.*0\.5.* is for padding_mode='constant', and padding_mode is '{mode}'.*or leave padding_value"
    )
    for call, value in itertools.product(calls, (0.5, torch.tensor(0.5), np.float64(-0.5))):
        call(padding_value=0 * value)
        with pytest.raises(sc.ArgumentError, match=why):
            call(padding_value=value)
    for each in (layer.double(), pool):
        each.padding_value = 0.5
        with pytest.raises(sc.ArgumentError, match=why):
            each(x)
        each.padding_mode = "constant"
        each(x)


def test_constant_padding(backend: str) -> None:
    x, w = random(1, 2, 5, 5), random(3, 2, 3, 3)
    same_values_and_gradients(
        lambda x, w: sc.conv2d(
            "max(x + w)", x, w, padding=1, padding_mode="constant", padding_value=-3.5, backend=backend
        ),
        lambda x, w: sc.conv2d("max(x + w)", F.pad(x, [1, 1, 1, 1], value=-3.5), w, backend=backend),
        (x, w),
    )


def test_a_convolution_in_a_model_can_be_swapped(backend: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, groups=2))
    swapped = nn.Sequential(
        sc.Conv2d(LINEAR, 1, 8, 3, padding=1, backend=backend),
        nn.ReLU(inplace=True),
        sc.Conv2d(LINEAR, 8, 4, 3, stride=2, groups=2, backend=backend),
    )
    swapped.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 9, 9)
    torch.testing.assert_close(swapped(x), model(x))
    assert swapped.state_dict().keys() == model.state_dict().keys()


def test_state_dict_deepcopy_pickle_and_repr(backend: str) -> None:
    layer = sc.Conv2d(
        "v: weight\nbeta: const = 2\ng: param[o] = 0.5\nlogsumexp(beta*(x + w)) + g*sum(v*x)",
        4, 6, (3, 2), padding=1, groups=2, padding_mode="ignore", bias=True, beta=3, backend=backend,
    )  # fmt: skip
    assert {name: list(p.shape) for name, p in layer.named_parameters()} == {
        "weight": [6, 2, 3, 2], "bias": [6], "v": [6, 2, 3, 2], "g": [6],
    }  # fmt: skip
    x = torch.randn(1, 4, 5, 5)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    other = sc.Conv2d(layer.kernel, 4, 6, (3, 2), padding=1, groups=2, padding_mode="ignore", beta=3, backend=backend)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    text = repr(layer)
    for part in ("4, 6", "kernel_size=(3, 2)", "padding=(1, 1)", "groups=2", "padding_mode='ignore'", "beta=3"):
        assert part in text
    assert "bias=False" in repr(sc.Conv2d("sum(w*x)", 1, 1, 1))
    assert "kernel_size=(2, 2)" in repr(sc.Pool2d("max(x)", 2))


def test_a_layer_shows_what_it_computes() -> None:
    shown = repr(sc.Conv2d("beta: const = 2\np: param = 3\nd = x - w\np*sum(abs(beta*d))", 1, 1, 1, beta=5))
    assert shown.startswith("Conv2d('p: param = 3.0; beta: const; d = x - w; p*sum(abs(d*beta))', 1, 1, ")
    assert shown.endswith(", beta=5, bias=False)")
    again = eval(shown, {"Conv2d": sc.Conv2d})  # a formula may stand on one line
    assert repr(again) == shown
    assert repr(sc.Pool2d(sc.zoo.ssim, 7)).startswith("Pool2d('ssim', kernel_size=(7, 7)")
    long = repr(sc.Pool2d(sc.zoo.ssim.text, 7))
    assert long.startswith("Pool2d('...; structure = (2*cov(x, g) + c2)/(var(g) + var(x) + c2); luminance*structure', ")
    assert "\n" not in long


def test_bias_as_the_formula_or_the_caller_decides(backend: str) -> None:
    assert sc.Conv2d("sum(w*x)", 1, 2, 3).bias is None
    assert sc.Conv2d("sum(w*x)", 1, 2, 3, bias=True).bias.shape == (2,)
    assert sc.Conv2d(LINEAR, 1, 2, 3).bias.shape == (2,)
    without = sc.Conv2d(LINEAR, 1, 2, 3, bias=False, backend=backend)
    assert without.bias is None
    assert without.kernel == sc.Kernel("sum(w*x)")
    for scaled in ("p: param\nsum(w*x) + p*b", "p: param\nq = p*b\nsum(w*x) + q"):
        assert sc.Conv2d(scaled, 1, 2, 3, bias=False).kernel.expr == without.kernel.expr
    x, w, b = random(1, 1, 4, 4), random(2, 1, 3, 3), random(2)
    assert torch.equal(sc.conv2d("sum(w*x)", x, w, b, backend=backend), sc.conv2d(LINEAR, x, w, b, backend=backend))


def test_initialisation() -> None:
    torch.manual_seed(3)
    ours = sc.Conv2d(LINEAR, 4, 8, 3, groups=2)
    torch.manual_seed(3)
    theirs = nn.Conv2d(4, 8, 3, groups=2)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    assert sc.Conv2d(sc.Kernel("max(x + w)", init="zeros"), 1, 2, 3).weight.eq(0).all()
    assert sc.Conv2d(sc.Kernel("max(x + w)", init="ones"), 1, 2, 3).weight.eq(1).all()  # equal, but not the same
    assert sc.Conv2d(sc.Kernel("max(x + w)", init="zeros"), 1, 2, 3, init="ones").weight.eq(1).all()
    assert sc.Conv2d("max(x + w)", 1, 2, 3, init=lambda weight: nn.init.constant_(weight, 7)).weight.eq(7).all()
    layer = sc.Conv2d("p: param = 2\ns: param[t] = 3\nsum(w*x*s)*p", 1, 2, 3, p=5)
    assert layer.p.item() == 5
    assert layer.s.shape == (3, 3)
    with torch.no_grad():
        layer.p.fill_(0)
    layer.reset_parameters()
    assert layer.p.item() == 5


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unbatched_and_empty(backend: str, rank: int) -> None:
    layer = (sc.Conv1d, sc.Conv2d, sc.Conv3d)[rank - 1]("prod(tan(x + w)) + b", 2, 3, 2, backend=backend)
    x = torch.randn(2, *(5,) * rank)
    assert torch.equal(layer(x), layer(x[None])[0])
    empty = torch.randn(0, *x.shape).requires_grad_()
    y = layer(empty)
    assert y.shape == (0, 3, *(4,) * rank)
    y.sum().backward()
    assert empty.grad.shape == empty.shape
    assert layer.weight.grad.eq(0).all()
    pool = (sc.Pool1d, sc.Pool2d, sc.Pool3d)[rank - 1]("max(x)", 2, backend=backend)
    theirs = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1](2)
    assert torch.equal(pool(x), theirs(x))
    assert torch.equal(pool(x[None]), theirs(x[None]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    layer = sc.Conv2d("logsumexp(x + w) + b", 3, 4, 3, padding=1, padding_mode="ignore", dtype=dtype, backend=backend)
    x = torch.randn(2, 3, 6, 6).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == dtype
    double = copy.deepcopy(layer).double()
    tolerance = {torch.float16: 3e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(y.double(), double(x.detach().double()), rtol=tolerance, atol=tolerance)


def test_half_precision_accumulates_in_float32(backend: str) -> None:
    x = torch.ones(1, 4096, 1, 1, dtype=torch.float16)
    assert sc.conv2d("sum(x)", x, kernel_size=1, out_channels=1, backend=backend).item() == 4096
    x = torch.ones(1, 1, 50, 50, dtype=torch.float16)  # one tap after the other: float16 would stop at 2048
    assert sc.conv2d("sum(x)", x, kernel_size=50, out_channels=1, backend=backend).item() == 2500
    w = torch.ones(1, 1, 1, 1, dtype=torch.float16, requires_grad=True)
    sc.conv2d("sum(w*x)", torch.ones(1, 1, 60, 60, dtype=torch.float16), w, backend=backend).sum().backward()
    assert w.grad.item() == 3600


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_rounded_to_nearest_and_ties_to_even(backend: str, dtype: torch.dtype) -> None:
    x = (torch.randn(1, 1, 20_000) * torch.logspace(-6, 4, 20_000)).to(dtype)
    x[0, 0, ::2] *= torch.randint(0, 2, (10_000,)).to(dtype)  # sums of two halves that are exact, or ties, or neither
    ones = torch.ones(1, 1, 4000, dtype=dtype)
    ones[0, 0, 1::2] = 2.0 ** -torch.arange(1, 2001).remainder(14).to(dtype)
    for values in (x, ones):
        ours = sc.conv1d("sum(x)", values, kernel_size=2, out_channels=1, backend=backend)
        expected = (values[..., :-1].float() + values[..., 1:].float()).to(dtype)
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("mode", ["zeros", "ignore"])
def test_weights_get_nothing_from_taps_and_places_that_are_no_windows(backend: str, mode: str) -> None:
    # Where no pixel is read, or no window lies, the logarithm of 0 would give a gradient of NaN.
    x = torch.rand(2, 3, 7, 9, dtype=torch.float64) + 0.5
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    padding = 1 if mode == "ignore" else 0
    y = sc.conv2d("sum(w*log(x))", x, w, padding=padding, padding_mode=mode, backend=backend)
    direction = torch.randn_like(y)
    (ours,) = torch.autograd.grad(y, w, direction)
    (expected,) = torch.autograd.grad(torch.nn.functional.conv2d(x.log(), w, padding=padding), w, direction)
    torch.testing.assert_close(ours, expected)


def test_pixels_get_nothing_from_places_that_are_no_windows(backend: str) -> None:
    # At the last rows and columns no window lies under the first tap, whose infinite weight would give 0*inf.
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    direction = torch.randn(2, 4, 5, 7, dtype=torch.float64)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(sc.conv2d("sum(w*x)", x, w, backend=backend), x, direction)[0]

    w[:, :, 0, 0] = 0
    rim = gradient()
    w[:, :, 0, 0] = torch.inf
    found = gradient()
    torch.testing.assert_close(found[..., 5:, :], rim[..., 5:, :])
    torch.testing.assert_close(found[..., 7:], rim[..., 7:])
    assert not found[..., :5, :7].isfinite().any()


@pytest.mark.parametrize(("channels", "filters"), [(150, 5), (5, 150)])
def test_more_channels_and_filters_than_are_read_at_a_time(backend: str, channels: int, filters: int) -> None:
    x = torch.randn(2, channels, 9, 40, dtype=torch.float64, requires_grad=True)
    w = torch.randn(filters, channels, 3, 3, dtype=torch.float64, requires_grad=True)
    ours = sc.conv2d("sum(w*x)", x, w, padding=1, backend=backend)
    theirs = torch.nn.functional.conv2d(x, w, padding=1)
    direction = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, [x, w], direction), torch.autograd.grad(theirs, [x, w], direction)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("width", [41, 47, 61, 97, 109])
def test_rows_whose_length_has_no_exact_reciprocal(backend: str, width: int) -> None:
    # 1/41 in float32, times 41, is below 1: who divides like that finds the first pixel of a row in the row before.
    x = torch.randn(1, 2, 30, width, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 1, dtype=torch.float64, requires_grad=True)
    ours, theirs = sc.conv2d("sum(w*x)", x, w, backend=backend), torch.nn.functional.conv2d(x, w)
    direction = torch.randn_like(ours)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, [x, w], direction), torch.autograd.grad(theirs, [x, w], direction)):
        torch.testing.assert_close(a, b)


def test_a_second_input(backend: str) -> None:
    kernel = sc.Kernel("g: input\nsum(w*x*g)/(sum(w*g) + 1e-6)")
    layer = sc.Conv2d(kernel, 3, 2, 3, padding=1, groups=1, backend=backend, dtype=torch.float64)
    x, mask = random(2, 3, 5, 5), random(2, 1, 5, 5).abs() + 0.1
    y = layer(x, g=mask)
    seen = F.conv2d(x * mask, layer.weight, padding=1)
    share = F.conv2d(mask.expand_as(x), layer.weight, padding=1)
    torch.testing.assert_close(y, seen / (share + 1e-6))
    assert torch.autograd.gradcheck(lambda g: layer(x, g=g), (mask.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda g: layer(x, g=g), (random(2, 3, 5, 5).abs().requires_grad_(),))
    with pytest.raises(TypeError, match="g is needed"):
        layer(x)
    with pytest.raises(ValueError, match="must be the same"):
        layer(x, g=mask[..., :4])
    with pytest.raises(ValueError, match="or g have 1"):
        layer(x, g=random(2, 2, 5, 5))


def test_fields(backend: str) -> None:
    """A value per output pixel, filter and tap, against an unfolded input."""
    x = random(2, 4, 5, 6)
    seen = F.unfold(x, (3, 2), stride=2).unflatten(1, (2, 1, 2, 6)).unflatten(-1, (2, 3))  # [n, g, f, c, t, *size]
    fields = {"k": random(2, 6, 2, 3), "q": random(2, 6, 2, 3), "r": random(2, 6, 6, 2, 3), "u": random(2, 2, 3)}
    y = sc.conv2d(
        "k: field[t]\nq: field[o]\nr: field[o, t]\nu: field\nsum(x*k*r)*q + u",
        x, stride=2, groups=2, kernel_size=(3, 2), out_channels=6, backend=backend, **fields,
    )  # fmt: skip
    k, r = fields["k"][:, None, None, None], fields["r"].unflatten(1, (2, 3))[:, :, :, None]
    expected = (seen * k * r).sum((3, 4)).flatten(1, 2) * fields["q"] + fields["u"][:, None]
    torch.testing.assert_close(y, expected)
    layer = sc.Pool2d("k: field[t]\nsum(k*x)", 2, backend=backend)
    k = random(4, 3, 3)
    torch.testing.assert_close(layer(x[0, :, :4], k=k[:, :2]), layer(x[:1, :, :4], k=k[None, :, :2])[0])
    with pytest.raises(ValueError, match=r"k has shape \[4, 3, 3\], expected \[2, 4, 2, 3\]"):
        layer(x, k=k)


def test_inputs_with_channels_of_their_own(backend: str) -> None:
    x, guide = random(2, 4, 5, 5), random(2, 3, 5, 5)
    text = "g: input\nsum(x*exp(-sum((g - g[c, 0])**2, dim=c)))"
    y = sc.pool2d(text, x, 3, 1, g=guide, backend=backend)
    seen = F.unfold(guide, 3).unflatten(1, (3, 9))
    weight = torch.exp(-(seen - seen[:, :, 4:5]).square().sum(1))
    expected = (F.unfold(x, 3).unflatten(1, (4, 9)) * weight[:, None]).sum(2).unflatten(2, (3, 3))
    torch.testing.assert_close(y, expected)
    with pytest.raises(ValueError, match="there must be as many channels as outputs"):
        sc.conv2d("sum(w*x[o, t])", x, random(2, 4, 3, 3), backend=backend)
    with pytest.raises(ValueError, match="each output needs one channel of x"):
        sc.conv2d("x[c, 0] - mean(x)", x, kernel_size=3, out_channels=4, backend=backend)
    with pytest.raises(ValueError, match=r"so they must be the same$"):
        sc.conv2d(
            "g: input\nsum(x*softmax(g, dim=c))", x, kernel_size=3, out_channels=4, g=guide[:, :1], backend=backend
        )


def test_parameters_with_bounds_and_initial_tensors(backend: str) -> None:
    start = torch.linspace(0.5, 2, 6)
    layer = sc.Conv2d("p: param[o, positive] = 3\nsum(w*x)/p", 2, 6, 3, backend=backend, p=start)
    torch.testing.assert_close(layer.p, start)
    layer.reset_parameters()
    torch.testing.assert_close(layer.p, start)
    layer.load_state_dict(sc.Conv2d("p: param[o, positive] = 3\nsum(w*x)/p", 2, 6, 3).state_dict())
    torch.testing.assert_close(layer.p, torch.full((6,), 3.0))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e8)
    layer(torch.randn(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    assert (layer.p > 0).all()
    for wrong in (0.0, -1.0, torch.zeros(6)):
        with pytest.raises(ValueError, match="above 0"):
            sc.Conv2d("p: param[o, positive] = 3\nsum(w*x)/p", 2, 6, 3, p=wrong)
    with pytest.raises(ValueError, match="expected"):
        sc.Conv2d("p: param[o]\nsum(w*x)/p", 2, 6, 3, p=torch.ones(5))
    with pytest.raises(ValueError, match="above 0"):
        layer.p = -torch.ones(6)
    with pytest.raises(ValueError, match="between 0 and 1"):
        sc.Pool2d("q: const = 0.5\nquantile(x, q)", 2, q=1.5)


def test_a_const_is_an_attribute_of_its_layer(backend: str) -> None:
    layer = sc.Conv2d("beta: const = 2\nbeta*sum(w*x)", 2, 3, 3, backend=backend)
    x = torch.randn(1, 2, 5, 5)
    before = layer(x)
    assert layer.beta == 2
    layer.beta = 5
    torch.testing.assert_close(layer(x), before * 2.5)
    assert "beta=5" in repr(layer)
    for wrong in ("much", torch.ones(2), torch.nn.Parameter(torch.ones(()))):
        with pytest.raises(TypeError, match="the const beta"):
            layer.beta = wrong
    assert layer.beta == 5
    assert not [name for name, _ in layer.named_parameters() if name == "beta"]
    with pytest.raises(ValueError, match="has an attribute called 'half'"):
        sc.Conv2d("half: const = 2\nhalf*sum(w*x)", 2, 3, 3)


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\nb", 3])
def test_a_name_cannot_leave_the_comment_that_it_stands_in(name: object) -> None:
    with pytest.raises(ValueError, match="the name of a kernel is printable text"):
        sc.Kernel("sum(w*x)", name=name)  # type: ignore[arg-type]


def test_names_stay_with_their_kernels() -> None:
    text = "sum(w*x) + 0.375"
    layers = [sc.Conv2d(sc.Kernel(text, name=name), 4, 3, 3, backend="torch") for name in ("first", "second")]
    for layer, name in zip(layers, ("first", "second")):
        layer(X)
        assert f"'{name}', 4, 3" in repr(layer)
        assert f'"""{name}' in layer.kernel.source()
        assert layer.kernel.with_bias(True).name == name
    assert kernel_of(layers[0].kernel.text).title == text


def test_kernels_of_one_formula_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    loaded = TorchBackend.loaded
    monkeypatch.setattr(
        TorchBackend, "loaded", lambda self, kernel, *args: made.append("") or loaded(self, kernel, *args)
    )
    for name in ("first", "second", None):
        sc.Conv2d(sc.Kernel("sum(w*x) + 0.625", name=name), 4, 3, 3, backend="torch")(X)
    assert len(made) == 1


def test_consts_and_params_of_functions(backend: str) -> None:
    x, w = random(1, 2, 4, 4), random(3, 2, 2, 2)
    text = "beta: const = 2\np: param[o] = 0.5\nlogsumexp(beta*(x + w))/beta*p"
    plain = sc.conv2d("logsumexp(5*(x + w))/5", x, w, backend=backend)
    torch.testing.assert_close(sc.conv2d(text, x, w, beta=5, backend=backend), plain / 2)
    p = random(3)
    torch.testing.assert_close(sc.conv2d(text, x, w, beta=5, p=p, backend=backend), plain * p[:, None, None])


def test_zeros_under_an_extremum_warn_once_with_the_remedy() -> None:
    with pytest.warns(sc.SymconvWarning, match="padding_mode='ignore'"):
        sc.Conv2d("max(x + w)", 1, 1, 3, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sc.Conv2d("max(x + w)", 1, 1, 3)
        sc.Conv2d("max(x + w)", 1, 1, 3, padding=1, padding_mode="ignore")
        sc.Conv2d("max(x + w)", 1, 1, 3, padding=1, padding_mode="constant")
        sc.Conv2d(LINEAR, 1, 1, 3, padding=1)


@pytest.mark.parametrize("threads", [1, 2])
def test_training_reduces_the_loss(backend: str, threads: int) -> None:
    torch.set_num_threads(threads)
    layer = sc.Conv2d("-sum(abs(x - w)) + b", 1, 4, 3, backend=backend)
    x, target = torch.randn(8, 1, 6, 6), torch.randn(8, 4, 4, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


X, W = torch.randn(1, 4, 6, 6), torch.randn(2, 4, 3, 3)
MISTAKES: dict[str, tuple[type[Exception], str, Any]] = {
    "channels": (ValueError, "in_channels=4", lambda: sc.Conv2d(LINEAR, 4, 2, 3)(torch.randn(1, 3, 6, 6))),
    "weight shape": (ValueError, "weight has shape", lambda: sc.conv2d("sum(w*x)", X, W[:, :3])),
    "weight rank": (TypeError, "it: weight has 3 dimensions and needs 4", lambda: sc.conv2d("sum(w*x)", X, W[0])),
    "bank rank": (
        TypeError,
        "to tell it: s has 4 dimensions and needs 5, as a bank of 4 weights",
        lambda: sc.conv2d("s: weight[4]\nsum(s[0]*x)", X, s=W),
    ),
    "no weight": (TypeError, "to tell it: give weight=...", lambda: sc.conv2d("sum(w*x)", X)),
    "no bank": (TypeError, "to tell it: give s=...", lambda: sc.conv2d("s: weight[4]\nsum(s[0]*x)", X)),
    "no size": (TypeError, "to tell it: give out_channels=...", lambda: sc.conv2d("max(x)", X, kernel_size=2)),
    "no weight's tensor": (TypeError, "weight must be a torch.Tensor, not list", lambda: sc.conv2d("sum(w*x)", X, [1])),
    "weight missing": (TypeError, "weight is needed", lambda: sc.conv2d("sum(w*x)", X, kernel_size=3, out_channels=2)),
    "useless weight": (TypeError, "weight was given", lambda: sc.conv2d("max(x)", X, W)),
    "bias shape": (ValueError, "bias has shape", lambda: sc.conv2d(LINEAR, X, W, torch.zeros(3))),
    "no bias": (TypeError, "bias is needed; give bias=...", lambda: sc.conv2d(LINEAR, X, W)),
    "no further input": (TypeError, "is needed; give g=...", lambda: sc.Pool2d("g: input\nsum(g*x)", 2)(X)),
    "bias type": (TypeError, "True, False or None, not 'yes'", lambda: sc.Conv2d(LINEAR, 1, 1, 1, bias="yes")),
    "bias number": (TypeError, "True, False or None, not 1", lambda: sc.Conv2d(LINEAR, 1, 1, 1, bias=1)),
    "dtypes": (TypeError, "weight.to(torch.float32)", lambda: sc.conv2d("sum(w*x)", X, W.double())),
    "layer's dtype": (TypeError, "layer.to(torch.float64)", lambda: sc.Conv2d("sum(w*x)", 4, 2, 3)(X.double())),
    "integers": (TypeError, "input.float()", lambda: sc.conv2d("sum(w*x)", X.long(), W)),
    "complex": (TypeError, "complex numbers", lambda: sc.conv2d("sum(w*x)", X.to(torch.complex64), W)),
    "layer complex": (TypeError, "not torch.complex64", lambda: sc.Conv2d(LINEAR, 1, 1, 1, dtype=torch.complex64)),
    "layer integers": (TypeError, "one of torch.float64,", lambda: sc.Conv2d(LINEAR, 1, 1, 1, dtype=torch.int32)),
    "pool complex": (TypeError, "not torch.complex64", lambda: sc.Pool2d("max(x)", 2, dtype=torch.complex64)),
    "no dtype": (TypeError, "not 'float32'", lambda: sc.Conv2d(LINEAR, 1, 1, 1, dtype="float32")),
    "devices": (TypeError, "such as weight.to('cpu')", lambda: sc.conv2d("sum(w*x)", X, W.to("meta"))),
    "dimensions": (ValueError, "expected 4 [N, C, H, W]", lambda: sc.conv2d("sum(w*x)", X[0, 0], W)),
    "no tensor": (TypeError, "must be a torch.Tensor", lambda: sc.conv2d("sum(w*x)", [1.0], W)),
    "layer's dimensions": (ValueError, "expected 4 [N, C, H, W]", lambda: sc.Conv2d("sum(w*x)", 4, 2, 3)(X[0, 0])),
    "layer's tensor": (TypeError, "must be a torch.Tensor", lambda: sc.Conv2d("sum(w*x)", 4, 2, 3)([1.0])),
    "pool's dimensions": (ValueError, "expected 4 [N, C, H, W]", lambda: sc.Pool2d("max(x)", 2)(X[0, 0])),
    "kernel last": (TypeError, "not 4", lambda: sc.Conv2d(4, 2, 3, "sum(w*x)")),
    "no formula": (
        TypeError,
        "is the formula, not 3: write Conv2d('sum(x*w)', 3, 4, 3, 1, 'same', groups=1)",
        lambda: sc.Conv2d(3, 4, 3, 1, "same", groups=1),
    ),
    "no formula, pool": (TypeError, "not (2, 2): write Pool1d('max(x)', (2, 2), 1)", lambda: sc.Pool1d((2, 2), 1)),
    "kernel last, corrected": (TypeError, "write Conv2d('max(x)', 4, 2, 3)", lambda: sc.Conv2d(4, 2, 3, "max(x)")),
    "kernel last, function": (TypeError, "not a Tensor", lambda: sc.conv2d(X, W, "sum(w*x)")),
    "no kernel": (ValueError, "not NoneType", lambda: sc.Kernel(None)),
    "another x": (ValueError, "symconv.x", lambda: sc.Kernel(sp.Symbol("x") - sc.w)),
    "input for x": (ValueError, "did you mean 'x'", lambda: sc.Kernel("sum(input)")),
    "weight for w": (ValueError, "did you mean 'w'", lambda: sc.Kernel("sum(x*weight)")),
    "torch.sum": (ValueError, "sum(...)", lambda: sc.Kernel("torch.sum(x*w)")),
    "helper": (ValueError, "did you mean 'cos'", lambda: sc.Kernel("sum(othrs(x))")),
    "window": (ValueError, "larger than the image", lambda: sc.conv2d("sum(w*x)", X[..., :2], W)),
    "stride": (ValueError, "stride must be at least 1", lambda: sc.conv2d("sum(w*x)", X, W, stride=-1)),
    "stride type": (TypeError, "stride must be an int", lambda: sc.conv2d("sum(w*x)", X, W, stride=1.5)),
    "stride count": (ValueError, "one per axis", lambda: sc.conv2d("sum(w*x)", X, W, stride=(1, 1, 1))),
    "dilation": (ValueError, "dilation must be", lambda: sc.conv2d("sum(w*x)", X, W, dilation=0)),
    "padding": (ValueError, "padding must be at least 0", lambda: sc.conv2d("sum(w*x)", X, W, padding=-1)),
    "padding text": (ValueError, "'same' or 'valid'", lambda: sc.conv2d("sum(w*x)", X, W, padding="some")),
    "same": (ValueError, "needs stride 1", lambda: sc.conv2d("sum(w*x)", X, W, padding="same", stride=2)),
    "mode": (ValueError, "padding_mode must be one of", lambda: sc.conv2d("sum(w*x)", X, W, padding_mode="no")),
    "reflect": (ValueError, "too wide", lambda: sc.conv2d("sum(w*x)", X, W, padding=6, padding_mode="reflect")),
    "circular": (ValueError, "too wide", lambda: sc.conv2d("sum(w*x)", X, W, padding=7, padding_mode="circular")),
    "groups": (ValueError, "multiple of groups", lambda: sc.conv2d("sum(w*x)", X, W, groups=3)),
    "no groups": (ValueError, "groups must be", lambda: sc.conv2d("sum(w*x)", X, W, groups=0)),
    "layer groups": (ValueError, "multiple of groups", lambda: sc.Conv2d(LINEAR, 4, 3, 3, groups=2)),
    "unknown operand": (TypeError, "did you mean 'beta'", lambda: sc.conv2d("beta: const = 1\nsum(x)*beta", X, beat=2)),
    "mistyped option, function": (TypeError, "did you mean 'stride'", lambda: sc.conv2d("sum(w*x)", X, W, strid=2)),
    "mistyped option, pool": (TypeError, "did you mean 'dilation'", lambda: sc.pool2d("max(x)", X, 2, dilaton=2)),
    "unknown option, function": (TypeError, "options are stride, pad", lambda: sc.conv2d("sum(w*x)", X, W, foo=2)),
    "pool of torch": (TypeError, "not supported: give padding", lambda: sc.Pool2d("max(x)", 2, ceil_mode=True)),
    "option of torch": (TypeError, "not supported: torch.nn", lambda: sc.pool2d("max(x)", X, 2, return_indices=True)),
    "unknown option": (TypeError, "no const or param", lambda: sc.Conv2d(LINEAR, 1, 1, 1, beta=2)),
    "mistyped option": (TypeError, "did you mean 'padding'", lambda: sc.Conv2d(LINEAR, 1, 1, 1, pading=2)),
    "mistyped param": (
        TypeError,
        "did you mean 'sigma'",
        lambda: sc.Pool2d("sigma: const = 1\nsum(exp(-sigma*x))", 2, sgima=2),
    ),
    "too many tensors": (
        TypeError,
        "takes (input, g), not (input, a tensor, a tensor)",
        lambda: sc.Pool2d("g: input\nsum(g*x)", 2)(*torch.ones(3, 1, 1, 2, 2)),
    ),
    "a tensor twice": (
        TypeError,
        "takes (input, g), not (input, a tensor, g=...)",
        lambda: sc.Pool2d("g: input\nsum(g*x)", 2)(*torch.ones(2, 1, 1, 2, 2), g=torch.ones(1, 1, 2, 2)),
    ),
    "a const in a call": (
        TypeError,
        "a call of this layer takes no beta=...: set layer.beta = 5 before it",
        lambda: sc.Conv2d("beta: const = 1\nsum(w*x)*beta", 4, 2, 3)(X, beta=5),
    ),
    "a weight in a call": (TypeError, "it is layer.weight", lambda: sc.Conv2d("sum(w*x)", 4, 2, 3)(X, w=W)),
    "the input by its name": (TypeError, "it comes first, as input", lambda: sc.Pool2d("max(x)", 2)(X, x=X)),
    "const": (TypeError, "beta has no value", lambda: sc.Conv2d("beta: const\nsum(w*x)*beta", 1, 1, 1)),
    "const type": (TypeError, "is a number", lambda: sc.Conv2d("beta: const\nsum(w*x)*beta", 1, 1, 1, beta="2")),
    "backend": (ValueError, "backend must be", lambda: sc.conv2d("sum(w*x)", X, W, backend="gpu")),
    "layer backend": (ValueError, "backend must be", lambda: sc.Conv2d(LINEAR, 1, 1, 1, backend="gpu")),
    "axis": (ValueError, "uses dz", lambda: sc.conv2d("sum(w*x*dz)", X, W)),
    "layer axis": (ValueError, "uses dy", lambda: sc.Conv1d("sum(w*x*dy)", 1, 1, 1)),
    "pool weight": (ValueError, "Conv2d", lambda: sc.Pool2d("sum(w*x)", 2)),
    "pool function": (ValueError, "conv2d", lambda: sc.pool2d("sum(w*x)", X, 2)),
    "init": (ValueError, "torch.nn.init", lambda: sc.Conv2d(LINEAR, 1, 1, 1, init="nothing")),
    "init type": (ValueError, "torch.nn.init", lambda: sc.Conv2d(LINEAR, 1, 1, 1, init=5)),
    "padding value": (TypeError, "not 'a'", lambda: sc.pool2d("max(x)", X, 2, padding_value="a")),
    "no channels": (ValueError, "in_channels (0) must be", lambda: sc.pool2d("max(x)", X[:, :0], 2)),
    "attribute": (ValueError, "rename it", lambda: sc.Conv2d("training: weight\nsum(training*x)", 1, 1, 1)),
    "formula": (sc.FormulaError, "did you mean", lambda: sc.Conv2d("sum(w*xx)", 1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_a_message_that_names_the_argument(name: str) -> None:
    kind, message, mistake = MISTAKES[name]
    with pytest.raises(kind) as caught:
        mistake()
    assert isinstance(caught.value, sc.SymconvError)
    assert message in str(caught.value)


def test_an_operand_is_given_once() -> None:
    for options in ({"x": X}, {"w": W}):
        with pytest.raises(sc.ArgumentTypeError, match=r"was given twice: as (input|weight) and by its name"):
            sc.conv2d("sum(w*x)", X, W, **options)
    with pytest.raises(sc.ArgumentTypeError, match="x was given twice"):
        sc.pool2d("mean(x)", X, 2, x=X)
    assert torch.equal(sc.conv2d("sum(w*x)", X, w=W), sc.conv2d("sum(w*x)", X, W))


def test_functions_take_their_arguments_by_name_as_those_of_torch() -> None:
    bias = torch.randn(W.shape[0])
    for _ in range(2):
        expected = sc.conv2d("sum(w*x)", X, W, bias)
        assert torch.equal(sc.conv2d(LINEAR, X, W, bias=bias), expected)
        assert torch.equal(sc.conv2d("sum(w*x)", input=X, weight=W, bias=bias), expected)
        assert torch.equal(
            sc.conv1d(LINEAR, input=X[0, 0], weight=torch.ones(2, 6, 3), bias=bias),
            sc.conv1d(LINEAR, X[0, 0], torch.ones(2, 6, 3), bias),
        )
        assert torch.equal(sc.conv3d("sum(w*x)", input=X, weight=W[:, None]), sc.conv3d("sum(w*x)", X, W[:, None]))
        assert torch.equal(sc.pool2d("max(x)", input=X, kernel_size=2), sc.pool2d("max(x)", X, 2))
    with pytest.raises(sc.ArgumentTypeError, match="w was given twice: as weight and by its name"):
        sc.conv2d("sum(w*x)", X, weight=W, w=W)


def test_a_bias_by_its_name_is_for_formulas_with_one() -> None:
    bias = torch.randn(W.shape[0], dtype=W.dtype)
    sc.conv2d("sum(w*x)", X, W, bias)
    with pytest.raises(sc.ArgumentTypeError, match="the formula has no b"):
        sc.conv2d("sum(w*x)", X, W, b=bias)
    assert torch.equal(sc.conv2d("sum(w*x) + b", X, W, b=bias), sc.conv2d("sum(w*x)", X, W, bias))


def test_an_operand_that_is_none_is_not_given() -> None:
    for _ in range(2):
        assert torch.equal(sc.pool2d("p: param = 2\nmean(x*p)", X, 2, p=None), sc.pool2d("mean(x*2)", X, 2))


def test_the_value_of_a_padding_decides_also_as_a_tensor() -> None:
    for value in (0.0, 1.0, 0.0):
        given = {"padding": 1, "padding_mode": "constant"}
        output = sc.conv2d("sum(w*x)", X, W, **given, padding_value=torch.tensor(value))
        assert torch.equal(output, sc.conv2d("sum(w*x)", X, W, **given, padding_value=value))


def test_none_is_no_value_of_a_padding() -> None:
    assert torch.equal(sc.Pool2d("mean(x)", 2, padding_value=None)(X), sc.pool2d("mean(x)", X, 2, padding_value=None))


def test_a_layer_may_be_given_lists_afterwards() -> None:
    layer = sc.Conv2d("sum(w*x)", 4, 3, 3)
    layer.stride = [2, 2]
    assert torch.equal(layer(X), sc.conv2d("sum(w*x)", X, layer.weight, stride=2))


def test_a_layer_may_be_given_other_options_afterwards() -> None:
    layer, pool = sc.Conv2d("sum(w*x)", 4, 3, 3), sc.Pool2d("mean(x)", 2)
    before, copied = layer(X), copy.deepcopy(layer)
    layer.dilation, layer.padding, layer.padding_mode, pool.stride = (1, 2), 1, "reflect", 1
    options = {"dilation": (1, 2), "padding": 1, "padding_mode": "reflect"}
    assert torch.equal(layer(X), sc.conv2d("sum(w*x)", X, layer.weight, **options))
    assert torch.equal(pool(X), sc.pool2d("mean(x)", X, 2, 1))
    assert torch.equal(copied(X), before)
    assert "dilation=(1, 2)" in repr(layer)
    copied.stride = (True, True)  # equal to (1, 1)
    with pytest.raises(sc.ArgumentTypeError, match="stride must be an int"):
        copied(X)


def test_another_default_device_spoils_nothing(backend: str) -> None:
    with torch.device("meta"), contextlib.suppress(RuntimeError):
        sc.conv2d("sum(w*x)", X, W, backend=backend)
    for _ in range(2):
        output = sc.conv2d("sum(w*x)", X, W, backend=backend)
        torch.testing.assert_close(output, torch.nn.functional.conv2d(X, W))


#: Options of functions with their defaults, as documented.
OPTIONS = {"padding": 0, "dilation": 1, "padding_value": 0.0, "backend": "auto", "fast_math": False}


@pytest.mark.parametrize("function", [sc.conv1d, sc.conv2d, sc.conv3d])
def test_convolutions_show_their_options(function: Any) -> None:
    shown = inspect.signature(function).parameters
    others = {"stride": 1, "groups": 1, "padding_mode": "zeros", "kernel_size": None, "out_channels": None}
    assert [*shown][:4] == ["kernel", "input", "weight", "bias"]
    assert {name: each.default for name, each in shown.items() if each.kind is each.KEYWORD_ONLY} == OPTIONS | others
    assert [*shown][-1] == "operands"
    assert "padding_mode: 'str' = 'zeros'" in str(inspect.signature(function))


@pytest.mark.parametrize("function", [sc.pool1d, sc.pool2d, sc.pool3d])
def test_pools_show_their_options(function: Any) -> None:
    shown = inspect.signature(function).parameters
    defaults = {name: each.default for name, each in shown.items() if each.default is not each.empty}
    assert [*shown][:6] == ["kernel", "input", "kernel_size", "stride", "padding", "dilation"]
    assert defaults == OPTIONS | {"stride": None, "padding_mode": "ignore"}
    assert [*shown][-1] == "operands"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sc.pool2d("max(x)", X, 2, 1, 0, 1, True), "pool2d takes (kernel, input, kernel_size, stride, padding"),
        (lambda: sc.pool2d("max(x)", X, 2, 1, stride=1), "by name, each once, not (kernel, input, kernel_size, 1, str"),
        (lambda: sc.Pool2d("max(x)", 2, 1, 0, 1, "ignore", None, None, 3), "Pool2d takes (kernel, kernel_size, stride"),
        (lambda: sc.Pool1d("max(x)"), "missing a required argument: 'kernel_size'"),
        (lambda: sc.Conv2d("sum(w*x)", 2, 3), "Conv2d takes (kernel, in_channels, out_channels, kernel_size, stride,"),
    ],
)
def test_wrong_numbers_of_arguments_are_told_by_the_names_of_users(call: Any, said: str) -> None:
    with pytest.raises(sc.ArgumentTypeError, match=re.escape(said)) as caught:
        call()
    assert "_" not in str(caught.value).split()[0]


def test_layers_show_their_arguments() -> None:
    assert [*inspect.signature(sc.Conv2d).parameters][:4] == ["kernel", "in_channels", "out_channels", "kernel_size"]
    assert [*inspect.signature(sc.Pool3d).parameters][:3] == ["kernel", "kernel_size", "stride"]


@pytest.mark.parametrize("formula", ["max(x + w)", "sum(x*sign(w))"])
def test_a_warning_shows_the_line_that_makes_the_layer(formula: str) -> None:
    with pytest.warns(sc.SymconvWarning) as said:
        sc.Conv2d(formula, 1, 1, 3, padding=1)
    assert said[0].filename == __file__


def test_the_options_shown_are_taken() -> None:
    for function, operands in ((sc.conv2d, ("sum(w*x)", X, W)), (sc.pool2d, ("max(x)", X, 2))):
        bound = inspect.signature(function).bind(*operands)
        expected = function(*bound.args, **bound.kwargs)
        bound.apply_defaults()
        assert torch.equal(function(*bound.args, **bound.kwargs), expected)


def test_operands_may_be_called_like_arguments_of_ours() -> None:
    assert torch.equal(sc.Pool2d("initial: const = 2\nsum(x)*initial", 2)(X), 2 * sc.Pool2d("sum(x)", 2)(X))
    for name in ("rank", "said"):
        output = sc.conv2d(f"{name}: const = 2\nsum(w*x)*{name}", X, W, **{name: 3.0})
        assert torch.equal(output, sc.conv2d("sum(w*x)", X, W) * 3)


def test_fast_math_is_told_and_changes_nothing_on_a_cpu() -> None:
    layer = sc.Conv2d("sum(exp(w*x))", 4, 3, 3, fast_math=True)
    assert "fast_math=True" in repr(layer)
    assert "fast_math" not in repr(sc.Conv2d("sum(exp(w*x))", 2, 3, 3))
    assert torch.equal(layer(X), sc.conv2d("sum(exp(w*x))", X, layer.weight))
    for mistake in (
        lambda: sc.conv2d("sum(exp(w*x))", X, W, fast_math=1),
        lambda: sc.Conv2d("sum(w*x)", 2, 3, 3, fast_math=1),
    ):
        with pytest.raises(sc.ArgumentTypeError, match="fast_math must be True or False, not 1"):
            mistake()


@pytest.mark.parametrize("options", [{"stride": True}, {"stride": 1.0}, {"dilation": (1, True)}, {"groups": 1.0}])
def test_what_equals_an_allowed_value_is_still_checked(options: dict[str, Any]) -> None:
    """A call like one that was checked before is not checked again, and True == 1 == 1.0."""
    kind = sc.ArgumentError if "groups" in options else sc.ArgumentTypeError
    for _ in range(2):
        sc.conv2d("sum(w*x)", X, W, stride=1, dilation=(1, 1), groups=1)
        with pytest.raises(kind):
            sc.conv2d("sum(w*x)", X, W, **{"stride": 1, "dilation": (1, 1), "groups": 1, **options})


def test_sizes_are_ints_of_any_library() -> None:
    three, two, one = np.int64(3), np.int8(2), torch.tensor(1)
    layer = sc.Conv2d("sum(w*x)", np.int64(4), two, (three, 3), one, [np.uint8(1), 1], (one, 1), two)
    pool = sc.Pool2d("max(x)", three, two)
    assert repr(layer) == repr(sc.Conv2d("sum(w*x)", 4, 2, 3, padding=1, groups=2))
    assert repr(pool) == repr(sc.Pool2d("max(x)", 3, 2))
    told = [layer.in_channels, layer.out_channels, layer.groups, *layer.kernel_size, *layer.padding, *pool.stride]
    assert {type(number) for number in told} == {int}
    for _ in range(2):
        assert torch.equal(layer(X), sc.conv2d("sum(w*x)", X, layer.weight, padding=np.int64(1), groups=two))
        assert torch.equal(sc.pool2d("max(x)", X, three, two), sc.pool2d("max(x)", X, 3, 2))
        assert torch.equal(
            sc.conv2d("max(x)", X, kernel_size=three, out_channels=np.int64(4), groups=np.int64(4)),
            sc.pool2d("max(x)", X, 3, 1),
        )
        for stride in (1, 2):
            output = sc.conv2d("sum(w*x)", X, W, stride=torch.tensor(stride))
            assert torch.equal(output, sc.conv2d("sum(w*x)", X, W, stride=stride))
    bank = sc.weight("s", bank=two)
    assert sc.Kernel(sc.sum(bank[np.int64(1)] * sc.x[sc.c, np.int64(0)])).text == "s: weight[2]\nsum(s[1]*x[c, 0])"
    for wrong in (True, np.True_, torch.tensor(True), np.float64(3), 3.0, np.array([3, 3]), "3"):
        with pytest.raises(sc.ArgumentTypeError, match="stride must be an int or a tuple of 2 ints, not"):
            sc.conv2d("sum(w*x)", X, W, stride=wrong)
        for name in ("in_channels", "out_channels", "groups"):
            sizes = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, name: wrong}
            with pytest.raises(sc.ArgumentError, match=f"{name} must be a positive int, not"):
                sc.Conv2d("sum(w*x)", **sizes)


def test_numbers_of_tensors_and_arrays_without_axes(backend: str) -> None:
    text = "beta: const = 2\np: param = 1\nsum(abs(beta*w*x)**p)"
    for number in (3.0, 4.0, 3.0000001, 3.0000002):  # of which arrays show eight digits
        options = {"padding": 1, "p": torch.tensor(2.0)}
        expected = sc.conv2d(text, X, W, beta=number, **options, backend=backend)
        layer = sc.Conv2d(text, 4, 2, 3, padding=1, beta=torch.tensor(number, dtype=torch.float64), p=np.array(2.0))
        assert (type(layer.beta), layer.p.item()) == (float, 2.0)
        layer.weight.data = W
        for value in (torch.tensor(number, dtype=torch.float64), np.array(number), np.float64(number)):
            assert torch.equal(sc.conv2d(text, X, W, beta=value, **options, backend=backend), expected)
            layer.beta, layer.backend = value, backend
            assert torch.equal(layer(X), expected)
            assert "beta=3" in repr(layer) or "beta=4" in repr(layer)


@pytest.mark.parametrize("value", [torch.tensor(True), np.True_, torch.tensor(2j), np.complex64(2j), [2.0], "2"])
def test_what_is_no_real_number_is_no_value(value: Any) -> None:
    with pytest.raises(sc.ArgumentTypeError, match="the const beta is a number, not"):
        sc.Pool2d("beta: const\nsum(beta*x)", 2, beta=value)
    with pytest.raises(sc.ArgumentTypeError, match="the initial value of p is a number or a tensor of reals, not"):
        sc.Pool2d("p: param\nsum(p*x)", 2, p=value)


def test_a_const_takes_no_tensor_that_wants_a_gradient() -> None:
    with pytest.raises(sc.ArgumentTypeError, match="declare it as `beta: param`"):
        sc.pool2d("beta: const\nsum(beta*x)", X, 2, beta=torch.tensor(2.0, requires_grad=True))


def test_memory_layouts(backend: str) -> None:
    x, w = random(2, 4, 6, 5), random(3, 4, 3, 3)
    expected = sc.conv2d("prod(tan(x + w))", x, w, backend=backend)
    layouts = [
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([x, x], 3)[..., :5],
        x.flip(3).flip(3),
    ]
    for view, weight in itertools.product(layouts, (w, w.transpose(2, 3).contiguous().transpose(2, 3))):
        torch.testing.assert_close(sc.conv2d("prod(tan(x + w))", view, weight, backend=backend), expected)
    same = x[:, :1].expand(-1, 4, -1, -1)
    torch.testing.assert_close(sc.conv2d("sum(w*x)", same, w, backend=backend), F.conv2d(same.contiguous(), w))
    negated = torch.complex(torch.zeros_like(x), x).conj().imag  # in memory it has the other sign
    assert negated.is_neg()
    for _ in range(2):
        torch.testing.assert_close(sc.conv2d("sum(w*x)", negated, w, backend=backend), F.conv2d(-x, w))


@pytest.mark.parametrize(
    ("rank", "memory_format"),
    [(1, torch.channels_last), (1, torch.channels_last_3d), (2, torch.channels_last), (3, torch.channels_last_3d)],
)
def test_layers_take_the_memory_formats_that_convolutions_of_torch_take(
    backend: str, rank: int, memory_format: Any
) -> None:
    """PyTorch gives the format to what has four or five axes, of which banks have one more than their weights."""
    kind = (sc.Conv1d, sc.Conv2d, sc.Conv3d)[rank - 1]
    text = """
        s: weight[2]
        p: param[c, t, positive] = 2
        q: param[o, t]
        r: param[o, c, t]
        sum(w*x + s[0]*x*p*r + s[1]*q)"""
    layer = kind(text, 2, 3, (3, 2, 3)[:rank], dtype=torch.float64, backend=backend)
    theirs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](2, 3, (3, 2, 3)[:rank]).to(memory_format=memory_format)
    x = torch.randn(2, 2, *(5, 4, 6)[:rank], dtype=torch.float64)
    layer.s.grad = torch.randn_like(layer.s)
    expected, before, slope = layer(x), copy.deepcopy(layer.state_dict()), layer.s.grad.clone()
    network = nn.Sequential(layer).to(memory_format=memory_format)
    for weight in (layer.weight, layer.r, *layer.s, *layer.s.grad):
        assert weight.stride() == theirs.weight.stride()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(layer.s.grad, slope)
    torch.testing.assert_close(network(x), expected)
    assert network.to(torch.float32).to("cpu")[0].s.stride() == layer.s.stride()
    assert [parameter.shape for parameter in layer.to_empty(device="meta").parameters()] == [
        value.shape for value in before.values()
    ]


def test_layers_refuse_the_memory_formats_that_convolutions_of_torch_refuse() -> None:
    text = "s: weight[2]\nsum(s[0]*x + s[1])"
    flat, deep = (nn.Conv2d(2, 3, 3), sc.Conv2d(text, 2, 3, 3)), (nn.Conv3d(2, 3, 3), sc.Conv3d(text, 2, 3, 3))
    for layers, memory_format in ((flat, torch.channels_last_3d), (deep, torch.channels_last)):
        for layer in layers:
            with pytest.raises(RuntimeError, match="required rank"):
                layer.to(memory_format=memory_format)


@pytest.mark.parametrize(
    ("formula", "in_channels", "why"),
    [
        ("sum(w*x[o, t])", 3, "x has 3, out_channels is 4"),
        ("sum(w*x) - x[c, 0]", 4, "needs one channel of x, not 4"),
    ],
)
def test_a_layer_is_not_made_for_channels_that_its_formula_cannot_have(
    formula: str, in_channels: int, why: str
) -> None:
    """Those of another input are known in a call, and refused there."""
    with pytest.raises(sc.ArgumentError, match=why):
        sc.Conv2d(formula, in_channels, 4, 3)
    layer = sc.Conv2d(f"g: input\n{formula.replace('x', 'g')} + sum(x)", in_channels, 4, 3, backend="torch")
    with pytest.raises(sc.ArgumentError, match=why.replace("x ", "g ").replace("x,", "g,")):
        layer(torch.zeros(1, in_channels, 5, 5), g=torch.zeros(1, in_channels, 5, 5))
