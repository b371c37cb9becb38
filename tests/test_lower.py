"""Schedules: what is swept, and what is kept from the forward to the backward pass."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import symconv as sc
from symconv.accumulators import EXPONENTIALS, MAX, MEAN, SUM
from symconv.geometry import Geometry
from symconv.keep import merged
from symconv.language.axes import Value
from symconv.lower import lower
from symconv.reference import reference

#: Formulas whose gradients are made of fewer values than the forward pass accumulates, and how many they keep.
MERGED = {
    "sum(exp(x*w))*sum(x + w)/(var(x) + var(w) + 0.1)": 5,
    "(max(x) - mean(x))**3": 2,
    "s: const = 0.5\n(s*sum(x) + sum(tanh(x*w)))**3": 1,
    "(sum(abs(x)) + sum(w**2))**3 + (sum(exp(x)) - mean(w))**3": 2,
}


@pytest.mark.parametrize("backend", ["torch", "cpp", "cuda-emu"])
@pytest.mark.parametrize("formula", MERGED)
def test_gradients_of_merged_values(formula: str, backend: str) -> None:
    """Against the gradients of the reference; nothing is kept but what the gradients ask for."""
    kernel = sc.Kernel(formula)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    given = {"x": x, "w": w} if "w" in formula else {"x": x}
    geometry = Geometry((3, 3), 3, (1, 1), ((1, 1), (1, 1)), (1, 1), 1, True)
    sizes = {} if "w" in given else {"kernel_size": 3, "out_channels": 3}
    expected = reference(kernel, {**given, "s": 0.5}, geometry)
    found = sc.conv2d(kernel, *given.values(), **sizes, padding=1, padding_mode="ignore", backend=backend)
    torch.testing.assert_close(found, expected)
    slopes = (torch.autograd.grad(each.sin().sum(), [*given.values()]) for each in (found, expected))
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(("formula", "count"), MERGED.items())
def test_how_many_values_are_kept(formula: str, count: int) -> None:
    schedule = lower(sc.Kernel(formula).formula)
    assert len(schedule.kept) == count
    assert schedule.made


def test_structural_similarity_keeps_four_values() -> None:
    assert [each.name for each in lower(sc.zoo.ssim.formula).kept] == ["mean_1", "mean_2", "sum_5", "kept_1"]


def test_what_is_used_elsewhere_is_kept_as_it_is() -> None:
    a, b, c = map(Value, ("sum_1", "sum_2", "sum_3"))
    assert merged([a + b, a * b], [a, b], [])[1] == {}
    assert merged([a + b, 1 / (a + b), c], [a, b, c], [])[1] == {Value("kept_1"): a + b}
    # Of a part and what contains it the one that spares more, and then the simpler one.
    exprs, made = merged([(a + b) * c + 1], [a, b, c], [])
    assert list(exprs) == [Value("kept_1") + 1]
    assert made == {Value("kept_1"): (a + b) * c}


@pytest.mark.parametrize("formula", ["var(x)", "std(x)", "cov(x, w)", "cov(x, w)/(std(x)*std(w) + 1)", "var(x*w)"])
def test_a_gradient_accumulates_no_mean_again(formula: str) -> None:
    """Deviations are from means that the forward pass took."""
    schedule = lower(sc.Kernel(formula).formula)
    assert [{each.kind for each in sweep.accumulators} for sweep in schedule.forward] == [{MEAN}, {SUM}]
    assert not any(sweep.accumulators for sweep in schedule.backward)


def test_one_mean_of_a_guide_serves_all() -> None:
    """An image g may have one channel, which x's channels share; it has the same mean for all of them."""
    schedule = lower(sc.zoo.ssim.formula)
    assert Counter(each.kind for sweep in schedule.forward for each in sweep.accumulators) == {MEAN: 2, SUM: 3}


def exponentials(formula: str) -> list[int]:
    """How many exponentials a tap takes in each sweep of the forward pass."""
    return [sweep.taps.operations["exp"] for sweep in lower(sc.Kernel(formula).formula).forward]


@pytest.mark.parametrize(
    "formula", ["sum(x*softmax(x))", "mean(x, weight=softmax(x + w))", "sum(w*sum((x - 1)*softmax(x, dim=t), dim=t))"]
)
def test_a_sum_weighted_by_softmax_takes_one_exponential(formula: str) -> None:
    assert sum(exponentials(formula)) == 1
    assert all(
        each.kind is not EXPONENTIALS
        for sweep in lower(sc.Kernel(formula).formula).forward
        for each in sweep.accumulators
    )


@pytest.mark.parametrize("formula", ["sum(x*softmax(x))", "logsumexp(x + w)", "sum(w*softmax(x))"])
def test_gradients_divide_by_the_sum_of_exponentials(formula: str) -> None:
    """Once per window, where its logarithm would take as long as the exponential of a tap."""
    backward = lower(sc.Kernel(formula).formula).backward
    operations = sum((block.operations for each in backward for block in (each.before, each.taps)), Counter())
    assert operations["log"] == 0
    assert operations["exp"] > 0


@pytest.mark.parametrize(
    "formula",
    [
        "logsumexp(x) + sum(x*softmax(x)) + b",
        "logsumexp(x*w) - sum(x*softmax(x*w))",  # softmax comes first
        "norm(softmax(x)) + b",
        "sum(w*softmax(x)**2)",
        "sum(x*softmax(x*w, dim=t))",
    ],
)
def test_softmax_accumulates_exponentials_where_no_sum_shares_them(formula: str) -> None:
    first, second = lower(sc.Kernel(formula).formula).forward
    assert [each.kind for each in first.accumulators] == [EXPONENTIALS]
    assert [each.kind for each in second.accumulators] == [SUM]


@pytest.mark.parametrize("formula", ["logsumexp(x)", "logsumexp(x) + sum(x*softmax(x))", "norm(softmax(x))"])
def test_without_filters_a_maximum_goes_before_its_exponentials(formula: str) -> None:
    first, *later = lower(sc.Kernel(formula).formula).forward
    assert [each.kind for each in first.accumulators] == [MAX]
    assert {each.kind for sweep in later for each in sweep.accumulators} == {SUM}


@pytest.mark.parametrize("backend", ["torch", "cpp", "cuda-emu"])
def test_sums_weighted_by_softmax_are_as_large_as_their_values(backend: str) -> None:
    x = torch.full((1, 1, 5, 5), 2e38)
    y = sc.conv2d("sum(x*softmax(0*x))", x, kernel_size=5, out_channels=1, backend=backend)
    torch.testing.assert_close(y, torch.full_like(y, 2e38))
    y = sc.conv2d("sum(exp(x)*softmax(x))", torch.full_like(x, 87.0), kernel_size=5, out_channels=1, backend=backend)
    torch.testing.assert_close(y, torch.full_like(y, 87.0).exp(), rtol=1e-4, atol=0)


def test_a_difference_from_a_logarithm_is_no_share() -> None:
    x, w, b = torch.full((1, 1, 2, 2), 1000.0), torch.ones(1, 1, 2, 2), torch.tensor([1000.0])
    assert sc.conv2d("sum(w*exp(x - shift(b)))", x, w, b, backend="torch").item() == 4


@pytest.mark.parametrize("backend", ["torch", "cpp", "cuda-emu"])
@pytest.mark.parametrize("value", [1e30, -1e30, torch.inf, -torch.inf, torch.nan, 0.0])
def test_shares_of_extreme_values(value: float, backend: str) -> None:
    """As PyTorch's softmax, but a window of nothing but -inf has no shares where that gives NaN."""
    x = torch.linspace(-90, 90, 36).view(1, 1, 6, 6)
    x[..., 2, 2] = value
    taps = torch.nn.functional.unfold(x, 3)
    expected = (torch.where(taps.isinf(), taps.sign() * 2, taps.clamp(-2, 2)) * taps.softmax(1)).sum(1)
    y = sc.conv2d("sum(clip(x, -2, 2)*softmax(x))", x, kernel_size=3, out_channels=1, backend=backend)
    torch.testing.assert_close(y.flatten(1), expected, equal_nan=True)
    nothing = torch.full((1, 1, 3, 3), -torch.inf)
    y = sc.conv2d("sum(clip(x, -2, 2)*softmax(x))", nothing, kernel_size=3, out_channels=1, backend=backend)
    assert y.item() == 0


@pytest.mark.parametrize(
    ("formula", "bounded"),
    [
        ("sum(w*x)", True),
        ("sum(w*x/(1 + x**2))", True),
        ("sum(w*sqrt(1 + x**2))", True),
        ("sum(w*x/(1 + x))", False),
        ("sum(w*x/(1e-30 + x**2))", False),
        ("sum(x/(w**2 - 1))", False),
        ("sum(w*sqrt(x))", False),
        ("sum(w*exp(x))", False),
    ],
)
def test_whether_taps_are_finite_wherever_pixels_and_weights_are(formula: str, bounded: bool) -> None:
    assert [sweep.is_bounded for sweep in lower(sc.Kernel(formula).formula, lift=True).backward] == [bounded]
