"""One process of the benchmark: computes, checks and times the cells of one formula that it reads from its input.

It answers with a line of JSON before and after each cell, so that whoever started it sees where it hangs or dies.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from kernels import Case, case, device
from memory import PeakBytes
from peer import GIB, Form, Peer, Run
from peers_torch import of_symconv
from peers_torch import peers as torch_peers

from symconv.backends import AUTOMATIC
from symconv.backends import backends as known_backends


class WrongValuesError(Exception):
    """A peer computed something else than symconv."""


def backends() -> list[str]:
    """The names of symconv's backends that run on this machine, the preferred first."""
    return [name for name in AUTOMATIC if known_backends()[name].can_run(device(), torch.float32)]


def peers(of: Case) -> dict[str, Peer]:
    """All that can compute a case, by name."""
    found = [of_symconv(of, backend) for backend in backends()]
    found += [of_symconv(of, "torch", compiled=True), *torch_peers(of)]
    if device().type == "cpu" and importlib.util.find_spec("numba"):
        from peers_numba import peers as numba_peers

        found += numba_peers(of)
    if device().type == "cpu" and importlib.util.find_spec("jax"):
        from peers_jax import peers as jax_peers

        found += jax_peers(of)
    return {peer.name: peer for peer in found}


def wait() -> None:
    """Until the device has done what it was told."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def timed(run: Run) -> tuple[float, Sequence[Any]]:
    wait()
    start = time.perf_counter()
    outputs = run()
    wait()
    return time.perf_counter() - start, outputs


def check(outputs: Sequence[Any], reference: Sequence[torch.Tensor], tolerance: float) -> float:
    """The largest relative error of the outputs, in the norm."""
    worst = 0.0
    for name, found, expected in zip(("y", "grad x", "grad w"), outputs, reference, strict=False):
        tensor = found if isinstance(found, torch.Tensor) else torch.from_numpy(np.array(found))
        if tensor.shape != expected.shape:
            raise WrongValuesError(f"{name} has the shape {list(tensor.shape)}, not {list(expected.shape)}")
        error = float((tensor - expected).double().norm() / expected.double().norm())
        if not error <= tolerance:
            raise WrongValuesError(f"{name} is off by {error:.1e}")
        worst = max(worst, error)
    if len(outputs) != len(reference):
        raise WrongValuesError(f"{len(outputs)} results, not {len(reference)}")
    return worst


def cell(
    of: Case, peer: Peer, direction: str, reference: Sequence[torch.Tensor], seconds: float, cap: float
) -> dict[str, Any]:
    """The facts of one cell: the fastest form, its time, its memory; or why there are none."""
    ready: list[tuple[float, float, Form, Run]] = []
    why, at_least = "", 0.0
    for form in peer.forms:
        if direction not in form.directions:
            continue
        if (needs := form.memory(direction)) > form.limit:
            why = why or f"{needs / GIB:.1f} GiB"
            continue
        run = form.prepare(direction)
        first, outputs = timed(run)
        error = check(outputs, reference, of.formula.tolerance)
        del outputs
        # The first run compiled, or met cold caches; of a long one that matters little.
        taken = timed(run)[0] if peer.compiles or first < 1 else first
        if taken > cap:
            why, at_least = f"over {cap:g} s", cap
            continue
        ready.append((taken, error, form, run))
    if not ready:
        return {"skipped": why, "at_least": at_least}
    _, error, form, run = min(ready, key=lambda each: each[0])
    times: list[float] = []
    while (len(times) < 3 or sum(times) < seconds) and len(times) < 1000 and sum(times) < max(10 * seconds, 1):
        times.append(timed(run)[0])
    facts = {"form": form.name, "seconds": sorted(times)[len(times) // 2], "runs": len(times), "error": error}
    if peer.counted:
        with PeakBytes() as counter:
            run()
        facts["peak_bytes"] = counter.peak
    return facts


def main() -> None:
    task = json.loads(sys.stdin.read())
    torch.set_num_threads(task["threads"])
    torch.backends.cudnn.allow_tf32 = False  # on a GPU everyone computes in float32
    warnings.simplefilter("ignore")  # zeros at the rim of a maximum, compilers that cannot have it all
    # Whatever libraries print must not come between the lines of the answer.
    answer = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    made: Case | None = None
    forward: dict[str, float] = {}
    for shape, name, direction in task["cells"]:
        if made is None or made.shape.name != shape:
            made = case(task["formula"], shape)
            known = peers(made)
            references: dict[str, Sequence[torch.Tensor]] = {}
            forward.clear()
        place = {"formula": task["formula"], "shape": shape, "peer": name, "direction": direction}
        if name not in known:
            continue
        compiles = known[name].compiles
        print(json.dumps({"begins": place, "compiles": compiles}), file=answer)
        try:
            if direction not in references:
                references[direction] = of_symconv(made, "torch").forms[0].prepare(direction)()
            # With backward it takes three times as long or more: there is no need to try.
            if direction == "training" and forward.get(name, 0) > task["cap"] / 3:
                facts = {"skipped": f"over {task['cap']:g} s"}
            else:
                facts = cell(made, known[name], direction, references[direction], task["seconds"], task["cap"])
            if direction == "forward":
                forward[name] = facts.get("seconds", facts.get("at_least", 0.0))
        except WrongValuesError as error:
            facts = {"failed": f"wrong values: {error}"}
        except Exception as error:
            facts = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps({"cell": place | facts}), file=answer)
        gc.collect()


if __name__ == "__main__":
    main()
