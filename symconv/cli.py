"""The command line: `symconv`, also `python -m symconv`."""

from __future__ import annotations

import difflib
import math
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import rich.box
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from .errors import SymconvError
from .version import __version__

_FORMULA = "FORMULA is text such as 'prod(tan(x + w))'; '-' reads it from standard input."


class _Group(click.Group):
    """Prints our own errors as messages, not as tracebacks, and lists its commands with a whole sentence for each."""

    group_class = type

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.short_help = cmd.short_help or (cmd.help or "").split("\n\n")[0].replace("\n", " ")
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SymconvError as error:
            raise _Refused(str(error)) from error


class _Zoo(_Group):
    """Knows what is meant by `zoo NAME`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from .zoo import OPERATORS

            close = difflib.get_close_matches(args[0], [*OPERATORS, *self.commands], n=1)
            meant = f"zoo show {close[0]}" if close and close[0] in OPERATORS else "zoo show NAME"
            ctx.fail(f"no command {args[0]!r}; `symconv {meant}` shows an operator, `symconv zoo` lists them")
        return super().resolve_command(ctx, args)


class _FormulaCommand(click.Command):
    """A command whose formula may begin with a minus sign without being taken for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        formulas = [arg for arg in args if arg.startswith("-") and not arg.startswith("--") and "(" in arg]
        if formulas and "--" not in args:
            args = [arg for arg in args if arg not in formulas] + ["--", *formulas]
        return super().parse_args(ctx, args)


class _Refused(click.ClickException):
    def show(self, file: Any = None) -> None:
        console = Console(stderr=True, highlight=False)
        console.print("[bold red]error:[/]", end=" ")
        console.print(self.message, markup=False, soft_wrap=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="symconv")
def main() -> None:
    """Write a convolution as a formula; inspect its gradients, check it, train it.

    \b
    symconv show 'prod(tan(x + w))'              its gradients and code
    symconv check 'logsumexp(x + w)'             verify it numerically
    symconv generate '-sum(abs(x - w))' -o l.py  one file for torch alone
    symconv zoo                                  published operators
    symconv demo                                 learn handwritten digits
    """


def _formula_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("formula")(command)


def _kernel(formula: str, name: str | None = None) -> Any:
    from .kernel import Kernel

    return Kernel(sys.stdin.read() if formula == "-" else formula, name=name)


@main.command(cls=_FormulaCommand, epilog=_FORMULA)
@_formula_argument
@click.option("--backend", default="torch", show_default=True, help="Whose code to show; auto: this CPU's.")
@click.option("--code/--no-code", default=True, show_default=True, help="Show the generated code.")
@click.option("--latex", is_flag=True, help="Print the mathematics as LaTeX, and nothing else.")
def show(formula: str, backend: str, code: bool, latex: bool) -> None:
    """Show the code of a formula, its operation counts, and last its gradients."""
    kernel = _kernel(formula)
    if latex:
        click.echo(kernel.latex())
        return
    from .backends import backend as backend_named
    from .backends.description import operations
    from .lower import lower

    language = backend_named(backend).language  # refused before anything is printed
    console = Console(highlight=False, soft_wrap=True)
    schedule = lower(kernel.formula)
    table = Table(box=rich.box.SIMPLE_HEAD, title="operations at each tap", title_justify="left")
    table.add_column("operation")
    forward, backward = operations(schedule.forward), operations(schedule.backward)
    for column, sweeps in (("forward", schedule.forward), ("backward", schedule.backward)):
        table.add_column(f"{column} ({len(sweeps)} sweep{'s' * (len(sweeps) != 1)})", justify="right")
    for name in sorted({*forward, *backward}):
        table.add_row(name, str(forward[name]), str(backward[name]))
    if code:
        source = kernel.source(backend)
        if console.is_terminal:
            console.print(Syntax(source, language, theme="ansi_dark", background_color="default"))
        else:
            click.echo(source)
    console.print(table)
    console.print(str(kernel), markup=False)  # last: code is long, and a terminal shows the end


@main.command(cls=_FormulaCommand, epilog=_FORMULA)
@_formula_argument
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to; else standard output.")
@click.option("--name", default="Layer", show_default=True, help="Name of the class.")
@click.option("--dims", default=2, show_default=True, type=click.IntRange(1, 3), help="Axes of the image.")
@click.option("--force", is_flag=True, help="Overwrite the output file.")
def generate(formula: str, output: Path | None, name: str, dims: int, force: bool) -> None:
    """Write one standalone file with a layer that imports only torch."""
    from .eject import standalone

    source = standalone(_kernel(formula), name, dims)
    if output is None:
        click.echo(source, nl=False)
        return
    if output.exists() and not force:
        raise click.UsageError(f"{output} exists; give --force to overwrite it")
    try:
        output.write_text(source, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(output), error.strerror or str(error)) from error
    click.echo(f"wrote {output}: class {name}, {len(source.splitlines())} lines, imports only torch")


@main.command(cls=_FormulaCommand, epilog=_FORMULA)
@_formula_argument
@click.option("--seed", default=0, show_default=True, help="Of the random operands.")
def check(formula: str, seed: int) -> None:
    """Verify a formula's values and gradients numerically, in float64."""
    report = _kernel(formula).check(seed)
    click.echo(str(report))
    if not report.ok:
        raise SystemExit(1)


@main.group(cls=_Zoo, invoke_without_command=True)
@click.pass_context
def zoo(context: click.Context) -> None:
    """List the operators of symconv.zoo; `zoo show NAME` shows one with its gradients."""
    if context.invoked_subcommand is not None:
        return
    from .zoo import GROUPS

    console = Console(highlight=False)
    for group, operators in GROUPS.items():
        table = Table(box=rich.box.SIMPLE_HEAD, title=group, title_justify="left", title_style="bold", expand=True)
        table.add_column("name", no_wrap=True)
        table.add_column("what it computes", overflow="fold")
        table.add_column("published by", overflow="fold")
        for operator in operators:
            table.add_row(*map(escape, (operator.name, operator.summary, operator.reference)))
        console.print(table)


@zoo.command("show")
@click.argument("name")
def zoo_show(name: str) -> None:
    """Show an operator: its facts, its formula and its gradients."""
    from .printers.mathematics import pretty
    from .zoo import OPERATORS

    if name not in OPERATORS:
        close = difflib.get_close_matches(name, OPERATORS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "`symconv zoo` lists them"
        raise click.UsageError(f"the zoo has no operator {name!r}; {hint}")
    operator = OPERATORS[name]
    console = Console(highlight=False, soft_wrap=True)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("computes", escape(operator.summary))
    facts.add_row("reference", escape(operator.reference))
    facts.add_row("use", escape(f"symconv.{operator.layer.format(kernel=f'symconv.zoo.{name}')}"))
    for label, (low, high) in (("values of x", operator.domain), ("weights", operator.weights)):
        if (low, high) != (-math.inf, math.inf):
            facts.add_row(label, f"{low:g} to {high:g}")
    if operator.traps:
        facts.add_row("mind", escape(operator.traps))
    console.print(f"[bold]{name}[/]")
    console.print(facts)
    console.print()
    console.print(operator.formula, markup=False)
    console.print()
    console.print(pretty(operator.kernel.formula, columns=console.width), markup=False)


@main.command(cls=_FormulaCommand, epilog=_FORMULA)
@click.argument("formulas", nargs=-1)
@click.option("--zoo", "of_zoo", multiple=True, metavar="NAME", help="An operator of the zoo; may be repeated.")
@click.option("--arch", "architectures", multiple=True, default=["sm_90"], show_default=True, help="May be repeated.")
@click.option("--dtype", "dtypes", multiple=True, default=["float32"], show_default=True, help="May be repeated.")
@click.option("--input", "shape", default="32,64,56,56", show_default=True, help="N,C,H,W of the input; or N,C,L.")
@click.option("--filters", type=click.IntRange(1), default=64, show_default=True, help="Output channels.")
@click.option("--kernel-size", type=click.IntRange(1), default=3, show_default=True)
@click.option("--stride", type=click.IntRange(1), default=1, show_default=True)
@click.option("--padding", type=click.IntRange(0), default=1, show_default=True)
@click.option("--dilation", type=click.IntRange(1), default=1, show_default=True)
@click.option("--groups", type=click.IntRange(1), default=1, show_default=True)
@click.option("--ignore", is_flag=True, help="Taps outside the image leave the window, as with padding_mode='ignore'.")
@click.option("--fast-math", is_flag=True, help="For layers with fast_math=True.")
def precompile(
    formulas: tuple[str, ...],
    of_zoo: tuple[str, ...],
    architectures: tuple[str, ...],
    dtypes: tuple[str, ...],
    shape: str,
    filters: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    ignore: bool,
    fast_math: bool,
) -> None:
    """Compile kernels for GPUs ahead of time, into the cache; no GPU is needed.

    Forward and backward of one layer; a kernel that learns nothing per filter or channel pools each channel, unless it
    reads the output's own channel as x[o, t].
    """
    from . import zoo as operators
    from .arguments import check_counts
    from .backends import DTYPES
    from .backends.cuda import precompiled
    from .geometry import Geometry
    from .kernel import kernel_of

    named = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    if unknown := [name for name in dtypes if name not in named]:
        raise click.UsageError(f"no dtype {unknown[0]!r}; there are {', '.join(named)}")
    if unknown := [name for name in of_zoo if name not in operators.OPERATORS]:
        raise click.UsageError(f"no operator {unknown[0]!r}; `symconv zoo` lists them")
    kernels = [*map(_kernel, formulas), *(getattr(operators, name) for name in of_zoo)]
    if not kernels:
        raise click.UsageError("give formulas, or --zoo NAME")
    x = [int(size) for size in shape.split(",") if size.strip().isdecimal()]
    if not 3 <= len(x) <= 5 or len(x) != len(shape.split(",")) or 0 in x:
        raise click.UsageError(f"--input must be N,C and one to three sizes, like 32,64,56,56, not {shape!r}")
    console = Console(highlight=False, soft_wrap=True)
    for kernel in kernels:
        table = Table(
            box=rich.box.SIMPLE_HEAD,
            title=escape(kernel.title),
            title_justify="left",
            padding=(0, 1, 0, 0),
            show_edge=False,
            pad_edge=False,
        )
        for column in ("for", "dtype", "function", "registers", "stack", "spilled"):
            table.add_column(column, justify="left" if column == "function" else "right", no_wrap=True)
        pools = kernel.signature.pools
        axes = [(value,) * (len(x) - 2) for value in (kernel_size, stride, dilation)]
        geometry = Geometry(
            axes[0],
            x[1] if pools else filters,
            axes[1],
            ((padding, padding),) * (len(x) - 2),
            axes[2],
            x[1] if pools else groups,
            ignore,
        )
        if not pools and (x[1] % groups or filters % groups):
            raise click.UsageError(f"--groups {groups} must divide {x[1]} channels and {filters} filters")
        counts = dict.fromkeys(kernel.signature.names("input"), x[1])
        check_counts(kernel.signature, counts, geometry.out_channels, geometry.groups)
        if min(geometry.output_size(x[2:])) < 1:
            raise click.UsageError(f"a window of {kernel_size} does not fit into an image of {x[2:]}")
        for architecture in architectures:
            for name in dtypes:
                found = precompiled(kernel_of(kernel.text), architecture, named[name], x, geometry, fast_math)
                for function, each in found.items():
                    short = function.removeprefix("symconv_")
                    if short.endswith(("_measure", "_prepare")):
                        continue
                    table.add_row(architecture, name, short, *map(str, each))
        console.print(table)
        console.print()


@main.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("symconv-demo.png"),
    show_default=True,
    help="The picture.",
)
@click.option("--epochs", type=click.IntRange(1), help="Fewer or more passes over the digits.")
@click.option("--seed", default=0, show_default=True, help="Of weights and batches.")
def demo(output: Path, epochs: int | None, seed: int) -> None:
    """Train three formulas and a convolution on handwritten digits, and draw them."""
    from .demo import demo as run

    run(output, epochs, seed)


@main.command()
def doctor() -> None:
    """Say which versions are here, which backends run, and where the cache is."""
    import torch

    from .backends import backends
    from .build.cache import Cache
    from .build.environment import building_is_forbidden
    from .build.toolchain import find_toolchain

    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in ("symconv", "torch", "sympy", "jinja2", "numpy"):
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, "not installed")
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    table.add_row("threads", str(torch.get_num_threads()))
    cuda = f"{torch.cuda.device_count()} device(s)" if torch.cuda.is_available() else "none"
    table.add_row("cuda", cuda)
    told: dict[str, str] = {}  # each reason, and what it was said of

    def because(reason: str, of: str) -> str:
        first = told.setdefault(reason, of)
        return f": {escape(reason)}" if first == of else f", as {first}"

    for each in backends().values():
        reason, of = each.unavailable(), f"backend {each.name}"
        table.add_row(of, "[green]runs[/]" if reason is None else f"[red]unavailable[/]{because(reason, of)}")
    try:
        found = find_toolchain()
        extras = ("OpenMP" if found.openmp else "no OpenMP", "Sleef" if found.sleef else "no Sleef")
        table.add_row("compiler", f"{escape(found.title)}, vectors of {found.vector_bytes} bytes, {', '.join(extras)}")
    except SymconvError as error:
        table.add_row("compiler", f"[red]none[/]{because(str(error), 'compiler')}")
    cache = Cache()
    try:
        cache.check_owner()
        entries = list(cache.entries())
        table.add_row(
            "cache", f"{escape(str(cache.root))} ({len(entries)} entries, {_bytes(sum(e.size for e in entries))})"
        )
    except SymconvError as error:
        table.add_row("cache", f"[red]unusable[/]: {escape(str(error))}")
    if building_is_forbidden():
        table.add_row("SYMCONV_DISABLE_JIT", "set: kernels that are not in the cache are refused")
    console.print(table)


@main.group()
def cache() -> None:
    """Look into the cache of generated code, or empty it."""


@cache.command("path")
def cache_path() -> None:
    """Print the directory."""
    from .build.cache import cache_directory

    click.echo(cache_directory())


@cache.command("info")
def cache_info() -> None:
    """Print the directory, the number of entries and their size."""
    from .build.cache import Cache

    entries = list(Cache().entries())
    click.echo(f"{Cache().root}\n{len(entries)} entries, {_bytes(sum(entry.size for entry in entries))}")


@cache.command("list")
def cache_list() -> None:
    """List the entries, the most recently used first."""
    from .build.cache import Cache

    table = Table(box=None, pad_edge=False)
    for column in ("key", "kernel", "size", "last used"):
        table.add_column(column, no_wrap=column != "kernel", overflow="fold")
    for entry in Cache().entries():
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        table.add_row(entry.key[:12], entry.description, _bytes(entry.size), used)
    Console(highlight=False, markup=False, soft_wrap=True).print(table)


@cache.command("prune")
@click.option(
    "--size", type=click.FloatRange(min=0), required=True, help="Keep the most recently used entries up to so many MiB."
)
def cache_prune(size: float) -> None:
    """Remove the least recently used entries."""
    from .build.cache import Cache

    removed = Cache().prune(size * 2**20)
    click.echo(f"removed {len(removed)} entries, {_bytes(sum(entry.size for entry in removed))}")


@cache.command("clear")
@click.confirmation_option(prompt="Remove every entry of the cache?")
def cache_clear() -> None:
    """Remove every entry."""
    from .build.cache import Cache

    click.echo(f"removed {Cache().clear()} entries")


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
