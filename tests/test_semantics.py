"""The semantics table (design, section 3): one test per rule, values and gradients, on every backend."""

from __future__ import annotations

from math import pi

import pytest
import torch
from oracles import random
from torch import Tensor

import symconv as sc
from symconv.errors import DerivativeError, FormulaError

inf, nan = torch.inf, torch.nan


def window(formula: str, values: list[float], backend: str, w: list[float] | None = None, **options: object) -> tuple:
    """The value of a formula for one window, and its gradients for x and w."""
    dtype = options.pop("dtype", torch.float64)
    x = torch.tensor(values, dtype=dtype).reshape(1, 1, -1).requires_grad_()
    weight = torch.tensor(w or [0.0] * len(values), dtype=dtype).reshape(1, 1, -1).requires_grad_()
    if "w" in formula.replace("where", ""):
        y = sc.conv1d(formula, x, weight, backend=backend, **options)
    else:
        y = sc.conv1d(formula, x, kernel_size=len(values), out_channels=1, backend=backend, **options)
    grads = torch.autograd.grad(y.sum(), (x, weight), allow_unused=True)
    return (y.item(), *(None if g is None else g.flatten().tolist() for g in grads))


def test_elementwise_maximum_shares_a_tie(backend: str) -> None:
    assert window("sum(max(x, w))", [1.0, 2.0], backend, [1.0, 1.0]) == (3.0, [0.5, 1.0], [0.5, 0.0])
    assert window("sum(min(x, w))", [1.0, 2.0], backend, [1.0, 1.0]) == (2.0, [0.5, 0.0], [0.5, 1.0])
    # Three at a tie, pairwise: the shares still sum to 1.
    value, grad_x, grad_w = window("sum(max(x, w, 0))", [0.0], backend, [0.0])
    assert value == 0
    assert 0 < grad_x[0] + grad_w[0] < 1
    x = torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(sc.conv1d("sum(max(x, 2*x, 3*x) - 2*x)", x, kernel_size=1, out_channels=1), x)
    assert abs(grad.item()) <= 1


def test_max_reduction_gives_a_tie_to_the_first_tap(backend: str) -> None:
    assert window("max(x)", [1.0, 3.0, 3.0], backend)[:2] == (3.0, [0.0, 1.0, 0.0])
    assert window("min(x)", [2.0, 1.0, 1.0], backend)[:2] == (1.0, [0.0, 1.0, 0.0])
    # Scan order is channel, then tap: the last tap of channel 0 comes before the first of channel 1.
    x = torch.tensor([[[0.0, 5.0], [5.0, 5.0]]], dtype=torch.float64, requires_grad=True)
    y = sc.conv1d("max(x)", x, kernel_size=2, out_channels=1, backend=backend)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[[0.0, 1.0], [0.0, 0.0]]]


def test_max_ties_agree_with_max_pool(backend: str) -> None:
    x = torch.randint(0, 3, (2, 3, 9, 9)).double().requires_grad_()
    ours = sc.pool2d("max(x)", x, 3, stride=2, padding=1, backend=backend)
    theirs = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    direction = torch.randn_like(ours)
    assert torch.equal(ours, theirs)
    assert torch.equal(torch.autograd.grad(ours, x, direction)[0], torch.autograd.grad(theirs, x, direction)[0])


def test_many_channels_keep_the_first_maximum(backend: str) -> None:
    x = torch.ones(1, 40, 70, 70, dtype=torch.float64, requires_grad=True)  # more than one block of channels
    y = sc.conv2d("max(x)", x, kernel_size=3, out_channels=2, stride=3, backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad[:, 1:].abs().sum() == 0
    assert grad[0, 0, ::3, ::3][:23, :23].eq(2).all()


def test_abs_and_sign_at_zero(backend: str) -> None:
    assert window("sum(abs(x))", [0.0, -2.0], backend)[:2] == (2.0, [0.0, -1.0])
    assert window("sum(sign(x))", [0.0, -2.0, 3.0], backend)[:2] == (0.0, [0.0, 0.0, 0.0])


def test_prod_with_zeros(backend: str) -> None:
    assert window("prod(x)", [2.0, 3.0, 4.0], backend)[:2] == (24.0, [12.0, 8.0, 6.0])
    assert window("prod(x)", [2.0, 0.0, 4.0], backend)[:2] == (0.0, [0.0, 8.0, 0.0])
    assert window("prod(x)", [0.0, 0.0, 4.0], backend)[:2] == (0.0, [0.0, 0.0, 0.0])
    # An exponential underflows to an exact zero although SymPy knows that it is positive.
    assert window("prod(exp(x))", [-1e4, 1.0, 2.0], backend)[0] == 0.0


def test_prod_keeps_nan_and_inf_beside_a_zero(backend: str) -> None:
    for bad in (nan, inf):
        assert torch.tensor(window("prod(x)", [0.0, bad], backend)[0]).isnan()


def test_norm_at_zero(backend: str) -> None:
    assert window("norm(x)", [0.0, 0.0], backend)[:2] == (0.0, [0.0, 0.0])
    assert window("norm(x)", [3.0, 4.0], backend)[:2] == (5.0, pytest.approx([0.6, 0.8]))


def test_logsumexp_and_softmax_of_nothing(backend: str) -> None:
    value, grad, _ = window("logsumexp(x)", [-inf, -inf], backend)
    assert (value, grad) == (-inf, [0.0, 0.0])
    value, grad, _ = window("sum(softmax(x))", [-inf, -inf], backend)
    assert (value, grad) == (0.0, [0.0, 0.0])
    value, grad, _ = window("logsumexp(x)", [-inf, 1.0], backend)
    assert (value, grad) == (1.0, [0.0, 1.0])


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 1e4), (torch.float16, 50.0), (torch.bfloat16, 50.0)])
def test_logsumexp_is_shifted(backend: str, dtype: torch.dtype, large: float) -> None:
    for sign in (1, -1):
        value, grad, _ = window("logsumexp(x)", [sign * large, sign * large], backend, dtype=dtype)
        assert value == pytest.approx(sign * large + 0.6931, rel=1e-2)
        assert grad == pytest.approx([0.5, 0.5], rel=1e-3)


def test_logsumexp_finds_a_small_value_behind_minus_infinity(backend: str) -> None:
    assert window("logsumexp(x)", [-inf, -500.0], backend, dtype=torch.float32)[0] == -500.0
    assert window("logsumexp(x)", [inf, -500.0], backend)[0] == inf
    assert torch.tensor(window("logsumexp(x)", [nan, -500.0], backend)[0]).isnan()


def test_where_leaks_nothing_from_the_other_branch(backend: str) -> None:
    assert window("sum(where(x > 0, log(x), 0))", [1.0, 0.0, -1.0], backend)[:2] == (0.0, [1.0, 0.0, 0.0])
    assert window("sum(where(x > 0, sqrt(x), x))", [4.0, 0.0], backend)[:2] == (2.0, [0.25, 1.0])
    assert window("a = 1/x\nsum(where(x == 0, x, a))", [2.0, 0.0], backend)[:2] == (0.5, [-0.25, 1.0])
    value, grad, _ = window("r = sum(x)\nwhere(r > 0, log(r), r)", [-1.0, 0.0], backend)
    assert (value, grad) == (-1.0, [1.0, 1.0])
    # Nor from taps, where the branch is one of the window.
    assert window("where(min(x) > 0, sum(log(x)), 0)", [1.0, 0.0], backend)[:2] == (0.0, [0.0, 0.0])
    assert window("m = max(x)\nwhere(m < 80, log(sum(exp(x))), m)", [1.0, 1e3], backend)[:2] == (1e3, [0.0, 1.0])
    text = "m = min(x)\nwhere(m > 0, sum(log(x)), m)*2 + where(m > 0, norm(1/x), 1)"
    assert window(text, [1.0, 0.0], backend)[:2] == (1.0, [0.0, 2.0])
    text = "sum(where(min(x, dim=t) > 0, exp(mean(log(x), dim=t)), 0), dim=c)"
    assert window(text, [1.0, 0.0], backend)[:2] == (0.0, [0.0, 0.0])


def test_where_leaks_nothing_into_second_derivatives(backend: str) -> None:
    for values, expected in ([1.0, 4.0], [-0.25, 0.0625]), ([1.0, 0.0], [0.0, 0.0]):
        x = torch.tensor([[values]], dtype=torch.float64, requires_grad=True)
        text = "where(min(x) > 0, exp(mean(log(x))), 0)"
        y = sc.conv1d(text, x, kernel_size=2, out_channels=1, backend=backend)
        (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad @ torch.tensor([1.0, 2.0], dtype=x.dtype), x, torch.ones(1, 1).to(x))
        torch.testing.assert_close(second.flatten(), torch.tensor(expected, dtype=x.dtype))


def test_steps_pass_no_gradient_and_say_so(backend: str) -> None:
    for name in ("floor", "ceil", "round", "heaviside"):
        assert window(f"sum({name}(x))", [0.3, 1.7], backend)[1] == [0.0, 0.0]
        assert f"no gradient passes through {name}" in str(sc.Kernel(f"sum({name}(x)*x)"))
    assert "comparisons" in str(sc.Kernel("sum(where(x > 0, x, w))"))
    assert "no gradient" not in str(sc.Kernel("sum(abs(x))"))


def test_a_layer_whose_weight_cannot_learn_warns() -> None:
    with pytest.warns(sc.SymconvWarning, match="gradient of .* for w is 0 everywhere"):
        sc.Conv2d("sum(x*floor(w))", 1, 1, 3)


@pytest.mark.parametrize("formula", ["sum(x)", "prod(x)", "mean(x)", "max(x)", "min(x)", "logsumexp(x)", "norm(x)"])
def test_nan_comes_out(backend: str, formula: str) -> None:
    for position in range(3):
        values = [1.0, 2.0, 3.0]
        values[position] = nan
        assert torch.tensor(window(formula, values, backend)[0]).isnan()


def test_nan_stays_where_it_is(backend: str) -> None:
    x = random(1, 1, 8)
    x[0, 0, 0] = nan
    y = sc.conv1d("max(x + w)", x, random(1, 1, 3), backend=backend)
    assert y.isnan().flatten().tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("condition", "holds"),
    {
        "x == x": [True, False, True, True],
        "~(x != x) & (-inf < x) & (x < inf)": [True, False, False, False],
        "abs(x) < inf": [True, False, False, False],
        "x >= inf": [False, False, True, False],
        "~(x > 0)": [False, True, False, True],
        "exp(x) > 0": [True, False, True, False],
        "(x <= 0) | (w < 0) | (x > 0)": [True, False, True, True],
        "~((x > 0) & (x < inf))": [False, True, True, True],
    }.items(),
)
def test_comparisons_know_inf_and_nan(backend: str, condition: str, holds: list[bool]) -> None:
    text = f"sum(where({condition}, w, 2*w))"
    assert window(text, [1.0, nan, inf, -inf], backend)[2] == [1.0 if each else 2.0 for each in holds]
    assert sc.Kernel(sc.Kernel(text).text) == sc.Kernel(text)


def test_comparisons_of_lines_and_windows_know_inf_and_nan(backend: str) -> None:
    assert window("a = x\nsum(where(a == x, x, 0))", [1.0, nan], backend)[:2] == (1.0, [1.0, 0.0])
    assert window("m = max(x)\nwhere(m == -inf, 3, m)", [-inf], backend)[:2] == (3.0, [0.0])


def test_elementwise_maximum_keeps_nan(backend: str) -> None:
    assert torch.tensor(window("sum(max(x, 0))", [nan], backend)[0]).isnan()
    assert torch.tensor(window("sum(relu(x))", [nan], backend)[0]).isnan()


def test_power_at_zero(backend: str) -> None:
    assert window("prod(abs(x)**w)", [0.0, 2.0], backend, [2.0, 3.0]) == (0.0, [0.0, 0.0], [0.0, 0.0])
    assert window("sum(x**w)", [0.0], backend, [0.0])[1:] == ([0.0], [0.0])
    assert window("d: const = 3\nsum(x)**d", [-2.0], backend)[:2] == (-8.0, [12.0])


def test_whole_numbers_of_more_than_64_bits(backend: str) -> None:
    assert window("sum(x*2**70)", [1.0], backend) == (2.0**70, [2.0**70], None)
    assert window("sum(x*2**-90 - x/2**80)", [1.0], backend) == (2.0**-90 - 2.0**-80, [2.0**-90 - 2.0**-80], None)
    assert window("max(max(min(x, 3**50), -2**64))", [-inf], backend)[0] == -(2.0**64)
    assert window("sum(x*(2**70 + 1)/(2**71 + 1))", [3.0], backend)[:2] == (1.5, [0.5])


@pytest.mark.parametrize(
    ("formula", "value", "slope"),
    [("atan2(x, -1)", 3 * pi / 4, -0.5), ("atan2(1, x)", pi / 4, -0.5), ("atan2(0, -x)", pi, 0.0)],
)
def test_the_angle_of_a_number(backend: str, formula: str, value: float, slope: float) -> None:
    found, (gradient,), _ = window(f"sum({formula})", [1.0], backend)
    assert (found, gradient) == pytest.approx((value, slope))


def test_clip_passes_gradient_at_its_bounds_as_torch(backend: str) -> None:
    assert window("sum(clip(x, -1, 1))", [-2.0, -1.0, 0.0, 1.0, 2.0], backend)[1] == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert window("sum(relu(x))", [-1.0, 0.0, 1.0], backend)[1] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_offsets_count_input_pixels_from_the_centre(backend: str, size: int, dilation: int) -> None:
    x = random(2, 3, 11, 12)
    steps = (torch.arange(size, dtype=x.dtype) - (size - 1) // 2) * dilation
    weight = torch.exp(-steps[None, :].abs() / 3) * (steps[:, None] + 0.5) + steps[None, :]
    ours = sc.conv2d(
        "sum(x*(exp(-abs(dx)/3)*(dy + 0.5) + dx))",
        x,
        kernel_size=size,
        out_channels=1,
        dilation=dilation,
        backend=backend,
    )
    theirs = torch.nn.functional.conv2d(x, weight.expand(1, 3, size, size), dilation=dilation)
    torch.testing.assert_close(ours, theirs)
    volume = random(1, 1, 4, 3, 3)
    ours = sc.conv3d("sum(x*dz)", volume, kernel_size=3, out_channels=1, backend=backend)
    torch.testing.assert_close(ours.flatten(), (volume[0, 0, 2:] - volume[0, 0, :2]).sum((1, 2)))


IDENTITIES = {"sum(x)": 0.0, "prod(x)": 1.0, "max(x)": -inf, "min(x)": inf, "logsumexp(x)": -inf, "mean(x)": 0.0}


@pytest.mark.parametrize("formula", IDENTITIES)
def test_a_window_without_taps_gives_the_identity(backend: str, formula: str) -> None:
    x = random(1, 1, 2).requires_grad_()
    y = sc.conv1d(formula, x, kernel_size=1, out_channels=1, padding=2, padding_mode="ignore", backend=backend)
    assert y[0, 0, 0].item() == y[0, 0, -1].item() == IDENTITIES[formula]
    (grad,) = torch.autograd.grad(y[0, 0, ::5].sum(), x)
    assert grad.tolist() == [[[0.0, 0.0]]]


def test_a_window_without_taps_counts_none(backend: str) -> None:
    x = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    options = {"kernel_size": 1, "out_channels": 1, "padding": 1, "padding_mode": "ignore", "backend": backend}
    for text in ("where(total(1, x) == 0, 7, mean(x))", "where(total(1, x) > 0, sum(x), 7)"):
        assert sc.conv1d(text, x, **options).flatten().tolist() == [7.0, 1.0, 2.0, 7.0]


def test_ignored_taps_do_not_count(backend: str) -> None:
    x = torch.tensor([[[1.0, 2.0, 6.0]]], dtype=torch.float64)
    for formula, expected in {
        "mean(x)": [1.5, 3.0, 4.0],
        "max(-x)": [-1.0, -1.0, -2.0],
        "prod(x)": [2.0, 12.0, 12.0],
        "sum(where(x == 0, 1, 0))": [0.0, 0.0, 0.0],
    }.items():
        y = sc.pool1d(formula, x, 3, stride=1, padding=1, backend=backend)
        torch.testing.assert_close(y.flatten().tolist(), expected)


def test_average_pooling_equals_torch(backend: str) -> None:
    x = random(2, 3, 7, 8)
    ours = sc.pool2d("mean(x)", x, 3, stride=2, padding=1, backend=backend)
    torch.testing.assert_close(ours, torch.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False))
    ours = sc.pool2d("mean(x)", x, 3, stride=2, padding=1, padding_mode="zeros", backend=backend)
    torch.testing.assert_close(ours, torch.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=True))


def test_a_constant_window_has_no_variance(backend: str) -> None:
    x = torch.full((1, 1, 5, 5), 1000.1, dtype=torch.float32)
    y = sc.pool2d("mean((x - mean(x))**2)", x, 3, stride=1, backend=backend)
    assert y.abs().max() < 1e-7


@pytest.mark.parametrize(
    "formula",
    [
        "std(x/(p**2 + 1)) + sum(w/(p**2 + 1))",
        "std(x*p*z) + sum(w*p*z)",
        "std(x + p + z) + sum(w*(p + z))",
        "std(exp(x*p*z)) + sum(w*p*z)",
    ],
)
def test_a_constant_window_has_no_deviation(backend: str, formula: str) -> None:
    """The sweep that takes the mean computes the same of other operands; values must be rounded as in other sweeps."""
    text = "p: param = 0.7\n" + "z: param = 0.3\n" * ("z" in formula) + formula
    x = torch.linspace(0.1, 3, 40)[:, None, None].expand(40, 1, 6).clone().requires_grad_()
    y = sc.conv1d(text, x, torch.ones(1, 1, 3), backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert not grad.any()


def test_quotients_that_are_finite_where_reciprocals_are_not(backend: str) -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    y = sc.conv1d("var(w/x**2)", x * 1e-20, x * 1e-30, backend=backend)
    expected = sc.conv1d("var(w/x**2)", x, x, backend=backend) * 1e20
    torch.testing.assert_close(y, expected, rtol=1e-3, atol=0)  # squares of so few bits


@pytest.mark.parametrize("formula", ["var(x)", "cov(x, x**2)/20000"])
def test_small_deviations_from_a_large_mean(backend: str, formula: str) -> None:
    x = 1e4 + torch.randn(1, 2, 9, 9)
    y = sc.pool2d(formula, x, 5, stride=1, backend=backend)
    expected = sc.pool2d(formula, x.double(), 5, stride=1, backend="torch")
    torch.testing.assert_close(y.double(), expected, rtol=2e-4, atol=0)


def test_weights_of_both_signs(backend: str) -> None:
    """Those of the first two taps add up to nothing, and deviations are from a mean outside of the values."""
    x, w = random(1, 1, 9), torch.tensor([[[1.0, -1.0, 2.0]]], dtype=torch.float64)
    shares, seen = w[0] / w.sum(), x[0, 0].unfold(0, 3, 1)
    deviations = seen - (shares * seen).sum(1, keepdim=True)
    y = sc.conv1d("var(x, weight=w) + 10*cov(x, 2*x, weight=w)", x, w, backend=backend)
    torch.testing.assert_close(y[0, 0], 21 * (shares * deviations**2).sum(1))


def test_third_derivatives(backend: str) -> None:
    x, w = random(1, 1, 3, scale=0.3).requires_grad_(), random(1, 1, 3, scale=0.3).requires_grad_()

    def third(formula: str) -> Tensor:
        y = sc.conv1d(formula, x, w, backend=backend)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return torch.autograd.grad(second.sum(), x)[0]

    expected = (w**3 * -torch.cos(w * x)).flatten()
    torch.testing.assert_close(third("sum(sin(w*x))").flatten(), expected)
    with pytest.raises(DerivativeError, match="third derivatives of prod"):
        third("prod(tan(x + w))")


@pytest.mark.parametrize("formula", ["sum((-2)**x)", "sum(x*(-0.5)**(w*x))", "p: param = 2\nsum((-3)**p*x)"])
def test_powers_of_negative_numbers_have_no_derivative(formula: str) -> None:
    with pytest.raises(DerivativeError, match=r"no real derivative for .: it is a power of a negative number"):
        sc.Kernel(formula).gradients()


def test_whole_powers_of_negative_numbers_are_numbers(backend: str) -> None:
    x = random(1, 2, 3, 3).requires_grad_()
    y = sc.conv2d("p: const = 3\nsum((-1)**t*(-2)**p*x)", x, kernel_size=2, out_channels=1, backend=backend)
    torch.testing.assert_close(y, -8 * (x[..., :-1] - x[..., 1:]).unfold(2, 2, 1).sum((1, -1))[:, None])


def test_results_are_the_same_bits_every_time(backend: str) -> None:
    x, w = torch.randn(3, 8, 20, 20, requires_grad=True), torch.randn(16, 8, 3, 3, requires_grad=True)
    runs = []
    for _ in range(3):
        y = sc.conv2d("logsumexp(sin(w*x))", x, w, padding=1, padding_mode="ignore", backend=backend)
        runs.append((y, *torch.autograd.grad(y.square().sum(), (x, w))))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))


def test_names_that_generated_code_has_too(backend: str) -> None:
    formula = (
        "{0}: param[o, c]\n{1}: input\n{2}: field[o]\n{3}: weight\n{4}: const = 2\n"
        "sum(w*x*{0} + {3}*sin({1})) + {2}*max({4}*x)"
    )
    shapes = (2, 2), (1, 2, 5), (1, 2, 3), (2, 2, 3)
    given = [random(*shape).requires_grad_() for shape in ((1, 2, 5), (2, 2, 3), *shapes)]

    def outcome(names: str) -> list[Tensor]:
        operands = dict(zip(names.split(), given[2:]))
        y = sc.conv1d(formula.format(*names.split()), given[0], given[1], backend=backend, **operands)
        return [y, *torch.autograd.grad(y.sin().sum(), given)]

    expected = outcome("p g q v beta")
    for names in (
        "Bank planes clear vec Range",
        "int Image int_ at at_",
        "offsetof BankSink Inside SYMCONV_PASTE FLAT",
    ):
        assert all(map(torch.equal, outcome(names), expected)), names


def test_an_operand_has_no_name_that_generated_code_makes_of_others() -> None:
    for name in ("x_planes", "w_total", "take", "values", "grad_x", "sum_1"):
        with pytest.raises(FormulaError, match="taken"):
            sc.Kernel(f"{name}: param\nsum(x)*{name}")
    with pytest.raises(FormulaError, match="'q' is taken"):
        sc.Kernel("q_values: param\nq: field\nsum(x)*q*q_values")
    sc.Kernel("values = x*w\nsum(values)")
    sc.Kernel("row_total = sum(x, dim=t)\nmax_values: param\nsum(row_total, dim=c)*max_values")
