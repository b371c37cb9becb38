"""How people write these layers in PyTorch, and symconv itself."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from kernels import Case, device
from peer import GIB, Form, Peer, Run
from shapes import Shape
from torch import Tensor

import symconv as sc

Layer = Callable[..., Tensor]

#: Bytes beyond which a form is left out: everything at once, and a loop, which keeps its steps for the backward pass.
UNFOLD_LIMIT, LOOP_LIMIT = 4 * GIB, 8 * GIB


class PublishedDistance(torch.autograd.Function):
    """-abs(x - w) with the gradients with which AdderNet is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return -(x - w).abs()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        d = w - x
        return (grad * d.clamp(-1, 1)).sum_to_size(x.shape), (grad * -d).sum_to_size(w.shape)


#: By formula: the value at a tap, and about how many numbers per tap autograd keeps.
TAPS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "linear": (torch.mul, 0),
    "adder": (lambda x, w: -(x - w).abs(), 1),
    "adder_published": (PublishedDistance.apply, 0),
    "dilation": (torch.add, 2),
    "tangent_product": (lambda x, w: torch.tan(x + w), 3),
    "gaussian": (lambda x, w: (x - w) ** 2, 1),
    "sine": (lambda x, w: torch.sin(x * w), 1),
    "exponential": (lambda x, w: torch.exp(x * w), 1),
    "rational": (lambda x, w: w * (x / (1 + x * x)), 0),
}

#: By formula, where it is not the sum: how two partial results meet, how an axis is reduced.
REDUCTIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "dilation": (torch.maximum, torch.amax),
    "tangent_product": (torch.mul, torch.prod),
}
SUM = (torch.add, torch.sum)


def finish(case: Case, total: Tensor) -> Tensor:
    """What the formula makes of its reduction."""
    if case.formula.name == "gaussian":
        return torch.exp(-total / (case.shape.channels * math.prod(case.shape.window)))
    return total


# -- Kernels with a weight -------------------------------------------------------------------------------------------


def windows(padded: Tensor, shape: Shape) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """For each tap its place in the window, and the view of the image that it sees at all outputs."""
    for place in itertools.product(*map(range, shape.window)):
        seen = (slice(p, p + shape.stride * (n - 1) + 1, shape.stride) for p, n in zip(place, shape.y[2:]))
        yield place, padded[..., *seen]


def by_groups(x: Tensor, w: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """The padded image as [n, g, c, *image] and the weight as [g, o, c, *window]."""
    padded = F.pad(x, [shape.padding] * 2 * shape.rank) if shape.padding else x
    return padded.unflatten(1, (shape.groups, -1)), w.unflatten(0, (shape.groups, -1))


def loop_channels(case: Case, x: Tensor, w: Tensor) -> Tensor:
    """Loop over the taps and channels with shifted views."""
    tap, combine = TAPS[case.formula.name][0], REDUCTIONS.get(case.formula.name, SUM)[0]
    padded, w = by_groups(x, w, case.shape)
    total = None
    for place, seen in windows(padded, case.shape):
        for c in range(case.shape.channels):
            weight = w[:, :, c, *place].unflatten(1, (-1, *[1] * case.shape.rank))
            value = tap(seen[:, :, c, None], weight)
            total = value if total is None else combine(total, value)
    return finish(case, total).flatten(1, 2)


def loop_taps(case: Case, x: Tensor, w: Tensor) -> Tensor:
    """Loop over the taps, broadcast over the channels and reduce them."""
    tap, (combine, reduce) = TAPS[case.formula.name][0], REDUCTIONS.get(case.formula.name, SUM)
    padded, w = by_groups(x, w, case.shape)
    total = None
    for place, seen in windows(padded, case.shape):
        weight = w[:, :, :, *place].unflatten(2, (-1, *[1] * case.shape.rank))
        value = reduce(tap(seen[:, :, None], weight), 3)
        total = value if total is None else combine(total, value)
    return finish(case, total).flatten(1, 2)


def columns(x: Tensor, shape: Shape) -> Tensor:
    """Every window unfolded, [n, channels*taps, outputs]."""
    if shape.rank == 2:
        return F.unfold(x, shape.window, padding=shape.padding, stride=shape.stride)
    if shape.rank == 1:
        return F.unfold(x[:, :, None], (1, *shape.window), padding=(0, shape.padding), stride=(1, shape.stride))
    seen = F.pad(x, [shape.padding] * 6)
    for axis, size in enumerate(shape.window):
        seen = seen.unfold(2 + axis, size, shape.stride)
    return seen.permute(0, 1, 5, 6, 7, 2, 3, 4).flatten(5).flatten(1, 4)


def unfolded(case: Case, x: Tensor, w: Tensor) -> Tensor:
    """Unfold the image, broadcast against the weight, reduce."""
    shape = case.shape
    tap, reduce = TAPS[case.formula.name][0], REDUCTIONS.get(case.formula.name, SUM)[1]
    seen = columns(x, shape).unflatten(1, (shape.groups, 1, -1))
    total = reduce(tap(seen, w.flatten(1).unflatten(0, (shape.groups, -1))[..., None]), 3)
    return finish(case, total).flatten(1, 2).unflatten(2, shape.y[2:])


def distances(case: Case, x: Tensor, w: Tensor) -> Tensor:
    """Through `torch.cdist` on unfolded columns."""
    p = 2 if case.formula.name == "gaussian" else 1
    found = torch.cdist(columns(x, case.shape).transpose(1, 2), w.flatten(1), p=p).transpose(1, 2)
    return (-found if p == 1 else finish(case, found**2)).unflatten(2, case.shape.y[2:])


def vendor(case: Case, x: Tensor, w: Tensor) -> Tensor:
    """PyTorch's own convolution; of squared distances their three terms, which cancel for large numbers."""
    shape = case.shape
    conv = getattr(F, f"conv{shape.rank}d")
    convolve = functools.partial(conv, stride=shape.stride, padding=shape.padding, groups=shape.groups)
    if case.formula.name == "linear":
        return convolve(x, w)
    if case.formula.name == "rational":
        return convolve(x / (1 + x * x), w)
    squares = convolve(x * x, torch.ones_like(w[: shape.groups]))
    of_weights = (w * w).flatten(1).sum(1).unflatten(0, (-1, *[1] * shape.rank))
    return finish(case, squares.repeat_interleave(shape.filters // shape.groups, 1) + of_weights - 2 * convolve(x, w))


# -- Kernels without -------------------------------------------------------------------------------------------------

#: Exchanges after which the fifth of nine values is their median (Smith 1996).
MEDIAN_OF_NINE = (
    *((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3)),
    *((5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2)),
)

SIGMA, TAU = 1.5, 0.2
C1, C2 = 1e-4, 9e-4


def median_of_nine(values: Sequence[Any], low: Callable[[Any, Any], Any], high: Callable[[Any, Any], Any]) -> Any:
    ordered = list(values)
    for i, j in MEDIAN_OF_NINE:
        ordered[i], ordered[j] = low(ordered[i], ordered[j]), high(ordered[i], ordered[j])
    return ordered[4]


def nearness(shape: Shape) -> list[float]:
    """The exponent of the bilateral filter that comes from the distance to the centre, tap by tap."""
    offsets = [[p - (k - 1) // 2 for p in range(k)] for k in shape.window]
    return [-sum(d * d for d in place) / (2 * SIGMA**2) for place in itertools.product(*offsets)]


def similarity(mx: Any, mg: Any, vx: Any, vg: Any, cov: Any) -> Any:
    return (2 * mx * mg + C1) / (mx * mx + mg * mg + C1) * (2 * cov + C2) / (vx + vg + C2)


def loop_pool(case: Case, x: Tensor, g: Tensor | None = None) -> Tensor:
    """Loop over the taps with shifted views."""
    seen = [view for _, view in windows(x, case.shape)]
    add = functools.partial(functools.reduce, torch.add)
    match case.formula.name:
        case "soft_pool":
            top = functools.reduce(torch.maximum, seen).detach()
            shares = [torch.exp(view - top) for view in seen]
            return add([share * view for share, view in zip(shares, seen)]) / add(shares)
        case "bilateral":
            centre = seen[len(seen) // 2]
            shares = [torch.exp(a - (v - centre) ** 2 / (2 * TAU**2)) for a, v in zip(nearness(case.shape), seen)]
            return add([share * view for share, view in zip(shares, seen)]) / add(shares)
        case "median":
            return median_of_nine(seen, torch.minimum, torch.maximum)
        case "ssim":
            others = [view for _, view in windows(g, case.shape)]
            mx, mg = add(seen) / len(seen), add(others) / len(seen)
            deviations = [(a - mx, b - mg) for a, b in zip(seen, others)]
            vx = add([a * a for a, _ in deviations]) / len(seen)
            vg = add([b * b for _, b in deviations]) / len(seen)
            cov = add([a * b for a, b in deviations]) / len(seen)
            return similarity(mx, mg, vx, vg, cov)
    raise KeyError(case.formula.name)


def unfolded_pool(case: Case, x: Tensor, g: Tensor | None = None) -> Tensor:
    """Unfold the image to [n, c, taps, outputs] and reduce the taps."""

    def unfold(image: Tensor) -> Tensor:
        return columns(image, case.shape).unflatten(1, (image.shape[1], -1))

    seen = unfold(x)
    match case.formula.name:
        case "soft_pool":
            found = (seen * seen.softmax(2)).sum(2)
        case "bilateral":
            centre = seen[:, :, seen.shape[2] // 2, None]
            exponents = seen.new_tensor(nearness(case.shape))[:, None] - (seen - centre) ** 2 / (2 * TAU**2)
            found = (exponents.exp() * seen).sum(2) / exponents.exp().sum(2)
        case "median":
            found = seen.median(2).values
        case "ssim":
            others = unfold(g)
            mx, mg = seen.mean(2), others.mean(2)
            cov = ((seen - mx[:, :, None]) * (others - mg[:, :, None])).mean(2)
            found = similarity(mx, mg, seen.var(2, correction=0), others.var(2, correction=0), cov)
        case name:
            raise KeyError(name)
    return found.unflatten(2, case.shape.y[2:])


def averaged(case: Case, x: Tensor, g: Tensor | None = None) -> Tensor:
    """Through `F.avg_pool2d`, as published: SoftPool does not shift its exponents, SSIM takes E[x^2] - E[x]^2."""
    mean = functools.partial(F.avg_pool2d, kernel_size=case.shape.window, stride=case.shape.stride)
    if case.formula.name == "soft_pool":
        shares = torch.exp(x)
        return mean(shares * x) / mean(shares)
    mx, mg = mean(x), mean(g)
    return similarity(mx, mg, mean(x * x) - mx * mx, mean(g * g) - mg * mg, mean(x * g) - mx * mg)


# -- symconv ---------------------------------------------------------------------------------------------------------


def generated(case: Case, backend: str) -> Layer:
    """This package."""
    shape, kernel = case.shape, sc.Kernel(case.formula.text)
    if not shape.pools:
        conv = getattr(sc, f"conv{shape.rank}d")
        options = {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups, "backend": backend}
        return lambda x, w: conv(kernel, x, w, **options)
    given = {"backend": backend}
    if case.formula.name == "bilateral":
        given |= {"sigma": torch.tensor(SIGMA, device=device()), "tau": torch.tensor(TAU, device=device())}
    pool = functools.partial(sc.pool2d, kernel, kernel_size=shape.window, stride=shape.stride, **given)
    return lambda x, g=None: pool(x) if g is None else pool(x, g=g)


# -- All of them -----------------------------------------------------------------------------------------------------


def prepare(case: Case, layer: Layer, compiled: bool, direction: str) -> Run:
    """A step: the layer, and with backward the gradients of x and w."""
    learns = [t.requires_grad_(direction == "training") for t in (case.x, case.w) if t is not None]
    given = [*learns, *([] if case.g is None else [case.g])]
    grad_y = case.grad_y
    if compiled:
        torch._dynamo.reset()  # or the shapes of the last case would make this one's dynamic
        layer = torch.compile(layer, dynamic=False)

    def forward() -> Sequence[Tensor]:
        with torch.no_grad():
            return (layer(*given),)

    def training() -> Sequence[Tensor]:
        y = layer(*given)
        return (y.detach(), *torch.autograd.grad(y, learns, grad_y))

    return forward if direction == "forward" else training


def of_symconv(case: Case, backend: str, compiled: bool = False) -> Peer:
    name = f"symconv {backend}" + " compiled" * compiled
    make = functools.partial(prepare, case, generated(case, backend), compiled)
    return Peer(name, (Form("symconv", make),), counted=not compiled, compiles=compiled or backend != "torch")


def peers(case: Case) -> list[Peer]:
    """Every way of PyTorch that can compute the case."""
    name, shape = case.formula.name, case.shape

    def form(name: str, layer: Layer, compiled: bool = False, limit: float = 0.0) -> Form:
        bound = functools.partial(layer, case)
        memory = functools.partial(_bytes, case, layer is unfolded) if limit and not compiled else lambda _: 0.0
        return Form(name, functools.partial(prepare, case, bound, compiled), memory, limit or float("inf"))

    if shape.pools:
        loops = {"taps": loop_pool}
        at_once: Layer = unfolded_pool
        named = {"F.avg_pool2d": averaged} if name in ("soft_pool", "ssim") else {}
    else:
        loops = {"taps and channels": loop_channels, "taps": loop_taps}
        at_once = unfolded
        named = {"F.conv": vendor} if name in ("linear", "rational", "gaussian") else {}
        if name in ("adder", "gaussian") and shape.groups == 1 and shape.rank < 3:
            named["torch.cdist"] = distances
    if not shape.pools and shape.channels == 1:
        del loops["taps and channels"]  # it is the same
    found = [Peer(each, (form(each, layer),), counted=True) for each, layer in named.items()]
    found.append(Peer("loop", tuple(form(k, v, limit=LOOP_LIMIT) for k, v in loops.items()), counted=True))
    found.append(Peer("unfold", (form("unfold", at_once, limit=UNFOLD_LIMIT),), counted=True))
    for peer, layer in (("loop compiled", loops["taps"]), ("unfold compiled", at_once)):
        found.append(Peer(peer, (form("taps", layer, compiled=True),), compiles=True))
    return found


def _bytes(case: Case, at_once: bool, direction: str) -> float:
    """About how much a form takes: what it keeps of each tap, or while it computes the value and one before it."""
    if case.shape.pools:
        return 4.0 * case.shape.taps * (6 if direction == "training" else 3)
    kept = TAPS[case.formula.name][1]
    if direction == "training":
        return 4.0 * case.shape.taps * (kept + (2 if at_once else 0))
    return 4.0 * case.shape.taps * 2 / (1 if at_once else math.prod(case.shape.window))
