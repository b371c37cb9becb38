"""Draws `window.png`: one window, its axes and what the reductions leave of them.

Run it with `python docs/window.py [picture.png]`.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, PALE, YELLOW, GREY = "#0072B2", "#CFE3F1", "#FFDD99", "#8A8A8A"
FILTERS = ("#009E73", "#B0578D", "#D55E00")
#: Where the enlarged window lies.
LEFT, TOP, CELL = 7.3, 3.7, 0.92
Fill = Callable[[int, int], str]


def plane(
    axes: Axes, left: float, top: float, rows: int, columns: int, cell: float, fill: Fill, edge: str, depth: float
) -> None:
    """A grid of cells whose first row is the top one; those of greater depth lie behind."""
    for row in range(rows):
        for column in range(columns):
            corner = (left + column * cell, top - (row + 1) * cell)
            axes.add_patch(Rectangle(corner, cell, cell, fc=fill(row, column), ec=edge, lw=0.9, zorder=10 - depth))


def stack(
    axes: Axes,
    left: float,
    top: float,
    shape: tuple[int, int, int],
    cell: float,
    fill: Fill,
    edges: tuple[str, ...],
    step: float,
) -> None:
    """Planes behind one another, the first in front, each further one up and to the right."""
    for depth in reversed(range(shape[0])):
        shift = depth * step
        plane(axes, left + shift, top + shift, *shape[1:], cell, fill, edges[depth % len(edges)], depth)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = "black") -> None:
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style, zorder=20)


def text(axes: Axes, x: float, y: float, words: str, size: float = 12, **style: object) -> None:
    axes.text(x, y, words, **{"fontsize": size, "ha": "center", "va": "center", "zorder": 20, **style})


def code(axes: Axes, x: float, y: float, words: str, size: float = 12, **style: object) -> None:
    text(axes, x, y, words, size, family="monospace", **style)


def draw_input(axes: Axes) -> None:
    stack(axes, 0, 3.9, (3, 6, 7), 0.5, lambda r, c: BLUE if r < 3 and c > 3 else "white", (GREY,), 0.42)
    text(axes, 2.1, 6.0, "input", 15, weight="bold")
    code(axes, 2.1, 5.5, "x [batch, C, H, W]", 11)
    arrow(axes, (3.75, 0.9), (4.6, 1.75))
    text(axes, 4.45, 1.12, "channel c", 12, ha="left")
    for start, end in (((4.34, 4.74), (LEFT + 0.72, TOP + 0.72)), ((4.34, 3.24), (LEFT, TOP - 3 * CELL))):
        axes.plot(*zip(start, end), color=BLUE, lw=1, ls=(0, (4, 3)), zorder=1)


def draw_window(axes: Axes) -> None:
    stack(axes, LEFT, TOP, (3, 3, 3), CELL, lambda r, c: YELLOW if r == c == 1 else PALE, (BLUE,), 0.36)
    for tap in range(9):
        row, column = divmod(tap, 3)
        middle = (LEFT + (column + 0.5) * CELL, TOP - (row + 0.5) * CELL)
        text(axes, *middle, str(tap), 18, color="black" if tap == 4 else BLUE, weight="bold")
    for offset in (-1, 0, 1):
        for place in (
            (LEFT + (1.5 + offset) * CELL, TOP - 3 * CELL - 0.27),
            (LEFT - 0.35, TOP - (1.5 + offset) * CELL),
        ):
            text(axes, *place, f"{offset:+d}" if offset else "0", 11, bbox={"fc": "white", "ec": "none", "pad": 1})
    code(axes, LEFT + 3 * CELL + 0.35, TOP - 3 * CELL - 0.27, "dx")
    code(axes, LEFT - 0.32, TOP + 0.22, "dy")
    text(axes, LEFT + 1.75, 6.0, "one window", 15, weight="bold")
    text(axes, LEFT + 1.75, 5.5, "T = 9 taps in C = 3 channels, N = C·T", 11)
    text(axes, LEFT + 1.38, 0.12, "taps t in scan order, 0 to 8", 12)
    axes.plot([LEFT + 1.82 * CELL, 10.95], [TOP - 1.72 * CELL, 1.55], color="black", lw=1, zorder=15)
    code(axes, 11.0, 1.45, "x[c, 0]", 12, ha="left")
    text(axes, 11.0, 1.05, "the centre", 11, ha="left")


def draw_filters(axes: Axes) -> None:
    text(axes, 14.0, 6.0, "filters", 15, weight="bold")
    code(axes, 14.0, 5.5, "w [out, C, 3, 3]", 11)
    for number, colour in enumerate(FILTERS):
        top = 4.5 - 1.55 * number
        stack(axes, 13.7, top, (3, 3, 3), 0.29, lambda r, c: "white", (colour,), 0.14)
        code(axes, 13.15, top - 0.45, f"o={number}", 12, color=colour)


def draw_output(axes: Axes) -> None:
    left, top = 17.3, 3.6
    for depth, colour in enumerate(FILTERS):
        shift = 0.42 * depth
        pixel: Fill = lambda r, c, colour=colour: colour if (r, c) == (0, 4) else "white"  # type: ignore[misc] # noqa: E731
        plane(axes, left + shift, top + shift, 4, 5, 0.5, pixel, colour, depth)
    text(axes, left + 1.7, 6.0, "output", 15, weight="bold")
    code(axes, left + 1.7, 5.5, "y [batch, out, H', W']", 11)
    arrow(axes, (left + 2.75, 1.6), (left + 3.6, 2.45))
    text(axes, left + 3.45, 1.82, "filter o", 12, ha="left")
    arrow(axes, (15.4, 2.85), (16.9, 2.85))
    text(axes, 16.15, 3.15, "formula", 12)
    text(axes, left + 1.25, 0.85, "one value per window\nand filter", 11)


def draw_reductions(axes: Axes) -> None:
    """The lower band: which axes a value still has."""
    pale: Fill = lambda r, c: PALE  # noqa: E731
    stack(axes, 1.2, -1.75, (3, 3, 3), 0.4, pale, (BLUE,), 0.17)
    stack(axes, 7.0, -1.65, (1, 3, 3), 0.4, pale, (BLUE,), 0)
    stack(axes, 12.8, -2.2, (3, 1, 1), 0.4, pale, (BLUE,), 0.25)
    stack(axes, 18.6, -2.05, (1, 1, 1), 0.4, lambda r, c: FILTERS[0], (FILTERS[0],), 0)
    for x, formula, left in (
        (1.97, "abs(x - w)", "a tap value: c and t"),
        (7.6, "sum(abs(x - w), dim=c)", "one per tap: t is left"),
        (13.25, "sum(abs(x - w), dim=t)", "one per channel: c is left"),
        (18.8, "sum(abs(x - w))", "one per window: the result"),
    ):
        code(axes, x, -3.5, formula, 11.5)
        text(axes, x, -3.95, left, 11, color="#444444")
    text(axes, 4.75, -1.9, "reduce", 12, color="#444444")
    arrow(axes, (3.95, -2.2), (5.55, -2.2), "#444444")
    for x in (10.5, 16.1):
        text(axes, x, -2.2, "or", 12, color="#444444")


def draw(picture: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(13.6, 6.8))
    axes = figure.add_axes((0, 0, 1, 1))
    for part in (draw_input, draw_window, draw_filters, draw_output, draw_reductions):
        part(axes)
    axes.axhline(-0.65, 0.03, 0.97, color="#CCCCCC", lw=1)
    axes.set(xlim=(-0.5, 22.0), ylim=(-4.55, 6.7), aspect="equal")
    axes.set_axis_off()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("window.png"))
