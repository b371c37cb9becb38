"""Kernels without a weight as hand-written loops for Numba: a plane of the image at a time, a window at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from kernels import Case
from numpy.typing import NDArray
from peer import Run
from peers_torch import C1, C2, MEDIAN_OF_NINE, TAU, nearness

Array = NDArray[np.float32]

jit = functools.partial(numba.njit, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})


@jit(parallel=True)
def soft_pool(x, g, y, grad_y, grad_x, k, stride, near):
    for n in numba.prange(y.shape[0]):
        shares = np.empty((k, k), np.float32)
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                top = -np.float32(np.inf)
                for a in range(k):
                    for b in range(k):
                        top = max(top, x[n, i * stride + a, j * stride + b])
                total, mean = np.float32(0), np.float32(0)
                for a in range(k):
                    for b in range(k):
                        value = x[n, i * stride + a, j * stride + b]
                        shares[a, b] = math.exp(value - top)
                        total += shares[a, b]
                        mean += shares[a, b] * value
                mean /= total
                y[n, i, j] = mean
                if grad_x.size:
                    scale = grad_y[n, i, j] / total
                    for a in range(k):
                        for b in range(k):
                            value = x[n, i * stride + a, j * stride + b]
                            part = scale * shares[a, b] * (np.float32(1) + value - mean)
                            grad_x[n, i * stride + a, j * stride + b] += part


@jit(parallel=True)
def bilateral(x, g, y, grad_y, grad_x, k, stride, near):
    narrow = np.float32(1 / (2 * TAU**2))
    half = (k - 1) // 2
    for n in numba.prange(y.shape[0]):
        shares = np.empty((k, k), np.float32)
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                centre = x[n, i * stride + half, j * stride + half]
                total, mean = np.float32(0), np.float32(0)
                for a in range(k):
                    for b in range(k):
                        value = x[n, i * stride + a, j * stride + b]
                        d = value - centre
                        shares[a, b] = math.exp(near[a, b] - d * d * narrow)
                        total += shares[a, b]
                        mean += shares[a, b] * value
                mean /= total
                y[n, i, j] = mean
                if grad_x.size:
                    scale = grad_y[n, i, j] / total
                    for_centre = np.float32(0)
                    for a in range(k):
                        for b in range(k):
                            value = x[n, i * stride + a, j * stride + b]
                            through = (value - mean) * 2 * narrow * (value - centre)
                            part = scale * shares[a, b] * (np.float32(1) - through)
                            for_centre += scale * shares[a, b] * through
                            grad_x[n, i * stride + a, j * stride + b] += part
                    grad_x[n, i * stride + half, j * stride + half] += for_centre


@jit(parallel=True)
def median(x, g, y, grad_y, grad_x, k, stride, near):
    for n in numba.prange(y.shape[0]):
        rows = np.empty((k * k, y.shape[2]), np.float32)
        for i in range(y.shape[1]):
            for tap in range(k * k):
                for j in range(y.shape[2]):
                    rows[tap, j] = x[n, i * stride + tap // k, j * stride + tap % k]
            for low, high in numba.literal_unroll(MEDIAN_OF_NINE):
                lows, highs = rows[low], rows[high]
                for j in range(y.shape[2]):
                    a, b = lows[j], highs[j]
                    lows[j], highs[j] = min(a, b), max(a, b)
            y[n, i] = rows[4]
            if grad_x.size:
                for j in range(y.shape[2]):
                    for tap in range(k * k):
                        if x[n, i * stride + tap // k, j * stride + tap % k] == y[n, i, j]:
                            grad_x[n, i * stride + tap // k, j * stride + tap % k] += grad_y[n, i, j]
                            break


@jit(parallel=True)
def ssim(x, g, y, grad_y, grad_x, k, stride, near):
    share = np.float32(1 / (k * k))
    c1, c2 = np.float32(C1), np.float32(C2)
    for n in numba.prange(y.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                mx, mg = np.float32(0), np.float32(0)
                for a in range(k):
                    for b in range(k):
                        mx += x[n, i * stride + a, j * stride + b]
                        mg += g[n, i * stride + a, j * stride + b]
                mx, mg = mx * share, mg * share
                vx, vg, cov = np.float32(0), np.float32(0), np.float32(0)
                for a in range(k):
                    for b in range(k):
                        dx = x[n, i * stride + a, j * stride + b] - mx
                        dg = g[n, i * stride + a, j * stride + b] - mg
                        vx, vg, cov = vx + dx * dx, vg + dg * dg, cov + dx * dg
                vx, vg, cov = vx * share, vg * share, cov * share
                of_means, of_spreads = mx * mx + mg * mg + c1, vx + vg + c2
                luminance, structure = (2 * mx * mg + c1) / of_means, (2 * cov + c2) / of_spreads
                y[n, i, j] = luminance * structure
                if grad_x.size:
                    scale = 2 * share * grad_y[n, i, j]
                    level = scale * structure * (mg - luminance * mx) / of_means
                    along, against = scale * luminance / of_spreads, scale * luminance * structure / of_spreads
                    for a in range(k):
                        for b in range(k):
                            dx = x[n, i * stride + a, j * stride + b] - mx
                            dg = g[n, i * stride + a, j * stride + b] - mg
                            grad_x[n, i * stride + a, j * stride + b] += level + along * dg - against * dx


#: By formula: fills y, and grad_x too unless it is empty.
LOOPS: dict[str, Callable[..., None]] = {
    "soft_pool": soft_pool,
    "bilateral": bilateral,
    "median": median,
    "ssim": ssim,
}


def prepare(case: Case, direction: str) -> Run:
    shape = case.shape
    k = shape.window[0]

    def planes(tensor: Any) -> Array:
        return tensor.flatten(0, 1).numpy()

    x, grad_y = planes(case.x), planes(case.grad_y)
    g = x if case.g is None else planes(case.g)
    near = np.array(nearness(shape), np.float32).reshape(k, k)

    def run(grad_x: Array) -> Array:
        y = np.empty(grad_y.shape, np.float32)
        LOOPS[case.formula.name](x, g, y, grad_y, grad_x, k, shape.stride, near)
        return y.reshape(shape.y)

    def forward() -> Sequence[Array]:
        return (run(np.empty((0, 0, 0), np.float32)),)

    def training() -> Sequence[Array]:
        grad_x = np.zeros_like(x)
        return run(grad_x), grad_x.reshape(shape.x)

    return forward if direction == "forward" else training
