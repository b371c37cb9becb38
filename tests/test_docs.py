"""The documentation: its examples show what they say, its pictures are there and can be drawn again."""

import codeop
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import symconv as sc

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_show_what_they_say(page: Path) -> None:
    torch.manual_seed(0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags, encoding="utf-8")
    assert tried > 5 or ">>>" not in page.read_text(encoding="utf-8")
    assert not failed


def test_names_that_are_said_to_be_taken_are_taken() -> None:
    [said] = re.findall(
        r"Names that are taken: (.*?)\n\n", (ROOT / "docs" / "language.md").read_text("utf-8"), re.DOTALL
    )
    in_formulas, in_layers = said.split("A layer refuses")
    names = re.findall(r"`(\w+)`", in_formulas)
    assert {"x", "stride", "values"} < {*names}
    for name in names:
        with pytest.raises(sc.FormulaError, match="taken"):
            sc.Kernel(f"{name}: const = 2\nsum(x)*{name}")
    for name in re.findall(r"`(\w+)`", in_layers):
        with pytest.raises(sc.ArgumentError, match="rename it in the formula"):
            sc.Pool2d(f"{name}: const = 2\nsum(x)*{name}", 2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_can_be_pasted(page: Path) -> None:
    """A prompt takes a block for ended after an empty line; `doctest` does without."""
    for example in re.findall(r"^>>> .*(?:\n\.\.\..*)*", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert codeop.compile_command(re.sub(r"^(>>>|\.\.\.) ?", "", example, flags=re.MULTILINE)), example


def test_pages_link_to_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_picture_is_of_an_example() -> None:
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert (ROOT / "examples" / f"{picture.stem}.py").exists(), picture


def test_the_picture_of_the_window_can_be_drawn(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    subprocess.run([sys.executable, str(ROOT / "docs" / "window.py"), "window.png"], cwd=tmp_path, check=True)
    drawn, shown = (image.imread(path) for path in (tmp_path / "window.png", ROOT / "docs" / "window.png"))
    assert drawn.shape == shown.shape
    # Text differs from one version of matplotlib and its fonts to the next, so only how much is drawn is compared.
    assert drawn[..., :3].mean() == pytest.approx(shown[..., :3].mean(), abs=0.01)
