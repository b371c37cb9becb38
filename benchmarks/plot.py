"""The facts of a run as a picture: taps per second of everyone, a row for each formula and layer.

python benchmarks/plot.py FILE.json PICTURE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from kernels import FORMULAS
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from peer import DIRECTIONS
from table import TITLES, grouped, own

mpl.use("Agg")
import matplotlib.pyplot as plt

#: Marker and colour of the peers, those of one kind in one colour.
MARKS = {
    "symconv torch": ("D", "#7a9cc6"),
    "symconv torch compiled": ("d", "#7a9cc6"),
    "loop": ("o", "#8c8c8c"),
    "unfold": ("s", "#8c8c8c"),
    "loop compiled": ("o", "#e08a1e"),
    "unfold compiled": ("s", "#e08a1e"),
    "F.conv": ("^", "#c0392b"),
    "F.avg_pool2d": ("v", "#c0392b"),
    "torch.cdist": (">", "#c0392b"),
    "numba": ("P", "#2e8b57"),
    "jax": ("X", "#8e44ad"),
}
OURS = "#1f4e8c"


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the picture of a run; layers for which it had no time are left out."""
    measured = {
        row for d in DIRECTIONS for row, cells in grouped(record, d).items() if "seconds" in cells.get(own(cells), {})
    }
    rows = [row for row in grouped(record, "forward") if row in measured]
    gaps = [i + 0.9 * len({name for name, _ in rows[: i + 1]}) for i in range(len(rows))]
    height = 1.6 + 0.24 * (gaps[-1] + 1)
    plt.rcParams |= {"font.size": 9, "font.family": "DejaVu Sans"}
    figure, axes = plt.subplots(1, 2, figsize=(12.5, height), sharey=True, layout="constrained")
    seen: set[str] = set()
    for axis, direction in zip(axes, DIRECTIONS):
        cells = grouped(record, direction)
        rates = [c["taps_per_second"] / 1e9 for each in cells.values() for c in each.values() if "seconds" in c]
        left = min(rates) / 2
        for place, row in zip(gaps, rows):
            of_row = cells.get(row, {})
            ours = own(of_row)
            if "seconds" in of_row.get(ours, {}):
                rate = of_row[ours]["taps_per_second"] / 1e9
                axis.barh(place, rate - left, 0.8, left, color=OURS, alpha=0.85, zorder=2)
            floors = [cell["floor_seconds"] for cell in of_row.values()]
            if floors:
                peak = next(iter(of_row.values()))["taps"] / floors[0] / 1e9
                axis.plot([peak, peak], [place - 0.45, place + 0.45], color="black", lw=1.5, zorder=3)
                rates.append(peak)
            for name, cell in of_row.items():
                if "seconds" in cell and name != ours and name in MARKS:
                    marker, colour = MARKS[name]
                    rate = cell["taps_per_second"] / 1e9
                    axis.plot(rate, place, marker, color=colour, ms=6.5, mec="white", mew=0.6, zorder=4, clip_on=False)
                    seen.add(name)
        axis.set_xscale("log")
        axis.set_xlim(left, 2 * max(rates))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(axis="x", color="#dddddd", lw=0.7, zorder=0)
        axis.set_xlabel("Gtap/s, evaluations of the forward formula per second")
        axis.set_title(TITLES[direction], fontsize=10)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(gaps, [f"{name.replace('_', ' ')}   {shape}" for name, shape in rows])
    axes[0].set_ylim(gaps[-1] + 0.8, gaps[0] - 0.8)
    _name_formulas(axes[1], rows, gaps)
    handles: list[Any] = [Patch(color=OURS, alpha=0.85, label="symconv")]
    handles += [
        Line2D([], [], ls="", marker=marker, color=colour, mec="white", ms=7.5, label=name)
        for name, (marker, colour) in MARKS.items()
        if name in seen
    ]
    handles.append(Line2D([], [], color="black", lw=1.5, label="its arithmetic at every tap, at the peak rates"))
    figure.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False)
    machine = record["machine"]
    figure.suptitle(
        f"{machine['cpu']}, threads: {machine['threads']}, float32, torch {machine['versions']['torch']}", fontsize=11
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _name_formulas(axis: Any, rows: list[tuple[str, str]], gaps: list[float]) -> None:
    """Each formula above its first row, small."""
    done: set[str] = set()
    for place, (name, _) in zip(gaps, rows):
        if name not in done:
            text = FORMULAS[name].text.splitlines()[-1]
            axis.annotate(
                text if len(text) < 45 else f"{text[:42]}...",
                (1, place - 0.55),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=7,
                color="#666666",
            )
            done.add(name)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
