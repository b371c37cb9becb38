"""What every operator of the zoo takes of a GPU: registers, stack, spills and code size, as ptxas says; without a GPU.

    python benchmarks/registers.py [--arch sm_90 ...] [--json FILE]

float32, a 3x3 layer of 64 filters; a row for each function that does the work.  What is in the cache is not compiled.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import rich.box
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from symconv import zoo
from symconv.backends import backends
from symconv.backends.cuda import PROCESSORS, cut_of, unspilled
from symconv.build.nvrtc import nvrtc_version
from symconv.geometry import Geometry

WORK = ("forward", "backward_pixels", "backward_images", "backward_weights", "backward_gather")
#: The layer: an input, and 64 filters 3x3; or for a kernel without weights a window for each channel.
INPUT = (32, 64, 56, 56)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90", "sm_100"])
    parser.add_argument("--json", type=Path, help="write all facts there")
    options = parser.parse_args()
    rows = []
    for name in track(list(zoo.OPERATORS), "compiling", transient=True):
        kernel = getattr(zoo, name)
        compiled = backends()["cuda"].compile(kernel)
        groups = 1 if "weight" in kernel.signature.roles else 64
        geometry = Geometry((3, 3), 64, (1, 1), ((1, 1), (1, 1)), (1, 1), groups, False)
        tensors = [torch.empty(INPUT, device="meta") for role in compiled.facts.roles if role == "input"]
        for architecture in options.arch:
            for direction in ("forward", "backward"):
                processors = PROCESSORS.get(architecture, 128)
                cuts = functools.partial(cut_of, compiled.facts, direction, tensors, geometry, processors, False)
                cut, code, resources = unspilled(compiled.source, cuts, architecture, name)
                for function, found in resources.items():
                    short = function.removeprefix("symconv_")
                    if short in WORK:
                        row = {"kernel": name, "architecture": architecture, "function": short, **found._asdict()}
                        rows.append(row | {"code_bytes": len(code), "flat": "-DFLAT" in cut.options})
    if options.json:
        record = {"nvrtc": nvrtc_version(), "functions": rows}
        options.json.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    table = Table("function", "architecture", box=rich.box.SIMPLE_HEAD, title="over all operators")
    for column in ("most registers", "median", "spill something", "of", "largest code, KiB"):
        table.add_column(column, justify="right")
    for function in WORK:
        for architecture in options.arch:
            found = [row for row in rows if (row["function"], row["architecture"]) == (function, architecture)]
            if not found:
                continue
            registers = sorted(row["registers"] for row in found)
            spilled, largest = sum(row["spilled"] > 0 for row in found), max(row["code_bytes"] for row in found)
            counts = registers[-1], registers[len(registers) // 2], spilled, len(found), largest // 1024
            table.add_row(function, architecture, *map(str, counts))
    Console().print(table)


if __name__ == "__main__":
    main()
