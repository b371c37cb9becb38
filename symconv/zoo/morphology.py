"""Morphology and semifields: maxima and minima in place of sums."""

from __future__ import annotations

from .operator import POSITIVE, Operator

_LAYER = "Conv2d({kernel}, 3, 16, 3, padding=1, padding_mode='ignore')"
_MORPHOLOGY = "Serra (1982), Image Analysis and Mathematical Morphology"

MORPHOLOGY = (
    Operator(
        "dilation",
        "grey-scale dilation by a learned structuring element",
        "max(x + w)",
        _MORPHOLOGY,
        _LAYER,
        traps="pad with 'ignore': zeros would win over negative values; scipy and kornia flip its element",
        init="zeros",
    ),
    Operator(
        "erosion",
        "grey-scale erosion by a learned structuring element",
        "min(x - w)",
        _MORPHOLOGY,
        _LAYER,
        traps="pad with 'ignore'; an opening is an erosion followed by a dilation, two layers",
        init="zeros",
    ),
    Operator(
        "morphological_gradient", "dilation less erosion", "max(x + w) - min(x - w)", _MORPHOLOGY, _LAYER, init="zeros"
    ),
    Operator(
        "external_gradient",
        "dilation less the pixel itself",
        "max(x + w) - x[o, 0]",
        _MORPHOLOGY,
        "Conv2d({kernel}, 3, 3, 3, padding=1, padding_mode='ignore', groups=3)",
        init="zeros",
    ),
    Operator(
        "internal_gradient",
        "the pixel itself less the erosion",
        "x[o, 0] - min(x - w)",
        _MORPHOLOGY,
        "Conv2d({kernel}, 3, 3, 3, padding=1, padding_mode='ignore', groups=3)",
        init="zeros",
    ),
    Operator(
        "soft_dilation",
        "a smooth maximum",
        "beta: const = 5\nlogsumexp(beta*(x + w))/beta",
        "Maslov (1987), On a New Superposition Principle for Optimization Problems",
        _LAYER,
        traps="above the maximum by up to log(N)/beta; a large beta has the gradient of the maximum",
    ),
    Operator(
        "p_convolution",
        "counter-harmonic mean: erosion, convolution, dilation as p goes from -inf to inf",
        "p: param = 1\nsum(w*x**(p + 1))/sum(w*x**p)",
        "Masci, Angulo, Schmidhuber (2013), A Learning Framework for Morphological Operators",
        domain=POSITIVE,
        weights=POSITIVE,
        init="uniform",
        traps="x <= 0 has no power p: shift the image into [1, 2]",
    ),
    Operator(
        "tropical",
        "a maximum over taps, summed over channels",
        "sum(max(x + w, dim=t), dim=c)",
        "Fan, Liu, Luo (2021), An Alternative Practice of Tropical Convolution",
        _LAYER,
    ),
    Operator(
        "tropical_metric",
        "the tropical distance between patch and weight",
        "max(x - w) - min(x - w)",
        "Maclagan, Sturmfels (2015), Introduction to Tropical Geometry",
        _LAYER,
    ),
    Operator(
        "max_min",
        "fuzzy max-min composition",
        "max(min(x, w))",
        "Zadeh (1973), the compositional rule of inference",
        _LAYER,
    ),
    Operator(
        "hit_or_miss",
        "grey-scale hit-or-miss transform with two elements",
        "v: weight\nmin(x - w) - max(x + v)",
        _MORPHOLOGY,
        _LAYER,
    ),
    Operator(
        "root_semifield",
        "a power mean's sum: convolution over the root semifield",
        "p: param = 2\nsum((x*w)**p)**(1/p)",
        "definition: addition a, b -> (a**p + b**p)**(1/p)",
        domain=POSITIVE,
        weights=POSITIVE,
        init="uniform",
        traps="NaN where x*w is negative and p no whole number; the gradient for p is NaN where x*w is negative",
    ),
    Operator(
        "log_semifield",
        "convolution over the logarithmic semifield; mu < 0 gives a smooth minimum",
        "mu: const = 1\nlogsumexp(mu*(x + w))/mu",
        "definition: addition a, b -> log(exp(mu*a) + exp(mu*b))/mu",
        _LAYER,
    ),
)
