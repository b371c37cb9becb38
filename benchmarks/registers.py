"""What every operator of the zoo takes of a GPU: registers, stack, spills and code size, as ptxas says; without a GPU.

    python benchmarks/registers.py [--arch sm_90 ...] [--json FILE]

float32, zero padding; a row for each function that does the work.  Compiled code comes from the cache if it is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import rich.box
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from symconv import zoo
from symconv.backends import backends
from symconv.backends.cuda import options_of
from symconv.backends.cuda_schedule import THREADS, tiles_of
from symconv.build.nvrtc import cubin, nvrtc_version, resources_of
from symconv.render import static_headers

WORK = ("forward", "backward_images", "backward_weights", "backward_gather")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90", "sm_100"])
    parser.add_argument("--json", type=Path, help="write all facts there")
    options = parser.parse_args()
    rows = []
    for name in track(list(zoo.OPERATORS), "compiling", transient=True):
        compiled = backends()["cuda"].compile(getattr(zoo, name))
        tiles = tiles_of(compiled.facts)
        for architecture in options.arch:
            for direction in ("forward", "backward"):
                given = options_of(compiled.facts, THREADS, direction, torch.float32, False)
                code, log = cubin(compiled.source, static_headers(), given, architecture, name)
                for function, found in resources_of(log).items():
                    short = function.removeprefix("symconv_")
                    if short in WORK:
                        row = {"kernel": name, "architecture": architecture, "function": short, **found._asdict()}
                        rows.append(row | {"code_bytes": len(code), "tile": [tiles.filters, tiles.vectors]})
    if options.json:
        record = {"nvrtc": nvrtc_version(), "threads": THREADS, "functions": rows}
        options.json.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    table = Table("function", "architecture", box=rich.box.SIMPLE_HEAD, title="over all operators")
    for column in ("most registers", "median", "spill something", "of", "largest code, KiB"):
        table.add_column(column, justify="right")
    for function in WORK:
        for architecture in options.arch:
            found = [row for row in rows if (row["function"], row["architecture"]) == (function, architecture)]
            registers = sorted(row["registers"] for row in found)
            spilled, largest = sum(row["spilled"] > 0 for row in found), max(row["code_bytes"] for row in found)
            counts = registers[-1], registers[len(registers) // 2], spilled, len(found), largest // 1024
            table.add_row(function, architecture, *map(str, counts))
    Console().print(table)


if __name__ == "__main__":
    main()
