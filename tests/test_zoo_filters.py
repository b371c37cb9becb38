"""Filters of the zoo beside scipy.ndimage, scikit-image, kornia and numpy: values, gradients, constant windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import kornia
import numpy as np
import pytest
import scipy.stats
import skimage.feature
import skimage.metrics
import skimage.restoration
import torch
import torch.nn.functional as F
from oracles import random, same_values_and_gradients, weights, windows
from scipy import ndimage
from torch import Tensor

import symconv as sc
from symconv.zoo import GROUPS, OPERATORS

inf, nan = torch.inf, torch.nan

# -- Oracles: planes of numpy to a plane, or whole tensors -----------------------------------------------------------


def planes(one: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """A function of planes (one for each input), over batches and channels; parameters come after as numbers."""

    def whole(*tensors: Tensor) -> Tensor:
        images = [tensor.flatten(0, 1).numpy() for tensor in tensors if tensor.dim()]
        numbers = [tensor.item() for tensor in tensors if not tensor.dim()]
        found = torch.tensor(np.array([one(*each, *numbers) for each in zip(*images)]))
        return found.unflatten(0, tensors[0].shape[:2])

    return whole


def valid_taps(function: Callable[..., np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A statistic over windows of 3 x 3 in which the border is NaN."""
    return lambda plane: ndimage.vectorized_filter(plane, function, size=3, mode="constant", cval=np.nan)


def local_contrast(plane: np.ndarray) -> np.ndarray:
    """By numpy's mean and standard deviation."""
    mean, std = valid_taps(np.nanmean)(plane), valid_taps(np.nanstd)(plane)
    return (plane - mean) / np.maximum(std, 1e-3)


def darker(seen: np.ndarray, axis: Any) -> np.ndarray:
    """How many values lie below the one in the middle; NaN lies below nothing."""
    return (seen < seen[..., 1:2, 1:2]).sum(axis)


def local_entropy(plane: np.ndarray) -> np.ndarray:
    """By scipy.stats, which divides by the sum."""
    return ndimage.generic_filter(plane, scipy.stats.entropy, size=3, mode="constant", cval=0.0)


def local_binary_pattern(plane: np.ndarray) -> np.ndarray:
    """By scikit-image, whose circles meet pixels on the axes for radius 1, on the diagonals for radius sqrt(2)."""
    padded = np.pad(np.round(plane * 1000).astype(int), 2, "edge")
    crosses, diagonals = (
        skimage.feature.local_binary_pattern(padded, 8, radius)[2:-2, 2:-2].astype(int) for radius in (1, 2**0.5)
    )
    # scikit-image counts from the right, against the clock; the zoo in scan order.
    bits = {4: (crosses, 0), 2: (diagonals, 1), 1: (crosses, 2), 0: (diagonals, 3)}
    bits |= {3: (crosses, 4), 5: (diagonals, 5), 6: (crosses, 6), 7: (diagonals, 7)}
    return sum((code >> bit & 1) << ours for ours, (code, bit) in bits.items()).astype(float)


def gaussian_blur(plane: np.ndarray, sigma: float) -> np.ndarray:
    """A normalised convolution: zeros outside, divided by what lies inside."""
    blurred, inside = (
        ndimage.gaussian_filter(image, sigma, mode="constant", radius=2) for image in (plane, np.ones_like(plane))
    )
    return blurred / inside


def joint_bilateral(x: Tensor, g: Tensor, sigma: Tensor, tau: Tensor) -> Tensor:
    """By kornia, one channel at a time; its parameters may have gradients."""
    blurred = kornia.filters.joint_bilateral_blur(
        x.flatten(0, 1)[:, None], g.flatten(0, 1)[:, None], 5, tau[None], torch.stack([sigma, sigma])[None]
    )
    return blurred.view(x.shape)


def bilateral(x: Tensor, sigma: Tensor, tau: Tensor) -> Tensor:
    """By kornia; scikit-image's spatial weights do not lie symmetrically around the centre."""
    blurred = kornia.filters.bilateral_blur(x.flatten(0, 1)[:, None], 5, tau[None], torch.stack([sigma, sigma])[None])
    return blurred.view(x.shape)


def perona_malik(plane: np.ndarray) -> np.ndarray:
    """One step over the four neighbours, no flux through the border."""
    moved = plane.copy()
    for axis in (0, 1):
        step = np.diff(plane, axis=axis)
        flux = 0.2 * np.exp(-((step / 0.1) ** 2)) * step
        ends = [(1, 1) if each == axis else (0, 0) for each in (0, 1)]
        moved += np.diff(np.pad(flux, ends), axis=axis)
    return moved


def gradient_magnitude(plane: np.ndarray) -> np.ndarray:
    """By scipy's Prewitt filters."""
    down, across = (ndimage.prewitt(plane, axis, mode="nearest") for axis in (0, 1))
    return np.sqrt(down**2 + across**2 + 1e-6)


def template_distance(x: Tensor, w: Tensor) -> Tensor:
    """Squared differences over the norms, by the sums in OpenCV's manual."""
    template, found = w.numpy(), []
    seen = np.lib.stride_tricks.sliding_window_view(x.numpy(), template.shape[2:], axis=(2, 3))
    for element in template:
        patch = seen.transpose(0, 2, 3, 1, 4, 5)
        norms = np.sqrt((patch**2).sum((3, 4, 5)) * (element**2).sum())
        found.append(((element - patch) ** 2).sum((3, 4, 5)) / norms)
    return torch.tensor(np.stack(found, 1))


def ssim(plane: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By scikit-image, a flat window of 7 and population covariances."""
    _, found = skimage.metrics.structural_similarity(
        plane, other, win_size=7, data_range=1.0, use_sample_covariance=False, full=True
    )
    return found[3:-3, 3:-3]


def game_of_life(plane: np.ndarray) -> np.ndarray:
    """By a convolution that counts neighbours."""
    neighbours = ndimage.convolve(plane, np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), mode="wrap")
    return ((neighbours == 3) | ((plane == 1) & (neighbours == 2))).astype(float)


# -- Slow expressions for autograd ---------------------------------------------------------------------------------


def total(values: Tensor, valid: Tensor) -> Tensor:
    """The sum over the valid taps."""
    return torch.where(valid, values, 0.0).sum(-1)


def average(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of the valid taps."""
    return total(values, valid) / valid.sum(-1)


def variance(values: Tensor, valid: Tensor) -> Tensor:
    """The population variance of the valid taps."""
    return average((values - average(values, valid)[..., None]) ** 2, valid)


def covariance(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """The population covariance."""
    return average(a * b, valid) - average(a, valid) * average(b, valid)


def entropy(x: Tensor, valid: Tensor) -> Tensor:
    """The entropy of shares of the sum."""
    shares = torch.where(valid, x / total(x, valid)[..., None], 1.0)
    return -total(shares * shares.log(), valid)


def steps(x: Tensor) -> tuple[Tensor, Tensor]:
    """The offsets dx and dy of the taps of a square window."""
    side = round(x.shape[-1] ** 0.5)
    line = torch.arange(side, dtype=x.dtype) - side // 2
    return line.repeat(side), line.repeat_interleave(side)


def centre(x: Tensor) -> Tensor:
    """The middle tap, as the only one."""
    return x[..., x.shape[-1] // 2, None]


def nearness(x: Tensor, sigma: Tensor) -> Tensor:
    """The exponent of a Gaussian of the distance from the centre."""
    dx, dy = steps(x)
    return -(dx**2 + dy**2) / (2 * sigma**2)


def weighted(x: Tensor, valid: Tensor, exponent: Tensor) -> Tensor:
    """The mean with weights exp(exponent)."""
    return total(x * exponent.exp(), valid) / total(exponent.exp().expand_as(x), valid)


def neighbours(x: Tensor) -> Tensor:
    """The differences of the four neighbours from the centre."""
    return (x - centre(x))[..., [1, 3, 5, 7]]


def structural(x: Tensor, valid: Tensor, g: Tensor) -> Tensor:
    """Structural similarity, in the closed form of the paper with C3 = C2/2."""
    mx, mg = average(x, valid), average(g, valid)
    numerator = (2 * mx * mg + 1e-4) * (2 * covariance(x, g, valid) + 9e-4)
    return numerator / ((mx**2 + mg**2 + 1e-4) * (variance(x, valid) + variance(g, valid) + 9e-4))


def diffused(x: Tensor, valid: Tensor) -> Tensor:
    """A step of anisotropic diffusion."""
    step = neighbours(x)
    return centre(x)[..., 0] + 0.2 * (torch.exp(-((step / 0.1) ** 2)) * step).sum(-1)


def slope(x: Tensor, valid: Tensor) -> Tensor:
    """The length of the gradient."""
    dx, dy = steps(x)
    return (total(dx * x, valid) ** 2 + total(dy * x, valid) ** 2 + 1e-6).sqrt()


def template(x: Tensor, valid: Tensor, w: Tensor) -> Tensor:
    """Squared differences over the norms."""
    return (x - w).square().sum(-1) / (x.square().sum(-1) * w.square().sum(-1)).sqrt()


@dataclass(frozen=True)
class Case:
    """What an operator must equal.

    Args:
        oracle: the value for x, further inputs and the parameters, with the arguments below.
        taps: the same over unfolded windows and which taps are valid, for the gradients; None where they are 0.
        params: values of the learned numbers.
        domain: an interval for x, and for further inputs, where it is not the whole line.
        size, padding, mode: of the window.
        whole: whether pixels are whole numbers of `1/whole`, the largest 1.
    """

    oracle: Callable[..., Tensor]
    taps: Callable[..., Tensor] | None
    params: tuple[float, ...] = ()
    domain: tuple[float, float] | None = None
    size: int = 3
    padding: int = 1
    mode: str = "ignore"
    whole: int | None = None


CASES: dict[str, Case] = {
    "local_variance": Case(planes(valid_taps(np.nanvar)), variance),
    "local_std": Case(planes(valid_taps(np.nanstd)), lambda x, valid: variance(x, valid).sqrt()),
    "local_contrast": Case(
        planes(local_contrast),
        lambda x, valid: (centre(x)[..., 0] - average(x, valid)) / variance(x, valid).sqrt().clamp(min=1e-3),
    ),
    "range_filter": Case(
        planes(
            lambda plane: (
                ndimage.maximum_filter(plane, 3, mode="constant", cval=-np.inf)
                - ndimage.minimum_filter(plane, 3, mode="constant", cval=np.inf)
            )
        ),
        lambda x, valid: torch.where(valid, x, -inf).amax(-1) - torch.where(valid, x, inf).amin(-1),
    ),
    "local_entropy": Case(planes(local_entropy), entropy, domain=(0.1, 2.0)),
    "rank_transform": Case(planes(valid_taps(darker)), None),
    "local_binary_pattern": Case(planes(local_binary_pattern), None, mode="replicate", domain=(0.0, 1.0), whole=1000),
    "gaussian_blur": Case(
        planes(gaussian_blur),
        lambda x, valid, sigma: weighted(x, valid, nearness(x, sigma)),
        params=(1.3,),
        size=5,
        padding=2,
    ),
    "bilateral": Case(
        bilateral,
        lambda x, valid, sigma, tau: weighted(
            x, valid, nearness(x, sigma) - (x - centre(x)).square() / (2 * tau.square())
        ),
        params=(1.7, 0.3),
        domain=(0.0, 1.0),
        size=5,
        padding=2,
        mode="reflect",
    ),
    "joint_bilateral": Case(
        joint_bilateral,
        lambda x, valid, g, sigma, tau: weighted(
            x, valid, nearness(x, sigma) - (g - centre(g)).square() / (2 * tau.square())
        ),
        params=(1.7, 0.3),
        domain=(0.0, 1.0),
        size=5,
        padding=2,
        mode="reflect",
    ),
    "perona_malik": Case(planes(perona_malik), diffused, domain=(0.0, 0.5), mode="replicate"),
    "heat_step": Case(
        planes(lambda plane: plane + 0.2 * ndimage.laplace(plane, mode="wrap")),
        lambda x, valid: centre(x)[..., 0] + 0.2 * neighbours(x).sum(-1),
        mode="circular",
    ),
    "wave_step": Case(
        planes(lambda plane, past: 2 * plane - past + 0.2 * ndimage.laplace(plane, mode="wrap")),
        lambda x, valid, u: (2 * centre(x) - centre(u))[..., 0] + 0.2 * neighbours(x).sum(-1),
        mode="circular",
    ),
    "gradient_magnitude": Case(planes(gradient_magnitude), slope, mode="replicate"),
    "squared_difference_normalised": Case(template_distance, template, padding=0),
    "ssim": Case(planes(ssim), structural, domain=(0.0, 1.0), size=7, padding=0),
    "game_of_life": Case(planes(game_of_life), None, domain=(0.0, 1.0), mode="circular", whole=1),
}
FLAT = [name for name, case in CASES.items() if case.taps is None]


def operands(name: str, size: tuple[int, int] = (12, 11)) -> list[Tensor]:
    """Random images, weights and parameters, in the order of the operator's signature."""
    case, signature = CASES[name], OPERATORS[name].kernel.signature
    tensors = [random(2, 2, *size) for _ in ("x", *signature.names("input")[1:])]
    if case.domain is not None:
        low, high = case.domain
        tensors = [low + (high - low) * torch.rand_like(tensor) for tensor in tensors]
    if case.whole is not None:
        tensors = [torch.round(tensor * case.whole) / case.whole for tensor in tensors]
        for tensor in tensors:
            tensor[..., 4, 5] = 1
    tensors += [random(3, 2, case.size, case.size) for _ in signature.names("weight")]
    return [*tensors, *(torch.tensor(value, dtype=torch.float64) for value in case.params)]


def ours(name: str, x: Tensor, *operands: Tensor, **options: Any) -> Tensor:
    """The operator with the window of its case."""
    kernel, case = OPERATORS[name].kernel, CASES[name]
    named = dict(zip(kernel.signature.tensors[1:], operands))
    options = {"stride": 1, "padding": case.padding, "padding_mode": case.mode, **options}
    if "w" in named:
        return sc.conv2d(kernel, x, named.pop("w"), **named, **options)
    return sc.pool2d(kernel, x, **{"kernel_size": case.size, **named, **options})


def slow(name: str, *tensors: Tensor, stride: int, padding: int, mode: str) -> Tensor:
    """The operator over unfolded windows: images padded, or with taps that are not valid."""
    case, x, square = CASES[name], tensors[0], (CASES[name].size,) * 2
    groups = 1 if "w" in OPERATORS[name].kernel.signature.tensors else x.shape[1]

    def seen(image: Tensor, mode: str) -> Tensor:
        image = F.pad(image, [padding] * 4, mode="constant" if mode == "ignore" else mode)
        return windows(image, square, (stride, stride), (1, 1), groups)

    given = [seen(each, mode) if each.shape == x.shape else weights(each) if each.dim() else each for each in tensors]
    valid = seen(torch.ones_like(x), mode).bool()
    assert case.taps is not None
    return case.taps(given[0], valid, *given[1:]).flatten(1, 2)


def test_every_operator_has_an_oracle() -> None:
    assert set(CASES) == {operator.name for operator in GROUPS["filters"]}
    assert set(FLAT) == {"rank_transform", "local_binary_pattern", "game_of_life"}


@pytest.mark.parametrize("name", CASES)
def test_values(backend: str, name: str) -> None:
    tensors = operands(name)
    y = ours(name, *tensors, backend=backend)
    torch.testing.assert_close(y, CASES[name].oracle(*tensors).to(y), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("stride", "mode"), [(1, None), (2, "ignore"), (1, "reflect")])
@pytest.mark.parametrize("name", [name for name in CASES if name not in FLAT])
def test_gradients(backend: str, name: str, stride: int, mode: str | None) -> None:
    case = CASES[name]
    mode = case.mode if mode is None else mode
    if mode == "ignore" and case.mode in ("replicate", "circular"):
        mode = "circular"  # a step without its neighbours is another operator
    padding = case.padding
    same_values_and_gradients(
        lambda *tensors: ours(name, *tensors, stride=stride, padding_mode=mode, backend=backend),
        lambda *tensors: slow(name, *tensors, stride=stride, padding=padding, mode=mode),
        operands(name),
        tolerance=1e-9,
    )


@pytest.mark.parametrize("name", FLAT)
def test_codes_and_counts_have_no_gradient(backend: str, name: str) -> None:
    (x,) = operands(name)
    y = ours(name, x.requires_grad_(), backend=backend)
    assert y.detach().unique().numel() > 1
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y), allow_unused=True)
    assert gradient is None or (gradient == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_unbatched_input(backend: str, name: str) -> None:
    tensors = operands(name)
    images = 1 + len(OPERATORS[name].kernel.signature.names("input")[1:])
    whole = ours(name, *tensors, backend=backend)
    one = [each[1] if position < images else each for position, each in enumerate(tensors)]
    torch.testing.assert_close(ours(name, *one, backend=backend), whole[1])


# -- Further oracles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 5])
def test_blur_equals_kornia(backend: str, size: int) -> None:
    x, sigma = operands("gaussian_blur")
    y = ours("gaussian_blur", x, sigma, kernel_size=size, padding=size // 2, padding_mode="reflect", backend=backend)
    torch.testing.assert_close(y, kornia.filters.gaussian_blur2d(x, size, (sigma.item(), sigma.item())))


def test_bilateral_equals_kornia_with_gradients(backend: str) -> None:
    same_values_and_gradients(
        lambda *tensors: ours("bilateral", *tensors, backend=backend), bilateral, operands("bilateral")
    )
    same_values_and_gradients(
        lambda *tensors: ours("joint_bilateral", *tensors, backend=backend),
        joint_bilateral,
        operands("joint_bilateral"),
    )


def test_bilateral_of_a_very_wide_sigma_equals_scikit_image(backend: str) -> None:
    # On values k/1024 of an image whose maximum is 1 its table of 2048 bins has no error; for sigma see `bilateral`.
    x = torch.randint(100, 1025, (1, 1, 14, 13)).double() / 1024
    x[..., 3, 4] = 1
    y = ours(
        "bilateral",
        x,
        torch.tensor(1e9).double(),
        torch.tensor(0.2).double(),
        padding_mode="replicate",
        backend=backend,
    )
    theirs = skimage.restoration.denoise_bilateral(
        x[0, 0].numpy(), win_size=5, sigma_color=0.2, sigma_spatial=1e9, bins=2048, mode="edge"
    )
    torch.testing.assert_close(y[0, 0], torch.tensor(theirs), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("channels", "guides"), [(1, 1), (1, 3), (16, 3), (3, 1), (16, 1), (2, 5)])
def test_joint_bilateral_shares_a_guide(backend: str, channels: int, guides: int) -> None:
    x, g = torch.rand(2, channels, 9, 8).double(), torch.rand(2, guides, 9, 8).double()
    params = [torch.tensor(value).double() for value in (1.7, 0.4)]
    same_values_and_gradients(
        lambda x, g, sigma, tau: ours("joint_bilateral", x, g, sigma, tau, backend=backend),
        lambda x, g, sigma, tau: kornia.filters.joint_bilateral_blur(
            x, g, 5, tau[None], torch.stack([sigma, sigma])[None], color_distance_type="l2"
        ),
        (x, g, *params),
    )


@pytest.mark.parametrize(("channels", "guides"), [(3, 3), (2, 6), (16, 16)])
def test_joint_bilateral_splits_a_guide_whose_channels_divide(backend: str, channels: int, guides: int) -> None:
    x, g = torch.rand(2, channels, 9, 8).double(), torch.rand(2, guides, 9, 8).double()
    y = ours("joint_bilateral", x, g, sigma=torch.tensor(1.7).double(), tau=torch.tensor(0.4).double(), backend=backend)
    share = guides // channels
    theirs = [
        kornia.filters.joint_bilateral_blur(
            x[:, c : c + 1], g[:, share * c : share * (c + 1)], 5, 0.4, (1.7, 1.7), color_distance_type="l2"
        )
        for c in range(channels)
    ]
    torch.testing.assert_close(y, torch.cat(theirs, 1), rtol=1e-6, atol=1e-6)


def test_ssim_has_the_gradient_that_scikit_image_has(backend: str) -> None:
    x, g = torch.rand(2, 1, 1, 20, 19).double()
    g.requires_grad_()
    (gradient,) = torch.autograd.grad(ours("ssim", x, g, backend=backend).sum(), g)
    _, theirs = skimage.metrics.structural_similarity(
        x[0, 0].numpy(), g[0, 0].detach().numpy(), data_range=1.0, use_sample_covariance=False, gradient=True
    )
    inner = (slice(6, -6), slice(6, -6))  # pixels all of whose windows lie within the image
    theirs = torch.tensor(theirs * g.numel())
    torch.testing.assert_close(gradient[0, 0][inner], theirs[inner], rtol=1e-9, atol=1e-9)


def test_ssim_of_an_image_and_itself_is_one(backend: str) -> None:
    for x in (torch.rand(1, 2, 9, 9), torch.full((1, 2, 9, 9), 0.3), torch.full((1, 2, 9, 9), 1000.1)):
        y = ours("ssim", x, x.clone(), backend=backend)
        torch.testing.assert_close(y, torch.ones_like(y), rtol=0, atol=1e-5)


def test_heat_step_equals_rolled_images(backend: str) -> None:
    (x,) = operands("heat_step")
    plane = x.numpy()
    near = sum(np.roll(plane, step, axis) for step in (1, -1) for axis in (2, 3))
    torch.testing.assert_close(ours("heat_step", x, backend=backend), torch.tensor(plane + 0.2 * (near - 4 * plane)))


@pytest.mark.parametrize(("name", "constant", "limit"), [("heat_step", "a", 0.25), ("perona_malik", "lam", 0.25)])
def test_steps_are_stable_up_to_a_limit(backend: str, name: str, constant: str, limit: float) -> None:
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double().repeat(4, 4)[None, None]
    options: dict[str, Any] = {"padding_mode": "circular", "backend": backend}
    options |= {"kappa": 1e9} if name == "perona_malik" else {}
    for value, factor in ((limit, 1.0), (1.2 * limit, 1.4)):
        y = ours(name, checker, **{constant: value}, **options)
        torch.testing.assert_close(y, -factor * checker)


def test_wave_step_is_stable_up_to_a_limit(backend: str) -> None:
    checker = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double().repeat(4, 4)[None, None]
    for a, bounded in ((0.49, True), (0.52, False)):
        past, now = checker, checker
        for _ in range(60):
            past, now = now, ours("wave_step", now, past, a=a, backend=backend)
        assert (now.abs().max() < 20).item() == bounded


def test_wave_step_conserves_energy(backend: str) -> None:
    past = random(1, 1, 10, 10)
    now, energies = past.clone(), []
    for _ in range(20):
        after = ours("wave_step", now, past, backend=backend)
        kinetic = (after - now).square().sum()
        potential = sum(((now.roll(1, d) - now) * (after.roll(1, d) - after)).sum() for d in (2, 3))
        energies.append(kinetic + 0.2 * potential)
        past, now = now, after
    torch.testing.assert_close(torch.stack(energies), energies[0].expand(20))


@pytest.mark.parametrize("size", [3, 5])
def test_gradient_magnitude_of_a_plane(backend: str, size: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(8.0), indexing="ij")
    x = (0.3 * rows.double() - 0.4 * columns.double())[None, None]
    y = ours("gradient_magnitude", x, kernel_size=size, padding=0, eps=0, backend=backend)
    moment = {3: 6, 5: 50}[size]  # the sum of dx**2
    torch.testing.assert_close(y, torch.full_like(y, 0.5 * moment))


def test_gradient_magnitude_equals_convolutions(backend: str) -> None:
    (x,) = operands("gradient_magnitude")
    across = torch.tensor([-1.0, 0.0, 1.0]).double().repeat(3, 1)[None, None]

    def theirs(x: Tensor) -> Tensor:
        padded = F.pad(x.flatten(0, 1)[:, None], [1] * 4, mode="replicate")
        squares = F.conv2d(padded, across) ** 2 + F.conv2d(padded, across.mT) ** 2
        return (squares + 1e-6).sqrt().view(x.shape)

    same_values_and_gradients(lambda x: ours("gradient_magnitude", x, backend=backend), theirs, (x,))


def test_variance_equals_torch(backend: str) -> None:
    (x,) = operands("local_variance")
    same_values_and_gradients(
        lambda x: ours("local_variance", x, padding=0, backend=backend),
        lambda x: windows(x, (3, 3), (1, 1), (1, 1), 2)[:, :, 0].var(-1, correction=0),
        (x,),
    )


def test_a_glider_moves_by_one_in_four_steps(backend: str) -> None:
    world = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    world[0, 0, [0, 1, 2, 2, 2], [1, 2, 0, 1, 2]] = 1
    after = world
    for _ in range(12):
        after = ours("game_of_life", after, backend=backend)
    assert torch.equal(after, world.roll((3, 3), (2, 3)))


# -- Traps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("name", ["local_variance", "local_std", "local_contrast"])
@pytest.mark.parametrize("value", [1000.1, 0.1, -3e7])
def test_a_constant_image_has_no_variance(backend: str, name: str, padding: int, value: float) -> None:
    x = torch.full((1, 1, 5, 5), value)
    assert (ours(name, x, padding=padding, backend=backend) == 0).all()


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("name", ["local_variance", "local_std"])
@pytest.mark.parametrize("value", [1000.1, 0.1, -3e7])
def test_a_constant_image_has_no_gradient_of_variance(backend: str, name: str, padding: int, value: float) -> None:
    x = torch.full((1, 1, 5, 5), value).requires_grad_()
    (gradient,) = torch.autograd.grad(ours(name, x, padding=padding, backend=backend).sum(), x)
    assert (gradient == 0).all()


def test_variance_of_a_small_ripple_on_a_large_value(backend: str) -> None:
    x = (1000 + torch.rand(1, 1, 9, 9) / 16).float()
    y = ours("local_variance", x, backend=backend)
    torch.testing.assert_close(y.double(), ours("local_variance", x.double(), backend=backend), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", ["local_variance", "local_std", "rank_transform"])
def test_a_window_outside_the_image_gives_zero_without_gradient(backend: str, name: str) -> None:
    (x,) = operands(name)
    y = ours(name, x.requires_grad_(), padding=4, backend=backend)
    assert (y[..., 0, :] == 0).all()
    assert (y[..., :, -1] == 0).all()
    assert (torch.autograd.grad(y[..., 0, :].sum(), x)[0] == 0).all()


@pytest.mark.parametrize("name", ["local_variance", "local_std", "range_filter", "local_contrast", "gaussian_blur"])
def test_ignored_taps_do_not_count(backend: str, name: str) -> None:
    tensors = operands(name)
    padding = CASES[name].padding
    corner = ours(name, *tensors, backend=backend)[..., 0, 0]
    inside = tensors[0][..., : padding + 1, : padding + 1]
    if name == "local_contrast":
        std = inside.flatten(2).std(-1, correction=0)
        expected = (tensors[0][..., 0, 0] - inside.mean((2, 3))) / std
    elif name == "gaussian_blur":
        line = torch.exp(-(torch.arange(3.0).double() ** 2) / (2 * tensors[1] ** 2))
        expected = (inside * line * line[:, None]).sum((2, 3)) / line.sum() ** 2
    else:
        expected = {
            "local_variance": inside.flatten(2).var(-1, correction=0),
            "local_std": inside.flatten(2).std(-1, correction=0),
            "range_filter": inside.amax((2, 3)) - inside.amin((2, 3)),
        }[name]
    torch.testing.assert_close(corner, expected)


def test_range_gives_a_tie_to_the_first_tap(backend: str) -> None:
    x = torch.randint(0, 3, (2, 2, 7, 6)).double()
    same_values_and_gradients(
        lambda x: ours("range_filter", x, backend=backend),
        lambda x: F.max_pool2d(x, 3, 1, 1) + F.max_pool2d(-x, 3, 1, 1),
        (x,),
    )


def test_ties_in_comparisons(backend: str) -> None:
    x = torch.full((1, 1, 4, 4), 7.0)
    assert (ours("rank_transform", x, backend=backend) == 0).all(), "strictly darker"
    assert (ours("local_binary_pattern", x, backend=backend) == 255).all(), "as bright as the centre, or brighter"


def test_local_entropy_of_equal_shares(backend: str) -> None:
    y = ours("local_entropy", torch.full((1, 1, 5, 5), 3.0).double(), backend=backend)
    assert y[0, 0, 2, 2].item() == pytest.approx(np.log(9))
    assert y[0, 0, 0, 0].item() == pytest.approx(np.log(4))


def test_template_matching_of_blanks_divides_by_zero(backend: str) -> None:
    x, w = random(1, 1, 9, 9), random(1, 1, 7, 7)
    y = ours("squared_difference_normalised", x, w, backend=backend)
    assert y.isfinite().all()
    zeros = torch.zeros_like(w)
    assert (ours("squared_difference_normalised", x, zeros, backend=backend) == inf).all()
    assert (ours("squared_difference_normalised", torch.zeros_like(x), w, backend=backend) == inf).all()
    assert ours("squared_difference_normalised", torch.zeros_like(x), zeros, backend=backend).isnan().all()


def test_template_matching_finds_its_place(backend: str) -> None:
    x = random(1, 1, 20, 18)
    w = x[..., 6:13, 4:11].clone()
    y = ours("squared_difference_normalised", x, w, backend=backend)
    assert y[0, 0, 6, 4] == 0
    assert divmod(y.argmin().item(), y.shape[-1]) == (6, 4)


@pytest.mark.parametrize("name", ["bilateral", "joint_bilateral"])
def test_bilateral_keeps_an_edge(backend: str, name: str) -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float32)
    x[..., 4:] = 100
    guides: Sequence[Tensor] = [x] if name == "joint_bilateral" else []
    params = [torch.tensor(value) for value in (1.5, 0.2)]
    torch.testing.assert_close(ours(name, x, *guides, *params, padding_mode="ignore", backend=backend), x)


def test_perona_malik_leaves_an_edge_and_flattens_a_ripple(backend: str) -> None:
    x = torch.zeros(1, 1, 6, 6)
    x[..., 3:] = 10
    assert torch.equal(ours("perona_malik", x, backend=backend), x)
    ripple = 1e-3 * torch.rand(1, 1, 6, 6)
    assert ours("perona_malik", ripple, backend=backend).std() < ripple.std()
