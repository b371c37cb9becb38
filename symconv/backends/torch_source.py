"""What the PyTorch templates are told: a schedule, printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import sympy as sp

from ..derive import gradients
from ..functions import readable
from ..kernel import Kernel
from ..language.symbols import Operand
from ..lower import COUNT, GRAD_OUTPUT, POSITION, Block, Schedule, Sweep
from ..printers.mathematics import glossary, kink_notes
from ..printers.text import TextPrinter
from ..printers.torch import TorchPrinter
from ..render import render, static_header
from ..version import __version__

#: The class of the static header behind each kind of accumulator.
ACCUMULATORS = {"sum": "Sum", "product": "Product", "first_max": "FirstMax", "logsumexp": "LogSumExp"}
#: How an operand of each role enters a function at a tap, and once per window.
AT_TAP = {"input": "block.image({0})", "offset": "block.offset({1})", "const": "{0}", "size": "{0}"}
PREPARE = {
    "input": "{0} = layout.image({0})",
    "const": "{0} = layout.number({0})",
    "size": "{0} = layout.number({1})",
}
SIZES = {"T": "layout.tap_count", "C": "layout.channels", "N": "layout.tap_count * layout.channels"}
MEANINGS = {
    "input": "input under the tap, [n, in_channels, *size]",
    "weight": "weight of the tap, [out_channels, in_channels/groups, *kernel_size]",
    "bias": "bias of the filter, [out_channels]",
    "param": "learned parameter",
    "const": "number fixed when the layer is made",
    "offset": "offset of the tap from the centre, in input pixels",
    "size": "how many: T taps, C channels per group, N both",
}


def torch_source(kernel: Kernel, schedule: Schedule, template: str = "torch/kernel.py.jinja", **context: Any) -> str:
    """The text of a PyTorch module that computes a kernel and its gradients, importing only torch."""
    return render(
        template,
        kernel=describe(kernel, schedule),
        schedule=_Printed(kernel, schedule).context(),
        header=static_header("window.py"),
        **context,
    )


def describe(kernel: Kernel, schedule: Schedule) -> dict[str, Any]:
    """What the head of a generated file says about the kernel."""
    tensors = [operand.name for operand in kernel.formula.operands if operand.is_tensor]
    numbers = [operand.name for operand in kernel.formula.operands if operand.role == "const"]
    derivatives = gradients(kernel.formula)
    notes = glossary(derivatives.values()) + kink_notes(kernel.formula)
    names = [(operand.name, _meaning(operand)) for operand in kernel.formula.operands]
    for sweep in (*schedule.forward, *schedule.backward):
        for each in sweep.accumulators:
            names.append((each.symbols[0].name, f"{each.kind} of {_text(each.value)}"))
            names += [(symbol.name, f"the tap that attains {each.symbols[0]}") for symbol in each.symbols[1:]]
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
        "names": names,
        "width": max(len(name) for name, _ in names),
        "signature": ", ".join([*tensors, *numbers]),
        "tensors": _tuple(tensors),
        "tensor_names": _tuple(map(_quoted, tensors)),
        "x": tensors[0],
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
    return MEANINGS[operand.role] + (f", one per {per}" if operand.role == "param" and per else "")


def _tuple(items: Iterable[str]) -> str:
    items = list(items)
    return f"({', '.join(items)}{',' * (len(items) == 1)})"


def _text(expr: sp.Expr) -> str:
    """An expression for the legend, in the text language."""
    return str(TextPrinter().doprint(readable(expr)))


def _quoted(text: str) -> str:
    return f'"{text}"'


def _targets(names: Iterable[str]) -> str:
    """Names on the left of an assignment from a tuple."""
    return _tuple(names)[1:-1]


class _Printed:
    """A schedule as the strings that the template puts in place."""

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        self.operands = {operand.name: operand for operand in kernel.formula.operands}
        self.schedule = schedule
        self.printer = TorchPrinter()
        self.functions: list[dict[str, Any]] = []
        self.number = 0

    def context(self) -> dict[str, Any]:
        schedule = self.schedule
        forward = [self.sweep(sweep, f"forward_{k}") for k, sweep in enumerate(schedule.forward, 1)]
        call_output = self.function("combine", "The output, from what the window's taps gave.", schedule.output)
        gradient_sweep = None
        backward = list(schedule.backward)
        if schedule.tap_gradients:
            last = backward.pop()
            gradient_sweep = self.sweep(last, "gradient") | {
                "operands": _tuple(_quoted(operand.name) for operand in schedule.tap_gradients),
            }
        sweeps = [self.sweep(sweep, f"backward_{k}") for k, sweep in enumerate(backward, 1)]
        call_at_windows = self.function(
            "gradient_windows", "What reaches each operand once per window.", schedule.at_windows, always_tuple=True
        )
        used_forward = self.used(schedule.forward, schedule.output)
        used_backward = self.used(schedule.backward, schedule.at_windows) | set(self.tensors())
        return {
            "functions": self.functions,
            "forward": forward,
            "call_output": self.expanded_output(call_output),
            "kept": _tuple(symbol.name for symbol in schedule.kept),
            "kept_targets": _targets(symbol.name for symbol in schedule.kept),
            "backward": sweeps,
            "gradient_sweep": gradient_sweep,
            "window_operands": (
                _tuple(_quoted(operand.name) for operand in schedule.window_gradients)
                if schedule.window_gradients
                else ""
            ),
            "call_at_windows": call_at_windows,
            "prepare_forward": self.prepare(used_forward),
            "prepare_backward": self.prepare(used_backward),
            "gradients": [(name, self.gradient(name)) for name in self.tensors()],
        }

    def tensors(self) -> list[str]:
        return [name for name, operand in self.operands.items() if operand.is_tensor]

    def expanded_output(self, call: str) -> str:
        """The output function may give fewer values than there are windows (`b` alone): then they are repeated."""
        produced = {symbol for sweep in self.schedule.forward for each in sweep.accumulators for symbol in each.symbols}
        if produced & set(self.schedule.output.arguments):
            return call
        return f"layout.windows(0.0) + {call}"

    def function(self, name: str, doc: str, block: Block, always_tuple: bool = False) -> str:
        """Register a function of the generated file; returns the call of it once per window."""
        results = [self.printer.doprint(expr) for expr in block.results]
        self.functions.append(
            {
                "name": name,
                "doc": doc,
                "arguments": [symbol.name for symbol in block.arguments],
                "temporaries": [(str(symbol), self.printer.doprint(expr)) for symbol, expr in block.temporaries],
                "results": _tuple(results) if always_tuple or len(results) != 1 else results[0],
            }
        )
        if not results:
            self.functions.pop()
        return f"{name}({', '.join(map(self.per_window, block.arguments))})"

    def sweep(self, sweep: Sweep, name: str) -> dict[str, Any]:
        self.number += 1
        call_before = self.function(
            f"{name}_before", "What is the same at all taps of a window.", sweep.before, always_tuple=True
        )
        doc = "What each tap gives to each operand's gradient." if not sweep.accumulators else "What each tap adds."
        self.function(f"{name}_tap", doc, sweep.taps, always_tuple=True)
        return {
            "number": self.number,
            "doc": "; ".join(f"{each.kind} of {_text(each.value)}" for each in sweep.accumulators),
            "names": _targets(symbol.name for symbol in sweep.names),
            "call_before": call_before,
            "call_taps": f"{name}_tap({', '.join(map(self.at_tap, sweep.taps.arguments))})",
            "tap_values": _targets(f"value_{k}" for k in range(1, len(sweep.taps.results) + 1)),
            "accumulators": [
                {
                    "variable": f"running_{each.symbols[0].name}",
                    "cls": ACCUMULATORS[each.kind],
                    "value": f"value_{k}",
                    "symbols": _targets(symbol.name for symbol in each.symbols),
                }
                for k, each in enumerate(sweep.accumulators, 1)
            ],
        }

    def at_tap(self, symbol: sp.Symbol) -> str:
        if symbol == POSITION:
            return "block.position()"
        operand = self.operands.get(symbol.name)
        if operand is None or symbol == GRAD_OUTPUT:
            return f"block.window({symbol.name})"
        axis = {"dx": "-1", "dy": "-2", "dz": "-3"}.get(symbol.name, "")
        return AT_TAP.get(operand.role, "block.bank({0})").format(symbol.name, axis)

    def per_window(self, symbol: sp.Symbol) -> str:
        operand = self.operands.get(symbol.name)
        return f"layout.per_window({symbol.name})" if operand is not None and operand.is_tensor else symbol.name

    def used(self, sweeps: Sequence[Sweep], last: Block) -> set[str]:
        blocks = [block for sweep in sweeps for block in (sweep.before, sweep.taps)] + [last]
        return {symbol.name for block in blocks for symbol in block.arguments}

    def prepare(self, used: set[str]) -> list[str]:
        lines = []
        for name, operand in self.operands.items():
            if name in used and operand.role != "offset":
                line = PREPARE.get(operand.role, "{0} = layout.bank({0}, {2})")
                lines.append(line.format(name, SIZES.get(name, ""), _quoted("".join(operand.axes))))
        return lines + ["count = layout.count()"] * (COUNT.name in used)

    def gradient(self, name: str) -> str:
        if self.operands[name].role == "input":
            return f"ImageGradient(layout, given[{self.tensors().index(name)}])"
        return f"BankGradient(layout, {name})"
