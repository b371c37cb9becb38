"""Golden sources: changes of generated code are reviewed like code.  `make golden` writes them anew."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import symconv as sc
from symconv.backends.torch import SOURCE, generate
from symconv.eject import standalone
from symconv.language.names import check_name
from symconv.printers.torch import TAKEN
from symconv.render import _statement, render, static_header, template_directory

GOLDEN = Path(__file__).parent / "golden"
KERNELS = {
    "adder": "-sum(abs(x - w))",
    "tan_product": "prod(tan(x + w))",
    "linear": "sum(w*x) + b",
    "dilation": "max(x + w)",
    "soft_dilation": "beta: const = 5\nlogsumexp(beta*(x + w))/beta",
    "cosine": "sum(w*x)/(norm(w)*norm(x) + 1e-6)",
    "rbf": "gamma: param[o] = 0.1\nexp(-gamma*sum((x - w)**2))",
    "softpool": "sum(x*softmax(x))",
    "kervolution": "cp: param = 1\nd: const = 3\n(sum(w*x) + cp)**d",
    "mean_of_maximum": "mean(max(x, w, 0))",
}


def mathematics(source: str) -> str:
    """A generated file without the static header, which has a test of its own."""
    return source.partition("# -- The same for every kernel")[0]


@pytest.mark.parametrize("name", KERNELS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    source = mathematics(generate(sc.Kernel(KERNELS[name], name=name))[SOURCE])
    path = GOLDEN / f"{name}.py.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(source, encoding="utf-8")
    assert source == path.read_text(encoding="utf-8"), "run `make golden` and review the difference"


@pytest.mark.parametrize("name", KERNELS)
def test_generated_files_are_well_formed(name: str) -> None:
    source = generate(sc.Kernel(KERNELS[name], name=name))[SOURCE]
    module = ast.parse(source)
    imports = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in module.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imports == {"__future__", "collections.abc", "functools", "itertools", "math", "torch", "typing"}
    assert all(len(line) <= 120 for line in source.splitlines())
    assert not any(line != line.rstrip() for line in source.splitlines())
    assert "\n\n\n\n" not in source
    assert "UNDEFINED" not in source.upper()
    assert name in ast.get_docstring(module)


def test_two_files_differ_only_in_their_mathematics() -> None:
    tails = {
        generate(sc.Kernel(text))[SOURCE].partition("# -- The same for every kernel")[2] for text in KERNELS.values()
    }
    assert len(tails) == 1
    assert static_header("window.py").partition("class Tap")[2].strip() in tails.pop()


@pytest.mark.parametrize("name", KERNELS)
def test_no_operand_can_hide_a_name_of_the_generated_code(name: str) -> None:
    kernel = sc.Kernel(KERNELS[name])
    own = {operand.name for operand in kernel.formula.operands}
    for node in ast.walk(ast.parse(mathematics(generate(kernel)[SOURCE]))):
        if isinstance(node, ast.Name) and node.id not in own | TAKEN and not re.fullmatch(r"[uv]\d+", node.id):
            with pytest.raises(sc.FormulaError):
                check_name(node.id)
    for clash in (
        "u1: weight\nv1: param\nnorm(u1*x)*norm(x) + v1",
        "f: param\nd: const = 2\nshared: weight\nsum(shared*x*d) + f",
    ):
        assert sc.Kernel(clash).check().ok


PROGRAM = """
import hashlib, sys
import symconv as sc
from symconv.backends.torch import SOURCE, generate
from symconv.eject import standalone
digest = hashlib.sha256()
for text in sys.stdin.read().split("----"):
    kernel = sc.Kernel(text)
    digest.update(generate(kernel)[SOURCE].encode() + standalone(kernel, rank=3).encode() + kernel.latex().encode())
    digest.update((str(kernel) + kernel.tangent(("x",))[0].text).encode())
print(digest.hexdigest())
"""


def test_the_same_text_in_every_process() -> None:
    from test_records import coverage

    texts = "----".join([*KERNELS.values(), coverage().text])
    seen = set()
    for seed in ("0", "1", "42"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}
        run = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(run, input=texts, env=env, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


def test_generating_twice_gives_the_same_text() -> None:
    kernel = sc.Kernel(KERNELS["cosine"])
    assert generate(kernel) == generate(sc.Kernel(kernel.text))
    assert standalone(kernel) == standalone(kernel)


def test_templates_are_strict(tmp_path: Path) -> None:
    import jinja2

    with pytest.raises(jinja2.UndefinedError):
        render("torch/kernel.py.jinja", kernel={}, schedule={}, header="")
    assert (template_directory() / "torch" / "kernel.py.jinja").is_file()


def test_long_statements_are_broken_inside_brackets() -> None:
    for text in ("value = f(" + ", ".join(["argument"] * 30) + ")", "return a + " + " + ".join(["b*c"] * 60)):
        broken = _statement(text, 4)
        assert max(map(len, broken.splitlines())) <= 120
        assert ast.dump(ast.parse(f"def g():\n{broken}")) == ast.dump(ast.parse(f"def g():\n    {text}"))
