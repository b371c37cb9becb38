"""What the PyTorch templates are told: a schedule, printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sympy as sp

from ..kernel import Kernel
from ..language.axes import Domain, Position, TapPosition, domain
from ..language.symbols import Access, Operand
from ..operations import Block
from ..printers.torch import TorchPrinter, identifier
from ..render import render, static_header
from ..schedule import Schedule, Sweep
from .description import MAKE, describe, identifiers, summary

#: How an operand of each role is made ready for the blocks.
PREPARE = {
    "input": "{0} = layout.image({0})",
    "const": "{0} = layout.number({0})",
    "size": "{0} = layout.number({1})",
    "field": '{0} = layout.field({0}, "{2}")',
}
SIZES = {"T": "layout.tap_count", "C": "layout.channels", "N": "layout.tap_count * layout.channels"}
#: How an operand of each role enters a function, from a block of windows or a tap of it.
ENTER = {
    "input": "{block}.image({name})",
    "field": "{block}.field({name})",
    "offset": "{block}.offset({axis})",
    "index": '{block}.index("{name}")',
    "const": "{name}",
    "size": "{name}",
}
GRADIENTS = {"input": "ImageGradient(layout, given[{1}])", "field": "FieldGradient(layout, {0})"}


def torch_source(kernel: Kernel, schedule: Schedule, template: str = "torch/kernel.py.jinja", **context: Any) -> str:
    """The text of a PyTorch module that computes a kernel and its gradients, importing only torch."""
    printed = _Printed(kernel, schedule)
    return render(
        template,
        schedule=printed.context(),
        kernel=describe(kernel, schedule, printed.accesses) | arguments(kernel),
        header=static_header("window.py"),
        **context,
    )


def arguments(kernel: Kernel) -> dict[str, str]:
    """The operands as arguments of the generated functions."""
    names = kernel.signature.tensors
    tensors, numbers = [*map(identifier, names)], [*map(identifier, kernel.signature.numbers)]
    return {
        "signature": ", ".join([*tensors, *numbers]),
        "tensors": _tuple(tensors),
        "tensor_names": _tuple(f'"{name}"' for name in names),
        "x": tensors[0],
    }


def _tuple(items: Iterable[str]) -> str:
    items = list(items)
    return f"({', '.join(items)}{',' * (len(items) == 1)})"


def _targets(names: Iterable[str]) -> str:
    """Names on the left of an assignment from a tuple."""
    return _tuple(names)[1:-1]


class _Printed:
    """A schedule as the strings that the template puts in place."""

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        self.operands = {operand.name: operand for operand in kernel.formula.operands}
        self.tensors = kernel.signature.tensors
        self.schedule = schedule
        self.accesses = identifiers(kernel, schedule)
        self.printer = TorchPrinter(self.accesses)
        self.functions: list[dict[str, Any]] = []
        self.number = 0

    def context(self) -> dict[str, Any]:
        schedule = self.schedule
        forward = [self.sweep(sweep, f"forward_{k}") for k, sweep in enumerate(schedule.forward, 1)]
        output = self.function("combine", "The output, from what the window's taps gave.", schedule.output)
        gradient_sweeps = sum(bool(sweep.gradients) for sweep in schedule.backward)
        repeated = len(schedule.backward) - gradient_sweeps
        names = [f"backward_{k + 1}" for k in range(repeated)]
        names += ["gradient"] if gradient_sweeps == 1 else [f"gradient_{k + 1}" for k in range(gradient_sweeps)]
        backward = [self.sweep(sweep, name) for sweep, name in zip(schedule.backward, names)]
        at_windows = self.function(
            "gradient_windows", "What reaches each operand once per window.", schedule.at_windows, always_tuple=True
        )
        make = self.function("make", MAKE, schedule.make, always_tuple=True)
        used_forward = self.used(schedule.forward, schedule.output, schedule.make)
        used_backward = self.used(schedule.backward, schedule.at_windows) | set(self.tensors)
        return {
            "functions": self.functions,
            "forward": forward,
            "output": output,
            "made": _targets(symbol.name for symbol in schedule.made),
            "make": make,
            "kept": _tuple(
                "layout.windows(torch.int32)" if isinstance(symbol, Position) else "layout.windows()"
                for symbol in schedule.kept
            ),
            "kept_values": _tuple(symbol.name for symbol in schedule.kept),
            "kept_targets": _targets(symbol.name for symbol in schedule.kept),
            "backward": backward,
            "at_windows": at_windows,
            "window_values": _targets(f"value_{k}" for k in range(1, len(schedule.window_gradients) + 1)),
            "window_gradients": self.adds(schedule.window_gradients, "windows"),
            "prepare_forward": self.prepare(used_forward),
            "prepare_backward": self.prepare(used_backward),
            "counts_forward": self.counts(used_forward),
            "counts_backward": self.counts(used_backward),
            "held_forward": self.held(schedule.forward),
            "held_backward": self.held(schedule.backward),
            "gradients": [(name, self.gradient(name)) for name in self.tensors],
        }

    # -- Functions and their calls -----------------------------------------------------------------------------------

    def function(self, name: str, doc: str, block: Block, always_tuple: bool = False) -> str:
        """Register a function of the generated file; returns the call of it once per window."""
        results = [self.printer.doprint(expr) for expr in block.results]
        self.functions.append(
            {
                "name": name,
                "doc": doc,
                "arguments": [*map(self.printer.name, block.arguments)],
                "temporaries": [(str(symbol), self.printer.doprint(expr)) for symbol, expr in block.temporaries],
                "results": _tuple(results) if always_tuple or len(results) != 1 else results[0],
            }
        )
        if not results:
            self.functions.pop()
        return f"{name}({', '.join(self.enter(symbol, 'windows') for symbol in block.arguments)})"

    def enter(self, symbol: sp.Symbol, block: str) -> str:
        """How the value of a symbol is had from a block of windows, or from a tap of it."""
        if isinstance(symbol, Operand):
            name, axis = identifier(symbol.operand.name), {"dx": "-1", "dy": "-2", "dz": "-3"}.get(symbol.name, "")
            place = self.place(symbol, block)
            element = getattr(symbol, "element", None)
            name += "" if element is None else f"[{element}]"
            return ENTER.get(symbol.role, "{block}.bank({name})").format(block=place, name=name, axis=axis)
        if isinstance(symbol, TapPosition):
            return f"{block}.place({self.axes(domain(symbol.labels).axes)})"
        return symbol.name if block == "windows" else f"{block}.window({symbol.name})"

    def place(self, symbol: Operand, block: str) -> str:
        """The block at which an operand is read."""
        if not isinstance(symbol, Access):
            return block
        step = {None: ".centre", 0: ""}.get(symbol.shift, f".next({symbol.shift})")
        return block + ".own_channel" * symbol.own + step

    @staticmethod
    def axes(axes: str) -> str:
        return "" if axes == "ct" else f'"{axes}"'

    def where(self, where: Domain) -> str:
        """The arguments that say which taps, and whose channels."""
        channels = f"channels={self.channels(where)}" if where.inputs else ""
        return ", ".join(filter(None, (self.axes(where.axes), channels)))

    def channels(self, where: Domain) -> str:
        sizes = [f"{identifier(name)}.shape[2]" for name in where.inputs]
        return "layout.channels" if not sizes else sizes[0] if len(sizes) == 1 else f"max({', '.join(sizes)})"

    # -- Sweeps --------------------------------------------------------------------------------------------------

    def sweep(self, sweep: Sweep, name: str) -> dict[str, Any]:
        self.number += 1
        call_before = self.function(
            f"{name}_before", "What is the same at all taps of a window.", sweep.before, always_tuple=True
        )
        doc = "What each tap gives to each operand's gradient." if sweep.gradients else "What each tap adds."
        self.function(f"{name}_tap", doc, sweep.taps, always_tuple=True)
        self.function(f"{name}_ranks", "The ranks whose values are wanted.", sweep.ranks, always_tuple=True)
        values = [f"value_{k}" for k in range(1, len(sweep.taps.results) + 1)]
        arguments = ", ".join(self.enter(symbol, "tap") for symbol in sweep.taps.arguments)
        return {
            "number": self.number,
            "doc": "; ".join(map(summary, sweep.accumulators)) or "the gradients at each tap",
            "names": _targets(symbol.name for symbol in sweep.names),
            "call_before": call_before,
            "taps": f"windows.taps({self.where(sweep.where)})",
            "call_taps": f"{name}_tap({arguments})",
            "tap_values": _targets(values),
            "gradients": self.adds(sweep.gradients, "tap"),
            "accumulators": self.accumulators(sweep, name, values),
        }

    def accumulators(self, sweep: Sweep, name: str, values: list[str]) -> list[dict[str, str]]:
        waiting, found, rank = iter(values), [], 0
        for each in sweep.accumulators:
            over, left = ("".join(sorted({label[0] for label in labels})) for labels in (each.dims, each.left))
            channels = f"channels={self.channels(each.where)}" if "c" in each.where.axes and each.where.inputs else ""
            options = (f'over="{over}"' * (over != "ct"), f'left="{left}"' * bool(left), channels)
            ranks = ""
            if each.rank is not None:
                arguments = ", ".join(self.enter(symbol, "windows") for symbol in sweep.ranks.arguments)
                ranks, rank = f"{name}_ranks({arguments})[{rank}]", rank + 1
            found.append(
                {
                    "variable": f"running_{each.symbols[0].name}",
                    "make": f"{each.kind.name}({', '.join(filter(None, ('windows', *options)))})",
                    "value": next(waiting),
                    "symbols": _targets(symbol.name for symbol in each.symbols),
                    "ranks": ranks,
                }
            )
        return found

    def adds(self, places: Sequence[Operand], block: str) -> list[tuple[str, str]]:
        """For each gradient the operand, and the arguments with which it is added."""
        found = []
        for number, place in enumerate(places, 1):
            element = getattr(place, "element", None)
            which = "" if element is None else f", element={element}"
            found.append((place.operand.name, f"{self.place(place, block)}, value_{number}{which}"))
        return found

    # -- What is made ready ------------------------------------------------------------------------------------------

    def used(self, sweeps: Sequence[Sweep], *last: Block) -> set[str]:
        blocks = [block for sweep in sweeps for block in (sweep.before, sweep.taps, sweep.ranks)] + [*last]
        names = {getattr(symbol, "operand", symbol).name for block in blocks for symbol in block.arguments}
        counted = [where for symbol, where in self.schedule.counts.items() if symbol.name in names]
        return names.union(*(where.inputs for where in [*counted, *(sweep.where for sweep in sweeps)]))

    def prepare(self, used: set[str]) -> list[str]:
        lines = []
        for name, operand in self.operands.items():
            if name in used and operand.role not in ("offset", "index"):
                axes = ("k" if operand.bank else "") + "".join(operand.axes)
                line = PREPARE.get(operand.role, '{0} = layout.bank({0}, "{2}")')
                lines.append(line.format(identifier(name), SIZES.get(name, ""), axes))
        return lines

    def counts(self, used: set[str]) -> list[str]:
        """How many taps the windows have, for the symbols that stand for it."""
        counts = sorted(self.schedule.counts.items(), key=lambda each: each[0].name)
        return [
            f"{symbol.name} = windows.count({self.where(where)})" for symbol, where in counts if symbol.name in used
        ]

    def held(self, sweeps: Sequence[Sweep]) -> str:
        """The argument that says how many values are held per window, empty for one."""
        sizes = []
        for where in self.schedule.held(sweeps):
            parts = [self.channels(where)] * ("c" in where.axes) + ["layout.tap_count"] * ("t" in where.axes)
            sizes.append(" * ".join(parts))
        return "" if not sizes else f"held={sizes[0]}" if len(sizes) == 1 else f"held=max({', '.join(sizes)})"

    def gradient(self, name: str) -> str:
        make = GRADIENTS.get(self.operands[name].role, "BankGradient(layout, {0})")
        return make.format(identifier(name), self.tensors.index(name))
