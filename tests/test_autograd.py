"""Kernels as citizens of autograd and torch.compile; what is not supported raises."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from oracles import random
from torch import nn

import symconv as sc
from symconv.ops import version

FLOATS = [torch.float64, torch.float32, torch.bfloat16]

FORMULAS = [
    "sum(w*x) + b",
    "prod(tan(x + w)) + b",
    "max(x + w) - min(x - w) + b",
    "logsumexp(x + w)*b",
    "sum(w*x)/(norm(w)*norm(x) + 0.1) + b",
    "p: param[o] = 0.3\nexp(-p*mean((x - w)**2)) + b",
    "sum(x*softmax(x*w)) + b",
    "sum(max(x + w, dim=t)*std(x*w, dim=t), dim=c) + b",
    "sum(softmax(sum(x*w[c, 0], dim=c), dim=t)*x[o, t]*w[o, t+1], dim=t) + median(x)*b",
]


@pytest.mark.parametrize("formula", FORMULAS)
def test_gradgradcheck(backend: str, formula: str) -> None:
    x, w, b = random(1, 2, 4, 3, scale=0.3), random(2, 1, 2, 2, scale=0.3), random(2)
    extra = {"p": random(2).abs().requires_grad_()} if "param" in formula else {}
    tensors = [tensor.requires_grad_() for tensor in (x, w, b, *extra.values())]

    def kernel(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, *p: torch.Tensor) -> torch.Tensor:
        return sc.conv2d(formula, x, w, b, padding=1, stride=2, groups=2, backend=backend, **dict(zip("p", p)))

    assert torch.autograd.gradcheck(kernel, tensors)
    assert torch.autograd.gradgradcheck(kernel, tensors)


def test_a_gradient_penalty_trains_the_weight(backend: str) -> None:
    layer = sc.Conv2d("-sum(abs(x - w)**1.5)", 1, 2, 3, backend=backend, dtype=torch.float64)
    x = random(1, 1, 5, 5).requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    grad.square().sum().backward()
    ours = layer.weight.grad.clone()
    w = layer.weight.detach().clone().requires_grad_()
    y = -(x.unfold(2, 3, 1).unfold(3, 3, 1) - w[:, :, None, None]).abs().pow(1.5).sum()
    (grad,) = torch.autograd.grad(y, x, create_graph=True)
    grad.square().sum().backward()
    torch.testing.assert_close(ours, w.grad)


@pytest.mark.parametrize("which", ["x", "w", "b"])
def test_only_what_is_needed_gets_a_gradient(backend: str, which: str) -> None:
    tensors = {"x": random(1, 2, 4, 4), "w": random(2, 2, 3, 3), "b": random(2)}
    tensors[which].requires_grad_()
    sc.conv2d("sum(sin(w*x)) + b", *tensors.values(), backend=backend).sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == {which}


@pytest.mark.parametrize("asked", ["x", "w", "xw", "xwb"])
@pytest.mark.parametrize("leaf", [True, False])
def test_only_what_is_asked_for_is_computed(
    backend: str, asked: str, leaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"x": random(1, 2, 4, 4), "w": random(2, 2, 3, 3), "b": random(2)}
    for tensor in tensors.values():
        tensor.requires_grad_()
    if not leaf:
        tensors = {name: 2 * tensor for name, tensor in tensors.items()}
    y = sc.conv2d("sum(sin(w*x))*b", *tensors.values(), backend=backend)
    wanted = [tensors[name] for name in asked]
    compiled, computed = type(y.grad_fn.call.compiled), []

    def spied(*args: Any) -> Any:
        computed.append(args[-1])
        return backward(*args)

    backward = compiled.backward
    monkeypatch.setattr(compiled, "backward", spied)
    found = torch.autograd.grad(y.sum(), wanted, retain_graph=True)
    assert computed == [set(asked)]
    everything = dict(zip("xwb", torch.autograd.grad(y.sum(), [*tensors.values()], create_graph=True)))
    for name, gradient in zip(asked, found):
        torch.testing.assert_close(gradient, everything[name])
    computed.clear()
    penalty = everything["x"].square().sum()
    twice = torch.autograd.grad(penalty, wanted, retain_graph=True)
    assert computed == [set(asked)]
    all_twice = dict(zip("xwb", torch.autograd.grad(penalty, [*tensors.values()])))
    for name, gradient in zip(asked, twice):
        torch.testing.assert_close(gradient, all_twice[name])


def test_no_grad_keeps_nothing(backend: str) -> None:
    layer = sc.Conv2d("logsumexp(x + w)", 1, 1, 3, backend=backend)
    with torch.no_grad():
        assert not layer(torch.randn(1, 1, 5, 5)).requires_grad
    assert not layer.requires_grad_(False)(torch.randn(1, 1, 5, 5)).requires_grad


def test_expanded_and_strided_gradients(backend: str) -> None:
    x, w = random(2, 2, 5, 5).requires_grad_(), random(3, 2, 3, 3).requires_grad_()
    y = sc.conv2d("norm(x - w)", x, w, backend=backend)
    dense = torch.randn(3, 3, 3, 2, dtype=y.dtype)
    for direction in (
        torch.ones(1, dtype=y.dtype).expand_as(y),
        dense.permute(3, 0, 1, 2),
        dense.flip(0).permute(3, 0, 1, 2),
    ):
        ours = torch.autograd.grad(y, (x, w), direction, retain_graph=True)
        plain = torch.autograd.grad(y, (x, w), direction.contiguous(), retain_graph=True)
        for a, b in zip(ours, plain):
            torch.testing.assert_close(a, b)


def test_an_output_may_be_changed_in_place(backend: str) -> None:
    x = random(1, 1, 4, 4).requires_grad_()
    for formula in ("logsumexp(x)", "sum(x)", "prod(x)"):
        y = sc.conv2d(formula, x, kernel_size=2, out_channels=1, backend=backend)
        (expected,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        (changed,) = torch.autograd.grad(y.mul_(3).sum(), x)
        torch.testing.assert_close(changed, 3 * expected)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")


@needs_compiler
@pytest.mark.parametrize(
    "formula", ["prod(tan(x + w)) + b", "logsumexp(x + w)", "beta: const = 2\nmax(x + beta*w)", "sum(x) + sum(w) + b"]
)
def test_compile_without_graph_breaks(backend: str, formula: str) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(sc.Conv2d(formula, 2, 4, 3, padding=1, padding_mode="circular", backend=backend), nn.ReLU())
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    x = torch.randn(2, 2, 5, 5)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = compiled(mine), model(theirs)
    torch.testing.assert_close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    for a, b in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@needs_compiler
def test_compile_of_the_function_and_of_a_pool(backend: str) -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def compiled(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return sc.pool2d("mean(x)", sc.conv2d("-sum(abs(x - w))", x, w, b, stride=2, backend=backend), 2)

    x, w, b = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = sc.pool2d("mean(x)", sc.conv2d("-sum(abs(x - w))", x, w, b, stride=2, backend=backend), 2)
    torch.testing.assert_close(compiled(x, w, b), expected)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_compile_of_a_layer_with_a_second_input(backend: str) -> None:
    torch._dynamo.reset()
    layer = sc.Conv2d("g: input\nsum(w*x*g)", 2, 3, 2, backend=backend)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x, g = torch.randn(1, 2, 5, 5), torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(compiled(x, g), layer(x, g))
    torch.testing.assert_close(compiled(x, g=g), layer(x, g))


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("asked", ["w", "xw"])
def test_compiled_autograd(backend: str, asked: str) -> None:
    torch._dynamo.reset()
    for batch in (2, 3):
        tensors = {"x": random(batch, 2, 5, 5).requires_grad_(), "w": random(3, 2, 2, 2).requires_grad_()}
        y = sc.conv2d("k: const = 2\nsum(w*x)*k", tensors["x"].sin(), tensors["w"], backend=backend)
        loss = sc.pool2d("max(x)", y, 2, backend=backend).sin().sum()
        wanted = [tensors[name] for name in asked]
        expected = torch.autograd.grad(loss, wanted, retain_graph=True)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            loss.backward(inputs=wanted)
        for tensor, gradient in zip(wanted, expected, strict=True):
            torch.testing.assert_close(tensor.grad, gradient)
        assert sum(tensor.grad is not None for tensor in tensors.values()) == len(asked)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("learning", [True, False])
def test_a_trace_sees_the_kernel(backend: str, learning: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), sc.Conv2d("max(w + x) + b", 2, 3, 3, backend=backend))
    x, other, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 6, 4), torch.randn(3, 2, 3, 3)
    with torch.set_grad_enabled(learning):
        model(x), sc.conv2d("sum(abs(x - w))", x, w, backend=backend)  # known before
        traced = torch.jit.trace(model, x)
        function = torch.jit.trace(lambda x, w: sc.conv2d("sum(abs(x - w))", x, w, backend=backend), (x, w))
        torch.testing.assert_close(traced(other), model(other))
        torch.testing.assert_close(function(other, 2 * w), sc.conv2d("sum(abs(x - w))", other, 2 * w))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_a_pool(backend: str) -> None:
    x, other = torch.randn(1, 3, 6, 6), torch.randn(2, 3, 8, 7)
    for pool in (sc.Pool2d("max(x)", 2, backend=backend), lambda x: sc.pool2d("max(x)", x, 2, backend=backend)):
        torch.testing.assert_close(torch.jit.trace(pool, x)(other), nn.functional.max_pool2d(other, 2))


@needs_compiler
@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_as_a_convolution(backend: str, compiled: bool) -> None:
    torch._dynamo.reset()
    ours = sc.Conv2d("s: param = 2.0\nsum(w*x)*s + b", 4, 5, 3, backend=backend)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), ours, nn.Conv2d(5, 2, 1))
    run = torch.compile(model, fullgraph=True) if compiled else model
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(x)
        assert ours(x.repeat(1, 2, 1, 1)[:, :4]).dtype == y.dtype == torch.bfloat16
        assert ours(torch.randn(1, 4, 3, 3).bfloat16()).dtype == torch.bfloat16
        assert sc.conv2d("sum(w*x)", x, torch.randn(1, 3, 2, 2), backend=backend).dtype == torch.bfloat16
        for pool in (lambda x: sc.pool2d("mean(x)", x, 2, backend=backend), nn.AvgPool2d(2), nn.MaxPool2d(2)):
            assert [pool(x.to(dtype)).dtype for dtype in FLOATS] == FLOATS
        soft = sc.Pool2d("p: param = 1\nsum(x*softmax(p*x))", 2, backend=backend)
        assert [soft(x.to(dtype)).dtype for dtype in FLOATS[:2]] == FLOATS[:2]
    torch.testing.assert_close(y.float(), model(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    assert run(x).dtype == torch.float32


def test_operators_pass_torchs_own_check(backend: str) -> None:
    x, w = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 2, 2, requires_grad=True)
    geometry = sc.geometry.Geometry((2, 2), 2, (1, 1), ((0, 1), (1, 0)), (1, 1), 1)
    for formula in ("max(x + w)", "sum(w*x)", "logsumexp(w*x)"):
        torch.library.opcheck(
            torch.ops.symconv.convolve.default,
            (formula, backend, version(), formula == "sum(w*x)", [], geometry.numbers(), [x, w]),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic"),
        )


@pytest.mark.parametrize("formula", FORMULAS)
def test_everything_stays_on_the_device_of_the_input(formula: str) -> None:
    """On the meta device an operator refuses to mix devices, as on CUDA; only shapes are computed."""
    tensors = [torch.empty(shape, device="meta", requires_grad=True) for shape in ((2, 4, 6, 6), (4, 4, 3, 3), (4,))]
    y = sc.conv2d(formula, *tensors, padding=1, padding_mode="ignore", backend="torch")
    grads = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in grads), tensors, allow_unused=True)
    assert y.shape == (2, 4, 6, 6)
    for tensor, first, again in zip(tensors, grads, second):
        assert first.shape == tensor.shape
        assert first.device.type == "meta"
        assert again is None or again.shape == tensor.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("formula", FORMULAS)
def test_cuda_tensors(formula: str) -> None:
    tensors = [random(2, 2, 6, 6), random(4, 2, 3, 3), random(4)]
    results = []
    for device in ("cpu", "cuda"):
        here = [tensor.to(device).requires_grad_() for tensor in tensors]
        y = sc.conv2d(formula, *here, padding=1, padding_mode="ignore", backend="torch")
        results.append([y, *torch.autograd.grad(y.square().sum(), here)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(theirs.cpu(), ours)
