"""What the tests share: a private cache, the backends under test, kernels and shapes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import GPU, install
from hypothesis import settings

# The workers share the cores: many small operators on several threads each would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Before symconv is imported anywhere: generated code of the tests stays out of the user's cache.
os.environ.setdefault("SYMCONV_CACHE_DIR", tempfile.mkdtemp(prefix="symconv-tests-"))

# In CI the same examples every time: a change is red for what it did.  Elsewhere new ones, which is how bugs are found.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

#: Every backend that the numeric suite runs; a new one joins by its name.  Where there is a GPU, its kernels do too.
BACKENDS = ("torch", "cpp", "cuda-emu", *[GPU] * torch.cuda.is_available())
if GPU in BACKENDS:
    install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew instead of comparing")


#: Where a compiled backend builds a hundred kernels and more, at a second or two each: the slow sweeps run these.
MANY_KERNELS = ("test_zoo_", "test_records", "test_random_formulas", "test_autograd", "test_second_derivatives")


def sampled(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Parameters of a test: the default suite runs the first ones, the slow sweeps the others."""
    return [
        value if index < count else pytest.param(value, marks=pytest.mark.slow) for index, value in enumerate(values)
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(item, "callspec", None)
        name = None if parameters is None else parameters.params.get("backend")
        if name == GPU:
            item.add_marker(pytest.mark.gpu)
        if name in ("cpp", "cuda-emu", GPU) and item.path.name.startswith(MANY_KERNELS):
            item.add_marker(pytest.mark.slow)
            if name == "cuda-emu":
                item.add_marker(pytest.mark.emulation)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend."""
    return str(request.param)


#: Where kernels are compiled as for users.  Elsewhere there are hundreds of them, and the compiler takes half the time
#: to optimise less: what they compute is the same, as vectors are explicit and nothing may reorder sums.  Products and
#: sums still become one instruction: without, kernels would round otherwise than those of users.
QUICK = "-O1 -fexpensive-optimizations"
OPTIMISED = ("test_cpp", "test_properties", "test_seed_rows", "test_examples", "test_docs", "test_demo")


@pytest.fixture(autouse=True)
def _quick_to_build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.path.name.startswith(OPTIMISED):
        monkeypatch.setenv("SYMCONV_CXXFLAGS", f"{QUICK} {os.environ.get('SYMCONV_CXXFLAGS', '')}".strip())


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def root() -> Path:
    """The project's root."""
    return Path(__file__).resolve().parent.parent
