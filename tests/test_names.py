"""Names of operands that are words of generated code mean nothing there: kernels compute the same under any names."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from oracles import random

import symconv as sc
from symconv.backends import backends
from symconv.backends.torch import load
from symconv.eject import standalone
from symconv.language.axes import Domain
from symconv.printers.torch import TAKEN

#: Words of the generated functions, of the layers of standalone files, and of both languages.
WORDS = sorted(TAKEN) + ["shape", "totals", "mode", "sides", "images", "geometry", "rank"]
#: A formula with one more operand of each role, and the shape of that for images of a size.
ROLES: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "weight": ("{0}: weight\nsum({0}*w*x)*max({0} + x)", (2, 2, 1, 1)),
    "input": ("{0}: input\nsum({0}*w*x)*max({0} + x)", (1, 2, "size", "size")),
    "field": ("{0}: field\nsum({0}*w*x)*max({0} + x)", (1, "size", "size")),
    "param": ("{0}: param[o] = 2\nsum(w*x*{0})*max({0} + x)", (2,)),
    "const": ("{0}: const = 2\nsum(w*x**{0})*max({0}*x)", ()),
}


@pytest.mark.parametrize("role", ROLES)
def test_a_word_of_generated_code_is_a_name_like_others(role: str) -> None:
    """In several blocks of windows: what is overwritten in one would be missed in the next."""
    text, shape = ROLES[role]
    size = 400
    x, w, other = random(1, 2, size, size), random(2, 2, 1, 1), random(*(size if n == "size" else n for n in shape))

    def computed(name: str) -> list[torch.Tensor]:
        tensors = [each.clone().requires_grad_() for each in (x, w, other)][: 2 if role == "const" else 3]
        given: dict[str, Any] = {name: 2.0 if role == "const" else tensors[2]}
        y = sc.conv2d(text.format(name), *tensors[:2], backend="torch", **given)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    expected = computed("zeta")
    for word in WORDS:
        torch.testing.assert_close(computed(word), expected, msg=lambda message, word=word: f"{word}: {message}")


@pytest.mark.parametrize("role", ROLES)
def test_a_standalone_layer_takes_a_word_of_generated_code(role: str) -> None:
    text, shape = ROLES[role]
    x, other = random(1, 2, 4, 4), random(*(4 if n == "size" else n for n in shape))

    def computed(name: str) -> list[torch.Tensor]:
        layer = load(standalone(sc.Kernel(text.format(name))))["Layer"](2, 2, 1, padding="same", dtype=x.dtype)
        for parameter in layer.parameters():
            torch.nn.init.constant_(parameter, 0.7)
        y = layer(x, **({name: other} if role in ("input", "field") else {}))
        return [y, *torch.autograd.grad(y.square().sum(), [*layer.parameters()])]

    expected = computed("zeta")
    for word in WORDS:
        torch.testing.assert_close(computed(word), expected, msg=lambda message, word=word: f"{word}: {message}")


@pytest.mark.parametrize("first", range(4))
@pytest.mark.skipif(backends()["cpp"].unavailable() is not None, reason="needs a C++ compiler")
def test_words_of_generated_code_are_names_in_cpp(first: int) -> None:
    """All words at once, each in another role every time."""
    roles = {"weight": (2, 2, 3, 3), "input": (1, 2, 5, 5), "field[o]": (1, 2, 3, 3), "param[o]": (2,)}
    chosen = [[*roles][(k + first) % 4] for k in range(len(WORDS))]
    terms = [f"tanh({word})*w" if k % 2 else f"{word}*x" for k, word in enumerate(WORDS)]
    declared = [f"{word}: {role}" for word, role in zip(WORDS, chosen)]
    text = "\n".join([*declared, f"sum({' + '.join(terms)})*max({WORDS[first]}*x)"])
    given = {word: random(*roles[role]) for word, role in zip(WORDS, chosen)}
    x, w = random(1, 2, 5, 5), random(2, 2, 3, 3)

    def computed(backend: str) -> list[torch.Tensor]:
        tensors = {word: value.clone().requires_grad_() for word, value in given.items()}
        y = sc.conv2d(text, x, w, backend=backend, **tensors)
        return [y, *torch.autograd.grad(y.sum(), [*tensors.values()])]

    torch.testing.assert_close(computed("cpp"), computed("torch"))


def test_an_operand_is_no_argument_of_a_function() -> None:
    with pytest.raises(sc.FormulaError, match="is taken"):
        sc.Kernel("fast_math: param\nsum(w*x)*fast_math")


@pytest.mark.parametrize(
    "text", ["sum(x*w) + var({0}*{1}) + var({2})", "sum(x*w)*(sum({0}*{1}) + sum({2})*median({2}))"]
)
def test_names_that_look_like_several_others(backend: str, text: str) -> None:
    """Reductions over the channels of g and h, and over those of g_h, are others and have other counts."""

    def computed(*names: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        x, w = random(1, 3, 4, 4), random(2, 3, 2, 2)
        given = {name: random(1, channels, 4, 4) for name, channels in zip(names, (2, 2, 1))}
        tensors = [each.requires_grad_() for each in (x, w, *given.values())]
        declared = "".join(f"{name}: input\n" for name in names)
        y = sc.conv2d(declared + text.format(*names), x, w, backend=backend, **given)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    torch.testing.assert_close(computed("g", "h", "g_h"), computed("g", "h", "k"))


def test_parameters_at_the_channels_of_other_inputs(backend: str) -> None:
    """What is packed of h for the channels of g is not what is packed of g_h for those of x."""

    def computed(h: str, other: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        given = {"g": random(1, 2, 4, 4), h: random(2), other: random(2)}
        tensors = [each.requires_grad_() for each in (random(1, 3, 4, 4), random(2, 3, 2, 2), *given.values())]
        text = f"g: input\n{h}: param[o]\n{other}: param[o]\nsum(w*x) + sum(exp({h}*g)) + sum(exp({other}*x))"
        text += f" + sum(g*exp({h}*dx)) + sum(x*exp({other}*dx))"
        y = sc.conv2d(text, *tensors[:2], backend=backend, **given)
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    torch.testing.assert_close(computed("h", "g_h"), computed("p", "q"))


BANKS = {
    "pixel": "s: weight[3]\nsum(s[1]*tanh(x) + s[2]*x + exp(s[0])*x)",
    "peak": "s: weight[3]\nsum(x*s[1]) + logsumexp(x*s[0]) + sum(softmax(x*s[0])**2*s[2])",
    "argmax": "s: weight[3]\nsum(x*s[1]) + max(x*s[0])*sum(x*s[2])",
}


@pytest.mark.parametrize("word", BANKS)
def test_weights_of_a_bank_have_names_of_their_own(backend: str, word: str) -> None:
    """`peak[1]` is not called as the first maximum that is found, `pixel[1]` not as the first value of a pixel."""

    def computed(name: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        tensors = [random(1, 2, 5).requires_grad_(), random(3, 2, 2, 3).requires_grad_()]
        text = re.sub(r"\bs\b", name, BANKS[word])
        y = sc.conv1d(text, tensors[0], kernel_size=3, out_channels=2, backend=backend, **{name: tensors[1]})
        return [y, *torch.autograd.grad(y.square().sum(), tensors)]

    torch.testing.assert_close(computed(word), computed("s"))


def test_places_that_only_have_gradients(backend: str) -> None:
    """They are read nowhere, and gradients of one went to the other: both were called x_c_t_1_."""
    x, w, v = (random(*shape).requires_grad_() for shape in ((1, 2, 6), (1, 2, 3), (1, 2, 3)))
    y = sc.conv1d("v: weight\nsum(w*ste(x, x[c, t + 1]) + v*ste(x, x[c, t - 1]))", x, w, v=v, backend=backend)
    up = torch.arange(1.0, 5.0, dtype=x.dtype)
    expected = torch.zeros_like(x)
    for pixel, tap in itertools.product(range(4), range(3)):
        for weight, there in ((w, tap + 1), (v, tap - 1)):
            if 0 <= there < 3:
                expected[0, :, pixel + there] += up[pixel] * weight.detach()[0, :, tap]
    torch.testing.assert_close(torch.autograd.grad((y * up).sum(), x)[0], expected)


def test_no_two_domains_have_the_same_name() -> None:
    names = ["g", "h", "g_h", "h_i", "i", "g_0h", "c_g", "t", "_g", "g_", "2".join("ab")]
    groups = [(), *((name,) for name in names), *itertools.combinations(names, 2), *itertools.combinations(names, 3)]
    domains = [Domain(axes, inputs) for axes in ("c", "ct") for inputs in groups] + [Domain("t"), Domain("")]
    assert len({each.name for each in domains}) == len(domains)
