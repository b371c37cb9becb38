"""Time and memory of symconv's kernels, forward and with backward, against the other ways to compute them.

    python benchmarks/bench.py [--quick] [--kernels a,b] [--shapes s,t] [--peers p,q] [--json FILE] [--plot FILE]

Each formula runs in a process of its own, with as many threads for everyone; if a peer brings that process down or
takes too long, another one goes on behind it.  Before anything is timed its values are compared with symconv's PyTorch
backend.  Compilation and a first run are not timed; the time is the median of the rest.  A formula gets its share of
the minutes, and cells that it does not reach are skipped, those of `torch.compile` first.  Without --shapes these are
tried on each formula's first layer alone, for they take a minute to compile.  On a GPU a loop over channels is last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from floor import floor, peaks, peaks_of_gpu
from isolate import Cell, Limits, run
from kernels import FORMULAS, Case, case, cases
from machine import facts
from measure import peers
from peer import DIRECTIONS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from shapes import SHAPES
from table import show

QUICK = ("depthwise", "maps")


def planned(chosen: list[Case], named: list[str] | None, options: argparse.Namespace) -> dict[str, list[Cell]]:
    """By formula the cells to compute: layer, peer, direction."""
    plan: dict[str, list[Cell]] = {}
    for each in chosen:
        cells = plan.setdefault(each.formula.name, [])
        first = not cells
        for peer in peers(each):
            if named is not None and not any(peer == name or peer.startswith(f"{name} ") for name in named):
                continue
            slow = peer.endswith(" compiled")
            if slow and options.no_compile:
                continue
            if named is None and slow and (options.quick or not (first or options.shapes)):
                continue
            cells += [(each.shape.name, peer, direction) for direction in DIRECTIONS]
    quick = ("symconv cuda", "F.", "torch.cdist")  # on a GPU a loop takes a hundred times as long

    def order(cell: Cell) -> tuple[bool, bool]:
        peer = cell[1]
        return peer.endswith(" compiled"), options.device == "cuda" and not peer.startswith(quick)

    return {formula: sorted(cells, key=order) for formula, cells in plan.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--quick", action="store_true", help="one small layer of each formula, short measurements")
    parser.add_argument("--kernels", **names, help=", ".join(FORMULAS))
    parser.add_argument("--shapes", **names, help=", ".join(SHAPES))
    parser.add_argument("--peers", **names, help="symconv, loop, unfold, F.conv, torch.cdist, numba, jax, ...")
    parser.add_argument("--seconds", type=float, help="time spent on each cell (default 0.3, quick 0.05)")
    parser.add_argument(
        "--cap", type=float, help="seconds of a single run beyond which a peer is skipped (10, quick 3)"
    )
    parser.add_argument("--minutes", type=float, help="for the whole run, about (25, quick 6)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu", help="cpu, or cuda; there without Numba and JAX")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes a minute each")
    parser.add_argument("--json", type=Path, help="write all facts there")
    parser.add_argument("--plot", type=Path, help="draw the picture there")
    options = parser.parse_args()
    options.seconds = options.seconds or (0.05 if options.quick else 0.3)
    options.minutes = options.minutes or (6.0 if options.quick else 25.0)
    options.cap = options.cap or (3.0 if options.quick else 10.0)
    os.environ["SYMCONV_BENCH_DEVICE"] = options.device
    for kind, given, known in (("kernel", options.kernels, FORMULAS), ("shape", options.shapes, SHAPES)):
        if unknown := [name for name in given or () if name not in known]:
            parser.error(f"no {kind} {unknown[0]}; there are {', '.join(known)}")
    # JAX and XLA take all processors that they see.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    shapes = options.shapes or (list(QUICK) if options.quick else None)
    chosen = list(cases(options.kernels or list(FORMULAS), shapes))
    plan = planned(chosen, options.peers, options)
    limits = Limits(options.threads, options.seconds, options.cap)
    console = Console(width=max(Console().width, 132))  # or the tables lose their numbers
    peak = peaks(options.threads) if options.device == "cpu" else peaks_of_gpu()
    record: dict[str, Any] = {
        "machine": facts(options.threads, options.device),
        "peaks": peak,
        "seconds": options.seconds,
    }
    cells: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=sum(map(len, plan.values())))
        end = time.monotonic() + 60 * options.minutes
        for number, (formula, wanted) in enumerate(plan.items()):
            share = (end - time.monotonic()) / (len(plan) - number)
            for message in run(formula, wanted, limits, time.monotonic() + share):
                if "begins" in message:
                    place = message["begins"]
                    text = f"{formula}, {place['shape']}: {place['peer']}, {place['direction']}"
                    progress.update(bar, description=f"{text:60}")
                else:
                    cells.append(message["cell"] | derived(message["cell"], peak))
                    progress.advance(bar)
            record["cells"] = cells
            if options.json:  # after each formula, so that an interrupted run leaves what it has
                options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    show(record, console)
    if options.plot:
        from plot import draw

        draw(record, options.plot)
    if failures := [cell for cell in cells if "failed" in cell]:
        for cell in failures:
            where = f"{cell['formula']}, {cell['shape']}, {cell['peer']}, {cell['direction']}"
            console.print(f"[red]{where}: {cell['failed']}[/red]", highlight=False)
        sys.exit(1)


def derived(cell: dict[str, Any], peak: dict[str, float]) -> dict[str, Any]:
    """What follows from the time and the memory of a cell."""
    of = case(cell["formula"], cell["shape"])
    found: dict[str, Any] = {"layer": of.shape.title, "taps": of.shape.taps}
    found["floor_seconds"] = floor(of, cell["direction"], peak)
    if "seconds" in cell:
        found["taps_per_second"] = of.shape.taps / cell["seconds"]
    if "peak_bytes" in cell:
        found["memory_ratio"] = cell["peak_bytes"] / of.bytes[cell["direction"]]
    return found


if __name__ == "__main__":
    main()
