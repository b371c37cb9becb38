"""The C++ backend beyond the suite of all backends: text, memory, threads, processes, what cannot be built."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import multiprocessing
import os
import pkgutil
import platform
import re
import shlex
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sampled

import symconv as sc
from symconv.backends import backends, cpp, cpp_plan
from symconv.backends.cpp import generate
from symconv.backends.cpp_plan import CppPlan, plan_of
from symconv.backends.cpp_tiles import CHANNEL_VECTORS, Lanes, tiles_of
from symconv.backends.native import ShapeError
from symconv.backends.native_facts import Facts, facts_of
from symconv.backends.native_plan import Tiles
from symconv.build.toolchain import NO_SCHEDULING, SCHEDULING, find_toolchain
from symconv.errors import CompilationError, SymconvWarning
from symconv.functions import BY_CLASS, FUNCTIONS
from symconv.geometry import Geometry
from symconv.lower import lower
from symconv.operations import HEAVY
from symconv.render import static_header, template_directory

pytestmark = pytest.mark.skipif(backends()["cpp"].unavailable() is not None, reason="needs a C++ compiler")

GOLDEN = Path(__file__).parent / "golden"
KERNELS = {
    "adder": "-sum(abs(x - w))",
    "dilation": "max(x + w)",
    "tangent_product": "prod(tan(x + w))",
    "tropical": "sum(max(x + w, dim=t), dim=c)",
    "softpool": "sum(x*softmax(x))",
    "median": "median(x)",
    "lifted": "beta: const = 2.0\nsum(w*tanh(beta*x)*exp(-dx**2 - dy**2)) + b",
}


#: RANKED says how many values a kernel puts in order; others do not look at it.
OPTIONS = [[], ["-DSYMCONV_IGNORE", "-DRANKED=9"], ["-DSYMCONV_REAL=double", "-DRANKED=9"], ["-DSYMCONV_FLOAT16"]]


@pytest.mark.parametrize("name", KERNELS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    source = generate(sc.Kernel(KERNELS[name], name=name))["kernel.cpp"]
    path = GOLDEN / f"{name}.cpp.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(source, encoding="utf-8")
    assert source == path.read_text(encoding="utf-8"), "run `make golden` and review the difference"


@pytest.mark.parametrize("options", sampled(OPTIONS))
@pytest.mark.parametrize("name", KERNELS)
def test_generated_files_compile_without_a_warning(name: str, options: list[str], tmp_path: Path) -> None:
    kernel = sc.Kernel(KERNELS[name], name=name)
    (tmp_path / "kernel.cpp").write_text(generate(kernel)["kernel.cpp"])
    toolchain = find_toolchain()
    facts, width = (
        facts_of(kernel, lower(kernel.formula, lift=True)),
        f"-DSYMCONV_VECTOR_BYTES={toolchain.vector_bytes}",
    )
    passes: list[tuple[str, Lanes]] = [("FORWARD", "windows"), ("BACKWARD", "windows")]
    if "-DSYMCONV_IGNORE" not in options:
        passes += [("FORWARD", "filters")] * facts.filter_lanes + [("BACKWARD", "channels")] * facts.channel_lanes
    for direction, lanes in passes:
        tiles = tiles_of(facts, toolchain.vector_bytes, lanes).options()
        chosen = [f"-DSYMCONV_{direction}", f"-DSYMCONV_LANES_ARE_{lanes.upper()}"]
        strict = ["-Wall", "-Wextra", "-Werror", width, *chosen, *tiles, *options]
        toolchain.compile(tmp_path / "kernel.cpp", tmp_path / "kernel.so", strict, [template_directory() / "include"])


def assembly_of(kernel: sc.Kernel, direction: str, lanes: Lanes, directory: Path) -> tuple[str, Tiles]:
    """What GCC makes of a pass in float32, and the tiles of it."""
    toolchain = find_toolchain()
    if "clang" in toolchain.version:
        pytest.skip("reads what GCC writes")
    tiles = tiles_of(facts_of(kernel, lower(kernel.formula, lift=True)), toolchain.vector_bytes, lanes)
    (directory / "kernel.cpp").write_text(generate(kernel)["kernel.cpp"])
    flags = [flag for flag in toolchain.flags if not flag.startswith("-Wl,")]
    options = [f"-DSYMCONV_VECTOR_BYTES={toolchain.vector_bytes}", f"-I{template_directory() / 'include'}", "-S"]
    options += [f"-DSYMCONV_LANES_ARE_{lanes.upper()}", *[NO_SCHEDULING] * (SCHEDULING in flags)]
    command = [*flags, *tiles.options(), *options, f"-DSYMCONV_{direction}", "-o", "kernel.s", "kernel.cpp"]
    subprocess.run([*shlex.split(toolchain.compiler), *command], cwd=directory, check=True)
    return (directory / "kernel.s").read_text(), tiles


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the assembly of x86")
@pytest.mark.parametrize(
    ("part", "lanes"),
    [
        *(("forward_1", "windows"), ("gradient_images", "windows"), ("gradient_banks", "windows")),
        *(("forward_1", "filters"), ("gradient_pixels", "channels"), ("gradient_banks", "channels")),
    ],
)
def test_the_innermost_loop_loads_each_number_once(part: str, lanes: Lanes, tmp_path: Path) -> None:
    """A load per fused product would take twice the time."""
    direction = "FORWARD" if part == "forward_1" else "BACKWARD"
    assembly, tiles = assembly_of(sc.Kernel("sum(w*x)"), direction, lanes, tmp_path)
    side_by_side = CHANNEL_VECTORS if lanes == "channels" else 1
    down, across = {
        "forward_1": (tiles.filters, tiles.vectors),
        "gradient_images": (tiles.image_taps, tiles.backward_vectors),
        "gradient_pixels": (tiles.image_row, CHANNEL_VECTORS),
        "gradient_banks": (
            tiles.bank_filters,
            tiles.bank_taps * side_by_side,
        ),
    }[part]
    second = "Lb0" if part == "gradient_pixels" else f"Li{tiles.bank_taps if part == 'gradient_banks' else across}"
    function = re.search(rf"^_Z\w*{part}ILi{down}E{second}E.*?\.cfi_endproc", assembly, re.DOTALL | re.MULTILINE)
    assert function is not None
    loops = re.findall(r"^(\.L\d+):\n((?:\t.*\n)*?)\tj\w+\t\1$", function[0], re.MULTILINE)
    innermost = max((body for _, body in loops), key=lambda body: body.count("\tvfmadd"))
    loads = re.findall(r"^\t(?!lea)\w+\t.*\(%r.*$", innermost, re.MULTILINE)
    assert innermost.count("\tvfmadd") == down * across
    spilled = 0 if find_toolchain().vector_bytes == 64 else 3  # AVX2 has half as many registers
    tables = 2 if part == "gradient_pixels" else 1  # the tap and its weights; the place, or which windows there are
    assert len(loads) <= down + across + tables + spilled


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the assembly of x86")
@pytest.mark.parametrize(
    ("direction", "lanes", "functions"),
    [
        ("FORWARD", "windows", {"look", "run", "forward_1"}),
        ("FORWARD", "filters", {"look", "run", "forward_1"}),
        ("BACKWARD", "windows", {"look", "begin", "run_strips", "add_images", "add_weights", "gradient_images"}),
        ("BACKWARD", "channels", {"look", "begin", "run_strips", "add_images", "add_weights", "gradient_pixels"}),
    ],
)
def test_what_runs_once_alone_is_compiled_for_size(
    direction: str, lanes: Lanes, functions: set[str], tmp_path: Path
) -> None:
    """GCC takes for as rare what a rare function alone calls."""
    assembly, _ = assembly_of(sc.Kernel("-sum(abs(x - w))"), direction, lanes, tmp_path)
    found: dict[str, set[str]] = {}
    section = ""
    for line in assembly.splitlines():
        if place := re.match(r"\t\.section\t(\.text\.?[a-z]*)|\t(\.text)$", line):
            section = place[1] or place[2]
        elif name := re.match(r"(_Z(?!.*\.cold)[\w.]+):", line):  # the cold parts of others are apart
            found.setdefault(section, set()).add(name[1])
    rows = {"fill_planes", "fill_row", "reorder", "add_channels", "add_row", "put_blocks", "put_vectors", "write_each"}
    of_strips = re.compile("|".join(f"{len(name)}{name}" for name in functions | rows))
    assert not {name for name in found[".text.unlikely"] if of_strips.search(name)}
    for function in functions:
        assert any(f"{len(function)}{function}" in name for name in found[".text.hot"]), function


def test_every_function_of_the_language_has_its_twin_in_the_header() -> None:
    header = static_header("math.hpp") + static_header("vector.hpp")
    printed = {record.name for record in BY_CLASS.values() if record.torch and record.name not in ("typed", "sqrt")}
    missing = {name for name in printed if not re.search(rf"\b{name}\b[(),]", header)}
    assert not missing, f"templates/include/math.hpp lacks {missing}"
    assert printed > HEAVY


def test_a_function_whose_twin_calls_a_heavy_one_is_heavy() -> None:
    twin = re.compile(r"^SYMCONV_INLINE vec (\w+)\([^)]*\)(?: ({[^\n]*})|\n({\n.*?^}))", re.DOTALL | re.MULTILINE)
    calls = re.compile(rf"\b(?:{'|'.join(HEAVY)})\(")
    found = {name for name, *body in twin.findall(static_header("math.hpp")) if calls.search("".join(body))}
    assert {"sigmoid", "softplus", "xlogx"} <= found & {*FUNCTIONS} <= HEAVY


def test_words_of_cpp_are_names_like_others() -> None:
    text = "new: weight\nfloat: param\nUNROLL: field[o]\ninside: input\nsum(new*x*inside)*float + UNROLL"
    x, guide = torch.randn(1, 2, 5, 5), torch.randn(1, 2, 5, 5)
    w, field = torch.randn(2, 2, 3, 3), torch.randn(1, 2, 3, 3)
    given = {"new": w, "UNROLL": field, "inside": guide, "float": torch.tensor(2.0)}
    found = [sc.conv2d(text, x, kernel_size=3, out_channels=2, backend=b, **given) for b in ("torch", "cpp")]
    torch.testing.assert_close(*found)


def test_tiles_shrink_with_what_is_accumulated() -> None:
    def tiles(text: str, vector_bytes: int = 64, lanes: Lanes = "windows") -> Tiles:
        kernel = sc.Kernel(text)
        return tiles_of(facts_of(kernel, lower(kernel.formula, lift=True)), vector_bytes, lanes)

    assert tiles("sum(w*x)").filters > tiles("max(x + w)").filters >= tiles("var(x + w)").filters
    assert tiles("sum(w*x)", 32).filters < tiles("sum(w*x)").filters
    assert tiles("sum(x*softmax(x))").filters == 1
    assert "filters=" in repr(tiles("sum(w*x)"))
    of_channels = [
        tiles(text, size, "channels") for text in ("sum(w*x)", "sum(exp(w*x))", "sum(tan(w*x))") for size in (64, 32)
    ]
    of_filters = [
        tiles(text, size, "filters") for text in ("sum(w*x)", "max(w*x)", "sum(exp(w*x))") for size in (64, 32)
    ]
    assert [(each.filters, each.vectors) for each in of_filters] == [(14, 2), (6, 2), (7, 2), (3, 2), (7, 2), (3, 2)]
    assert [each.image_row for each in of_channels] == [14, 6, 7, 3, 7, 3]
    assert [(each.bank_filters, each.bank_taps) for each in of_channels] == [
        (4, 3),
        (2, 3),
        (2, 3),
        (1, 3),
        (2, 3),
        (1, 3),
    ]


@pytest.mark.parametrize("name", ["CHANNEL_VECTORS", "JOINT_FILTERS"])
def test_what_plans_and_headers_agree_on(name: str) -> None:
    found = re.search(rf"\b{name} = (\d+);", static_header("strip.hpp") + static_header("window.hpp"))
    assert found is not None
    assert int(found[1]) == getattr(cpp_plan, name)


@pytest.mark.parametrize(("size", "filters"), [(40, 5), (9, 701)])  # many strips; weights that all threads pack
@pytest.mark.parametrize("formula", ["-sum(abs(x - w))", "max(x + w)"])
def test_the_same_bits_again_and_close_for_any_number_of_threads(formula: str, size: int, filters: int) -> None:
    x = torch.randn(1, 3, size, size, requires_grad=True)
    w = torch.randn(filters, 3, 3, 3, requires_grad=True)

    def step() -> list[torch.Tensor]:
        y = sc.conv2d(formula, x, w, padding=1, backend="cpp")
        return [y, *torch.autograd.grad(y, (x, w), torch.cos(y))]

    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(step())
        assert all(map(torch.equal, found[-1], step()))
    for other in found[1:]:
        for a, b in zip(found[0], other):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
def test_no_copy_of_the_image(layout: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from memory import PeakBytes

    x = torch.randn(4, 8, 160, 160)
    x = {
        "contiguous": lambda: x,
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(2, 3),
        "sliced": lambda: torch.randn(4, 8, 160, 322)[..., 1:321:2],
    }[layout]()
    w = torch.randn(8, 8, 3, 3)
    expected = sc.conv2d("-sum(abs(x - w))", x, w, padding=1, backend="torch")
    sc.conv2d("-sum(abs(x - w))", x, w, padding=1, backend="cpp")
    with PeakBytes() as counter:
        y = sc.conv2d("-sum(abs(x - w))", x, w, padding=1, backend="cpp")
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert counter.peak - y.nbytes < 0.3 * x.nbytes


def test_products_of_what_filters_share_do_not_overflow_by_themselves() -> None:
    x, w = torch.tensor([[[86.0]]]), torch.tensor([[[0.0]], [[1e-20]]])
    y = sc.conv1d("sum(w*x*exp(x))", x, w, backend="cpp").flatten()
    torch.testing.assert_close(y.double(), (w.double() * 86 * torch.tensor(86.0).double().exp()).flatten())


@pytest.mark.parametrize("times", [1, 2])
def test_nothing_is_kept_where_no_gradient_will_be_asked_for(times: int) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from memory import PeakBytes

    x, w = torch.randn(2, 4, 100, 100), torch.randn(32, 4, 3, 3)
    for _ in range(times):
        with PeakBytes() as counter:
            y = sc.conv2d("prod(tan(x + w))", x, w, backend="cpp")
    assert counter.peak < 2 * y.nbytes  # and more than three with two values per window that a backward pass wants
    torch.set_num_threads(3 - torch.get_num_threads())  # another plan
    with PeakBytes() as counter:
        sc.conv2d("prod(tan(x + w))", x, w, backend="cpp")
    assert counter.peak < 2 * y.nbytes
    with PeakBytes() as counter:
        sc.conv2d("prod(tan(x + w))", x.requires_grad_(), w, backend="cpp").sum().backward()
    assert counter.peak > 3 * y.nbytes


def _mean_of_nines() -> float:
    return sc.conv2d("sum(w*x)", torch.ones(8, 1, 64, 64), torch.ones(1, 1, 3, 3), backend="cpp").mean().item()


def _in_a_child(queue: Any) -> None:
    queue.put(_mean_of_nines())


def test_after_a_fork() -> None:
    torch.set_num_threads(2)
    for _ in range(3):  # the pool has threads now, and the call is known
        _mean_of_nines()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = context.Process(target=_in_a_child, args=(queue,))
        child.start()
    assert queue.get(timeout=60) == 9.0
    child.join(10)


def _sum_of_nines() -> float:
    kernel = backends()["cpp"].compile(sc.Kernel("23.5*sum(w*x)"))
    ones, layer = torch.ones(1, 1, 3, 3), Geometry((3, 3), 1, (1, 1), ((0, 0),) * 2, (1, 1), 1)
    return kernel.forward((ones, ones), (), layer)[0].item()


def _sum_in_a_child(queue: Any) -> None:
    queue.put(_sum_of_nines())


@pytest.mark.parametrize(
    "place", ["backends.cpp.CppKernel._built", "backends.cpp.CppBackend.loaded", "build.toolchain._found"]
)
def test_a_child_does_not_wait_for_what_a_thread_of_its_parent_makes(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sum_of_nines()  # so that there is little left to be made
    backends()["cpp"]._compiled.clear()
    owner, name = f"symconv.{place}".rsplit(".", 1)
    made, parent = getattr(pkgutil.resolve_name(owner), name), os.getpid()
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        if os.getpid() == parent:
            begun.set()
            assert go_on.wait(60)
        return made(*args)

    monkeypatch.setattr(f"symconv.{place}", slow)
    thread = threading.Thread(target=_sum_of_nines)
    thread.start()
    assert begun.wait(60)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_a_child, args=(queue,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    try:
        assert queue.get(timeout=30) == 9 * 23.5
    finally:
        child.kill()
        go_on.set()
        thread.join()


def test_a_kernel_that_cannot_be_built_runs_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise CompilationError("c++ failed", ["c++"], "no", Path("kernel.cpp"))

    monkeypatch.setattr("symconv.build.toolchain.Toolchain.compile", fail)
    x = torch.randn(1, 1, 5, 5, requires_grad=True)
    with pytest.warns(SymconvWarning, match="The torch backend computes"):
        y = sc.conv2d("17.25*sum(w*x)", x, torch.ones(1, 1, 3, 3))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(
        torch.nn.functional.conv2d(x, torch.full((1, 1, 3, 3), 17.25)).sum(), x
    )[0])  # fmt: skip


def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    program = (
        "import logging; logging.basicConfig(); import torch, symconv as sc\n"
        "for _ in range(3): print(sc.conv2d('sum(w*x)', torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).item())\n"
    )
    environment = os.environ | {"PATH": str(tmp_path), "SYMCONV_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["9.0"] * 3
    assert done.stderr.count("symconv runs on the torch backend") == 1


def test_one_log_line_for_each_library(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "symconv"):
        sc.conv2d("19.5*sum(w*x)", torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), backend="cpp")
    built = [record.message for record in caplog.records if "built in" in record.message]
    assert sum("forward, float32" in message for message in built) == 1
    assert not any("backward" in record.message for record in caplog.records)


SANITIZED = """
import ctypes, sys, torch, symconv as sc
for formula in (
    "-sum(abs(x - w)) + b",
    "sum(max(x + w, dim=t), dim=c)",
    "median(x)",
    "sum(x[c, t+1]*w) + x[o, 0]",
    "sum(x*w*exp(x))",
):
    for options in (
        {},
        dict(channels=30),  # which fill vectors, but for the last lanes
        dict(padding=2, dilation=2, stride=2),
        dict(padding=1, padding_mode="ignore", groups=2),
        dict(padding=(0, 3), stride=(1, 2), groups=4),
    ):
        channels, options = options.get("channels", 4), {k: v for k, v in options.items() if k != "channels"}
        x = torch.randn(2, channels, 9, 38, requires_grad=True)
        w = torch.randn(channels, channels // options.get("groups", 1), 3, 2, requires_grad=True)
        given = {"b": torch.randn(channels)} if "+ b" in formula else {}
        weight = w if "w" in formula else None
        shape = {} if weight is not None else dict(kernel_size=(3, 2), out_channels=channels)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y = sc.conv2d(formula, x, weight, given.get("b"), backend="cpp", **options, **shape)
            y.sum().backward()
print("done")
"""


@pytest.mark.slow
def test_generated_code_under_sanitizers(tmp_path: Path) -> None:
    """Addresses and undefined behaviour, forward and backward."""
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        find = ["g++", f"-print-file-name={name}"]
        libraries.append(subprocess.run(find, capture_output=True, text=True, check=False).stdout.strip())
        if not os.path.isabs(libraries[-1]):
            pytest.skip(f"no {name} beside g++")
    environment = os.environ | {
        "SYMCONV_CXXFLAGS": "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "SYMCONV_CACHE_DIR": str(tmp_path),
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for word in ("ERROR", "runtime error"):
        assert word not in done.stderr, done.stderr[-4000:]


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(
    "formula",
    ["sum(w*x) + b", "s: param = 0.5\np: param[o] = 2.0\nsum(s*w*x*p)", "v: weight\nsum(x*w*exp(v))"],
)
def test_threads_share_out_filters_for_the_gradients_of_many_weights(formula: str, groups: int) -> None:
    """Each has some filters and sees all images: then the sums do not depend on how many threads there are."""
    torch.manual_seed(0)
    layer = sc.Conv2d(formula, 6, 36, 3, groups=groups, padding=1, backend="cpp")
    x = torch.randn(3, 6, 5, 4, requires_grad=True)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = layer(x)
            found.append(torch.autograd.grad(y, [x, *layer.parameters()], y.detach(), retain_graph=True))
            alone = torch.autograd.grad(y, [layer.weight], y.detach())
            assert torch.equal(alone[0], found[-1][1 + [*layer.state_dict()].index("weight")])
    finally:
        torch.set_num_threads(threads)
    kernel = backends()["cpp"].compile(layer.kernel)
    plans = [plan for key, plan in kernel._plans.items() if key[0] == "backward" and x.shape in key]
    assert plans
    assert all(plan.by_filters for plan in plans)
    y = sc.Conv2d(formula, 6, 36, 3, groups=groups, padding=1, backend="torch").requires_grad_()
    y.load_state_dict(layer.state_dict())
    z = y(x)
    expected = torch.autograd.grad(z, [x, *y.parameters()], layer(x).detach())
    names = ["x", *layer.state_dict()]
    for one, two, three, right, name in zip(*found, expected, names):
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-4)
        if name != "s":
            assert torch.equal(one, two)
            assert torch.equal(one, three)


@pytest.mark.parametrize("formula", ["v: weight\nsum(x*w*exp(v))", "v: weight\nsum(w*x*v)", "sum(w*x) + b"])
def test_gradients_that_nobody_wants_are_not_written(formula: str) -> None:
    """Also where threads write to the gradients themselves."""
    layer = sc.Conv2d(formula, 6, 36, 3, padding=1, backend="cpp")
    x = torch.randn(3, 6, 5, 4)
    wanted = layer(x).sum()
    wanted.backward()
    for name, frozen in layer.named_parameters():
        expected = {other: each.grad for other, each in layer.named_parameters() if other != name}
        copy = sc.Conv2d(formula, 6, 36, 3, padding=1, backend="cpp")
        copy.load_state_dict(layer.state_dict())
        copy.get_parameter(name).requires_grad_(False)
        copy(x).sum().backward()
        for other, gradient in expected.items():
            assert torch.equal(copy.get_parameter(other).grad, gradient), (name, other)
        assert frozen.grad is not None
        assert copy.get_parameter(name).grad is None


@pytest.mark.parametrize("mode", sampled(["constant", "ignore"]))
@pytest.mark.parametrize(
    "formula",
    [
        *("max(x + w)", "min(x*w) + sum(x)", "max(x + w) - max(x - w)", "median(x + w)", "quantile(x*w, 0.4)"),
        *("prod(x + w)", "prod(x*w) + max(x)", "prod(max(x + w, dim=t), dim=c)"),
    ],
)
def test_what_keeps_nothing_gives_the_same(formula: str, mode: str) -> None:
    """Without gradients kernels are compiled without the positions of maxima and the zeros of products."""
    x, w = torch.randn(2, 3, 7, 40), torch.randn(9, 3, 3, 3)
    x[0, 1, 4:, :9], x[0, 1, 4:, 9:15] = 0, 1e30  # whose products may be inf before a 0 meets them
    x[1, 0, 2, 9], w[2, 1, 1] = -0.0, 0
    x[0, 0, 0, 0], x[1, 1, 3, 3], x[1, 2, 5, 30] = float("nan"), float("inf"), -float("inf")
    options = {"padding": 1, "padding_mode": mode, "backend": "cpp"}
    y = sc.conv2d(formula, x, w, **options)
    with_positions = sc.conv2d(formula, x, w.requires_grad_(), **options)
    torch.testing.assert_close(y, with_positions.detach(), rtol=0, atol=0, equal_nan=True)
    assert {key[0] for key in backends()["cpp"].compile(sc.Kernel(formula))._plans} >= {"forward", "inference"}


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    "formula", ["sum(sin(x*w))", "prod(tan(x + w))", "max(cos(x - w))", "logsumexp(sin(x) + w)", "median(tan(w*x))"]
)
def test_one_large_argument_changes_nothing_else(formula: str, groups: int) -> None:
    """Tiles of vectors with one are computed again, in another way."""
    x, w = torch.randn(1, 4, 9, 70), torch.randn(8, 4 // groups, 3, 3)
    large = x.clone()
    large[0, 2, 4, 33] = 3e7
    seen = torch.zeros_like(x)
    seen[:, :, 4, 33] = 1
    found = []
    for given in (x, large):
        inputs, weights = given.clone().requires_grad_(), w.clone().requires_grad_()
        y = sc.conv2d(formula, inputs, weights, padding=1, groups=groups, backend="cpp")
        found.append((y.detach(), *torch.autograd.grad(y.sum(), (inputs, weights))))
        expected = sc.conv2d(formula, inputs, weights, padding=1, groups=groups, backend="torch")
        for value, other in zip(found[-1], (expected, *torch.autograd.grad(expected.sum(), (inputs, weights)))):
            torch.testing.assert_close(value, other.detach(), rtol=1e-3, atol=1e-3)
    near = torch.nn.functional.max_pool2d(seen, 3, 1, 1) > 0, torch.nn.functional.max_pool2d(seen, 5, 1, 2) > 0
    elsewhere = ~near[0][:, :1].expand_as(found[0][0]), ~near[1]
    for where, value, other in zip(elsewhere, *(each[:2] for each in found)):
        assert torch.equal(value[where], other[where])


@pytest.mark.parametrize(
    "options",
    sampled(
        [
            {"padding": 1},
            {"padding": 3, "padding_mode": "ignore"},
            {"padding": 2, "stride": 2, "dilation": 2},
            {"padding": 1, "groups": 2},
        ],
        2,
    ),
    ids=str,
)
@pytest.mark.parametrize(
    "formula",
    [
        *("max(x + w)", "median(x*w)", "max(x*w) - 2*min(x - w)", "quantile(x + w, 0.3)", "b*max(sin(9*x)*exp(w))"),
        *("max(detach(x)*w)", "max(x)", "s: param[c]\nmax(s*x + w)", "g: field\nmax(g*x)*min(x)"),
    ],
)
def test_gradients_go_straight_to_what_was_chosen(
    formula: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[CppPlan] = []
    monkeypatch.setattr(cpp, "plan_of", lambda *given: plans.append(plan_of(*given)) or plans[-1])
    channels = 16 * options.get("groups", 1)
    out = {1: (11, 19), 2: (6, 10), 3: (15, 23)}[options["padding"]]
    x = torch.randint(-2, 3, (2, channels, 11, 19)) / 2
    x[1, 0, 5, 18] = float("nan")  # which the place behind a row sees
    given = {"w": torch.randn(6, 16, 3, 3), "b": torch.randn(6), "s": torch.randn(16), "g": torch.randn(2, *out)}
    kernel = sc.Kernel(formula)
    wanted = {operand.name for operand in kernel.formula.operands}
    found = []
    for backend in ("torch", "cpp"):
        inputs = x.clone().requires_grad_()
        others = {name: each.clone().requires_grad_() for name, each in given.items() if name in wanted}
        y = sc.conv2d(kernel, inputs, out_channels=6, kernel_size=3, **others, **options, backend=backend)
        y.nan_to_num().sin().sum().backward()
        found.append((y.detach(), *(each.grad for each in (inputs, *others.values()))))
    assert plans[-1].by_positions
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("frozen", ["x", "w", "v", "wv"])
def test_gradients_go_to_what_was_chosen_where_some_are_not_wanted(frozen: str) -> None:
    given = {"x": torch.randn(1, 16, 5, 4), "w": torch.randn(3, 16, 3, 3), "v": torch.randn(3, 16, 3, 3)}
    found = []
    for backend in ("torch", "cpp"):
        leaves = {name: each.clone().requires_grad_(name not in frozen) for name, each in given.items()}
        y = sc.conv2d("v: weight\nmax(w*x + v)", leaves["x"], w=leaves["w"], v=leaves["v"], padding=1, backend=backend)
        found.append(torch.autograd.grad(y.sin().sum(), [each for each in leaves.values() if each.requires_grad]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("formula", ["max(tanh(x)*w)", "median(w*x)**2"])
def test_second_gradients_go_to_what_was_chosen(formula: str) -> None:
    x, w = torch.randn(1, 16, 4, 3, dtype=torch.float64), torch.randn(2, 16, 3, 3, dtype=torch.float64)
    inputs = x.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda *given: sc.conv2d(formula, *given, backend="cpp"), inputs)


def test_many_windows_with_one_choice_are_counted_exactly() -> None:
    """Ones that are added one by one to a float32 stay at 2**24."""
    x, w = torch.randn(1, 1, 4300, 4300), torch.zeros(1, 1, 8, 8)
    w[0, 0, 0, 0] = 1000
    sc.conv2d("max(x + w)", x, w.requires_grad_(), backend="cpp").sum().backward()
    assert w.grad is not None
    bound = 64 if find_toolchain().vector_bytes == 64 else 512  # fewer lanes have longer sums
    assert abs(w.grad[0, 0, 0, 0].item() - 4293**2) <= bound


@pytest.mark.parametrize(("dtype", "batch"), [(torch.float32, 1), (torch.float32, 35), (torch.float64, 35)])
@pytest.mark.parametrize(
    "formula",
    ["sum(w*x)", "sum(sin(w*x))", "s: param[c]\nb - sum(abs(s*x - w))", "logsumexp(x + w)", "max(x*w)*sum(w)"],
)
def test_gradients_of_weights_sum_several_strips(
    formula: str, batch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small images are taken together, unless functions take long; the number of threads does not matter."""
    plans: list[CppPlan] = []
    monkeypatch.setattr(cpp, "plan_of", lambda *given: plans.append(plan_of(*given)) or plans[-1])
    kernel = sc.Kernel(formula)
    x = torch.randn(batch, 4, 5, 7, dtype=dtype)
    given = {"w": torch.randn(96, 2, 3, 3), "b": torch.randn(96), "s": torch.rand(2)}
    x[-1, 0, 0, 0] = 1e7 if "sin" in formula else 3.0
    wanted = {operand.name for operand in kernel.formula.operands}
    found = {}
    for backend, threads in (("torch", 1), ("cpp", 1), ("cpp", 2), ("cpp", 3)):
        monkeypatch.setattr(cpp.CppKernel, "plan_key", lambda *_, threads=threads: threads)
        leaves = {name: each.to(x.dtype).requires_grad_() for name, each in given.items() if name in wanted}
        y = sc.conv2d(kernel, x, groups=2, padding=1, kernel_size=3, out_channels=96, **leaves, backend=backend)
        y.sin().sum().backward()
        found[backend, threads] = [each.grad for each in leaves.values()]
    joint = batch > 1 and "sin" not in formula and "exp" not in formula
    assert {(plan.by_filters, plan.more_strips > 0) for plan in plans if plan.by_filters} == {(True, joint)}
    near = 1e-2 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found["cpp", 1], found["torch", 1], rtol=near / 10, atol=near)
    for threads in (2, 3):
        assert torch.equal(found["cpp", threads][0], found["cpp", 1][0])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("formula", ["sum(w*x)", "g: input\nsum(w*x*g)"])
def test_gradients_of_images_need_no_zeros_to_be_added_to(
    formula: str, threads: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first strip that sees a pixel writes it, whatever was in memory; all groups see the one channel of g."""
    plans: list[CppPlan] = []
    monkeypatch.setattr(cpp, "plan_of", lambda *given: plans.append(plan_of(*given)) or plans[-1])
    monkeypatch.setattr(cpp.CppKernel, "plan_key", lambda *_: threads)
    empty = torch.empty

    def full_of_nan(*given: Any, **how: Any) -> torch.Tensor:
        found = empty(*given, **how)
        found.view(torch.uint8).fill_(255)
        return found

    shapes = [(1, 39), (38, 1), (3, 20), (23, 40), (24, 41), (90, 12)]
    windows = [(1, 1), (2, 1), (3, 1), (2, 2)]
    for batch, size, padding, (kernel_size, dilation) in itertools.product([1, 2], shapes, [0, 2], windows):
        if min(size) + 2 * padding < (kernel_size - 1) * dilation + 1:
            continue
        monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, batch * 8192))
        x, g = (torch.randn(batch, n, *size, dtype=torch.float64, requires_grad=True) for n in (4, 1))
        w = torch.randn(4, 2, kernel_size, kernel_size, dtype=torch.float64)
        images = {"x": x, "g": g} if "g" in formula else {"x": x}
        found = {}
        for backend in ("torch", "cpp"):
            given = {name: image for name, image in images.items() if name != "x"}
            y = sc.conv2d(
                formula, x, w, stride=stride, padding=padding, dilation=dilation, groups=2, backend=backend, **given
            )
            if backend == "cpp":
                monkeypatch.setattr(torch, "empty", full_of_nan)
            found[backend] = torch.autograd.grad(y.square().sum(), list(images.values()))
            monkeypatch.setattr(torch, "empty", empty)
        torch.testing.assert_close(found["cpp"], found["torch"])
    backward = plans[1::2]
    assert len({plan.strip for plan in backward}) > 1
    assert {plan.overwrites for plan in backward} == ({True} if stride == 1 else {True, False})


@pytest.mark.parametrize("shape", [(1, 1, 16000), (8, 64, 28, 28), (2, 3, 60, 60)])
@pytest.mark.parametrize("formula", ["sum(w*x)", "sum(w*x/(1 + x**2))"])
def test_scratch_memory_does_not_grow_with_the_cache(
    formula: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one thread, beyond packed weights, it is less than the images and outputs, however large the cache is."""
    monkeypatch.setattr(cpp.CppKernel, "plan_key", lambda *_: 1)
    taken: list[int] = []
    scratch = cpp_plan.CppPlan.scratch

    def counted(plan: CppPlan, *given: Any) -> torch.Tensor:
        found = scratch(plan, *given)
        taken.append(found.numel())
        return found

    monkeypatch.setattr(cpp_plan.CppPlan, "scratch", counted)
    monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, 2**30))
    convolve = sc.conv1d if len(shape) == 3 else sc.conv2d
    x, w = torch.randn(shape, requires_grad=True), torch.randn(32, shape[1], *[3] * (len(shape) - 2))
    y = convolve(formula, x, w.requires_grad_(), padding=1, backend="cpp")
    torch.autograd.grad(y.sum(), (x, w))
    whole = x.nbytes + y.nbytes
    assert taken[0] - w.nbytes < whole / 2
    assert taken[1] - w.nbytes < whole


@pytest.mark.parametrize("channels", [2, 3, 5, 40])
def test_as_many_values_are_put_in_order_as_an_input_has_channels(channels: int) -> None:
    """Also where x has others, for which the compiler would be told how many there are."""
    x, g = torch.randn(1, 3, 6, 20), torch.randn(1, channels, 6, 20)
    formula = "g: input\nsum(x) + sum(median(g, dim=c), dim=t)"
    y = sc.conv2d(formula, x, g=g, kernel_size=3, out_channels=1, backend="cpp")
    z = torch.nn.functional.avg_pool2d(x.sum(1, keepdim=True) + g.median(1, keepdim=True).values, 3, 1) * 9
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4)


SUMS_OF_PIXELS = {
    "sum": "sum(w*x) + b",
    "adder": "-sum(abs(x - w))",
    "factor": "sum(w*tanh(x)*dx)",
    "maximum": "max(x + w)",
    "positions": "median(x + w)",
    "hoisted": "logsumexp(x + w)",
    "quotients": "sum(x*w/(1 + mean(x**2)))",
    "gaussian": "exp(-sum((x - w)**2)/N)",
    "centre": "sum(w*exp(-(x - x[c, 0])**2))",
    "channels": "sum(max(x + w, dim=t), dim=c)",
    "guide": "g: input\nsum(w*g*tanh(x))",
    "field": "q: field\nsum(q*w*x)",
    "field per filter": "v: field[o]\nsum(w*x)*v",
    "field per tap": "k: field[t]\nsum(w*x*k)",
    "detached": "sum(w*x*floor(3*x[c, 0]))",
}
FIELDS = {"field": "q", "field per filter": "v", "field per tap": "k"}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("formula", ["sum(w*x)", "-sum(abs(x - w))", "sum((x - w)**2)/norm(x - w)", "sum(x*tanh(w))"])
def test_what_no_window_sees_reaches_no_weight(formula: str, value: float) -> None:
    """The places between two rows of windows see what the windows do not: the last column and row."""
    x, w = torch.randn(3, 2, 10, 42), torch.randn(9, 2, 3, 3)
    gradients = []
    for unseen in (0.0, value):
        x[..., 9, :], x[..., 41] = unseen, unseen
        weight = w.clone().requires_grad_()
        sc.conv2d(formula, x, weight, stride=2, backend="cpp").square().sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mode", ["constant", "ignore"])
def test_infinite_pixels_reach_the_weights_that_see_them(mode: str) -> None:
    x, w = torch.randn(2, 2, 7, 23, dtype=torch.float64), torch.randn(9, 2, 3, 3, dtype=torch.float64)
    x[0, 0, 0, 3], x[1, 1, 4, 22], x[1, 0, 6, 9] = math.inf, -math.inf, math.nan
    for formula in ("sum(w*x)", "-sum(abs(x - w))"):
        found = []
        for backend in ("torch", "cpp"):
            weight = w.clone().requires_grad_()
            y = sc.conv2d(formula, x, weight, padding=(2, 0), padding_mode=mode, backend=backend)
            (gradient,) = torch.autograd.grad(y, weight, torch.ones_like(y).cumsum(-1))
            found.append(gradient)
        torch.testing.assert_close(*found, equal_nan=True)
        assert found[0].isfinite().any()


def test_a_strip_that_sees_too_much_is_refused() -> None:
    """Two rows 39000 apart of an image 30000 wide: 1.2e9 places for each channel."""
    kernel = sc.Kernel("sum(w*x)")
    facts = facts_of(kernel, lower(kernel.formula, lift=True))
    geometry = Geometry((2, 1), 1, (1, 1), ((0, 0), (0, 0)), (39000, 1), 1)

    def plan(channels: int) -> CppPlan:
        tensors = [torch.zeros(1).expand(1, channels, 40000, 30000), torch.zeros(1, channels, 2, 1)]
        return plan_of(facts, "forward", tiles_of(facts, 32), 32, tensors, geometry, 1, None)

    assert plan(1).output_shape == (1, 1, 1000, 30000)
    with pytest.raises(ShapeError, match="fewer than 2\\*\\*31"):
        plan(2)


@pytest.mark.parametrize("name", sampled(SUMS_OF_PIXELS, 6))
def test_pixels_sum_their_gradients_where_filters_are_few(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In strips shorter than an image, for rows around the width of a vector and every stride."""
    formula, margins = SUMS_OF_PIXELS[name], set()

    def spied(facts: Facts, direction: str, *args: Any) -> CppPlan:
        plan = plan_of(facts, direction, *args)
        if direction == "backward":
            margins.add(plan.geometry.contents.margin > 0)
        return plan

    monkeypatch.setattr(cpp, "plan_of", spied)
    for cache, filters, groups, padding_mode, kernel_size, size, more in (
        (160, 3, 1, "constant", 3, (40, 35), {"padding": 1}),
        (160, 4, 2, "ignore", 3, (60, 34), {"padding": 1, "stride": 2}),
        (64, 4, 4, "constant", 2, (40, 66), {"stride": 2}),
        (320, 6, 2, "constant", (3, 2), (60, 40), {"padding": 2, "stride": (1, 3), "dilation": 2}),
        (128, 4, 4, "ignore", 3, (5, 20, 17), {"padding": 1, "stride": (2, 1, 1)}),
    ):
        monkeypatch.setattr(cpp_plan, "cache_bytes", functools.partial(int, cache * 1024))
        torch.manual_seed(0)
        kind = sc.Conv3d if len(size) == 3 else sc.Conv2d
        options = {"groups": groups, "padding_mode": padding_mode, "dtype": torch.float64, **more}
        layers = [kind(formula, 4, filters, kernel_size, backend=each, **options) for each in ("torch", "cpp")]
        layers[1].load_state_dict(layers[0].state_dict())
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        found = []
        for layer in layers:
            image = x.clone().requires_grad_()
            guide = {"g": x[:, :1].clone().requires_grad_()} if name == "guide" else {}
            if name in FIELDS:
                axes = {"q": (), "v": (filters,), "k": (math.prod(layer.kernel_size),)}[FIELDS[name]]
                outputs = kind("sum(w*x)", 4, filters, kernel_size, **options)(x).shape[2:]
                field = torch.arange(2 * math.prod(axes) * math.prod(outputs)).view(2, *axes, *outputs) % 7 - 3.0
                guide = {FIELDS[name]: field.double().requires_grad_()}
            y = layer(image, **guide)
            direction = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
            found.append([y, *torch.autograd.grad(y, [image, *guide.values(), *layer.parameters()], direction)])
        for mine, other in zip(*found):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    assert (True in margins) == (name not in ("centre", "detached"))


def test_an_infinite_slope_at_a_place_without_a_window_is_not_seen() -> None:
    """The slope under the first tap is infinite; the last pixels are under the first tap of no window."""
    x = torch.ones(1, 1, 4, 20, dtype=torch.float64)
    w = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    w[0, 0, 0, 0] = 1
    found = []
    for backend in ("cpp", "torch"):
        x = x.detach().requires_grad_()
        found.append(torch.autograd.grad(sc.conv2d("sum(sqrt(x - w))", x, w, backend=backend).sum(), x)[0])
    assert found[0][0, 0, 0, 0].isinf()
    assert found[0][0, 0, -1].isfinite().all()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("width", range(1, 70))
def test_rows_of_any_width(width: int) -> None:
    """Rows are read and gradients are added in vectors, of which the last is what is left of a row."""
    x = torch.randn(3, 2, 3, width, requires_grad=True)
    for size, stride in itertools.product((1, 2) if width > 1 else (1,), (1, 2)):
        y = sc.conv2d("sum(x)", x, kernel_size=size, out_channels=2, groups=2, stride=stride, backend="cpp")
        z = size**2 * torch.nn.functional.avg_pool2d(x, size, stride)
        torch.testing.assert_close(y, z)
        direction = torch.randint(-9, 9, y.shape).float()  # whose sums are exact
        torch.testing.assert_close(
            torch.autograd.grad(y, x, direction)[0], torch.autograd.grad(z, x, direction)[0], rtol=0, atol=0
        )


@pytest.mark.parametrize("formula", ["mean(x)", "median(x)", "std(x)", "max(x)", "sum(max(x*dx, dim=t), dim=c)"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3, 150, 150), {"kernel_size": 3, "padding": 1}),  # several strips
        ((3, 2, 21, 61), {"kernel_size": 3, "padding": 1, "stride": 2}),
        ((1, 2, 13, 83), {"kernel_size": (2, 5), "padding": (1, 2), "stride": (1, 3), "dilation": (2, 1)}),
        ((1, 2, 3, 2), {"kernel_size": 5, "padding": 2, "stride": 1}),  # each window sees all edges
        ((1, 2, 5, 6, 45), {"kernel_size": 3, "padding": (1, 0, 1), "stride": 1}),
    ],
)
def test_windows_at_an_edge_are_told_from_those_inside(
    formula: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    """Sweeps over windows that lie inside an image ask of no tap whether it does."""
    x = torch.randn(shape).requires_grad_()
    pool = sc.pool2d if x.ndim == 4 else sc.pool3d
    options = {"stride": 1, **options, "padding_mode": "ignore"}
    mine, other = (pool(formula, x, backend=backend, **options) for backend in ("cpp", "torch"))
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    slopes = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (mine, other))
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)
