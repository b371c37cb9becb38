"""What generated files say about a kernel: its formula, derivatives, operations and names, whichever the backend."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sympy as sp

from ..accumulators import Result
from ..derive import gradients
from ..kernel import Kernel
from ..language.symbols import Access, Operand
from ..printers.mathematics import glossary, kink_notes
from ..printers.text import TextPrinter
from ..rewrite import readable
from ..schedule import Accumulator, Schedule, Sweep
from ..version import __version__

MEANINGS = {
    "input": "input under the tap, [n, in_channels, *size]",
    "weight": "weight of the tap, [out_channels, in_channels/groups, *kernel_size]",
    "bias": "bias of the filter, [out_channels]",
    "param": "learned parameter",
    "field": "value per output pixel",
    "const": "number fixed when the layer is made",
    "offset": "offset of the tap from the centre, in input pixels",
    "size": "how many: T taps, C channels per group, N both",
    "index": "number of the channel (c), of the tap (t) or of the filter (o)",
}


#: What the function says of itself that makes the window values that are kept but not accumulated.
MAKE = "What the backward pass asks for in place of the values of which it is made."


def describe(kernel: Kernel, schedule: Schedule, accesses: Mapping[sp.Symbol, str]) -> dict[str, Any]:
    """What the head of a generated file says about the kernel."""
    derivatives = gradients(kernel.formula)
    notes = glossary(derivatives.values()) + kink_notes(kernel.formula)
    names = [(operand.name, _meaning(operand)) for operand in kernel.formula.operands]
    names += [(name, access.name) for access, name in accesses.items()]
    for lifted in itertools.chain(*schedule.lifted):
        names.append((lifted.name, f"{_text(lifted.expr)}, once per {'pixel' if lifted.pixel else 'weight'}"))
    for sweep in (*schedule.forward, *schedule.backward):
        for each in sweep.accumulators:
            names += [(symbol.name, legend(each, result)) for symbol, result in zip(each.symbols, each.kind.results)]
    names += [(name.name, "kept: " + _text(expr)) for name, expr in zip(schedule.made, schedule.make.whole)]
    return {
        "title": kernel.title,
        "version": __version__,
        "formula": kernel.text.splitlines(),
        "gradients": [(operand.name, _text(gradient)) for operand, gradient in derivatives.items()],
        "notes": notes,
        "operations": [
            ("forward", operations_line(schedule.forward)),
            ("backward", operations_line(schedule.backward)),
        ],
        "names": [*dict(names).items()],
        "width": max(len(name) for name, _ in names),
        "tensors": list(kernel.signature.tensors),
        "numbers": list(kernel.signature.numbers),
    }


def operations(sweeps: Sequence[Sweep]) -> Counter[str]:
    """The operations at one tap, all sweeps together."""
    return sum((sweep.taps.operations for sweep in sweeps), Counter())


def operations_line(sweeps: Sequence[Sweep]) -> str:
    """The operations at one tap on one line."""
    return ", ".join(f"{count} {name}" for name, count in sorted(operations(sweeps).items())) or "none"


def _meaning(operand: Operand) -> str:
    axes = {"o": "filter", "c": "channel", "t": "tap"}
    per = " and ".join(axes[axis] for axis in operand.axes)
    bank = f"bank of {operand.bank}, each a " if operand.bank else ""
    return bank + MEANINGS[operand.role] + (f", one per {per}" if operand.role in ("param", "field") and per else "")


def summary(accumulator: Accumulator) -> str:
    """What an accumulator is there for."""
    return legend(accumulator, accumulator.kind.results[accumulator.kind.headline])


def legend(accumulator: Accumulator, result: Result) -> str:
    """What one of the symbols of an accumulator stands for."""
    over = {"c": " over the channels", "t": " over the taps"}.get("".join(sorted(accumulator.dims)), "")
    return result.meaning.format(value=_text(accumulator.value) + over, first=accumulator.symbols[0])


def _text(expr: sp.Expr) -> str:
    """An expression for the legend, in the text language."""
    return str(TextPrinter().doprint(readable(expr)))


def identifiers(kernel: Kernel, schedule: Schedule) -> dict[sp.Symbol, str]:
    """A name in generated code for each operand that is read elsewhere than at the tap."""
    sweeps = *schedule.forward, *schedule.backward
    blocks = [block for each in sweeps for block in (each.before, each.taps, *each.factors) if block is not None]
    blocks += [each.block for lifted in schedule.lifted for each in lifted]
    symbols = {symbol for block in (*blocks, schedule.output, schedule.at_windows) for symbol in block.arguments}
    # A place that nothing reads may have a gradient: that of y in ste(x, y).
    symbols = symbols.union(schedule.window_gradients, *(each.gradients for each in sweeps))
    values = [*schedule.made, *(symbol for each in sweeps for one in each.accumulators for symbol in one.symbols)]
    others: list[sp.Symbol] = [*kernel.formula.operands, *values, *itertools.chain(*schedule.lifted)]
    taken, names = {each.name for each in others}, {}
    for access in sorted((each for each in symbols if isinstance(each, Access)), key=lambda each: each.name):
        step = {None: "_centre", 0: "", 1: "_next", -1: "_previous"}.get(
            access.shift, f"_{'next' if (access.shift or 0) > 0 else 'previous'}{abs(access.shift or 0)}"
        )
        element = "" if access.element is None else f"_{access.element}"
        name = f"{access.base.name}{element}{'_own' * access.own}{step}"
        while name in taken:
            name += "_"
        taken.add(name)
        names[access] = name
    return names
