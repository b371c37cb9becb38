"""Passes of the C++ backend whose vectors run along filters or channels, beside those of the torch backend."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from conftest import sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import symconv as sc
from symconv.backends import backends, cpp, cpp_plan, cpp_tiles
from symconv.backends.cpp_plan import CppPlan

pytestmark = pytest.mark.skipif(backends()["cpp"].unavailable() is not None, reason="needs a C++ compiler")

#: Formulas whose gradients can be computed so.
FORMULAS = {
    "adder": "-sum(abs(x - w))",
    "sum": "sum(w*x) + b",
    "far": "sum(sin(x*w))",
    "lifted": "p: param\np*sum(tanh(x)*w/(1 + x**2))",
    "window values": "sum(x*w)/norm(x - w)",
    "two inputs": "g: input\nv: weight\nsum(w*g*tanh(x) + abs(x - v))",
    "kept": "prod(1 + x*w/9)",
    "bank": "v: weight[2]\nsum(v[0]*x + exp(v[1]*x/9))",
    "field": "q: field[o]\nsum(detach(q)*w*x)",
    "choices": "sum(where(x > w, x*w, x - w)) + sign(mean(x))",
    "pool": "logsumexp(x)",
}


@pytest.fixture(autouse=True)
def few_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines with few registers do as others do, and small windows as large ones."""
    monkeypatch.setattr(cpp_tiles, "FEW_WINDOWS", math.inf)
    monkeypatch.setattr(cpp_tiles, "FEW_TAPS", 0)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[CppPlan]:
    """The plans of backward passes, in the order of the calls."""
    return spied_plans(monkeypatch, "backward")


@pytest.fixture
def forward_plans(monkeypatch: pytest.MonkeyPatch) -> list[CppPlan]:
    """The plans of forward passes that keep something."""
    return spied_plans(monkeypatch, "forward")


def spied_plans(monkeypatch: pytest.MonkeyPatch, wanted: str) -> list[CppPlan]:
    """The plans of the passes of one direction, as they will be made."""
    found: list[CppPlan] = []
    plan_of = cpp.CppKernel._plan

    def spied(kernel: cpp.CppKernel, direction: str, *others: Any) -> Any:
        plan = plan_of(kernel, direction, *others)
        if direction == wanted:
            found.append(plan)
        return plan

    monkeypatch.setattr(cpp.CppKernel, "_plan", spied)
    return found


def both_layers(
    formula: str, x: Tensor, filters: int, kernel_size: Any, **options: Any
) -> tuple[Any, list[sc.nn.Conv]]:
    """The layer for images of this rank, and one of the torch backend and one of the C++ backend, alike."""
    kind = {3: sc.Conv1d, 4: sc.Conv2d, 5: sc.Conv3d}[x.ndim]
    layers = [
        kind(formula, x.shape[1], filters, kernel_size, backend=each, dtype=x.dtype, **options)
        for each in ("torch", "cpp")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    return kind, layers


def gradients(formula: str, x: Tensor, filters: int, kernel_size: Any, **options: Any) -> list[list[Tensor]]:
    """The gradients of everything, from the torch backend and from the C++ backend."""
    kind, layers = both_layers(formula, x, filters, kernel_size, **options)
    found = []
    for layer in layers:
        image = x.clone().requires_grad_()
        others = {"g": (x.flip(-1) / 2).requires_grad_()} if "g: " in formula else {}
        if "q: " in formula:
            others["q"] = torch.ones_like(kind("sum(x*w)", x.shape[1], filters, kernel_size, **options)(x.float())).to(
                x.dtype
            )
            others["q"] *= torch.linspace(-1, 1, filters).view(-1, *[1] * (x.ndim - 2)).to(x.dtype)
        y = layer(image, **others)
        leaves = [image, *(each for each in others.values() if each.requires_grad), *layer.parameters()]
        found.append([*torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))])
    return found


@pytest.mark.parametrize("name", sampled(FORMULAS, 6))
def test_gradients_of_any_geometry(name: str, plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that do not fill the last block, strips shorter than an image, more taps than a vector has lanes."""
    torch.manual_seed(0)
    for cache, shape, filters, kernel_size, options in (
        (512, (2, 32, 14, 13), 9, 3, {"padding": 1}),
        (24, (2, 30, 21, 17), 6, 3, {"padding": 1}),
        (512, (1, 60, 9, 12), 10, (3, 2), {"padding": (1, 0), "stride": (2, 3), "groups": 2}),
        (512, (2, 32, 90), 5, 20, {"dilation": 2, "stride": 2, "padding": 3}),
        (64, (1, 32, 5, 6, 7), 4, (2, 3, 2), {"padding": 1, "stride": (1, 1, 2)}),
        (512, (3, 47, 4, 3), 7, 1, {}),
    ):
        monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, cache * 1024))
        x = torch.randn(shape, dtype=torch.float64)
        if name == "far":
            x.view(-1)[::101] *= 1e6
        for mine, other in zip(*gradients(FORMULAS[name], x, filters, kernel_size, padding_mode="constant", **options)):
            torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)
    assert len(plans) == 6
    assert all(plan.lanes == "channels" for plan in plans)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formula", ["-sum(abs(x - w))", "sum(sin(x*w))"])
def test_gradients_of_any_dtype(formula: str, dtype: torch.dtype, plans: list[CppPlan]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 9, 8)
    x[0, 0, 0, 0], x[1, 7, 5, 5] = (1e7, 3e5) if dtype != torch.float16 else (3e4, 6e4)
    near = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for mine, other in zip(*gradients(formula, x.to(dtype), 9, 3, padding=1)):
        torch.testing.assert_close(mine, other, rtol=near, atol=near * 10)
    assert plans[0].lanes == "channels"


GEOMETRIES = st.fixed_dictionaries(
    {
        "batch": st.integers(0, 3),
        "channels": st.sampled_from([26, 32, 45, 64]),
        "filters": st.integers(4, 11),
        "groups": st.sampled_from([1, 1, 2]),
        "size": st.tuples(st.integers(1, 9), st.integers(1, 20)),
        "kernel_size": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "layout": st.sampled_from(["contiguous", "channels last", "every other", "expanded"]),
        "threads": st.integers(1, 3),
    }
)


def test_gradients_of_a_random_geometry(plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches without images, images in any layout, gradients that are expanded."""

    @settings(max_examples=60, deadline=None)
    @given(geometry=GEOMETRIES)
    def check(geometry: dict[str, Any]) -> None:
        compare_random(geometry, monkeypatch)

    check()
    assert all(plan.lanes == "channels" for plan in plans)


def compare_random(geometry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What both backends give for one of `GEOMETRIES`; lanes are no windows, whether that pays or not."""
    monkeypatch.setattr(
        cpp, "lanes_of", lambda _, direction, *others: "channels" if direction == "backward" else "filters"
    )
    batch, channels, groups, layout = (geometry[name] for name in ("batch", "channels", "groups", "layout"))
    windows = {name: geometry[name] for name in ("stride", "padding", "dilation")} | {"groups": groups}
    extent = [(k - 1) * d + 1 for k, d in zip(geometry["kernel_size"], geometry["dilation"])]
    size = [max(s, e - 2 * p) for s, e, p in zip(geometry["size"], extent, geometry["padding"])]
    x = torch.randn(batch, channels * groups, size[0], size[1] * 2, dtype=torch.float64)[..., ::2]
    x = {
        "contiguous": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "every other": x,
        "expanded": x[:, :1].expand_as(x),
    }[layout]
    w = torch.randn(geometry["filters"] * groups, channels, *geometry["kernel_size"], dtype=torch.float64)
    monkeypatch.setattr(cpp.CppKernel, "plan_key", lambda *_: geometry["threads"])
    found = []
    for backend in ("torch", "cpp"):
        image, weight = x.detach().requires_grad_(), w.clone().requires_grad_()
        y = sc.conv2d("sum(x*w + abs(x - w))", image, weight, backend=backend, **windows)
        upstream = torch.tensor(0.5, dtype=y.dtype).expand_as(y) if layout == "expanded" else y.detach().cos()
        found.append((y.detach(), *torch.autograd.grad(y, (image, weight), upstream)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("needed", ["x", "w", "xw"])
def test_one_image_of_many_strips(needed: str, plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of strips in two colours, after a call that wants other gradients: memory for them is counted once."""
    monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, 16 * 1024))
    monkeypatch.setattr(cpp.CppKernel, "plan_key", lambda *_: 3)
    x, w = torch.randn(1, 32, 60, 9, dtype=torch.float64), torch.randn(5, 32, 3, 3, dtype=torch.float64)
    for wanted in ("x", "w") if needed == "xw" else ("xw", needed):
        found = []
        for backend in ("torch", "cpp"):
            given = {"x": x.clone().requires_grad_("x" in wanted), "w": w.clone().requires_grad_("w" in wanted)}
            y = sc.conv2d("sum(sqrt((x - w)**2 + 1))", *given.values(), padding=1, backend=backend)
            found.append(torch.autograd.grad(y.sin().sum(), [each for name, each in given.items() if name in wanted]))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert plans[-1].lanes == "channels"
    assert plans[-1].geometry.contents.size[1] * 10 > 5 * plans[-1].strip


@pytest.mark.parametrize("batch", [29, 30])
@pytest.mark.parametrize("formula", ["-sum(abs(x - w))", "q: field\nsum(x*w) + q*sum(x)"])
def test_images_whose_gradients_are_at_hand_together(
    formula: str, batch: int, plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More weights than the cache holds; images that do not come out even, and a field with gradients of its own."""
    monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, 256 * 1024))
    monkeypatch.setattr(cpp.CppKernel, "plan_key", lambda *_: 2)
    x, w = torch.randn(batch, 32, 4, 3, dtype=torch.float64), torch.randn(64, 32, 3, 3, dtype=torch.float64)
    q = torch.randn(batch, 4, 3, dtype=torch.float64)
    found = []
    for backend in ("torch", "cpp"):
        leaves = [each.clone().requires_grad_() for each in ([x, w, q] if "field" in formula else [x, w])]
        y = sc.conv2d(formula, *leaves[:2], **dict(zip("q", leaves[2:])), padding=1, backend=backend)
        found.append(torch.autograd.grad(y, leaves, y.detach().sin()))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert plans[0].lanes == "channels"
    assert plans[0].more_images > 0


@pytest.mark.parametrize("formula", ["sum(w*sqrt(x))", "sum(w*log(x))", "g: input\nsum(w*sqrt(x)*sqrt(g))"])
@pytest.mark.parametrize(("size", "options"), [((6, 6), {"stride": 2}), ((29, 40), {"padding": 1})])
def test_an_infinite_slope_of_a_pixel_that_no_window_sees(
    formula: str, size: tuple[int, int], options: dict[str, Any], plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last window, and in planes of a strip where only another strip's windows see it."""
    monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, 64 * 1024))
    x, w = torch.rand(2, 32, *size, dtype=torch.float64), torch.rand(8, 32, 3, 3, dtype=torch.float64)
    x[..., 5, :] = x[..., 5] = 0
    found = []
    for backend in ("torch", "cpp"):
        image = x.clone().requires_grad_()
        others = {"g": torch.rand_like(x, generator=torch.manual_seed(0)).requires_grad_()} if "g: " in formula else {}
        y = sc.conv2d(formula, image, w, **others, padding_mode="constant", **options, backend=backend)
        found.append(torch.autograd.grad(y, [image, *others.values()], torch.ones_like(y)))
    assert plans[0].lanes == "channels"
    torch.testing.assert_close(*found, equal_nan=True, rtol=1e-9, atol=1e-9)
    assert (found[0][0] == 0).any() == ("stride" in options)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("formula", ["sum(x*w)", "sum(sqrt(x - w))", "sum(w/x)", "sum(x*w)/norm(x - w)"])
def test_what_is_not_finite_stays_where_it_is(formula: str, value: float, plans: list[CppPlan]) -> None:
    """Pixels and weights, in windows and behind the ends of rows, and slopes at the zeros around the image."""
    x, w = torch.randn(2, 32, 6, 9, dtype=torch.float64), torch.randn(6, 32, 3, 3, dtype=torch.float64)
    x[0, 3, 2, 8] = x[1, 0, 5, 0] = w[2, 5, 0, 1] = value
    found = []
    for backend in ("torch", "cpp"):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = sc.conv2d(formula, *leaves, padding=(1, 0), backend=backend)
        found.append(torch.autograd.grad(y, leaves, torch.ones_like(y).cumsum(-1)))
    assert plans[0].lanes == "channels"
    assert formula != "sum(x*w)" or all(each.isfinite().any() for each in found[0])
    torch.testing.assert_close(*found, equal_nan=True, rtol=1e-9, atol=1e-9)


def test_the_same_bits_again_and_for_any_number_of_threads(
    plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = torch.randn(3, 32, 11, 9), torch.randn(24, 32, 3, 3)
    found = []
    for threads in (1, 1, 2, 3):
        monkeypatch.setattr(cpp.CppKernel, "plan_key", lambda *_, threads=threads: threads)
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = sc.conv2d("-sum(abs(x - w))", *leaves, padding=1, backend="cpp")
        found.append(torch.autograd.grad(y, leaves, y.detach().sin()))
    assert all(plan.lanes == "channels" and plan.by_filters and plan.more_strips for plan in plans)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize(
    ("formula", "channels", "filters", "options"),
    [
        ("sum(x*w*exp(-dx**2))", 32, 8, {}),  # a number for each tap
        ("p: param[c]\nsum(p*x*w)", 32, 8, {}),
        ("sum(w*x[c, 0])", 32, 8, {}),
        ("sum(x*w)", 9, 8, {}),  # of 16 lanes, or 12
        ("p: param[o, c]\nsum(p*x*w)", 32, 8, {}),
        ("sum(x*w) + x[o, 0]", 32, 32, {}),
        ("sum(o*x*w)", 32, 8, {}),
        ("sum(x*w)", 32, 3, {}),
        ("sum(x*w)", 32, 32, {"groups": 32}),
        ("sum(x*w)", 32, 8, {"padding_mode": "ignore"}),
    ],
)
def test_lanes_stay_windows(
    formula: str, channels: int, filters: int, options: dict[str, Any], plans: list[CppPlan]
) -> None:
    x = torch.randn(1, channels, 7, 6, dtype=torch.float64)
    for mine, other in zip(*gradients(formula, x, filters, 3, padding=1, **options)):
        torch.testing.assert_close(mine, other)
    assert plans[0].lanes == "windows"


# -- Forward passes whose vectors run along filters --------------------------------------------------------------------

#: Formulas whose windows and filters can be computed so.
OF_FILTERS = {
    "adder": "-sum(abs(x - w))",
    "sum": "p: param[o]\nsum(w*x)*p + b",
    "far": "sum(sin(x*w))",
    "lifted": "sum(tanh(x)*w*exp(-dx**2)/(1 + x**2))",
    "two inputs": "g: input\nv: weight\nsum(w*g*tanh(x) + abs(x - v))",
    "position": "max(x + w)*min(x*w)",
    "counts": "q: field\nsum(detach(q)*w*x + o*x + t*c)",
    "accumulators": "prod(1 + x*w/9) + logsumexp(x + w) + mean(x*w)",
    "elsewhere": "v: weight[2]\nsum(v[0]*x[c, 0] + v[1]*x[c, t+1])",
}


def outputs(formula: str, x: Tensor, filters: int, kernel_size: Any, **options: Any) -> list[Tensor]:
    """What both backends give, the C++ backend with and without a backward pass to come."""
    kind, layers = both_layers(formula, x, filters, kernel_size, **options)
    others = {"g": x.flip(-1) / 2} if "g: " in formula else {}
    if "q: " in formula:
        plain = kind("sum(x*w)", x.shape[1], 1, kernel_size, backend="torch", **options | {"groups": 1})
        windows = plain(x.float()).squeeze(1)
        others["q"] = torch.linspace(-1, 1, windows.numel()).view_as(windows).to(x.dtype)
    with torch.no_grad():
        inferred = [layer(x, **others) for layer in layers]
    return [*inferred, layers[1](x, **others).detach()]


@pytest.mark.parametrize("name", sampled(OF_FILTERS, 6))
def test_outputs_of_any_geometry(name: str, forward_plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters that do not fill the last block, strips shorter than an image, rows shorter and longer than a tile."""
    torch.manual_seed(0)
    for cache, shape, filters, kernel_size, options in (
        (512, (2, 5, 14, 13), 32, 3, {"padding": 1}),
        (8, (2, 3, 21, 40), 30, 3, {"padding": 1}),
        (512, (1, 6, 9, 12), 120, (3, 2), {"padding": (1, 0), "stride": (2, 3), "groups": 2}),
        (512, (2, 4, 90), 29, 20, {"dilation": 2, "stride": 2, "padding": 3}),
        (64, (1, 3, 5, 6, 7), 16, (2, 3, 2), {"padding": 1, "stride": (1, 1, 2)}),
        (64, (7, 20, 4, 3), 64, 2, {}),
        (512, (3, 7, 1, 1), 47, 1, {}),
    ):
        monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, cache * 1024))
        x = torch.randn(shape, dtype=torch.float64)
        if name == "far":
            x.view(-1)[::101] *= 1e6
        torch_, *cpp_ = outputs(OF_FILTERS[name], x, filters, kernel_size, padding_mode="constant", **options)
        for found in cpp_:
            torch.testing.assert_close(found, torch_, rtol=1e-8, atol=1e-8)
    assert len(forward_plans) >= 7
    assert all(plan.lanes == "filters" for plan in forward_plans)
    assert any(plan.more_strips for plan in forward_plans)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formula", ["-sum(abs(x - w))", "sum(sin(x*w)) + max(x*w)"])
def test_outputs_of_any_dtype(formula: str, dtype: torch.dtype, forward_plans: list[CppPlan]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 9, 8)
    x[0, 0, 0, 0], x[1, 6, 5, 5] = (1e7, 3e5) if dtype != torch.float16 else (3e4, 6e4)
    near = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    expected, *found = outputs(formula, x.to(dtype), 61, 3, padding=1, padding_mode="constant")
    assert forward_plans[0].lanes == "filters"
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], expected, rtol=near, atol=near * 10)


def test_outputs_of_a_random_geometry(forward_plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches without images, images in any layout, small caches."""

    @settings(max_examples=60, deadline=None)
    @given(
        geometry=GEOMETRIES,
        filters=st.sampled_from([13, 16, 32, 45]),
        channels=st.integers(1, 9),
        cache=st.sampled_from([4, 16, 512]),
    )
    def check(geometry: dict[str, Any], filters: int, channels: int, cache: int) -> None:
        monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, cache * 1024))
        compare_random(geometry | {"filters": filters, "channels": channels}, monkeypatch)

    check()
    assert all(plan.lanes == "filters" for plan in forward_plans)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("formula", ["sum(x*w)", "max(x*w)", "sum(w/x)", "sum(sin(x/w))"])
def test_outputs_that_are_not_finite_stay_where_they_are(
    formula: str, value: float, forward_plans: list[CppPlan]
) -> None:
    """In windows at the ends of rows and in other filters."""
    x, w = torch.randn(2, 3, 6, 9, dtype=torch.float64), torch.randn(30, 3, 3, 3, dtype=torch.float64)
    x[0, 2, 2, 8] = x[1, 0, 5, 0] = w[29, 1, 0, 1] = value
    w.requires_grad_()
    found = [
        sc.conv2d(formula, x, w, padding=(1, 0), padding_mode="constant", backend=each) for each in ("torch", "cpp")
    ]
    assert forward_plans[0].lanes == "filters"
    torch.testing.assert_close(found[1], found[0], equal_nan=True, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("filters", [32, 96])
def test_the_same_outputs_again_and_for_any_number_of_threads(
    filters: int, forward_plans: list[CppPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, 64 * 1024))
    x, w = torch.randn(3, 32, 11, 9), torch.randn(filters, 32, 3, 3, requires_grad=True)
    found = []
    for threads in (1, 1, 2, 3):
        monkeypatch.setattr(cpp.CppKernel, "plan_key", lambda *_, threads=threads: threads)
        found.append(sc.conv2d("-sum(abs(x - w))", x, w, padding=1, backend="cpp").detach())
    assert all(plan.lanes == "filters" for plan in forward_plans)
    for other in found[1:]:
        assert torch.equal(found[0], other)


@pytest.mark.parametrize(
    ("formula", "filters", "options"),
    [
        ("sum(w*x[o, t])", 32, {}),  # a pixel for each filter
        ("q: field[o]\nsum(detach(q)*x*w)", 32, {}),
        ("std(x*w)", 32, {}),  # of two sweeps, whose second one reads what the first one found
        ("median(x*w)", 32, {}),
        ("sum(max(x + w, dim=t), dim=c)", 32, {}),
        ("sum(x*w)", 9, {}),  # of 16 lanes, or 12
        ("logsumexp(x)", 32, {"groups": 32}),
        ("sum(x*w)", 32, {"padding_mode": "ignore"}),
    ],
)
def test_lanes_of_a_forward_pass_stay_windows(
    formula: str, filters: int, options: dict[str, Any], forward_plans: list[CppPlan]
) -> None:
    x = torch.randn(1, 32, 7, 6, dtype=torch.float64)
    options = {"padding_mode": "constant"} | options
    if "q: " in formula:
        layer = sc.Conv2d(formula, 32, filters, 3, padding=1, backend="cpp", dtype=x.dtype, **options)
        layer(x, q=torch.randn(1, filters, 7, 6, dtype=x.dtype))
    else:
        expected, *found = outputs(formula, x, filters, 3, padding=1, **options)
        for each in found:
            torch.testing.assert_close(each, expected)
    assert forward_plans[0].lanes == "windows"


@pytest.mark.parametrize("channels", [3, 4])
def test_lanes_of_a_few_taps_stay_windows(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # what other tests take for few
    spied = spied_plans(monkeypatch, "forward")
    sc.conv2d("sum(w*x)", torch.randn(1, channels, 7, 7), torch.randn(32, channels, 3, 3), backend="cpp")
    assert [plan.lanes for plan in spied] == ["windows" if channels == 3 else "filters"]
