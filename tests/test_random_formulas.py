"""Random formulas and random texts: values and gradients against `evaluator`, and a parser that is never surprised."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import BACKENDS
from evaluator import DECLARED, Formula, Geometry, Node, evaluate, read
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import symconv as sc
from symconv.language.parser import parse

Labels = frozenset[str]
NONE: Labels = frozenset()
ALL: Labels = frozenset(("c", "c:g", "t"))
#: The operands that vary along no more than these axes of a window; those of "c:g" are read from `g`.
LEAVES: dict[str, list[Node]] = {
    "": [
        *(Node("number", (), number) for number in (2, 0.5, 1, 3, 1.5)),
        *(Node("name", (), name) for name in ("p", "a", "b", "q", "m", "beta", "o", "T", "C", "N")),
    ],
    "t": [Node("name", (), name) for name in ("r", "k", "dx", "dy", "t")],
    "c": [Node("name", (), name) for name in ("d", "c", "u")]
    + [Node("read", (), place) for place in (("x", "c", "0", None), ("w", "c", "0", None), ("s", "c", "0", 1))],
    "ct": [Node("name", (), name) for name in ("x", "w", "v")]
    + [Node("read", (), ("s", "c", "t", element)) for element in (0, 1)]
    + [Node("read", (), place) for place in (("x", "c", "t+1", None), ("w", "c", "t-1", None))],
    "g": [Node("read", (), ("g", "c", "0", None))],
    "gt": [Node("name", (), "g"), Node("read", (), ("g", "c", "t-1", None))],
    "own": [Node("read", (), (name, "o", "0", None)) for name in ("x", "g")],
    "own t": [Node("read", (), (name, "o", "t", None)) for name in ("x", "g", "w")],
}
X, W = Node("name", (), "x"), Node("name", (), "w")
REDUCTIONS = ("sum", "mean", "max", "prod", "min", "logsumexp", "norm", "var", "std", "cov", "median", "quantile")
WEIGHTED = ("mean", "var", "std", "cov")
BOUNDED = ("sin", "tanh", "cos", "sigmoid", "atan", "erf")


def call(name: str, *args: Node, value: Any = None) -> Node:
    """A node."""
    return Node(name, args, value)


def number(value: float) -> Node:
    """A number."""
    return Node("number", (), value)


class Grammar:
    """Draws well-formed formulas.

    Args:
        draw: Hypothesis's.
        rank: of the image: `dy` needs two axes.
        own: whether outputs have a channel of their own, x[o, t].
        single: whether each group has one channel, so that x[c, 0] may stand outside reductions.
    """

    def __init__(self, draw: st.DrawFn, rank: int, own: bool, single: bool) -> None:
        self.draw, self.single = draw, single
        self.leaves = {axes: list(nodes) for axes, nodes in LEAVES.items() if own or not axes.startswith("own")}
        if rank == 1:
            self.leaves["t"] = [node for node in self.leaves["t"] if node.value != "dy"]
        self.lines: list[Node] = []
        self.reductions = 4  # how many more may be drawn: they make formulas slow to differentiate
        self.bound = 0  # how many Sum(..., (j, ...)) are around

    def formula(self) -> Formula:
        """A formula that names x."""
        for index in range(self.pick([0, 0, 1, 2])):
            labels = self.pick([ALL, ALL - {"c:g"}, frozenset("t"), frozenset("c"), NONE])
            self.lines.append(call("line", self.expression(labels, 2), value=f"e{index + 1}"))
        result = self.reduction(NONE, 3) if self.pick([True, True, False]) else self.expression(NONE, 3)
        if self.single and self.chance(4):
            result = call(self.pick("+*"), result, Node("read", (), ("x", "c", "0", None)))
        if "x" not in result.names:
            result = call("+", result, self.reduce("sum", call("*", W, X) if self.chance(1) else X, "ct"))
        return Formula(result)

    def pick(self, choices: Any) -> Any:
        """One of them; Hypothesis shrinks towards the first."""
        return self.draw(st.sampled_from(choices))

    def chance(self, one_in: int) -> bool:
        """True once in so many."""
        return self.draw(st.integers(0, one_in)) == one_in

    # -- Expressions: each varies along no more than the axes `labels` ---------------------------------------------

    def expression(self, labels: Labels, depth: int) -> Node:
        """Any value."""
        kinds = ["leaf"]
        if depth > 0:
            kinds += ["binary", "binary", "binary", "unary", "unary", "line", "line", "scaled", "choice"]
            kinds += ["reduction"] * (3 if self.reductions > 0 else 0) + ["rare", "rare"]
        return getattr(self, self.pick(kinds))(labels, depth - 1)

    def leaf(self, labels: Labels, depth: int = 0) -> Node:
        """An operand, or a number; rather one that varies."""
        kinds = [kind for kind, axes in self.kinds(labels).items()]
        kind = self.pick(kinds)
        if self.bound and "c" in labels and "t" in labels and self.chance(1):
            return Node("read", (), ("s", "c", "t", "j"))
        return self.pick(self.leaves[kind])

    def kinds(self, labels: Labels) -> dict[str, Labels]:
        """The groups of leaves that vary along no more than `labels`, those that vary most first."""
        axes = {
            "ct": frozenset("ct"), "gt": frozenset(("c:g", "t")), "own t": frozenset("t"), "t": frozenset("t"),
            "c": frozenset("c"), "g": frozenset(("c:g",)), "own": NONE, "": NONE,
        }  # fmt: skip
        return {kind: each for kind, each in axes.items() if each <= labels and kind in self.leaves}

    def line(self, labels: Labels, depth: int) -> Node:
        """A line above, if one fits."""
        fitting = [line for line in self.lines if line.labels <= labels]
        return self.pick(fitting) if fitting else self.leaf(labels)

    def binary(self, labels: Labels, depth: int) -> Node:
        """A sum, difference, product or quotient."""
        op = self.pick(["+", "*", "-", "*", "/"])
        right = self.positive(labels, depth) if op == "/" else self.expression(labels, depth)
        return call(op, self.expression(labels, depth), right)

    def scaled(self, labels: Labels, depth: int) -> Node:
        """A value with a number, or negated."""
        value = self.expression(labels, depth)
        kind = self.pick(["neg", "*", "+", "-", "/"])
        if kind == "neg":
            return call("neg", value)
        factor = number(self.pick([2, 0.5, 3, 1, 1.25]))
        return call(kind, value, factor) if kind == "/" or self.pick([True, False]) else call(kind, factor, value)

    def unary(self, labels: Labels, depth: int) -> Node:
        """A function of one value."""
        name = self.pick([*BOUNDED, "square", "exp", "sqrt", "log", "abs", "cube", "relu", "softplus", "silu"])
        if name in ("square", "cube"):
            return call("**", self.expression(labels, depth), number(2 if name == "square" else 3))
        if name in ("sqrt", "log"):
            return call(name, self.positive(labels, depth))
        return call(name, (self.bounded if name == "exp" else self.expression)(labels, depth))

    def bounded(self, labels: Labels, depth: int) -> Node:
        """A value of moderate size."""
        kind = self.pick(["wave", "leaf", "below"])
        if kind == "leaf":
            return self.leaf(labels)
        if kind == "below":
            return call("neg", call(self.pick(["abs", "softplus"]), self.expression(labels, depth - 1)))
        return call(self.pick(BOUNDED), self.expression(labels, depth - 1))

    def positive(self, labels: Labels, depth: int) -> Node:
        """A value above 0."""
        kind = self.pick(["square", "abs", "exp", "sigmoid", "number", "hypot"])
        if kind == "number":
            return number(self.pick([2, 0.5, 3]))
        if kind == "exp":
            return call("exp", self.bounded(labels, depth - 1))
        value = self.expression(labels, depth - 1)
        if kind == "square":
            return call("+", call("**", value, number(2)), number(1))
        if kind == "hypot":
            return call("+", call("hypot", value, self.leaf(labels)), number(0.5))
        return call("+", call(kind, value), number(0.25 if kind == "sigmoid" else 1))

    def choice(self, labels: Labels, depth: int) -> Node:
        """A value by condition."""
        kind = self.pick(["max", "where", "min", "maximum", "minimum", "guard"])
        if kind == "guard":
            name = self.pick(["log", "sqrt"])
            return call("guard", self.expression(labels, depth), self.expression(labels, depth), value=name)
        values = [self.expression(labels, depth) for _ in range(3 if kind in ("max", "min") and self.chance(3) else 2)]
        return call("where", self.condition(labels, depth), *values) if kind == "where" else call(kind, *values)

    def condition(self, labels: Labels, depth: int) -> Node:
        """A condition."""
        kind = self.pick([">", "<", ">=", "<=", "&", "|", "~"])
        if kind == "~":
            return call("~", self.comparison(labels, depth))
        if kind in "&|":
            return call(kind, self.comparison(labels, 0), self.comparison(labels, depth))
        return self.comparison(labels, depth, kind)

    def comparison(self, labels: Labels, depth: int, op: str = "") -> Node:
        """A comparison of two values."""
        return call(op or self.pick(["<", ">="]), self.expression(labels, depth), self.expression(labels, 0))

    def rare(self, labels: Labels, depth: int) -> Node:
        """Gradients by choice, powers, sums over a bank, shares."""
        kinds = ["power", "detach", "ste"]
        kinds += ["softmax"] if labels and self.reductions > 0 else []
        kinds += ["Sum"] if labels >= {"c", "t"} and not self.bound else []
        kinds += ["custom_grad"]
        kind = self.pick(kinds)
        if kind == "softmax":
            self.reductions -= 1
            return self.softmax(labels, depth)
        if kind == "power":
            return call("**", self.positive(labels, depth), self.bounded(labels, depth))
        if kind == "detach":
            return call("detach", self.expression(labels, depth))
        if kind == "ste":
            value = self.expression(labels, depth)
            return call("ste", call("sign", value), self.expression(labels, depth))
        if kind == "Sum":
            self.bound += 1
            lines, self.lines = self.lines, []
            value = call("Sum", self.expression(labels, depth), value=(0, 1))
            self.bound -= 1
            self.lines = lines
            return value
        value = self.expression(labels, depth)
        seen = labels if value.labels else NONE  # slopes per tap belong to a value per tap
        names = ["p", "a", "b", "q", *(["x", "w", "v"] if seen >= {"c", "t"} else []), *("r" * ("t" in seen))]
        named = self.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
        slopes = [self.expression(seen, depth) for _ in named]
        return call("custom_grad", value, *slopes, value=tuple(named))

    # -- Reductions ------------------------------------------------------------------------------------------------

    def reduction(self, labels: Labels, depth: int) -> Node:
        """A value without the axes reduced."""
        self.reductions -= 1
        taken = [dims for dims in ("ct", "t", "c") if not self.clashes(dims, labels)]
        dims = self.pick(taken)
        inside = labels | ({"t"} if "t" in dims else set()) | ({"c", "c:g"} if "c" in dims else set())
        name = self.pick(REDUCTIONS)
        value = self.covering(inside, dims, depth)
        if name == "quantile":
            q = self.pick([number(0.25), number(0.5), Node("name", (), "beta"), number(0.8), number(1), number(0)])
            return self.reduce(name, value, dims, q)
        rest = [self.covering(inside, dims, depth - 1)] if name == "cov" else []
        weighted = name in WEIGHTED and self.pick([False, True])
        rest += [self.positive(inside, depth - 1)] if weighted else []
        return self.reduce(name, value, dims, *rest, weighted=weighted)

    def clashes(self, dims: str, labels: Labels) -> bool:
        """Whether a reduction over `dims` would give, or need, a value that `labels` forbid."""
        return len(dims) == 1 and not labels and self.pick([True, False])

    def covering(self, labels: Labels, dims: str, depth: int) -> Node:
        """A value that varies along all of `dims`."""
        value = self.expression(labels, depth)
        axes = {label[0] for label in value.labels}
        if not set(dims) <= axes:
            more = {"c": ["c"], "t": ["t", *(["own t"] if "own t" in self.leaves else [])], "ct": ["ct"]}
            missing = "".join(axis for axis in dims if axis not in axes)
            if missing == "c" and "c" not in labels:
                missing = "g"
                more["g"] = ["g"]
            if len(dims) == 2 and value.whole and value.labels and self.chance(2):
                return value  # the same at all taps, or in all channels, and counted so many times
            value = call(self.pick("*+"), self.pick(self.leaves[self.pick(more[missing])]), value)
        return value

    def reduce(self, name: str, value: Node, dims: str, *rest: Node, weighted: bool = False) -> Node:
        """A reduction; over both axes `dim=` may be left out, and must be where it has only one."""
        args = (value, *rest)
        axes = {label[0] for argument in args for label in argument.labels}
        if len(dims) == 2 and axes != {"c", "t"} and not all(argument.whole for argument in args):
            args, axes = (call("*", value, X), *rest), {"c", "t"}
        said = len(dims) == 1 or (axes == {"c", "t"} and self.chance(2))
        if said and len(dims) == 2 and self.pick([False, True]):
            dims = "tc"
        return call("reduce", *args, value=(name, dims, weighted, said))

    def softmax(self, labels: Labels, depth: int) -> Node:
        """The share of each tap."""
        axes = "".join(sorted({label[0] for label in labels}))
        dims = self.pick([axes, *(axes if len(axes) == 2 else ())])
        return call("softmax", self.covering(labels, dims, depth), value=dims)


@dataclass(frozen=True)
class Case:
    """A formula, its windows and the seed of its numbers."""

    formula: Formula
    geometry: Geometry
    seed: int

    def __repr__(self) -> str:
        return f"{self.formula.text!r} with {self.geometry}, seed {self.seed}"


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Windows on images of one or two axes; some lie wholly outside."""
    rank = draw(st.integers(1, 2))
    per_axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel_size, stride, dilation, padding = per_axis(1, 3), per_axis(1, 2), per_axis(1, 2), per_axis(0, 2)
    least = [max(d * (k - 1) + 1 - 2 * p, 1) for k, d, p in zip(kernel_size, dilation, padding)]
    more = [draw(st.integers(0, 2)) for _ in least]
    more[-1] += draw(st.sampled_from([0, 0, 0, 17, 40]))  # tiles of windows, and below of filters, are crossed
    image = tuple(low + beyond for low, beyond in zip(least, more))
    groups, channels = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    filters = draw(st.sampled_from([1, 2, 1, 2, 5, 9]))
    if draw(st.booleans()):
        filters = channels
    own = draw(st.sampled_from([1, groups, groups * channels]))
    batch, ignore = draw(st.integers(1, 2)), draw(st.booleans())
    return Geometry(
        batch, image, channels, filters, groups, kernel_size, stride, dilation, padding, ignore, own_channels=own
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case."""
    geometry = draw(geometries())
    outputs = geometry.groups * geometry.filters
    own = geometry.channels == geometry.filters and geometry.own_channels in (1, outputs)
    formula = Grammar(draw, geometry.rank, own, geometry.channels == 1).formula()
    if any(node.op == "softmax" and "c" in node.value and "c:g" in node.labels for node in formula.result.walk()):
        geometry = replace(geometry, own_channels=geometry.groups * geometry.channels)  # one could not be shared
    return Case(formula, geometry, draw(st.integers(0, 2**16)))


def numbers(case: Case) -> dict[str, Any]:
    """The operands of a case by name: normal numbers, and for `beta` one between 0 and 1."""
    generator = torch.Generator().manual_seed(case.seed)
    given: dict[str, Any] = {}
    for name in sorted(case.formula.result.names & {*DECLARED, "x", "w", "b"}):
        if name == "beta":
            given[name] = torch.rand((), generator=generator).item()
        else:
            shape = case.geometry.shape(name)
            given[name] = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    return given


def layer(kernel: sc.Kernel, case: Case, given: dict[str, Any], backend: str) -> Tensor:
    """The output of symconv for a case; a name that cancels is no operand of the kernel."""
    geometry = case.geometry
    given = {name: given[name] for name in (*kernel.signature.tensors, *kernel.signature.numbers)}
    # SymPy may have found that an operand cancels: then the kernel does not have it.
    given = {name: value for name, value in given.items() if kernel.formula.operand(name) is not None}
    named = {name: value for name, value in given.items() if name not in ("x", "w", "b")}
    positional = [given["x"], given.get("w"), given.get("b")]
    return (sc.conv1d, sc.conv2d)[geometry.rank - 1](
        kernel,
        *positional,
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        groups=geometry.groups,
        padding_mode="ignore" if geometry.ignore else "zeros",
        kernel_size=geometry.kernel_size,
        out_channels=geometry.groups * geometry.filters,
        backend=backend,
        **named,
    )


def gradients(output: Tensor, tensors: dict[str, Tensor], direction: Tensor) -> dict[str, Tensor]:
    """The gradient for each tensor, 0 for those that the output does not depend on."""
    if not output.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    found = torch.autograd.grad(output, [*tensors.values()], direction, allow_unused=True)
    return {name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(tensors.items(), found)}


def expected(case: Case, given: dict[str, Any], late: bool = False, noise: float = 0.0) -> dict[str, Any]:
    """The output and the gradients of the evaluator, by name, with what it says about them."""
    result = evaluate(case.formula, given, case.geometry, late, noise)
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    direction = torch.linspace(-1, 1.5, result.output.numel()).double().reshape(result.output.shape)
    values = {"output": result.output.detach(), **gradients(result.output, tensors, direction)}
    return {"values": values, "doubt": result.doubt, "largest": result.largest, "direction": direction}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """How far results are apart, relative to 1 + their size."""
    size = {name: 1 + b[name].abs().max().item() if b[name].numel() else 1 for name in b}
    return {name: (a[name] - b[name]).abs().max().item() / size[name] if b[name].numel() else 0.0 for name in b}


def unfit(case: Case, given: dict[str, Any], found: dict[str, Any]) -> str:
    """Why a case is not to be compared: not finite, not of moderate size, at a tie or a kink that matters."""
    values = found["values"]
    if not all(value.isfinite().all() for value in values.values()):
        return "not finite"
    if found["largest"] > 1e6 or any(value.numel() and value.abs().max() > 1e6 for value in values.values()):
        return "too large"
    if found["doubt"]:
        other = expected(case, given, late=True)["values"]
        if not all(distance < 1e-7 for distance in apart(other, values).values()):
            return "at a tie or kink"
    return ""


def blurred(case: Case, given: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """How much the results change with small errors on the way."""
    torch.manual_seed(0)
    return apart(expected(case, given, noise=1e-12)["values"], found["values"])


def check_case(case: Case, backend: str) -> None:
    """Values and gradients of symconv equal those of the evaluator, for a case that is fit for it."""
    given = numbers(case)
    found = expected(case, given)
    reason = unfit(case, given, found)
    event(reason or "used")
    assume(not reason)
    try:
        compare(case, given, found, backend)
    except sc.FormulaError as error:
        assume("never uses the input x" not in error.message)  # it cancels
        assume("no finite value" not in error.message)  # log(0.5 - 2)
        raise


def compare(case: Case, given: dict[str, Any], found: dict[str, Any], backend: str) -> None:
    """Values and gradients of symconv equal those `found`."""
    kernel = sc.Kernel(case.formula.text)
    assert sc.Kernel(kernel.text) == kernel
    output = layer(kernel, case, given, backend)
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    ours = {"output": output.detach(), **gradients(output, tensors, found["direction"])}
    assert all(ours[name].shape == value.shape for name, value in found["values"].items())
    distance = apart(ours, found["values"])
    if all(each < 1e-9 for each in distance.values()):
        return
    blur = blurred(case, given, found)
    wrong = {name: each for name, each in distance.items() if not each < 1e-9 + 100 * blur[name]}
    for name in wrong:
        raise AssertionError(f"{name} of {case}\nours:   {ours[name]}\ntheirs: {found['values'][name]}")


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_random_formulas(case: Case) -> None:
    check_case(case, "torch")


@pytest.mark.slow
@settings(max_examples=2500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_many_random_formulas(case: Case) -> None:
    check_case(case, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("backend", [each for each in BACKENDS if each != "torch"])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_random_formulas_compiled(backend: str, case: Case) -> None:
    """Fewer, because each example is a kernel to compile."""
    check_case(case, backend)


#: Windows of two taps and two channels, unless a case says otherwise.
SMALL = {
    "batch": 1, "image": (4,), "channels": 2, "filters": 1, "groups": 1, "kernel_size": (2,), "stride": (1,),
    "dilation": (1,), "padding": (0,), "ignore": False, "own_channels": 1,
}  # fmt: skip
OUTSIDE = {"padding": (2,), "ignore": True}
#: Formulas that were once refused, crashed or were wrong, and what is special about their windows.
REGRESSIONS: list[tuple[str, dict[str, Any]]] = [
    # A window without taps counts none.
    ("d: param[c]\nsum(x + sum(d, dim=c))", OUTSIDE),
    ("d: param[c]\nsum(x + min(d, dim=c))", OUTSIDE),
    # A window without taps has an infinite maximum, but adds nothing up.
    ("g: input\nsum(x + g*logsumexp(w*g))", OUTSIDE),
    # Each channel of x gives something to the one channel of g, and g to itself once.
    ("g: input\nm = mean(g, dim=t)\nsum(x*m) + sum(m, dim=c)", {}),
    ("g: input\nm = sum(g*t, dim=t)\nsum(x*(m - mean(m, dim=c)))", {}),
    ("g: input\ncov(t + mean(g*t, dim=t), c - g[c, 0]) + sum(w*x)", {}),
    # Its second derivatives count the channels of an input that they do not read.
    ("g: input\np: param\nsum(custom_grad(g, p=2)) + sum(x)", {}),
    # A constant has no deviation from its mean, also where other sums divide by what it is divided by.
    ("u: param[o, c] = 0.5\nstd(sum(w*x)/(abs(u + u) + 1), dim=c) + sum(w)", {"channels": 1, "filters": 5}),
    # At a window without taps the largest and the smallest value are no numbers together.
    ("r = (max(x) + min(x))/2\nsum(x*where(r > 0.5, max(x), x))", {}),
    ("where(max(x) + min(x) > 0, log(abs(max(x) + min(x)) + 1), 2)*sum(x) + exp(min(x)/4)", {}),
    ("sum(exp(where(x > 0.5, x, 1)))", {}),
    # One filter, and parameters that do not tell which: their gradients are found without dividing by its elements.
    ("d: param[c]\nstd(d*std(t, dim=t), weight=2, dim=c) + sum(w*x)", {}),
    # A name that cancels, and an axis that goes with it.
    ("p: param\nsum(x) + p - p", {}),
    ("sum(x - (w - w))", {}),
    ("sum(x) + sum(0*w)", {}),
    ("sum(x) + mean(w - w + 2)", {}),
    ("d: param[c]\nsum(x) + sum(sum(x*0 + d, dim=t), dim=c)", {}),
    ("norm(where(x > w, x[o, t], x[o, t]), dim=(c, t))*sum(x)", {"filters": 2}),
    ("g: input\nsum(detach(g)*0 + x)", {}),
    ("p: param\ne1 = p**2 + 1\nsum(w*sign(e1)) + sum(x)", {}),
    ("g: input\ne1 = sum(g[c, t-1])\nsum(x + (sum(g[c, t-1]) - e1))", {}),
    ("e1 = softmax(c - c, dim=c)\nmax(e1) + sum(x)", {}),
    # Gradients are of the precision of the values.
    ("max((x + x + w)*cos(dx))", {}),
    ("max(atan(softmax(x))/(detach(2)**2 + 1))", {}),
    ("sin(ste(sign(2), sum(x)))", {}),
    ("p: param\n3*cos(custom_grad(3, p=sum(x)))", {}),
    ("median((x + x + w)*cos(dx)) + quantile((x + x + w)*cos(dx), 0.3)", {}),
    # Ranked values, for more filters than a tile of other reductions has.
    ("mean(x*median(w))", {"filters": 9, "channels": 3}),
    ("quantile(w*x, 0.3) + median(x - w) + sum(w)", {"filters": 19, "image": (40,)}),
    # Parsing the text gives the formula again.
    ("sum(w/3/(x**2 + 1))", {}),
    ("r: param[t]\nvar(r*abs(abs(3*o)), dim=t) + sum(x)", {}),
    ("e1 = c/0.5\nstd(e1/(c**2 + 1)/3, dim=c) + sum(x)", {}),
    # What all terms of a gradient share multiplies their sum: 2*(x - x[c, 0]), which may be 0.
    ("sum(softmax((x[c, 0] - x)**2))", {"kernel_size": (1,), "image": (1,), "filters": 2}),
    ("g: input\nmax(atan(atan(g[c, 0])), dim=c) + sum(x)", {}),
    # Numbers where values vary.
    ("mean(x, weight=2)", {}),
    ("cov(x, w, weight=0.5)", {}),
    ("quantile(x, 0)", {}),
    ("quantile(x, 1) + median(c)", {}),
    # Functions of numbers.
    ("relu(2) + sum(x)", {}),
    ("sum(x*softplus(2))", {}),
    ("sum(x) + exp(-softplus(1.5))", {}),
    ("sum(x) + sin(detach(2))", {}),
    ("sum(x)*detach(3)**2", {}),
    ("sum(x)*2**relu(1)", {}),
    ("hypot(2, 1) + sum(x)", {}),
    ("max(sum(x), detach(2))", {}),
    ("min(sum(x), silu(2))", {}),
    ("min(2, ste(sign(2), sum(x)), 2)", {}),
    ("p: param\nmin(relu(detach(p)), 3) + sum(x)", {}),
    ("p: param\nmin(silu(ste(p, 1)), p) + sum(x)", {}),
    ("min(2, 1, 1)*sum(x)", {}),
    ("min(0.5, exp(1), sin(erf(1))) + sum(x)", {}),
    ("tanh(2)**b + sum(x)", {}),
    # Conditions.
    ("sum(where(var(x, dim=t) < x, x, w))", {}),
    ("sum(where(softmax(x) <= x, w, x))", {}),
    ("sum(where(where(w > 0, log(w), x) > 0, x, w))", {}),
    ("q: field[o]\nsum(where(where(x > 0, w, 2) >= q, x, 3))", {}),
    ("q: field[o]\nsum(where(where(sin(x) > 0, sqrt(sin(x)), x) >= q, 3, x))", {}),
    ("k: field[t]\nsum(where(where(w > 0, log(w), k)*var(k, dim=t) < x, x, w))", {}),
    # Values whose gradients are chosen: what they do not show cancels.
    ("p: param\nwhere(custom_grad(3, b=p) > 0, sqrt(custom_grad(3, b=p)), p) + sum(x)", {}),
    ("sum(w*(detach(x) - x))", {}),
    ("sum(w*x)*(detach(b) - b)", {}),
    ("(detach(x[o, 0]) - x[o, 0])*sum(w)", {"channels": 1}),
    # Values whose gradients are chosen: what they do not show still has axes.
    ("g: input\np: param\nsum(ste(p, g[c, 0]), dim=c) + sum(x)", {}),
    ("g: input\nsum(custom_grad(g, x=x))", {}),
    ("g: input\nsum(custom_grad(g, w=3)) + sum(x)", {}),
    ("g: input\nk: field[t]\nvar(softmax(k, dim=t)*custom_grad(g, b=x)) + sum(x)", {}),
    ("g: input\nd: param[c]\nvar(x, weight=custom_grad(g**2 + 1, b=d))", {}),
    # The weight of a mean may have more axes than what is averaged.
    ("g: input\nr: param[t]\nmean(r, weight=g**2 + 1) + sum(x)", {}),
    ("g: input\nr: param[t]\nvar(r, weight=g**2 + 1) + sum(x)", {}),
    ("g: input\nr: param[t]\ncov(r, dx, weight=g**2 + 1) + sum(x)", {}),
    # One channel that all share, reduced before it meets the channels of x.
    ("g: input\nsum(x*sum(g, dim=t))", {}),
    ("g: input\nmax(x*max(g, dim=t))", {}),
    ("g: input\nvar(sum(g, dim=t) + c, dim=c) + sum(x)", {}),
    ("g: input\nd: param[c]\nsum(sum(g, dim=t) + d, dim=c) + sum(x)", {}),
    ("g: input\nd: param[c]\nsum(max(g*softmax(g, dim=t), dim=t) + d, dim=c)**2 + sum(x)", {}),
    ("g: input\nd: param[c]\nmean(mean((g - mean(g, dim=t))**2, dim=t) + d, dim=c) + sum(x)", {}),
]


@pytest.mark.parametrize(("text", "windows"), REGRESSIONS, ids=[text.splitlines()[-1] for text, _ in REGRESSIONS])
def test_regression(backend: str, text: str, windows: dict[str, Any]) -> None:
    case = Case(read(text), Geometry(**{**SMALL, **windows}), 0)
    given = numbers(case)
    found = expected(case, given)
    assert not unfit(case, given, found)
    compare(case, given, found, backend)


def test_formulas_are_read_as_they_are_written() -> None:
    for text, _ in REGRESSIONS:
        formula = read(text)
        assert read(Formula(formula.result).text).result == formula.result


# -- Texts ---------------------------------------------------------------------------------------------------------

#: Formulas that cover the language, to be spoilt.
VALID = [
    "sum(w*x) + b",
    "prod(tan(x + w))",
    "-sum(abs(x - w))",
    "max(x + w) - min(x - w)",
    "max(max(x, w, 0))",
    "beta: const = 5\nlogsumexp(beta*(x + w))/beta",
    "gamma: param[o] = 0.1\nexp(-gamma*sum((x - w)**2))",
    "v: weight\nmax(sum(w*x), sum(v*x))",
    "sum(w*x)/(norm(w)*norm(x) + 1e-6)",
    "sum(where((x > 0) & (w <= 1), x, -w))",
    "sum(where(~(x == 0) | (w != 1), x, 1/w))",
    "sum(x*exp(-(dx**2 + dy**2 + dz**2)/2))",
    "sum(sigmoid(w*x) + relu(x) + bspline(x, 3))",
    "mean(x) + N/(C + T)",
    "sum(x*softmax(x))",
    "sum(x*softmax(w*x, dim=c))",
    "sum(max(x + w, dim=t), dim=c)",
    "max(sum(x*w, dim=(c, t)), sum(abs(x), dim=(t, c)))",
    "theta: const\nsum(w*(x - theta*x[c, 0]))",
    "sum(x[c, t+1] - x[c, t - 1] + w[c, t+2]*x)",
    "sum(w*x)*x[o, 0] + sum(x[o, t]*dx, dim=t)",
    "d = x - w\nsquare = d**2\nsum(square) + b",
    "y = sum(w*x)",
    "s: weight[3]\nsum(s[0]*x + s[1]*x**2 + s[2, c, 0])",
    "s: weight[8]\nsum(Sum(s[k]*sin(k*x), (k, 1, 7)))",
    "g: input\nsum(w*x*g)/(sum(w*g) + 1e-6)",
    "g: input\nsum(x*exp(-(g - g[c, 0])**2))",
    "q: field[o]\nk: field[o, t]\nm: field\nq*sum(k*x) + m",
    "p: param = 2\na: param[o, c] = -1.5\nr: param[t]\nsum(x**p*a + r)",
    "p: param[o, positive] = 0.5\nsum(x)**p",
    "mean(x, weight=exp(w)) + var(x, weight=w**2) + std(x)",
    "cov(x, w, weight=exp(-x**2), dim=(c, t))",
    "median(x) + quantile(x, 0.25) + quantile(w, 1/3)*sum(x)",
    "sum(std(x, dim=t), dim=c)",
    "sum(custom_grad(sign(x*w), x=w, w=clip(x, -1, 1)))",
    "sum(w*ste(sign(x), clip(x, -1, 1)) + detach(x))",
    "sum(atan2(x, w) + hypot(x, w) + pow(abs(x), 1.5) + sinc(x) + xlogx(abs(w)))",
    "sum(minimum(x, w) + maximum(x, 0) + heaviside(x) + floor(x) + ceil(w) + round(x))",
    "sum(log1p(x**2) + expm1(-x**2) + erf(x) + gelu(x) + silu(x) + softplus(x))",
    "sum(asin(tanh(x)) + acos(tanh(w)) + atan(x) + sinh(x) + cosh(w) + sqrt(abs(x)))",
    "# a comment\nsum(x)  # another",
    "sum((x + o*t)*c) + pi - 2.5e-3 + min(x, dim=(c, t)) + 1_000",
]
PIECES = [
    *"( ) [ ] , : = + - * / ** < <= == != & | ~ . # % @ // -> := 0 1 2 -1 0.5 1e9 1e999 1e-400 1j 99 1/3".split(),
    *"x w b c t o dx dz T C N pi inf nan zoo oo I E S y e1 s[0] [c,0] [o,t] [c,t+1] dim=c dim=t weight=".split(),
    *"sum( max( softmax( exp( log( sqrt( where( Sum( custom_grad( ste( quantile( k: g: :input :param[o]".split(),
    *":weight[2] :field[t] :const lambda if else for in not and or is None True def import del return await".split(),
    *r"""\ ' " ''' ; ! $ ? ` { } é ℓ""".split(),
    *("\n", "\t", " ", "\r", "\x0c", "\x00", "\\\n", "\u2028", "\x1c", "\x85", "\ufeff", "x = w\n", "(k, 0, 3)"),
]
TOKEN = re.compile(r"[A-Za-z_]\w*|\d+\.?\d*(?:e-?\d+)?|\*\*|[<>=!]=|\s+|.", re.DOTALL)
AROUND = ["sum(", "exp(", "abs(", "max(", "-(", "sqrt(", "detach(", "norm(", "2**(", "1/(", "sign(", "log(", "round("]


@st.composite
def spoilt(draw: st.DrawFn) -> str:
    """The text of a formula after some accidents."""
    text: str = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        parts = [*text] if draw(st.booleans()) else TOKEN.findall(text)
        place = st.integers(0, max(len(parts) - 1, 0))
        i, j = sorted((draw(place), draw(place)))
        accident = draw(st.sampled_from(["delete", "insert", "replace", "swap", "repeat", "splice", "cut", "wrap"]))
        if accident in ("insert", "replace"):
            parts[i : i + (accident == "replace")] = [draw(st.sampled_from(PIECES))]
        elif accident == "delete":
            del parts[i : i + 1]
        elif accident == "swap" and parts:
            parts[i], parts[j] = parts[j], parts[i]
        elif accident == "repeat":
            parts[j:j] = parts[i : i + 12] * draw(st.sampled_from([1, 2, 40]))
        elif accident == "splice":
            other = TOKEN.findall(draw(st.sampled_from(VALID)))
            parts[i:j] = other[draw(st.integers(0, len(other) - 1)) :]
        elif accident == "cut":
            del parts[i:j]
        elif accident == "wrap":
            parts[i:j] = [draw(st.sampled_from(AROUND)), *parts[i:j], ")"]
        text = "".join(parts)
    return text


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail, rather than hang, if it takes longer."""

    def stop(*_: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check_text(text: str) -> str:
    """A text is a formula that its own text gives back, or is refused with a place inside the text; which of them."""
    try:
        with within(5):
            formula = parse(text)
    except sc.FormulaError as error:
        assert str(error)
        if error.span is not None:
            lines = error.text.split("\n")
            assert 0 <= error.span.line < max(len(lines), 1), (error.span, lines)
            line = lines[error.span.line] if lines else ""
            assert 0 <= error.span.start <= len(line), (error.span, line)
            assert error.span.start < error.span.end <= max(len(line), error.span.start + 1), (error.span, line)
        return "refused"
    with within(5):
        again = parse(formula.text)
    assert again.expr == formula.expr
    assert again.operands == formula.operands
    return "a formula"


def test_valid_texts() -> None:
    for text in VALID:
        assert check_text(text) == "a formula"


#: Texts that once raised something else than a `FormulaError`, took too long, or did not come back.
SURPRISES = [
    "sum\x0c(x*)",
    "\x0cmax\x0cxx + w)",
    "beta\x0c const = 5\nlogsumexp(beta*(x + w))/beta",
    "sum(x)\x1c+ 1",
    "# a\u2028b\nsum(xx)",
    "s: weight[3]\nsum(s[c, 0])",
    "s: weight[8]\nsum(Sum(s[o]*sin(k*x), (k, 1, 7)))",
    "s: weight[3]\nsum(s[x]*x)",
    "sum(x[c, t<=+1])",
    "sum(x*1e-400**2)",
    "sum(x) + 0.0**-1",
    "beta: const = detach(5)\nsum(beta*x)",
    "quantile(x, detach(1)/3)",
    "max(x + w - w)",
    "sum(x*sign(exp(w)))",
    "sum(where(~(x == w) | (0 != 1), x, 1/w))",
    "gamma: param[o] = 0.1\nexp(-abs(gamma*sum((x - w))**2))",
    "-(erf(x[o, 0])/(abs(x[o, 0]) + 1))/2",
]


@pytest.mark.parametrize("text", SURPRISES)
def test_surprise(text: str) -> None:
    check_text(text)


@settings(max_examples=500, deadline=None)
@given(text=spoilt())
def test_spoilt_texts(text: str) -> None:
    event(check_text(text))


@pytest.mark.slow
@settings(max_examples=6_000, deadline=None)
@given(text=spoilt())
def test_many_spoilt_texts(text: str) -> None:
    event(check_text(text))
