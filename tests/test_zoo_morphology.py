"""Morphology of the zoo beside scipy.ndimage, kornia and conv2d: values, gradients, ties, empty windows, overflow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import random, same_values_and_gradients, weights, windows
from scipy import ndimage
from torch import Tensor

import symconv as sc
from symconv.zoo import GROUPS, OPERATORS

inf, nan = torch.inf, torch.nan

# -- Oracles: scipy over whole images, one channel and one filter at a time ----------------------------------------


def per_channel(one: Callable[..., np.ndarray], combine: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """A filter of one plane by one element, over batches, channels and filters; `combine` joins the channels."""

    def whole(x: Tensor, w: Tensor) -> Tensor:
        images, elements = x.numpy(), w.numpy()
        planes = [
            [combine([one(plane, each) for plane, each in zip(image, element)], axis=0) for element in elements]
            for image in images
        ]
        return torch.tensor(np.array(planes))

    return whole


def depthwise(filters: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The same with one filter for each channel."""
    return lambda x, w: torch.cat([filters(x[:, c : c + 1], w[c : c + 1]) for c in range(x.shape[1])], 1)


def dilated(plane: np.ndarray, element: np.ndarray) -> np.ndarray:
    """max(x + w); scipy turns the element of a dilation around."""
    return ndimage.grey_dilation(plane, structure=element[::-1, ::-1], mode="constant", cval=-np.inf)


def eroded(plane: np.ndarray, element: np.ndarray) -> np.ndarray:
    """min(x - w)."""
    return ndimage.grey_erosion(plane, structure=element, mode="constant", cval=np.inf)


def capped(plane: np.ndarray, element: np.ndarray) -> np.ndarray:
    """max(min(x, w))."""
    flat = element.ravel()
    return ndimage.generic_filter(
        plane, lambda seen: np.minimum(seen, flat).max(), size=element.shape, mode="constant", cval=-np.inf
    )


dilation, erosion = per_channel(dilated, np.max), per_channel(eroded, np.min)


def log_conv(x: Tensor, w: Tensor, mu: float) -> Tensor:
    """logsumexp(mu*(x + w))/mu: a convolution of exponentials."""
    return F.conv2d((mu * x).exp(), (mu * w).exp(), padding=1).log() / mu


# -- Slow expressions for autograd: unfolded windows and which of their taps lie inside the image -------------------

Taps = Callable[..., Tensor]


def largest(values: Tensor, valid: Tensor) -> Tensor:
    """The maximum over the valid taps."""
    return torch.where(valid, values, -inf).amax(-1)


def smallest(values: Tensor, valid: Tensor) -> Tensor:
    """The minimum over the valid taps."""
    return torch.where(valid, values, inf).amin(-1)


def log_sum_exp(values: Tensor, valid: Tensor) -> Tensor:
    """The same, softly."""
    return torch.where(valid, values, -inf).logsumexp(-1)


def total(values: Tensor, valid: Tensor) -> Tensor:
    """The sum over the valid taps."""
    return torch.where(valid, values, 0.0).sum(-1)


def by_channel(values: Tensor, valid: Tensor) -> Tensor:
    """The sum over channels of the maximum over taps."""
    taps = values.unflatten(-1, (-1, 9)), valid.expand_as(values).unflatten(-1, (-1, 9))
    return largest(*taps).sum(-1)


def slow(taps: Taps, *tensors: Tensor, stride: int, padding: int, dilation: int, groups: int) -> Tensor:
    """A layer over unfolded windows: `taps(windows, valid, *weights and numbers)` reduces the last axis."""
    x, *others = tensors
    shape = others[0].shape[2:], (stride, stride), (dilation, dilation)
    seen, valid = (windows(F.pad(image, [padding] * 4), *shape, groups) for image in (x, x.new_ones(1, *x.shape[1:])))
    others = [weights(each, groups) if each.dim() == 4 else each for each in others]
    return taps(seen, valid.bool(), *others).flatten(1, 2)


@dataclass(frozen=True)
class Case:
    """What an operator must equal.

    Args:
        oracle: the value for x, the weights and the parameters, stride 1, a border of one pixel that is ignored.
        taps: the same over unfolded windows, for the gradients.
        params: values of the learned numbers.
        positive: whether x and the weights must be above 0.
        depthwise: whether there is one filter for each channel.
    """

    oracle: Callable[..., Tensor]
    taps: Taps
    params: tuple[float, ...] = ()
    positive: bool = False
    depthwise: bool = False


CASES: dict[str, Case] = {
    "dilation": Case(dilation, lambda x, valid, w: largest(x + w, valid)),
    "erosion": Case(erosion, lambda x, valid, w: smallest(x - w, valid)),
    "morphological_gradient": Case(
        lambda x, w: dilation(x, w) - erosion(x, w),
        lambda x, valid, w: largest(x + w, valid) - smallest(x - w, valid),
    ),
    "external_gradient": Case(
        lambda x, w: depthwise(dilation)(x, w) - x,
        lambda x, valid, w: largest(x + w, valid) - x[..., 4],
        depthwise=True,
    ),
    "internal_gradient": Case(
        lambda x, w: x - depthwise(erosion)(x, w),
        lambda x, valid, w: x[..., 4] - smallest(x - w, valid),
        depthwise=True,
    ),
    "soft_dilation": Case(
        lambda x, w: log_conv(x, w, 5.0),
        lambda x, valid, w: log_sum_exp(5 * (x + w), valid) / 5,
    ),
    "p_convolution": Case(
        lambda x, w, p: F.conv2d(x ** (p + 1), w, padding=1) / F.conv2d(x**p, w, padding=1),
        lambda x, valid, w, p: (
            total(w * torch.where(valid, x, 1.0) ** (p + 1), valid) / total(w * torch.where(valid, x, 1.0) ** p, valid)
        ),
        params=(1.7,),
        positive=True,
    ),
    "tropical": Case(per_channel(dilated, np.sum), lambda x, valid, w: by_channel(x + w, valid)),
    "tropical_metric": Case(
        lambda x, w: dilation(x, -w) - erosion(x, w),
        lambda x, valid, w: largest(x - w, valid) - smallest(x - w, valid),
    ),
    "max_min": Case(per_channel(capped, np.max), lambda x, valid, w: largest(torch.minimum(x, w), valid)),
    "hit_or_miss": Case(
        lambda x, w, v: erosion(x, w) - dilation(x, v),
        lambda x, valid, w, v: smallest(x - w, valid) - largest(x + v, valid),
    ),
    "root_semifield": Case(
        lambda x, w, p: F.conv2d(x**p, w**p, padding=1) ** (1 / p),
        lambda x, valid, w, p: total((torch.where(valid, x, 1.0) * w) ** p, valid) ** (1 / p),
        params=(2.3,),
        positive=True,
    ),
    "log_semifield": Case(
        lambda x, w: log_conv(x, w, 1.0),
        lambda x, valid, w: log_sum_exp(x + w, valid),
    ),
}


def ours(name: str, x: Tensor, *operands: Tensor, **options: Any) -> Tensor:
    """The operator, its weights and parameters in the order of its signature; the border is ignored."""
    kernel = OPERATORS[name].kernel
    named = dict(zip(kernel.signature.tensors[1:], operands))
    return sc.conv2d(kernel, x, named.pop("w"), **named, **{"padding": 1, "padding_mode": "ignore", **options})


def operands(name: str, groups: int = 1, filters: int = 6) -> list[Tensor]:
    """Random x, weights and parameters."""
    case = CASES[name]
    groups, filters = (3, 3) if case.depthwise else (groups, filters)
    roles = OPERATORS[name].kernel.signature.roles
    tensors = [random(2, 3, 8, 7), *(random(filters, 3 // groups, 3, 3) for _ in range(roles.count("weight")))]
    if case.positive:
        tensors = [0.3 + tensor.abs() for tensor in tensors]
    return [*tensors, *(torch.tensor(value, dtype=torch.float64) for value in case.params)]


def test_every_operator_has_an_oracle() -> None:
    assert set(CASES) == {operator.name for operator in GROUPS["morphology"]}


@pytest.mark.parametrize("name", CASES)
def test_values(backend: str, name: str) -> None:
    case, tensors = CASES[name], operands(name)
    y = ours(name, *tensors, groups=3 if case.depthwise else 1, backend=backend)
    torch.testing.assert_close(y, case.oracle(*tensors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("geometry", [(1, 1, 1, 1), (2, 2, 2, 3)], ids=["plain", "strided, dilated, grouped"])
@pytest.mark.parametrize("name", CASES)
def test_gradients(backend: str, name: str, geometry: tuple[int, int, int, int]) -> None:
    case = CASES[name]
    stride, padding, dilation, groups = geometry
    groups = 3 if case.depthwise else groups
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    same_values_and_gradients(
        lambda *tensors: ours(name, *tensors, **options, backend=backend),
        lambda *tensors: slow(case.taps, *tensors, **options),
        operands(name, groups),
    )


@pytest.mark.parametrize("name", CASES)
def test_unbatched_input(backend: str, name: str) -> None:
    x, *others = operands(name)
    groups = 3 if CASES[name].depthwise else 1
    whole = ours(name, x, *others, groups=groups, backend=backend)
    torch.testing.assert_close(ours(name, x[1], *others, groups=groups, backend=backend), whole[1])


# -- Further oracles -----------------------------------------------------------------------------------------------


def one_channel() -> tuple[Tensor, Tensor]:
    """An image of one channel and an element that is not symmetric."""
    return random(2, 1, 9, 8), random(1, 1, 3, 3)


def test_dilation_and_erosion_equal_kornia(backend: str) -> None:
    x, w = one_channel()
    flat = torch.ones(3, 3, dtype=torch.float64)
    y = kornia.morphology.dilation(x, flat, structuring_element=w[0, 0].flip(0, 1))
    torch.testing.assert_close(ours("dilation", x, w, backend=backend), y, rtol=0, atol=0)
    y = kornia.morphology.erosion(x, flat, structuring_element=w[0, 0])
    torch.testing.assert_close(ours("erosion", x, w, backend=backend), y, rtol=0, atol=0)


def test_gradients_of_dilation_and_erosion_equal_kornia(backend: str) -> None:
    x, w = one_channel()
    flat = torch.ones(3, 3, dtype=torch.float64)
    same_values_and_gradients(
        lambda x, w: ours("dilation", x, w, backend=backend),
        lambda x, w: kornia.morphology.dilation(x, flat, structuring_element=w[0, 0].flip(0, 1)),
        (x, w),
    )
    same_values_and_gradients(
        lambda x, w: ours("erosion", x, w, backend=backend),
        lambda x, w: kornia.morphology.erosion(x, flat, structuring_element=w[0, 0]),
        (x, w),
    )


def test_morphological_gradient_equals_scipy_and_kornia(backend: str) -> None:
    x, w = one_channel()
    w = w + w.flip(2, 3)  # both turn the element around in the dilation only
    y = ours("morphological_gradient", x, w, padding_mode="replicate", backend=backend)
    theirs = [
        ndimage.morphological_gradient(plane, structure=w[0, 0].numpy(), mode="nearest") for plane in x[:, 0].numpy()
    ]
    torch.testing.assert_close(y[:, 0], torch.tensor(np.array(theirs)), rtol=0, atol=1e-13)
    y = ours("morphological_gradient", x, w, backend=backend)
    flat = torch.ones(3, 3, dtype=torch.float64)
    torch.testing.assert_close(y, kornia.morphology.gradient(x, flat, structuring_element=w[0, 0]), rtol=0, atol=1e-13)


def test_external_less_internal_gradient_is_the_morphological_laplacian(backend: str) -> None:
    x, w = one_channel()
    w = w + w.flip(2, 3)
    options = {"padding_mode": "replicate", "backend": backend}
    y = ours("external_gradient", x, w, **options) - ours("internal_gradient", x, w, **options)
    theirs = [
        ndimage.morphological_laplace(plane, structure=w[0, 0].numpy(), mode="nearest") for plane in x[:, 0].numpy()
    ]
    torch.testing.assert_close(y[:, 0], torch.tensor(np.array(theirs)), rtol=0, atol=1e-13)


def test_two_layers_compose_to_the_top_hats(backend: str) -> None:
    x, w = one_channel()
    options = {"padding": 1, "padding_mode": "ignore", "dtype": torch.float64, "backend": backend}
    dilate = sc.Conv2d(OPERATORS["dilation"].kernel, 1, 1, 3, **options)
    erode = sc.Conv2d(OPERATORS["erosion"].kernel, 1, 1, 3, **options)
    dilate.load_state_dict({"weight": w.flip(2, 3)})  # the adjoint of an erosion by w
    erode.load_state_dict({"weight": w})
    element, flat = w[0, 0], torch.ones(3, 3, dtype=torch.float64)
    white = x - dilate(erode(x))
    torch.testing.assert_close(
        white, kornia.morphology.top_hat(x, flat, structuring_element=element), rtol=0, atol=1e-13
    )
    inner = (slice(None), slice(2, -2), slice(2, -2))  # scipy's two steps see one border value
    theirs = np.array([ndimage.white_tophat(plane, structure=element.numpy()) for plane in x[:, 0].numpy()])
    torch.testing.assert_close(white[:, 0][inner], torch.tensor(theirs)[inner], rtol=0, atol=1e-13)
    erode.load_state_dict({"weight": w.flip(2, 3)})
    dilate.load_state_dict({"weight": w})
    black = erode(dilate(x)) - x
    theirs = np.array([ndimage.black_tophat(plane, structure=element.numpy()[::-1, ::-1]) for plane in x[:, 0].numpy()])
    torch.testing.assert_close(black[:, 0][inner], torch.tensor(theirs)[inner], rtol=0, atol=1e-13)


def test_fresh_elements_are_flat(backend: str) -> None:
    x = random(2, 1, 9, 8).float()
    layer = sc.Conv2d(OPERATORS["dilation"].kernel, 1, 1, 3, padding=1, padding_mode="ignore", backend=backend)
    assert torch.equal(layer(x), F.max_pool2d(x, 3, 1, 1))
    layer = sc.Conv2d(OPERATORS["erosion"].kernel, 1, 1, 3, padding=1, padding_mode="ignore", backend=backend)
    assert torch.equal(layer(x), -F.max_pool2d(-x, 3, 1, 1))


def test_hit_or_miss_of_a_binary_image_equals_scipy(backend: str) -> None:
    x = torch.randint(0, 2, (1, 1, 24, 24)).double()
    hit = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 0, 0]])
    miss = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0]])
    w, v = (torch.where(mask == 1, 0.0, -100.0).double()[None, None] for mask in (hit, miss))
    y = ours("hit_or_miss", x, w, v, padding=0, backend=backend)
    theirs = ndimage.binary_hit_or_miss(x[0, 0].numpy(), hit.numpy(), miss.numpy())[1:-1, 1:-1]
    assert 0 < theirs.sum() < theirs.size
    assert torch.equal(y[0, 0] == 1, torch.tensor(theirs))


# -- Traps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "identity"),
    [("dilation", -inf), ("erosion", inf), ("max_min", -inf), ("soft_dilation", -inf), ("log_semifield", -inf)],
)
def test_a_window_outside_the_image_gives_the_identity_without_gradient(
    backend: str, name: str, identity: float
) -> None:
    x, w = (tensor.requires_grad_() for tensor in operands(name))
    y = ours(name, x, w, padding=4, backend=backend)
    assert (y[..., 0, :] == identity).all()
    assert (y[..., :, -1] == identity).all()
    assert y[..., 2:-2, 2:-2].isfinite().all()
    for gradient in torch.autograd.grad(y[..., 0, :].sum(), (x, w)):
        assert (gradient == 0).all()


def test_zeros_of_the_padding_win_over_negative_values(backend: str) -> None:
    x, w = -1 - random(1, 1, 5, 5).abs(), torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    y = ours("dilation", x, w, padding_mode="zeros", backend=backend)
    assert (y[..., 0, :] == 0).all()
    assert (ours("dilation", x, w, backend=backend) < 0).all()
    with pytest.warns(sc.SymconvWarning, match="padding with zeros enters max"):
        sc.Conv2d(OPERATORS["dilation"].kernel, 1, 1, 3, padding=1)


def first(values: Tensor, valid: Tensor) -> Tensor:
    """The maximum, all of a tie's gradient to the first tap: max_pool1d over the window as a line."""
    line = torch.where(valid, values, -inf)
    return F.max_pool1d(line.flatten(0, -2)[:, None], line.shape[-1]).reshape(line.shape[:-1])


TIES: dict[str, Taps] = {
    "dilation": lambda x, valid, w: first(x + w, valid),
    "erosion": lambda x, valid, w: -first(w - x, valid),
    "morphological_gradient": lambda x, valid, w: first(x + w, valid) + first(w - x, valid),
    "tropical": lambda x, valid, w: first(
        (x + w).unflatten(-1, (-1, 9)), valid.expand_as(x + w).unflatten(-1, (-1, 9))
    ).sum(-1),
    "tropical_metric": lambda x, valid, w: first(x - w, valid) + first(w - x, valid),
}


@pytest.mark.parametrize("name", TIES)
def test_a_tie_goes_to_the_first_tap(backend: str, name: str) -> None:
    x, w = torch.randint(0, 3, (2, 3, 8, 7)).double(), torch.randint(0, 2, (4, 3, 3, 3)).double()
    geometry: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    same_values_and_gradients(
        lambda x, w: ours(name, x, w, backend=backend), lambda x, w: slow(TIES[name], x, w, **geometry), (x, w)
    )


def test_max_min_halves_a_tie_of_image_and_weight(backend: str) -> None:
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    w = torch.ones(1, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(ours("max_min", x, w, padding=0, backend=backend), (x, w))
    assert [gradient.item() for gradient in gradients] == [0.5, 0.5]


@pytest.mark.parametrize("sign", [1, -1])
def test_soft_dilation_of_large_values(backend: str, sign: int) -> None:
    x = torch.full((1, 1, 3, 3), sign * 1e4 / 5).requires_grad_()
    w = torch.zeros(1, 1, 3, 3).requires_grad_()
    y = ours("soft_dilation", x, w, padding=0, backend=backend)
    assert y.item() == pytest.approx(sign * 2000 + np.log(9) / 5)
    for gradient in torch.autograd.grad(y, (x, w)):
        torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 9), rtol=2e-3, atol=0)


def test_soft_dilation_lies_above_dilation_by_up_to_log_n_over_beta(backend: str) -> None:
    x, w = operands("soft_dilation")
    hard = ours("dilation", x, w, backend=backend)
    for beta in (1, 5, 50):
        excess = ours("soft_dilation", x, w, beta=beta, backend=backend) - hard
        assert (excess >= -1e-12).all()
        assert (excess <= np.log(27) / beta + 1e-12).all()
    level = ours("soft_dilation", torch.zeros_like(x), torch.zeros_like(w), beta=2, padding=0, backend=backend)
    torch.testing.assert_close(level, torch.full_like(level, np.log(27) / 2))


def test_soft_dilation_with_a_large_beta_has_the_gradient_of_dilation(backend: str) -> None:
    same_values_and_gradients(
        lambda x, w: ours("soft_dilation", x, w, beta=1e6, backend=backend),
        lambda x, w: ours("dilation", x, w, backend=backend),
        operands("dilation"),
        tolerance=1e-5,
    )


def test_p_convolution_goes_from_erosion_to_dilation(backend: str) -> None:
    x, w = 1 + torch.rand(1, 3, 8, 7, dtype=torch.float64), torch.ones(1, 3, 3, 3, dtype=torch.float64)

    def at(p: float) -> Tensor:
        return ours("p_convolution", x, w, torch.tensor(p, dtype=torch.float64), backend=backend)

    assert (at(400.0) - dilation(x, 0 * w)).abs().max() < 0.02
    assert (at(-400.0) - erosion(x, 0 * w)).abs().max() < 0.02
    mean = F.conv2d(x, w, padding=1) / F.conv2d(torch.ones_like(x), w, padding=1)
    torch.testing.assert_close(at(0.0), mean)


def test_p_convolution_of_zero_and_negative_pixels(backend: str) -> None:
    x, w, p = operands("p_convolution")
    x[0, 0, 2, 2] = -0.5
    y = ours("p_convolution", x, w, p, backend=backend)
    touched = torch.zeros(8, 7, dtype=torch.bool)
    touched[1:4, 1:4] = True
    assert y[0].isnan().all(0)[touched].all(), "a power 1.7 of a negative value"
    assert y[0][:, ~touched].isfinite().all()
    assert y[1].isfinite().all()
    y = ours("p_convolution", x, w, torch.ones_like(p), backend=backend)  # a whole power has a value
    torch.testing.assert_close(y, F.conv2d(x**2, w, padding=1) / F.conv2d(x, w, padding=1))
    x[0, 0, 2, 2] = 0
    operands_ = [tensor.requires_grad_() for tensor in (x, w, p)]
    y = ours("p_convolution", *operands_, backend=backend)
    assert y.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(y.sum(), operands_))
    y = ours("p_convolution", x, w, -torch.ones_like(p), backend=backend)
    assert (y[0].detach()[:, touched] == 0).all(), "1/0 in the denominator"


def test_p_convolution_of_a_blank_window_divides_zero_by_zero(backend: str) -> None:
    x, w = torch.zeros(1, 1, 3, 3, dtype=torch.float64), torch.ones(1, 1, 3, 3, dtype=torch.float64)
    assert ours("p_convolution", x, w, torch.tensor(1.0).double(), padding=0, backend=backend).isnan().all()


def test_root_semifield_of_negative_products(backend: str) -> None:
    x, w = operands("root_semifield")[:2]
    x[0, 0, 0, 0] = -0.5
    y = ours("root_semifield", x, w, torch.tensor(2.0).double(), backend=backend)
    torch.testing.assert_close(y, F.conv2d(x**2, w**2, padding=1).sqrt())
    y = ours("root_semifield", x, w, torch.tensor(2.5).double(), backend=backend)
    assert y[0, :, :2, :2].isnan().all()
    assert y[0, :, 2:].isfinite().all()


@pytest.mark.parametrize("name", ["p_convolution", "root_semifield"])
def test_a_fresh_layer_of_positive_weights_trains(backend: str, name: str) -> None:
    kernel = OPERATORS[name].kernel
    assert OPERATORS[name].weights == (0, inf)
    layer = sc.Conv2d(kernel, 3, 16, 3, backend=backend)
    y = layer(1 + torch.rand(2, 3, 12, 12))
    y.sum().backward()
    assert (layer.weight > 0).all(), "the weights begin outside the domain that the record names"
    assert all(each.grad is not None and each.grad.isfinite().all() for each in layer.parameters())


@pytest.mark.parametrize("mu", [-1.0, -3.0, 2.5])
def test_log_semifield_of_either_sign(backend: str, mu: float) -> None:
    x, w = operands("log_semifield")
    torch.testing.assert_close(
        ours("log_semifield", x, w, mu=mu, backend=backend), log_conv(x, w, mu), rtol=1e-12, atol=1e-12
    )
    geometry: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    same_values_and_gradients(
        lambda x, w: ours("log_semifield", x, w, mu=mu, backend=backend),
        lambda x, w: slow(lambda x, valid, w: log_sum_exp(mu * (x + w), valid) / mu, x, w, **geometry),
        (x, w),
    )


def test_log_semifield_of_a_very_negative_mu_is_an_erosion(backend: str) -> None:
    x, w = (tensor.float() for tensor in operands("log_semifield"))
    y = ours("log_semifield", 1e3 * x, w, mu=-50, backend=backend)
    torch.testing.assert_close(y, erosion(1e3 * x, -w), rtol=0, atol=np.log(27) / 50 + 1e-3)
