"""The demo: that it trains what it says, is repeatable, and draws a picture of it."""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sympy as sp
import torch

from symconv import SymconvError
from symconv.language.symbols import w, x

pytest.importorskip("sklearn")
image = pytest.importorskip("matplotlib.image")

from symconv import demo as module  # noqa: E402
from symconv.demo import ADDER, CONVOLUTION, DILATION, TANGENT_PRODUCT, Result, demo  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Result], Path, str]]:
    """The results, the picture and the output of a short run, not on a terminal."""
    folder, printed = tmp_path_factory.mktemp("demo"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("SYMCONV_CACHE_DIR", str(folder / "cache"))
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        picture = folder / "demo.png"
        yield demo(picture, epochs=2), picture, printed.getvalue()


def test_results_are_those_of_four_networks_that_learn(run: tuple[list[Result], Path, str]) -> None:
    results, _, _ = run
    assert [result.kernel for result in results] == [TANGENT_PRODUCT, ADDER, DILATION, CONVOLUTION]
    assert len({result.parameters for result in results}) == 1
    for result in results:
        assert len(result.losses) == len(result.accuracies) == 2
        assert result.losses[1] < result.losses[0]
        assert 0.8 < result.accuracy <= 1, result.kernel
        assert result.seconds > 0


def test_output_shows_gradients_accuracies_and_at_last_the_picture(run: tuple[list[Result], Path, str]) -> None:
    results, picture, printed = run
    assert re.search(r"[∂d]y/[∂d]w = sign\(x - w\)", printed)
    assert not any(character < " " and character != "\n" for character in printed)
    assert printed.splitlines()[-1].endswith(str(picture))
    for result in results:
        row = next(line for line in printed.splitlines() if line.startswith("│") and result.kernel.title in line)
        assert f"{result.accuracy:.1%}" in row
        below = f"{result.kernel.title} stayed below 95%"
        assert (below in printed) == (result.accuracy < 0.95)


def test_picture_has_something_in_each_of_its_panels(run: tuple[list[Result], Path, str]) -> None:
    _, picture, _ = run
    pixels = image.imread(picture)[..., :3]
    height, width, _ = pixels.shape
    assert height > 1000
    assert width > 1500
    for row in range(4):
        for column in range(7):
            panel = pixels[row * height // 4 : (row + 1) * height // 4, column * width // 7 : (column + 1) * width // 7]
            assert panel.std() > 0.03, (row, column)


def test_same_seed_same_training_whatever_ran_before() -> None:
    data, (kernel, layer) = module.digits(), module.contenders()[1]

    def losses(seed: int) -> tuple[float, ...]:
        return module.train(lambda: module.network(layer), kernel, data, 1, seed, lambda *_: None).losses

    first, state = losses(0), torch.get_rng_state()
    threads = torch.get_num_threads()
    assert losses(1) != first
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.rand(3)
    assert losses(0) == first


def test_digits_are_split_evenly_and_lie_between_minus_one_and_one() -> None:
    training, test = module.digits()
    assert len(training.labels) + len(test.labels) == 1797
    assert training.images.shape == (1347, 1, 8, 8)
    assert (training.images.min().item(), training.images.max().item()) == (-1, 1)
    assert test.labels.bincount().min() >= 43


def test_tap_function_is_what_stands_inside_the_reduction() -> None:
    assert module.tap_function(TANGENT_PRODUCT) == sp.tan(0.3 * x + w)
    assert module.tap_function(ADDER) == sp.Abs(x - w)
    assert module.tap_function(DILATION) == x + w


@pytest.mark.parametrize("name", ["sklearn.datasets", "matplotlib.figure"])
def test_missing_package_is_named_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SymconvError, match=rf"{name.partition('.')[0]}.*pip install '\.\[demo\]' in"):
        demo(tmp_path / "demo.png", epochs=1)


def test_what_cannot_work_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(SymconvError, match="epochs must be at least 1"):
        demo(tmp_path / "demo.png", epochs=0)
    with pytest.raises(SymconvError, match=r"suffix must be one of .*png"):
        demo(tmp_path / "demo.xyz", epochs=1)
    with pytest.raises(SymconvError, match=r"there is no directory .*new"):
        demo(tmp_path / "new" / "demo.png", epochs=1)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_every_kernel_reads_more_than_97_percent_of_the_digits(tmp_path: Path) -> None:
    for result in demo(tmp_path / "demo.png"):
        assert result.accuracy >= 0.97, result.kernel
