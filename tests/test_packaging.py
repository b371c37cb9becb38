"""What is shipped: wheel, bare checkout and editable install find their templates, and importing does nothing."""

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import filelock
import pytest

import symconv
from symconv.render import template_directory

CHECKOUT = Path(__file__).resolve().parent.parent

#: A kernel forward and backward, and where the code and the templates of it are.
RUN = """
import json, torch, symconv
from symconv.render import template_directory, _environment

x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64, requires_grad=True)
w = torch.full((1, 1, 2, 2), 2.0, dtype=torch.float64, requires_grad=True)
y = symconv.conv2d("sum(w*x**2)", x, w)
y.backward()
used = _environment().get_template("torch/kernel.py.jinja").filename
print(json.dumps({
    "package": symconv.__file__, "version": symconv.__version__, "templates": str(template_directory()), "used": used,
    "y": y.item(), "x": x.grad.flatten().tolist(), "w": w.grad.flatten().tolist(),
}))
"""


def python(script, directory, path=None, **environment):
    """What a new process prints that sees the packages of this one, and `path` before them; it works elsewhere."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("SYMCONV_")}
    settings |= {"SYMCONV_CACHE_DIR": str(directory / "cache")} | environment
    if path is not None:
        settings["PYTHONPATH"] = os.pathsep.join([str(path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=directory, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_runs(directory, path):
    """A kernel runs from a package that is installed under `path`; what it used to do so."""
    said = json.loads(python(RUN, directory, path))
    assert (said["y"], said["x"], said["w"]) == (60.0, [4.0, 8.0, 12.0, 16.0], [1.0, 4.0, 9.0, 16.0])
    assert said["version"] == symconv.__version__
    assert Path(said["package"]) == path / "symconv" / "__init__.py"
    assert Path(said["used"]) == Path(said["templates"]) / "torch" / "kernel.py.jinja"
    assert (directory / "cache" / "entries").is_dir(), "it was rendered there, not found"
    return said


def copy_checkout(directory):
    """What is tracked, without what was built beside it before."""
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("symconv", "templates", "tests"):
        shutil.copytree(CHECKOUT / name, directory / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, directory)


@pytest.fixture(scope="session")
def built(tmp_path_factory, worker_id):
    """A directory with an sdist and the wheel built from it, made once however many workers run the tests."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools")
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    with filelock.FileLock(shared / "built.lock"):
        if not (shared / "dist").is_dir():
            (shared / "source").mkdir()
            copy_checkout(shared / "source")
            done = subprocess.run(
                [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", shared / "unfinished", "source"],
                cwd=shared,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            (shared / "unfinished").rename(shared / "dist")
    return shared / "dist"


@pytest.fixture(scope="session")
def wheel(built):
    [path] = built.glob("*.whl")
    return path


def contents(directory, under):
    """The files of a directory by their names in the package."""
    return {
        f"{under}/{path.relative_to(directory).as_posix()}": path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_package_and_its_templates_and_nothing_else(wheel):
    source = wheel.parent.parent / "source"
    expected = contents(source / "symconv", "symconv") | contents(source / "templates", "symconv/templates")
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert found.keys() == expected.keys()
    assert found == expected
    assert {
        "symconv/py.typed",
        "symconv/templates/include/window.py",
        "symconv/templates/torch/kernel.py.jinja",
        "symconv/build/cache.py",
    } <= found.keys()


def test_the_metadata_of_wheel_and_sdist(built, wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        [commands] = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        [license] = [name for name in archive.namelist() if name.endswith("LICENSE")]
        texts = [archive.read(name).decode()]
        assert "symconv = symconv.cli:main" in archive.read(commands).decode()
        assert archive.read(license) == (CHECKOUT / "LICENSE").read_bytes()
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
        root = f"symconv-{symconv.__version__}"
        texts.append(archive.extractfile(f"{root}/PKG-INFO").read().decode())
    assert f"{root}/templates/include/window.py" in names
    assert wheel.name == f"symconv-{symconv.__version__}-py3-none-any.whl"
    for text in texts:
        metadata = email.message_from_string(text)
        assert (metadata["Name"], metadata["Version"]) == ("symconv", symconv.__version__)
        assert metadata["License-Expression"] == "Apache-2.0"
        required = {requirement.split(">")[0] for requirement in metadata.get_all("Requires-Dist")}
        assert {"torch", "sympy", "jinja2", "filelock", "platformdirs"} <= required


def test_a_kernel_runs_from_the_installed_wheel(wheel, tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, wheel]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
    if "No module named pip" in done.stderr:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    else:
        assert done.returncode == 0, done.stderr
    said = assert_runs(tmp_path, target)
    assert Path(said["templates"]) == target / "symconv" / "templates", "inside the package"


def test_a_kernel_runs_from_a_bare_checkout(tmp_path):
    (tmp_path / "checkout").mkdir()
    copy_checkout(tmp_path / "checkout")
    said = assert_runs(tmp_path, tmp_path / "checkout")
    assert Path(said["templates"]) == tmp_path / "checkout" / "templates", "beside the package"


def test_a_kernel_runs_from_the_install_under_test(tmp_path):
    said = json.loads(python(RUN, tmp_path))
    assert said["package"] == symconv.__file__
    assert said["templates"] == str(template_directory())
    assert said["used"].startswith(said["templates"])
    assert said["y"] == 60.0


def test_without_templates_the_error_is_ours(tmp_path):
    shutil.copytree(CHECKOUT / "symconv", tmp_path / "symconv", ignore=shutil.ignore_patterns("__pycache__"))
    script = """
import sys, types
package = types.ModuleType("symconv")
package.__path__ = [sys.path[0] + "/symconv"]
sys.modules["symconv"] = package  # the renderer alone, without torch
from symconv.render import render
try:
    render("torch/kernel.py.jinja")
except package.errors.SymconvError as error:
    print(type(error).__name__, error)
"""
    assert "InternalError no templates beside or inside" in python(script, tmp_path, tmp_path)


#: Imports symconv and tells which programs were started and which files were opened to be written.
IMPORT = """
import sys
done = []

def audit(event, args):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "os.rename"):
        done.append([event, str(args[0]) if args else ""])
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        done.append([event, str(args[0])])

import torch
sys.addaudithook(audit)
sys.dont_write_bytecode = True
import symconv
loaded = [name for name in ("torch.utils.cpp_extension", "symconv.demo", "matplotlib") if name in sys.modules]
import json
print(json.dumps({"done": done, "loaded": loaded}))
"""


def test_importing_needs_no_compiler_and_touches_nothing(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    said = json.loads(python(IMPORT, tmp_path, path=CHECKOUT, PATH="", HOME=str(home), CXX="", CC=""))
    assert said == {"done": [], "loaded": []}
    assert not (tmp_path / "cache").exists()
    assert list(home.rglob("*")) == []
