"""Runs of a compiler: with a limit in time, without leftovers, and with a word to those who wait."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import BackendError
from .environment import setting

log = logging.getLogger("symconv")

#: Seconds for one run, unless `$SYMCONV_COMPILE_TIMEOUT` says otherwise.
COMPILE_TIMEOUT = 120.0
#: Seconds, about three weeks: the system counts milliseconds in an int.
LONGEST_WAIT = 2e6
#: Seconds after which those who wait are told what for.
PATIENCE = 1.0


class RunError(Exception):
    """A run that failed.

    Args:
        reason: one line.
        refused: whether the program said no to what it was given, and might say yes to something else.
        command: what was run.
        stderr: all that it said.
    """

    def __init__(self, reason: str, refused: bool = False, command: Sequence[str] = (), stderr: str = "") -> None:
        self.reason, self.refused, self.command, self.stderr = reason, refused, tuple(command), stderr
        super().__init__(reason)


def run(command: Sequence[str], directory: Path, limit: float = float("inf")) -> str:
    """What a program prints to its standard output.

    Args:
        command: the program and its arguments.
        directory: for its temporary files.
        limit: seconds, if that is less than the user's limit.

    Raises:
        RunError: if the program cannot be started, fails, is killed or does not end in time.
        BackendError: if the user's limit is no number from 0 on.
    """
    timeout = min(setting("SYMCONV_COMPILE_TIMEOUT", COMPILE_TIMEOUT, BackendError), limit)
    name = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", "TMPDIR": str(directory)},
            start_new_session=True,  # a compiler has children of its own, who must end with it
        )
    except OSError as error:
        raise RunError(f"{command[0]} cannot be started: {error.strerror}", command=command) from error
    with process:
        try:
            output, errors = process.communicate(timeout=min(timeout, LONGEST_WAIT))
        except subprocess.TimeoutExpired:
            _end(process)
            remedy = "set SYMCONV_COMPILE_TIMEOUT to wait longer"
            raise RunError(f"{name} did not end within {timeout:g} s; {remedy}", command=command) from None
        except BaseException:  # also Ctrl-C, of which the compiler does not know
            _end(process)
            raise
    if process.returncode == 0:
        return output.decode(errors="replace")
    stderr = errors.decode(errors="replace")
    raise RunError(*_reason(name, process.returncode, stderr, directory), command, stderr)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _reason(name: str, code: int, stderr: str, directory: Path) -> tuple[str, bool]:
    """Why a run failed, and whether the program refused what it was given."""
    if "No space left on device" in stderr:
        return f"{name} failed: no space left on the disk of {directory.parent}", False
    if code < 0 or code > 128 or re.search(r"signal terminated|due to signal|: Killed", stderr):
        number = -code if code < 0 else code - 128 if code > 128 else signal.SIGKILL
        which = signal.strsignal(number) if number < signal.NSIG else None
        return f"{name} was ended by a signal ({which or number}); is there too little memory?", False
    lines = stderr.splitlines()
    said = [line for line in lines if "error" in line] or lines or ["it says nothing"]
    return f"{name} failed with exit status {code}: {said[0].strip()[:200]}", True


@contextlib.contextmanager
def progress(description: str, title: str) -> Iterator[None]:
    """Say what is being compiled while it takes more than `PATIENCE`, in the log and on a terminal."""

    def tell() -> None:
        log.info("compiling %s with %s ...", description, title)
        if sys.stderr is not None and sys.stderr.isatty() and not log.isEnabledFor(logging.INFO):
            print(f"symconv: compiling {description} with {title} ...", file=sys.stderr, flush=True)

    start, timer = time.perf_counter(), threading.Timer(PATIENCE, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    seconds = time.perf_counter() - start
    log.log(logging.INFO if seconds > PATIENCE else logging.DEBUG, "%s: compiled in %.1f s", description, seconds)
