"""Pooling: one window per channel, no weight."""

from __future__ import annotations

from .operator import POSITIVE, UNIT, Operator

_LAYER = "Pool2d({kernel}, 2)"

POOLING = (
    Operator("max_pool", "the maximum, as torch.nn.MaxPool2d", "max(x)", "definition", _LAYER),
    Operator(
        "average_pool",
        "the mean, as torch.nn.AvgPool2d",
        "mean(x)",
        "definition",
        _LAYER,
        traps="with padding_mode='ignore' (the default) as count_include_pad=False, with 'zeros' as True",
    ),
    Operator(
        "lp_pool",
        "the p-norm, as torch.nn.LPPool2d",
        "p: const = 2\nsum(x**p)**(1/p)",
        "Sermanet, Chintala, LeCun (2012), Convolutional Neural Networks Applied to House Numbers Digit Classification",
        _LAYER,
        traps="NaN for negative sums; the gradient is infinite where the sum is 0",
    ),
    Operator(
        "generalised_mean",
        "the power mean of a learned exponent (GeM)",
        "p: param[positive] = 3\nmean(max(x, 1e-6)**p)**(1/p)",
        "Radenovic, Tolias, Chum (2018), Fine-tuning CNN Image Retrieval with No Human Annotation",
        _LAYER,
        domain=POSITIVE,
        traps="values below 1e-6 count as 1e-6, without gradient",
    ),
    Operator(
        "log_sum_exp_pool",
        "a smooth maximum",
        "r: const = 1\nlogsumexp(r*x)/r",
        "Pinheiro, Collobert (2015), From Image-Level to Pixel-Level Labeling with Convolutional Networks",
        _LAYER,
    ),
    Operator(
        "log_average_exp_pool",
        "between the mean and the maximum",
        "r: const = 1\n(logsumexp(r*x) - log(T))/r",
        "Lowe et al. (2021), LogAvgExp Provides a Principled and Performant Global Pooling Operator",
        _LAYER,
        traps="T counts ignored taps too",
    ),
    Operator(
        "soft_pool",
        "the mean weighted by softmax",
        "sum(x*softmax(x))",
        "Stergiou, Poppe, Kalliatakis (2021), Refining Activation Downsampling with SoftPool",
        _LAYER,
    ),
    Operator(
        "auto_pool",
        "the mean weighted by softmax of a learned sharpness",
        "alpha: param = 1\nsum(x*softmax(alpha*x))",
        "McFee, Salamon, Bello (2018), Adaptive Pooling Operators for Weakly Labeled Sound Event Detection",
        _LAYER,
    ),
    Operator(
        "mixed_pool",
        "a learned mixture of maximum and mean",
        "a: param = 0.5\na*max(x) + (1 - a)*mean(x)",
        "Lee, Gallagher, Tu (2016), Generalizing Pooling Functions in Convolutional Neural Networks",
        _LAYER,
        traps="a is not kept within [0, 1]",
    ),
    Operator(
        "magnitude_pool",
        "the value of the largest magnitude, sign kept",
        "where(max(x) >= max(-x), max(x), -max(-x))",
        "definition",
        _LAYER,
    ),
    Operator(
        "noisy_or_pool",
        "the probability that at least one of independent events happens",
        "1 - prod(1 - x)",
        "Zhang, Platt, Viola (2005), Multiple Instance Boosting for Object Detection",
        _LAYER,
        domain=UNIT,
        traps="saturates at 1 for large windows",
    ),
    Operator(
        "median_pool",
        "the median",
        "median(x)",
        "Tukey (1977), Exploratory Data Analysis",
        _LAYER,
        traps="the lower one for an even number of taps, as torch.median; all gradient goes to one tap",
    ),
    Operator(
        "quantile_pool",
        "a quantile, interpolated as torch.quantile",
        "quantile(x, 0.25)",
        "definition",
        _LAYER,
        traps="the rank is part of the formula: write quantile(x, 0.9) for another",
    ),
    Operator("geometric_mean_pool", "the geometric mean", "exp(mean(log(x)))", "definition", _LAYER, domain=POSITIVE),
    Operator("harmonic_mean_pool", "the harmonic mean", "1/mean(1/x)", "definition", _LAYER, domain=POSITIVE),
    Operator(
        "entropy_pool",
        "the entropy of the window's softmax",
        "-sum(xlogx(softmax(x)))",
        "Shannon (1948), A Mathematical Theory of Communication",
        _LAYER,
    ),
)
