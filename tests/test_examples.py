"""Every example runs as its docstring says, and shows what it promises."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(name: str, cwd: Path, cache: Path, *arguments: str) -> str:
    """What an example prints."""
    # One thread: tests run side by side, and threads that share a core wait for one another.
    environment = {"SYMCONV_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-W", "error::symconv.SymconvWarning", str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def demo_packages() -> None:
    """Skip a test where the packages of the extra `demo` are missing."""
    for module in ("matplotlib", "skimage", "sklearn"):
        pytest.importorskip(module)


def picture(path: Path, panels: int) -> None:
    """The picture is there, and none of its panels side by side is empty."""
    pixels = pytest.importorskip("matplotlib.image").imread(path)[..., :3]
    width = pixels.shape[1]
    for panel in range(panels):
        assert pixels[:, panel * width // panels : (panel + 1) * width // panels].std() > 0.1


def test_tan_product_has_the_right_gradient_also_at_zero(tmp_path: Path, cache: Path) -> None:
    printed = run("tan_product.py", tmp_path, cache)
    assert float(re.findall(r"largest difference from unfolding: (\S+)", printed)[0]) < 1e-5
    gradients = re.findall(r"dy/dx +([\d., ]+)\n +dy/dx by hand +([\d., ]+)\n", printed)
    assert [ours for ours, _ in gradients] == [by_hand for _, by_hand in gradients]
    assert [ours for ours, _ in gradients][1:] == ["0.3737, 0.0000, 0.0000", "0.0000, 0.0000, 0.0000"]
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", printed)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 5


def test_adder_learns_the_digits(tmp_path: Path, cache: Path) -> None:
    demo_packages()
    printed = run("adder.py", tmp_path, cache)
    assert "(3): Conv2d('adder', 8, 16" in printed
    accuracies = [float(accuracy) for accuracy in re.findall(r"test accuracy (\S+)%", printed)]
    assert accuracies[-1] > 93


def test_morphology_draws_the_edges_that_scipy_finds(tmp_path: Path, cache: Path) -> None:
    demo_packages()
    printed = run("morphology.py", tmp_path, cache, "--out", "edges.png")
    assert [float(error) for error in re.findall(r"scipy.ndimage is (\S+)", printed)] == [0, 0]
    picture(tmp_path / "edges.png", 3)


def test_inspect_gradients_shows_every_view_of_a_kernel(tmp_path: Path, cache: Path) -> None:
    printed = run("inspect_gradients.py", tmp_path, cache)
    for expected in (
        "∂y/∂x = softmax(",
        "x: softmax(beta*(x + w))",
        "dy/dx is -2*w*(x - 1)*exp(-w*(x - 1)**2)",
        "steeply",
        "x = 0.5000",
        r"\begin{aligned}y &= ",
        "def gradient_tap(",
        "all agree",
    ):
        assert expected in printed


def test_bilateral_filters_keep_edges(tmp_path: Path, cache: Path) -> None:
    demo_packages()
    printed = run("bilateral.py", tmp_path, cache, "--out", "smooth.png")
    noisy, gaussian, bilateral, rough, blurred, joint = map(float, re.findall(r"error (\S+)", printed))
    assert bilateral < 0.8 * gaussian < 0.5 * noisy
    assert joint < 0.8 * blurred < 0.5 * rough
    picture(tmp_path / "smooth.png", 4)


def test_gabor_filters_learn_more_than_fixed_ones(tmp_path: Path, cache: Path) -> None:
    demo_packages()
    printed = run("gabor.py", tmp_path, cache, "--out", "gabor.png", "--steps", "60")
    fixed, learned = map(float, re.findall(r"filters: (\S+)%", printed))
    assert 60 < fixed < learned
    picture(tmp_path / "gabor.png", 1)


def test_a_masked_convolution_sees_past_holes(tmp_path: Path, cache: Path) -> None:
    demo_packages()
    printed = run("masked_convolution.py", tmp_path, cache, "--out", "masked.png", "--steps", "40")
    assert "∂y/∂g" in printed
    plain, masked = map(float, re.findall(r"error (\S+)", printed))
    assert masked < 0.06 < 0.1 < plain
    picture(tmp_path / "masked.png", 4)


def test_diffusion_learns_what_an_edge_is(tmp_path: Path, cache: Path) -> None:
    demo_packages()
    printed = run("diffusion.py", tmp_path, cache, "--out", "diffusion.png", "--steps", "40")
    linear, noisy, learned, _ = map(float, re.findall(r"(?:error|before it) ([\d.]+)", printed))
    assert learned < linear < 0.6 * noisy
    picture(tmp_path / "diffusion.png", 2)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda example: example.name)
def test_an_example_says_what_it_needs(example: Path) -> None:
    text = example.read_text(encoding="utf-8")
    needs = re.search(r"^(from|import) (matplotlib|scipy|skimage|sklearn)", text, re.MULTILINE) is not None
    docstring = ast.get_docstring(ast.parse(text))
    assert ("pip install '.[demo]'" in docstring) == needs
    [said] = re.findall(r"all but (.*?) need `pip install", (EXAMPLES.parent / "README.md").read_text(encoding="utf-8"))
    assert (f"`{example.name}`" in said) != needs


def test_examples_that_draw_say_how(tmp_path: Path, cache: Path) -> None:
    demo_packages()
    drawing = [each.name for each in EXAMPLES.glob("*.py") if "savefig" in each.read_text(encoding="utf-8")]
    assert len(drawing) == 5
    for name in drawing:
        assert "--out" in run(name, tmp_path, cache, "--help")
    assert not [*tmp_path.iterdir()]


def test_examples_are_short_and_all_of_them_are_tested() -> None:
    examples = sorted(EXAMPLES.glob("*.py"))
    tests = Path(__file__).read_text(encoding="utf-8")
    assert examples
    for example in examples:
        lines = example.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 100, example
        assert lines[0].startswith('"""'), example
        assert f'run("{example.name}"' in tests, example
