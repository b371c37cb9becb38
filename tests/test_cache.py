"""The cache of generated code, attacked: other users, dying processes, damage, races, full disks."""

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import symconv as sc
from symconv.backends import backends
from symconv.backends.torch import TorchBackend
from symconv.build import cache as cache_module
from symconv.build import key as key_module
from symconv.build.cache import MANIFEST, Cache, cache_directory
from symconv.build.key import content_key, generator_fields
from symconv.errors import BackendError, CacheError, SymconvWarning
from symconv.render import template_directory

KEY = content_key({"test": "a"})
OTHER = content_key({"test": "b"})
PACKAGE = Path(sc.__file__).parent
is_root = hasattr(os, "geteuid") and os.geteuid() == 0

#: Imports the cache alone, without torch and SymPy: a process starts in a fifth of a second instead of three.
CACHE_ALONE = f"""
import sys, types
package = types.ModuleType("symconv")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["symconv"] = package
import logging, os, time
from pathlib import Path
from symconv.build.cache import Cache
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
"""


@pytest.fixture(autouse=True)
def cache_root(tmp_path, monkeypatch):
    """The directory of the cache, which does not exist yet; no setting of the developer's reaches the tests."""
    for name in ("SYMCONV_LOCK_TIMEOUT", "SYMCONV_CACHE_SIZE", "SYMCONV_DISABLE_JIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SYMCONV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Builder:
    """Builds entries of `size` bytes and counts them."""

    def __init__(self, size=10):
        self.size, self.count = size, 0

    def __call__(self, directory):
        self.count += 1
        (directory / "kernel.py").write_text("x" * self.size)
        (directory / "facts.json").write_text("{}")


@contextlib.contextmanager
def process(script, *arguments, **environment):
    """A Python process at work outside the checkout; it is killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script, *map(str, arguments)],
        env=os.environ | environment,
        cwd=Path(sys.executable).anchor,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def output(script, *arguments, **environment):
    """What a process prints; it has to end well."""
    with process(script, *arguments, **environment) as running:
        text, _ = running.communicate(timeout=120)
    assert running.returncode == 0, text
    return text


numbers = itertools.count(2)


def assert_kernel_works(formula=None):
    """Forward and backward of a kernel that no backend has in memory, as in a new process."""
    backends.cache_clear()
    scale = next(numbers)
    x = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    w = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64, requires_grad=True)
    y = sc.conv2d(formula or f"{scale}*sum(w*x)", x, w, backend="torch")
    y.sum().backward()
    if formula is None:
        assert torch.equal(y, torch.full_like(y, 2.0 * scale))
        assert torch.equal(w.grad, torch.full_like(w, 4.0 * scale))


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


# -- The second process -----------------------------------------------------------------------------------------------

#: A layer, forward and backward.  With the argument "forbid", whatever derives, lowers or renders raises.
LAYER = """
import logging, sys
import symconv, symconv.backends.torch, symconv.derive, symconv.lower, symconv.render
import torch

if "forbid" in sys.argv:
    def forbid(module, name):
        original = getattr(module, name)
        def refuse(*args, **kwargs):
            raise AssertionError(f"{name} was called")
        for each in [each for key, each in sys.modules.items() if key.split(".")[0] == "symconv"]:
            for alias, value in list(vars(each).items()):
                if value is original:
                    setattr(each, alias, refuse)

    forbid(symconv.lower, "lower")
    forbid(symconv.render, "render")
    for name in ("Chain", "differentiate", "partials", "gradients", "tangent"):
        forbid(symconv.derive, name)

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
torch.manual_seed(0)
layer = symconv.Conv2d("prod(tan(x + w))", 2, 3, 2, backend="torch")
x = torch.rand(1, 2, 3, 3, requires_grad=True)
for _ in range(2):
    y = layer(x)
    y.square().sum().backward()
print([y.tolist(), x.grad.tolist(), layer.weight.grad.tolist()])
"""


def test_a_second_process_neither_derives_nor_renders(cache_root):
    first = output(LAYER, PYTHONHASHSEED="1").splitlines()
    second = output(LAYER, "forbid", PYTHONHASHSEED="2").splitlines()
    assert first[0].startswith("INFO symconv prod(tan(x + w)) (torch): built in ")
    assert second[0].startswith("INFO symconv prod(tan(x + w)) (torch): loaded from cache in ")
    assert len(first) == len(second) == 2, "one line per first use"
    assert first[1] == second[1], "the same values and gradients"
    assert len(Cache().entries()) == 1, "the same key in both processes"


def test_control_a_cold_process_derives():
    with process(LAYER, "forbid") as running:
        text, _ = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "lower was called" in text


# -- Keys -------------------------------------------------------------------------------------------------------------

fields = st.dictionaries(st.text("ab", max_size=3), st.text("ab", max_size=3), max_size=3)


@given(fields, fields)
def test_keys_are_equal_exactly_when_the_fields_are(one, two):
    assert (content_key(one) == content_key(two)) == (one == two)


def test_keys_do_not_depend_on_the_order_of_fields():
    assert content_key({"a": "1", "b": "2"}) == content_key({"b": "2", "a": "1"})


def test_lengths_keep_fields_apart():
    assert content_key({"a": "b", "c": "d"}) != content_key({"a": "bc", "": "d"})
    assert content_key({"ab": "cd"}) != content_key({"ab": "c", "d": ""})
    assert content_key({"a": "é"}) == content_key({"a": "é".encode()})


def test_a_field_cannot_pass_for_the_format(monkeypatch):
    key = content_key({"a": "1"})
    assert content_key({"a": "1", "format": "2"}) != key
    monkeypatch.setattr(key_module, "FORMAT", 2)
    assert content_key({"a": "1"}) != key


@pytest.mark.parametrize("value", [1, 1.0, None, True, ("a",), bytearray(b"a"), Path("a")])
def test_keys_refuse_what_has_more_than_one_spelling(value):
    with pytest.raises(TypeError, match=f"'size' is a {type(value).__name__}"):
        content_key({"size": value})


def test_formula_title_and_backend_are_in_the_key():
    class Renamed(TorchBackend):
        name = "renamed"

    keys = set()
    for backend, kernel in [
        (TorchBackend, sc.Kernel("sum(w*x)")),
        (TorchBackend, sc.Kernel("sum(w*x)", name="named")),
        (TorchBackend, sc.Kernel("sum(w + x)", name="named")),
        (Renamed, sc.Kernel("sum(w*x)")),
    ]:
        before = len(keys)
        backend().compile(kernel)
        keys = {entry.key for entry in Cache().entries()}
        assert len(keys) == before + 1, kernel
    TorchBackend().compile(sc.Kernel("sum(x*w)"))
    assert {entry.key for entry in Cache().entries()} == keys, "one kernel, one key"


def test_our_own_source_and_the_templates_are_in_the_key(tmp_path, monkeypatch):
    """A copy of the package, changed in one file at a time, gives another key each time."""
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "symconv", ignore=skip)
    shutil.copytree(template_directory(), tmp_path / "templates", ignore=skip, dirs_exist_ok=True)
    program = "from symconv.build.key import *; print(content_key(generator_fields()))"

    def key() -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    found = [key()]
    for changed in ("symconv/lower.py", "templates/torch/kernel.py.jinja", "templates/include/window.py"):
        with open(tmp_path / changed, "a") as file:
            file.write("\n")
        found.append(key())
    assert len(set(found)) == 4
    assert {"sympy", "jinja2", "torch", "source", "templates"} <= generator_fields().keys()


def test_an_upgrade_on_disk_does_not_change_the_key_of_the_code_that_runs(tmp_path):
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "symconv", ignore=skip)
    shutil.copytree(template_directory(), tmp_path / "templates", ignore=skip, dirs_exist_ok=True)
    program = """
import sys, symconv
from symconv.build.key import content_key, generator_fields
before = symconv.build.key.OWN_SOURCE
open(sys.argv[1], "a").write("\\n")
assert generator_fields()["source"] == before
"""
    subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path / "symconv" / "lower.py")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )


def test_our_own_source_is_read_once_per_process():
    assert generator_fields() is generator_fields()


# -- Owners and modes -------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0, 0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_nobody_else_can_write_or_enter_whatever_the_umask(tmp_path):
    cache, build = Cache(tmp_path / "new" / "parents" / "cache"), Builder()
    entry = cache.get(KEY, build, "a")
    for path in (cache.root, cache.root.parent, cache.root.parent.parent, entry.path, entry.path.parent):
        assert mode(path) == 0o700, path
    for path in cache.root.rglob("*"):
        assert not mode(path) & 0o022, path
    assert cache.get(KEY, build, "a").read("kernel.py")
    assert build.count == 1, "and what we wrote is what we accept"


def test_somebody_elses_directory_is_refused(cache_root, monkeypatch):
    build = Builder()
    Cache().get(KEY, build, "a")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for use in (lambda: Cache().get(KEY, build, "a"), Cache().check_owner, Cache().clear, lambda: Cache().prune(0)):
        with pytest.raises(CacheError, match=rf"{cache_root} belongs to user \d+, not to you .*SYMCONV_CACHE_DIR"):
            use()
    assert Cache().find(KEY) is None
    with pytest.warns(SymconvWarning, match="belongs to user .* generated anew in each process"):
        assert_kernel_works()
    monkeypatch.undo()
    assert [entry.key for entry in Cache(cache_root).entries()] == [KEY], "and left as it was"


@pytest.mark.skipif(not is_root, reason="only root can give files away")
@pytest.mark.parametrize("part", ["", "entries", "building", "locks"])
def test_a_part_that_was_given_away_is_refused(cache_root, part):
    Cache().get(KEY, Builder(), "a")
    os.chown(cache_root / part, 12345, -1)
    with pytest.raises(CacheError, match="belongs to user 12345"):
        Cache().get(KEY, Builder(), "a")


@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777])
@pytest.mark.parametrize("part", ["", "entries", "building"])
def test_a_directory_that_others_may_write_is_refused(cache_root, part, bits):
    Cache().get(KEY, Builder(), "a")
    (cache_root / part).chmod(bits)
    with pytest.raises(CacheError, match=r"can be written by others; run chmod go-w"):
        Cache().get(KEY, Builder(), "a")
    with pytest.warns(SymconvWarning, match="can be written by others"):
        assert_kernel_works()
    (cache_root / part).chmod(0o755)
    assert Cache().get(KEY, None, "a").key == KEY, "reading is no harm, and the remedy works"


@pytest.mark.skipif(not is_root, reason="only root can give files away")
@pytest.mark.parametrize("name", [".", MANIFEST, "kernel.py"])
def test_an_entry_of_somebody_else_is_not_loaded(name):
    build = Builder()
    entry = Cache().get(KEY, build, "a")
    os.chown(entry.path / name, 12345, -1)
    assert Cache().find(KEY) is None
    assert Cache().get(KEY, build, "a").read("kernel.py")
    assert build.count == 2


@pytest.mark.parametrize("name", [".", MANIFEST, "kernel.py"])
def test_an_entry_that_others_may_write_is_not_loaded(name):
    entry = Cache().get(KEY, Builder(), "a")
    (entry.path / name).chmod(0o666 if name != "." else 0o777)
    assert Cache().find(KEY) is None


def test_a_link_of_our_own_in_place_of_the_root_is_followed(cache_root, tmp_path):
    (tmp_path / "scratch").mkdir(mode=0o700)
    cache_root.symlink_to(tmp_path / "scratch")
    Cache().get(KEY, Builder(), "a")
    assert (tmp_path / "scratch" / "entries" / KEY).is_dir()


@pytest.mark.skipif(not is_root, reason="only root can give files away")
def test_a_link_of_somebody_else_in_place_of_the_root_is_refused(cache_root, tmp_path):
    (tmp_path / "ours").mkdir(mode=0o700)
    cache_root.symlink_to(tmp_path / "ours")
    os.chown(cache_root, 12345, -1, follow_symlinks=False)
    with pytest.raises(CacheError, match="symbolic link of user 12345"):
        Cache().get(KEY, Builder(), "a")
    with pytest.warns(SymconvWarning, match="symbolic link"):
        assert_kernel_works()
    assert list((tmp_path / "ours").iterdir()) == []


@pytest.mark.parametrize("part", ["entries", "building", "locks"])
def test_a_link_in_place_of_a_part_is_refused(cache_root, tmp_path, part):
    Cache().get(KEY, Builder(), "a")
    shutil.move(cache_root / part, tmp_path / "moved")
    (cache_root / part).symlink_to(tmp_path / "moved")
    with pytest.raises(CacheError, match="is a symbolic link; remove it"):
        Cache().get(OTHER, Builder(), "b")


@pytest.mark.parametrize(
    "make", [Path.touch, lambda cache_root: cache_root.symlink_to("nowhere")], ids=["file", "dangling link"]
)
def test_a_root_that_is_no_directory_is_refused(cache_root, make):
    make(cache_root)
    with pytest.raises(CacheError, match=r"cannot be used.* set SYMCONV_CACHE_DIR"):
        Cache().get(KEY, Builder(), "a")
    with pytest.warns(SymconvWarning, match="cannot be used"):
        assert_kernel_works()


# -- Damage -----------------------------------------------------------------------------------------------------------


def manifest_of(path, change):
    """Change a manifest, by a function of its content."""
    content = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(change(content) or content))


def outside(path, name):
    """List a file outside of the entry in its manifest, with the right digest."""
    secret = path.parent.parent / "outside"
    secret.write_text("x" * 10)
    secret.chmod(0o600)
    manifest_of(path, lambda content: content["files"].update({name: content["files"]["kernel.py"]}))


def replaced(path, make):
    shutil.rmtree(path)
    make(path)


def linked(path):
    os.rename(path, path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")


def file_linked(path):
    (path / "kernel.py").rename(path.parent.parent / "moved")
    (path / "kernel.py").symlink_to(path.parent.parent / "moved")


def piped(path):
    (path / "kernel.py").unlink()
    os.mkfifo(path / "kernel.py", 0o600)


def foreign(path):
    shutil.rmtree(path)
    shutil.copytree(Cache().get(OTHER, Builder(11), "b").path, path)


DAMAGE = {
    "truncated": lambda path: os.truncate(path / "kernel.py", 5),
    "emptied": lambda path: os.truncate(path / "kernel.py", 0),
    "bit flipped": lambda path: (path / "kernel.py").write_bytes(b"y" + b"x" * 9),
    "file missing": lambda path: (path / "kernel.py").unlink(),
    "file a pipe": piped,
    "file a link": file_linked,
    "file a directory": lambda path: ((path / "kernel.py").unlink(), (path / "kernel.py").mkdir()),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "manifest emptied": lambda path: os.truncate(path / MANIFEST, 0),
    "manifest truncated": lambda path: os.truncate(path / MANIFEST, 20),
    "manifest of bytes": lambda path: (path / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "manifest too deep": lambda path: (path / MANIFEST).write_text("[" * 200_000),
    "manifest a list": lambda path: manifest_of(path, lambda content: [content]),
    "manifest a number": lambda path: manifest_of(path, lambda content: 1),
    "no key": lambda path: manifest_of(path, lambda content: {"files": content["files"]}),
    "no description": lambda path: manifest_of(path, lambda content: content.pop("description") and None),
    "files a list": lambda path: manifest_of(path, lambda content: content.update(files=["kernel.py"])),
    "digest a list": lambda path: manifest_of(path, lambda content: content["files"].update({"kernel.py": []})),
    "foreign key": foreign,
    "relative path": lambda path: outside(path, "../../outside"),
    "absolute path": lambda path: outside(path, str(path.parent.parent / "outside")),
    "path of nul": lambda path: outside(path, "kernel.py\0"),
    "path of dots": lambda path: outside(path, ".."),
    "path of nothing": lambda path: outside(path, ""),
    "half-written": lambda path: replaced(path, lambda path: (path.mkdir(), (path / "kernel.py").write_text("x"))),
    "an empty directory": lambda path: replaced(path, Path.mkdir),
    "a regular file": lambda path: replaced(path, Path.touch),
    "a link to a good entry": linked,
    "a dangling link": lambda path: replaced(path, lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_built_once_more(cache_root, damage):
    cache, build = Cache(), Builder()
    entry = cache.get(KEY, build, "a")
    DAMAGE[damage](entry.path)
    assert cache.find(KEY) is None
    again = cache.get(KEY, build, "a")
    assert (again.read("kernel.py"), build.count) == ("x" * 10, 2)
    assert again.path == entry.path
    assert again.path.is_dir()
    assert not again.path.is_symlink()
    assert cache.get(KEY, build, "a").read("kernel.py") == "x" * 10
    assert build.count == 2
    assert list((cache_root / "building").iterdir()) == []


def test_a_file_outside_the_entry_is_not_even_opened(monkeypatch):
    cache = Cache()
    outside(cache.get(KEY, Builder(), "a").path, "../../outside")
    opened = []
    read = cache_module._read_own
    monkeypatch.setattr(cache_module, "_read_own", lambda path: opened.append(path) or read(path))
    assert cache.find(KEY) is None
    assert {path.name for path in opened} == {MANIFEST, "kernel.py", "facts.json"}


def test_a_kernel_whose_entry_is_damaged_works():
    assert_kernel_works("sum(w*x)")
    [entry] = Cache().entries()
    source = (entry.path / "kernel.py").read_bytes()
    (entry.path / "kernel.py").write_bytes(source[: len(source) // 2])
    assert_kernel_works("sum(w*x)")
    assert (entry.path / "kernel.py").read_bytes() == source


def test_an_entry_without_the_file_that_is_asked_for():
    entry = Cache().get(KEY, Builder(), "a")
    with pytest.raises(CacheError, match=r"holds no kernel.so; run `symconv cache clear`"):
        entry.read("kernel.so")
    assert_kernel_works("sum(w*x)")
    entry = Cache().entries()[0]
    manifest_of(entry.path, lambda content: content.update(files={}))
    with pytest.warns(SymconvWarning, match=r"holds no kernel\.py"):
        assert_kernel_works("sum(w*x)")


@pytest.mark.parametrize("damage", ["truncated", "manifest missing", "an empty directory", "manifest too deep"])
def test_damaged_entries_are_counted_listed_and_removed(damage):
    cache = Cache()
    DAMAGE[damage](cache.get(KEY, Builder(), "a").path)
    [entry] = cache.entries()
    assert entry.key == KEY
    assert entry.description == ("a" if damage == "truncated" else "damaged")
    assert len(cache.prune(-1)) == 1
    assert cache.entries() == []


# -- Builds that fail -------------------------------------------------------------------------------------------------


def test_a_build_that_raises_leaves_nothing(cache_root):
    def build(directory):
        (directory / "kernel.py").write_text("half")
        raise ZeroDivisionError("in the middle")

    with pytest.raises(ZeroDivisionError):
        Cache().get(KEY, build, "a")
    assert list((cache_root / "building").iterdir()) == []
    assert Cache().entries() == []
    assert Cache().get(KEY, Builder(), "a").key == KEY


def test_a_write_that_silently_falls_short_is_noticed(monkeypatch):
    write = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda path, text, **how: write(path, text[:-1] if path.name == MANIFEST else text)
    )
    with pytest.raises(CacheError, match="does not read back; is the disk full"):
        Cache().get(KEY, Builder(), "a")
    assert Cache().entries() == []


def assert_survives_a_full_disk(cache_root):
    with pytest.raises(
        CacheError, match=rf"{cache_root} cannot be used: .*No space left on device.* SYMCONV_CACHE_DIR"
    ):
        Cache().get(KEY, Builder(40_000), "a")
    assert Cache().entries() == []
    assert list((cache_root / "building").iterdir()) == []
    with pytest.warns(SymconvWarning, match="No space left on device"):
        assert_kernel_works()


def test_a_full_disk(monkeypatch, cache_root):
    def write_text(path, text, **how):
        path.write_bytes(text.encode()[:4])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        assert_survives_a_full_disk(cache_root)
    assert Cache().get(KEY, Builder(), "a").key == KEY


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """A file system of 64 KiB, and a function that mounts it again with other options."""

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(["size=64k", "mode=0700", *options]), "tmpfs", tmp_path / "m"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")

    if not is_root or not shutil.which("mount"):
        pytest.skip("only root can mount a tmpfs")
    (tmp_path / "m").mkdir()
    mount()
    monkeypatch.setenv("SYMCONV_CACHE_DIR", str(tmp_path / "m" / "cache"))
    yield mount
    subprocess.run(["umount", tmp_path / "m"], check=True)


@pytest.mark.usefixtures("mounted")
def test_a_disk_that_is_full_indeed(tmp_path):
    filler = tmp_path / "m" / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        file.write(b"x" * 52_000)
    assert_survives_a_full_disk(cache_directory())
    filler.unlink()
    assert_kernel_works()
    assert len(Cache().entries()) == 1


def test_a_full_disk_can_be_cleared(mounted, tmp_path):
    Cache().get(KEY, Builder(20_000), "a")
    with contextlib.suppress(OSError), open(tmp_path / "m" / "filler", "wb", buffering=0) as file:
        while file.write(b"x" * 4096) == 4096:
            pass
    assert Cache().clear() == 1
    assert Cache().entries() == []


def test_a_read_only_disk_serves_hits(mounted):
    assert_kernel_works("sum(w*x)")
    mounted("remount", "ro")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_kernel_works("sum(w*x)")
    with pytest.warns(SymconvWarning, match=r"cannot be used: .*Read-only file system"):
        assert_kernel_works()
    with pytest.raises(CacheError, match="Read-only file system"):
        Cache().clear()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_directory_that_cannot_be_written(monkeypatch, number):
    def refuse(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(CacheError, match=f"cannot be used: .*{os.strerror(number)}"):
        Cache().get(KEY, Builder(), "a")
    with pytest.warns(SymconvWarning, match=os.strerror(number)):
        assert_kernel_works()


# -- Processes and threads --------------------------------------------------------------------------------------------

RACE = """
def build(directory):
    with open(sys.argv[2], "a") as file:
        file.write("built\\n")
    (directory / "kernel.py").write_text("x" * 10)
    time.sleep(0.1)

print("ready", flush=True)
sys.stdin.readline()
print(Cache().get(sys.argv[1], build, "a").read("kernel.py"))
"""


def test_processes_that_race_build_once(cache_root, tmp_path):
    with contextlib.ExitStack() as stack:
        racers = [stack.enter_context(process(CACHE_ALONE + RACE, KEY, tmp_path / "log")) for _ in range(6)]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        printed = [racer.communicate(timeout=60)[0].splitlines() for racer in racers]
        assert [racer.returncode for racer in racers] == [0] * 6, printed
    assert [lines[1] for lines in printed] == ["x" * 10] * 6
    said = Counter("built" if "built in" in lines[0] else "loaded from cache in" in lines[0] for lines in printed)
    assert said == {"built": 1, True: 5}, "who waited for another process's build says that it loaded"
    assert (tmp_path / "log").read_text() == "built\n"
    assert [entry.key for entry in Cache().entries()] == [KEY]
    assert list((cache_root / "building").iterdir()) == []


def test_threads_that_race_build_once(cache_root):
    build, found, start = Builder(), [], threading.Barrier(8)

    def slowly(directory):
        build(directory)
        time.sleep(0.05)

    def get():
        start.wait()
        found.append(Cache().get(KEY, slowly, "a").read("kernel.py"))

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, build.count) == (["x" * 10] * 8, 1)
    assert list((cache_root / "building").iterdir()) == []


def test_threads_that_share_a_new_kernel():
    backends.cache_clear()
    x, found = torch.ones(1, 1, 2, 2), []

    def pool():
        found.append(sc.pool2d("sum(x)*3.5", x, 2, backend="torch").item())

    threads = [threading.Thread(target=pool) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [14.0] * 4
    assert len(Cache().entries()) == 1


#: Holds the lock and sleeps in the middle of a build.
STUCK = """
def build(directory):
    (directory / "kernel.py").write_text("half")
    print("building", flush=True)
    time.sleep(60)

Cache().get(sys.argv[1], build, "a")
"""


def test_a_process_killed_while_it_builds_is_in_nobodys_way(cache_root):
    build = Builder()
    for _ in range(2):
        with process(CACHE_ALONE + STUCK, KEY) as stuck:
            assert stuck.stdout.readline() == "building\n"
            stuck.send_signal(signal.SIGKILL)
            stuck.wait()
    start = time.monotonic()
    assert Cache().get(KEY, build, "a").read("kernel.py") == "x" * 10
    assert time.monotonic() - start < 10, "no wait for the dead"
    left = list((cache_root / "building").iterdir())
    assert len(left) == 2
    Cache().prune(1e9)
    assert len(list((cache_root / "building").iterdir())) == 2, "young: it may be another process's build"
    for path in left:
        os.utime(path, (time.time() - 2 * cache_module.ABANDONED,) * 2)
    Cache().prune(1e9)
    assert list((cache_root / "building").iterdir()) == []
    assert [entry.key for entry in Cache().entries()] == [KEY]


def test_the_lock_times_out_and_says_which_it_is(cache_root, monkeypatch):
    monkeypatch.setenv("SYMCONV_LOCK_TIMEOUT", "0.1")
    with process(CACHE_ALONE + STUCK, KEY) as stuck:
        assert stuck.stdout.readline() == "building\n"
        with pytest.raises(CacheError, match=r"waited 0\.1 s for the lock .*SYMCONV_LOCK_TIMEOUT") as caught:
            Cache().get(KEY, Builder(), "a")
        [lock] = (cache_root / "locks").iterdir()
        assert str(lock) in str(caught.value)
        assert Cache().get(OTHER, Builder(), "b").key == OTHER, "other kernels do not wait"
    assert Cache().get(KEY, Builder(), "a").key == KEY


def test_a_kernel_works_while_another_process_hangs(cache_root, monkeypatch):
    kernel = sc.Kernel("sum(w*x)*2.25")
    backends.cache_clear()
    kernel.source()
    [entry] = Cache().entries()
    Cache().clear()
    monkeypatch.setenv("SYMCONV_LOCK_TIMEOUT", "0")
    with process(CACHE_ALONE + STUCK, entry.key) as stuck:
        assert stuck.stdout.readline() == "building\n"
        with pytest.warns(SymconvWarning, match="for the lock"):
            assert_kernel_works(kernel)


def test_lock_files_do_not_pile_up(cache_root):
    cache = Cache()
    cache._make_directories()
    for number in range(400):
        with cache._lock(content_key({"number": str(number)})):
            pass
    assert len(list((cache_root / "locks").iterdir())) <= 256


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.skipif(
    tuple(map(int, version("filelock").split(".")[:2])) < (3, 32), reason="older filelocks leave the lock to children"
)
def test_a_child_forked_in_the_middle_of_a_build_does_not_keep_the_lock():
    script = """
import threading
started = threading.Event()

def build(directory):
    started.set()
    time.sleep(60)

threading.Thread(target=lambda: Cache().get(sys.argv[1], build, "a"), daemon=True).start()
started.wait()
child = os.fork()
if child == 0:
    Cache().get(sys.argv[2], lambda directory: None, "b")
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""
    with process(CACHE_ALONE + script, KEY, OTHER) as parent:
        assert "built in" in parent.stdout.readline()
        child = int(parent.stdout.readline())
        try:
            parent.kill()
            parent.wait()
            start = time.monotonic()
            assert Cache().get(KEY, Builder(), "a").key == KEY
            assert time.monotonic() - start < 10
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks(monkeypatch):
    class NoLock:
        def __init__(self, *args, **kwargs):
            pass

        def acquire(self):
            raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(cache_module.filelock, "FileLock", NoLock)
    with pytest.raises(CacheError, match="has no locks; set SYMCONV_CACHE_DIR to a local directory"):
        Cache().get(KEY, Builder(), "a")


def test_where_locks_do_not_reach_the_first_builder_wins(cache_root, tmp_path, monkeypatch):
    """Two machines on a network file system whose locks are local: both build, and both have an entry."""
    elsewhere, build, remove = Cache(tmp_path / "elsewhere").get(KEY, Builder(), "a"), Builder(), Cache._remove

    def overtaken(cache, path):
        remove(cache, path)
        shutil.copytree(elsewhere.path, path)

    monkeypatch.setattr(Cache, "_remove", overtaken)
    assert Cache().get(KEY, build, "a").read("kernel.py") == "x" * 10
    monkeypatch.undo()
    assert Cache(cache_root).get(KEY, build, "a").read("kernel.py") == "x" * 10
    assert build.count == 1
    assert list((cache_root / "building").iterdir()) == []


# -- Size and age -----------------------------------------------------------------------------------------------------


def filled(*names, size=1000):
    """A cache of entries of about 1000 bytes, the first one used last."""
    cache = Cache()
    for age, name in enumerate(names):
        entry = cache.get(content_key({"name": name}), Builder(size), name)
        os.utime(entry.path / MANIFEST, (1e9 - age, 1e9 - age))
    return cache


def names_in(cache):
    return [entry.description for entry in cache.entries()]


def test_entries_are_listed_with_the_most_recently_used_first():
    cache = filled("a", "b", "c")
    assert names_in(cache) == ["a", "b", "c"]
    first = cache.entries()[0]
    assert first.size == sum(path.stat().st_size for path in first.path.iterdir())
    assert first.used == 1e9
    with pytest.raises(CacheError, match="holds no"):
        first.read("kernel.py")


def test_the_least_recently_used_go_first():
    cache = filled("a", "b", "c")
    removed = cache.prune(3000)
    assert [entry.description for entry in removed] == ["c"]
    assert not removed[0].path.exists()
    assert names_in(cache) == ["a", "b"]
    assert cache.prune(3000) == []
    assert len(cache.prune(0)) == 2


def test_a_hit_makes_an_entry_young_again():
    cache = filled("a", "b", "c")
    assert abs(cache.get(content_key({"name": "c"}), None, "c").used - time.time()) < 60
    cache.prune(3000)
    assert names_in(cache) == ["c", "a"]


def test_a_build_prunes_and_keeps_what_it_built(cache_root, monkeypatch):
    filled("a", "b", "c")
    monkeypatch.setenv("SYMCONV_CACHE_SIZE", "3000")
    cache = filled("d")
    assert sorted(names_in(cache)) == ["a", "d"]
    monkeypatch.setenv("SYMCONV_CACHE_SIZE", "0")
    cache = filled("large")
    assert names_in(cache) == ["large"], "more than the limit, but just built"
    assert list((cache_root / "building").iterdir()) == []


def test_what_was_built_is_kept_even_when_its_clock_is_behind(monkeypatch):
    cache = filled("a", "b")
    for entry in cache.entries():
        os.utime(entry.path / MANIFEST, (4e9, 4e9))
    monkeypatch.setenv("SYMCONV_CACHE_SIZE", "2500")
    assert "c" in names_in(filled("c"))


def test_a_failure_to_prune_does_not_lose_the_build(monkeypatch):
    def refuse(*args, **kwargs):
        raise CacheError("no")

    monkeypatch.setattr(Cache, "prune", refuse)
    assert Cache().get(KEY, Builder(), "a").read("kernel.py")


def counted(cache):
    """The size of the cache as it is written down."""
    return sum(int(line[1:]) for line in (cache.root / "size").read_text().splitlines())


def measured(cache):
    return sum(entry.size for entry in cache.entries())


def forbid_measuring(patch):
    def refuse(*args, **kwargs):
        raise AssertionError("measured")

    patch.setattr(Cache, "_measured", refuse)


def test_a_build_does_not_measure_all_entries(monkeypatch):
    cache = filled("a")
    with monkeypatch.context() as patch:
        forbid_measuring(patch)
        filled("b", "c")
    assert counted(cache) == measured(cache) > 3000
    cache.prune(2500)
    assert counted(cache) == measured(cache) < 2500
    monkeypatch.setattr(cache_module, "MEASURE_AFTER", 2)
    with monkeypatch.context() as patch:
        forbid_measuring(patch)
        filled("d", "e")
        with pytest.raises(AssertionError, match="measured"):
            filled("f")
    assert (cache.root / "size").read_bytes().count(b"+") == 3
    filled("g")
    assert (cache.root / "size").read_bytes().count(b"+") == 0
    assert counted(cache) == measured(cache)
    cache.clear()
    filled("h")
    assert counted(cache) == measured(cache)


def test_a_build_beyond_the_limit_makes_room_for_more(monkeypatch):
    monkeypatch.setenv("SYMCONV_CACHE_SIZE", "20000")
    cache = filled(*map(str, range(18)))
    assert 15_000 < measured(cache) < 18_000
    assert counted(cache) == measured(cache)
    with monkeypatch.context() as patch:
        forbid_measuring(patch)
        filled("next")


SIZE_DAMAGE = {
    "missing": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "its first line lost": lambda path: path.write_bytes(path.read_bytes().split(b"\n", 1)[1]),
    "cut within a line": lambda path: os.truncate(path, path.stat().st_size - 3),
    "garbage": lambda path: path.write_bytes(b"\xff\x00"),
    "a number": lambda path: path.write_bytes(b"5"),
    "negative": lambda path: path.write_bytes(b"=-0000000000000000005\n"),
    "a link": lambda path: (path.rename(path.with_name("moved")), path.symlink_to("moved")),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    "written by others": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("damage", SIZE_DAMAGE)
def test_a_damaged_count_is_measured_anew(monkeypatch, damage):
    cache = filled("a", "b")
    SIZE_DAMAGE[damage](cache.root / "size")
    monkeypatch.setenv("SYMCONV_CACHE_SIZE", "2600")
    filled("c")
    assert measured(cache) < 2600
    if damage != "a directory":
        assert counted(cache) == measured(cache)
        assert mode(cache.root / "size") == 0o600
    assert list((cache.root / "building").iterdir()) == []


def test_threads_that_build_at_a_time_are_all_counted():
    cache = filled("a")
    threads = [threading.Thread(target=filled, args=(f"{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(cache) == measured(cache)


def test_an_entry_removed_after_it_was_found_can_be_read():
    for entry in (Cache().get(KEY, Builder(), "a"), Cache().get(KEY, None, "a")):
        shutil.move(entry.path, entry.path.with_name("away"))
        assert entry.read("kernel.py") == "x" * 10
        shutil.move(entry.path.with_name("away"), entry.path)


def test_what_was_checked_is_what_is_loaded():
    Cache().get(KEY, Builder(), "a")
    entry = Cache().find(KEY)
    (entry.path / "kernel.py").write_text("import os")
    assert entry.read("kernel.py") == "x" * 10


def test_an_entry_removed_while_it_is_looked_at_is_built(monkeypatch):
    cache, build = Cache(), Builder()
    path = cache.get(KEY, build, "a").path
    loads = json.loads

    def loads_and_loses(text):
        monkeypatch.setattr(json, "loads", loads)
        cache._remove(path)
        return loads(text)

    monkeypatch.setattr(json, "loads", loads_and_loses)
    assert cache.get(KEY, build, "a").read("kernel.py") == "x" * 10
    assert build.count == 2


def test_readers_builders_and_cleaners_do_not_disturb_each_other(cache_root):
    failures, stop = [], threading.Event()

    def repeat(action):
        try:
            while not stop.is_set():
                action()
        except BaseException as error:
            failures.append(error)
            raise

    def read(name):
        assert Cache().get(content_key({"name": name}), Builder(), name).read("kernel.py") == "x" * 10

    actions = [lambda: read("a"), lambda: read("b"), lambda: read("a"), Cache().clear, lambda: Cache().prune(100)]
    actions += [Cache().entries]
    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list((cache_root / "building").iterdir()) == []


def test_a_missing_directory_is_an_empty_cache(cache_root):
    cache = Cache()
    assert (cache.entries(), cache.prune(0), cache.clear(), cache.find(KEY)) == ([], [], 0, None)
    cache.check_owner()
    assert not cache_root.exists(), "looking creates nothing"


def test_clear_removes_everything_whole_or_not(cache_root):
    cache = filled("a", "b")
    (cache_root / "entries" / "junk").write_text("")
    (cache_root / "entries" / "link").symlink_to(cache_root)
    (cache_root / "entries" / "empty").mkdir()
    shutil.rmtree(cache_root / "building")
    assert cache.clear() == 5
    assert list((cache_root / "entries").iterdir()) == []
    assert list((cache_root / "building").iterdir()) == []
    assert cache.get(KEY, Builder(), "a").key == KEY


# -- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SYMCONV_CACHE_SIZE", "SYMCONV_LOCK_TIMEOUT"])
@pytest.mark.parametrize("value", ["much", "512M", "-1", "nan", " "])
def test_a_setting_that_is_no_number_is_named_when_it_is_used(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    build = Builder()
    with pytest.raises(CacheError, match=f"{name} must be a number from 0 on, not '{value}'"):
        Cache().get(KEY, build, "a")
    assert build.count == 0
    with pytest.warns(SymconvWarning, match=f"{name} must be"):
        assert_kernel_works()
    monkeypatch.setenv(name, "")
    assert Cache().get(KEY, build, "a").key == KEY, "empty is unset"


def test_settings_are_not_read_at_import():
    output(CACHE_ALONE, SYMCONV_CACHE_SIZE="much", SYMCONV_LOCK_TIMEOUT="long", SYMCONV_CACHE_DIR="/dev/null/none")


def test_the_directory_can_start_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SYMCONV_CACHE_DIR", "~/mine")
    assert cache_directory() == tmp_path / "mine"
    monkeypatch.delenv("SYMCONV_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory().name == "symconv"
    assert tmp_path in cache_directory().parents


def test_production_refuses_to_build_and_serves_hits(cache_root, monkeypatch):
    build = Builder()
    monkeypatch.setenv("SYMCONV_DISABLE_JIT", "1")
    with pytest.raises(BackendError, match=f"a kernel is not in the cache {cache_root} and SYMCONV_DISABLE_JIT"):
        Cache().get(KEY, build, "a kernel")
    assert build.count == 0
    assert not cache_root.exists()
    with pytest.raises(BackendError, match="SYMCONV_DISABLE_JIT"):
        assert_kernel_works("sum(w*x)")
    for off in ("0", ""):
        monkeypatch.setenv("SYMCONV_DISABLE_JIT", off)
        assert_kernel_works("sum(w*x)")
    monkeypatch.setenv("SYMCONV_DISABLE_JIT", "1")
    assert_kernel_works("sum(w*x)")


def test_production_does_not_take_an_unusable_cache_as_leave_to_build(cache_root, monkeypatch):
    cache_root.mkdir()
    cache_root.chmod(0o777)
    monkeypatch.setenv("SYMCONV_DISABLE_JIT", "1")
    with pytest.raises(BackendError, match=r"written by others.* SYMCONV_DISABLE_JIT forbids to build"):
        assert_kernel_works()


# -- What it says, and what it costs ----------------------------------------------------------------------------------


def test_one_line_per_first_use(caplog):
    caplog.set_level(logging.INFO)
    for expected in (r"sum(w*x) (torch): built in ", "sum(w*x) (torch): loaded from cache in "):
        caplog.clear()
        assert_kernel_works("sum(w*x)")
        sc.conv2d("sum(w*x)", torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), backend="torch")
        [record] = caplog.records
        assert (record.name, record.levelname) == ("symconv", "INFO")
        assert record.getMessage().startswith(expected)
        assert record.getMessage().endswith((" s", " ms"))


def test_a_hit_neither_locks_nor_lists_nor_writes(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("not on a hit")

    Cache().get(KEY, Builder(), "a")
    for owner, name in [(Cache, "prune"), (Cache, "_lock"), (Cache, "_make_directories"), (os, "listdir")]:
        monkeypatch.setattr(owner, name, refuse)
    for name in ("scandir", "mkdir", "replace", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    assert Cache().get(KEY, refuse, "a").read("kernel.py") == "x" * 10


def test_a_hit_is_fast():
    Cache().get(KEY, Builder(16_000), "a")
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        Cache().get(KEY, None, "a")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 5e-3, "0.1 ms on the machine where this was written"
