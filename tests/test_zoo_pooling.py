"""Pooling of the zoo beside torch's layers, torch.distributions and scipy: values, gradients, ties, saturation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from oracles import random, same_values_and_gradients, windows
from scipy import ndimage
from torch import Tensor, nn

import symconv as sc
from symconv.zoo import GROUPS, OPERATORS

inf, nan = torch.inf, torch.nan

# -- Oracles: whole images, window 3 x 3, stride 2, no border -------------------------------------------------------


def of_windows(function: Callable[..., Any]) -> Callable[..., Tensor]:
    """A function of numpy windows `[..., taps]` and parameters, over a whole image."""

    def whole(x: Tensor, *params: Tensor) -> Tensor:
        seen = windows(x, (3, 3), (2, 2), (1, 1), x.shape[1])[:, :, 0]
        return torch.tensor(function(seen.numpy(), *(each.item() for each in params)))

    return whole


def filtered(one: Callable[..., np.ndarray], **options: Any) -> Callable[[Tensor], Tensor]:
    """A filter of scipy.ndimage over windows of 3 x 3, at the places where a pool of stride 2 has its windows."""
    return lambda x: torch.tensor(one(x.numpy(), size=(1, 1, 3, 3), **options)[..., 1:-1:2, 1:-1:2])


def shares(values: np.ndarray) -> np.ndarray:
    """Softmax over the window."""
    return scipy.special.softmax(values, axis=-1)


def by_magnitude(x: Tensor) -> Tensor:
    """The value at the place where torch finds the largest magnitude."""
    _, places = F.max_pool2d(x.abs(), 3, 2, return_indices=True)
    return x.flatten(2).gather(2, places.flatten(2)).view(places.shape)


# -- Slow expressions for autograd: windows `[..., taps]` and which of their taps lie inside the image ---------------

Taps = Callable[..., Tensor]


def total(values: Tensor, valid: Tensor) -> Tensor:
    """The sum over the valid taps."""
    return torch.where(valid, values, 0.0).sum(-1)


def average(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the valid taps."""
    return total(values, valid) / valid.sum(-1)


def largest(values: Tensor, valid: Tensor) -> Tensor:
    """The maximum of the valid taps."""
    return torch.where(valid, values, -inf).amax(-1)


def softmax(values: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the valid taps."""
    return torch.where(valid, values, -inf).softmax(-1)


def log_sum_exp(values: Tensor, valid: Tensor) -> Tensor:
    """Its denominator's logarithm."""
    return torch.where(valid, values, -inf).logsumexp(-1)


def ordered(values: Tensor, valid: Tensor) -> Tensor:
    """The valid taps, NaN for the others: torch's nanmedian and nanquantile leave them out."""
    return torch.where(valid, values, nan)


def within(values: Tensor, valid: Tensor) -> Tensor:
    """The valid taps, 1 for the others: a value that no power and no logarithm minds."""
    return torch.where(valid, values, 1.0)


@dataclass(frozen=True)
class Case:
    """What an operator must equal.

    Args:
        oracle: the value for x and the parameters, window 3 x 3, stride 2.
        taps: the same over unfolded windows, for the gradients.
        params: values of the learned numbers.
        domain: an interval for x where it is not the whole line.
    """

    oracle: Callable[..., Tensor]
    taps: Taps
    params: tuple[float, ...] = ()
    domain: tuple[float, float] | None = None


CASES: dict[str, Case] = {
    "max_pool": Case(nn.MaxPool2d(3, 2), largest),
    "average_pool": Case(nn.AvgPool2d(3, 2), average),
    "lp_pool": Case(nn.LPPool2d(2, 3, 2), lambda x, valid: total(x**2, valid).sqrt()),
    "generalised_mean": Case(
        of_windows(lambda x, p: scipy.stats.pmean(x, p, axis=-1)),
        lambda x, valid, p: average(within(x, valid) ** p, valid) ** (1 / p),
        params=(2.6,),
        domain=(0.2, 2.0),
    ),
    "log_sum_exp_pool": Case(of_windows(lambda x: scipy.special.logsumexp(x, axis=-1)), log_sum_exp),
    "log_average_exp_pool": Case(
        of_windows(lambda x: scipy.special.logsumexp(x, axis=-1, b=1 / x.shape[-1])),
        lambda x, valid: log_sum_exp(x, valid) - np.log(x.shape[-1]),
    ),
    "soft_pool": Case(
        of_windows(lambda x: np.average(x, weights=shares(x), axis=-1)),
        lambda x, valid: total(x * softmax(x, valid), valid),
    ),
    "auto_pool": Case(
        of_windows(lambda x, alpha: np.average(x, weights=shares(alpha * x), axis=-1)),
        lambda x, valid, alpha: total(x * softmax(alpha * x, valid), valid),
        params=(0.7,),
    ),
    "mixed_pool": Case(
        lambda x, a: a * F.max_pool2d(x, 3, 2) + (1 - a) * F.avg_pool2d(x, 3, 2),
        lambda x, valid, a: a * largest(x, valid) + (1 - a) * average(x, valid),
        params=(0.3,),
    ),
    "magnitude_pool": Case(
        by_magnitude,
        lambda x, valid: x.gather(-1, torch.where(valid, x.abs(), -1).argmax(-1, keepdim=True))[..., 0],
    ),
    "noisy_or_pool": Case(
        of_windows(lambda x: -np.expm1(np.log1p(-x).sum(-1))),
        lambda x, valid: 1 - torch.where(valid, 1 - x, 1.0).prod(-1),
        domain=(0.0, 1.0),
    ),
    "median_pool": Case(filtered(ndimage.median_filter), lambda x, valid: ordered(x, valid).nanmedian(-1).values),
    "quantile_pool": Case(
        filtered(ndimage.percentile_filter, percentile=25),
        lambda x, valid: torch.nanquantile(ordered(x, valid), 0.25, dim=-1),
    ),
    "geometric_mean_pool": Case(
        of_windows(lambda x: scipy.stats.gmean(x, axis=-1)),
        lambda x, valid: torch.where(valid, x, 1.0).prod(-1) ** (1 / valid.sum(-1).to(x)),
        domain=(0.2, 2.0),
    ),
    "harmonic_mean_pool": Case(
        of_windows(lambda x: scipy.stats.hmean(x, axis=-1)),
        lambda x, valid: valid.sum(-1) / total(1 / within(x, valid), valid),
        domain=(0.2, 2.0),
    ),
    "entropy_pool": Case(
        of_windows(lambda x: scipy.stats.entropy(np.exp(x), axis=-1)),
        lambda x, valid: log_sum_exp(x, valid) - total(x * softmax(x, valid), valid),
    ),
}


def operands(name: str, size: tuple[int, int] = (9, 7)) -> list[Tensor]:
    """A random image and the parameters."""
    case = CASES[name]
    x = random(2, 3, *size)
    if case.domain is not None:
        low, high = case.domain
        x = low + (high - low) * torch.rand_like(x)
    return [x, *(torch.tensor(value, dtype=torch.float64) for value in case.params)]


def ours(name: str, x: Tensor, *params: Tensor, **options: Any) -> Tensor:
    """The operator, its parameters in the order of its signature."""
    kernel = OPERATORS[name].kernel
    named = dict(zip(kernel.signature.tensors[1:], params))
    return sc.pool2d(kernel, x, **named, **{"kernel_size": 3, "stride": 2, **options})


def slow(taps: Taps, x: Tensor, *params: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """A pool over unfolded windows; the border is ignored."""
    border = [padding[1]] * 2 + [padding[0]] * 2
    seen, valid = (
        windows(F.pad(image, border), kernel_size, stride, dilation, x.shape[1]) for image in (x, torch.ones_like(x))
    )
    return taps(seen, valid.bool(), *params).flatten(1, 2)


def window(name: str, values: list[float], backend: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple:
    """The value of an operator for one window, and its gradient."""
    x = torch.tensor(values, dtype=dtype).reshape(1, 1, 1, -1).requires_grad_()
    y = sc.pool2d(OPERATORS[name].kernel, x, (1, len(values)), backend=backend, **options)
    return y.item(), torch.autograd.grad(y.sum(), x)[0].flatten().tolist()


def test_every_operator_has_an_oracle() -> None:
    assert set(CASES) == {operator.name for operator in GROUPS["pooling"]}


@pytest.mark.parametrize("name", CASES)
def test_values(backend: str, name: str) -> None:
    tensors = operands(name)
    y = ours(name, *tensors, backend=backend)
    torch.testing.assert_close(y, CASES[name].oracle(*tensors), rtol=1e-12, atol=1e-12)


GEOMETRIES = {
    "whole": {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)},
    "border": {"kernel_size": (3, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 1)},
    "dilated": {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 2), "dilation": (2, 2)},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", CASES)
def test_gradients(backend: str, name: str, geometry: str) -> None:
    options: dict[str, Any] = GEOMETRIES[geometry]
    same_values_and_gradients(
        lambda *tensors: ours(name, *tensors, **options, backend=backend),
        lambda *tensors: slow(CASES[name].taps, *tensors, **options),
        operands(name),
    )


@pytest.mark.parametrize("name", CASES)
def test_unbatched_input(backend: str, name: str) -> None:
    x, *params = operands(name)
    whole = ours(name, x, *params, padding=1, backend=backend)
    torch.testing.assert_close(ours(name, x[1], *params, padding=1, backend=backend), whole[1])


# -- Further oracles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_maximum_and_mean_equal_torch_in_every_rank(backend: str, rank: int) -> None:
    ours = (sc.pool1d, sc.pool2d, sc.pool3d)[rank - 1]
    x = random(2, 3, *(9, 8, 7)[:rank])
    for name, theirs in (
        ("max_pool", (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]),
        ("average_pool", (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]),
    ):
        options = {"count_include_pad": False} if name == "average_pool" else {}
        same_values_and_gradients(
            lambda x, name=name: ours(OPERATORS[name].kernel, x, 3, 2, 1, backend=backend),
            lambda x, theirs=theirs, options=options: theirs(x, 3, 2, 1, **options),
            (x,),
        )


@pytest.mark.parametrize(("mode", "counted"), [("ignore", False), ("zeros", True)])
def test_average_counts_the_border_or_not(backend: str, mode: str, counted: bool) -> None:
    theirs = nn.AvgPool2d(3, 2, 1, count_include_pad=counted)
    same_values_and_gradients(
        lambda x: ours("average_pool", x, padding=1, padding_mode=mode, backend=backend), theirs, operands("max_pool")
    )


@pytest.mark.parametrize("p", [1, 2, 3, 4, 2.5])
def test_lp_equals_torch(backend: str, p: float) -> None:
    x = operands("generalised_mean")[0]  # above 0
    same_values_and_gradients(lambda x: ours("lp_pool", x, p=p, backend=backend), nn.LPPool2d(float(p), 3, 2), (x,))


@pytest.mark.parametrize("size", [2, 3])
def test_median_equals_torch_and_the_lower_rank(backend: str, size: int) -> None:
    (x,) = operands("median_pool", (8, 8))
    options = {"kernel_size": size, "stride": 1, "backend": backend}
    seen = windows(x, (size, size), (1, 1), (1, 1), 3)[:, :, 0]
    torch.testing.assert_close(ours("median_pool", x, **options), seen.median(-1).values, rtol=0, atol=0)
    rank = (size * size - 1) // 2
    theirs = ndimage.rank_filter(x.numpy(), rank, size=(1, 1, size, size))[..., size // 2 :, size // 2 :]
    count = 8 - size + 1
    torch.testing.assert_close(
        ours("median_pool", x, **options), torch.tensor(theirs[..., :count, :count]), rtol=0, atol=0
    )


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [2, 3])
def test_quantiles_interpolate_as_torch_and_numpy(backend: str, q: float, size: int) -> None:
    (x,) = operands("quantile_pool", (8, 8))
    seen = windows(x, (size, size), (1, 1), (1, 1), 3)[:, :, 0]
    kernel = OPERATORS["quantile_pool"].kernel if q == 0.25 else f"quantile(x, {q})"
    y = sc.pool2d(kernel, x, size, 1, backend=backend)
    torch.testing.assert_close(y, torch.quantile(seen, q, dim=-1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(y, torch.tensor(np.quantile(seen.numpy(), q, axis=-1)), rtol=1e-13, atol=1e-13)
    same_values_and_gradients(
        lambda x: sc.pool2d(kernel, x, size, 1, backend=backend),
        lambda x: torch.quantile(windows(x, (size, size), (1, 1), (1, 1), 3)[:, :, 0], q, dim=-1),
        (x,),
    )


def test_entropy_equals_the_categorical_distribution(backend: str) -> None:
    same_values_and_gradients(
        lambda x: ours("entropy_pool", x, backend=backend),
        lambda x: torch.distributions.Categorical(logits=windows(x, (3, 3), (2, 2), (1, 1), 3)[:, :, 0]).entropy(),
        operands("entropy_pool"),
    )


@pytest.mark.parametrize("r", [0.1, 3.0, -2.0])
def test_sharpness_of_the_smooth_maxima(backend: str, r: float) -> None:
    (x,) = operands("log_sum_exp_pool")
    theirs = of_windows(lambda x: scipy.special.logsumexp(r * x, axis=-1) / r)(x)
    torch.testing.assert_close(ours("log_sum_exp_pool", x, r=r, backend=backend), theirs)
    y = ours("log_average_exp_pool", x, r=r, backend=backend)
    torch.testing.assert_close(y, theirs - np.log(9) / r)


@pytest.mark.parametrize("r", [0.5, 1.0, 20.0])
def test_log_sum_exp_lies_above_the_maximum_by_up_to_log_t_over_r(backend: str, r: float) -> None:
    (x,) = operands("log_sum_exp_pool")
    excess = ours("log_sum_exp_pool", x, r=r, backend=backend) - F.max_pool2d(x, 3, 2)
    assert (excess >= 0).all()
    assert (excess <= np.log(9) / r).all()
    level = ours("log_sum_exp_pool", torch.zeros_like(x), r=r, backend=backend)
    torch.testing.assert_close(level, torch.full_like(level, np.log(9) / r))
    # What Pinheiro and Collobert (2015) publish: the mean of the exponentials.
    mean = F.avg_pool2d((r * x).exp(), 3, 2).log() / r
    torch.testing.assert_close(ours("log_average_exp_pool", x, r=r, backend=backend), mean)


def test_log_average_exp_goes_from_the_mean_to_the_maximum(backend: str) -> None:
    (x,) = operands("log_average_exp_pool")
    y = ours("log_average_exp_pool", x, r=1e-6, backend=backend)
    torch.testing.assert_close(y, F.avg_pool2d(x, 3, 2), rtol=0, atol=1e-5)
    y = ours("log_average_exp_pool", x, r=1e6, backend=backend)
    torch.testing.assert_close(y, F.max_pool2d(x, 3, 2), rtol=0, atol=1e-5)


# -- Traps ---------------------------------------------------------------------------------------------------------

#: The value of a window without a tap.
EMPTY = {
    "max_pool": -inf,
    "average_pool": 0.0,
    "lp_pool": 0.0,
    "log_sum_exp_pool": -inf,
    "soft_pool": 0.0,
    "auto_pool": 0.0,
    "mixed_pool": -inf,
    "noisy_or_pool": 0.0,
    "median_pool": 0.0,
    "quantile_pool": 0.0,
    "entropy_pool": 0.0,
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_window_outside_the_image(backend: str, name: str) -> None:
    x, *params = operands(name)
    x.requires_grad_()
    y = ours(name, x, *params, stride=1, padding=4, backend=backend)
    assert (y[..., 0, :] == EMPTY[name]).all()
    assert y[..., 2:-2, 2:-2].isfinite().all()
    assert (torch.autograd.grad(y[..., 0, :].sum(), x)[0] == 0).all()


@pytest.mark.parametrize("padding", [0, 1])
def test_a_tie_goes_to_the_first_tap(backend: str, padding: int) -> None:
    x = torch.randint(0, 3, (2, 3, 9, 7)).double()
    same_values_and_gradients(
        lambda x: ours("max_pool", x, padding=padding, backend=backend), nn.MaxPool2d(3, 2, padding), (x,)
    )


def test_order_statistics_give_a_tie_to_the_first_tap(backend: str) -> None:
    assert window("median_pool", [3, 2, 1, 2, 2], backend) == (2, [0, 1, 0, 0, 0])
    assert window("median_pool", [2, 2, 2, 4], backend) == (2, [1, 0, 0, 0])
    assert window("quantile_pool", [3, 1, 1, 2, 5], backend) == (1, [0, 1, 0, 0, 0])
    assert window("quantile_pool", [2, 2, 2, 2], backend) == (2, [1, 0, 0, 0])


def test_the_median_of_an_even_count_is_the_lower_one(backend: str) -> None:
    assert window("median_pool", [4, 2, 1, 3], backend) == (2, [0, 1, 0, 0])
    x = torch.tensor([[[[4.0, 2.0, 1.0]]]])
    y = sc.pool2d(OPERATORS["median_pool"].kernel, x, (1, 3), 1, (0, 1), backend=backend)
    assert y.flatten().tolist() == [2, 2, 1], "ignored taps do not count"


def test_a_quantile_shares_its_gradient_between_two_taps(backend: str) -> None:
    assert window("quantile_pool", [4, 2, 1, 3], backend) == (1.75, [0, 0.75, 0.25, 0])
    assert window("quantile_pool", [4, 2, 1, 3, 5], backend) == (2, [0, 1, 0, 0, 0])


def test_magnitude_keeps_the_sign(backend: str) -> None:
    assert window("magnitude_pool", [1, -3, 2], backend) == (-3, [0, 1, 0])
    assert window("magnitude_pool", [-2, 3, 2], backend) == (3, [0, 1, 0])
    assert window("magnitude_pool", [-3, 3], backend) == (3, [0, 1]), "the positive one of a tie"


@pytest.mark.parametrize("p", [2, 3])
def test_lp_of_a_blank_window_as_torch(backend: str, p: int) -> None:
    x = torch.zeros(1, 1, 1, 3, dtype=torch.float64, requires_grad=True)
    y = F.lp_pool2d(x, float(p), (1, 3))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert window("lp_pool", [0, 0, 0], backend, p=p) == (y.item(), gradient.flatten().tolist())


def test_lp_of_a_negative_sum_has_no_root(backend: str) -> None:
    assert window("lp_pool", [-1, -2], backend)[0] == pytest.approx(5**0.5)
    assert np.isnan(window("lp_pool", [-1, -2], backend, p=3)[0])
    assert F.lp_pool2d(torch.tensor([[[[-1.0, -2.0]]]]), 3.0, (1, 2)).isnan().all()


def test_generalised_mean_has_a_floor(backend: str) -> None:
    value, gradient = window("generalised_mean", [-1, 0, 1e-7], backend)
    assert value == pytest.approx(1e-6)
    assert gradient == [0, 0, 0]
    value, gradient = window("generalised_mean", [-1, 2], backend)
    assert value == pytest.approx(4 ** (1 / 3))
    assert gradient == [0, pytest.approx(4 ** (-2 / 3) * 2)]


#: Values that overflow exp, by the type that they overflow in, and the accuracy to ask for.
LARGE = [(torch.float32, 100.0, 1e-5), (torch.float32, 1e4, 1e-5), (torch.float16, 50.0, 2e-3)]
LARGE += [(torch.bfloat16, 50.0, 1e-2)]


@pytest.mark.parametrize(("dtype", "large", "tolerance"), LARGE)
@pytest.mark.parametrize("name", ["soft_pool", "auto_pool", "entropy_pool"])
def test_softmax_of_large_values(backend: str, name: str, dtype: torch.dtype, large: float, tolerance: float) -> None:
    expected, slope = (np.log(2), 0) if name == "entropy_pool" else (large, 0.5)
    value, gradient = window(name, [large, -large, large], backend, dtype)
    assert value == pytest.approx(expected, rel=tolerance)
    assert gradient == pytest.approx([slope, 0, slope], rel=0, abs=10 * tolerance)
    expected, slope = (np.log(3), 0) if name == "entropy_pool" else (-large, 1 / 3)
    value, gradient = window(name, [-large] * 3, backend, dtype)
    assert value == pytest.approx(expected, rel=tolerance)
    assert gradient == pytest.approx([slope] * 3, rel=0, abs=10 * tolerance)


@pytest.mark.parametrize(("dtype", "large", "tolerance"), LARGE)
@pytest.mark.parametrize(("name", "constant"), [("log_sum_exp_pool", 2), ("log_average_exp_pool", 2 / 3)])
def test_smooth_maxima_of_large_values(
    backend: str, name: str, constant: float, dtype: torch.dtype, large: float, tolerance: float
) -> None:
    value, gradient = window(name, [large, -large, large], backend, dtype)
    assert value == pytest.approx(large + np.log(constant), rel=tolerance)
    assert gradient == pytest.approx([0.5, 0, 0.5], rel=0, abs=1e-2)  # torch.logsumexp errs by 1e-4 here
    value, _ = window(name, [-large] * 3, backend, dtype)
    assert value == pytest.approx(-large + np.log(3 * constant / 2), rel=tolerance)


@pytest.mark.parametrize("name", ["log_sum_exp_pool", "log_average_exp_pool"])
def test_sharp_smooth_maxima_do_not_overflow(backend: str, name: str) -> None:
    value, gradient = window(name, [1.0, 3.0, 2.0], backend, torch.float32, r=1e4)
    assert value == pytest.approx(3.0, abs=1e-3)
    assert gradient == pytest.approx([0, 1, 0], abs=1e-3)


def test_auto_pool_goes_from_the_minimum_to_the_maximum(backend: str) -> None:
    (x, alpha) = operands("auto_pool")
    low, mean, high = (ours("auto_pool", x, alpha * 0 + value, backend=backend) for value in (-1e6, 0.0, 1e6))
    torch.testing.assert_close(low, -F.max_pool2d(-x, 3, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(mean, F.avg_pool2d(x, 3, 2))
    torch.testing.assert_close(high, F.max_pool2d(x, 3, 2), rtol=0, atol=1e-5)


def test_log_average_exp_counts_ignored_taps(backend: str) -> None:
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    y = ours("log_average_exp_pool", x, stride=1, padding=1, backend=backend)
    assert y[0, 0, 1, 1].item() == pytest.approx(0, abs=1e-15)
    assert y[0, 0, 0, 0].item() == pytest.approx(np.log(4 / 9))


def test_mixed_pool_extrapolates(backend: str) -> None:
    (x, a) = operands("mixed_pool")
    y = ours("mixed_pool", x, a * 0 + 2, backend=backend)
    torch.testing.assert_close(y, 2 * F.max_pool2d(x, 3, 2) - F.avg_pool2d(x, 3, 2))


def test_noisy_or_saturates(backend: str) -> None:
    assert window("noisy_or_pool", [0.0, 0.0], backend) == (0, [1, 1])
    assert window("noisy_or_pool", [1.0, 0.25, 0.5], backend) == (1, [0.375, 0, 0]), "one event is certain"
    assert window("noisy_or_pool", [1.0, 1.0, 0.5], backend) == (1, [0, 0, 0])
    value, gradient = window("noisy_or_pool", [0.9] * 400, backend, torch.float32)
    assert value == 1
    assert gradient == [0] * 400, "the product of 399 factors underflows"


def test_entropy_is_bounded(backend: str) -> None:
    value, gradient = window("entropy_pool", [7.0] * 9, backend)
    assert value == pytest.approx(np.log(9))
    assert gradient == pytest.approx([0] * 9, abs=1e-15)
    value, gradient = window("entropy_pool", [0.0, -2000.0], backend)
    assert (value, gradient) == (0, [0, 0]), "a share that underflows to 0 has no logarithm"


def test_geometric_and_harmonic_means_at_the_edge_of_their_domain(backend: str) -> None:
    tiny, _ = window("geometric_mean_pool", [1e-30] * 16, backend, torch.float32)
    assert tiny == pytest.approx(1e-30, rel=1e-4), "no product that underflows"
    assert window("geometric_mean_pool", [0.0, 2.0], backend)[0] == 0
    assert window("harmonic_mean_pool", [0.0, 2.0], backend)[0] == 0
    assert np.isnan(window("geometric_mean_pool", [-1.0, 2.0], backend)[0])
