"""Filters, statistics and simulation steps: one window per channel."""

from __future__ import annotations

from .operator import Operator

_LAYER = "Pool2d({kernel}, 3, stride=1, padding=1)"
_REPLICATE = "Pool2d({kernel}, 3, stride=1, padding=1, padding_mode='replicate')"
_CIRCULAR = "Pool2d({kernel}, 3, stride=1, padding=1, padding_mode='circular')"

FILTERS = (
    Operator("local_variance", "the variance of the window", "var(x)", "definition", _LAYER),
    Operator("local_std", "the standard deviation", "std(x)", "definition", _LAYER, traps="gradient 0 where it is 0"),
    Operator(
        "local_contrast",
        "the pixel less its window's mean, over the standard deviation",
        "(x[c, 0] - mean(x))/maximum(std(x), 1e-3)",
        "after Jarrett et al. (2009), What Is the Best Multi-Stage Architecture for Object Recognition?",
        _LAYER,
    ),
    Operator("range_filter", "the maximum less the minimum", "max(x) - min(x)", "definition", _LAYER),
    Operator(
        "local_entropy",
        "the entropy of the window's values as shares of their sum",
        "p = x/sum(x)\n-sum(xlogx(p))",
        "Shannon (1948), A Mathematical Theory of Communication",
        _LAYER,
        domain=(0.0, float("inf")),
        traps="a zero pixel gives the whole window the gradient NaN; a blank window is 0/0",
    ),
    Operator(
        "rank_transform",
        "how many pixels of the window are darker than its centre",
        "sum(where(x < x[c, 0], 1, 0))",
        "Zabih, Woodfill (1994), Non-parametric Local Transforms for Computing Visual Correspondence",
        _LAYER,
        traps="a count: its gradient is 0",
    ),
    Operator(
        "local_binary_pattern",
        "the comparisons of eight neighbours with the centre, as bits in scan order (window 3 x 3)",
        "n = t - where(t > 4, 1, 0)\nsum(where((x >= x[c, 0]) & (t != 4), 2**n, 0))",
        "Ojala, Pietikainen, Harwood (1996), A Comparative Study of Texture Measures",
        _REPLICATE,
        traps="a code: its gradient is 0",
    ),
    Operator(
        "gaussian_blur",
        "a normalised Gaussian of learned width",
        "sigma: param[positive] = 1\nr = exp(-(dx**2 + dy**2)/(2*sigma**2))\nsum(x*r)/sum(r)",
        "definition",
        "Pool2d({kernel}, 5, stride=1, padding=2)",
    ),
    Operator(
        "bilateral",
        "a mean of the pixels that are near, and near in value",
        "sigma: param[positive] = 1.5\ntau: param[positive] = 0.2\n"
        "r = exp(-(dx**2 + dy**2)/(2*sigma**2) - (x - x[c, 0])**2/(2*tau**2))\nsum(r*x)/sum(r)",
        "Tomasi, Manduchi (1998), Bilateral Filtering for Gray and Color Images",
        "Pool2d({kernel}, 5, stride=1, padding=2)",
    ),
    Operator(
        "joint_bilateral",
        "a mean of the pixels that are near, and near in the values of a guide g",
        "g: input\nsigma: param[positive] = 1.5\ntau: param[positive] = 0.2\n"
        "r = exp(-(dx**2 + dy**2)/(2*sigma**2) - sum((g - g[c, 0])**2, dim=c)/(2*tau**2))\nsum(r*x)/sum(r, dim=t)",
        "Petschnigg et al. (2004), Digital Photography with Flash and No-Flash Image Pairs",
        "Pool2d({kernel}, 5, stride=1, padding=2)",
        traps="a guide whose channels are a multiple of those of x is split among them, any other is shared",
    ),
    Operator(
        "perona_malik",
        "a step of anisotropic diffusion",
        "lam: const = 0.2\nkappa: const = 0.1\nd = x - x[c, 0]\n"
        "x[c, 0] + lam*sum(where(abs(dx) + abs(dy) == 1, exp(-(d/kappa)**2)*d, 0))",
        "Perona, Malik (1990), Scale-Space and Edge Detection Using Anisotropic Diffusion",
        _REPLICATE,
        traps="unstable for lam > 1/4",
    ),
    Operator(
        "heat_step",
        "a step of the heat equation",
        "a: const = 0.2\nx[c, 0] + a*sum(where(abs(dx) + abs(dy) == 1, x - x[c, 0], 0))",
        "definition: explicit Euler step of the five-point Laplacian",
        _CIRCULAR,
        traps="unstable for a > 1/4",
    ),
    Operator(
        "wave_step",
        "a leapfrog step of the wave equation; u is the field one step ago",
        "u: input\na: const = 0.2\n2*x[c, 0] - u[c, 0] + a*sum(where(abs(dx) + abs(dy) == 1, x - x[c, 0], 0))",
        "definition: leapfrog step of the five-point Laplacian",
        _CIRCULAR,
        traps="unstable for a > 1/2",
    ),
    Operator(
        "gradient_magnitude",
        "the length of the image gradient",
        "eps: const = 1e-6\nsqrt(sum(dx*x)**2 + sum(dy*x)**2 + eps)",
        "Prewitt (1970), Object Enhancement and Extraction; summed over the image it is the total variation",
        _REPLICATE,
        traps="not divided by the sum of dx**2: the slope of a plane is the value over 6 in a window of 3 x 3",
    ),
    Operator(
        "squared_difference_normalised",
        "template matching: squared differences over the norms",
        "sum((x - w)**2)/sqrt(sum(x**2)*sum(w**2))",
        "definition: TM_SQDIFF_NORMED of OpenCV",
        "Conv2d({kernel}, 1, 1, 7)",
        traps="a blank patch divides by 0",
    ),
    Operator(
        "ssim",
        "structural similarity of x and a second image g",
        "g: input\nc1: const = 1e-4\nc2: const = 9e-4\nmx = mean(x)\nmg = mean(g)\n"
        "luminance = (2*mx*mg + c1)/(mx**2 + mg**2 + c1)\n"
        "structure = (2*cov(x, g) + c2)/(var(x) + var(g) + c2)\n"
        "luminance*structure",
        "after Wang et al. (2004), Image Quality Assessment: From Error Visibility to Structural Similarity",
        "Pool2d({kernel}, 7, stride=1)",
        traps="c1 and c2 are meant for images in [0, 1]; a flat window, population variances",
    ),
    Operator(
        "game_of_life",
        "a step of Conway's cellular automaton",
        "n = sum(x) - x[c, 0]\nwhere((n == 3) | (n == 2) & (x[c, 0] == 1), 1, 0)",
        "Gardner (1970), The Fantastic Combinations of John Conway's New Solitaire Game Life",
        _CIRCULAR,
        domain=(0.0, 1.0),
        traps="cells are 0 or 1; its gradient is 0",
    ),
)
