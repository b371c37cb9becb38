"""What the templates of native code are told: a schedule, printed, pass by pass (forward, backward)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..kernel import Kernel
from ..language.axes import WINDOW, Domain, Position, domain
from ..operations import NOTHING, PERIODIC, Block
from ..printers.cpp import CppPrinter, identifier
from ..render import render
from ..schedule import Schedule, Sweep
from .description import MAKE, describe, identifiers, summary
from .native_members import Members

#: The places of a domain, by its axes.
PLACES = {"": "the window as a whole", "c": "channels", "t": "taps", "ct": "channels and taps"}


def native_source(kernel: Kernel, schedule: Schedule, template: str, passes: Sequence[Pass]) -> str:
    """The text of a file that computes a kernel and its gradients.

    It is compiled once per pass and dtype; it includes the static headers and nothing else.

    Args:
        kernel, schedule: what it computes, and how.
        template: `cpp/kernel.cpp.jinja` or `cuda/kernel.cu.jinja`.
        passes: both, as they are printed for it.
    """
    accesses = identifiers(kernel, schedule)
    return render(
        template,
        kernel=describe(kernel, schedule, accesses) | {"template": template},
        passes=[each.context() for each in passes],
    )


class Pass(Members):
    """One pass as the strings that the template puts in place."""

    name: str
    doc: str
    #: Whether loops compute periodic functions for a limited range of arguments first.
    ranged = False

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        super().__init__(kernel, schedule)
        self.functions: list[dict[str, Any]] = []
        self.sweeps = self.named_sweeps()
        self.printed = [self.sweep(sweep, name) for name, sweep in self.sweeps.items()]

    def named_sweeps(self) -> dict[str, Sweep]:
        """The sweeps of the pass by the names of their functions."""
        raise NotImplementedError

    def context(self) -> dict[str, Any]:
        inputs = [name for name in self.tensors if name in self.seen]
        return {
            "name": self.name,
            "doc": self.doc,
            "functions": self.functions,
            "sweeps": self.printed,
            "domains": self.domains(),
            "shared": [(name, kind, make) for name, (kind, make) in self.shared.items()],
            "pixels": [],
            "inputs": [(name, self.tensors.index(name)) for name in inputs],
            "fields": [self.field(name) for name in self.tensors if self.operands[name].role == "field"],
            "values": self.values(),
            "counts": [
                (symbol.name, self.channels(where), "t" in where.axes)
                for symbol, where in sorted(self.schedule.counts.items(), key=str)
                if any(symbol.name in members for members in self.members.values())
            ],
            "kept": [(identifier(symbol.name), isinstance(symbol, Position)) for symbol in self.schedule.kept],
            "output": len(self.tensors),
            "tensors": len(self.tensors) + 1 + len(self.schedule.kept) + len(self.tensors) * (self.name == "backward"),
            "numbers": len(self.numbers),
            "rank_counts": [
                nest["inner"].replace("taps.", f"shared.{sweep['id']}.", 1)
                for sweep in self.printed
                for nest in sweep["nests"]
                if nest["ranks"]
            ],
            "ranks": max(
                [sum(a.rank is not None for a in sweep.accumulators) for sweep in self.sweeps.values()], default=0
            ),
        }

    def domains(self) -> list[dict[str, Any]]:
        """The domains that are swept or read, with their members."""
        swept = {sweep.where for sweep in self.sweeps.values()}
        return [
            {
                "id": self.id(where),
                "doc": PLACES[where.axes],
                "channels": self.channels(where),
                "has_taps": "true" if "t" in where.axes else "false",
                "inside": where in swept and "t" in where.axes,
                "members": [*members.values()],
            }
            for where, members in sorted(self.members.items())
            if members or where in swept
        ]

    def values(self) -> list[tuple[str, str, str]]:
        """The arrays of values per window: name, type, how many per filter."""
        found = []
        for sweep in self.sweeps.values():
            found += [(name, "real", "1") for name in map(self.identifier, sweep.names)]
            for each in sweep.accumulators:
                for symbol in each.symbols:
                    kind = "integer" if isinstance(symbol, Position) else "real"
                    found.append((self.identifier(symbol), kind, self.extent(each.left)))
        return found

    def field(self, name: str) -> dict[str, Any]:
        axes = self.operands[name].axes
        return {
            "name": name,
            "index": self.tensors.index(name),
            "per_filter": "o" in axes,
            "taps": "windows.taps" if "t" in axes else "1",
        }

    # -- Functions and sweeps ----------------------------------------------------------------------------------------

    def function(
        self, name: str, doc: str, block: Block, at: Domain | Sequence[str], ranged: bool = False
    ) -> dict[str, Any]:
        """Register a function of the generated file; returns how it is called and what it gives.

        Args:
            name, doc, block: of the function.
            at: the domain at whose places its arguments are read, or the arguments.
            ranged: whether it is told of the range of arguments.
        """
        arguments = [self.read(symbol, at) for symbol in block.arguments] if isinstance(at, Domain) else [*at]
        printer = CppPrinter(self.printer.names, ranged)
        results = [printer.result(expr) for expr in block.results]
        single = len(results) == 1
        if results and all(function["name"] != name for function in self.functions):
            self.functions.append(
                {
                    "name": name,
                    "doc": doc,
                    "type": "vec" if single else f"Results<{len(results)}>",
                    "arguments": [
                        f"{'ivec' if isinstance(symbol, Position) else 'vec'} {self.identifier(symbol)}"
                        for symbol in block.arguments
                    ]
                    + ["Range& range"] * ranged,
                    "temporaries": [
                        (identifier(str(symbol)), printer.doprint(expr)) for symbol, expr in block.temporaries
                    ],
                    "ranged": ranged,
                    "results": results[0] if single else "{{" + ", ".join(results) + "}}",
                }
            )
        values = ["value"] if single else [f"value[{k}]" for k in range(len(results))]
        return {"call": f"{name}({', '.join(arguments + ['range'] * ranged)})", "values": values}

    def sweep(self, sweep: Sweep, name: str) -> dict[str, Any]:
        self.members.setdefault(sweep.where, {})  # also where its taps read nothing
        before = self.function(f"{name}_before", "What is the same at all taps of a window.", sweep.before, WINDOW)
        ranged = self.ranged and not PERIODIC.isdisjoint(sweep.taps.operations)
        taps = self.function(f"{name}_tap", self.doc_of(sweep), sweep.taps, sweep.where, ranged)
        ranks = self.function(f"{name}_ranks", "The ranks whose values are wanted.", sweep.ranks, WINDOW)
        return {
            "name": name,
            "id": self.id(sweep.where),
            "inside": "t" in sweep.where.axes,
            "filter_lanes": False,
            "doc": "; ".join(map(summary, sweep.accumulators)) or self.doc_of(sweep).removesuffix("."),
            "before": before,
            "names": [self.identifier(symbol) for symbol in sweep.names],
            "taps": taps,
            "ranged": ranged,
            "ranks": ranks,
            "nests": self.nests(sweep, name, taps["values"], ranks["values"]),
            "images": [],
            "banks": [],
            "others": [],
        }

    @staticmethod
    def doc_of(sweep: Sweep) -> str:
        """What the function of a sweep gives."""
        if not sweep.gradients:
            return "What each tap adds."
        who = "Each window gives once" if sweep.where == WINDOW else "Each tap gives"
        return f"{who} to the gradients: {', '.join(place.name for place in sweep.gradients)}."

    def nests(self, sweep: Sweep, name: str, values: list[str], ranks: list[str]) -> list[dict[str, Any]]:
        """The accumulators in groups that reduce the same axes: each group is a loop nest."""
        waiting, ranked = iter(values), iter(ranks)
        groups: dict[frozenset[str], list[dict[str, Any]]] = {}
        for number, each in enumerate(sweep.accumulators):
            is_rank = each.rank is not None
            entry = {
                "variable": f"running_{each.symbols[0].name}",
                "type": each.kind.name,
                "position": each.kind.takes_position,
                "left": domain(each.left).axes,
                "given": next(waiting),
                "rank": next(ranked) if is_rank else "",
                "number": sum(a.rank is not None for a in sweep.accumulators[:number]),
                "stores": [
                    (self.identifier(symbol), result.name, "store_int" if result.is_position else "store")
                    for symbol, result in zip(each.symbols, each.kind.results)
                ],
            }
            groups.setdefault(each.dims, []).append(entry)
        return [
            {
                "name": name if len(groups) == 1 else f"{name}_over_{''.join(sorted(dims))}",
                "left": entries[0]["left"],
                "index": "j" if entries[0]["left"] else "k",
                "outer": {"": "", "c": "taps.channels", "t": "taps.taps"}[entries[0]["left"]],
                "inner": {"": "taps.count", "c": "taps.taps", "t": "taps.channels"}[entries[0]["left"]],
                "k": {"": "k", "c": "l * taps.taps + j", "t": "j * taps.taps + l"}[entries[0]["left"]],
                "position": {"ct": "k", "c": "taps.channel[k]", "t": "taps.tap[k]"}["".join(sorted(dims))],
                "accumulators": entries,
                "ranks": any(entry["rank"] for entry in entries),
            }
            for dims, entries in groups.items()
        ]


class Forward(Pass):
    name, doc, block = "forward", "The output, and what the backward pass wants to be kept.", "FORWARD_FILTERS"

    def named_sweeps(self) -> dict[str, Sweep]:
        return {f"forward_{k}": sweep for k, sweep in enumerate(self.schedule.forward, 1)}

    def context(self) -> dict[str, Any]:
        doc = "The output, from what the window's taps gave."
        return {
            "combine": self.function("combine", doc, self.schedule.output, WINDOW),
            "make": self.function("make", MAKE, self.schedule.make, WINDOW),
            "made": [*map(self.identifier, self.schedule.made)],
            **super().context(),
        }

    def values(self) -> list[tuple[str, str, str]]:
        made = [(self.identifier(symbol), "real", "1") for symbol in self.schedule.made]
        return [*super().values(), *made, ("output", "real", "1")]


class Backward(Pass):
    name, doc, block = "backward", "The gradients; tap values are computed again.", "1"

    def named_sweeps(self) -> dict[str, Sweep]:
        repeated = [sweep for sweep in self.schedule.backward if not sweep.gradients]
        gradients = [sweep for sweep in self.schedule.backward if sweep.gradients]
        if self.schedule.window_gradients:
            nothing, at_windows = NOTHING, self.schedule.at_windows
            gradients.append(Sweep(WINDOW, (), nothing, at_windows, gradients=self.schedule.window_gradients))
        named = {f"backward_{k}": sweep for k, sweep in enumerate(repeated, 1)}
        return named | {f"gradient_{k}" if len(gradients) > 1 else "gradient": s for k, s in enumerate(gradients, 1)}

    def context(self) -> dict[str, Any]:
        gradients = []
        for index, name in enumerate(self.tensors):
            operand = self.operands[name]
            kind = operand.role if operand.role in ("input", "field") else "bank"
            sizes = [] if operand.bank is None else [str(operand.bank)]
            sizes += ["windows.geometry.groups * windows.geometry.filters"] * ("o" in operand.axes)
            sizes += ["windows.geometry.channels"] * ("c" in operand.axes) + ["windows.taps"] * ("t" in operand.axes)
            gradients.append(
                {"name": name, "kind": kind, "index": index, "elements": " * ".join(sizes) or "1", **self.field(name)}
            )
        return {"gradients": gradients, **super().context()}

    def values(self) -> list[tuple[str, str, str]]:
        kept = [
            (self.identifier(symbol), "integer" if isinstance(symbol, Position) else "real", "1")
            for symbol in self.schedule.kept
        ]
        return [("grad", "real", "1"), *kept, *super().values()]

    def sweep(self, sweep: Sweep, name: str) -> dict[str, Any]:
        printed = super().sweep(sweep, name)
        kinds = {"bank": "banks", **({} if sweep.where == WINDOW else {"image": "images"})}
        factors = sweep.factors or (None,) * len(sweep.gradients)
        for place, value, factor in zip(sweep.gradients, printed["taps"]["values"], factors):
            sink = self.sink(place, sweep.where, value)
            if factor is not None:
                doc = "What is the same for all terms of its sum."
                function = f"{name}_{self.identifier(place)}_factor"
                sink["factor"] = self.function(function, doc, factor, sweep.where)["call"]
            printed[kinds.get(sink["kind"], "others")].append(sink)
        wanted = {
            kind: " || ".join({f"grad_{sink['of']}.data": None for sink in printed[kind]})
            for kind in ("images", "banks", "others")
        }
        return printed | {"wanted": wanted}
