"""What is computed once per pixel or weight: which parts, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import BACKENDS, sampled
from oracles import random, same_values_and_gradients

import symconv as sc
from symconv.backends import backends
from symconv.lower import lower

pytestmark = pytest.mark.skipif(backends()["cpp"].unavailable() is not None, reason="needs a C++ compiler")


@pytest.fixture(params=[each for each in BACKENDS if each != "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that lifts."""
    return str(request.param)


def lifted(text: str) -> tuple[set[str], set[str]]:
    """What the forward and the backward pass of a formula compute once, as text."""
    forward, backward = lower(sc.Kernel(text).formula, lift=True).lifted
    return {str(each.expr) for each in forward}, {str(each.expr) for each in backward}


@pytest.mark.parametrize(
    ("text", "forward", "backward"),
    [
        ("sum(w*tanh(x))", {"tanh(x)"}, {"tanh(x)", "1 - tanh(x)**2"}),
        ("sum(w*xlogx(x))", {"xlogx(x)"}, {"xlogx(x)", "log(x) + 1"}),
        ("sum(x*sigmoid(w))", {"sigmoid(w)"}, {"sigmoid(w)", "(1 - sigmoid(w))*sigmoid(w)"}),
        ("sum(w*x/(1 + x**2))", {"x/(x**2 + 1)"}, {"x/(x**2 + 1)", "-2*x**2/(x**2 + 1)**2 + 1/(x**2 + 1)"}),
        ("sum(w*exp(x[c, 0]))", {"exp(x[c, 0])"}, {"exp(x[c, 0])"}),
        ("sum(x*abs(w))", {"abs(w)"}, {"abs(w)", "sign(w)"}),
        # A product that may be inf by itself is none; one with a factor of at most 1 is.
        ("sum(w*x*exp(x))", {"exp(x)"}, {"exp(x)"}),
        (
            "sum(w*x*exp(-(dx**2 + dy**2)/2))",
            {"w*exp(-dx**2/2 - dy**2/2)"},
            {"w*exp(-dx**2/2 - dy**2/2)", "exp(-dx**2/2 - dy**2/2)"},
        ),
        ("sum(w*x*sigmoid(x))", {"x*sigmoid(x)"}, {"x*sigmoid(x)", "x*(1 - sigmoid(x))*sigmoid(x) + sigmoid(x)"}),
        # A quotient is rounded once, a product with a reciprocal twice.
        ("sum(w/(1 + x**2))", set(), {"x/(x**2 + 1)**2"}),
        ("sum(w/(1 + exp(x)))", {"exp(x) + 1"}, {"exp(x) + 1", "exp(x)/(exp(x) + 1)**2"}),
        # Forward 3*(x - 1) is not multiplied out, which would be less exact where x is near 1.
        ("sum(3*w*(x - 1) + w*tanh(x))", {"tanh(x)"}, {"4 - tanh(x)**2", "3*x + tanh(x) - 3"}),
        # Cheap, or of both: computed at each tap.
        ("sum(w*x**2)", set(), set()),
        ("sum(sin(w*x))", set(), set()),
        ("-sum(abs(x - w))", set(), set()),
        ("mean(x)", set(), set()),
        # Nor are the numbers 1 and -1, though they stand beside weights.
        ("sum(custom_grad(-abs(x - w), x=clip(w - x, -1, 1), w=x - w))", set(), set()),
        # Of the window, or of two pixels.
        ("sum(w*exp(x - max(x)))", set(), set()),
        ("sum(w*exp(x - x[c, 0]))", set(), set()),
    ],
)
def test_what_is_lifted(text: str, forward: set[str], backward: set[str]) -> None:
    assert lifted(text) == (forward, backward)


def test_weights_are_packed_once() -> None:
    """Though they are read, and two other values computed of them."""
    text = sc.Kernel("sum(max(w, x*abs(w), x**2*exp(w)))").source("cpp")
    forward = text[: text.index("#ifdef SYMCONV_BACKWARD")]
    assert forward.count("computed<") == 2
    assert forward.count("pack_taps(") == 1
    assert "pack<" not in forward


def test_only_what_is_asked_for_is_lifted() -> None:
    assert lower(sc.Kernel("sum(w*tanh(x))").formula).lifted == ([], [])


def test_a_name_of_the_formula_is_not_taken() -> None:
    text = "pixel_1: param = 2.0\nweight_1: weight\nsum(weight_1*w**2*pixel_1*tanh(x)*exp(weight_1))"
    names = {each.name for each in lower(sc.Kernel(text).formula, lift=True).lifted[0]}
    assert names
    assert not names & {"pixel_1", "weight_1"}


def test_kernels_do_not_mix_up_what_they_lift() -> None:
    """SymPy keeps symbols that are equal: the first pixel value of one kernel is not that of another."""
    assert lifted("sum(w*tanh(x))")[0] == {"tanh(x)"}
    assert lifted("sum(w*exp(x))")[0] == {"exp(x)"}


SHAPES: list[dict[str, Any]] = [
    {"padding": 1, "padding_mode": "constant"},
    {"padding": 2, "stride": 2, "dilation": 2, "padding_mode": "constant"},
    {"padding": 1, "groups": 2, "padding_mode": "constant"},
    {"padding": 1, "padding_mode": "ignore"},
]
FORMULAS = {
    "pixel": "sum(w*tanh(x))",
    "weight": "sum(x*sigmoid(w)) + b",
    "both": "sum(tanh(x)*exp(-w**2))",
    "shared factor": "sum(w*x/(1 + x**2))",
    "number at once": "beta: const = 0.7\nsum(w*tanh(beta*x)*exp(-beta*(dx**2 + dy**2)))",
    "sizes": "sum(w*exp(x/N)*exp(w/T))",
    "indices": "sum(x*exp(-(c + t + o)/10)*w)",
    "parameters": "s: param[o] = 0.5\np: param[t] = 0.3\nq: param[c] = 0.2\nsum(x*exp(-s*dx**2)*sin(p + q)*exp(s*p))",
    "one parameter": "s: param = 0.5\nsum(w*x*exp(s))",
    "centre": "sum(w*exp(x[c, 0])*x)",
    "next": "sum(w*tanh(x[c, t+1]) + tanh(x))",
    "padding is not 0": "sum(w*cos(x))",
    "maximum": "max(exp(x) + w)",
    "over an axis": "sum(max(tanh(x) + w, dim=t), dim=c)",
    "product": "prod(tanh(x)*exp(w))",
    "second sweep": "sum((tanh(x) - mean(tanh(x)))**2*w)",
    "two weights": "v: weight\nsum(exp(v)*w*x)",
    "bank": "s: weight[3]\nsum(s[0]*tanh(x) + s[1]*exp(s[2])*x)",
    "softmax": "sum(softmax(x)*tanh(x)*w)",
    "gradient 0": "sum(w*(detach(x) - x)) + sum(tanh(x))*(detach(b) - b)",
}


@pytest.mark.parametrize("options", sampled(SHAPES), ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_as_on_the_torch_backend(name: str, options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    formula = FORMULAS[name]
    layers = [sc.Conv2d(formula, 4, 6, 3, dtype=torch.float64, backend=each, **options) for each in (backend, "torch")]
    with torch.no_grad():
        for parameter, other in zip(*(each.parameters() for each in layers)):
            parameter.copy_(random(*parameter.shape, scale=0.5))
            other.copy_(parameter)
    x = random(2, 4, 9, 11)
    results = []
    for layer in layers:
        image = x.clone().requires_grad_()
        y = layer(image)
        gradients = torch.autograd.grad(y, [image, *layer.parameters()], torch.ones_like(y).cumsum(-1) / 10)
        results.append([y, *gradients])
    for mine, other in zip(*results):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
def test_against_a_convolution(groups: int, backend: str) -> None:
    x, w = random(2, 4, 7, 8), random(6, 4 // groups, 3, 3)
    same_values_and_gradients(
        lambda x, w: sc.conv2d("sum(tanh(x)*sigmoid(w))", x, w, padding=1, groups=groups, backend=backend),
        lambda x, w: F.conv2d(F.pad(x, [1] * 4).tanh(), w.sigmoid(), groups=groups),
        [x, w],
    )


def test_an_image_of_one_channel_that_all_share(backend: str) -> None:
    x, w, g = random(2, 4, 7, 8), random(6, 4, 3, 3), random(2, 1, 7, 8)
    same_values_and_gradients(
        lambda x, w, g: sc.conv2d("g: input\nsum(w*x*tanh(g))", x, w, g=g, padding=1, backend=backend),
        lambda x, w, g: F.conv2d(x * g.tanh(), w, padding=1),
        [x, w, g],
    )


@pytest.mark.parametrize("formula", ["sum(1.5*w*(x - x[c, 0])**2)", "sum(w*softmax((x[c, 0] - x)**2))"])
def test_a_common_factor_that_is_a_difference(formula: str, backend: str) -> None:
    """It is 0 under the tap at the centre, and of few digits under the others."""
    x, w = 1000 + 1e-6 * random(1, 2, 6), random(3, 2, 3)
    found = []
    for each in (backend, "torch"):
        x = x.detach().requires_grad_()
        y = sc.conv1d(formula, x, w, backend=each)
        found.append(torch.autograd.grad(y, x, torch.arange(12.0).double().view_as(y))[0])
    torch.testing.assert_close(*found, rtol=1e-7, atol=0)


def test_second_derivatives(backend: str) -> None:
    x, w = random(1, 2, 5, 5).requires_grad_(), random(3, 2, 3, 3).requires_grad_()
    ours = lambda x, w: sc.conv2d("sum(tanh(x)*exp(w))", x, w, backend=backend)  # noqa: E731
    assert torch.autograd.gradgradcheck(ours, (x, w))


@pytest.mark.parametrize("formula", ["sum(x*sqrt(w))", "sum(x/w)", "sum(w*x/(1 + x**2))"])
def test_infinite_slopes(formula: str, backend: str) -> None:
    """Lanes of a vector without a window do not turn what is infinite into NaN."""
    x, w = torch.ones(1, 1, 2, 2).double().requires_grad_(), torch.zeros(1, 1, 1, 1).double().requires_grad_()
    found = [torch.autograd.grad(sc.conv2d(formula, x, w, backend=each).sum(), [x, w]) for each in (backend, "torch")]
    for mine, other in zip(*found):
        torch.testing.assert_close(mine, other, equal_nan=True)


def test_an_infinite_slope_at_a_pixel_that_no_window_sees(backend: str) -> None:
    x, w = torch.zeros(1, 1, 6, 6).double().requires_grad_(), torch.ones(1, 1, 3, 3).double()
    (grad,) = torch.autograd.grad(sc.conv2d("sum(w*sqrt(x))", x, w, stride=2, backend=backend).sum(), x)
    expected = torch.full((6, 6), torch.inf).double()
    expected[5, :] = expected[:, 5] = 0
    assert torch.equal(grad[0, 0], expected)


@pytest.mark.parametrize(
    ("formula", "at", "weight"),
    [
        ("sum(w*exp(w)*x)", 1e-30, 86.0),
        ("sum(exp(w)*x*exp(dx + 1)*w)", 1e-30, 85.0),
        ("sum(w*x*exp(x))", 86.0, 1e-20),
    ],
)
def test_what_is_lifted_is_multiplied_in_the_same_order(formula: str, at: float, weight: float, backend: str) -> None:
    """Another one would overflow."""
    x, w = torch.full((1, 1, 2, 2), at, requires_grad=True), torch.full((1, 1, 1, 1), weight, requires_grad=True)
    y = sc.conv2d(formula, x, w, backend=backend)
    exact = sc.conv2d(formula, x.double(), w.double(), backend="torch")
    torch.testing.assert_close(y, exact.float(), rtol=1e-4, atol=0)
    assert y.isfinite().all()


def test_a_product_that_overflows_above_a_bar_is_not_lifted() -> None:
    assert lifted("sum(w*x*exp(x)/(1 + x**2))")[0] == {"exp(x)"}


def test_half_precision_computes_in_float32(backend: str) -> None:
    x, w = random(2, 4, 7, 8).to(torch.bfloat16), random(6, 4, 3, 3).to(torch.bfloat16)
    y = sc.conv2d("sum(exp(x)*exp(w))", x, w, padding=1, backend=backend)
    exact = F.conv2d(F.pad(x.double(), [1] * 4).exp(), w.double().exp())
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=0)
