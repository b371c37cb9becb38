"""Kernels under `torch.func` and in forward mode, against the same transforms of plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import random, unfolded
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import symconv as sc

Layer = Callable[[Tensor, Tensor], Tensor]


#: Formulas, and the same of the taps of all windows: the last axis is reduced.
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum(sin(w*x))": lambda x, w: (x * w).sin().sum(-1),
    "logsumexp(x*w)": lambda x, w: (x * w).logsumexp(-1),
    "prod(x + w)": lambda x, w: (x + w).prod(-1),
    "max(x + w)*sum(x)": lambda x, w: (x + w).amax(-1) * x.sum(-1),
    "sum(w*sign(x))": lambda x, w: (w * x.sign()).sum(-1),
    "sum(x*softmax(w*x))": lambda x, w: (x * (w * x).softmax(-1)).sum(-1),
}


def loss(f: Layer) -> Layer:
    return lambda x, w: f(x, w).square().sum()


def many(*tensors: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Three of each tensor, all different."""
    return tuple(torch.stack([tensor, tensor.cos(), tensor - 0.3], dim) for tensor in tensors)


#: What is done to a function of x and w.
TRANSFORMS: dict[str, Callable[[Layer], Callable[[Tensor, Tensor], Any]]] = {
    "grad": lambda f: grad(loss(f), argnums=(0, 1)),
    "grad of one": lambda f: grad(loss(f), argnums=1),
    "vjp": lambda f: lambda x, w: vjp(f, x, w)[1](f(x, w).cos()),
    "jvp": lambda f: lambda x, w: jvp(f, (x, w), (x.cos(), w.sin())),
    "jvp along one": lambda f: lambda x, w: jvp(lambda w: f(x, w), (w,), (w.sin(),)),
    "jacrev": lambda f: jacrev(f, argnums=(0, 1)),
    "jacfwd": lambda f: jacfwd(f, argnums=(0, 1)),
    "hessian": lambda f: hessian(loss(f), argnums=(0, 1)),
    "reverse over reverse": lambda f: grad(lambda x, w: grad(loss(f))(x, w).square().sum(), argnums=(0, 1)),
    "reverse over forward": lambda f: grad(
        lambda x, w: jvp(f, (x, w), (x.cos(), w.sin()))[1].square().sum(), argnums=(0, 1)
    ),
    "images": lambda f: lambda x, w: vmap(f, (0, None))(*many(x), w),
    "images along another axis": lambda f: lambda x, w: vmap(f, (2, None), 1)(*many(x, dim=2), w),
    "weights": lambda f: lambda x, w: vmap(f, (None, 1))(x, *many(w, dim=1)),
    "both": lambda f: lambda x, w: vmap(f)(*many(x, w)),
    "batches of batches": lambda f: lambda x, w: vmap(vmap(f, (0, None)), (None, 0))(*many(x, w)),
    "gradients per sample": lambda f: lambda x, w: vmap(grad(loss(f), argnums=(0, 1)), (0, None))(*many(x), w),
    "gradients of images": lambda f: lambda x, w: vmap(grad(loss(f)), (0, None))(*many(x), w),
    "tangents of a batch": lambda f: lambda x, w: vmap(lambda v: jvp(f, (x, w), (v, w)))(*many(x)),
    "gradient through a batch": lambda f: grad(lambda x, w: vmap(f)(*many(x, w)).square().sum(), argnums=(0, 1)),
}


def check(formula: str, transform: str, backend: str) -> None:
    x, w = random(1, 2, 3, 4), random(2, 2, 2, 2)
    ours = TRANSFORMS[transform](lambda x, w: sc.conv2d(formula, x, w, backend=backend))(x, w)
    theirs = TRANSFORMS[transform](lambda x, w: unfolded(FORMULAS[formula], x, w))(x, w)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, backend: str) -> None:
    check("sum(sin(w*x))", transform, backend)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_transforms_of_formulas(formula: str, transform: str) -> None:
    check(formula, transform, "torch")


@pytest.mark.parametrize("batched", ["x", "g", "q", "p", "xgq", "xgqpw"])
def test_batches_of_all_operands(batched: str, backend: str) -> None:
    """A second image, a value per output pixel, a parameter: some the same for the whole batch, some not."""
    formula = "g: input\nq: field[o]\np: param[o] = 1\np*q*sum(w*g*x)"
    shapes = {"x": (2, 3, 4, 4), "w": (2, 3, 3, 3), "g": (2, 1, 4, 4), "q": (2, 2, 2, 2), "p": (2,)}
    operands = {name: random(*shape) for name, shape in shapes.items()}
    given = {name: many(each)[0] if name in batched else each for name, each in operands.items()}
    in_dims = {name: 0 if name in batched else None for name in operands}

    def ours(x: Tensor, w: Tensor, **others: Tensor) -> Tensor:
        return sc.conv2d(formula, x, w, backend=backend, **others)

    def theirs(x: Tensor, w: Tensor, g: Tensor, q: Tensor, p: Tensor) -> Tensor:
        return F.conv2d(x * g, w) * q * p[:, None, None]

    def results(f: Callable[..., Tensor]) -> list[Any]:
        values = vmap(lambda d: f(**d), (in_dims,))(given)
        return [values, vmap(grad(lambda d: f(**d).square().sum()), (in_dims,))(given)]

    torch.testing.assert_close(results(ours), results(theirs))


@pytest.mark.parametrize("learns", [False, True])
def test_dual_numbers(learns: bool, backend: str) -> None:
    """Forward mode without `torch.func`; where x learns as well, tangents have gradients, and gradients tangents."""
    x, w = random(1, 2, 3, 4), random(2, 2, 2, 2)

    def results(f: Layer) -> list[Tensor]:
        image = x.clone().requires_grad_(learns)
        with forward_ad.dual_level():
            y = f(forward_ad.make_dual(image, x.cos()), forward_ad.make_dual(w, w.sin()))
            found = list(forward_ad.unpack_dual(y))
            if learns:
                gradient = torch.autograd.grad(y.square().sum(), image, retain_graph=True)[0]
                found += [*forward_ad.unpack_dual(gradient), *torch.autograd.grad(found[1].square().sum(), image)]
        return [each.detach() for each in found]

    ours, theirs = (
        results(lambda x, w: sc.conv2d("sum(sin(w*x))", x, w, backend=backend)),
        results(lambda x, w: unfolded(FORMULAS["sum(sin(w*x))"], x, w)),
    )
    torch.testing.assert_close(ours, theirs)


def test_a_tangent_of_a_gradient_of_an_earlier_output(backend: str) -> None:
    """Gradients are linear in grad_output: along v they move by those of v."""
    x, w = random(1, 2, 3, 4).requires_grad_(), random(2, 2, 2, 2)
    y = sc.conv2d("sum(sin(w*x))", x, w, backend=backend)
    v = torch.randn_like(y)
    with forward_ad.dual_level():
        moved = torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), v), retain_graph=True)[0]
        tangent = forward_ad.unpack_dual(moved).tangent
    torch.testing.assert_close(tangent, torch.autograd.grad(y, x, v)[0])


def test_many_directions_at_once(backend: str) -> None:
    x, w = random(1, 2, 3, 4).requires_grad_(), random(2, 2, 2, 2).requires_grad_()
    y = sc.conv2d("sum(sin(w*x))", x, w, backend=backend)
    directions = random(3, *y.shape)
    found = vmap(lambda v: torch.autograd.grad(y, (x, w), v, retain_graph=True))(directions)
    each = [torch.autograd.grad(y, (x, w), v, retain_graph=True) for v in directions]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*each))))


def test_layers_as_functions(backend: str) -> None:
    """An ensemble, and the gradients of each sample, as the documentation of `torch.func` has them."""
    torch.manual_seed(0)
    layers = [
        sc.Conv2d("sum(sin(w*x)) + b", 2, 3, 2, padding=1, dtype=torch.float64, backend=backend) for _ in range(3)
    ]
    x = random(4, 2, 3, 4)
    parameters, buffers = stack_module_state(layers)
    found = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([layer(x) for layer in layers]))

    def of_one(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(layers[0], parameters, (image[None],)).square().sum()

    own = dict(layers[0].named_parameters())
    per_sample = vmap(grad(of_one), (None, 0))(own, x)
    for index, image in enumerate(x):
        layers[0].zero_grad()
        layers[0](image).square().sum().backward()
        for name, parameter in own.items():
            torch.testing.assert_close(per_sample[name][index], parameter.grad)


@pytest.mark.parametrize("transform", ["grad", "jvp", "both", "gradients per sample", "hessian"])
def test_recorded_transforms(transform: str, backend: str) -> None:
    """`make_fx` sees operators, and what it records computes the same for other numbers."""
    x, w = random(1, 2, 3, 4), random(2, 2, 2, 2)
    transformed = TRANSFORMS[transform](lambda x, w: sc.conv2d("sum(sin(w*x))", x, w, backend=backend))
    recorded = make_fx(transformed)(x, w)
    assert any("symconv" in str(node.target) for node in recorded.graph.nodes)
    others = random(1, 2, 3, 4), random(2, 2, 2, 2)
    torch.testing.assert_close(recorded(*others), transformed(*others))


@pytest.mark.parametrize("transform", ["grad", "jvp", "both", "gradients per sample"])
def test_compiled_transforms(transform: str) -> None:
    x, w = random(1, 2, 3, 4), random(2, 2, 2, 2)
    transformed = TRANSFORMS[transform](lambda x, w: sc.conv2d("sum(sin(w*x))", x, w, backend="torch"))
    torch.testing.assert_close(torch.compile(transformed, backend="aot_eager")(x, w), transformed(x, w))


def test_batches_without_images(backend: str) -> None:
    x, w = random(3, 0, 2, 3, 4), random(2, 2, 2, 2)
    assert vmap(lambda x: sc.conv2d("sum(w*x)", x, w, backend=backend))(x).shape == (3, 0, 2, 2, 3)


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0)])
def test_batches_of_no_calls(in_dims: tuple[int | None, int | None], backend: str) -> None:
    x, w = random(1, 2, 3, 4), random(2, 2, 2, 2)
    given = [each if dim is None else each.expand(0, *each.shape) for each, dim in zip((x, w), in_dims)]

    def f(x: Tensor, w: Tensor) -> Tensor:
        return sc.conv2d("sum(w*x)", x, w, backend=backend)

    assert vmap(f, in_dims)(*given).shape == (0, 1, 2, 2, 3)
    gradients = vmap(grad(loss(f), argnums=(0, 1)), in_dims)(*given)
    assert [each.shape for each in gradients] == [(0, *x.shape), (0, *w.shape)]


def test_tangents_keep_the_dtype(backend: str) -> None:
    x, w = random(1, 2, 3, 4).bfloat16(), random(2, 2, 2, 2).bfloat16()
    y, tangent = jvp(lambda x, w: sc.conv2d("sum(w*x)", x, w, backend=backend), (x, w), (x, w))
    assert y.dtype == tangent.dtype == torch.bfloat16
    torch.testing.assert_close(tangent, 2 * y, rtol=2e-2, atol=2e-2)
