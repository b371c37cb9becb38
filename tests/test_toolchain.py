"""The C++ compiler, with compilers that misbehave in every way, and with the real one."""

import contextlib
import ctypes
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import symconv as sc
from symconv.build import run as run_module
from symconv.build import toolchain as toolchain_module
from symconv.build.cache import KEPT_FAILURES, Cache
from symconv.build.probe import OPENMP
from symconv.build.toolchain import Toolchain, find_toolchain, forget, load
from symconv.errors import BackendError, CacheError, CompilationError
from symconv.render import template_directory

REAL = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
SLEEP = shutil.which("sleep")
pytestmark = pytest.mark.skipif(REAL is None, reason="needs a C++ compiler")
#: Imports parts of symconv without SymPy: a process starts sooner.
ALONE = f"""
import sys, types
package = types.ModuleType("symconv")
package.__path__ = [{str(Path(sc.__file__).parent)!r}]
sys.modules["symconv"] = package
"""
is_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(autouse=True)
def programs(tmp_path, monkeypatch):
    """A private PATH without any program, and a cache that does not exist yet."""
    for name in ("SYMCONV_CXX", "CXX", "SYMCONV_COMPILE_TIMEOUT", "SYMCONV_DISABLE_JIT", "SYMCONV_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("SYMCONV_CACHE_DIR", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "bin"
    forget()


PATH = os.environ["PATH"]


class Fake:
    """A compiler: a shell script that writes down its arguments, does something of its own, then runs the real one."""

    def __init__(self, path, body=""):
        self.path, self.log = path, path.with_name(f"{path.name}.log")
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.log}\n{body}\nPATH={PATH}\nexec {REAL} "$@"\n')
        path.chmod(0o700)

    @property
    def calls(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def fake(programs):
    """Make a compiler on the private PATH."""
    return lambda body="", name="c++": Fake(programs / name, body)


def refusing(*flags):
    """Refuse some flags."""
    cases = "|".join(f"*' {flag} '*" for flag in flags)
    return f"""case " $* " in {cases}) echo "error: unrecognized option" >&2; exit 1;; esac"""


#: Whatever is linked is no shared object.
GARBAGE = 'for last; do :; done; case " $* " in *" -shared "*) echo garbage > "$last"; exit 0;; esac'


def sleeping(tmp_path, seconds=60):
    """Sleep in a child, whose number is left in the file pid."""
    return f"{SLEEP} {seconds} & echo $! > {tmp_path / 'pid'}; wait"


def assert_gone(tmp_path):
    number = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{number}/stat").read_text().split()[2] == "Z":
                return  # ended; nobody has asked how
        except OSError:
            return
        time.sleep(0.01)
    pytest.fail("the compiler's child lives on")


def assert_works(toolchain, tmp_path):
    """Build, load and run."""
    source, output = tmp_path / "answer.cpp", tmp_path / "answer.so"
    source.write_text('extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n')
    toolchain.compile(source, output, ["-DANSWER=42"])
    assert load(output)["answer"]() == 42
    assert not list(tmp_path.glob("compiling-*"))


# -- Finding one ------------------------------------------------------------------------------------------------------


def test_without_any_compiler():
    with pytest.raises(
        BackendError, match=r"c\+\+: not found; g\+\+: not found; clang\+\+: not found; install g\+\+ "
    ) as e:
        find_toolchain()
    assert "set SYMCONV_CXX" in str(e.value)
    assert "the torch backend serves" in str(e.value)


BROKEN = {
    "it fails": ("echo warning >&2; echo error: broken >&2; exit 3", r"failed with exit status 3: error: broken"),
    "it fails in silence": ("exit 3", r"failed with exit status 3: it says nothing"),
    "it only compiles": (refusing("-shared"), r"failed with exit status 1: error: unrecognized option"),
    "it has no headers": (
        'case "$*" in *probe.cpp*) echo "fatal error: cmath" >&2; exit 1; esac',
        "fatal error: cmath",
    ),
    "it is killed": ("kill -9 $$", r"ended by a signal \(Killed\)"),
    "its part is killed": ("echo 'c++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1", "memory"),
    "it writes nothing": ("exit 0", "reports success but wrote nothing"),
    "it writes garbage": (GARBAGE, r"does not load: .*probe\.so"),
    "the disk is full": ("echo 'as: x.o: No space left on device' >&2; exit 1", "no space left on the disk of"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_compiler_is_named_with_what_is_wrong(fake, how):
    body, said = BROKEN[how]
    fake(body)
    with pytest.raises(BackendError, match=rf"c\+\+: .*{said}.*; g\+\+: not found"):
        find_toolchain()


def test_a_compiler_that_cannot_be_started(programs):
    (programs / "c++").write_text("#!/nowhere\n")
    (programs / "c++").chmod(0o700)
    with pytest.raises(BackendError, match=r"cannot be started: No such file"):
        find_toolchain()


def test_a_compiler_that_hangs(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("SYMCONV_COMPILE_TIMEOUT", "0.3")
    fake(sleeping(tmp_path))
    start = time.monotonic()
    with pytest.raises(BackendError, match=r"c\+\+ did not end within 0\.3 s; set SYMCONV_COMPILE_TIMEOUT"):
        find_toolchain()
    assert time.monotonic() - start < 5
    assert_gone(tmp_path)


def test_the_first_that_works_is_taken(fake, tmp_path):
    fake("exit 1")
    clang = fake(name="clang++")
    toolchain = find_toolchain()
    assert toolchain.compiler == str(clang.path)
    assert_works(toolchain, tmp_path)


def test_cxx_comes_first_and_may_be_wrong(fake, monkeypatch):
    fake()
    other = fake(name="other")
    monkeypatch.setenv("CXX", "other")
    assert find_toolchain().compiler == str(other.path)
    forget()
    monkeypatch.setenv("CXX", "nowhere")
    assert Path(find_toolchain().compiler).name == "c++"


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "not found"), ("broken", "failed with exit status 1"), ("'", "not found"), (" ", "not found")],
)
def test_a_broken_compiler_of_the_users_choice_is_an_error(fake, monkeypatch, name, said):
    sound = fake()
    fake("exit 1", name="broken")
    monkeypatch.setenv("SYMCONV_CXX", name)
    with pytest.raises(BackendError, match=rf"\$SYMCONV_CXX \({name}\): .*{said}.*; correct or unset SYMCONV_CXX"):
        find_toolchain()
    assert sound.calls == []


def test_the_users_choice_may_have_blanks_or_more_words(fake, tmp_path, monkeypatch):
    wrapper = Fake(tmp_path / "a wrapper", f'PATH={PATH}\nexec "$@"')
    compiler = fake(name="mine++")
    monkeypatch.setenv("SYMCONV_CXX", f"'{wrapper.path}' {compiler.path} -DMORE")
    toolchain = find_toolchain()
    assert toolchain.title.startswith("mine++ ")
    assert all(call.startswith("-DMORE ") for call in compiler.calls)
    assert_works(toolchain, tmp_path)
    forget()
    shutil.copy(compiler.path, tmp_path / "mine too")
    monkeypatch.setenv("SYMCONV_CXX", str(tmp_path / "mine too"))
    assert_works(find_toolchain(), tmp_path)


def test_what_a_compiler_refuses_is_left_out(fake, tmp_path):
    fake(refusing("-march=native", "-mcpu=native", "-fno-gnu-unique", "-Wl,-Bsymbolic"))
    toolchain = find_toolchain()
    assert not {"-march=native", "-mcpu=native", "-fno-gnu-unique", "-Wl,-Bsymbolic"} & set(toolchain.flags)
    assert {OPENMP, "-fno-plt", "-ffp-contract=fast", "-fno-trapping-math"} <= set(toolchain.flags)
    assert toolchain.openmp
    assert_works(toolchain, tmp_path)
    native = Toolchain(**{**vars(toolchain), "compiler": REAL, "flags": (*toolchain.flags, "-march=native")})
    assert native.fields()["flags"] != toolchain.fields()["flags"]


def test_arm_calls_the_native_instruction_set_by_another_name(fake):
    compiler = fake(refusing("-march=native"))
    with contextlib.suppress(BackendError):
        assert "-mcpu=native" in find_toolchain().flags
    assert any("-mcpu=native" in call for call in compiler.calls)


#: As where PyTorch has an OpenMP that is not GCC's.
OTHER_OPENMP = r"""
case " $* " in *" -DSYMCONV_OPENMP "*)
    echo 'extern "C" void GOMP_none(); __attribute__((constructor)) static void f() { GOMP_none(); }' > "$0.hpp"
    set -- "$@" -include "$0.hpp";;
esac
"""


@pytest.mark.parametrize("body", [refusing(OPENMP), OTHER_OPENMP], ids=["refused", "another one"])
def test_without_openmp_there_is_one_thread(fake, tmp_path, caplog, body):
    fake(body)
    with caplog.at_level(logging.INFO, "symconv"):
        toolchain = find_toolchain()
        find_toolchain()
    assert (toolchain.openmp, OPENMP in toolchain.flags) == (False, False)
    [record] = caplog.records
    assert "kernels run on one thread" in record.getMessage()
    assert_works(toolchain, tmp_path)


@pytest.mark.parametrize("version", ["", r"\001\377 \033[31m", r"one\ntwo"])
def test_whatever_it_says_about_itself(fake, version):
    fake(f"case $1 in --version) printf '{version}'; exit 0;; esac")
    toolchain = find_toolchain()
    assert toolchain.version.isprintable()
    assert "two" not in toolchain.version
    assert toolchain.title == "c++"


def test_the_instruction_set_decides_on_vectors(fake):
    def macros(*names):
        lines = "\\n".join(f"#define {name} 1" for name in names)
        return f"""case " $* " in *" -dM "*) printf '{lines}\\n'; exit 0;; esac"""

    wide = [f"__AVX512{each}__" for each in ("F", "DQ", "BW", "VL")]
    targets = set()
    for expected, names in [
        (64, [*wide, "__AVX2__", "__FMA__"]),
        (32, [*wide[1:], "__AVX2__", "__FMA__"]),
        (16, ["__AVX2__"]),
        (16, ["__ARM_NEON"]),
    ]:
        fake(macros(*names))
        forget()
        toolchain = find_toolchain()
        assert toolchain.vector_bytes == expected
        targets.add(toolchain.target)
    assert len(targets) == 4


def test_what_is_part_of_the_key():
    one = Toolchain("a", "v1", "t1", 16, True, False, ("-f",))
    assert one.fields() == replace(one, compiler="b").fields()
    for change in ({"version": "v2"}, {"target": "t2"}, {"vector_bytes": 32}, {"flags": ("-g",)}, {"sleef": True}):
        assert one.fields() != replace(one, **change).fields()
    assert all(isinstance(value, str) for value in one.fields().values())


# -- Kept on disk -----------------------------------------------------------------------------------------------------


def test_a_second_process_does_not_run_the_compiler(fake):
    compiler = fake()
    first, calls = find_toolchain(), len(compiler.calls)
    assert calls > 0
    assert find_toolchain() is first
    seconds = []
    for _ in range(5):
        forget()
        start = time.perf_counter()
        assert find_toolchain() == first
        seconds.append(time.perf_counter() - start)
    assert len(compiler.calls) == calls
    assert min(seconds) < 3e-3


def test_a_compiler_that_changed_is_tried_again(fake):
    compiler = fake()
    find_toolchain()
    calls = len(compiler.calls)
    os.utime(compiler.path, (1e9, 1e9))
    forget()
    find_toolchain()
    assert len(compiler.calls) == 2 * calls
    compiler.path.write_text(compiler.path.read_text() + "# longer\n")
    os.utime(compiler.path, (1e9, 1e9))
    forget()
    find_toolchain()
    assert len(compiler.calls) == 3 * calls


@pytest.mark.parametrize("what", ["_processor", "TORCH", "OWN_SOURCE"])
def test_what_else_makes_it_try_again(fake, monkeypatch, what):
    compiler = fake()
    find_toolchain()
    calls = len(compiler.calls)
    if what == "TORCH":
        monkeypatch.setattr(torch, "__version__", "99")
    else:
        monkeypatch.setattr(toolchain_module, what, (lambda: "another") if what == "_processor" else "another")
    forget()
    find_toolchain()
    assert len(compiler.calls) == 2 * calls


def test_a_compiler_that_vanished_is_not_trusted(fake):
    compiler = fake()
    find_toolchain()
    forget()
    compiler.path.unlink()
    with pytest.raises(BackendError, match=r"c\+\+: not found"):
        find_toolchain()


def test_a_compiler_that_works_again_is_not_held_to_its_past(fake):
    fake("if test -e $0.broken; then exit 1; fi").path.with_name("c++.broken").touch()
    with pytest.raises(BackendError, match="exit status 1"):
        find_toolchain()
    assert Cache().entries() == []
    shutil.rmtree(Cache().root / "locks")
    (Path(os.environ["PATH"]) / "c++.broken").unlink()
    assert find_toolchain().openmp


@pytest.mark.parametrize("content", [b"", b"{}", b'{"compiler": 1}'])
def test_a_damaged_result_is_found_again(fake, content):
    compiler = fake()
    first, calls = find_toolchain(), len(compiler.calls)
    [entry] = Cache().entries()
    (entry.path / "toolchain.json").write_bytes(content)
    forget()
    assert find_toolchain() == first
    assert len(compiler.calls) == 2 * calls


def test_the_result_is_all_that_is_kept(fake, tmp_path):
    fake()
    find_toolchain()
    [entry] = Cache().entries()
    assert {path.name for path in entry.path.iterdir()} == {"manifest.json", "toolchain.json"}
    assert json.loads((entry.path / "toolchain.json").read_text())["vector_bytes"] in (16, 32, 64)
    assert list((tmp_path / "cache" / "building").iterdir()) == []


def test_without_a_cache_it_is_tried_in_each_process(fake, tmp_path):
    (tmp_path / "cache").touch()
    compiler = fake()
    first, calls = find_toolchain(), len(compiler.calls)
    forget()
    assert find_toolchain() == first
    assert len(compiler.calls) == 2 * calls
    assert_works(first, tmp_path)


def test_where_nothing_can_be_written_the_error_is_ours(fake, tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    fake()
    monkeypatch.setattr(toolchain_module.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(BackendError, match=r"can be tried out: .*cache.* cannot be used.*nowhere"):
        find_toolchain()


@contextlib.contextmanager
def mounted(directory, options):
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], env={"PATH": PATH})
    if done.returncode:
        pytest.skip("cannot mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], env={"PATH": PATH}, check=True)


@pytest.mark.skipif(not is_root, reason="only root can mount a tmpfs")
def test_a_cache_that_forbids_execution(fake, tmp_path):
    fake()
    with (
        mounted(tmp_path / "cache", "size=8m,mode=0700,noexec"),
        pytest.raises(BackendError, match=r"does its file system forbid execution\? set SYMCONV_CACHE_DIR"),
    ):
        find_toolchain()


@pytest.mark.skipif(not is_root, reason="only root can mount a tmpfs")
def test_a_cache_that_is_read_only(fake, tmp_path):
    compiler = fake()
    with mounted(tmp_path / "cache", "size=8m,mode=0700"):
        first, calls = find_toolchain(), len(compiler.calls)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "cache"], env={"PATH": PATH}, check=True)
        forget()
        assert find_toolchain() == first
        assert len(compiler.calls) == calls, "a hit needs no writing"
        os.utime(compiler.path, (1e9, 1e9))
        forget()
        assert find_toolchain() == first


def test_production_does_not_try_compilers(fake, monkeypatch):
    compiler = fake()
    monkeypatch.setenv("SYMCONV_DISABLE_JIT", "1")
    with pytest.raises(BackendError, match="SYMCONV_DISABLE_JIT forbids to build"):
        find_toolchain()
    assert compiler.calls == []
    monkeypatch.setenv("SYMCONV_DISABLE_JIT", "0")
    first = find_toolchain()
    monkeypatch.setenv("SYMCONV_DISABLE_JIT", "1")
    forget()
    assert find_toolchain() == first


@pytest.mark.parametrize("value", ["-1", "soon", "nan"])
def test_a_time_limit_that_is_no_number(fake, monkeypatch, value):
    fake()
    monkeypatch.setenv("SYMCONV_COMPILE_TIMEOUT", value)
    with pytest.raises(BackendError, match=f"SYMCONV_COMPILE_TIMEOUT must be a number from 0 on, not '{value}'"):
        find_toolchain()


@pytest.mark.parametrize("value", ["inf", "1e12"])
def test_no_limit_in_time(tmp_path, monkeypatch, value):
    monkeypatch.setenv("SYMCONV_COMPILE_TIMEOUT", value)
    assert run_module.run([sys.executable, "-c", "print('done')"], tmp_path) == "done\n"


def test_threads_try_it_once(fake):
    compiler, found, start = fake(), [], threading.Barrier(8)

    def find():
        start.wait()
        found.append(find_toolchain())

    threads = [threading.Thread(target=find) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(each is found[0] for each in found)
    assert sum(call == "--version" for call in compiler.calls) == 1


@pytest.mark.slow
def test_processes_that_race_try_it_once(fake, tmp_path):
    compiler = fake(f"{SLEEP} 0.05")
    script = ALONE + "from symconv.build.toolchain import find_toolchain; print(find_toolchain().fields())"
    racers = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ})
        for _ in range(2)
    ]
    printed = {racer.communicate(timeout=60)[0] for racer in racers}
    assert len(printed) == 1
    assert "-O3" in printed.pop()
    assert sum(call == "--version" for call in compiler.calls) == 1


# -- Compiling --------------------------------------------------------------------------------------------------------


@pytest.fixture
def toolchain(programs, request, monkeypatch):
    """A real compiler: the first one, unless a test asks for others."""
    os.environ["PATH"] = PATH  # monkeypatch puts back what was there
    if name := getattr(request, "param", None):
        if not shutil.which(name):
            pytest.skip(f"needs {name}")
        monkeypatch.setenv("SYMCONV_CXX", name)
    return find_toolchain()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / "kernel.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def plain(compiler, **changes):
    """A toolchain of a compiler that nobody tried."""
    return replace(Toolchain(str(compiler.path), "1.2.3", "t", 16, False, False, ("-O1", "-fPIC")), **changes)


def test_a_source_that_does_not_compile(toolchain, source, tmp_path, monkeypatch):
    source.write_text("\n".join(f"int wrong{number} = nonsense;" for number in range(40)) + "\n#if FLAG\n#endif\n")
    with pytest.raises(CompilationError) as e:
        toolchain.compile(source, source.with_name("kernel.so"), ["-DFLAG=1"], [tmp_path / "include dir"])
    error, message = e.value, str(e.value)
    assert isinstance(error, BackendError)
    assert error.source.parent == tmp_path / "cache" / "failed"
    assert error.source.read_text() == source.read_text()
    assert error.source.stat().st_mode & 0o777 == 0o600
    assert error.source.parent.stat().st_mode & 0o777 == 0o700
    assert "failed with exit status 1: " in message
    assert "error" in message.splitlines()[0]
    assert "wrong39" in message, "the last lines"
    assert "wrong1 " not in message, "not all of them"
    assert "wrong1 " in error.stderr
    assert f"The source is {error.source}" in message
    assert "-DFLAG=1" in message
    assert f"'-I{tmp_path}/include dir'" in message, "for a shell"
    assert "symconv doctor" in message
    assert [path.name for path in source.parent.iterdir()] == ["kernel.cpp"]
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.command, copied.stderr, copied.source) == (
        message,
        error.command,
        error.stderr,
        error.source,
    )
    source.unlink()
    again = subprocess.run(
        error.command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "LC_ALL": "C"}
    )
    assert again.returncode == 1, "the command can be repeated"
    assert "wrong39" in again.stderr
    error.source.write_text("int right;")
    subprocess.run(error.command, check=True, cwd=tmp_path)


def test_messages_are_in_english(fake, source):
    compiler = fake('test "$LC_ALL" = C || exit 3')
    plain(compiler).compile(source, source.with_name("kernel.so"))


FAILING = {
    "hangs": (f"{SLEEP} 60", "did not end within 0.3 s; set SYMCONV_COMPILE_TIMEOUT to wait longer"),
    "killed": ("kill -9 $$", r"ended by a signal \(Killed\); is there too little memory"),
    "shell": ("exit 137", r"ended by a signal \(Killed\)"),
    "interrupted": ("kill -2 $$", r"ended by a signal \(Interrupt\)"),
    "strange": ("exit 250", r"ended by a signal \(122\)"),
    "full": ("echo 'ld: final link failed: No space left on device' >&2; exit 1", "no space left on the disk of"),
    "nothing": ("exit 0", "reports success but wrote nothing"),
}


@pytest.mark.parametrize("how", FAILING)
def test_a_compiler_that_fails(fake, source, monkeypatch, request, how):
    monkeypatch.setenv("SYMCONV_COMPILE_TIMEOUT", "0.3" if how == "hangs" else "10")
    body, said = FAILING[how]
    # A shell that starts tests in the background lets them ignore interrupts, and a compiler would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(CompilationError, match=said) as e:
        plain(fake(body)).compile(source, source.with_name("kernel.so"))
    assert e.value.source.read_text() == source.read_text()
    assert [path.name for path in source.parent.iterdir()] == ["kernel.cpp"]


def test_a_compiler_that_vanished(source, tmp_path):
    gone = Toolchain(str(tmp_path / "gone"), "", "", 16, False, False, ())
    with pytest.raises(CompilationError, match=r"gone cannot be started: No such file"):
        gone.compile(source, source.with_name("kernel.so"))


def test_the_latest_failures_are_kept_and_cleared(fake, source, tmp_path):
    compiler = plain(fake("exit 1"))
    for number in range(KEPT_FAILURES + 3):
        source.write_text(f"// {number}")
        with pytest.raises(CompilationError):
            compiler.compile(source, source.with_name("kernel.so"))
        os.utime(next(path for path in (tmp_path / "cache" / "failed").iterdir() if path.read_text() == f"// {number}"),
                 (1e9 + number, 1e9 + number))  # fmt: skip
    left = {path.read_text() for path in (tmp_path / "cache" / "failed").iterdir()}
    assert len(left) == KEPT_FAILURES
    assert f"// {KEPT_FAILURES + 2}" in left
    assert "// 0" not in left
    Cache().clear()
    assert list((tmp_path / "cache" / "failed").iterdir()) == []


def test_without_a_cache_the_source_is_left_elsewhere(fake, source, tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(toolchain_module.tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(CompilationError) as e:
        plain(fake("exit 1")).compile(source, source.with_name("kernel.so"))
    assert e.value.source.is_relative_to(tmp_path / "temporary")
    assert e.value.source.parent.stat().st_mode & 0o777 == 0o700
    assert e.value.source.read_text() == source.read_text()
    monkeypatch.setattr(toolchain_module.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(CompilationError) as e:
        plain(fake("exit 1")).compile(source, source.with_name("kernel.so"))
    assert e.value.source == source


def test_a_directory_of_failures_that_others_may_write_is_refused(tmp_path):
    Cache().keep_failed("a.cpp", "")
    (tmp_path / "cache" / "failed").chmod(0o777)
    with pytest.raises(CacheError, match="written by others"):
        Cache().keep_failed("b.cpp", "")


def test_those_who_wait_are_told_what_for(fake, source, monkeypatch, caplog, capsys):
    monkeypatch.setattr(run_module, "PATIENCE", 0.05)
    job = (source, source.with_name("kernel.so"), (), (), "prod(tan(x + w)) (forward)")
    compiler = plain(fake(f"{SLEEP} 0.1"))
    with caplog.at_level(logging.INFO, "symconv"):
        compiler.compile(*job)
    first, last = (record.getMessage() for record in caplog.records)
    assert first == "compiling prod(tan(x + w)) (forward) with c++ 1.2.3 ..."
    assert last.startswith("prod(tan(x + w)) (forward): compiled in 0.")
    assert capsys.readouterr().err == ""
    caplog.clear()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    compiler.compile(*job)
    assert caplog.records == []
    assert capsys.readouterr().err == "symconv: compiling prod(tan(x + w)) (forward) with c++ 1.2.3 ...\n"


def test_who_does_not_wait_is_told_nothing(fake, source, monkeypatch, caplog):
    monkeypatch.setattr(run_module, "PATIENCE", 30)
    with caplog.at_level(logging.INFO, "symconv"):
        plain(fake()).compile(source, source.with_name("kernel.so"))
    assert caplog.records == []


# -- Loading ----------------------------------------------------------------------------------------------------------

#: Each thread writes down the system's number for it; Sleef is called where it is said to be there.
THREADS = """
#include <unistd.h>
#include <sys/syscall.h>
#include "threads.hpp"
typedef double vec __attribute__((vector_size(SYMCONV_VECTOR_BYTES)));
#ifdef SYMCONV_SLEEF
#if SYMCONV_VECTOR_BYTES == 64
#define EXP Sleef_expd8_u10avx512f
#else
#define EXP Sleef_expd4_u10avx2
#endif
extern "C" vec EXP(vec);
#endif
extern "C" __attribute__((visibility("default"))) double threads(int count, long* numbers)
{
    symconv::in_parallel(count, [&](int64_t thread, int64_t) {
        numbers[thread] = syscall(SYS_gettid);
        symconv::barrier();
    });
    vec value = vec{} + 1;
#ifdef SYMCONV_SLEEF
    value = EXP(value);
#endif
    return value[0];
}
"""

USE = f"""{ALONE}
import ctypes, json, os, sys
from pathlib import Path
import torch
from symconv.build.toolchain import find_toolchain, load

def numbers(path, count):
    function = load(path)["threads"]
    function.restype = ctypes.c_double
    found = (ctypes.c_long * 8)()
    value = function(count, found)
    return value, [each for each in found if each]

def tasks():
    return sorted(map(int, os.listdir("/proc/self/task")))
"""


@pytest.fixture
def threads_library(toolchain, source):
    if not toolchain.openmp or not sys.platform.startswith("linux"):
        pytest.skip("needs OpenMP on Linux")
    source.write_text(THREADS)
    options = [f"-DSYMCONV_VECTOR_BYTES={toolchain.vector_bytes}", *["-DSYMCONV_SLEEF"] * toolchain.sleef]
    toolchain.compile(source, source.with_name("threads.so"), options, [template_directory() / "include"])
    return source.with_name("threads.so")


def output_of(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", USE + script, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("toolchain", ["g++", "clang++"], indirect=True)
def test_there_is_one_pool_of_threads(threads_library, toolchain):
    found = output_of(
        """
torch.set_num_threads(2)
torch.ones(1_000_000).exp_()  # PyTorch starts its pool
before = tasks()
value, ran = numbers(Path(sys.argv[1]), 2)
loaded = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(json.dumps([value, ran, before, tasks(), [each for each in loaded if "omp" in Path(each).name]]))
""",
        threads_library,
    )
    value, ran, before, after, runtimes = found
    assert value == pytest.approx(2.718281828459045 if toolchain.sleef else 1.0, rel=1e-15)
    assert len(set(ran)) == 2
    assert before == after, "no thread but those that PyTorch had started"
    assert set(ran) <= set(before)
    assert len(runtimes) == 1, "one OpenMP runtime"
    assert "torch" in runtimes[0]


def test_nothing_of_pytorch_becomes_global(threads_library):
    [hidden] = output_of(
        """
numbers(Path(sys.argv[1]), 1)
print(json.dumps([not hasattr(ctypes.CDLL(None), "Sleef_expd4_u10avx2")]))
""",
        threads_library,
    )
    assert hidden


def test_what_is_needed_is_named(threads_library):
    needed = subprocess.run(["readelf", "-d", threads_library], capture_output=True, text=True).stdout
    if not needed:
        pytest.skip("no readelf")
    assert "[libtorch_cpu.so]" in needed
    assert "gomp" not in needed


def test_a_forked_child_loads_and_runs(threads_library):
    [status, value] = output_of(
        """
import shutil, threading
from symconv.build import toolchain
second = shutil.copy(sys.argv[1], sys.argv[1] + ".second.so")
numbers(Path(sys.argv[1]), 1)
held, enough = threading.Event(), threading.Event()

def hold():
    with toolchain._lock.held():
        held.set()
        enough.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
end, start = os.pipe()
child = os.fork()
if child == 0:
    toolchain.forget()
    find_toolchain()
    os.write(start, json.dumps(numbers(Path(sys.argv[1]), 1)[0] + numbers(Path(second), 1)[0]).encode())
    os._exit(7)
enough.set()
holder.join()
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps([status, json.loads(os.read(end, 100))]))
""",
        threads_library,
    )
    assert status == 7
    assert value > 0


def test_loading_what_is_no_library(tmp_path):
    (tmp_path / "a.so").write_text("garbage")
    for name in ("a.so", "b.so"):
        with pytest.raises(CacheError, match=rf"{name} cannot be loaded: "):
            load(tmp_path / name)


def test_an_entry_removed_after_it_was_loaded_does_no_harm(threads_library):
    entry, other = (
        Cache().get(digit * 64, lambda directory: shutil.copy(threads_library, directory / "kernel.so"), digit)
        for digit in "01"
    )
    function = load(entry.path_of("kernel.so"))["threads"]
    function.restype = ctypes.c_double
    Cache().clear()
    assert not entry.path_of("kernel.so").exists()
    assert function(1, (ctypes.c_long * 8)()) >= 1
    with pytest.raises(CacheError, match="cannot be loaded"):
        load(other.path_of("kernel.so"))
    with pytest.raises(CacheError, match=r"holds no other\.so"):
        entry.path_of("other.so")
