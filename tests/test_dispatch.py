"""Tensors and modes that PyTorch's dispatcher knows: with a kernel, numbers are right or an error is clear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

import symconv as sc
from symconv.errors import ArgumentError, ArgumentTypeError, DerivativeError

X, W = torch.arange(72.0).reshape(2, 1, 6, 6).cos(), torch.arange(18.0).reshape(2, 1, 3, 3).sin()


def linear(backend: str) -> Callable[..., torch.Tensor]:
    return lambda x, w=None: sc.conv2d("sum(w*x)", x, W if w is None else w, backend=backend)


def test_fake_tensors_have_shapes_and_leave_nothing_behind(backend: str) -> None:
    with FakeTensorMode():
        layer = sc.Conv2d("sum(w*x) + b", 1, 2, 3, backend=backend)
        y = layer(torch.randn(2, 1, 6, 6))
        y.sum().backward()
    assert isinstance(y, FakeTensor)
    assert y.shape == (2, 2, 4, 4)
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == (2, 1, 3, 3)
    real = sc.Conv2d("sum(w*x) + b", 1, 2, 3, backend=backend)
    x = X.clone().requires_grad_()
    y = real(x)
    torch.testing.assert_close(y, F.conv2d(x, real.weight, real.bias))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(F.conv2d(x, real.weight).sum(), x)[0])


def test_a_real_layer_sees_a_fake_image(backend: str) -> None:
    layer = sc.Conv2d("sum(w*x)", 1, 2, 3, backend=backend).requires_grad_(False)
    layer(X)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        assert isinstance(layer(mode.from_tensor(X)), FakeTensor)


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_operator(backend: str, tracing_mode: str) -> None:
    graph = make_fx(linear(backend), tracing_mode=tracing_mode)(X, W)
    other = X.flip(-1) + 1
    torch.testing.assert_close(graph(other, W), F.conv2d(other, W))


def test_a_tensor_of_two_tensors(backend: str) -> None:
    x = TwoTensor(X, 2 * X).requires_grad_()
    w = W.clone().requires_grad_()
    y = linear(backend)(x, w)
    assert isinstance(y, TwoTensor)
    torch.testing.assert_close(y.a, F.conv2d(X, W))
    torch.testing.assert_close(y.b, F.conv2d(2 * X, W))
    y.sum().backward()
    torch.testing.assert_close(w.grad.b, 2 * w.grad.a)
    torch.testing.assert_close(x.grad.a, torch.autograd.grad(F.conv2d(a := X.clone().requires_grad_(), W).sum(), a)[0])


def test_zeros_without_memory(backend: str) -> None:
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    y = linear(backend)(x, w)
    y.backward(torch._efficientzerotensor(y.shape))
    assert not x.grad.any()
    assert not w.grad.any()
    assert not linear(backend)(torch._efficientzerotensor(X.shape)).any()


@pytest.mark.parametrize("made", ["trace", "export"])
def test_forward_derivatives_of_recorded_calls_are_no_zeros(backend: str, made: str) -> None:
    layer = sc.Conv2d("sum(w*x)", 1, 2, 3, backend=backend)
    recorded = {
        "trace": lambda: torch.jit.trace(layer, (X,)),
        "export": lambda: torch.export.export(layer, (X,)).module(),
    }
    with pytest.raises((DerivativeError, RuntimeError), match=r"jvp\) are not supported"):
        torch.func.jvp(recorded[made](), (X,), (X,))


def test_forward_derivatives_beside_a_layer(backend: str) -> None:
    with forward_ad.dual_level():
        torch.testing.assert_close(linear(backend)(X), F.conv2d(X, W))


def test_gradients_of_many_directions_at_once_are_refused(backend: str) -> None:
    x = X.clone().requires_grad_()
    y = linear(backend)(x)
    with pytest.raises(DerivativeError, match="batch of directions"):
        torch.autograd.grad(y, x, torch.ones(3, *y.shape), is_grads_batched=True)


@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn])
def test_other_layouts_are_refused(backend: str, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
    linear(backend)(X)  # whether or not the same shape was seen before
    with pytest.raises(ArgumentTypeError, match=r"input has layout .* convert it, for example input.to_dense\(\)"):
        linear(backend)(convert(X))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(backend: str, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(1, 3, 3), torch.zeros(2, 3, 3)], layout=layout)
    layer, pool = sc.Conv2d("sum(w*x)", 1, 2, 3, backend=backend), sc.Pool2d("g: input\nsum(g*x)", 3, backend=backend)
    calls = {
        "input": [layer, linear(backend), lambda x: pool(x, X), torch.compile(layer, backend="eager")],
        "weight": [lambda w: linear(backend)(X, w), torch.autocast("cpu")(lambda w: linear(backend)(X, w))],
        "g": [lambda g: pool(X, g)],
    }
    for name, each in ((name, each) for name, uses in calls.items() for each in uses):
        with pytest.raises(ArgumentTypeError, match=rf"{name} is a nested tensor; .*to_padded_tensor\({name}, 0.0\)"):
            each(nested)


@pytest.mark.parametrize("stride", [7, 2**30, 2**31, 2**32, 2**61 + 1])
def test_any_stride_over_the_image_leaves_one_window(backend: str, stride: int) -> None:
    x = X.clone().requires_grad_()
    y = sc.conv2d("sum(w*x)", x, W, stride=stride, padding=1, backend=backend)
    expected = F.conv2d(x, W, padding=1)[:, :, :1, :1]
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x)):
        torch.testing.assert_close(ours, theirs)


def test_windows_beyond_all_memory_are_refused(backend: str) -> None:
    with pytest.raises(ArgumentError, match="at most 2147483647 are possible"):
        sc.conv2d("sum(w*x)", X, W, dilation=2**31, padding=2**31, backend=backend)


def test_a_positive_param_on_the_meta_device() -> None:
    layer = sc.Conv2d("p: param[o, positive] = 2\np*sum(w*x)", 1, 2, 3, device="meta")
    assert layer.p.is_meta
    assert layer.to_empty(device="cpu").p.shape == (2,)


def test_layouts_of_views_do_not_pile_up() -> None:
    for width in range(20, 600):
        linear("cpp")(torch.ones(1, 1, 8, width)[..., 2:18])
    plans = sc.backends.backend("cpp").compile(sc.Kernel("sum(w*x)"))._plans.values()
    assert max(len(plan._layouts) for plan in plans) <= sc.backends.native_plan.MAX_LAYOUTS
