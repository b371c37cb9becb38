"""The language: both spellings, levels, and everything that is refused."""

from __future__ import annotations

import pickle
import time

import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

import symconv as sc
from symconv.errors import FormulaError
from symconv.functions import FUNCTIONS
from symconv.language.parser import parse
from symconv.reductions import REDUCTIONS

x, w, b = sc.x, sc.w, sc.b
beta, gamma, v = sc.const("beta", 5), sc.param("gamma", per=sc.o, init=0.1), sc.weight("v")
g, s, k = sc.input("g"), sc.weight("s", bank=3), sp.Symbol("k", integer=True)

PAIRS = {
    "sum(w*x) + b": sc.sum(w * x) + b,
    "prod(tan(x + w))": sc.prod(sp.tan(x + w)),
    "-sum(abs(x - w))": -sc.sum(abs(x - w)),
    "max(x + w) - min(x - w)": sc.max(x + w) - sc.min(x - w),
    "max(max(x, w, 0))": sc.max(sc.max(x, w, 0)),
    "beta: const = 5\nlogsumexp(beta*(x + w))/beta": sc.logsumexp(beta * (x + w)) / beta,
    "gamma: param[o] = 0.1\nexp(-gamma*sum((x - w)**2))": sp.exp(-gamma * sc.sum((x - w) ** 2)),
    "v: weight\nmax(sum(w*x), sum(v*x))": sc.max(sc.sum(w * x), sc.sum(v * x)),
    "sum(w*x)/(norm(w)*norm(x) + 1e-6)": sc.sum(w * x) / (sc.norm(w) * sc.norm(x) + 1e-6),
    "sum(where((x > 0) & (w <= 1), x, -w))": sc.sum(sc.where((x > 0) & (w <= 1), x, -w)),
    "sum(x*exp(-(dx**2 + dy**2)/2))": sc.sum(x * sp.exp(-(sc.dx**2 + sc.dy**2) / 2)),
    "sum(sigmoid(w*x) + relu(x) + bspline(x, 3))": sc.sum(sc.sigmoid(w * x) + sc.relu(x) + sc.bspline(x, 3)),
    "mean(x) + N": sc.mean(x) + sc.N,
    "sum(max(x + w, dim=t), dim=c)": sc.sum(sc.max(x + w, dim=sc.t), dim=sc.c),
    "max(sum(w*x, dim=c), dim=t)": sc.max(sc.sum(w * x, dim="c"), dim=(sc.t,)),
    "sum(w*(x - 0.7*x[c, 0]))": sc.sum(w * (x - 0.7 * x[sc.c, 0])),
    "sum(w*x*w[c, t+1]*x[c, t-2]) + x[o, 0]": (sc.sum(w * x * w[sc.c, sc.t + 1] * x[sc.c, sc.t - 2]) + x[sc.o, 0]),
    "sum(x[c, t] + x[o, t]*w[o, t])": sc.sum(x[sc.c, sc.t] + x[sc.o, sc.t] * w[sc.o, sc.t]),
    "sum(where((t > 3) & (c == 0), x, o*w))": sc.sum(sc.where((sc.t > 3) & sp.Eq(sc.c, 0), x, sc.o * w)),
    "var(x) + std(w*x) + cov(x, w) + median(x) + quantile(x, 0.25)": (
        sc.var(x) + sc.std(w * x) + sc.cov(x, w) + sc.median(x) + sc.quantile(x, 0.25)
    ),
    "mean(x, weight=exp(w)) + cov(x, w, dim=(c, t), weight=w**2)": (
        sc.mean(x, weight=sp.exp(w)) + sc.cov(x, w, weight=w**2)
    ),
    "g: input\nk: field[t]\nq: field\nsum(g*k*x)*q": sc.sum(g * sc.field("k", per=sc.t) * x) * sc.field("q"),
    "s: weight[3]\nsum(Sum(s[k]*x**(k + 1), (k, 0, 2)) + s[1, c, 0])": (
        sc.sum(sp.Sum(s[k] * x ** (k + 1), (k, 0, 2)) + s[1, sc.c, 0])
    ),
    "p: param[o, c, positive] = 2\nsum(p*x)": sc.sum(sc.param("p", per=(sc.o, sc.c), init=2, positive=True) * x),
    "sum(custom_grad(-abs(x - w), x=clip(w - x, -1, 1), w=x - w))": (
        sc.sum(sc.custom_grad(-abs(x - w), x=sc.clip(w - x, -1, 1), w=x - w))
    ),
    "sum(ste(sign(w), w)*detach(x))": sc.sum(sc.ste(sp.sign(w), w) * sc.detach(x)),
}


@pytest.mark.parametrize("text", PAIRS)
def test_text_and_sympy_give_equal_kernels(text: str) -> None:
    from_text, from_sympy = sc.Kernel(text), sc.Kernel(PAIRS[text])
    assert from_text == from_sympy
    assert hash(from_text) == hash(from_sympy)
    assert sc.Kernel(from_text.text) == from_text
    assert from_text != sc.Kernel(f"{text} + sum(cos(x))")


def test_one_weight_of_a_bank_is_not_that_of_another_bank() -> None:
    """SymPy keeps what it has computed: what is equal to a symbol may stand in its place."""
    assert sc.weight("s", bank=3)[0] == sc.weight("s", bank=3)[0]
    assert sc.weight("s", bank=3)[0] != sc.weight("s", bank=2)[0]
    assert sc.weight("s", bank=3)[0, sc.c, 0] != sc.weight("s", bank=2)[0, sc.c, 0]


def test_lines_are_put_in() -> None:
    lines = sc.Kernel("d = x - w\nsquare = d**2\nsum(square) + b")
    assert lines == sc.Kernel("sum((x - w)**2) + b")
    assert sc.Kernel(lines.text) == lines
    assert "square = d**2" in lines.text
    assert sc.Kernel("y = sum(w*x)") == sc.Kernel("sum(w*x)")


def test_a_kernel_pickles_and_copies() -> None:
    kernel = sc.Kernel("beta: const = 2\nlogsumexp(beta*(x + w))", name="soft", init="zeros")
    again = pickle.loads(pickle.dumps(kernel))
    assert (again, again.name, again.init) == (kernel, "soft", "zeros")
    assert pickle.loads(pickle.dumps(sc.x)) == sc.x


REFUSED = {
    "": "empty",
    "sum(xx*w)": "did you mean 'x'",
    "summ(x)": "did you mean 'sum'",
    "x + w": "c (input channel) and t (tap)",
    "x*sum(w)": "not inside a reduction",
    "sum(mean(x))": "one value per window",
    "sum(1)*x": "one value per window",
    "sum(x > 0)": "use where",
    "sum(where(x, 1, 0))": "condition",
    "sum(x % 2)": "remainder",
    "sum(x)**2**": "syntax error",
    "sum(x": "never closed",
    "sum(2x)": "write a product as 2*x",
    "sum(2 x)": "a sign is missing; write a product as 2*x",
    "sum(x;w)": "syntax error: unexpected ';'",
    "sum(x!)": "syntax error: unexpected '!'",
    "sum(x*)": "syntax error: unexpected ')'",
    "None: const = 2\nsum(None*x)": "None is a keyword of Python",
    "sum(x, **w)": "** before an argument is not part of the formula language",
    "sum(tan(x, **w))": "** before an argument is not part of the formula language",
    "sum(custom_grad(x, **w))": "** before an argument is not part of the formula language",
    "sum(x, w)": "not 2; write one expression, such as sum(x + w), and axes as dim=c or dim=t",
    "sum(w*x) + p": "did you mean 'pi'? Else declare it in a line of its own, p: param = 1",
    "sum(x))": "unmatched",
    "sum()": "takes 1 argument",
    "sum(tan(x, w))": "takes 1 argument",
    "sum(x, dim=t)": "still varies over c (input channel)",
    "sum(x, dim=c)": "still varies over t (tap)",
    "sum(x, dim=o)": "dim is c",
    "sum(x, axis=c)": "takes no keyword axis=; it takes dim",
    "sum(x, weight=w)": "takes no keyword weight=; it takes dim",
    "mean(x, wait=w)": "it takes dim and weight",
    "sum(x[c, 0])": "does not vary over t (tap), so sum cannot run over it; write sum(..., dim=c)",
    "sum(max(x, dim=t))": "write sum(..., dim=c)",
    "sum(max(x, dim=t), dim=t)": "does not vary over t",
    "sum(dx*x[o, 0], dim=c)": "does not vary over c",
    "sum(x)*x[c, t]": "x[c, t] is not inside a reduction",
    "sum(x[0])": "an index is [channel, tap]",
    "sum(x[c, 1])": "an index is [channel, tap]",
    "sum(x[t, c])": "an index is [channel, tap]",
    "sum(x[c, 2*t])": "an index is [channel, tap]",
    "sum(x[c, t, 0])": "an index is [channel, tap]",
    "sum(x*b[o])": "only inputs and weights take an index",
    "sum((x + w)[c, 0])": "takes no index",
    "s: weight[3]\nsum(s*x)": "s is a bank of 3 weights; name one of them, s[0]",
    "s: weight[3]\nsum(s[3]*x)": "s[0] to [2]",
    "s: weight[0]\nsum(s[0]*x)": "size of the bank, 1 to 64",
    "s: weight[o]\nsum(s[0]*x)": "size of the bank",
    "k: field[c]\nsum(k*x)": "field[...] takes o (filter), t (tap), each once",
    "g: input[3]\nsum(g*x)": "input takes no brackets; write input",
    "g: input = 2\nsum(g*x)": "input declares a tensor, which is given later; it takes no value here",
    "p: param[positive] = 0\nsum(p*x)": "starts above 0",
    "sum(Sum(x, (k, 0, w)))": "whole numbers",
    "sum(Sum(x**k, (k, 0, 10000)))": "whole numbers of at most",
    "sum(Sum(x, (c, 0, 3)))": "is taken",
    "sum(Sum(x, 3))": "a range of whole numbers",
    "sum(Sum(x + w*k, (k, 0, 4000)))": "more than",
    "sum(x + k)": "unknown name 'k'",
    "quantile(x, w)": "a number or a const",
    "quantile(x, 2)": "lies between 0 and 1",
    "quantile(x)": "takes 2 arguments",
    "quantile(x, 0.5, w)": "takes 2 arguments, not 3\n",
    "cov(x)": "takes 2 arguments",
    "sum(custom_grad(x))": "names the operands",
    "sum(custom_grad(x, q=x))": "takes slopes for operands",
    "sum(ste(x))": "takes 2 arguments",
    "sum(x) + custom_grad(1, x=2)": "put custom_grad inside",
    "v: weight\nsum(x)": "never used",
    "v: tensor\nsum(v*x)": "the kinds are",
    "w: weight\nsum(w*x)": "taken",
    "sum: const = 1\nsum(x)": "taken",
    "beta: const = x\nsum(beta*x)": "must be a number",
    "a = x\na = w\nsum(a)": "defined twice",
    "p: param[q]\nsum(p*x)": "takes o (filter), c (channel), t (tap), positive, each once",
    "sum(w)": "never uses the input x",
    "sum(x - x + w)": "never uses the input x: it cancels, and the result that is left is sum(w)",
    "d = x\nsum(w)": "never uses the input x: the result is made of none of the lines in which x stands",
    "sum(w)  # and x": "never uses the input x",
    "s: weight[3]\nsum(s[k]*x**k)": "the index 'k' has no value; Sum(..., (k, 0, 2)) adds up over all 3 weights of s",
    "sum(x[c, k])": "the index 'k' has no value; an index is [channel, tap], such as x[c, 0]",
    "sigmod(x)": "unknown function 'sigmod'; did you mean 'sigmoid'?",
    "sum(ReLU(x))": "did you mean 'relu'?",
    "SUM(x)": "did you mean 'sum'?",
    "sum(ln(x))": "did you mean 'log'?",
    "average(x)": "did you mean 'mean'?",
    "maximum(x)": "maximum() takes 2 arguments, not 1; over the window it is max(...)",
    "sum(x)/0": "no real, defined value",
    "inf - inf + sum(x)": "no real, defined value",
    "sum((-8)**(1/3)*x)": "a root of -1",
    "sum((-x**2)**(1/3))": "a root of -1",
    "n = 0\nsum(x)/n": "no real, defined value",
    "n = -1\nm = sqrt(n)\nsum(x)*m": "a root of -1",
    "n = 2\nsum(acos(n)*x)": "no real, defined value",
    "n = 1000\nsum(exp(n)*x)": "an overflow",
    "sum(pow(x, 1000))": "the power is too large",
    "n = 1000\nsum(x**n)": "the power is too large",
    "1e999*sum(x)": "too large",
    "sum(exp(1000)*x)": "no finite value",
    "sum(bspline(x, 9))": "whole degree",
    "sum(Σ*x)": "plain ASCII",
    "sum('x')": "not part of the formula language",
    "sum(True*x)": "not part of the formula language",
    "sum(1j*x)": "not part of the formula language",
    "x.__class__": "attribute access",
    "__import__('os').system('true')": "cannot be called",
    "sum((lambda: 1)())": "cannot be called",
    "[a for a in x]": "comprehension",
    "sum(x if w else 1)": "use where",
    "sum(x and w)": "use & and |",
    "f'{x}'": "not part of the formula language",
    "(a := 1) + sum(x)": "not part of the formula language",
    "import os\nsum(x)": "only the last line",
    "def f(): pass": "only declarations",
    "sum(*x)": "not part of the formula language",
    "exec('1')": "unknown function",
    "sum(x)\nsum(w)": "only the last line",
    "_a = x\nsum(_a)": "not a usable name",
    "torch = x\nsum(torch)": "taken",
}


@pytest.mark.parametrize("text", REFUSED)
def test_refused_with_a_reason(text: str) -> None:
    with pytest.raises(FormulaError) as caught:
        sc.Kernel(text)
    assert REFUSED[text] in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), FormulaError)


def test_lines_end_as_on_any_system() -> None:
    for end in ("\n", "\r\n", "\r"):
        assert sc.Kernel(f"a = x*w  # a comment{end}sum(a)").text == "a = w*x\nsum(a)"
        with pytest.raises(FormulaError, match="still varies"):
            sc.Kernel(f"# a comment{end}x*w")


def test_the_caret_stands_under_the_place() -> None:
    with pytest.raises(FormulaError) as caught:
        sc.Kernel("a = x - w\nsum(abs(a)) + max(xx)")
    _, line, carets = str(caught.value).splitlines()
    assert line[carets.index("^") : carets.rindex("^") + 1] == "xx"
    with pytest.raises(FormulaError) as caught:
        sc.Kernel("sum(w*x)*w")
    _, line, carets = str(caught.value).splitlines()
    assert carets.index("^") == line.rindex("w")


BOMBS = {
    "nested parentheses": "(" * 10_000 + "x" + ")" * 10_000,
    "fewer nested parentheses": "sum(" + "(" * 100 + "x" + ")" * 101,
    "a tower": "9**9**9**9",
    "a tower of functions": "sum(x)*pow(9, 387420489)",
    "a tower of lines": "n = 9\nm = 387420489\nsum(x)*n**m",
    "a power of a power": "sum((((x*99)**99)**99)**99)*9**9**9",
    "minus signs": "-" * 9_000 + "x",
    "a chain of powers": "x**" * 3_000 + "x",
    "a long sum": "sum(" + "+".join(["x"] * 4_900) + ")",
    "a line that doubles": "a0 = x*w\n" + "".join(f"a{k + 1} = a{k}*a{k} + a{k}\n" for k in range(60)) + "sum(a60)",
    "a huge number": "sum(x)*" + "9" * 5_000,
    "calls": "sin(" * 500 + "x" + ")" * 500,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(FormulaError):
        sc.Kernel(BOMBS[name])
    assert time.perf_counter() - start < 5  # seconds where evaluating them would take forever


def test_nothing_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("text was evaluated")

    monkeypatch.setattr("builtins.eval", forbidden)
    assert sc.Kernel("beta: const = 2\nsum(beta*tan(x + w)) + b").text.endswith("+ b")


def test_sympy_that_is_not_of_the_language_is_refused() -> None:
    for expr in (sc.sum(sp.Symbol("z") * x), sc.sum(sp.gamma(x)), sp.Integral(x, x), sc.sum(sp.Mod(x, 2)), 3):
        with pytest.raises(FormulaError):
            sc.Kernel(expr)
    with pytest.raises(FormulaError, match="not int"):
        sc.Kernel(3)
    with pytest.raises(FormulaError, match=r"sinc of SymPy is not .*; symconv\.sinc is one, defined as in PyTorch"):
        sc.Kernel(sc.sum(sp.sinc(x)))
    with pytest.raises(FormulaError, match="ComplexInfinity is not part of the formula language"):
        sc.Kernel(sc.sum(x) / 0)


def test_kernels_from_the_expressions_of_others() -> None:
    """Substitution, sums and epilogues: a kernel's expression is a SymPy expression like any other."""
    adder, dilation = sc.zoo.adder, sc.zoo.dilation
    assert sc.Kernel(adder.expr.subs(w, 2 * w)) == sc.Kernel("-sum(abs(x - 2*w))")
    assert sc.Kernel(adder.expr + dilation.expr) == sc.Kernel("-sum(abs(x - w)) + max(x + w)")
    assert sc.Kernel(sp.tanh(adder.expr) * beta) == sc.Kernel("beta: const = 5\ntanh(-sum(abs(x - w)))*beta")
    assert sc.Kernel(dilation.expr.subs(x, sp.tan(x))) == sc.Kernel("max(tan(x) + w)")
    assert sc.Kernel(sc.zoo.ssim.expr.subs(g, w)) == sc.Kernel(
        sc.zoo.ssim.text.replace("g", "w").replace("w: input\n", "")
    )
    with pytest.raises(FormulaError, match="defined twice"):
        sc.Kernel(sc.sum(x) * sc.const("p", 1) * sc.const("p", 2))


@pytest.mark.parametrize(("at_zero", "value"), [(0, 4.0), (1, 5.0), (sp.Rational(1, 2), 4.5), (-x, 4.0)])
def test_a_step_has_the_value_at_0_that_it_was_given(at_zero: sp.Expr, value: float) -> None:
    pixels = torch.tensor([[[-1.0, 0, 1, 2, 3, 4]]])
    assert sc.pool1d(sc.sum(sc.Heaviside(x, at_zero)), pixels, 6, backend="torch").item() == value
    gradient = sc.Kernel("sum(relu(x))").gradients()[x]
    assert sc.pool1d(sc.sum(gradient), pixels, 6, backend="torch").item() == 4


def test_names_of_symbols_are_checked() -> None:
    for name in ("x", "sum", "lambda", "1a", "a b", "torch", "weight", "é"):
        with pytest.raises(FormulaError):
            sc.const(name, 1)
    with pytest.raises(FormulaError, match="an index is"):
        sc.x[0]
    for wrong in (
        lambda: sc.x[sc.c, 1],
        lambda: sc.x[sc.c, 0][sc.c, 0],
        lambda: sc.b[sc.o, 0],
        lambda: sc.weight("s", bank=2)[2],
        lambda: sc.weight("s", bank=0),
        lambda: sc.param("p", per="q"),
        lambda: sc.param("p", init=-1, positive=True),
        lambda: sc.param("p", init=None),
        lambda: sc.param("p", init="much", positive=True),
        lambda: sc.const("q", "much"),
        lambda: sc.field("q", per=sc.c),
        lambda: sc.sum(sc.x, dim="o"),
        lambda: sc.max(sc.x, sc.w, dim=sc.t),
        lambda: sc.min(sc.x, sc.w, 0, dim=sc.t),
        lambda: sc.custom_grad(sc.x, q=sc.x),
    ):
        with pytest.raises(FormulaError):
            wrong()


#: Text made of the language's own words: mostly wrong formulas, now and then a right one.
WORDS = [
    *FUNCTIONS,
    *REDUCTIONS,
    *"Sum dim=t dim=c weight= [c,0] [o,t] [c,t+1] (k,0,2) g:input s:weight[2] q:field[t]".split(),
    *"x w b c t o T C N pi inf ( ) + - * / ** , < > = : & ~ | [ ] . 1 2.5 1e9".split(),
    "\n",
]


@given(st.lists(st.sampled_from(WORDS), max_size=14))
def test_any_text_is_a_kernel_or_a_formula_error(words: list[str]) -> None:
    text = " ".join(words)
    try:
        formula = parse(text)
    except FormulaError as error:
        assert str(error)
    else:
        assert parse(formula.text).expr == formula.expr


@given(st.text(max_size=60))
def test_any_characters_are_a_kernel_or_a_formula_error(text: str) -> None:
    try:
        parse(text)
    except FormulaError as error:
        assert str(error)
