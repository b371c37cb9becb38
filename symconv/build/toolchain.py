"""The user's C++ compiler: found, tried out once, and put to work.

What it builds are shared objects with a plain C interface.  OpenMP and Sleef come from the copies that PyTorch has
loaded, so that there is one pool of threads: the compiler's own libgomp is never linked.  Instead an object names
`libtorch_cpu.so` as a library that it needs, and finds there, and in what that library needs, all that it calls.  No
symbol of PyTorch is made global for that, which would change what other extension modules find.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import logging
import os
import platform
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import BackendError, CacheError, CompilationError
from ..render import static_header
from .cache import Cache
from .key import OWN_SOURCE, content_key
from .lock import ForkSafeLock
from .run import RunError, progress, run

log = logging.getLogger("symconv")

TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
#: Without it GCC for x86 leaves the long chain of instructions of an exponential in one piece, and units wait for it.
SCHEDULING, NO_SCHEDULING = "-fschedule-insns", "-fno-schedule-insns"
FACTS, PRIVATE = "toolchain.json", "compiling-"


@dataclass(frozen=True)
class Toolchain:
    """A compiler that works here.

    Args:
        compiler: its path; more words may follow, as in a shell.
        version: the first line that it prints about itself.
        target: an identity of the instruction set.
        vector_bytes: the width of its vectors.
        openmp: whether code runs on the threads of PyTorch's OpenMP, or else on one.
        sleef: whether PyTorch exports Sleef for this width.
        flags: the options that every compilation gets.
    """

    compiler: str
    version: str
    target: str
    vector_bytes: int
    openmp: bool
    sleef: bool
    flags: tuple[str, ...]

    def fields(self) -> dict[str, str]:
        """What built code depends on, for its content key.  Where the compiler lies is not part of it."""
        names = ("version", "target", "vector_bytes", "sleef")
        return {"flags": shlex.join(self.flags), **{name: str(getattr(self, name)) for name in names}}

    @property
    def title(self) -> str:
        """The compiler's name and version, in short."""
        numbers = re.findall(r"\d+(?:\.\d+)+", self.version)
        [*_, program] = itertools.takewhile(lambda word: word[0] != "-", shlex.split(self.compiler))  # after ccache
        return " ".join([Path(program).name, *numbers[-1:]])

    def compile(
        self,
        source: Path,
        output: Path,
        options: Sequence[str] = (),
        include: Sequence[Path] = (),
        description: str = "",
    ) -> None:
        """Build the shared object `output`; it appears at once and whole.

        Args:
            source: a C++ file.
            output: where the shared object goes.
            options: of the compiler, besides `flags`.
            include: directories of headers.
            description: for those who wait.

        Raises:
            CompilationError: if the compiler refuses the source, does not end in time or is killed.
        """
        try:
            with progress(description or source.name, self.title):
                self.build(source, output, options, include)
        except RunError as failure:
            kept = keep(source)
            private = f"{os.sep}{PRIVATE}"  # what was there is gone
            command = [os.path.basename(word) if private in word else word for word in failure.command]
            command = [str(kept) if word == str(source) else word for word in command]
            raise CompilationError(failure.reason, command, failure.stderr, kept) from None

    def build(
        self,
        source: Path,
        output: Path,
        options: Sequence[str] = (),
        include: Sequence[Path] = (),
        limit: float = float("inf"),
    ) -> None:
        """As `compile`, for those who know what to do about a `RunError`; `limit` is in seconds."""
        compiler = shlex.split(self.compiler)
        linking = [flag for flag in self.flags if flag.startswith("-Wl,")]
        compiling = [flag for flag in self.flags if flag not in linking]
        with tempfile.TemporaryDirectory(prefix=PRIVATE, dir=output.parent) as name:
            tried = functools.partial(run, directory=Path(name), limit=limit)
            compiled, stub, linked = (os.path.join(name, each) for each in ("kernel.o", TORCH.name, "kernel.so"))
            headers = [f"-I{path}" for path in include]
            tried([*compiler, *compiling, *options, *headers, "-c", str(source), "-o", compiled])
            library: list[str] = []
            if self.openmp or self.sleef:  # an empty library of PyTorch's name: that is all the linker needs of it
                if self.compiler not in _EMPTY:
                    empty = ["-shared", "-nostdlib", f"-Wl,-soname,{TORCH.name}", "-x", "c++", os.devnull]
                    _EMPTY[self.compiler] = _written([*compiler, *empty, "-o", stub], tried).read_bytes()
                Path(stub).write_bytes(_EMPTY[self.compiler])
                library = ["-Wl,--no-as-needed", stub, "-Wl,--as-needed"]
            os.replace(_written([*compiler, "-shared", *linking, compiled, *library, "-o", linked], tried), output)


#: By compiler: each builds it once per process.
_EMPTY: dict[str, bytes] = {}


def _written(command: Sequence[str], tried: Callable[[Sequence[str]], str]) -> Path:
    """What a command that ends with its output has written."""
    tried(command)
    output = Path(command[-1])
    if not output.exists():
        raise RunError(f"{Path(command[0]).name} reports success but wrote nothing", True, command)
    return output


def load(path: Path) -> ctypes.CDLL:
    """Load a shared object; calls into it release the interpreter's lock.

    Raises:
        CacheError: if the system refuses.
    """
    try:
        return ctypes.CDLL(os.fspath(path))
    except OSError as error:
        forbidden = "failed to map" in str(error)
        hint = "; does its file system forbid execution? set SYMCONV_CACHE_DIR to another one" if forbidden else ""
        raise CacheError(f"{path} cannot be loaded: {error}{hint}") from error


def keep(source: Path) -> Path:
    """Where a source that does not compile was left: in the cache, or else in a private temporary directory."""
    with contextlib.suppress(OSError):
        try:
            return Cache().keep_failed(source.name, source.read_text(encoding="utf-8", errors="replace"))
        except CacheError:
            return Path(shutil.copy(source, tempfile.mkdtemp(prefix="symconv-failed-")))
    return source


# -- Finding one ------------------------------------------------------------------------------------------------------


def find_toolchain() -> Toolchain:
    """The first compiler that works: of `$SYMCONV_CXX`, if that is set, else of `$CXX`, c++, g++ and clang++.

    It is tried out once; the result is kept in the cache until a compiler, the processor or PyTorch changes.

    Raises:
        BackendError: if there is none; it says what is wrong with each.
    """
    with _lock.held():
        return _found()


def forget() -> None:
    """Look for a compiler anew when one is next needed."""
    _found.cache_clear()
    _EMPTY.clear()


_lock = ForkSafeLock()


@functools.cache
def _found() -> Toolchain:
    candidates, made = _candidates(), list[Toolchain]()

    def search(directory: Path) -> None:
        from .probe import first_that_works

        made.append(first_that_works(candidates, directory))

    def build(directory: Path) -> None:
        search(directory)
        (directory / FACTS).write_text(json.dumps(dataclasses.asdict(made[0])), encoding="utf-8")

    if not any(candidates.values()):  # before the cache has its say
        search(Path())
    identity = {name: [_identity(word) for word in command] for name, command in candidates.items()}
    fields = {
        "source": OWN_SOURCE,
        "threads": static_header("threads.hpp"),  # which is tried out
        "torch": f"{torch.__version__} {TORCH}",
        "processor": _processor(),
    }
    try:
        key = content_key({**fields, "compilers": json.dumps(identity)})
        facts = json.loads(Cache().get(key, build, "the C++ compiler", logging.DEBUG).read(FACTS))
        found = Toolchain(**{**facts, "flags": tuple(facts["flags"])})
    except CacheError as error:
        log.debug("the C++ compiler is tried out in each process: %s", error)
        if not made:
            try:
                with tempfile.TemporaryDirectory(prefix="symconv-") as name:
                    search(Path(name))
            except OSError as reason:
                raise BackendError(f"no C++ compiler can be tried out: {error}; {reason}") from reason
        found = made[0]
    log.debug("the C++ compiler: %s", found)
    if not found.openmp:
        log.warning("%s does not work with PyTorch's OpenMP; kernels run on one thread", found.title)
    return found


def _candidates() -> Mapping[str, list[str]]:
    """Commands, by what messages call them; empty where the program is not there."""
    if own := os.environ.get("SYMCONV_CXX"):
        names = {f"$SYMCONV_CXX ({own})": own}
    else:
        other = os.environ.get("CXX")
        names = {**({f"$CXX ({other})": other} if other else {}), "c++": "c++", "g++": "g++", "clang++": "clang++"}
    found = {}
    for label, name in names.items():
        words = [name]
        if not shutil.which(name):  # a path may have blanks, too
            with contextlib.suppress(ValueError):
                words = shlex.split(name)
        program = shutil.which(words[0]) if words else None
        found[label] = [os.path.abspath(program), *words[1:]] if program else []
    return found


def _identity(word: str) -> list[str | int]:
    """Of a program, where it is and when it was written; of an option, the option."""
    path = shutil.which(word)
    with contextlib.suppress(OSError):
        if path:
            status = os.stat(path)
            return [word, os.path.realpath(path), status.st_size, status.st_mtime_ns]
    return [word]


def _processor() -> str:
    """The model and the instruction sets of the processor."""
    lines = [platform.machine(), platform.system()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                break  # the others are alike
            if line.startswith(("model name", "flags", "Features", "CPU ", "isa")):
                lines.append(line)
    return "\n".join(lines)
