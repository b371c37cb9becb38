"""The cells of one formula in a process of their own, and in another one behind whatever brings that down."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from peer import DIRECTIONS

#: Layer, peer, direction.
Cell = tuple[str, str, str]

#: Seconds in which a process has to start, and what a compiler may take on top of the runs.
START, COMPILE = 120.0, 120.0


class Limits(NamedTuple):
    """Threads of everyone, seconds spent on a cell, seconds beyond which a single run is too long."""

    threads: int
    seconds: float
    cap: float


class EndedError(Exception):
    """A process ended before its cells did: because a run took too long (`slow`), or by itself."""

    def __init__(self, why: str, slow: bool, cell: Cell | None) -> None:
        super().__init__(why)
        self.slow, self.cell = slow, cell


def run(formula: str, cells: list[Cell], limits: Limits, end: float = float("inf")) -> Iterator[dict[str, Any]]:
    """The facts of the cells as they come, `{"cell": ...}`; before each `{"begins": ...}`.

    At the time `end` of the monotonic clock those that are left are skipped.
    """
    left = list(cells)
    while left:
        try:
            for message in attempt(formula, left, limits):
                yield message
                if "cell" in message:
                    del left[: left.index(place(message["cell"])) + 1]  # those before it are none for a peer
                if time.monotonic() > end:
                    break
            else:
                return
            for cell in left:
                yield {"cell": facts(formula, cell) | {"skipped": "no time"}}
            return
        except EndedError as error:
            if error.cell is None:  # it does not even start
                lost = left
            else:  # what takes too long forward takes longer with backward
                lost = [(*error.cell[:2], direction) for direction in DIRECTIONS if error.slow] or [error.cell]
                left = left[left.index(error.cell) :]
            for cell in [each for each in left if each in lost]:
                yield {"cell": facts(formula, cell) | {"skipped" if error.slow else "failed": str(error)}}
            left = [each for each in left if each not in lost]


def facts(formula: str, cell: Cell) -> dict[str, Any]:
    return {"formula": formula} | dict(zip(("shape", "peer", "direction"), cell))


def place(said: dict[str, Any]) -> Cell:
    return said["shape"], said["peer"], said["direction"]


def attempt(formula: str, cells: list[Cell], limits: Limits) -> Iterator[dict[str, Any]]:
    """What one process says until it has no cell left.

    Raises:
        EndedError: if it was too slow, or died.
    """
    environment = os.environ | {name: str(limits.threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    task = {"formula": formula, "cells": cells} | limits._asdict()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("measure.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(task))
            process.stdin.close()
            said, current, deadline = lines(process), None, time.monotonic() + START
            while True:
                try:
                    message = said.get(timeout=max(deadline - time.monotonic(), 0.01))
                except queue.Empty:
                    raise EndedError(f"over {limits.cap:g} s", current is not None, current) from None
                if message is None:
                    break
                current, deadline = None, time.monotonic() + START
                if "begins" in message:
                    current = place(message["begins"])
                    # A cell may have several forms, each of them as long as the cap allows.
                    deadline = time.monotonic() + 3 * limits.cap + (COMPILE if message["compiles"] else 5)
                yield message
            if process.wait():
                errors.seek(0)
                last = errors.read().strip().rpartition("\n")[2]
                raise EndedError(f"the process ended with {process.returncode}: {last}", False, current)
        finally:
            process.kill()
            process.wait()


def lines(process: subprocess.Popen[str]) -> queue.Queue[dict[str, Any] | None]:
    """What the process says, as it says it; None at its end."""
    said: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.put(json.loads(line))
        said.put(None)

    threading.Thread(target=read, daemon=True).start()
    return said
