"""The facts of a run as tables in the terminal."""

from __future__ import annotations

from typing import Any

import rich.box
from kernels import FORMULAS
from peer import DIRECTIONS
from rich.console import Console
from rich.table import Table

#: Columns of the table: short headings, and the peers whose best stands there.
COLUMNS = {
    "torch": ("symconv torch", "symconv torch compiled"),
    "loop": ("loop",),
    "unfold": ("unfold",),
    "compiled": ("loop compiled", "unfold compiled"),
    "vendor": ("F.conv", "F.avg_pool2d", "torch.cdist"),
    "numba": ("numba",),
    "jax": ("jax",),
}

#: What stands for symconv, if it computed the case.
NATIVE = ("symconv cpp", "symconv cuda")

TITLES = {"forward": "forward", "training": "forward and backward, gradients of x and w"}


def own(cells: dict[str, dict[str, Any]]) -> str:
    """Which peer stands for symconv: its native backend where that computed the case."""
    return next((name for name in NATIVE if "seconds" in cells.get(name, {})), "symconv torch")


def grouped(record: dict[str, Any], direction: str) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """The cells of a direction by formula and layer, then by peer."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for cell in record["cells"]:
        if cell["direction"] == direction:
            found.setdefault((cell["formula"], cell["shape"]), {})[cell["peer"]] = cell
    return found


def rivals(cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The times of all but symconv."""
    return {name: c["seconds"] for name, c in cells.items() if "seconds" in c and not name.startswith("symconv")}


def show(record: dict[str, Any], console: Console) -> None:
    machine = record["machine"]
    packages = ("symconv", "torch", "numba", "jax")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name in packages)
    title = f"{machine['cpu']}, threads: {machine['threads']}, {versions}, load {machine['load']:.1f}"
    console.print(title, style="bold", highlight=False)
    console.print(
        "Peers: their time as a multiple of symconv's.  Floor: the share of the peak rate that its arithmetic reaches."
    )
    console.print("Memory: beyond the inputs, over inputs and outputs.")
    for direction in DIRECTIONS:
        rows = grouped(record, direction)
        native = any(own(cells) in NATIVE for cells in rows.values())
        headings = [heading for heading in COLUMNS if heading != "torch" or native]
        table = Table(title=TITLES[direction], box=rich.box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
        for column in ("kernel", "layer"):
            table.add_column(column, no_wrap=True)
        for column in ("ms", "Gtap/s", "floor", "memory", *headings):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("best peer", no_wrap=True)
        last = ""
        for (formula, shape), cells in rows.items():
            if last and formula != last:
                table.add_section()
            table.add_row(formula if formula != last else "", shape, *_row(cells, headings))
            last = formula
        console.print(table)
    for formula in dict.fromkeys(cell["formula"] for cell in record["cells"]):
        console.print(
            f"  {formula:16} {'; '.join(FORMULAS[formula].text.splitlines())}",
            highlight=False,
            markup=False,
            style="dim",
        )


def _row(cells: dict[str, dict[str, Any]], headings: list[str]) -> list[str]:
    ours = cells.get(own(cells), {})
    seconds = ours.get("seconds")
    row = ["-"] * 4
    if seconds:
        share = ours["floor_seconds"] / seconds
        row = [_three(1e3 * seconds), _three(ours["taps_per_second"] / 1e9), f"{100 * share:.0f} %", "-"]
    if "memory_ratio" in ours:
        row[3] = _three(ours["memory_ratio"])
    for heading in headings:
        row.append(_ratio([cells[name] for name in COLUMNS[heading] if name in cells], seconds))
    others = rivals(cells)
    if not others or not seconds:
        return [*row, "-"]
    best = min(others, key=lambda name: others[name])
    ratio = others[best] / seconds
    colour = "green" if ratio >= 3 else "red" if ratio < 1 else "yellow"
    return [*row, f"[{colour}]{best} {_three(ratio)}[/{colour}]"]


def _ratio(cells: list[dict[str, Any]], seconds: float | None) -> str:
    times = [cell["seconds"] for cell in cells if "seconds" in cell]
    if times and seconds:
        return _three(min(times) / seconds)
    if any("failed" in cell for cell in cells):
        return "[red]failed[/red]"
    reasons = [cell["skipped"] for cell in cells if "skipped" in cell]
    return f"[dim]{reasons[0].replace('over ', '>').replace('no time', '...')}[/dim]" if reasons else ""


def _three(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
