"""Kernels with a weight as hand-written loops for Numba.

Every image is made three-dimensional.  Inner loops run along a row of pixels, over contiguous slices, into a row of
totals: so LLVM makes vectors of them without being allowed to reorder a sum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from kernels import Case
from numpy.typing import NDArray
from peer import Form, Peer, Run
from pools_numba import prepare as prepare_pool

Array = NDArray[np.float32]

#: Fast mathematics without the parts that assume NaN and inf away.
FAST = {"reassoc", "contract", "arcp", "nsz"}

#: Pixels of a row that are visited at a time: a row of sound is too long for the cache.
TILE = 2048

F1 = np.float32(1)


def _clip(d: np.float32) -> np.float32:
    return min(max(d, -F1), F1)


_clip = numba.njit(_clip)

#: By formula: the value at a tap, and its derivatives for x and w; of a product, those of its logarithm.
TAPS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "linear": (lambda x, w: x * w, lambda x, w: w, lambda x, w: x),
    "adder": (lambda x, w: -abs(x - w), lambda x, w: np.sign(w - x), lambda x, w: np.sign(x - w)),
    "adder_published": (lambda x, w: -abs(x - w), lambda x, w: _clip(w - x), lambda x, w: x - w),
    "dilation": (lambda x, w: x + w, lambda x, w: F1, lambda x, w: F1),
    "tangent_product": (
        lambda x, w: math.tan(x + w),
        lambda x, w: _log_slope(math.tan(x + w)),
        lambda x, w: _log_slope(math.tan(x + w)),
    ),
    "gaussian": (lambda x, w: (x - w) * (x - w), lambda x, w: 2 * (x - w), lambda x, w: 2 * (w - x)),
    "sine": (lambda x, w: math.sin(x * w), lambda x, w: w * math.cos(x * w), lambda x, w: x * math.cos(x * w)),
    "exponential": (lambda x, w: math.exp(x * w), lambda x, w: w * math.exp(x * w), lambda x, w: x * math.exp(x * w)),
    "rational": (
        lambda x, w: w * x / (F1 + x * x),
        lambda x, w: w * (F1 - x * x) / ((F1 + x * x) * (F1 + x * x)),
        lambda x, w: x / (F1 + x * x),
    ),
}


@numba.njit
def _log_slope(tangent: np.float32) -> np.float32:
    return (F1 + tangent * tangent) / tangent


@functools.cache
def loops(name: str) -> tuple[Callable[..., Array], ...]:
    """The compiled loops of one formula: forward, what reaches each total, and the gradients of x and w."""
    jit = functools.partial(numba.njit, error_model="numpy", fastmath=FAST)
    tap, slope_x, slope_w = map(jit, TAPS[name])
    product, largest, gaussian = name == "tangent_product", name == "dilation", name == "gaussian"
    identity = np.float32(1 if product else -np.inf if largest else 0)

    @jit(parallel=True)
    def forward(x, w, y, stride, inverse):
        n_, o_, d_, h_, w_ = y.shape
        per_group = o_ // (x.shape[1] // w.shape[1])
        for no in numba.prange(n_ * o_):
            n, o = no // o_, no % o_
            first = o // per_group * w.shape[1]
            for z in range(d_):
                for i in range(h_):
                    for q0 in range(0, w_, TILE):
                        row = y[n, o, z, i, q0 : min(q0 + TILE, w_)]
                        for q in range(row.size):
                            row[q] = identity
                        for c in range(w.shape[1]):
                            for kz in range(w.shape[2]):
                                for ki in range(w.shape[3]):
                                    seen = x[n, first + c, z * stride + kz, i * stride + ki, q0 * stride :]
                                    for kq in range(w.shape[4]):
                                        add(row, seen[kq:], w[o, c, kz, ki, kq], stride)
                        if gaussian:
                            for q in range(row.size):
                                row[q] = math.exp(-row[q] * inverse)

    @jit
    def add(row, seen, weight, stride):
        if stride == 1:
            for q in range(row.size):
                value = tap(seen[q], weight)
                row[q] = row[q] * value if product else max(row[q], value) if largest else row[q] + value
        else:
            for q in range(row.size):
                value = tap(seen[q * stride], weight)
                row[q] = row[q] * value if product else max(row[q], value) if largest else row[q] + value

    @jit(parallel=True)
    def reaching(y, grad_y, inverse):
        reached = np.empty_like(y)
        flat_y, flat_grad, flat = y.ravel(), grad_y.ravel(), reached.ravel()
        for k in numba.prange(flat.size):
            value = flat_grad[k]
            flat[k] = value * flat_y[k] if product else -value * flat_y[k] * inverse if gaussian else value
        return reached

    @jit(parallel=True)
    def for_x(x, w, reached, grad_x, stride):
        n_, o_, d_, h_, w_ = reached.shape
        c_ = x.shape[1]
        groups = c_ // w.shape[1]
        tiles = (x.shape[4] + TILE - 1) // TILE
        for place in numba.prange(n_ * c_ * tiles):
            n, channel, tile = place // (c_ * tiles), place // tiles % c_, place % tiles
            group, c = channel // w.shape[1], channel % w.shape[1]
            begin, end = tile * TILE, min(tile * TILE + TILE, x.shape[4])
            for o in range(group * (o_ // groups), (group + 1) * (o_ // groups)):
                for z in range(d_):
                    for i in range(h_):
                        for kz in range(w.shape[2]):
                            for ki in range(w.shape[3]):
                                seen = x[n, channel, z * stride + kz, i * stride + ki]
                                total = grad_x[n, channel, z * stride + kz, i * stride + ki]
                                for kq in range(w.shape[4]):
                                    # The outputs whose tap kq lies within this tile of the row of x.
                                    q0 = max((begin - kq + stride - 1) // stride, 0)
                                    q1 = min((end - kq + stride - 1) // stride, w_)
                                    if q0 < q1:
                                        at = q0 * stride + kq
                                        grad = reached[n, o, z, i, q0:q1]
                                        scatter(total[at:], seen[at:], grad, w[o, c, kz, ki, kq], stride)

    @jit
    def scatter(total, seen, grad, weight, stride):
        if stride == 1:
            for q in range(grad.size):
                total[q] += grad[q] * slope_x(seen[q], weight)
        else:
            for q in range(grad.size):
                total[q * stride] += grad[q] * slope_x(seen[q * stride], weight)

    @jit(parallel=True)
    def for_w(x, w, reached, grad_w, stride):
        n_, o_, d_, h_, w_ = reached.shape
        c_ = w.shape[1]
        per_group = o_ // (x.shape[1] // c_)
        for oc in numba.prange(o_ * c_):
            o, c = oc // c_, oc % c_
            channel = o // per_group * c_ + c
            row = np.empty(min(w_, TILE), np.float32)
            for kz in range(w.shape[2]):
                for ki in range(w.shape[3]):
                    for kq in range(w.shape[4]):
                        weight = w[o, c, kz, ki, kq]
                        row[:] = 0
                        for n in range(n_):
                            for z in range(d_):
                                for i in range(h_):
                                    seen = x[n, channel, z * stride + kz, i * stride + ki]
                                    for q0 in range(0, w_, TILE):
                                        grad = reached[n, o, z, i, q0 : min(q0 + TILE, w_)]
                                        gather(row, seen[q0 * stride + kq :], grad, weight, stride)
                        grad_w[o, c, kz, ki, kq] = row.sum()

    @jit
    def gather(row, seen, grad, weight, stride):
        if stride == 1:
            for q in range(grad.size):
                row[q] += grad[q] * slope_w(seen[q], weight)
        else:
            for q in range(grad.size):
                row[q] += grad[q] * slope_w(seen[q * stride], weight)

    return forward, reaching, for_x, for_w


@functools.cache
def dilation_loops() -> tuple[Callable[..., Any], ...]:
    """The maximum with the position of the tap that has it, and the gradients by way of it."""
    jit = functools.partial(numba.njit, error_model="numpy", fastmath=FAST)

    @jit(parallel=True)
    def forward(x, w, y, position, stride):
        n_, o_, d_, h_, w_ = y.shape
        per_group = o_ // (x.shape[1] // w.shape[1])
        for no in numba.prange(n_ * o_):
            n, o = no // o_, no % o_
            first = o // per_group * w.shape[1]
            for z in range(d_):
                for i in range(h_):
                    for q0 in range(0, w_, TILE):
                        row, at = y[n, o, z, i, q0 : min(q0 + TILE, w_)], position[n, o, z, i, q0:]
                        for q in range(row.size):
                            row[q] = -np.inf
                        k = np.int32(0)
                        for c in range(w.shape[1]):
                            for kz in range(w.shape[2]):
                                for ki in range(w.shape[3]):
                                    seen = x[n, first + c, z * stride + kz, i * stride + ki, q0 * stride :]
                                    for kq in range(w.shape[4]):
                                        add(row, at, seen[kq:], w[o, c, kz, ki, kq], k, stride)
                                        k += np.int32(1)

    @jit
    def add(row, at, seen, weight, k, stride):
        if stride == 1:
            for q in range(row.size):
                value = seen[q] + weight
                at[q] = k if value > row[q] else at[q]
                row[q] = max(value, row[q])
        else:
            for q in range(row.size):
                value = seen[q * stride] + weight
                at[q] = k if value > row[q] else at[q]
                row[q] = max(value, row[q])

    @jit(parallel=True)
    def for_x(w, position, grad_y, grad_x, stride):
        n_, o_, d_, h_, w_ = grad_y.shape
        groups = grad_x.shape[1] // w.shape[1]
        kz_, ki_, kq_ = w.shape[2:]
        for place in numba.prange(n_ * groups):
            n, group = place // groups, place % groups
            for o in range(group * (o_ // groups), (group + 1) * (o_ // groups)):
                for z in range(d_):
                    for i in range(h_):
                        for q in range(w_):
                            k = position[n, o, z, i, q]
                            k, kq = k // kq_, k % kq_
                            k, ki = k // ki_, k % ki_
                            c, kz = k // kz_, k % kz_
                            channel = group * w.shape[1] + c
                            at = grad_x[n, channel, z * stride + kz, i * stride + ki]
                            at[q * stride + kq] += grad_y[n, o, z, i, q]

    @jit(parallel=True)
    def for_w(position, grad_y, grad_w):
        n_, o_, d_, h_, w_ = grad_y.shape
        for o in numba.prange(o_):
            of_filter = grad_w[o].ravel()
            for n in range(n_):
                for z in range(d_):
                    for i in range(h_):
                        for q in range(w_):
                            of_filter[position[n, o, z, i, q]] += grad_y[n, o, z, i, q]

    return forward, for_x, for_w


def prepare(case: Case, direction: str) -> Run:
    """The step as NumPy arrays; padding is part of it."""
    shape = case.shape
    lifted = 3 - shape.rank
    name = case.formula.name

    def lift(tensor: Any) -> Array:
        return tensor.numpy().reshape(*tensor.shape[:2], *(1,) * lifted, *tensor.shape[2:])

    x, w, grad_y = lift(case.x), lift(case.w), lift(case.grad_y)
    pairs = [(0, 0)] * (2 + lifted) + [(shape.padding,) * 2] * shape.rank
    inner = tuple(slice(before, size + before) for (before, _), size in zip(pairs, x.shape))
    inverse = np.float32(1 / (shape.channels * math.prod(shape.window)))

    def lowered(array: Array) -> Array:
        return array.reshape(*array.shape[:2], *array.shape[2 + lifted :])

    def padded() -> Array:
        return np.pad(x, pairs) if shape.padding else x

    def forward() -> Sequence[Array]:
        y = np.empty(grad_y.shape, np.float32)
        loops(name)[0](padded(), w, y, shape.stride, inverse)
        return (lowered(y),)

    def training() -> Sequence[Array]:
        seen = padded()
        y, grad_x, grad_w = np.empty(grad_y.shape, np.float32), np.zeros_like(seen), np.zeros_like(w)
        if name == "dilation":
            forward_max, for_x, for_w = dilation_loops()
            position = np.empty(y.shape, np.int32)
            forward_max(seen, w, y, position, shape.stride)
            for_x(w, position, grad_y, grad_x, shape.stride)
            for_w(position, grad_y, grad_w)
        else:
            forward_all, reaching, for_x, for_w = loops(name)
            forward_all(seen, w, y, shape.stride, inverse)
            reached = reaching(y, grad_y, inverse)
            for_x(seen, w, reached, grad_x, shape.stride)
            for_w(seen, w, reached, grad_w, shape.stride)
        return lowered(y), lowered(np.ascontiguousarray(grad_x[inner])), lowered(grad_w)

    return forward if direction == "forward" else training


def peers(case: Case) -> list[Peer]:
    """The loops with fast mathematics, which is never slower, and whose results are checked as all others are."""
    if case.shape.pools:
        return [Peer("numba", (Form("loops", functools.partial(prepare_pool, case)),), compiles=True)]
    return [Peer("numba", (Form("loops", functools.partial(prepare, case)),), compiles=True)]
