"""Formulas and gradients as mathematics: on a terminal, in LaTeX, in a notebook."""

from __future__ import annotations

import contextlib
import io

import pytest

import symconv as sc
from symconv.printers.text import TextPrinter


def printed(kernel: sc.Kernel, encoding: str) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(stream):
        print(kernel)
    stream.seek(0)
    return stream.read()


def test_a_terminal_shows_mathematics() -> None:
    text = printed(sc.Kernel("-sum(abs(x - w))", name="adder"), "utf-8")
    assert text.splitlines() == ["adder", "    y = -∑(│x - w│)", "∂y/∂x = -sign(x - w)", "∂y/∂w = sign(x - w)"]
    text = printed(sc.Kernel("prod(tan(x + w))"), "utf-8")
    assert "∏(tan(x + w))" in text
    assert "∏′(e) is the product of e over the other taps" in text


def test_a_difference_begins_with_what_has_no_minus() -> None:
    kernel = sc.Kernel("sum((x - w)**2)")
    assert "∂y/∂w = 2⋅w - 2⋅x" in printed(kernel, "utf-8")
    assert "&= 2 w - 2 x" in kernel.latex()
    text = printed(sc.Kernel("p: param = 2\nsum(abs(x - w)**p)**(1/p)"), "utf-8")  # broken up by `sympy.cse`
    assert "⋅sign(x - w)" in text
    assert "-x + w" not in text


def test_an_ascii_terminal_is_spared() -> None:
    text = printed(sc.Kernel("beta: const = 2\nd = x - w\nlogsumexp(beta*abs(d))/norm(x) + b"), "ascii")
    assert text.isascii()
    assert text.startswith("beta: const = 2.0")
    assert "d = x - w" in text
    assert "dy/dw" in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_golden_and_odd_kernel_prints(encoding: str) -> None:
    from test_golden import KERNELS
    from test_records import coverage

    odd = ["sum(x)**2/norm(x)**3", "1/mean(x) - N*sum(x*w)**0.5", "exp(-sum(x)/2)*max(min(x, 1))", "sum(others(x)*x)"]
    for kernel in (*map(sc.Kernel, [*KERNELS.values(), *odd]), coverage()):
        assert "y = " in printed(kernel, encoding)
        assert kernel.latex()


@pytest.mark.parametrize(
    ("formula", "parts"),
    {
        "sum(w*x) + b": [r"y &= \sum_{c,t} w x + b", r"\frac{\partial y}{\partial b} &= 1"],
        "prod(tan(x + w))": [r"\prod_{c,t} \tan{\left(x + w \right)}", r"\prod_{(c',t') \neq (c,t)}"],
        "norm(x - w)": [r"\left\lVert x - w \right\rVert"],
        "max(x + w)": [r"\max_{c,t} \left(x + w\right)", r"\mathbf{1}_{\operatorname{argmax}}"],
        "mg = mean(x)\nc1: const = 2\n2*mg*c1 + std(x)": [r"\mathit{mg} &=", r"c_{1}"],
        "mean(max(x, w, 0))": [r"\operatorname*{mean}_{c,t} \max", r"\theta"],
    }.items(),
)
def test_latex(formula: str, parts: list[str]) -> None:
    kernel = sc.Kernel(formula)
    assert kernel.latex().startswith(r"\begin{aligned}")
    for part in parts:
        assert part in kernel.latex()
    assert kernel._repr_latex_() == rf"$\displaystyle {kernel.latex()}$"


@pytest.mark.parametrize(
    ("formula", "value"),
    {
        "max(x)*max(w)": r"\left(\max_{c,t} w\right) \max_{c,t} x",
        "g: input\nstd(g)*std(x)": r"\left(\operatorname*{std}_{c,t} g\right) \operatorname*{std}_{c,t} x",
        "sum(x)*sum(w)": r"\left(\sum_{c,t} w\right) \sum_{c,t} x",
        "sum(x*sum(w))": r"\sum_{c,t} x \sum_{c,t} w",
        "sum(w*x)*max(x + w)": r"\left(\max_{c,t} \left(x + w\right)\right) \sum_{c,t} w x",
        "max(w*x)": r"\max_{c,t} \left(w x\right)",
        "2*max(x)**2*mean(x)": r"2 \left(\max_{c,t} x\right)^{2} \operatorname*{mean}_{c,t} x",
        "std(x)/(mean(x)*N)": r"\frac{\operatorname*{std}_{c,t} x}{N \operatorname*{mean}_{c,t} x}",
        "sum(w*softmax(x))": r"\sum_{c,t} w \operatorname*{softmax}_{c,t} x",
        "sum(softmax(w)*softmax(x))": r"\sum_{c,t} \left(\operatorname*{softmax}_{c,t} w\right) "
        r"\operatorname*{softmax}_{c,t} x",
        "max(x*softmax(w))": r"\max_{c,t} \left(x \operatorname*{softmax}_{c,t} w\right)",
        "sum(max(x, dim=t)*max(w, dim=t), dim=c)": r"\sum_{c} \left(\max_{t} w\right) \max_{t} x",
        "norm(x)*norm(w)": r"\left\lVert w \right\rVert \left\lVert x \right\rVert",
        "quantile(x, 0.5)*max(w)": r"\left(\max_{c,t} w\right) \operatorname*{quantile}_{c,t} \left(x, 0.5\right)",
        "mean(x, weight=w)": r"\operatorname*{mean}_{c,t} \left(x, \mathrm{weight} = w\right)",
        "sum(cov(x, w, weight=w + 1, dim=t), dim=c)": r"\sum_{c} \operatorname*{cov}_{t} "
        r"\left(x, w, \mathrm{weight} = w + 1\right)",
        "sum(where(x > 0, x, 1)*where(x > 0, 1, x))": r"\sum_{c,t} \left(\begin{cases} 1 & \text{for}\: x > 0 \\x & "
        r"\text{otherwise} \end{cases}\right) \begin{cases} x & \text{for}\: x > 0 \\1 & \text{otherwise} \end{cases}",
        "sum(where(x > 0, x, 1)**2)": r"\sum_{c,t} \left(\left(\begin{cases} x & \text{for}\: x > 0 \\1 & "
        r"\text{otherwise} \end{cases}\right)^{2}\right)",
    }.items(),
)
def test_latex_tells_how_far_an_operator_reaches(formula: str, value: str) -> None:
    shown = sc.Kernel(formula).latex().replace(r"u_{1} &=", r"\frac").partition(r" \\ \frac")[0]
    assert shown == rf"\begin{{aligned}}y &= {value}"


def test_latex_of_a_power_of_what_cancels() -> None:
    assert r"\frac{\partial y}{\partial w} &= 1^{3}" in sc.Kernel("a = x/x\nsum(w*a**3)").latex()


def test_latex_of_a_derivative_tells_it_too() -> None:
    of_maxima, of_mean = sc.Kernel("max(x)*max(w)").latex(), sc.Kernel("mean(x, weight=w)").latex()
    assert r"{\partial x} &= \mathbf{1}_{\operatorname{argmax}} \left(x\right) \max_{c,t} w \\" in of_maxima
    assert of_mean.endswith(
        r"&= \frac{x - \operatorname*{mean}_{c,t} \left(x, \mathrm{weight} = w\right)}{\sum_{c,t} w}\end{aligned}"
    )


@pytest.mark.parametrize("name", [each for each in dir(sc.zoo) if isinstance(getattr(sc.zoo, each), sc.Kernel)])
def test_gradients_are_shown_as_formulas_are_written(name: str) -> None:
    """What is printed is read back, and is the same."""
    gradients = getattr(sc.zoo, name).gradients()
    for operand, derivative in gradients.items():
        text = str(TextPrinter().doprint(derivative))
        assert f"{operand}: {text}" in repr(gradients)
        expected = sc.Kernel(sc.sum(sc.weight("v_") * (sc.x + derivative)))
        declarations = [each.declaration for each in expected.formula.operands if each.declaration]
        assert sc.Kernel("\n".join([*declarations, f"sum(v_*(x + {text}))"])) == expected


@pytest.mark.parametrize(
    ("formula", "text", "shown", "latex"),
    [
        ("sum(x - x)", "sum(0*x)", "∑(0⋅x)", r"\sum_{c,t} 0"),
        ("sum(x/x)*max(x)", "max(x)*sum(1 + 0*x)", "max(x)⋅∑(1 + 0⋅x)", r"\left(\max_{c,t} x\right) \sum_{c,t} 1"),
        ("max(w + dx - dx - w - 1) + sum(x)", "max(-1 + 0*x) + sum(x)", "max(-1 + 0⋅x)", r"\max_{c,t} \left(-1\right)"),
        ("g: input\nsum(g - g + x)", "g: input\nsum(x + 0*g[c, 0])", "∑(x + 0⋅g[c, 0])", r"\sum_{c,t} x"),
        ("u = x/x\nsum(x*u)", "u = 1 + 0*x\nsum(u*x)", "u = 1 + 0⋅x", r"u &= 1 \\ y &= \sum_{c,t} u x"),
        ("u = x/x\nsum((x - u/2)**2)", "u = 1 + 0*x\nsum((x - u/2)**2)", "u = 1 + 0⋅x", r"u &= 1"),
    ],
)
def test_what_cancels_keeps_its_axes_and_can_be_given_back(formula: str, text: str, shown: str, latex: str) -> None:
    kernel = sc.Kernel(formula)
    assert kernel.text == text
    assert shown in printed(kernel, "utf-8")
    assert shown.replace("∑", "sum").replace("⋅", "*") in printed(kernel, "ascii")
    assert latex in kernel.latex()
    assert "spread" not in repr(kernel.gradients())
    again = sc.Kernel(text)
    assert (again, again.text, again.signature) == (kernel, text, kernel.signature)


def test_gradients_are_found_by_name() -> None:
    gradients = sc.Kernel("p: param = 2\nsum(w*abs(x)**p)").gradients()
    assert gradients["w"] == gradients[sc.w] == abs(sc.x) ** sc.param("p", init=2)
    assert gradients["p"] == gradients[sc.param("p")]
    assert [each in gradients for each in ("p", sc.w, "q")] == [True, True, False]
    assert (gradients.get("p"), gradients.get("q", 0)) == (gradients["p"], 0)
    with pytest.raises(KeyError, match="no derivative along q: there is one along each of x, w, p"):
        gradients["q"]


def test_repr_can_be_evaluated() -> None:
    kernel = sc.Kernel("beta: const = 2\nsum(beta*x)", name="twice")
    again = eval(repr(kernel), {"Kernel": sc.Kernel})
    assert (again, again.name) == (kernel, "twice")
