"""One test per record: every function and every reduction, walked from their tables."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy as sp
import torch
from oracles import random
from torch import Tensor

import symconv as sc
from symconv.autograd import convolve
from symconv.functions import BY_CLASS, FUNCTIONS, Function, Pointwise
from symconv.geometry import Geometry
from symconv.kernel import Kernel, kernel_of
from symconv.lower import lower
from symconv.ops import Call
from symconv.printers.torch import TorchPrinter
from symconv.reductions import BY_NODE, REDUCTIONS, TRANSFORMS
from symconv.reference import reference
from symconv.rewrite import kinked, to_sympy

#: `typed` marks a number in lowered code; it is no function of formulas.
POINTWISE = [record for record in FUNCTIONS.values() if record.domain and record.name != "typed"]


def sampled(record: Function, *shape: int) -> list[torch.Tensor]:
    return [low + (high - low) * torch.rand(*shape, dtype=torch.float64) for low, high in record.domain]


def formula_of(record: Function) -> str:
    """A kernel whose first argument is the input and whose second, if any, is the weight."""
    degree = record.name == "bspline"
    arguments = ["x", "3" if degree else "w", "0.7"][: len(record.domain)]
    return f"sum({record.name}({', '.join(arguments)})*(x + 2) + w)"


@pytest.mark.parametrize("record", POINTWISE, ids=lambda record: record.name)
def test_function(backend: str, record: Function) -> None:
    """Value against PyTorch's own function, first derivatives against autograd, second against finite differences."""
    x, *rest = sampled(record, 1, 2, 5)
    w = rest[0].reshape(1, 2, 5)[:, :, :3].clone() if rest else random(1, 2, 3)
    x.requires_grad_(), w.requires_grad_()
    formula = formula_of(record)
    y = sc.conv1d(formula, x, w, backend=backend)
    seen = x.unfold(2, 3, 1).movedim(2, 1)  # [n, size, c, t]
    arguments = [seen, 3 if record.name == "bspline" else w, torch.tensor(0.7, dtype=x.dtype)][: len(record.domain)]
    expected = (record.reference(*arguments) * (seen + 2) + w).sum((-1, -2))[:, None]
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(
        torch.autograd.grad(y.sum(), (x, w), retain_graph=True),
        torch.autograd.grad(expected.sum(), (x, w)),
    ):
        torch.testing.assert_close(ours, theirs)
    if record.flat or record.kinks:
        return
    assert torch.autograd.gradgradcheck(lambda x, w: sc.conv1d(formula, x, w, backend=backend), (x, w))


@pytest.mark.parametrize("record", [r for r in POINTWISE if r.kinks], ids=lambda record: record.name)
def test_function_at_its_kinks(backend: str, record: Function) -> None:
    """Finite values and finite gradients where the derivative is a rule."""
    x = torch.tensor(record.kinks, dtype=torch.float64).reshape(1, 1, -1).requires_grad_()
    y = sc.conv1d(f"sum({record.name}(x))", x, kernel_size=1, out_channels=1, backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all()
    assert grad.isfinite().all()
    if record.flat:
        assert grad.eq(0).all()


@pytest.mark.parametrize("record", FUNCTIONS.values(), ids=lambda record: record.name)
def test_function_is_printed_or_defined(record: Function) -> None:
    if record.torch:
        symbols = [sc.x, sc.w, sc.b][: record.torch.count("{") or 1]
        assert record.torch.format(*symbols)
    else:
        assert issubclass(record.cls, Pointwise)
        assert record.cls.definition is not None


@pytest.mark.parametrize("record", [r for r in FUNCTIONS.values() if r.sympy_class], ids=lambda record: record.name)
def test_twins_translate_both_ways(record: Function) -> None:
    expr = record.build(*[sc.x, sc.w][: record.arity[0]])
    assert kinked(expr).has(record.cls)
    assert to_sympy(kinked(expr)) == expr


@pytest.mark.parametrize("record", [r for r in POINTWISE if r.bounded], ids=lambda record: record.name)
def test_a_bounded_function_is_at_most_1(record: Function) -> None:
    (values,) = (torch.linspace(low, high, 1001, dtype=torch.float64) * 1000 for low, high in record.domain)
    assert record.reference(values).abs().max() <= 1


#: What PyTorch computes over the last axis, for taps e and f (a weight, or the second argument).
REDUCED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum(e)": lambda e, f: e.sum(-1),
    "prod(e)": lambda e, f: e.prod(-1),
    "mean(e)": lambda e, f: e.mean(-1),
    "max(e)": lambda e, f: e.amax(-1),
    "min(e)": lambda e, f: e.amin(-1),
    "logsumexp(e)": lambda e, f: e.logsumexp(-1),
    "norm(e)": lambda e, f: torch.linalg.vector_norm(e, dim=-1),
    "var(e)": lambda e, f: e.var(-1, correction=0),
    "std(e)": lambda e, f: e.std(-1, correction=0),
    "cov(e, f)": lambda e, f: ((e - e.mean(-1, True)) * (f - f.mean(-1, True))).mean(-1),
    "median(e)": lambda e, f: e.median(-1).values,
    "quantile(e, 0.3)": lambda e, f: e.quantile(0.3, -1),
    "mean(e, weight=f)": lambda e, f: (e * f).sum(-1) / f.sum(-1),
    "var(e, weight=f)": lambda e, f: (e * e * f).sum(-1) / f.sum(-1) - ((e * f).sum(-1) / f.sum(-1)) ** 2,
    "std(e, weight=f)": lambda e, f: ((e * e * f).sum(-1) / f.sum(-1) - ((e * f).sum(-1) / f.sum(-1)) ** 2).sqrt(),
    "cov(e, f, weight=f)": lambda e, f: (
        (e * f * f).sum(-1) / f.sum(-1) - (e * f).sum(-1) * (f * f).sum(-1) / f.sum(-1) ** 2
    ),
}


@pytest.mark.parametrize("dims", ["ct", "c", "t"])
@pytest.mark.parametrize("reduction", REDUCED)
@pytest.mark.parametrize("padding_mode", ["zeros", "ignore"])
def test_reduction(backend: str, reduction: str, padding_mode: str, dims: str) -> None:
    """Value against torch over an unfolded axis, first and second derivatives against finite differences.

    A reduction over one axis is followed by a sum over the other.
    """
    assert {each.partition("(")[0] for each in REDUCED} == set(REDUCTIONS), "a reduction without an oracle"
    x, w = random(1, 2, 4, 3).requires_grad_(), random(2, 2, 2, 2).requires_grad_()
    over = reduction if dims == "ct" else f"{reduction[:-1]}, dim={dims})"
    rest = {"ct": over, "c": f"sum({over}, dim=t)", "t": f"sum({over}, dim=c)"}[dims]
    formula = f"e = x*w + x\nf = exp(w*x)\n{rest}" if "f" in over else f"e = x*w + x\n{rest}"

    def kernel(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return sc.conv2d(formula, x, w, stride=(2, 1), padding=(1, 0), padding_mode=padding_mode, backend=backend)

    inner = kernel(x, w)[:, :, 1]  # windows that lie wholly inside
    seen = x[:, :, 1:3].unfold(2, 2, 1).unfold(3, 2, 1)[:, None, :, 0]  # [1, 1, 2, columns, 2, 2]
    taps = [(seen * w[None, :, :, None] + seen), torch.exp(w[None, :, :, None] * seen)]
    taps = [each.movedim(2, 3).flatten(4) for each in taps]  # [1, 2, columns, c, t]
    if dims == "ct":
        expected = REDUCED[reduction](*(each.flatten(3) for each in taps))
    else:
        expected = REDUCED[reduction](*(each if dims == "t" else each.mT for each in taps)).sum(-1)
    torch.testing.assert_close(inner, expected)
    quick = dims != "ct"
    assert torch.autograd.gradcheck(kernel, (x, w), fast_mode=quick)
    assert torch.autograd.gradgradcheck(kernel, (x, w), fast_mode=quick)


@pytest.mark.parametrize("name", ["softmax"])
def test_transform(backend: str, name: str) -> None:
    x = random(1, 2, 4).requires_grad_()

    def kernel(x: torch.Tensor) -> torch.Tensor:
        return sc.pool1d(f"sum(x**2*{name}(3*x))", x, 2, stride=1, backend=backend)

    seen = x.unfold(2, 2, 1)
    torch.testing.assert_close(kernel(x), (seen**2 * torch.softmax(3 * seen, -1)).sum(-1))
    assert torch.autograd.gradcheck(kernel, (x,))
    assert torch.autograd.gradgradcheck(kernel, (x,))


def test_others_is_the_product_of_the_other_taps(backend: str) -> None:
    for zeros in range(4):
        x = random(1, 1, 4)
        x[0, 0, :zeros] = 0
        y = sc.conv1d(kernel_of("sum(others(x)*(dx + 3))"), x, kernel_size=4, out_channels=1, backend=backend)
        values = x.flatten().tolist()
        expected = 0.0
        for tap in range(4):
            product = 1.0
            for other in range(4):
                product *= values[other] if other != tap else 1.0
            expected += product * (tap - 1 + 3)
        torch.testing.assert_close(y.item(), expected)


def test_every_record_is_known_by_its_class() -> None:
    assert {record.cls for record in (*REDUCTIONS.values(), *TRANSFORMS.values())} == set(BY_NODE)
    assert all(BY_CLASS[record.cls].cls is record.cls for record in FUNCTIONS.values())


def coverage() -> Kernel:
    """One kernel with every function and every reduction of the language."""
    terms = []
    for record in FUNCTIONS.values():
        low, high = record.domain[0] if record.domain else (-1, 1)
        inside = f"({low} + {high - low}*sigmoid(x + w))"
        if record.name == "typed":
            continue
        if record.name == "custom_grad":
            terms.append("custom_grad(x, x=2*w, w=sin(x))")
            continue
        if record.name == "where":
            terms.append("where((x > w) | ~(x <= 0.5) & (w != 1), x, w*x)")
        elif record.name == "bspline":
            terms.append(f"bspline({inside}, 3)")
        else:
            terms.append(f"{record.name}({', '.join([inside, 'sigmoid(w) + 0.1', '1.5'][: record.arity[0]])})")
    lines = [f"a{k} = {term}" for k, term in enumerate(terms)]
    total = " + ".join(f"a{k}" for k in range(len(terms)))
    second = {"cov": ", sin(f)", "quantile": ", 0.3"}
    reductions = " + ".join(f"{name}(f*{k + 1}/10{second.get(name, '')})" for k, name in enumerate(REDUCTIONS))
    declared = "beta: const = 2\np: param = 0.5\nq: param[o]\ns: param[t]\nr: param[o, c] = 0.1\nv: weight\n"
    scale = "e = (" + total + ")*(0.01 + 0.001*s*r*v)*exp(-(dx**2 + dy**2 + dz**2)/9)/(T + C + N)"
    return Kernel(
        declared
        + "\n".join(lines)
        + f"\n{scale}\nf = x*w + v*sin(x)\nbeta*({reductions})*p + q + sum(e*softmax(x)) + b"
    )


def test_coverage_kernel(backend: str) -> None:
    """Every function and reduction in one kernel equals the reference, gradients too."""
    kernel = coverage()
    geometry = Geometry((2, 1, 2), 4, (1, 1, 1), ((0, 0),) * 3, (1, 1, 1), 2)
    shapes = {"x": (1, 4, 3, 2, 2), "w": (4, 2, 2, 1, 2), "v": (4, 2, 2, 1, 2), "b": (4,), "p": (), "q": (4,)}
    shapes |= {"s": (2, 1, 2), "r": (4, 2)}
    given = {name: (0.5 * random(*shape)).requires_grad_() for name, shape in shapes.items()}
    tensors = [given[name] for name in kernel.signature.tensors]
    y = convolve(Call(kernel.text, backend, geometry, (2.0,)), tensors)
    z = reference(kernel, {**given, "beta": 2.0}, geometry)
    torch.testing.assert_close(y, z)
    direction = torch.randn_like(y)
    for name, ours, theirs in zip(
        kernel.signature.tensors, torch.autograd.grad(y, tensors, direction), torch.autograd.grad(z, tensors, direction)
    ):
        torch.testing.assert_close(ours, theirs, msg=lambda message, name=name: f"{name}: {message}")


def test_the_torch_printer_knows_every_class_that_lowering_leaves() -> None:
    schedule = lower(coverage().formula)
    printer = TorchPrinter()
    blocks = [block for sweep in (*schedule.forward, *schedule.backward) for block in (sweep.before, sweep.taps)]
    for block in (*blocks, schedule.output, schedule.at_windows):
        for expr in (*(value for _, value in block.temporaries), *block.results):
            assert printer.doprint(expr)
    with pytest.raises(sc.InternalError, match="cannot print"):
        printer.doprint(sp.gamma(sc.x))
