"""Second derivatives: products with Hessians beside those of the evaluator, single points, and who asks for them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from evaluator import Geometry, evaluate, read
from hypothesis import HealthCheck, assume, event, given, settings
from oracles import random
from test_random_formulas import REGRESSIONS, SMALL, Case, apart, cases, layer, numbers
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import symconv as sc
from symconv.errors import DerivativeError

# -- Products with the Hessian --------------------------------------------------------------------------------------


def waves(like: Tensor, phase: float) -> Tensor:
    """Numbers of moderate size, of the shape of a tensor."""
    return torch.sin(phase + 1.7 * torch.arange(like.numel(), dtype=like.dtype)).reshape(like.shape) + 0.3


def products(output: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of <gradients, directions> for all tensors and for the output's gradient; 0 for unused ones."""
    upstream = waves(output, 0.4).requires_grad_()
    nothing = {name: torch.zeros_like(tensor) for name, tensor in {**tensors, "upstream": upstream}.items()}
    if not output.requires_grad:
        return nothing
    first = torch.autograd.grad(output, [*tensors.values()], upstream, create_graph=True, allow_unused=True)
    total = sum((each * waves(each, number)).sum() for number, each in enumerate(first) if each is not None)
    if not isinstance(total, Tensor) or not total.requires_grad:
        return nothing
    second = torch.autograd.grad(total, [*tensors.values(), upstream], allow_unused=True)
    return {name: zeros if found is None else found for (name, zeros), found in zip(nothing.items(), second)}


def by_evaluator(case: Case, operands: dict[str, Any], late: bool = False, noise: float = 0.0) -> tuple[Any, Any]:
    """The products that the evaluator gives, and what it says about them."""
    torch.manual_seed(0)
    result = evaluate(case.formula, operands, case.geometry, late, noise)
    return products(result.output, {name: each for name, each in operands.items() if isinstance(each, Tensor)}), result


def check_case(case: Case, backend: str) -> None:
    """The products of symconv equal those of the evaluator, where they are finite, moderate and away from kinks."""
    operands = numbers(case)
    theirs, result = by_evaluator(case, operands)
    moderate = all(bool(((each.abs() < 1e6) | (each == 0)).all()) for each in theirs.values())
    reason = "" if moderate and result.largest < 1e6 else "not finite or too large"
    if not reason and result.doubt:
        other, _ = by_evaluator(case, operands, late=True)
        reason = "" if all(distance < 1e-7 for distance in apart(other, theirs).values()) else "at a tie or kink"
    event(reason or "used")
    assume(not reason)
    try:
        compare(case, operands, theirs, backend)
    except sc.FormulaError as error:
        assume("never uses the input x" not in error.message)  # it cancels
        assume("no finite value" not in error.message)  # log(0.5 - 2)
        raise


def compare(case: Case, operands: dict[str, Any], theirs: dict[str, Tensor], backend: str) -> None:
    """The products of symconv equal `theirs`."""
    output = layer(sc.Kernel(case.formula.text), case, operands, backend)
    ours = products(output, {name: each for name, each in operands.items() if isinstance(each, Tensor)})
    distance = apart(ours, theirs)
    if all(each < 1e-8 for each in distance.values()):
        return
    blur = apart(by_evaluator(case, operands, noise=1e-12)[0], theirs)
    for name, each in distance.items():
        assert each < 1e-8 + 100 * blur[name], f"{name} of {case}\nours:   {ours[name]}\ntheirs: {theirs[name]}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_random_formulas(case: Case) -> None:
    check_case(case, "torch")


@pytest.mark.parametrize(("text", "windows"), REGRESSIONS, ids=[text.splitlines()[-1] for text, _ in REGRESSIONS])
def test_regression(text: str, windows: dict[str, Any]) -> None:
    """On the torch backend: a tangent is a formula like others, and `test_random_formulas` compiles such."""
    case = Case(read(text), Geometry(**{**SMALL, **windows}), 0)
    operands = numbers(case)
    compare(case, operands, by_evaluator(case, operands)[0], "torch")


# -- Single points ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", ["prod(abs(x)**w)", "p: param = 0\nsum(abs(x)**p)", "sum(w*(x**2 + 1)**w)"])
def test_powers_whose_exponent_is_0(backend: str, formula: str) -> None:
    """There a**p has the slope 0 for a, and that slope has itself a slope for p, which is 1/a."""
    x, w = random(1, 1, 4).requires_grad_(), torch.zeros(2, 1, 3, dtype=torch.float64, requires_grad=True)
    p = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def kernel(*tensors: Tensor) -> Tensor:
        operands = dict(zip(("x", "p") if "param" in formula else ("x", "w"), tensors))
        options = {"kernel_size": 3, "out_channels": 2, "backend": backend}
        return sc.conv1d(formula, operands.pop("x"), operands.pop("w", None), **operands, **options)

    assert torch.autograd.gradgradcheck(kernel, (x, p if "param" in formula else w))


def test_roots_of_maxima_in_conditions() -> None:
    """At a window without taps they would be roots of -oo, with which SymPy compares nothing."""
    x = (random(1, 1, 5).abs() + 0.5).requires_grad_()

    def kernel(x: Tensor) -> Tensor:
        formula = "sum(x*where(sqrt(max(x)) > 1, max(x), 3))"
        return sc.conv1d(formula, x, kernel_size=3, out_channels=1, backend="torch")

    assert torch.autograd.gradgradcheck(kernel, x)


@pytest.mark.parametrize(
    "formula",
    [
        "log(sum(x))",
        "max(x)**2",
        "1/(prod(x) - 1)",
        "sum(x)/norm(x)",
        "relu(min(x))**2",
        "sum(x*sin(min(x)))",
    ],
)
def test_slopes_that_are_infinite_without_taps(backend: str, formula: str) -> None:
    """A window that sees nothing of the image has no motion, so that its tangent is 0, however steep the formula is."""
    x = (random(1, 1, 4).abs() + 1.5).requires_grad_()
    options = {"kernel_size": 2, "out_channels": 1, "padding": 3, "padding_mode": "ignore", "backend": backend}
    y, y_dot = torch.func.jvp(lambda x: sc.conv1d(formula, x, **options), (x,), (torch.ones_like(x),))
    assert y.shape == (1, 1, 9)
    assert y_dot[0, 0, [0, 1, 7, 8]].tolist() == [0.0] * 4
    assert torch.autograd.gradgradcheck(lambda x: sc.conv1d(formula, x, **options)[..., 2:-2], x)


@pytest.mark.parametrize(
    "formula",
    [
        "max(max(x), p) + sum(x)",
        "max(max(x), ste(1, p)) + sum(x)",
        "sum(x) + sigmoid(min(x))*p",
        "sum(x) + log(exp(max(x)) + p**2)",
        "sum(x) + softplus(max(x) + p)",
        "sum(x) + exp(max(max(x, dim=t)*d, dim=c) + p)*p",
    ],
)
def test_parameters_move_in_windows_without_taps(backend: str, formula: str) -> None:
    """Where maxima are infinite and slopes along them are not known, those along a parameter are."""
    x, p = random(1, 1, 2), torch.tensor(-0.3, dtype=torch.float64)

    def kernel(p: Tensor) -> Tensor:
        given = {"p": p} | ({"d": torch.ones(1, dtype=torch.float64)} if "*d" in formula else {})
        text = "p: param\n" + "d: param[c]\n" * ("*d" in formula) + formula
        options = {"kernel_size": 1, "out_channels": 1, "padding": 1, "padding_mode": "ignore", "backend": backend}
        return sc.conv1d(text, x, **given, **options)

    _, y_dot = torch.func.jvp(kernel, (p,), (torch.ones_like(p),))
    torch.testing.assert_close(y_dot, torch.autograd.functional.jacobian(kernel, p))


def test_powers_of_0_whose_exponent_is_0(backend: str) -> None:
    x, w = torch.zeros(2, 1, 1, 1, dtype=torch.float64).requires_grad_()
    y = sc.conv1d("sum(x**w)", x, w, backend=backend)
    first = torch.autograd.grad(y, (x, w), create_graph=True)
    assert all(each.item() == 0 for each in torch.autograd.grad(sum(first), (x, w)))


def of_product(factors: Tensor, direction: Tensor) -> Tensor:
    """The Hessian of a product along a direction: products of all factors but two, one by one."""
    found = torch.zeros_like(factors)
    for i, j in itertools.permutations(range(len(factors)), 2):
        found[i] += direction[j] * math.prod(each for k, each in enumerate(factors) if k not in (i, j))
    return found


@pytest.mark.parametrize("near", [[], [1e-3], [1e-8], [-1e-20], [1e-8, 1e-5], [0.0], [0.0, 1e-8], [0.0] * 2, [0.0] * 3])
def test_products_with_factors_near_0(backend: str, near: list[float]) -> None:
    """In float32: v/e of a small factor e is so large that the others would be lost beside it."""
    factors, direction = torch.rand(9).double() + 0.5, torch.randn(9).double()
    factors[1 : 1 + 2 * len(near) : 2] = torch.tensor(near, dtype=factors.dtype)
    x = factors.float().reshape(1, 1, 9).requires_grad_()
    y = sc.conv1d("prod(x)", x, kernel_size=9, out_channels=1, backend=backend)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.flatten() @ direction.float(), x)
    expected = of_product(x.detach().flatten().double(), direction.float().double())
    error = (second.flatten().double() - expected).abs().max()
    assert error <= 1e-5 * expected.abs().max()


# -- Who asks for them -----------------------------------------------------------------------------------------------


def penalty(x: Tensor, w: Tensor, backend: str) -> Tensor:
    """The length of a gradient."""
    y = sc.conv2d("sum(sin(w*x))", x, w, backend=backend)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return gradient.square().sum()


def test_a_gradient_within_a_checkpoint(backend: str) -> None:
    x, w = random(1, 2, 4, 4).requires_grad_(), random(3, 2, 2, 2).requires_grad_()
    expected = torch.autograd.grad(penalty(x, w, backend), (x, w))
    checkpoint(penalty, x, w, backend, use_reentrant=False).backward()
    for tensor, gradient in zip((x, w), expected):
        torch.testing.assert_close(tensor.grad, gradient)


def test_second_derivatives_along_many_directions_at_once_are_refused(backend: str) -> None:
    x, w = random(1, 1, 4, 4), random(1, 1, 2, 2)
    with pytest.raises(DerivativeError, match="batch of directions"):
        torch.autograd.functional.hessian(lambda x: penalty(x, w, backend), x, vectorize=True)
    x.requires_grad_()
    y = sc.conv2d("sum(sin(w*x))", x, w, backend=backend)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(DerivativeError, match="batch of directions"):
        torch.autograd.grad(gradient, x, torch.ones(3, *x.shape, dtype=x.dtype), is_grads_batched=True)
