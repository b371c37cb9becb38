"""The vector functions of the native CPU backend: errors in units in the last place, special values, compilation."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from symconv.functions import FUNCTIONS
from symconv.operations import PERIODIC

COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")

INCLUDE = Path(__file__).parent.parent / "templates" / "include"
STRICT = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
DTYPES = {"float": np.float32, "double": np.float64}
#: Bytes of a vector, and the instruction set that has such vectors.
SETS = {16: [], 32: ["-mavx2", "-mfma"], 64: ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"]}

#: The largest error in units in the last place, for float and double: the bounds that math.hpp states.  A quarter more
#: is allowed without fused multiply-add, which plain x86-64 lacks.
BOUNDS = {
    **dict.fromkeys(("exp", "log"), (1.5, 1.5)),
    **dict.fromkeys(("sin", "cos", "tan", "expm1", "log1p", "pow", "hypot"), (2.0, 1.5)),
    **dict.fromkeys(("tanh", "asin", "acos", "atan", "atan2", "erf"), (2.0, 2.0)),
    **dict.fromkeys(("sinh", "cosh"), (3.0, 2.0)),
    **dict.fromkeys(("sigmoid", "softplus"), (2.0, 3.0)),
    **dict.fromkeys(("sinc", "xlogx"), (3.0, 3.0)),
}
#: Arguments of float32, per range.
SAMPLES = 100_000
#: Functions whose results are rounded exactly, or are copies of an argument.
EXACT = "sqrt abs sign floor ceil heaviside maximum minimum round relu clip share positive is_zero shift less".split()
ARITY = {"atan2": 2, "pow": 2, "maximum": 2, "minimum": 2, "hypot": 2, "clip": 3, "share": 2, "less": 2}
NAMES = [*BOUNDS, *EXACT, "reciprocal"]
#: What the test functions give for a vector with an argument beyond the limited range.
BEYOND = 99


def _runs(bytes_: int) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return all(f" {flag[2:]} " in flags for flag in SETS[bytes_])


def _sleef() -> Path:
    return Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def _compiled(folder: Path, real: str, bytes_: int, sleef: bool) -> ctypes.CDLL:
    source = ['#include "math.hpp"', "using namespace symconv;"]
    for name in NAMES:
        arguments = ", ".join(f"load({a} + i)" for a in "abc"[: ARITY.get(name, 1)])
        source.append(
            f'extern "C" void test_{name}(const real* a, const real* b, const real* c, real* out, long n)\n'
            f"{{ (void)b, (void)c; for (long i = 0; i < n; i += WIDTH) store(out + i, symconv::{name}({arguments})); }}"
        )
    for name in PERIODIC:
        source.append(
            f'extern "C" void test_limited_{name}(const real* a, const real*, const real*, real* out, long n)\n'
            "{ for (long i = 0; i < n; i += WIDTH) { Limited range; "
            f"const vec value = symconv::{name}(load(a + i), range); "
            f"store(out + i, range.exceeded() ? splat({BEYOND}) : value); }} }}"
        )
    path = folder / f"{real}{bytes_}{'s' * sleef}.cpp"
    path.write_text("\n".join(source) + "\n")
    options = [*STRICT, *SETS[bytes_], f"-DSYMCONV_REAL={real}", f"-DSYMCONV_VECTOR_BYTES={bytes_}", f"-I{INCLUDE}"]
    library = path.with_suffix(".so")
    linked = ["-DSYMCONV_SLEEF", str(_sleef()), f"-Wl,-rpath,{_sleef().parent}"] if sleef else []
    command = [str(COMPILER), "-O3", "-shared", "-fPIC", *options, str(path), "-o", str(library), *linked]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(library))


Call = Callable[..., np.ndarray]


@pytest.fixture(
    scope="module",
    params=[(real, b, s) for real in DTYPES for b in SETS for s in (False, True) if not (b == 16 and s)],
    ids=lambda p: f"{p[0]}-{p[1]}{'-sleef' * p[2]}",
)
def call(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """`call(name, *arrays)`: a function of math.hpp in the C++ type `call.real`; `call.fused`: a*b + c rounds once."""
    real, bytes_, sleef = request.param
    if not _runs(bytes_):
        pytest.skip(f"this processor has no vectors of {bytes_} bytes")
    if sleef and not _sleef().exists():
        pytest.skip("this PyTorch has no libtorch_cpu.so")
    library = _compiled(tmp_path_factory.mktemp("math"), real, bytes_, sleef)

    def function(name: str, *arrays: np.ndarray) -> np.ndarray:
        size = arrays[0].size
        padded = [np.pad(np.ascontiguousarray(a, DTYPES[real]), (0, -size % 16), "edge") for a in arrays]
        out = np.empty_like(padded[0])
        padded += [padded[0]] * (3 - len(padded))
        getattr(library, f"test_{name}")(*(ctypes.c_void_p(a.ctypes.data) for a in [*padded, out]), padded[0].size)
        return out[:size]

    function.real, function.fused = real, bytes_ > 16  # type: ignore[attr-defined]
    return function


# -- Arguments --------------------------------------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.0, 3.0, -3.0, 1e5, 1e10, 1e38, -1e38]


def _line(dtype: Any, count: int) -> np.ndarray:
    """Numbers of every size, among them denormal ones, and more of those where the functions bend or break."""
    random = np.random.default_rng(0)
    integer = np.int32 if dtype is np.float32 else np.int64
    limits = np.iinfo(integer)
    everywhere = random.integers(limits.min, limits.max, count, integer, endpoint=True).view(dtype)
    multiples = (np.arange(-200, 201) * (np.pi / 2)).astype(dtype)
    around = [multiples, np.nextafter(multiples, dtype(np.inf)), np.nextafter(multiples, dtype(-np.inf))]
    near_one = 1 + random.uniform(-1e-3, 1e-3, count // 4) * 10.0 ** random.uniform(-4, 0, count // 4)
    tiny = np.finfo(dtype).smallest_subnormal * random.integers(-1000, 1000, 100)
    ranges = [random.uniform(-r, r, count // 4) for r in (1, 4, 20, 110, 1000)]
    everywhere[np.isnan(everywhere)] = np.nan  # a quiet one, so that NumPy may convert it
    parts = [SPECIAL, everywhere, *around, near_one, tiny, *ranges]
    return np.concatenate([np.asarray(part, dtype) for part in parts])


def _arguments(name: str, dtype: Any, count: int) -> list[np.ndarray]:
    line = _line(dtype, count)
    random = np.random.default_rng(1)
    arguments = [line, *(random.permutation(line) for _ in range(ARITY.get(name, 1) - 1))]
    pairs = np.meshgrid(*[np.array(SPECIAL, dtype)] * len(arguments))
    if name == "pow":  # where the result is neither 0 nor inf
        base = np.exp(random.uniform(-80, 80, line.size))
        arguments = [np.append(line, base), np.append(arguments[1], random.uniform(-85, 85, line.size) / np.log(base))]
    return [np.append(a, p.ravel()).astype(dtype) for a, p in zip(arguments, pairs)]


def _exact(name: str, *arguments: float) -> Any:
    """The function in arbitrary precision, for finite arguments where it is real and has no pole."""
    with mpmath.workprec(2300 if name in ("sin", "cos", "tan", "sinc") else 150):
        a = [mpmath.mpf(x) for x in arguments]
        own: dict[str, Callable[..., Any]] = {
            "pow": lambda x, p: mpmath.power(x, p),
            "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
            "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
            "sinc": mpmath.sincpi,
            "xlogx": lambda z: z * mpmath.log(z) if z else z,
        }
        return own.get(name, getattr(mpmath, name, None))(*a)


def _units(got: np.ndarray, exact: np.ndarray, dtype: Any) -> np.ndarray:
    """Errors in units in the last place of `dtype`; 0 where both are the same, be it inf or NaN."""
    largest = np.finfo(dtype).max
    with np.errstate(all="ignore"):
        unit = np.spacing(np.clip(np.abs(exact), 0, largest).astype(dtype)).astype(exact.dtype)
        rounded = exact.astype(dtype)
        errors = np.abs(got.astype(exact.dtype) - exact) / unit
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    return np.where(same, np.where(np.isfinite(errors), np.minimum(errors, 0.5), 0), np.nan_to_num(errors, nan=np.inf))


# -- Tests ------------------------------------------------------------------------------------------------------------


def _reference(name: str, *arguments: np.ndarray) -> np.ndarray:
    """The function as PyTorch defines it."""
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in arguments]
    own: dict[str, Callable[..., torch.Tensor]] = {
        "sqrt": lambda z: torch.from_numpy(np.sqrt(z.numpy())),  # torch.sqrt may be one unit off
        "xlogx": lambda z: torch.special.xlogy(z, z),
        "relu": torch.relu,
        "clip": lambda z, low, high: torch.minimum(torch.maximum(z, low), high),
        "shift": lambda r: torch.where(r == -torch.inf, 0.0, r),
        "reciprocal": lambda r: torch.where(r == 0, 0.0, 1 / r),
        "positive": lambda z: (z > 0).to(z.dtype),
        "is_zero": lambda z: (z == 0).to(z.dtype),
    }
    return own.get(name, FUNCTIONS[name].reference)(*tensors).numpy()


def _sinc(z: np.ndarray) -> np.ndarray:
    """torch.sinc, but 0 at whole numbers: PyTorch rounds pi*z before it takes the sine."""
    z = z.astype(np.float64)
    with np.errstate(all="ignore"):
        whole = np.round(z)
        sine = np.sin(np.pi * (z - whole)) * np.where(np.round(whole / 2) == whole / 2, 1, -1)
        return np.where(z == 0, 1, sine / (np.pi * z))


@pytest.mark.parametrize("name", BOUNDS)
def test_error(call: Any, name: str) -> None:
    dtype = DTYPES[call.real]
    arguments = _arguments(name, dtype, SAMPLES if call.real == "float" else 400)
    got = call(name, *arguments)
    # float64 judges float32, and arbitrary precision what it finds worst; of float64 only the latter can judge.
    wide = _sinc(arguments[0]) if name == "sinc" else _reference(name, *(a.astype(np.float64) for a in arguments))
    errors = _units(got, wide, dtype)
    finite = np.all([np.isfinite(a) & (a != 0) for a in arguments], axis=0) & np.isfinite(wide)
    judged = np.flatnonzero(finite)
    if call.real == "float":
        judged = judged[np.argsort(errors[judged])[-20:]]
    exact = [_exact(name, *(float(a[i]) for a in arguments)) for i in judged]
    for i, value in zip(judged, exact):
        unit = float(np.spacing(np.abs(dtype(float(value)))))
        errors[i] = float(abs(mpmath.mpf(float(got[i])) - value) / unit) if np.isfinite(got[i]) else np.inf
    worst = int(np.argmax(errors))
    bound = BOUNDS[name][call.real == "double"] * (1 if call.fused else 1.25)
    at = [a[worst] for a in arguments]
    assert errors[worst] <= bound, f"{errors[worst]} units at {at}: {got[worst]}, not {wide[worst]}"


@pytest.mark.parametrize("name", sorted(PERIODIC))
def test_limited_range(call: Any, name: str) -> None:
    """Up to 2**15 multiples of pi, of half of it for the tangent, there is no other way; beyond, all say so."""
    dtype, unit = DTYPES[call.real], np.pi / (2 if name == "tan" else 1)
    z = np.linspace(0, 1.5 * 2**15 * unit, SAMPLES - SAMPLES % 16).astype(dtype)
    z *= np.where(np.arange(z.size) // 16 % 2, 1, -1).astype(dtype)
    with np.errstate(invalid="ignore"):
        specials = np.repeat(np.array([np.inf, -np.inf, np.nan, 1e38, -1e10], dtype), 16)
    got, beyond = call(f"limited_{name}", z), call(f"limited_{name}", specials) == BEYOND
    if call.real == "double":
        np.testing.assert_array_equal(got, call(name, z))
        return
    assert beyond.all()
    multiples = np.abs(z.astype(np.float64) / unit)
    assert (got[multiples < 2**15 - 64] != BEYOND).all()
    assert (got[multiples > 2**15 + 64] == BEYOND).all()
    near = (got != BEYOND) & (np.abs(z) <= 1e5)  # as far as both reduce alike
    np.testing.assert_array_equal(got[near], call(name, z)[near])
    last = z[got != BEYOND][-2000:]
    errors = _units(call(f"limited_{name}", last), _reference(name, last.astype(np.float64)), dtype)
    assert errors.max() <= BOUNDS[name][0] * (1 if call.fused else 1.25)


@pytest.mark.parametrize("name", [*EXACT, "reciprocal"])
def test_exact(call: Any, name: str) -> None:
    arguments = _arguments(name, DTYPES[call.real], 1000)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(call(name, *arguments), _reference(name, *arguments))


@pytest.mark.parametrize("name", "sin tan asin atan sinh tanh erf expm1 log1p floor ceil round".split())
def test_negative_zero(call: Any, name: str) -> None:
    assert np.signbit(call(name, np.array([-0.0]))).all()
    assert not np.signbit(call(name, np.array([0.0]))).any()


@pytest.mark.parametrize("real", DTYPES)
@pytest.mark.parametrize("bytes_", SETS)
@pytest.mark.parametrize(
    "header", ["vector.hpp", "math.hpp", "window.hpp", "operands.hpp", "rows.hpp", "packing.hpp", "strip.hpp"]
)
def test_compiles_alone(tmp_path: Path, header: str, bytes_: int, real: str) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{header}"\n')
    options = [f"-DSYMCONV_REAL={real}", f"-DSYMCONV_VECTOR_BYTES={bytes_}", f"-I{INCLUDE}", *SETS[bytes_]]
    command = [str(COMPILER), *STRICT, "-fsyntax-only", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
