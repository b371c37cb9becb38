"""CUDA kernels on a GPU, beyond the suite of all backends: streams, graphs, memory, determinism, large tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import symconv as sc
from symconv.backends import choose

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

ADDER = "-sum(abs(x - w)) + b"


def gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def layer(formula: str = ADDER, inputs: int = 8, filters: int = 16, **options: object) -> sc.Conv2d:
    return sc.Conv2d(formula, inputs, filters, 3, padding=1, **options).cuda()  # type: ignore[arg-type]


def trained(module: sc.Conv2d, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    given = x.detach().requires_grad_()
    y = module(given)
    return [y, *torch.autograd.grad(y, [given, *module.parameters()], grad)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_auto_means_cuda(dtype: torch.dtype) -> None:
    assert choose("auto", torch.device("cuda"), dtype) == "cuda"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formula", ["sum(w*x)", ADDER, "max(x + w)", "sum(x*softmax(x))", "median(x)"])
def test_a_large_layer_equals_float64_on_the_cpu(formula: str, dtype: torch.dtype) -> None:
    if dtype in (torch.float16, torch.bfloat16) and "max" in formula.replace("softmax", ""):
        pytest.skip("values that are equal as halves: the gradient has many right answers")
    options = {"padding": 1, "padding_mode": "constant", "stride": 2}
    module = sc.Conv2d(formula, 24, 40, 3, **options).to("cuda", dtype)  # type: ignore[arg-type]
    x = gpu(3, 24, 61, 45, dtype=dtype).to(memory_format=torch.channels_last)
    exact = sc.Conv2d(formula, 24, 40, 3, **options, backend="torch").double()  # type: ignore[arg-type]
    exact.load_state_dict({name: value.double().cpu() for name, value in module.state_dict().items()})
    grad = gpu(3, 40, 31, 23, dtype=dtype)
    bound = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for ours, theirs in zip(trained(module, x, grad), trained(exact, x.double().cpu(), grad.double().cpu())):
        assert ours.dtype == dtype
        assert (ours.double().cpu() - theirs).norm() <= bound * theirs.norm()


def test_fast_math_is_near() -> None:
    x, w = gpu(2, 8, 40, 40), gpu(8, 8, 3, 3)
    for text in ("sum(sin(w*x))", "sum(exp(w*x))", "sum(w*tan(x/4))"):
        exact, fast = (sc.conv2d(text, x, w, fast_math=each) for each in (False, True))
        torch.testing.assert_close(fast, exact, rtol=1e-4, atol=1e-3)
        assert not torch.equal(fast, exact)


def test_the_same_call_gives_the_same_bits() -> None:
    module, x, grad = layer(), gpu(4, 8, 50, 50), gpu(4, 16, 50, 50)
    first = trained(module, x, grad)
    for _ in range(5):
        assert all(map(torch.equal, first, trained(module, x, grad)))


def test_launches_go_to_the_current_stream() -> None:
    module, x, grad = layer(), gpu(4, 8, 50, 50), gpu(4, 16, 50, 50)
    expected = trained(module, x, grad)
    late = torch.zeros_like(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # who does not queue behind it reads zeros
        late.copy_(x)
        found = trained(module, late, grad)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, expected, found))


def test_a_warm_call_waits_for_nothing() -> None:
    module, x, grad = layer(), gpu(4, 8, 50, 50), gpu(4, 16, 50, 50)
    trained(module, x, grad)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(50_000_000)
        busy = torch.cuda.Event()
        busy.record()
        trained(module, x, grad)
        assert not busy.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graphs_capture_training() -> None:
    module, x, grad = layer(), gpu(4, 8, 50, 50), gpu(4, 16, 50, 50)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        trained(module, x, grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = trained(module, x, grad)
    x.copy_(gpu(*x.shape))
    graph.replay()
    assert all(map(torch.equal, trained(module, x, grad), captured))


def test_memory_comes_from_torch_and_does_not_grow() -> None:
    module, x, grad = layer(), gpu(4, 8, 200, 200), gpu(4, 16, 200, 200)
    trained(module, x, grad)
    torch.cuda.synchronize()

    def others() -> int:
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()

    outside, inside = others(), torch.cuda.memory_allocated()
    for _ in range(20):
        trained(module, x, grad)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == inside
    assert others() == outside


def test_tensors_of_more_than_two_to_the_31_elements() -> None:
    x = torch.zeros(2, 1, 33000, 33000, dtype=torch.float16, device="cuda")
    x[1, 0, -4:, -4:] = torch.arange(16.0).reshape(4, 4)
    w = torch.tensor([1.0, 2, 3, 4], dtype=torch.float16, device="cuda").reshape(1, 1, 2, 2)
    y = sc.conv2d("sum(w*x)", x, w)
    assert y.shape == (2, 1, 32999, 32999)
    assert torch.equal(y[1, :, -3:, -3:], torch.nn.functional.conv2d(x[1:, :, -4:, -4:], w)[0])
    assert y[0].abs().amax() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_gpu() -> None:
    module, x, grad = layer(), gpu(4, 8, 50, 50), gpu(4, 16, 50, 50)
    expected = trained(module, x, grad)
    found = trained(module.to("cuda:1"), x.to("cuda:1"), grad.to("cuda:1"))
    assert all(each.device.index == 1 for each in found)
    assert all(torch.equal(a, b.to("cuda:0")) for a, b in zip(expected, found))


@pytest.mark.compile
def test_torch_compile_calls_the_same_kernels() -> None:
    module, x, grad = layer(), gpu(2, 8, 20, 20), gpu(2, 16, 20, 20)
    expected = trained(module, x, grad)
    found = trained(torch.compile(module, fullgraph=True), x, grad)  # type: ignore[arg-type]
    assert all(map(torch.equal, expected, found))


def test_what_a_launch_cannot_do_is_an_error() -> None:
    from symconv.build.driver import LoadedModule
    from symconv.errors import BackendError

    with pytest.raises(BackendError, match="'adder': CUDA_ERROR_INVALID_IMAGE"):
        LoadedModule(b"not a cubin", "adder").launch("symconv_forward", 1, 32, 0, b"")
