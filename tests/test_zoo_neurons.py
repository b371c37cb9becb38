"""The zoo's neurons: values and gradients against oracles, the traps that their records name, and a walk of the zoo."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import same_values_and_gradients
from torch import Tensor

import symconv as sc
from symconv.zoo import GROUPS, OPERATORS, Operator

inf = math.inf
At = Mapping[str, Any]
Range = tuple[float, float]

NEURONS = {each.name: each for each in GROUPS["neurons"]}
BATCH, IN, OUT, SIZE, KERNEL = 2, 4, 6, (7, 6), (3, 3)


# -- Unfolded images, by PyTorch alone -----------------------------------------------------------------------------


def fit(at: At, *names: str) -> dict[str, Any]:
    """The arguments `names` of a layer, as far as they are given."""
    return {name: at[name] for name in names if name in at}


def unfold(x: Tensor, at: At) -> Tensor:
    """The windows of an image by `F.unfold`: [n, c, t, pixel]."""
    seen = F.unfold(x, KERNEL, **fit(at, "stride", "padding", "dilation"))
    return seen.unflatten(1, (x.shape[1], -1))


def patches(x: Tensor, at: At) -> Tensor:
    """The windows of an image: [n, group, 1, c, t, pixel]."""
    return unfold(x, at).unflatten(1, (at.get("groups", 1), 1, -1))


def taps(w: Tensor, at: At) -> Tensor:
    """A weight beside `patches`: [group, filter, c, t, 1]."""
    return w.flatten(2).unflatten(0, (at.get("groups", 1), -1))[..., None]


def per_filter(p: Tensor, at: At) -> Tensor:
    """A `param[o]` beside reduced `patches`: [group, filter, 1]."""
    return p.unflatten(0, (at.get("groups", 1), -1))[..., None]


def image(y: Tensor, x: Tensor, at: At) -> Tensor:
    """The output [n, out, *size] of values per window [n, group, filter, pixel]."""
    return y.flatten(1, 2).unflatten(-1, output_size(x, at))


def output_size(x: Tensor, at: At) -> tuple[int, ...]:
    """The size of the output, as the manual of `torch.nn.Conv2d` has it."""
    stride, padding, dilation = at.get("stride", 1), at.get("padding", 0), at.get("dilation", 1)
    return tuple((size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k in zip(x.shape[2:], KERNEL))


def summed(tap: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The oracle that adds up `tap(x, w, ...)` over the unfolded window."""
    return reduced(lambda *given: tap(*given).sum((-3, -2)))


def reduced(window: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The oracle that gives `window(x, w, ...)` of unfolded operands [..., c, t, pixel]."""

    def oracle(at: At, x: Tensor, *given: Tensor | float) -> Tensor:
        rest = (taps(each, at) if isinstance(each, Tensor) else each for each in given)
        return image(window(patches(x, at), *rest), x, at)

    return oracle


def conv(at: At, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """`F.conv2d`."""
    return F.conv2d(x, w, b, **at)


def distance(at: At, x: Tensor, w: Tensor, p: float = 2.0) -> Tensor:
    """`torch.cdist` between the patches of an image and the filters."""
    seen = patches(x, at)[:, :, 0].flatten(2, 3).mT  # [n, group, pixel, c*t]
    filters = taps(w, at).flatten(2)  # [group, filter, c*t]
    found = torch.cdist(seen, filters, p, compute_mode="donot_use_mm_for_euclid_dist")
    return image(found.mT, x, at)


def similarity(x: Tensor, w: Tensor) -> Tensor:
    """`F.cosine_similarity` over the window of unfolded operands."""
    x, w = torch.broadcast_tensors(x, w)
    return F.cosine_similarity(x.flatten(-3, -2), w.flatten(-3, -2), dim=-2)


def length(x: Tensor) -> Tensor:
    """The norm over the window of an unfolded operand."""
    return torch.linalg.vector_norm(x, dim=(-3, -2))


def product(factors: Tensor) -> Tensor:
    """`torch.prod` over the window."""
    return factors.flatten(-3, -2).prod(-2)


# -- Oracles that take more than a line ----------------------------------------------------------------------------


def correlation_1(x: Tensor, w: Tensor) -> Tensor:
    """Products of neighbouring taps, channel by channel."""
    y = x * w
    return (y[..., :-1, :] * y[..., 1:, :]).sum((-3, -2))


def self_onn(at: At, x: Tensor, s: Tensor, b: Tensor) -> Tensor:
    """Convolutions of the powers of x."""
    return conv(at, x, s[0], b) + conv(at, x**2, s[1]) + conv(at, x**3, s[2])


def fast_kan(at: At, x: Tensor, s: Tensor) -> Tensor:
    """Eight convolutions of eight Gaussians; the padding is the Gaussian of 0."""
    x, at = F.pad(x, [at.get("padding", 0)] * 4), {**at, "padding": 0}
    centres = torch.linspace(-2, 2, 8, dtype=x.dtype)
    return sum(conv(at, torch.exp(-(((x - centre) / (4 / 7)) ** 2)), each) for centre, each in zip(centres, s))


def cosine(x: Tensor, w: Tensor, eps: float = 1e-6) -> Tensor:
    """The cosine similarity, lowered by eps."""
    lengths = length(x) * length(w)
    return similarity(x, w) * lengths / (lengths + eps)


def sharpened_cosine(at: At, x: Tensor, w: Tensor, p: Tensor, q: float = 1e-3) -> Tensor:
    """The cosine similarity, lowered by q, to the power p."""
    seen, filters = patches(x, at), taps(w, at)
    shares = length(seen) * length(filters) / ((length(seen) + q) * (length(filters) + q))
    s = similarity(seen, filters) * shares
    return image(s.sign() * s.abs() ** per_filter(p, at), x, at)


def centred(x: Tensor) -> Tensor:
    """An unfolded operand less its mean."""
    return x - x.mean((-3, -2), keepdim=True)


def pearson(x: Tensor, w: Tensor, eps: float = 1e-6) -> Tensor:
    """The cosine similarity of centred operands, lowered by eps."""
    x, w = centred(x), centred(w)
    spread = length(x) * length(w) / (x.shape[-3] * x.shape[-2])
    return similarity(x, w) * spread / (spread + eps)


def central_difference(at: At, x: Tensor, w: Tensor, theta: float = 0.7) -> Tensor:
    """A convolution, less one whose kernel has the sum of the weights in its centre."""
    centre = F.pad(w.sum((2, 3), keepdim=True), [1, 1, 1, 1])
    return conv(at, x, w) - theta * conv(at, x, centre)


def gabor(at: At, x: Tensor, f: Tensor, th: Tensor, s: Tensor) -> Tensor:
    """A convolution by Gabor kernels evaluated on a grid."""
    steps = torch.arange(-1.0, 2.0, dtype=x.dtype) * at.get("dilation", 1)
    dy, dx = torch.meshgrid(steps, steps, indexing="ij")
    f, th, s = (each[:, None, None] for each in (f, th, s))
    kernel = torch.exp(-(dx**2 + dy**2) / (2 * s**2)) * torch.cos(f * (dx * torch.cos(th) + dy * torch.sin(th)))
    return conv(at, x, kernel[:, None].expand(-1, x.shape[1] // at.get("groups", 1), -1, -1))


def binary(at: At, x: Tensor, w: Tensor) -> Tensor:
    """A convolution of signs."""
    return conv(at, x.sign(), w.sign())


def local_attention(at: At, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention`, a head for each group, a sequence for each pixel."""
    ignored = at.get("padding_mode") == "ignore"
    inside = unfold(torch.ones_like(x[:, :1]), at)[:, 0, None].movedim(-1, 1) if ignored else torch.ones(())
    query, keys, values = (
        unfold(each, at).unflatten(1, (at.get("groups", 1), -1)).permute(0, 4, 1, 3, 2) for each in (x, k, v)
    )  # [n, pixel, head, t, channel]
    centre = math.prod(KERNEL) // 2
    y = F.scaled_dot_product_attention(
        query[:, :, :, centre : centre + 1], keys, values, attn_mask=inside[..., None, :].bool() if ignored else None
    )
    return image(y[:, :, :, 0].permute(0, 2, 3, 1), x, at)


def involution(at: At, x: Tensor, k: Tensor) -> Tensor:
    """`einsum` of unfolded windows and the field."""
    y = torch.einsum("nctp,ntp->ncp", unfold(x, at), k.flatten(2))
    return y.unflatten(-1, output_size(x, at))


def partial_convolution(at: At, x: Tensor, w: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """A convolution of the pixels kept, times all over the sum of the mask."""
    shared = {**at, "groups": 1} if g.shape[1] == 1 else at
    outputs = 1 if g.shape[1] == 1 else w.shape[0]
    ones = torch.ones(outputs, g.shape[1] // shared.get("groups", 1), *KERNEL, dtype=x.dtype)
    kept = F.conv2d(g, ones, **shared)
    share = torch.where(kept > 0, ones[0].numel() / kept.clamp(min=1e-9), 0.0)
    return torch.where(kept > 0, conv(at, x * g, w) * share + b[:, None, None], 0.0)


def normalised_convolution(at: At, x: Tensor, w: Tensor, g: Tensor, eps: float = 1e-6) -> Tensor:
    """The quotient of two convolutions."""
    return conv(at, x * g, w) / (conv(at, g.expand_as(x), w) + eps)


def kervolution_polynomial(at: At, x: Tensor, w: Tensor, cp: Tensor, d: float = 3.0) -> Tensor:
    """A power of a convolution."""
    return (conv(at, x, w) + cp) ** d


def matern(at: At, x: Tensor, w: Tensor, s: Tensor) -> Tensor:
    """Rasmussen and Williams (2006), equation 4.17."""
    r = math.sqrt(5) * distance(at, x, w) / s[:, None, None]
    return (1 + r + r**2 / 3) * torch.exp(-r)


def weight_standardised(at: At, x: Tensor, w: Tensor, b: Tensor, eps: float = 1e-5) -> Tensor:
    """A convolution by weights that `F.layer_norm` has standardised."""
    return conv(at, x, F.layer_norm(w, w.shape[1:], eps=eps), b)


def adder_published_gradients(at: At, upstream: Tensor, x: Tensor, w: Tensor) -> dict[str, Tensor]:
    """The gradients of Chen et al. (2020), equations 5 and 6, added up by hand."""
    groups = at.get("groups", 1)
    up = upstream.flatten(2).unflatten(1, (groups, -1))[:, :, :, None, None]
    difference = taps(w, at) - patches(x, at)  # [n, group, filter, c, t, pixel]
    by_tap = (up * difference.clamp(-1, 1)).sum(2).flatten(1, 3)
    by_x = F.fold(by_tap, x.shape[2:], KERNEL, **fit(at, "stride", "padding", "dilation"))
    return {"x": by_x, "w": (-up * difference).sum((0, -1)).reshape(w.shape)}


def binary_gradients(at: At, upstream: Tensor, x: Tensor, w: Tensor) -> dict[str, Tensor]:
    """Those of a convolution of signs, for x only within [-1, 1]."""
    by_x = torch.nn.grad.conv2d_input(x.shape, w.sign(), upstream, **at)
    return {"x": by_x * (x.abs() <= 1), "w": torch.nn.grad.conv2d_weight(x.sign(), w.shape, upstream, **at)}


# -- The table -----------------------------------------------------------------------------------------------------

PLAIN: At = {}
STRIDED: At = {"stride": 2, "padding": 1}
GROUPED: At = {"padding": 1, "dilation": 2, "groups": 2}


@dataclass(frozen=True)
class Case:
    """How one operator is tested.

    Args:
        oracle: `oracle(at, x, ...)`: the operands as `order` lists them, then the const if there is one; its declared
            value stands in the oracle's signature.
        order: the names of the operands.
        ranges: what is drawn from where; x and weights are from [-0.7, 0.7] and params from [0.5, 1.5] else.
        numbers: another value of the const, for the settings after the first.
        settings: of the layer.
        gradients: `gradients(at, upstream, x, ...)`, by hand, where they are not those of the oracle.
    """

    oracle: Callable[..., Tensor]
    order: str = "x w"
    ranges: dict[str, Range] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    settings: tuple[At, ...] = (PLAIN, STRIDED, GROUPED)
    gradients: Callable[..., dict[str, Tensor]] | None = None


ORACLES: dict[str, Case] = {
    "convolution": Case(conv, "x w b"),
    "tangent_product": Case(reduced(lambda x, w: product(torch.tan(x + w)))),
    "log_tangent_product": Case(summed(lambda x, w: torch.tan(x + w).abs().log())),
    "adder": Case(lambda at, x, w: -distance(at, x, w, 1)),
    "adder_published": Case(
        lambda at, x, w: -distance(at, x, w, 1), gradients=adder_published_gradients, ranges={"x": (-2, 2)}
    ),
    "euclidean": Case(lambda at, x, w: -(distance(at, x, w) ** 2)),
    "offset_patch": Case(lambda at, x, w, v: conv(at, x, w, -(w * v).sum((1, 2, 3))), "x w v"),
    "simnet_similarity": Case(summed(lambda x, w, v: -w * (x - v).abs()), "x w v"),
    "mex": Case(
        reduced(lambda x, v, beta=1.0: ((beta * (x + v)).exp().mean((-3, -2))).log() / beta),
        "x v",
        numbers={"beta": 3.0},
    ),
    "onn_cubic": Case(lambda at, x, w: conv(at, x**3, w)),
    "onn_sine": Case(summed(lambda x, w, k=1.0: torch.sin(k * w * x)), numbers={"K": 2.5}),
    "onn_exponential": Case(summed(lambda x, w: torch.expm1(w * x))),
    "onn_sinh": Case(summed(lambda x, w: torch.sinh(w * x))),
    "onn_chirp": Case(summed(lambda x, w, k=1.0: torch.sin(k * w * x**2)), numbers={"K": 2.5}),
    "onn_sinc": Case(summed(lambda x, w, k=1.0: torch.sinc(k * w * x)), numbers={"K": 2.5}),
    "onn_sine_max": Case(
        reduced(lambda x, w, k=1.0: torch.sin(k * w * x).amax(-2).sum(-2)),
        numbers={"K": 2.5},
        settings=(PLAIN, {"stride": 2, "groups": 2}),  # zeros from the padding would tie
    ),
    "onn_median": Case(
        reduced(lambda x, w: (w * x).median(-2).values.sum(-2)), settings=(PLAIN, {"stride": 2, "groups": 2})
    ),
    "correlation_1": Case(reduced(correlation_1)),
    "gaussian_nodal": Case(summed(lambda x, w: w * torch.exp(-w * x**2))),
    "dog_nodal": Case(summed(lambda x, w: w * x * torch.exp(-w * x**2))),
    "self_onn": Case(self_onn, "x s b"),
    "kervolution_polynomial": Case(kervolution_polynomial, "x w cp", numbers={"d": 2.0}),
    "kervolution_gaussian": Case(
        lambda at, x, w, gamma: torch.exp(-gamma[:, None, None] * distance(at, x, w) ** 2), "x w gamma"
    ),
    "kervolution_l1": Case(lambda at, x, w: distance(at, x, w, 1)),
    "kervolution_l2": Case(lambda at, x, w: distance(at, x, w)),
    "kervolution_sigmoid": Case(lambda at, x, w: torch.tanh(conv(at, x, w))),
    "quadratic": Case(lambda at, x, w, b: conv(at, x**2, w, b), "x w b"),
    "quadratic_linear": Case(lambda at, x, w, v, b: conv(at, x, w, b) + conv(at, x**2, v), "x w v b"),
    "inverse_multiquadric": Case(
        lambda at, x, w, s: (1 + distance(at, x, w) ** 2 / s[:, None, None] ** 2).rsqrt(), "x w s"
    ),
    "matern": Case(matern, "x w s"),
    "siren": Case(summed(lambda x, w, v, omega=30.0: torch.sin(omega * (w * x + v))), "x w v", numbers={"omega": 12.0}),
    "fast_kan": Case(fast_kan, "x s", ranges={"x": (-2, 2)}),
    "cosine": Case(reduced(cosine), numbers={"eps": 0.1}),
    "sharpened_cosine": Case(sharpened_cosine, "x w p", numbers={"q": 0.1}),
    "correlation_normalised": Case(reduced(pearson), numbers={"eps": 0.1}),
    "central_difference": Case(central_difference, numbers={"theta": 0.4}),
    "weight_standardised": Case(weight_standardised, "x w b", numbers={"eps": 0.1}),
    "gated": Case(lambda at, x, w, v: F.elu(conv(at, x, w)) * torch.sigmoid(conv(at, x, v)), "x w v"),
    "maxout": Case(lambda at, x, w, v: torch.maximum(conv(at, x, w), conv(at, x, v)), "x w v"),
    "gabor": Case(gabor, "x f th s"),
    "binary": Case(binary, gradients=binary_gradients, ranges={"x": (-2, 2)}),
    "local_attention": Case(
        local_attention,
        "x k v",
        ranges=dict.fromkeys("xkv", (-2.0, 2.0)),
        settings=(PLAIN, {**STRIDED, "padding_mode": "ignore"}, {**GROUPED, "padding_mode": "ignore"}, GROUPED),
    ),
    "product_unit": Case(reduced(lambda x, w: product(x.abs() ** w)), settings=(PLAIN, {"stride": 2, "groups": 2})),
    "multiplication_unit": Case(reduced(lambda x, w: product(w * x + 1 - w))),
    "conjunction": Case(reduced(lambda x, w: product(1 - w * (1 - x)))),
    "disjunction": Case(reduced(lambda x, w: 1 - product(1 - w * x))),
    "involution": Case(involution, "x k", settings=({"stride": 1}, {"stride": 2, "padding": 1})),
    "partial_convolution": Case(partial_convolution, "x w b g", ranges={"g": (0.1, 1.0)}),
    "normalised_convolution": Case(
        normalised_convolution, "x w g", ranges={"g": (0.1, 1.0), "w": (0.1, 1.0)}, numbers={"eps": 0.1}
    ),
}

SETTINGS = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name, case in ORACLES.items()
    for number in range(len(case.settings))
]


def shape_of(name: str, operand: str, x: tuple[int, ...], kernel: tuple[int, ...], out: int, at: At) -> tuple[int, ...]:
    """The shape of an operand, as the manual of the formula language has it."""
    signature = OPERATORS[name].kernel.signature
    index = signature.tensors.index(operand)
    role, axes, bank = signature.roles[index], signature.axes[index], signature.banks[index]
    channels = x[1] // at.get("groups", 1)
    if role == "input":
        return (x[0], out if (name, operand) == ("local_attention", "v") else x[1], *x[2:])
    if role == "weight":
        return (*([bank] if bank else []), out, channels, *kernel)
    if role == "field":
        assert axes == "t"
        return (x[0], math.prod(kernel), *output_size(torch.empty(x), at))
    assert role == "bias" or (role == "param" and axes in ("", "o"))
    return (out,) if axes else ()


def drawn(
    name: str,
    at: At,
    x: tuple[int, ...] = (BATCH, IN, *SIZE),
    kernel: tuple[int, ...] = KERNEL,
    out: int = OUT,
) -> dict[str, Tensor]:
    """Random operands by name, in the order of the table."""
    case, record = ORACLES[name], NEURONS[name]
    signature = record.kernel.signature
    found = {}
    for operand in case.order.split():
        role = signature.roles[signature.tensors.index(operand)]
        low, high = case.ranges.get(operand, (0.5, 1.5) if role == "param" else (-0.7, 0.7))
        if role in ("input", "weight"):
            inside = record.domain if role == "input" else record.weights
            low, high = max(low, inside[0]), min(high, inside[1])
        shape = shape_of(name, operand, x, kernel, out, at)
        found[operand] = low + (high - low) * torch.rand(shape, dtype=torch.float64)
    return found


def ours(
    name: str, backend: str, operands: Mapping[str, Any], at: At, kernel: tuple[int, ...] = KERNEL, out: int = OUT
) -> Tensor:
    """The operator of the zoo."""
    given = dict(operands)
    x, record = given.pop("x"), OPERATORS[name]
    if record.pools:
        return sc.pool2d(record.kernel, x, kernel, **at, **given, backend=backend)
    options = {**at, "kernel_size": kernel, "out_channels": out}
    return sc.conv2d(record.kernel, x, given.pop("w", None), given.pop("b", None), **options, **given, backend=backend)


# -- Values and gradients ------------------------------------------------------------------------------------------


def test_every_neuron_has_an_oracle() -> None:
    assert set(ORACLES) == set(NEURONS)
    for name, case in ORACLES.items():
        signature = NEURONS[name].kernel.signature
        assert set(case.order.split()) == set(signature.tensors), name
        assert set(case.numbers) == set(signature.numbers), name


@pytest.mark.parametrize(("name", "number"), SETTINGS)
def test_values_and_gradients(backend: str, name: str, number: int) -> None:
    """In float64, for every tensor operand; the first setting with the declared consts, the others with more."""
    case = ORACLES[name]
    at, numbers = case.settings[number], case.numbers if number else {}
    operands = drawn(name, at)

    def kernel(*tensors: Tensor) -> Tensor:
        return ours(name, backend, {**dict(zip(operands, tensors)), **numbers}, at)

    def oracle(*tensors: Tensor) -> Tensor:
        return case.oracle(at, *tensors, *numbers.values())

    if case.gradients is None:
        same_values_and_gradients(kernel, oracle, [*operands.values()])
        return
    tensors = [each.requires_grad_() for each in operands.values()]
    y = kernel(*tensors)
    torch.testing.assert_close(y, oracle(*tensors), rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    found = dict(zip(operands, torch.autograd.grad(y, tensors, upstream)))
    expected = case.gradients(at, upstream, *(each.detach() for each in tensors))
    assert set(found) == set(expected)
    for operand, gradient in expected.items():
        torch.testing.assert_close(found[operand], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_gradcheck(backend: str, name: str) -> None:
    """Finite differences, which the operators with chosen gradients must fail."""
    at = {"stride": 1}
    small: dict[str, Any] = {"kernel": (2, 2), "out": 2}
    operands = drawn(name, at, (1, 2, 3, 3), **small)
    if name == "involution":
        operands["k"] = torch.rand(1, 4, 2, 2, dtype=torch.float64)
    tensors = tuple(each.requires_grad_() for each in operands.values())

    def kernel(*tensors: Tensor) -> Tensor:
        return ours(name, backend, dict(zip(operands, tensors)), at, **small)

    if ORACLES[name].gradients is None:
        assert torch.autograd.gradcheck(kernel, tensors)
    else:
        with pytest.raises(RuntimeError, match="Jacobian mismatch"):
            torch.autograd.gradcheck(kernel, tensors)


# -- Traps ---------------------------------------------------------------------------------------------------------

#: The records whose traps have a test below.
TRAPPED: set[str] = {"adder_published", "binary"}  # test_gradcheck


def trap(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test of what the records of these operators warn about."""
    TRAPPED.update(names)
    return lambda test: test


def window(
    name: str, backend: str, dtype: torch.dtype = torch.float64, /, **given: Any
) -> tuple[float, dict[str, list[float]]]:
    """The value of an operator for one window of one channel, and its gradients for the operands given as lists."""
    signature = OPERATORS[name].kernel.signature
    operands: dict[str, Any] = dict(given)
    for operand, role, axes in zip(signature.tensors, signature.roles, signature.axes):
        if operand in given:
            shape = (1, 1, -1) if role in ("input", "weight") else (1,) if axes else ()
            operands[operand] = torch.tensor(given[operand], dtype=dtype).reshape(shape).requires_grad_()
    tensors = {operand: each for operand, each in operands.items() if isinstance(each, Tensor)}
    x, w, b = (operands.pop(operand, None) for operand in "xwb")
    options = {"kernel_size": x.shape[-1], "out_channels": 1, "backend": backend}
    y = sc.conv1d(OPERATORS[name].kernel, x, w, b, **options, **operands)
    gradients = torch.autograd.grad(y.sum(), [*tensors.values()])
    return y.item(), {operand: each.flatten().tolist() for operand, each in zip(tensors, gradients)}


def finite(gradients: Mapping[str, list[float]]) -> bool:
    """Whether every gradient is a number."""
    return all(math.isfinite(each) for gradient in gradients.values() for each in gradient)


def test_every_trap_has_a_test() -> None:
    assert {name for name, record in NEURONS.items() if record.traps} - TRAPPED == set()


#: Of a product of factors: what makes one factor exactly 0, as (x, w).
ZERO_FACTORS: dict[str, tuple[float, float]] = {
    "tangent_product": (-0.4, 0.4),
    "multiplication_unit": (0.0, 1.0),
    "conjunction": (0.0, 1.0),
    "disjunction": (1.0, 1.0),
    "product_unit": (0.0, 2.0),
}


@pytest.mark.parametrize("zeros", [1, 2, 3])
@pytest.mark.parametrize("name", ZERO_FACTORS)
@trap("tangent_product", "multiplication_unit")
def test_products_with_exact_zeros(backend: str, name: str, zeros: int) -> None:
    """Values and gradients are exactly those of `torch.prod`: a single zero's tap gets the product of the others."""
    shape = (1, 1, *KERNEL)
    operands = drawn(name, PLAIN, shape, out=1)
    for tap in range(zeros):
        for each, value in zip(operands.values(), ZERO_FACTORS[name]):
            each.view(-1)[3 * tap + 1] = value
    y = ours(name, backend, operands, PLAIN, out=1)
    assert y.item() == (1.0 if name == "disjunction" else 0.0)

    def kernel(*tensors: Tensor) -> Tensor:
        return ours(name, backend, dict(zip(operands, tensors)), PLAIN, out=1)

    def oracle(*tensors: Tensor) -> Tensor:
        return ORACLES[name].oracle(PLAIN, *tensors)

    same_values_and_gradients(kernel, oracle, [*operands.values()], tolerance=1e-14)
    x = operands["x"].requires_grad_()
    (by_x,) = torch.autograd.grad(ours(name, backend, operands, PLAIN, out=1), x)
    reached = name != "product_unit" and zeros == 1  # the slope of x**2 at 0 is 0 itself
    assert by_x.flatten().ne(0).nonzero().flatten().tolist() == ([1] if reached else [])


@pytest.mark.parametrize(("dtype", "count"), [(torch.float64, 400), (torch.float32, 40)])
@trap("tangent_product", "log_tangent_product")
def test_a_product_of_many_tangents_overflows_to_infinity(backend: str, dtype: torch.dtype, count: int) -> None:
    x, w = [0.5] * count, [1.06] * (count - 1) + [-1.06]
    assert window("tangent_product", backend, dtype, x=x, w=w)[0] == -inf
    value, gradients = window("log_tangent_product", backend, dtype, x=x, w=w)
    expected = (count - 1) * math.log(math.tan(1.56)) + math.log(math.tan(0.56))
    assert value == pytest.approx(expected, rel=1e-4)
    assert finite(gradients)
    assert window("log_tangent_product", backend, dtype, x=[0.5, 1.0], w=[-0.5, 0.0])[0] == -inf


@trap("adder")
def test_gradients_of_the_adder_are_signs(backend: str) -> None:
    value, gradients = window("adder", backend, x=[5.0, 1.0, 2.0], w=[1.0, 1.5, 2.0])
    assert value == -4.5
    assert gradients == {"x": [-1.0, 1.0, 0.0], "w": [1.0, -1.0, 0.0]}


def test_published_gradients_of_the_adder_are_differences(backend: str) -> None:
    value, gradients = window("adder_published", backend, x=[5.0, 1.0, 2.0], w=[1.0, 1.5, 2.0])
    assert value == -4.5
    assert gradients == {"x": [-1.0, 0.5, 0.0], "w": [4.0, -0.5, 0.0]}


def test_gradients_of_signs_pass_straight_through(backend: str) -> None:
    value, gradients = window("binary", backend, x=[-2.0, -0.5, 1.0, 0.5], w=[0.3, -4.0, 0.1, -0.2])
    assert value == -1 + 1 + 1 - 1
    assert gradients == {"x": [0.0, -1.0, 1.0, -1.0], "w": [-1.0, -1.0, 1.0, 1.0]}


@trap("euclidean")
def test_squared_distances_of_large_numbers_do_not_cancel(backend: str) -> None:
    x, w = (1e3 + torch.randn(1, 3, 6, 6)).requires_grad_(), (1e3 + torch.randn(2, 3, 3, 3)).requires_grad_()
    double = [each.detach().double().requires_grad_() for each in (x, w)]
    y, z = sc.conv2d(sc.zoo.euclidean, x, w, backend=backend), distance(PLAIN, *double).square().neg()
    torch.testing.assert_close(y.double(), z, rtol=1e-6, atol=0)
    for a, b in zip(torch.autograd.grad(y.sum(), (x, w)), torch.autograd.grad(z.sum(), double)):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    expanded = sc.conv2d("sum(2*w*x - x**2 - w**2)", x, w, backend=backend)
    assert ((expanded - z) / z).abs().max() > 1e-3, "the inputs are too easy to show anything"


@trap("simnet_similarity")
def test_similarity_is_largest_at_the_template_for_positive_weights(backend: str) -> None:
    at, beside = {"v": [0.3, -0.2], "w": [1.0, 2.0]}, [0.4, -0.1]
    assert window("simnet_similarity", backend, x=at["v"], **at) == (0.0, {"x": [0, 0], "v": [0, 0], "w": [0, 0]})
    assert window("simnet_similarity", backend, x=beside, **at)[0] == pytest.approx(-0.3)
    assert window("simnet_similarity", backend, x=beside, v=at["v"], w=[1.0, -2.0])[0] == pytest.approx(0.1)


@trap("mex")
def test_mex_lies_between_the_mean_and_the_maximum(backend: str) -> None:
    x, v = [1.0, -2.0, 4.0, 0.5], [0.1, 0.2, 0.3, 0.4]
    moved = [a + b for a, b in zip(x, v)]
    mean, largest = sum(moved) / 4, max(moved)
    value, gradients = window("mex", backend, x=x, v=v, beta=1e-6)
    assert value == pytest.approx(mean, abs=1e-4)
    assert gradients["x"] == pytest.approx([0.25] * 4, abs=1e-4)
    value, gradients = window("mex", backend, torch.float32, x=x, v=v, beta=1e4)
    assert value == pytest.approx(largest, abs=math.log(4) / 1e4 + 1e-6)
    assert gradients["x"] == gradients["v"] == [0, 0, 1, 0]
    values = [window("mex", backend, x=x, v=v, beta=beta)[0] for beta in (0.1, 1.0, 10.0)]
    assert [mean, *values, largest] == sorted([mean, *values, largest])
    assert window("mex", backend, x=x, v=v, beta=-1e4)[0] == pytest.approx(min(moved), abs=1e-3)
    assert not math.isfinite(window("mex", backend, x=x, v=v, beta=0)[0])


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 90.0), (torch.float64, 710.5)])
@trap("onn_exponential", "onn_sinh")
def test_exponentials_overflow_to_infinity(backend: str, dtype: torch.dtype, large: float) -> None:
    assert window("onn_exponential", backend, dtype, x=[large, 1.0], w=[1.0, 1.0])[0] == inf
    assert window("onn_exponential", backend, dtype, x=[-large, -large], w=[1.0, 1.0])[0] == -2
    for sign in (1.0, -1.0):
        value, gradients = window("onn_sinh", backend, dtype, x=[large, 1.0], w=[sign, 1.0])
        assert value == sign * inf
        assert gradients["w"][0] == inf
        assert math.isfinite(gradients["w"][1])


def test_a_small_exponent_loses_no_digits(backend: str) -> None:
    assert window("onn_exponential", backend, torch.float32, x=[1e-6], w=[1.0])[0] == pytest.approx(1e-6, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sinc_at_zero(backend: str, dtype: torch.dtype) -> None:
    value, gradients = window("onn_sinc", backend, dtype, x=[0.0, 2.0, 0.0], w=[3.0, 0.0, 0.0])
    assert (value, gradients) == (3.0, {"x": [0, 0, 0], "w": [0, 0, 0]})
    value, gradients = window("onn_sinc", backend, dtype, x=[1e-3], w=[1.0])
    assert gradients["x"][0] == pytest.approx(-(math.pi**2) * 1e-3 / 3, rel=1e-5)


@trap("onn_median")
def test_the_median_of_an_even_count_is_the_lower_one(backend: str) -> None:
    value, gradients = window("onn_median", backend, x=[4.0, 1.0, 3.0, 2.0], w=[1.0, 1.0, 1.0, 1.0])
    assert value == torch.tensor([4.0, 1.0, 3.0, 2.0]).median().item() == 2.0
    assert gradients == {"x": [0, 0, 0, 1], "w": [0, 0, 0, 2]}


@trap("correlation_1")
def test_correlation_ends_with_the_last_tap(backend: str) -> None:
    value, gradients = window("correlation_1", backend, x=[2.0, 3.0, 5.0], w=[1.0, 1.0, 1.0])
    assert (value, gradients["x"]) == (21.0, [3.0, 7.0, 3.0])
    assert window("correlation_1", backend, x=[2.0], w=[3.0]) == (0.0, {"x": [0], "w": [0]})
    # The last tap of one channel does not meet the first of the next, but the end of a row meets the next row.
    x = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    x[0, 0, 1, 1] = x[0, 1, 0, 0] = 1
    assert sc.conv2d(sc.zoo.correlation_1, x, torch.ones(1, 2, 2, 2, dtype=x.dtype), backend=backend).item() == 0
    x[0, 0, 0, 1] = x[0, 0, 1, 0] = 1
    assert sc.conv2d(sc.zoo.correlation_1, x, torch.ones(1, 2, 2, 2, dtype=x.dtype), backend=backend).item() == 2


@trap("gaussian_nodal", "dog_nodal")
def test_gaussians_of_negative_width_grow_without_bound(backend: str) -> None:
    for name, sign in (("gaussian_nodal", -1), ("dog_nodal", -1)):
        assert window(name, backend, x=[30.0], w=[-1.0])[0] == sign * inf
        assert window(name, backend, x=[30.0], w=[1.0]) == (0.0, {"x": [0], "w": [0]})


@trap("self_onn")
def test_powers_of_large_inputs_overflow(backend: str) -> None:
    options: dict[str, Any] = {"s": torch.ones(3, 1, 1, 2), "kernel_size": 2, "out_channels": 1, "backend": backend}
    x = torch.tensor([[[1e13, 1.0]]])
    assert sc.conv1d(sc.zoo.self_onn, x, None, torch.zeros(1), **options).item() == inf
    assert sc.conv1d(sc.zoo.self_onn, x.tanh(), None, torch.zeros(1), **options).abs().item() <= 6


@trap("kervolution_polynomial")
def test_a_fractional_power_of_a_negative_base_is_nan(backend: str) -> None:
    w, cp = [1.0, 0.0], 1.0
    assert math.isnan(window("kervolution_polynomial", backend, x=[-3.0, 1.0], w=w, cp=cp, d=2.5)[0])
    assert window("kervolution_polynomial", backend, x=[3.0, 1.0], w=w, cp=cp, d=2.5)[0] == pytest.approx(32.0)
    value, gradients = window("kervolution_polynomial", backend, x=[-3.0, 1.0], w=w, cp=cp)
    assert (value, gradients) == (-8.0, {"x": [12.0, 0.0], "w": [-36.0, 12.0], "cp": [12.0]})
    value, gradients = window("kervolution_polynomial", backend, x=[-1.0, 1.0], w=w, cp=cp)
    assert (value, gradients) == (0.0, {"x": [0, 0], "w": [0, 0], "cp": [0]})


@trap("kervolution_gaussian")
def test_a_gaussian_vanishes_far_from_its_centre(backend: str) -> None:
    far: dict[str, Any] = {"x": [100.0, 0.0], "w": [0.0, 0.0]}
    assert window("kervolution_gaussian", backend, **far, gamma=1.0) == (0.0, {"x": [0, 0], "w": [0, 0], "gamma": [0]})
    value, gradients = window("kervolution_gaussian", backend, **far, gamma=1e-4)
    assert value == pytest.approx(math.exp(-1))
    assert gradients["w"][0] == pytest.approx(2e-2 * math.exp(-1))


@trap("kervolution_l2")
def test_distances_of_equal_patches_have_gradient_0(backend: str) -> None:
    same: dict[str, Any] = {"x": [1.0, -2.0], "w": [1.0, -2.0]}
    nothing = {"x": [0, 0], "w": [0, 0]}
    assert window("kervolution_l1", backend, **same) == (0.0, nothing)
    assert window("kervolution_l2", backend, **same) == (0.0, nothing)
    assert window("euclidean", backend, **same) == (0.0, nothing)
    assert window("kervolution_gaussian", backend, **same, gamma=1.0) == (1.0, {**nothing, "gamma": [0]})
    assert window("inverse_multiquadric", backend, **same, s=1.0) == (1.0, {**nothing, "s": [0]})
    assert window("matern", backend, **same, s=1.0) == (1.0, {**nothing, "s": [0]})


@trap("kervolution_sigmoid")
def test_the_sigmoid_kernel_saturates(backend: str) -> None:
    assert window("kervolution_sigmoid", backend, x=[50.0], w=[1.0]) == (1.0, {"x": [0], "w": [0]})


@trap("siren")
def test_the_gradient_of_a_sine_tap_is_omega_times_that_of_a_convolution(backend: str) -> None:
    value, gradients = window("siren", backend, x=[0.5, -1.0], w=[0.0, 0.0], v=[0.0, 0.0])
    assert (value, gradients["w"]) == (0.0, [15.0, -30.0])


@trap("fast_kan")
def test_the_bases_of_fast_kan_vanish_outside_their_interval(backend: str) -> None:
    s = torch.ones(8, 1, 1, 1, dtype=torch.float64)
    x = torch.tensor([[[-100.0, -8.0, -2.0, 0.0, 2.0, 8.0, 100.0]]], dtype=torch.float64, requires_grad=True)
    y = sc.conv1d(sc.zoo.fast_kan, x, s=s, kernel_size=1, out_channels=1, backend=backend)
    (by_x,) = torch.autograd.grad(y.sum(), x)
    assert y.flatten()[[0, 1, 5, 6]].abs().max() < 1e-40
    assert by_x.flatten()[[0, 1, 5, 6]].abs().max() < 1e-40
    assert y.flatten()[2:5].min() > 1


BLANK = [([0.0, 0.0], [1.0, 2.0]), ([1.0, 2.0], [0.0, 0.0]), ([0.0, 0.0], [0.0, 0.0])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("x", "w"), BLANK, ids=["patch", "weight", "both"])
@trap("cosine")
def test_the_cosine_of_a_blank_window(backend: str, x: list[float], w: list[float], dtype: torch.dtype) -> None:
    value, gradients = window("cosine", backend, dtype, x=x, w=w)
    assert value == 0
    # Nothing comes through the norms; the dot product is divided by eps.
    assert gradients == {"x": pytest.approx([each * 1e6 for each in w]), "w": pytest.approx([each * 1e6 for each in x])}


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("x", "w"), BLANK, ids=["patch", "weight", "both"])
def test_the_sharpened_cosine_of_a_blank_window(backend: str, x: list[float], w: list[float], p: float) -> None:
    value, gradients = window("sharpened_cosine", backend, x=x, w=w, p=p)
    assert value == 0
    assert finite(gradients), gradients


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@trap("correlation_normalised")
def test_the_correlation_of_a_constant_patch(backend: str, dtype: torch.dtype) -> None:
    constant, varied = [1000.1] * 5, [1.0, 2.0, 4.0, -1.0, 0.1]
    for x, w in ((constant, varied), (varied, constant), (constant, constant)):
        value, gradients = window("correlation_normalised", backend, dtype, x=x, w=w)
        assert value == 0
        assert finite(gradients)
    lifted = [1000.0 + each for each in (0.5, 0.25, -0.5, 1.0, 0.0)]
    value, _ = window("correlation_normalised", backend, dtype, x=lifted, w=lifted)
    assert value == pytest.approx(1.0, abs=1e-5)


def test_constant_weights_standardise_to_nothing(backend: str) -> None:
    value, gradients = window("weight_standardised", backend, x=[1.0, 2.0, 3.0], w=[0.1, 0.1, 0.1], b=[3.0])
    assert (value, gradients["x"], gradients["b"]) == (3.0, [0, 0, 0], [1])
    assert finite(gradients)


def test_the_gate_of_a_blank_window(backend: str) -> None:
    """The slope of `F.elu` at 0 is 1, as on either side of it."""
    w, v = torch.tensor([1.0, -2.0], dtype=torch.float64), [0.5, 0.5]
    x = torch.zeros(2, dtype=w.dtype, requires_grad=True)
    expected = F.elu((w * x).sum()) * 0.5
    (by_x,) = torch.autograd.grad(expected, x)
    value, gradients = window("gated", backend, x=[0.0, 0.0], w=w.tolist(), v=v)
    assert value == 0
    assert gradients["x"] == by_x.tolist()


@trap("gabor")
def test_gabor_filters_that_start_equal_stay_equal(backend: str) -> None:
    layer = sc.Conv2d(sc.zoo.gabor, 2, 3, 3, backend=backend)
    y = layer(torch.randn(2, 2, 6, 6))
    assert y.var(1, correction=0).max() == 0
    for gradient in torch.autograd.grad(y.square().sum(), [*layer.parameters()]):
        torch.testing.assert_close(gradient, gradient[:1].expand_as(gradient))
    torch.nn.init.uniform_(layer.f)
    torch.nn.init.uniform_(layer.th)
    assert layer(torch.randn(2, 2, 6, 6)).var(1).max() > 0


@trap("local_attention")
def test_attention_says_which_channels_it_takes(backend: str) -> None:
    x, k, v = torch.randn(1, 4, 5, 5), torch.randn(1, 4, 5, 5), torch.randn(1, 6, 5, 5)
    options: dict[str, Any] = {"kernel_size": 3, "out_channels": 6, "backend": backend}
    assert sc.conv2d(sc.zoo.local_attention, x, k=k, v=v, **options).shape == (1, 6, 3, 3)
    with pytest.raises(sc.ArgumentError, match="v has 4"):
        sc.conv2d(sc.zoo.local_attention, x, k=k, v=k, **options)
    with pytest.raises(sc.ArgumentError, match="k has 6"):
        sc.conv2d(sc.zoo.local_attention, x, k=v, v=v, **options)


def test_attention_to_large_scores_is_finite(backend: str) -> None:
    x, k, v = 100 * torch.randn(1, 4, 5, 5), 100 * torch.randn(1, 4, 5, 5), torch.randn(1, 6, 5, 5)
    operands = {"x": x, "k": k, "v": v}
    y = ours("local_attention", backend, operands, PLAIN)
    torch.testing.assert_close(y, local_attention(PLAIN, x, k, v))


@trap("product_unit")
def test_product_units_at_zero(backend: str) -> None:
    for w, expected in ((2.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.0, 8.0), (-1.0, inf)):
        value, gradients = window("product_unit", backend, x=[0.0, -2.0], w=[w, 3.0])
        assert value == expected
        if w >= 0:
            assert gradients["w"] == pytest.approx([0.0, expected * math.log(2)])


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0])
def test_product_units_have_no_slope_at_an_input_of_zero_where_the_power_is_a_root(backend: str, w: float) -> None:
    _, gradients = window("product_unit", backend, x=[0.0, -2.0], w=[w, 3.0])
    assert math.isnan(gradients["x"][0]) == (0 < w < 1)


@trap("onn_sinc")
def test_sinc_is_that_of_torch(backend: str) -> None:
    value, _ = window("onn_sinc", backend, x=[0.5], w=[1.0])
    assert value == pytest.approx(math.sin(math.pi / 2) / (math.pi / 2))


@trap("multiplication_unit")
def test_multiplication_units_select(backend: str) -> None:
    x = [3.0, -5.0, 0.0, 7.0]
    value, gradients = window("multiplication_unit", backend, x=x, w=[1.0, 0.0, 0.0, 1.0])
    assert (value, gradients["x"]) == (21.0, [7.0, 0.0, 0.0, 3.0])
    assert gradients["w"] == [(each - 1) * 21 / (chosen or 1) for each, chosen in zip(x, [3, 0, 0, 7])]
    assert window("multiplication_unit", backend, torch.float32, x=[1e3] * 13, w=[1.0] * 13)[0] == inf
    assert window("multiplication_unit", backend, torch.float32, x=[0.0] * 200, w=[0.5] * 200)[0] == 0


@pytest.mark.parametrize("channels", [1, IN])
@trap("partial_convolution")
def test_partial_convolutions_of_masks(backend: str, channels: int) -> None:
    """A mask of 0 and 1, some windows of which keep nothing."""
    operands = drawn("partial_convolution", STRIDED)
    operands["g"] = (torch.rand(BATCH, channels, *SIZE, dtype=torch.float64) < 0.3).double()
    operands["g"][0, :, :4] = 0
    same_values_and_gradients(
        lambda x, w, b: ours("partial_convolution", backend, {**operands, "x": x, "w": w, "b": b}, STRIDED),
        lambda x, w, b: partial_convolution(STRIDED, x, w, b, operands["g"]),
        [operands[name] for name in "xwb"],
    )


@trap("partial_convolution")
def test_a_partial_convolution_that_keeps_nothing_is_0(backend: str) -> None:
    value, gradients = window("partial_convolution", backend, x=[1.0, 2.0], w=[3.0, 4.0], b=[0.7], g=[0.0, 0.0])
    assert (value, gradients) == (0.0, {"x": [0, 0], "w": [0, 0], "b": [0], "g": [0, 0]})


@trap("normalised_convolution")
def test_normalised_convolutions(backend: str) -> None:
    """The divisor may be 0, and a window without certainty gives 0."""
    value, _ = window("normalised_convolution", backend, x=[3.0, 1.0], w=[1.0, -1.0], g=[1.0, 1.0])
    assert value == pytest.approx(2e6)
    value, gradients = window("normalised_convolution", backend, x=[3.0, 1.0], w=[1.0, 1.0], g=[0.0, 0.0])
    assert value == 0
    assert finite(gradients)
    value, _ = window("normalised_convolution", backend, x=[3.0, 50.0], w=[0.5, 0.5], g=[1.0, 0.0])
    assert value == pytest.approx(3.0, rel=1e-5)


# -- Layers --------------------------------------------------------------------------------------------------------


def test_the_shapes_of_weights(backend: str) -> None:
    for name, extra in {"self_onn": {"s": (3,)}, "fast_kan": {"s": (8,)}, "maxout": {"w": (), "v": ()}}.items():
        layer = sc.Conv2d(OPERATORS[name].kernel, 4, 6, (3, 2), groups=2, backend=backend)
        for operand, bank in extra.items():
            weight = layer.weight if operand == "w" else getattr(layer, operand)
            assert weight.shape == (*bank, 6, 2, 3, 2)
            assert all(each.std() > 0 for each in (weight if bank else [weight]))
        assert (layer.bias is not None) == (name == "self_onn")
        assert (layer.weight is not None) == (name == "maxout")
        assert layer(torch.randn(1, 4, 5, 5)).shape == (1, 6, 3, 4)


@pytest.mark.parametrize("name", [name for name, each in NEURONS.items() if each.weights != (-inf, inf)])
def test_a_new_layer_has_the_weights_that_are_meant(backend: str, name: str) -> None:
    low, high = NEURONS[name].weights
    layer = sc.Conv2d(NEURONS[name].kernel, 3, 4, 3, backend=backend)
    assert layer.weight.min() >= low
    assert layer.weight.max() <= high


@pytest.mark.parametrize("direction", [1.0, -1.0], ids=["up", "down"])
@pytest.mark.parametrize("name", [name for name, each in NEURONS.items() if any(each.kernel.signature.positive)])
def test_positive_parameters_stay_above_zero(backend: str, name: str, direction: float) -> None:
    """Also after a step that is far too long."""
    record = NEURONS[name]
    layer = sc.Conv2d(record.kernel, 3, 4, 3, backend=backend)
    x = torch.randn(1, 3, 5, 5)
    optimiser = torch.optim.SGD(layer.parameters(), lr=1e6)
    (direction * layer(x)).sum().backward()
    optimiser.step()
    for operand, positive in zip(record.kernel.signature.tensors, record.kernel.signature.positive):
        if positive:
            parameter = getattr(layer, operand)
            assert parameter.gt(0).all(), parameter
            assert parameter.isfinite().all()


# -- The whole zoo -------------------------------------------------------------------------------------------------


def tame(inside: Range, shape: tuple[int, ...]) -> Tensor:
    """Random float32 numbers of an interval, not large, and not small where it begins at 0."""
    low, high = (-0.7, 0.7) if inside[0] < 0 else (0.1, 0.9)
    return max(low, inside[0]) + (min(high, inside[1]) - max(low, inside[0])) * torch.rand(shape)


def layer_of(record: Operator, backend: str) -> Any:
    """The layer that a record names, with weights in its interval."""
    names = {"Conv2d": sc.Conv2d, "Pool2d": sc.Pool2d, "kernel": record.kernel}
    layer = eval(record.layer.format(kernel="kernel"), {"__builtins__": {}}, names)  # the record's own text
    layer.backend = backend
    signature = record.kernel.signature
    for operand in signature.names("weight"):
        parameter = layer.weight if operand == "w" else getattr(layer, operand)
        parameter.data = tame(record.weights, tuple(parameter.shape))
    return layer


@pytest.mark.parametrize("name", OPERATORS)
def test_the_layer_of_every_record(backend: str, name: str) -> None:
    """It is made without a warning, runs forward and backward in float32, and all is finite."""
    record = OPERATORS[name]
    layer = layer_of(record, backend)
    assert isinstance(layer, sc.Pool2d if record.pools else sc.Conv2d)
    assert record.kernel.signature.pools == record.pools
    channels = 3 if record.pools else layer.in_channels
    x = tame(record.domain, (2, channels, 9, 8)).requires_grad_()
    at = {"stride": layer.stride, "padding": layer.padding}
    size = F.max_pool2d(x, layer.kernel_size, stride=layer.stride).shape[2:] if not any(at["padding"]) else x.shape[2:]
    others = {}
    for operand, role, axes in zip(*(getattr(record.kernel.signature, each) for each in ("tensors", "roles", "axes"))):
        if role == "input" and operand != "x":
            others[operand] = tame(record.domain, tuple(x.shape)).requires_grad_()
        elif role == "field":
            sizes = {"o": channels, "t": math.prod(layer.kernel_size)}
            others[operand] = tame(record.weights, (2, *(sizes[axis] for axis in axes), *size)).requires_grad_()
    y = layer(x, **others)
    assert y.shape == (2, channels if record.pools else layer.out_channels, *size)
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    given = {"x": x, **others, **dict(layer.named_parameters())}
    for operand, gradient in zip(given, torch.autograd.grad(y, [*given.values()], torch.randn_like(y))):
        assert gradient.isfinite().all(), operand
