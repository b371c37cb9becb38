"""The command line, as a user types it, and the standalone files it writes."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from oracles import random, same_values_and_gradients
from pygments.lexers import get_lexer_by_name

import symconv as sc
from symconv.backends import backends
from symconv.cli import main
from symconv.eject import standalone


def run(*args: str, code: int = 0, **options: object) -> str:
    result = CliRunner().invoke(main, list(args), **options)
    assert result.exit_code == code, result.output
    return result.output


def test_help_names_every_command() -> None:
    text = run("--help")
    for command in ("cache", "check", "demo", "doctor", "generate", "show"):
        assert command in text
        assert run(command, "--help")


def test_show() -> None:
    text = run("show", "-sum(abs(x - w))")
    assert "sign(x - w)" in text
    assert "def gradient_tap" in text
    assert text.index("def gradient_tap") < text.index("operations at each tap") < text.index("y = ")
    assert text.splitlines()[-1].endswith("w = sign(x - w)")
    assert "\x1b" not in text
    assert "def gradient_tap" not in run("show", "--no-code", "-sum(abs(x - w))")
    assert r"\prod_{c,t}" in run("show", "--latex", "prod(tan(x + w))")
    assert "logsumexp" in run("show", "--no-code", "-", input="beta: const = 5\nlogsumexp(beta*(x + w))/beta\n")


def test_show_for_the_backend_of_this_cpu() -> None:
    from symconv.backends import choose

    automatic = choose("auto", torch.device("cpu"), torch.float32)
    shown = run("show", "--backend", "auto", "sum(w*x)")
    assert shown == run("show", "--backend", automatic, "sum(w*x)")
    assert sc.Kernel("sum(w*x)").source("auto") == sc.Kernel("sum(w*x)").source(automatic)
    refused = run("show", "--backend", "gpu", "sum(w*x)", code=1)
    assert refused.startswith("error: backend must be 'auto' or one of")


def test_backends_name_the_language_of_their_source() -> None:
    for backend in backends().values():
        assert get_lexer_by_name(backend.language).name in ("Python", "C++", "CUDA")


def test_errors_are_messages_not_tracebacks() -> None:
    text = run("show", "sum(xx*w)", code=1)
    assert "did you mean 'x'" in text
    assert "^^" in text
    assert "Traceback" not in text


def test_precompile_says_what_a_layer_takes_of_a_gpu() -> None:
    layer = ("--input", "2,8,20,20", "--filters", "8")
    text = run("precompile", "sum(w*x)", *layer)
    for name in ("sm_90", "forward", "backward_pixels", "backward_weights", "registers"):
        assert name in text
    assert "backward_images" in run("precompile", "sum(w*x)", "--input", "2,8,9,9,9", "--filters", "8")
    for options, said in (
        (("--input", "2,8"), "N,C and one to three sizes"),
        (("--input", "2,0,8,8"), "N,C and one to three sizes"),
        (("--input", "2,8,20,20", "--groups", "3"), "must divide 8 channels"),
        (("--input", "2,8,1,1", "--padding", "0"), "does not fit"),
        (("--dtype", "int8"), "no dtype 'int8'"),
    ):
        assert said in run("precompile", "sum(w*x)", *options, code=2)


def test_precompile_pools_only_what_is_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    import symconv.backends.cuda

    given, names = {}, ("gabor", "local_attention", "soft_pool", "adder")
    named = {sc.zoo.OPERATORS[name].kernel.text: name for name in names}
    monkeypatch.setattr(
        symconv.backends.cuda, "precompiled", lambda kernel, *args: given.update({named[kernel.text]: args[3]}) or {}
    )
    run("precompile", *(f"--zoo={name}" for name in names), "--input", "2,8,20,20", "--filters", "8")
    assert {name: geometry.groups for name, geometry in given.items()} == dict(zip(names, (1, 1, 8, 1)))
    run("precompile", "--zoo", "gabor", "--input", "2,8,20,20", "--filters", "4")
    assert given["gabor"].out_channels == 4
    refused = run("precompile", "--zoo", "local_attention", "--input", "2,8,20,20", "--filters", "4", code=1)
    assert "as many channels as outputs" in refused


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_sees_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: int) -> None:
    import symconv.backends.cuda

    monkeypatch.setattr(symconv.backends.cuda, "precompiled", lambda *_: {"symconv_backward_weights": (160, 32, 0)})
    monkeypatch.setenv("COLUMNS", str(columns))
    told = {command: run(*command.split()) for command in ("zoo", "doctor", "-h", "cache -h")}
    monkeypatch.setenv("SYMCONV_CACHE_DIR", str(tmp_path))
    told["precompile"] = run("precompile", "logsumexp(abs(x - w)) + sum(w*x)/(norm(x) + 1) - mean(w*tan(x))")
    assert "backward_weights        160     32        0" in told["precompile"]
    run("show", f"logsumexp(sigmoid(tanh(softplus(expm1(atan({columns}*x))))))")
    told["cache list"] = run("cache", "list")
    for text in told.values():
        assert "…" not in text
        assert "..." not in text.replace("[ARGS]...", "")
    for name in ("zoo", "doctor", "precompile", "cache list"):
        assert max(map(len, told[name].splitlines()[1:])) <= columns
    for text in (told["-h"], told["cache -h"], run("check", "max(x + w)")):  # click's runner has 80 columns
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", ["fast_kan", "generalised_mean", "quantile_pool", "perona_malik", "ssim"])
@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_sees_long_formulas(monkeypatch: pytest.MonkeyPatch, name: str, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    wide = run("zoo", "show", name)
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = run("zoo", "show", name)
    formula = sc.zoo.OPERATORS[name].formula
    assert formula in narrow  # which may be copied
    assert max(map(len, narrow.replace(formula, "").splitlines())) <= columns < max(map(len, wide.splitlines()))
    assert sorted(re.sub(r"[\s↪>]", "", narrow)) == sorted(re.sub(r"[\s↪>]", "", wide))


def test_doctor_says_all_of_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(backends()["cuda"]), "unavailable", lambda self: "pip install '.[cuda]'")
    assert "pip install '.[cuda]'" in run("doctor", env={"COLUMNS": "200"})


def test_check() -> None:
    text = run("check", "max(x + w)")
    assert "all agree" in text
    assert "FAIL" not in text


def test_a_failing_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import symconv.check

    monkeypatch.setattr(symconv.check, "reference", lambda *args: torch.zeros(()))
    assert "DISAGREEMENT" in run("check", "sum(w*x)", code=1)


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from symconv.backends.torch import TorchKernel

    right = TorchKernel.backward

    def wrong(self: TorchKernel, *args: object) -> tuple[torch.Tensor | None, ...]:
        return tuple(None if grad is None else grad * 1.001 for grad in right(self, *args))

    monkeypatch.setattr(TorchKernel, "backward", wrong)
    report = sc.Kernel("prod(tan(x + w))").check()
    assert not report.ok
    assert [row.ok for row in report.rows if row.quantity.startswith("values")] == [True] * 4


@pytest.mark.parametrize(
    "formula",
    [
        *("sum(acos(2*x))", "sum(log(x - w))", "sum(sqrt(w - x))", "sum(exp(100*x*w))", "detach(sum(x*w))"),
        "q: const\nquantile(x, q)",
    ],
)
def test_check_looks_where_a_formula_is_defined(formula: str) -> None:
    report = sc.Kernel(formula).check()
    assert report.ok
    assert len(report.rows) > 3


def test_what_cannot_be_checked_is_not_called_wrong() -> None:
    report = sc.Kernel("sum(w*log(-1 - x**2))").check()
    assert not report.ok
    assert "NOT CHECKED" in str(report)
    assert "DISAGREEMENT" not in str(report)


def test_check_counts_kinks() -> None:
    report = sc.Kernel("sum(floor(3*x)*w)").check()
    assert report.ok
    assert "gradient for x" in str(report)


def test_check_tells_gradients_that_are_zero_everywhere() -> None:
    mind = "mind: the gradient for {} is 0 everywhere"
    assert mind.format("x and w") in run("check", "sum(floor(x*w))")
    assert mind.format("x") in run("check", "p: param = 2\nsum(w)*p + sum(sign(x))")
    assert "mind" not in run("check", "sum(abs(x - w))")


def test_doctor_says_a_reason_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cpp", "cuda", "cuda-emu"):
        monkeypatch.setattr(type(backends()[name]), "unavailable", lambda self: "no compiler works")
    text = run("doctor")
    assert text.count("no compiler works") == 1
    assert text.count("unavailable, as backend cpp") == 2


def test_doctor() -> None:
    text = run("doctor")
    assert "torch" in text
    assert "backend torch" in text
    assert "runs" in text


def test_cache_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMCONV_CACHE_DIR", str(tmp_path / "cache"))
    assert str(tmp_path) in run("cache", "path")
    assert "0 entries" in run("cache", "info")
    run("show", "sum(w*x*0.3217)")
    assert "0.3217" in run("cache", "list")
    assert "--size" in run("cache", "prune", code=2)  # which would remove everything
    assert "removed 0 entries" in run("cache", "prune", "--size", "inf")
    assert "removed 1 entries" in run("cache", "prune", "--size", "0")
    run("show", "sum(w*x*0.3218)")
    run("cache", "clear", code=1, input="n\n")
    assert "removed" in run("cache", "clear", "--yes")


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "symconv", "--version"], capture_output=True, text=True, check=True)
    assert sc.__version__ in done.stdout


# -- Standalone files ----------------------------------------------------------------------------------------------


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EJECTED = {
    "tangent": "prod(tan(x + w)) + b",
    "several": "v: weight\nbeta: const = 2\np: param[o] = 0.5\nq: param\ns: param[t]\n"
    "logsumexp(beta*(x + w*s))*p + q*sum(v*x)",
    "extremum": "max(x + w) - min(x - w)",
    "nested": "sum(max(x + w, dim=t), dim=c) + median(w*x)",
    "bank": "s: weight[3]\np: param[o, positive] = 2\nsum(Sum(s[k]*x**(k + 1), (k, 0, 2)))/p + max(w*x[c, 0])",
}


@pytest.mark.parametrize("name", EJECTED)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "ignore", "constant"])
def test_a_standalone_layer_gives_the_same_numbers(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / f"{name}.py"
    run("generate", EJECTED[name], "-o", str(path), "--name", "Ejected")
    options = {"kernel_size": (3, 2), "stride": (1, 2), "padding": 1, "groups": 2, "padding_mode": mode}
    options |= {"padding_value": 0.5} if mode == "constant" else {}
    with pytest.warns() if mode == "zeros" else pytest.MonkeyPatch.context():
        ours = sc.Conv2d(sc.Kernel(EJECTED[name]), 4, 6, dtype=torch.float64, **options)
    theirs = imported(path).Ejected(4, 6, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    windows = f"kernel_size=(3, 2), stride=(1, 2), dilation=(1, 1), padding=((1, 1), (1, 1)), padding_mode={mode!r}"
    assert f"4, 6, groups=2, {windows}" in repr(theirs)
    with pytest.raises(TypeError, match="positional"):  # there is no `bias` before `padding_mode`: it is the formula's
        imported(path).Ejected(4, 6, 3, 1, 0, 1, 1, False)
    with pytest.raises(ValueError, match=r"padding_value=0\.5 is for padding_mode='constant', not 'reflect'"):
        imported(path).Ejected(4, 6, 3, padding_mode="reflect", padding_value=0.5)
    for x in (random(2, 4, 5, 6), random(4, 5, 6)):
        same_values_and_gradients(ours, theirs, (x,))
    x = random(2, 4, 5, 6)
    torch.testing.assert_close(
        torch.autograd.grad(ours(x).sum(), [*ours.parameters()]),
        torch.autograd.grad(theirs(x).sum(), [*theirs.parameters()]),
    )
    y = theirs(x.requires_grad_()).sum()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(y, x, create_graph=True)


def test_a_standalone_layer_with_further_inputs(tmp_path: Path) -> None:
    kernel = sc.Kernel("g: input\nk: field[t]\nq: field[o]\nsum(k*x*exp(-sum((g - g[c, 0])**2, dim=c)))*q")
    path = tmp_path / "guided.py"
    path.write_text(standalone(kernel, "Guided"))
    ours, theirs = sc.Pool2d(kernel, 3, 1, padding=1), imported(path).Guided(3, 1, padding=1)
    x, g, k, q = (torch.randn(2, channels, 5, 6) for channels in (2, 3, 9, 2))
    torch.testing.assert_close(theirs(x, g, k, q), ours(x, g=g, k=k, q=q))
    torch.testing.assert_close(theirs(x[0], g[0], k[0], q[0]), ours(x, g=g, k=k, q=q)[0])


@pytest.mark.parametrize("name", ["adder", "addr"])
def test_zoo_says_how_an_operator_is_shown(name: str) -> None:
    assert f"no command '{name}'; `symconv zoo show adder` shows an operator" in run("zoo", name, code=2)
    assert "`symconv zoo show NAME` shows an operator, `symconv zoo` lists them" in run("zoo", "qqq", code=2)
    assert "No such option" in run("zoo", "--all", code=2)


def test_zoo() -> None:
    listed = run("zoo")
    for name in sc.zoo.OPERATORS:
        assert name in listed
        shown = run("zoo", "show", name)
        assert "computes" in shown
        assert sc.zoo.OPERATORS[name].formula.splitlines()[-1] in shown
    with pytest.raises(AttributeError, match="did you mean 'adder'"):
        _ = sc.zoo.addr
    assert "adder" in dir(sc.zoo)


def test_a_standalone_pool(tmp_path: Path) -> None:
    path = tmp_path / "pool.py"
    path.write_text(standalone(sc.Kernel("beta: const = 2\nsum(x*softmax(beta*x))"), "SoftPool", 1))
    ours, theirs = (
        sc.Pool1d("beta: const = 2\nsum(x*softmax(beta*x))", 3, 2, beta=4),
        imported(path).SoftPool(3, 2, beta=4),
    )
    x = torch.randn(2, 3, 9)
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.equal(theirs(x[0]), theirs(x)[0])


def test_a_standalone_layer_knows_infinity(tmp_path: Path) -> None:
    path = tmp_path / "clipped.py"
    path.write_text(standalone(sc.Kernel("high: const = inf\nlow: param = -inf\nsum(w*clip(x, low, high))")))
    layer, x = imported(path).Layer(2, 3, 3), torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, layer.weight))


@pytest.mark.parametrize("shape", [(2, 6, 8, 8), (1, 8, 8), (8, 8), (1, 2, 4, 8, 8)])
def test_a_standalone_layer_says_what_shape_it_takes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "layer.py").write_text(standalone(sc.Kernel("sum(w*x)"), "Layer"))
    (tmp_path / "pool.py").write_text(standalone(sc.Kernel("max(x)"), "Pool"))
    layer, pool = imported(tmp_path / "layer.py"), imported(tmp_path / "pool.py")
    x = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(f"input has shape {[*shape]}; expected [N, 2, *image] of 4 axes")):
        layer.Layer(2, 4, 3)(x)
    if x.dim() in (2, 5):
        with pytest.raises(ValueError, match=re.escape("expected [N, C, *image] of 4 axes, or without N")):
            pool.Pool(3)(x)
    else:
        assert pool.Pool(3)(x).dim() == x.dim()
    with pytest.raises(ValueError, match=re.escape("out_channels (4) must be multiples of groups (3)")):
        layer.Layer(3, 4, 3, groups=3)


def test_a_standalone_layer_of_a_formula_that_reads_the_own_channel(tmp_path: Path) -> None:
    path = tmp_path / "attention.py"
    path.write_text(standalone(sc.zoo.local_attention, "Attention"))
    ours = sc.Conv2d(sc.zoo.local_attention, 4, 6, 3, padding=1, padding_mode="ignore")
    theirs = imported(path).Attention(4, 6, 3, padding=1, padding_mode="ignore")
    x, k, v = (torch.randn(2, channels, 5, 6) for channels in (4, 4, 6))
    torch.testing.assert_close(theirs(x, k, v), ours(x, k=k, v=v))


def test_a_standalone_file_imports_only_torch(tmp_path: Path) -> None:
    path = tmp_path / "layer.py"
    run("generate", "-sum(abs(x - w)) + b", "-o", str(path))
    program = (
        "import sys; sys.modules['symconv'] = sys.modules['sympy'] = sys.modules['jinja2'] = None\n"
        "import torch, layer\n"
        "model = layer.Layer(3, 4, 3, padding='same')\n"
        "y = model(torch.randn(1, 3, 8, 8)); y.sum().backward(); print(tuple(y.shape), model.weight.grad.shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("(1, 4, 8, 8)"), done.stderr
    assert "exists" in run("generate", "sum(w*x)", "-o", str(path), code=2)
    assert "wrote" in run("generate", "-sum(w*x)", f"--output={tmp_path / 'layer (2).py'}")
    assert "imports only torch" in run("generate", "sum(w*x)", "-o", str(path), "--force")
    assert run("generate", "sum(w*x)").startswith('"""sum(w*x)')


def test_what_cannot_be_written_is_refused() -> None:
    for mistake in (
        lambda: standalone(sc.Kernel("sum(w*x)"), "not a name"),
        lambda: standalone(sc.Kernel("sum(w*x*dz)"), rank=2),
        lambda: standalone(sc.Kernel("beta: const\nsum(beta*w*x)")),
        lambda: standalone(sc.Kernel("sum(w*x)", init=torch.nn.init.zeros_)),
        lambda: standalone(sc.Kernel("sum(w*x)", init="nothing")),
        *(functools.partial(standalone, sc.Kernel("sum(w*x)"), name) for name in ("Sum", "Tensor", "forward", "zip")),
    ):
        with pytest.raises(sc.ArgumentError):
            mistake()
