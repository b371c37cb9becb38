"""The CUDA backend beyond the suite of all backends: text, machine code, launches, and what its emulation finds."""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import symconv as sc
from symconv import zoo
from symconv.backends import backends
from symconv.backends.cuda import CudaBackend, cut_of, fitted, generate, precompiled, unspilled
from symconv.backends.cuda_flat_plan import STAGE, flat_cut
from symconv.backends.cuda_plan import CudaPlan, Cut, block_cut, blocks_at_a_time
from symconv.backends.native_facts import Facts
from symconv.backends.native_plan import TENSOR
from symconv.build import driver, emulation
from symconv.build.nvrtc import architectures, cubin
from symconv.errors import BackendError, CompilationError, InternalError, SymconvWarning
from symconv.geometry import Geometry
from symconv.render import static_headers

pytestmark = pytest.mark.skipif(backends()["cuda-emu"].unavailable() is not None, reason="needs a C++ compiler")

GOLDEN = Path(__file__).parent / "golden" / "cuda"
KERNELS = {
    "adder": "-sum(abs(x - w))",
    "linear": "sum(w*x) + b",
    "tangent_product": "prod(tan(x + w))",
    "dilation": "max(x + w)",
    "soft_dilation": "beta: const = 5\nlogsumexp(beta*(x + w))/beta",
    "tropical": "sum(max(x + w, dim=t), dim=c)",
    "softpool": "sum(x*softmax(x))",
    "median": "median(x)",
    "correlation": "cov(x, w)/(std(x)*std(w) + 1e-6)",
    "central_difference": "theta: const = 0.7\nsum(w*(x - theta*x[c, 0]))",
    "guided": "g: input\nsum(w*x*exp(-(g - g[c, 0])**2))",
    "bank": "s: weight[3]\nq: field[o]\nq*sum(s[0]*x + s[1]*sin(x) + s[2, c, 0])",
}


# -- Text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    source = generate(sc.Kernel(KERNELS[name], name=name))["kernel.cu"]
    path = GOLDEN / f"{name}.cu.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
    assert source == path.read_text(encoding="utf-8"), "run `make golden` and review the difference"


def test_a_cpu_and_a_cuda_file_are_the_same_kernel() -> None:
    from symconv.backends.cpp import generate as generate_cpp

    kernel = sc.Kernel("-sum(abs(x - w))")
    cuda, cpp = generate(kernel)["kernel.cu"], generate_cpp(kernel)["kernel.cpp"]
    functions = re.compile(r"^SYMCONV_INLINE .*?^}", re.M | re.S)
    assert functions.findall(cpp) == functions.findall(cuda)
    assert len(functions.findall(cpp)) >= 3


# -- Machine code ------------------------------------------------------------------------------------------------------


def geometry(kernel_size: tuple[int, ...], filters: int, padding: int = 0, groups: int = 1) -> Geometry:
    ones = (1,) * len(kernel_size)
    return Geometry(kernel_size, filters, ones, ((padding, padding),) * len(kernel_size), ones, groups, False)


#: A layer of a network, for which kernels are compiled here.
SHAPE, LAYER, POOL = (32, 64, 56, 56), geometry((3, 3), 64, 1), geometry((3, 3), 64, 1, 64)


@pytest.mark.parametrize("name", ["adder", "linear", "dilation", "tangent_product", "median"])
def test_kernels_compile_for_gpus_and_spill_nothing(name: str) -> None:
    layer = POOL if name == "median" else LAYER
    for function, found in precompiled(sc.Kernel(KERNELS[name]), "sm_90", torch.float32, SHAPE, layer).items():
        assert found.spilled == 0, (function, found)


#: Every operator for one GPU in turn, and with the longest sweeps for the others.
ARCHITECTURES = [
    pytest.param(name, architecture, marks=[] if number % 3 == turn else [pytest.mark.emulation])
    for number, name in enumerate(zoo.OPERATORS)
    for turn, architecture in enumerate(("sm_80", "sm_90", "sm_100"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), ARCHITECTURES)
def test_every_operator_of_the_zoo_compiles(name: str, architecture: str) -> None:
    kernel = getattr(zoo, name)
    files = backends()["cuda"].compile(kernel)
    layer = LAYER if "weight" in kernel.signature.roles else POOL
    tensors = [torch.empty(SHAPE, device="meta") for role in files.facts.roles if role == "input"]
    for direction in ("forward", "backward"):
        cuts = functools.partial(cut_of, files.facts, direction, tensors, layer, 132, False)
        cut, code, resources = unspilled(files.source, cuts, architecture, name)
        assert code.startswith(b"\x7fELF")
        if "-DFLAT" in cut.options:
            assert not any(each.spilled for each in resources.values()), resources


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_compile(dtype: torch.dtype) -> None:
    found = precompiled(sc.Kernel("sum(w*x)"), "sm_80", dtype, SHAPE, LAYER)
    assert {"symconv_forward", "symconv_backward_pixels", "symconv_backward_weights"} <= found.keys()


def test_what_nvrtc_refuses_is_an_error_with_its_log() -> None:
    with pytest.raises(BackendError, match="sm_13"):
        precompiled(sc.Kernel("sum(w*x)"), "sm_13", torch.float32, SHAPE, LAYER)
    with pytest.raises(CompilationError, match="undefined_name"):
        cubin("int f() { return undefined_name; }", {}, [], architectures()[0], "a test")


# -- Launches ----------------------------------------------------------------------------------------------------------


def facts(text: str) -> Facts:
    return Facts.from_json(generate(sc.Kernel(text))["facts.json"])


@pytest.mark.parametrize(("text", "flat"), [("sum(w*x)", True), ("sum(max(x + w, dim=t), dim=c)", False)])
def test_facts_are_kept_as_text(text: str, flat: bool) -> None:
    found = facts(text)
    assert Facts.from_json(found.to_json()) == found
    assert [found.flat_forward is not None, found.flat_backward is not None] == [flat, flat]


@pytest.mark.parametrize("shape", [(1, 1, 5, 5), (4, 64, 56, 56), (2, 256, 14, 14), (1, 3, 224, 224), (0, 3, 8, 8)])
@pytest.mark.parametrize("filters", [1, 7, 64])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_cuts_cover_all_filters_and_fill_a_gpu(shape: tuple[int, ...], filters: int, direction: str) -> None:
    x = torch.empty(shape)
    adder = facts("-sum(abs(x - w))")
    cut = block_cut(adder, direction, [x], geometry((3, 3), filters, 1), 132)
    told, blocks = cut.launches[0].geometry, cut.launches[1].blocks
    assert told.strip % 32 == 0
    assert 1 <= told.filter_step <= filters
    assert 1 <= blocks <= 132 * blocks_at_a_time(adder, direction)
    if shape[0] * shape[2] * shape[3] * filters >= 2**18:
        assert blocks >= 132


@pytest.mark.parametrize("shape", [(1, 1, 5, 5), (4, 64, 56, 56), (2, 256, 14, 14), (1, 3, 224, 224), (0, 3, 8, 8)])
@pytest.mark.parametrize("filters", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_flat_cuts_fit_and_fill_a_gpu(shape: tuple[int, ...], filters: int, dtype: torch.dtype, direction: str) -> None:
    x = torch.empty(shape, dtype=dtype)
    cut = flat_cut(facts("-sum(abs(x - w))"), direction, [x], geometry((3, 3), filters, 1), 132)
    assert cut is not None
    for each in cut.launches:
        assert each.geometry.strip % 32 == 0
        assert 0 <= each.shared_bytes <= (48 * 1024 if each.function.endswith("_weights") else STAGE + 512)
        assert each.blocks >= 1
    if shape[0] * shape[2] * shape[3] * filters >= 2**18 and dtype == torch.float32:
        assert max(each.blocks for each in cut.launches if "prepare" not in each.function) >= 96


def test_sums_of_wide_layers_take_as_much_memory_as_the_weights() -> None:
    x = torch.empty(256, 2048, 14, 14, device="meta")
    cut = flat_cut(facts("sum(w*x)"), "backward", [x], geometry((3, 3), 2048, 1), 132)
    assert cut is not None
    assert cut.shares == 1


def test_what_does_not_fit_into_shared_memory_is_not_flat() -> None:
    x = torch.empty(1, 4, 512, 512)
    linear = facts("sum(w*x)")
    assert flat_cut(linear, "forward", [x], geometry((3, 3), 4), 132) is not None
    assert flat_cut(linear, "forward", [x], geometry((31, 31), 4), 132) is None
    assert flat_cut(linear, "backward", [torch.empty(1, 4, 9, 9, 9)], geometry((3, 3, 3), 4), 132) is None
    assert flat_cut(facts("median(x)"), "forward", [x], geometry((3, 3), 4, 0, 4), 132) is None


def test_launches_are_those_of_the_gradients_that_are_wanted() -> None:
    x = torch.empty(1, 2, 40, 40)

    def named(flat: bool, *roles: str | None) -> list[str]:
        cut = (flat_cut if flat else block_cut)(facts("sum(w*x) + b"), "backward", [x], geometry((3, 3), 4), 2)
        assert cut is not None
        plan = CudaPlan(32, 1, (1, 4, 38, 38), 1, "backward", cut, None, x.device)
        return [each.launch.function.removeprefix("symconv_backward_") for each in plan.launches(roles)]

    colours = named(False, "input").count("images")
    assert colours > 1
    assert named(False, "input") == ["prepare", *["images"] * colours]
    assert named(False, "field") == ["prepare", *["images"] * colours]
    assert named(False, "weight", "bias") == ["prepare", "weights", "gather"]
    assert named(False, "input", "weight") == ["prepare", *["images"] * colours, "weights", "gather"]
    assert named(True, "input") == ["prepare", "pixels"]
    assert named(True, "weight", "bias") == ["prepare", "weights", "gather"]
    assert named(True, "input", "weight") == ["prepare", "pixels", "weights", "gather"]


def test_a_launch_sees_no_gradients_that_are_the_work_of_others() -> None:
    x = torch.empty(1, 2, 40, 40)
    cut = block_cut(facts("sum(w*x)"), "backward", [x], geometry((3, 3), 4), 2)
    plan = CudaPlan(32, 1, (1, 4, 38, 38), 1, "backward", cut, None, x.device)
    tensors = (ctypes.c_int64 * (5 * TENSOR))(*range(1, 5 * TENSOR + 1))
    sent = {}
    for each in plan.launches([None, None, None, "input", "weight"]):
        argument = each.argument(7, [0.5], tensors)
        head = len(argument) - ctypes.sizeof(tensors)
        assert argument[: head - 64] == bytes(each.launch.geometry)
        assert ctypes.c_int64.from_buffer_copy(argument, head - 64).value == 7
        assert ctypes.c_double.from_buffer_copy(argument, head - 8).value == 0.5
        sent[each.launch.function] = [*type(tensors).from_buffer_copy(argument, head)][::TENSOR]
    x, w, y, grad_x, grad_w = tensors[::TENSOR]
    assert sent["symconv_backward_images"] == [x, w, y, grad_x, 0]
    assert sent["symconv_backward_weights"] == [x, w, y, 0, grad_w]
    assert sent["symconv_backward_prepare"] == [x, w, y, grad_x, grad_w]


def test_the_driver_is_called_as_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    success = SimpleNamespace(name="CUDA_SUCCESS")
    refused = SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE")

    def stub(name: str, *results: Any) -> Any:
        def function(*arguments: Any) -> tuple[Any, ...]:
            calls.append((name, *arguments))
            return (refused if name == "cuLaunchKernel" and arguments[1] == 0 else success, *results)

        return function

    names = {"cuLibraryLoadData": ["library"], "cuLibraryGetKernel": [7], "cuLaunchKernel": []}
    fake = SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=success), CUfunction=lambda number: ("function", number)
    )
    for name, results in names.items():
        setattr(fake, name, stub(name, *results))
    fake.cuGetErrorString = lambda status: (success, b"invalid argument")
    monkeypatch.setattr(driver, "_driver", lambda: fake)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(driver, "_stream", lambda: 42)
    module = driver.LoadedModule(b"cubin", "adder")
    module.launch("symconv_forward", 3, 256, 1024, b"12345678")
    module.launch("symconv_forward", 5, 256, 0, b"12345678")
    assert [call[0] for call in calls] == [
        "cuLibraryLoadData",
        "cuLibraryGetKernel",
        "cuLaunchKernel",
        "cuLaunchKernel",
    ]
    assert calls[2][1:10] == (("function", 7), 3, 1, 1, 256, 1, 1, 1024, 42)
    with pytest.raises(BackendError, match=r"launch symconv_forward of 'adder': CUDA_ERROR_INVALID_VALUE invalid"):
        module.launch("symconv_forward", 0, 256, 0, b"12345678")


# -- The emulation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", ["adder", "softpool", "median", "tropical", "bank"])
def test_the_order_of_threads_changes_nothing(name: str, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [results(KERNELS[name], each, monkeypatch) for each in (0, order)]
    for a, b in zip(*found):
        assert torch.equal(a, b)
        assert a.isfinite().all()


def results(text: str, order: int, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Output and gradients of a layer whose threads take turns in an order."""
    monkeypatch.setenv("SYMCONV_EMULATION_ORDER", str(order))
    backends()["cuda-emu"]._compiled.clear()
    torch.manual_seed(0)
    kernel = sc.Kernel(text)
    layer = sc.Conv2d(kernel, 5, 6, 3, padding=1, padding_mode="ignore", backend="cuda-emu")
    x = torch.randn(2, 5, 13, 17, requires_grad=True)
    given = {"q": torch.randn(2, 6, 13, 17)} if "q: field" in text else {}
    y = layer(x, **given)
    y.backward(torch.randn_like(y))
    return [y.detach(), x.grad, *(each.grad for each in layer.parameters())]


def test_a_child_does_not_wait_for_a_launch_of_its_parent() -> None:
    ones = torch.ones(1, 1, 3, 3)
    sc.conv2d("sum(w*x)", ones, ones, backend="cuda-emu")  # so that there is nothing left to be built
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    busy = object.__new__(emulation.EmulatedModule)
    busy._run, busy.order = slow, 0
    thread = threading.Thread(target=busy.launch, args=("forward", 1, 1, 0, b""))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(sc.conv2d("sum(w*x)", ones, ones, backend="cuda-emu").item()))
    thread.start()
    assert begun.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    try:
        assert queue.get(timeout=30) == 9
    finally:
        child.kill()
        go_on.set()
        thread.join()


@pytest.mark.parametrize("text", ["sum(w*floor(x))", "sum(x*floor(w))", "max(floor(x))"])
def test_what_has_no_gradient_is_no_launch(text: str) -> None:
    x, w = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 7, 9), (4, 3, 3, 3)))
    weights, options = ([w], {}) if "w" in text else ([], {"kernel_size": (3, 3), "out_channels": 4})
    found = []
    for backend in ("cuda-emu", "torch"):
        y = sc.conv2d(text, x, *weights, backend=backend, **options)  # type: ignore[arg-type]
        found.append([y, *torch.autograd.grad(y.sum(), [x, *weights])])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("text", ["sum(w*exp(x))", "sum(w*log(x))", "sum(w*sin(x))", "sum(w*cos(x))", "sum(w*tan(x))"])
def test_fast_math_is_near_and_only_for_who_asks(text: str) -> None:
    torch.manual_seed(0)
    x, w = torch.rand(1, 2, 6, 6) + 0.25, torch.randn(3, 2, 3, 3)
    exact, fast = (sc.conv2d(text, x, w, fast_math=each, backend="cuda-emu") for each in (False, True))
    torch.testing.assert_close(exact, sc.conv2d(text, x, w, backend="torch"))
    torch.testing.assert_close(fast, exact, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fast, exact)
    same = [sc.conv2d(text, x.double(), w.double(), fast_math=each, backend="cuda-emu") for each in (False, True)]
    assert torch.equal(*same)


def test_fast_math_compiles_for_gpus() -> None:
    text = "sum(sigmoid(x)*tan(w)) + logsumexp(sin(x)*pow(abs(w), 1.5))"
    x, files = torch.empty(4, 8, 20, 20), CudaBackend().compile(sc.Kernel(text))
    for direction in ("forward", "backward"):
        cut = cut_of(files.facts, direction, [x], geometry((3, 3), 8), 132, fast_math=True)
        assert "-DSYMCONV_FAST_MATH" in cut.options
        code, _ = cubin(files.source, static_headers(), cut.options, "sm_90", text)
        assert code[:4] == b"\x7fELF"


def test_tiles_are_halved_until_nothing_spills() -> None:
    def cuts(smaller: Mapping[str, int]) -> Cut:
        return Cut(tuple(f"-D{name}={max(8 >> smaller.get(name, 0), 1)}" for name in ("pixels", "weights")), ())

    def made(cut: Cut) -> tuple[str, list[str]]:
        return "built", [name for name in limits if f"-D{name}={limits[name]}" not in cut.options]

    limits = {"pixels": 2, "weights": 8}
    assert fitted(cuts, made) == (cuts({"pixels": 2}), "built")
    limits = {"pixels": 0}  # it cannot be helped
    assert fitted(cuts, made) == (cuts({"pixels": 3}), "built")
    limits = {"pixels": 4}
    assert fitted(lambda smaller: cuts({"pixels": max(smaller.get("pixels", 0) - 2, 0)}), made) == (
        cuts({"pixels": 1}),
        "built",
    )


@pytest.mark.parametrize("halvings", [1, 5])
def test_smaller_tiles_are_right(halvings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(cuts: Any, made: Any) -> tuple[Cut, Any]:
        names = "forward", "backward_pixels", "backward_weights"
        cut = cuts({f"symconv_{name}": halvings for name in names})
        return cut, made(cut)[0]

    torch.manual_seed(0)
    x, w = (torch.randn(shape, requires_grad=True) for shape in ((2, 5, 9, 12), (11, 5, 3, 3)))
    found = []
    for name in ("torch", "cuda-emu"):
        monkeypatch.setattr("symconv.backends.cuda.fitted", halved)
        output = sc.conv2d("sum(w*x)", x, w, padding=1, backend=name)
        found.append((output, *torch.autograd.grad(output.square().sum(), [x, w])))
    backends()["cuda-emu"]._compiled.clear()
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("declared", ["p: param", "p: param[o]", "p: param[c]", "p: param[t]", "p: param[o, c]"])
def test_flat_kernels_with_parameters(declared: str) -> None:
    torch.manual_seed(0)
    shape = {"": (), "[o]": (6,), "[c]": (3,), "[t]": (3,), "[o, c]": (6, 3)}[declared.removeprefix("p: param")]
    kernel = sc.Kernel(f"{declared}\nsum(w*x*p + abs(p))")
    assert "#ifdef FLAT" in kernel.source("cuda-emu")
    x, w, p = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 6, 7), (6, 3, 3), shape))
    found = []
    for name in ("torch", "cuda-emu"):
        output = sc.conv1d(kernel, x, w, p=p, groups=2, padding=1, padding_mode="ignore", backend=name)
        found.append((output, *torch.autograd.grad(output.square().sum(), [x, w, p])))
    torch.testing.assert_close(*found)


def test_parameters_of_no_filter_have_gradients_where_there_is_one_filter() -> None:
    torch.manual_seed(0)
    x, d = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.rand(3, dtype=torch.float64, requires_grad=True)
    found = []
    for name in ("torch", "cuda-emu"):
        output = sc.conv2d("d: param[c]\nmax(d*x)", x, d=d, out_channels=1, kernel_size=3, backend=name)
        found += torch.autograd.grad(output.sum(), [d])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("text", ["sum(w*x)", "median(x)"])
def test_an_image_of_too_many_windows_is_refused(text: str, direction: str) -> None:
    x = torch.empty(1, 1, 5_000_000_000, device="meta")
    with pytest.raises(BackendError, match="windows of one image are 4999999999"):
        cut_of(facts(text), direction, [x], geometry((2,), 1), 132)


def test_a_refused_shape_leaves_the_others_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed by torch and said once; other shapes of the kernel, also new ones, are still computed here."""
    monkeypatch.setattr("symconv.backends.cuda.MOST_WINDOWS", 100)
    kernel = backends()["cuda-emu"].compile(sc.Kernel("3.25*sum(w*x)"))
    w, layer = torch.ones(1, 1, 3, 3), geometry((3, 3), 1)
    called, call = [], type(kernel).call
    monkeypatch.setattr(type(kernel), "call", lambda *args: called.append(1) or call(*args))

    def computed(size: int) -> bool:
        """Whether a forward and a backward pass are computed here, for an image of ones."""
        x = torch.ones(1, 1, size, size)
        called.clear()
        output, kept = kernel.forward((x, w), (), layer)
        assert torch.equal(output, torch.full((1, 1, size - 2, size - 2), 9 * 3.25))
        assert torch.equal(kernel.repeated((x, w), (), layer)((x, w)), output)
        grad, _ = kernel.backward(torch.ones_like(output), kept, (x, w), (), layer, {"x"})
        assert grad.sum() == output.sum()
        assert len(called) in (0, 3)
        return bool(called)

    assert computed(6)
    with pytest.warns(SymconvWarning, match="The torch backend computes") as said:
        assert not computed(16)
    assert len(said) == 2, "for the forward and for the backward pass"
    assert not computed(16), "and nothing is said again"
    assert computed(7)
    assert computed(6)


def broken(old: str, new: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Break a static header."""
    headers = dict(static_headers())
    places = [name for name, text in headers.items() if old in text]
    assert len(places) == 1, places
    headers[places[0]] = headers[places[0]].replace(old, new)
    for name, text in headers.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(emulation, "template_directory", lambda: tmp_path.parent)
    monkeypatch.setattr("symconv.backends.cuda.static_headers", lambda: headers)


@pytest.fixture
def include(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "include"
    directory.mkdir()
    yield directory
    backends()["cuda-emu"]._compiled.clear()


def test_a_missing_barrier_is_found(include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = results(KERNELS["adder"], 0, monkeypatch)
    broken("    meet();  // and the others have waited for theirs\n", "", monkeypatch, include)
    wrong = [results(KERNELS["adder"], order, monkeypatch) for order in (0, 1)]
    assert any(not torch.equal(a, b) for each in wrong for a, b in zip(right, each))


def test_a_barrier_that_not_all_reach_is_found(include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(
        "void meet() { __syncthreads(); }",
        "void meet() { if (threadIdx.x % 32 < 31) __syncthreads(); }",
        monkeypatch,
        include,
    )
    with pytest.raises(InternalError, match="wait"):
        results(KERNELS["adder"], 0, monkeypatch)


def test_what_is_never_written_shows(include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken("near_memory[to] = there ?", "if (to % 7) near_memory[to] = there ?", monkeypatch, include)
    assert any(each.isnan().any() for each in results(KERNELS["adder"], 0, monkeypatch))


def test_shared_memory_that_is_asked_too_small_is_found(include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results(KERNELS["adder"], 0, monkeypatch)
    backends()["cuda-emu"]._compiled.clear()
    monkeypatch.setattr("symconv.backends.cuda_flat_plan.WINDOWS", 0)
    with pytest.raises(InternalError, match="beyond its shared memory"):
        results(KERNELS["adder"], 0, monkeypatch)


SANITIZED = """
import sys, torch, symconv as sc
torch.set_num_threads(1)
formulas = {
    "few": ("-sum(abs(x - w)) + b",),
    "many": ("-sum(abs(x - w)) + b", "sum(max(x + w, dim=t), dim=c)", "median(x)", "sum(x[c, t+1]*w) + x[o, 0]"),
}[sys.argv[1]]
for formula in formulas:
    for options in ({}, dict(padding=2, dilation=2, stride=2), dict(padding=1, padding_mode="ignore", groups=2)):
        groups = options.get("groups", 1)
        x = torch.randn(2, 4, 9, 7, requires_grad=True)
        w = torch.randn(18 if "[o" not in formula else 4, 4 // groups, 3, 3, requires_grad=True)
        given = torch.randn(len(w), requires_grad=True) if "+ b" in formula else None
        weight = w if "w" in formula else None
        shape = {} if weight is not None else dict(kernel_size=(3, 3), out_channels=4)
        y = sc.conv2d(formula, x, weight, given, backend="cuda-emu", **options, **shape)
        y.sum().backward()
print("done")
"""


def sanitized(
    sanitizer: str, libraries: list[str], tmp_path: Path, which: str, old: str = "", new: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run emulated kernels on threads of the system under a sanitizer; `old` of the static headers becomes `new`."""
    paths = []
    for name in libraries:
        find = ["g++", f"-print-file-name={name}"]
        paths.append(subprocess.run(find, capture_output=True, text=True, check=False).stdout.strip())
        if not os.path.isabs(paths[-1]):
            pytest.skip(f"no {name} beside g++")
    project = tmp_path / "project"
    root = Path(__file__).resolve().parent.parent
    for part in ("symconv", "templates"):
        shutil.copytree(root / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    if old:
        places = [path for path in (project / "templates" / "include").iterdir() if old in path.read_text()]
        assert len(places) == 1, places
        places[0].write_text(places[0].read_text().replace(old, new))
    environment = os.environ | {
        "PYTHONPATH": str(project),
        "SYMCONV_CXXFLAGS": f"-g {sanitizer} -DSYMCONV_EMULATION_THREADS",
        "SYMCONV_CACHE_DIR": str(tmp_path / "cache"),
        "LD_PRELOAD": ":".join(paths),
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "report_signal_unsafe=0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", SANITIZED, which]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=1500)


ADDRESS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined", ["libasan.so", "libubsan.so"]
RACES = "-fsanitize=thread", ["libtsan.so"]


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [ADDRESS, RACES], ids=["address", "thread"])
def test_emulated_kernels_under_sanitizers(sanitizer: tuple[str, list[str]], tmp_path: Path) -> None:
    done = sanitized(*sanitizer, tmp_path, "many")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "done\n"
    for word in ("ERROR", "WARNING: ThreadSanitizer", "runtime error"):
        assert word not in done.stderr, done.stderr[-4000:]


BREAKS = {
    "barrier": (RACES, "    meet();  // and the others have waited for theirs\n", "", "data race"),
    "bound": (ADDRESS, "0 <= y && y < plane.height", "0 <= y && y <= plane.height + 40", "heap-buffer-overflow"),
    "alignment": (
        ADDRESS,
        "used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;",
        "used += count * int64_t(sizeof(T)) + 4;",
        "misaligned",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKS)
def test_sanitizers_find_what_is_broken(name: str, tmp_path: Path) -> None:
    sanitizer, old, new, said = BREAKS[name]
    assert said in sanitized(*sanitizer, tmp_path, "few", old, new).stderr
