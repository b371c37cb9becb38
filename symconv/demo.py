"""A tour on real data: three kernels written as formulas learn to read handwritten digits, beside `torch.nn.Conv2d`.

Run it with `symconv demo`.  To use a kernel of your own, copy `TANGENT_PRODUCT` and `network`, and change the formula.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from .errors import ArgumentError, SymconvError
from .kernel import Kernel
from .language.axes import WindowNode
from .language.symbols import w, x
from .nn import Conv2d
from .printers.mathematics import MathLatexPrinter

EPOCHS, BATCH, LEARNING_RATE = 20, 64, 0.01
FILTERS, FEATURES = 16, 32
#: What each kernel is meant to reach; the demo says so where one does not.
TARGET = 0.95

# -- The kernels: each layer is one line of mathematics ------------------------------------------------------------


def quarter_pi(weight: Tensor) -> None:
    """Fill with pi/4 or -pi/4, roughly: there tan is 1 or -1, so a product of many tangents neither grows nor fades.

    The sign of a weight says whether a brighter pixel makes the product larger or smaller.
    """
    sign = torch.where(torch.rand_like(weight) < 0.5, -1.0, 1.0)
    with torch.no_grad():
        weight.uniform_(-0.2, 0.2).add_(sign * math.pi / 4)


#: Pixels lie in (-1, 1); adder and dilation compare them with weights of the same range.
like_pixels = functools.partial(nn.init.uniform_, a=-1.0, b=1.0)

# `s` keeps s*x + w away from the poles of tan at -pi/2 and pi/2.
TANGENT_PRODUCT = Kernel("s: const = 0.3\nprod(tan(s*x + w))", name="tangent product", init=quarter_pi)
ADDER = Kernel("-sum(abs(x - w))", name="AdderNet", init=like_pixels)
DILATION = Kernel("max(x + w)", name="dilation", init=like_pixels)
#: What `torch.nn.Conv2d` computes, here only to be drawn beside the others.
CONVOLUTION = Kernel("sum(w*x)", name="torch.nn.Conv2d")

Layer = Callable[..., nn.Module]


def contenders() -> list[tuple[Kernel, Layer]]:
    """Each kernel, and what makes a layer of it.

    `padding_mode="ignore"`: a tap outside the image leaves the window.  A zero there would be a grey pixel to the
    adder, a candidate for the maximum, and a factor of the product.
    """
    ours: list[tuple[Kernel, Layer]] = [
        (kernel, functools.partial(Conv2d, kernel, padding_mode="ignore"))
        for kernel in (TANGENT_PRODUCT, ADDER, DILATION)
    ]
    return [*ours, (CONVOLUTION, functools.partial(nn.Conv2d, bias=False))]


def network(layer: Layer) -> nn.Sequential:
    """Two layers of one kind, the rest the same for all kinds.

    The second layer has `groups`: every filter looks at one channel, and a 1x1 convolution before it mixes the
    channels.  So the windows stay at 9 taps, which suits products and maxima; tanh keeps values in (-1, 1).
    """
    return nn.Sequential(
        layer(1, FILTERS, kernel_size=3, padding=1),
        nn.BatchNorm2d(FILTERS),
        nn.Conv2d(FILTERS, FILTERS, kernel_size=1, bias=False),
        nn.BatchNorm2d(FILTERS),
        nn.Tanh(),
        layer(FILTERS, FEATURES, kernel_size=3, padding=1, groups=FILTERS),
        nn.BatchNorm2d(FEATURES),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(FEATURES * 4 * 4, 10),
    )


# -- Training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """Images `[n, 1, 8, 8]` between -1 and 1, and their labels."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Result:
    """What the training of one network gave.

    Args:
        kernel: the kernel of its layers.
        network: the trained network; `network[0]` is the first kernel layer.
        losses: the mean training loss of each epoch.
        accuracies: the test accuracy after each epoch, between 0 and 1.
        seconds: the time of training, without testing.
    """

    kernel: Kernel
    network: nn.Sequential
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        """The test accuracy after the last epoch."""
        return self.accuracies[-1]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())


def digits() -> tuple[Digits, Digits]:
    """The 1797 handwritten digits of scikit-learn, three quarters to train on and one quarter to test on."""
    data = _required("sklearn.datasets").load_digits()
    parts = _required("sklearn.model_selection").train_test_split(
        torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1,
        torch.tensor(data.target),
        test_size=0.25,
        stratify=data.target,
        random_state=0,
    )
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


def train(
    make: Callable[[], nn.Sequential],
    kernel: Kernel,
    data: tuple[Digits, Digits],
    epochs: int,
    seed: int,
    report: Callable[[int, float, float], None],
) -> Result:
    """Train a network; `report(epoch, loss, accuracy)` is called after each epoch.

    The seed alone decides weights and batches, whatever ran before; the caller's random state is left as it was.
    """
    training, test = data
    losses, accuracies, seconds = [], [], 0.0
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        batches = len(training.labels) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
        for epoch in range(1, epochs + 1):
            started = time.perf_counter()
            model.train()
            total = 0.0
            order = torch.randperm(len(training.labels))
            for batch in order[: batches * BATCH].view(batches, BATCH):  # without the last few: too few to normalise by
                optimizer.zero_grad()
                loss = F.cross_entropy(model(training.images[batch]), training.labels[batch])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() / batches
            seconds += time.perf_counter() - started
            losses.append(total)
            accuracies.append(_accuracy(model, test))
            report(epoch, losses[-1], accuracies[-1])
    return Result(kernel, model, tuple(losses), tuple(accuracies), seconds)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Tensors as small as these gain nothing from more threads, which on a busy machine wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _accuracy(model: nn.Module, test: Digits) -> float:
    model.eval()
    return (model(test.images).argmax(1) == test.labels).float().mean().item()


# -- The demo ------------------------------------------------------------------------------------------------------


def demo(picture: Path, epochs: int | None = None, seed: int = 0) -> list[Result]:
    """Train a small network around each of three kernels and `torch.nn.Conv2d`, and draw what they learned.

    Args:
        picture: the file to draw to; the format by its suffix.
        epochs: passes over the training digits.
        seed: of weights and batches.

    Returns:
        One result for each kernel, the convolution last.

    Raises:
        SymconvError: if matplotlib or scikit-learn is missing.
        ArgumentError: (a ValueError) if `epochs` is not positive, the picture's format unknown, or its directory
            missing.
    """
    epochs = EPOCHS if epochs is None else epochs
    if epochs < 1:
        raise ArgumentError(f"epochs must be at least 1, not {epochs}")
    picture = _check_picture(Path(picture))  # now, not after a minute of training
    console = Console(highlight=False)
    data = digits()

    console.print(
        f"{len(data[0].labels)} handwritten digits of 8x8 pixels to train on, {len(data[1].labels)} to test on"
    )
    console.print("\nThree kernels, and the gradients that symconv derived for them:\n", style="bold")
    for kernel in (TANGENT_PRODUCT, ADDER, DILATION):
        console.print(str(kernel), markup=False, soft_wrap=True)
        console.print()

    console.print(f"The same small network around each of them, epochs: {epochs}\n", style="bold")
    results = _train_all(console, data, epochs, seed)
    baseline = train(_linear, CONVOLUTION, data, epochs, seed, lambda *_: None)

    console.print()
    console.print(_table(results))
    console.print(
        f"For scale: a linear classifier of the bare pixels reaches {baseline.accuracy:.1%}. One digit of the test "
        f"set is {1 / len(data[1].labels):.1%}, so small differences mean little.",
    )
    for result in results:
        if result.accuracy < TARGET:
            console.print(
                f"{result.kernel.title} stayed below {TARGET:.0%} (epochs: {epochs}).",
                style="yellow",
            )

    _draw(results, data[1], picture)
    console.print(f"\nThe picture: {picture}", markup=False, soft_wrap=True)
    return results


def _linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def _train_all(console: Console, data: tuple[Digits, Digits], epochs: int, seed: int) -> list[Result]:
    """Train every network, with bars on a terminal and plain lines elsewhere."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[state]}", TimeElapsedColumn())
    shown = [TextColumn(column) if isinstance(column, str) else column for column in columns]
    every = max(1, epochs // 4)
    results = []
    with Progress(*shown, console=console, disable=not console.is_terminal) as progress:
        for kernel, layer in contenders():
            task = progress.add_task(f"{kernel.title:15}", total=epochs, state="")

            def report(epoch: int, loss: float, accuracy: float, task: Any = task, name: Any = kernel.title) -> None:
                state = f"loss {loss:.3f}, test accuracy {accuracy:6.1%}"
                progress.update(task, completed=epoch, state=state)
                if not console.is_terminal and (epoch % every == 0 or epoch == epochs):
                    console.print(f"{name:15} epoch {epoch:2} of {epochs}: {state}", soft_wrap=True)

            make = functools.partial(network, layer)
            results.append(train(make, kernel, data, epochs, seed, report))
    return results


def _table(results: list[Result]) -> Table:
    table = Table()
    table.add_column("layer", no_wrap=True)
    table.add_column("formula", no_wrap=True)
    for heading in ("test accuracy", "seconds", "parameters"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result.kernel.title,
            result.kernel.text.splitlines()[-1],
            f"{result.accuracy:.1%}",
            f"{result.seconds:.1f}",
            str(result.parameters),
        )
    return table


def _required(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SymconvError(
            f"the demo needs {module.partition('.')[0]}, which is not installed: pip install '.[demo]' in the "
            "directory of symconv's sources"
        ) from error


def _check_picture(picture: Path) -> Path:
    formats = _required("matplotlib.figure").Figure().canvas.get_supported_filetypes()
    picture = picture if picture.suffix else picture.with_suffix(".png")
    if picture.suffix[1:].lower() not in formats:
        raise ArgumentError(f"{picture} is no picture; its suffix must be one of {', '.join(sorted(formats))}")
    if not picture.parent.is_dir():
        raise ArgumentError(f"{picture} cannot be written: there is no directory {picture.parent}")
    return picture


# -- The picture ---------------------------------------------------------------------------------------------------

#: Colours of Okabe and Ito, which people with any colour vision tell apart.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
GREY = "#BBBBBB"
#: The weight at which the curves cut through the map of the tap function.
CUT = 0.5


def _draw(results: list[Result], test: Digits, picture: Path) -> None:
    figure = _required("matplotlib.figure").Figure(figsize=(19, 3.5 * len(results)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1)
    figure.suptitle("Three formulas and a convolution learn to read handwritten digits", fontsize=20)
    digit = test.images[int((test.labels == 3).nonzero()[0])]
    rows = figure.subfigures(len(results), 1, squeeze=False)[:, 0]
    for row, result, colour in zip(rows, results, COLOURS):
        row.suptitle(f"{result.kernel.title}:  $y = {_mathtext(result.kernel.expr)}$", fontsize=17, color=colour)
        axes = row.subplots(1, 7, width_ratios=(1.15, 1.15, 1.1, 0.45, 1.0, 1.2, 1.2))
        _draw_tap(axes[0], axes[1], tap_function(result.kernel))
        _draw_filters(axes[2], result)
        _draw_digit(axes[3], axes[4], result, digit)
        for other in results:
            front = other is result
            colours = {"color": colour if front else GREY, "zorder": 2 + front}
            style = {**colours, "marker": "o", "lw": 2.2 if front else 1, "ms": 3.5 if front else 1.5}
            epochs = range(1, len(other.losses) + 1)
            axes[5].semilogy(epochs, other.losses, **style)
            axes[6].plot(epochs, [100 * value for value in other.accuracies], **style)
        _label_training(axes[5], axes[6], results, result)
    figure.savefig(picture, dpi=110)


def tap_function(kernel: Kernel) -> sp.Expr:
    """What stands inside the kernel's only reduction, with numbers for its constants."""
    (reduction,) = kernel.expr.atoms(WindowNode)
    inside = reduction.args[0]
    return inside.subs({symbol: symbol.init for symbol in inside.free_symbols if symbol.role == "const"})


def _draw_tap(surface: Any, curves: Any, tap: sp.Expr) -> None:
    """The tap function f over (x, w) as a map; f and its partial derivatives along x, at one w, as curves."""
    np = _required("numpy")
    horizontal, vertical = np.linspace(-1, 1, 301), np.linspace(-2, 2, 301)
    values = sp.lambdify((x, w), tap, "numpy")(horizontal[None, :], vertical[:, None])
    largest = float(np.abs(values).max())
    limit = min(largest, 5 * float(np.median(np.abs(values))))  # tan has poles
    mesh = surface.pcolormesh(horizontal, vertical, values, cmap="RdBu_r", vmin=-limit, vmax=limit, rasterized=True)
    surface.figure.colorbar(mesh, ax=surface, pad=0.02, extend="both" if largest > limit else "neither")
    surface.axhline(CUT, color="black", lw=1, ls="--")
    surface.set(xlabel="x", ylabel="w", title=f"at a tap: f = ${_mathtext(tap)}$")

    lines = (("f", tap, "-"), ("∂f/∂x", sp.diff(tap, x), "--"), ("∂f/∂w", sp.diff(tap, w), ":"))
    for (name, expr, style), colour in zip(lines, ("black", COLOURS[1], COLOURS[0])):
        along = sp.lambdify((x, w), expr, "numpy")(horizontal, CUT)
        curves.plot(horizontal, np.broadcast_to(along, horizontal.shape), style, color=colour, lw=2.2, label=name)
    curves.axhline(0, color=GREY, lw=0.8, zorder=0)
    curves.margins(x=0, y=0.1)
    curves.set(xlabel="x", title=f"along the dashed line, w = {CUT}")
    curves.legend(fontsize=9)


def _mathtext(expr: sp.Expr) -> str:
    """LaTeX for matplotlib, which neither stretches bars nor spaces operators."""
    text = MathLatexPrinter().doprint(expr).replace("_{c,t} ", r"_{c,t}\,\,")
    return text.replace(r"\left|", "|").replace(r"\right|", "|")


def _mosaic(tiles: Tensor) -> Any:
    """Sixteen tiles in a square, with an empty line between them."""
    framed = F.pad(tiles.detach(), (0, 1, 0, 1), value=float("nan"))
    side = math.isqrt(len(framed))
    rows = framed.unflatten(0, (side, side)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return rows[:-1, :-1].numpy()


def _draw_filters(axes: Any, result: Result) -> None:
    first: Any = result.network[0]
    weight = first.weight[:, 0]
    limit = float(weight.detach().abs().max())
    image = axes.imshow(_mosaic(weight), cmap="PuOr", vmin=-limit, vmax=limit)
    axes.figure.colorbar(image, ax=axes, pad=0.02, shrink=0.9)
    axes.set_title(f"{FILTERS} learned filters w")
    axes.set_axis_off()


@torch.no_grad()
def _draw_digit(before: Any, after: Any, result: Result, digit: Tensor) -> None:
    response = result.network[0](digit.unsqueeze(0))[0]
    low, high = response.amin((1, 2), keepdim=True), response.amax((1, 2), keepdim=True)
    before.imshow(digit[0].numpy(), cmap="cividis")
    before.set_title("a digit ...")
    after.imshow(_mosaic((response - low) / (high - low).clamp(min=1e-12)), cmap="cividis")
    after.set_title("... seen by these filters")
    for axes in (before, after):
        axes.set_axis_off()


def _label_training(loss: Any, accuracy: Any, results: list[Result], result: Result) -> None:
    floor = min(85.0, 100 * min(each.accuracy for each in results) - 5)
    loss.set(xlabel="epoch", title="training loss (others grey)")
    accuracy.set(xlabel="epoch", title="test accuracy [%]", ylim=(floor, 100.5))
    accuracy.text(
        0.96,
        0.06,
        f"{result.accuracy:.1%} after {result.seconds:.0f} s",
        transform=accuracy.transAxes,
        ha="right",
        fontsize=13,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0.5, len(result.losses) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
