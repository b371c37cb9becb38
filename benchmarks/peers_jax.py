"""The same layers in JAX, compiled by XLA: loops over the channels or over the taps."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from kernels import Case
from peer import DIRECTIONS, Form, Peer, Run
from peers_torch import TAU, median_of_nine, nearness, similarity


@jax.custom_vjp
def published_distance(x: Any, w: Any) -> Any:
    """-abs(x - w) with the gradients with which AdderNet is trained."""
    return -jnp.abs(x - w)


def _backward(kept: Any, grad: Any) -> tuple[Any, Any]:
    x, w = kept
    parts = grad * jnp.clip(w - x, -1, 1), grad * (x - w)
    return tuple(
        part.sum([d for d in range(part.ndim) if to.shape[d] == 1], keepdims=True) for part, to in zip(parts, kept)
    )


published_distance.defvjp(lambda x, w: (-jnp.abs(x - w), (x, w)), _backward)

TAPS: dict[str, Callable[[Any, Any], Any]] = {
    "linear": jnp.multiply,
    "adder": lambda x, w: -jnp.abs(x - w),
    "adder_published": published_distance,
    "dilation": jnp.add,
    "tangent_product": lambda x, w: jnp.tan(x + w),
    "gaussian": lambda x, w: jnp.square(x - w),
    "sine": lambda x, w: jnp.sin(x * w),
    "exponential": lambda x, w: jnp.exp(x * w),
    "rational": lambda x, w: w * x / (1 + x * x),
}

#: By formula, where it is not the sum: identity, how two partial results meet, how an axis is reduced.
REDUCTIONS: dict[str, tuple[float, Callable[..., Any], Callable[..., Any]]] = {
    "dilation": (-math.inf, jnp.maximum, jnp.max),
    "tangent_product": (1.0, jnp.multiply, jnp.prod),
}
SUM = (0.0, jnp.add, jnp.sum)


def over_channels(case: Case, x: Any, w: Any, filters_last: bool) -> Any:
    """A loop over the channels, the taps of each written out; pixels or filters are the innermost axis."""
    shape = case.shape
    tap, (identity, combine, _) = TAPS[case.formula.name], REDUCTIONS.get(case.formula.name, SUM)
    filters = (shape.filters // shape.groups,)
    pixels = (*[1] * shape.rank,)

    @jax.checkpoint  # or every value at a tap is kept for the backward pass
    def of_channel(image: Any, weight: Any) -> Any:
        total = None
        for place in itertools.product(*map(range, shape.window)):
            at = tuple(slice(p, p + shape.stride * (n - 1) + 1, shape.stride) for p, n in zip(place, shape.y[2:]))
            seen, at_tap = image[(..., *at)], weight[(..., *place)][None]
            seen = seen[..., None] if filters_last else seen[:, :, None]
            laid = (*pixels, *filters) if filters_last else (*filters, *pixels)
            value = tap(seen, at_tap.reshape(*at_tap.shape[:2], *laid))
            total = value if total is None else combine(total, value)
        return total

    def step(total: Any, operands: Any) -> tuple[Any, None]:
        return combine(total, of_channel(*operands)), None

    image, weight = by_groups(case, x, w)
    size = (*shape.y[2:], *filters) if filters_last else (*filters, *shape.y[2:])
    start = jnp.full((shape.x[0], shape.groups, *size), identity, x.dtype)
    total, _ = lax.scan(step, start, (jnp.moveaxis(image, 2, 0), jnp.moveaxis(weight, 2, 0)))
    return finish(case, jnp.moveaxis(total, -1, 2) if filters_last else total)


def over_taps(case: Case, x: Any, w: Any) -> Any:
    """A loop over the taps, all channels at once and reduced."""
    shape = case.shape
    tap, (identity, combine, reduce) = TAPS[case.formula.name], REDUCTIONS.get(case.formula.name, SUM)
    image, weight = by_groups(case, x, w)
    sizes = [shape.stride * (n - 1) + 1 for n in shape.y[2:]]
    strides = tuple(slice(None, None, shape.stride) for _ in sizes)

    @jax.checkpoint
    def of_tap(image: Any, at_tap: Any, place: Any) -> Any:
        zero = jnp.zeros_like(place[0])
        seen = lax.dynamic_slice(image, (zero, zero, zero, *place), (*image.shape[:3], *sizes))
        seen = seen[(..., *strides)][:, :, None]
        return reduce(tap(seen, at_tap[(None, ..., *[None] * shape.rank)]), axis=3)

    def step(total: Any, operands: Any) -> tuple[Any, None]:
        return combine(total, of_tap(image, *operands)), None

    places = jnp.array(list(itertools.product(*map(range, shape.window))))
    at_taps = jnp.moveaxis(weight.reshape(*weight.shape[:3], -1), 3, 0)
    start = jnp.full((shape.x[0], shape.groups, shape.filters // shape.groups, *shape.y[2:]), identity, x.dtype)
    return finish(case, lax.scan(step, start, (at_taps, places))[0])


def vendor(case: Case, x: Any, w: Any) -> Any:
    """XLA's own convolution."""
    shape = case.shape
    pairs = [(shape.padding, shape.padding)] * shape.rank
    return lax.conv_general_dilated(x, w, (shape.stride,) * shape.rank, pairs, feature_group_count=shape.groups)


def by_groups(case: Case, x: Any, w: Any) -> tuple[Any, Any]:
    """The padded image as [n, g, c, *image] and the weight as [g, o, c, *window]."""
    shape = case.shape
    padded = jnp.pad(x, [(0, 0)] * 2 + [(shape.padding,) * 2] * shape.rank)
    image = padded.reshape(shape.x[0], shape.groups, -1, *padded.shape[2:])
    return image, w.reshape(shape.groups, -1, *w.shape[1:])


def finish(case: Case, total: Any) -> Any:
    if case.formula.name == "gaussian":
        total = jnp.exp(-total / (case.shape.channels * math.prod(case.shape.window)))
    return total.reshape(case.shape.y)


def pool(case: Case, x: Any, g: Any = None) -> Any:
    """The taps written out; stacked along an axis they are slower in all of these."""
    shape = case.shape
    add = functools.partial(functools.reduce, jnp.add)

    def windows(image: Any) -> list[Any]:
        seen = []
        for place in itertools.product(*map(range, shape.window)):
            at = tuple(slice(p, p + shape.stride * (n - 1) + 1, shape.stride) for p, n in zip(place, shape.y[2:]))
            seen.append(image[(..., *at)])
        return seen

    def weighted(shares: list[Any], values: list[Any]) -> Any:
        return add([share * value for share, value in zip(shares, values)])

    seen = windows(x)
    match case.formula.name:
        case "soft_pool":
            top = lax.stop_gradient(functools.reduce(jnp.maximum, seen))
            shares = [jnp.exp(value - top) for value in seen]
            return weighted(shares, seen) / add(shares)
        case "bilateral":
            centre = seen[len(seen) // 2]
            shares = [jnp.exp(a - (value - centre) ** 2 / (2 * TAU**2)) for a, value in zip(nearness(shape), seen)]
            return weighted(shares, seen) / add(shares)
        case "median":
            return median_of_nine(seen, jnp.minimum, jnp.maximum)
        case "ssim":
            others, count = windows(g), len(seen)
            mx, mg = add(seen) / count, add(others) / count
            dx, dg = [value - mx for value in seen], [value - mg for value in others]
            return similarity(mx, mg, *(weighted(a, b) / count for a, b in ((dx, dx), (dg, dg), (dx, dg))))
    raise KeyError(case.formula.name)


def prepare(case: Case, layer: Callable[..., Any], direction: str) -> Run:
    """The compiled step; it waits for what it started."""
    learns = [jnp.asarray(each.numpy()) for each in (case.x, case.w) if each is not None]
    fixed = [] if case.g is None else [jnp.asarray(case.g.numpy())]
    grad_y = jnp.asarray(case.grad_y.numpy())

    @jax.jit
    def forward(*given: Any) -> Sequence[Any]:
        return (layer(case, *given, *fixed),)

    @jax.jit
    def training(*given: Any) -> Sequence[Any]:
        y, backward = jax.vjp(lambda *learned: layer(case, *learned, *fixed), *given)
        return (y, *backward(grad_y))

    step = forward if direction == "forward" else training
    return lambda: jax.block_until_ready(step(*learns))


def peers(case: Case) -> list[Peer]:
    """The forms that have a chance: a loop over the taps is differentiated badly, except for a maximum."""
    name, shape = case.formula.name, case.shape
    layers: dict[str, Callable[..., Any]]
    if shape.pools:
        layers = {"taps": pool}
    elif name == "linear" and shape.groups == 1:
        layers = {"lax.conv": vendor}
    else:
        layers = {"over channels": functools.partial(over_channels, filters_last=False), "over taps": over_taps}
        if shape.filters > shape.groups:
            layers["over channels, filters last"] = functools.partial(over_channels, filters_last=True)
        if name == "linear":  # with groups XLA's convolution is slow
            layers["lax.conv"] = vendor
    forms = tuple(
        Form(
            form,
            functools.partial(prepare, case, layer),
            directions=("forward",) if form == "over taps" and name != "dilation" else DIRECTIONS,
        )
        for form, layer in layers.items()
    )
    return [Peer("jax", forms, compiles=True)]
