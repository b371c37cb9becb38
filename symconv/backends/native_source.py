"""What the templates of native code are told: a schedule, printed.

A pass (forward, backward) reads operands and window values at *places*.  For each domain that its sweeps run over, the
generated struct has one member per symbol, which knows by itself how its operand lies: every call in a sweep is the
same text, `x(here)`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import sympy as sp

from ..kernel import Kernel
from ..language.axes import WINDOW, Domain, Labels, Position, TapPosition, domain
from ..language.symbols import Access, Operand
from ..operations import NOTHING, PERIODIC, Block
from ..printers.cpp import CppPrinter, identifier
from ..render import render
from ..schedule import Schedule, Sweep
from .description import MAKE, describe, identifiers, summary

SIZES = {"T": "windows.taps", "C": "windows.geometry.channels", "N": "windows.taps * windows.geometry.channels"}
OFFSETS = {"dx": 2, "dy": 1, "dz": 0}
#: The places of a domain, by its axes.
PLACES = {"": "the window as a whole", "c": "channels", "t": "taps", "ct": "channels and taps"}


class Member(NamedTuple):
    """How a symbol is read, or where a gradient goes, at the places of one domain.

    Args:
        name: of the member.
        type: of the member.
        make: what it is made of.
        enter: what changes with the group and its first filter: a statement, or nothing.
    """

    name: str
    type: str
    make: str
    enter: str = ""


def flags(*values: bool) -> str:
    """As arguments of a template or a function in C++."""
    return ", ".join("true" if value else "false" for value in values)


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


class Pass:
    """One pass as the strings that the template puts in place."""

    name: str
    doc: str
    #: The filters of a block in which weights are packed.
    block: str
    #: Whether loops compute periodic functions for a limited range of arguments first.
    ranged = False

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        self.schedule, self.printer = schedule, CppPrinter(identifiers(kernel, schedule))
        self.operands = {operand.name: operand for operand in kernel.formula.operands}
        self.tensors, self.numbers = kernel.signature.tensors, kernel.signature.numbers
        self.members: dict[Domain, dict[str, Member]] = {WINDOW: {}}
        #: What is made once per call: where the elements of weights are, and the weights as they are read.
        self.shared: dict[str, tuple[str, str]] = {}
        #: The inputs that are read.
        self.seen: set[str] = set()
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
            "domains": [
                {
                    "id": self.id(where),
                    "doc": PLACES[where.axes],
                    "channels": self.channels(where),
                    "has_taps": "true" if "t" in where.axes else "false",
                    "inside": any(sweep["id"] == self.id(where) and sweep["inside"] for sweep in self.printed),
                    "members": [*members.values()],
                }
                for where, members in sorted(self.members.items())
                if members or any(sweep["id"] == self.id(where) for sweep in self.printed)
            ],
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

    # -- Domains -----------------------------------------------------------------------------------------------------

    @staticmethod
    def id(where: Domain) -> str:
        """The name for the places of a domain: `ct`, `t`, `c_g`, or `window`."""
        return "_".join([where.axes or "window", *where.inputs])

    def channels(self, where: Domain) -> str:
        """How many channels a domain has."""
        if "c" not in where.axes:
            return "1"
        sizes = [f"tensors[{self.tensors.index(name)}].channels" for name in where.inputs]
        return functools.reduce("most({}, {})".format, sizes) if sizes else "windows.geometry.channels"

    def extent(self, labels: Labels) -> str:
        """How many values along the axes that a value has left."""
        where = domain(labels)
        return "windows.taps" if where.axes == "t" else self.channels(where)

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

    # -- Where things are read ---------------------------------------------------------------------------------------

    def identifier(self, symbol: sp.Symbol) -> str:
        # A place that only has a gradient is read nowhere, and so has no name yet: x[o, 0] becomes x_o_0_.
        return identifier(self.printer.names.get(symbol) or re.sub(r"\W+", "_", symbol.name))

    def read(self, symbol: sp.Symbol, where: Domain) -> str:
        """The call that reads a symbol at a place of a domain."""
        name = self.identifier(symbol)
        members = self.members.setdefault(where, {})
        if name not in members:
            members[name] = self.member(name, symbol, where)
        return f"at.{self.id(where)}.{name}(here)"

    def member(self, name: str, symbol: sp.Symbol, where: Domain) -> Member:
        """How a symbol is read."""
        if isinstance(symbol, Operand):
            return self.operand(name, symbol, where)
        return self.value(name, symbol, where)

    def operand(self, name: str, symbol: Operand, where: Domain) -> Member:
        """How an operand is read."""
        taps, base = f"shared.{self.id(where)}", symbol.operand
        if base.role == "input":
            self.seen.add(base.name)
            return self.image(name, symbol, where, f"{base.name}_planes")
        if base.role in ("weight", "bias", "param"):
            return self.bank(name, symbol, where)
        if base.role == "field":
            return self.field_member(name, base, where, f"{base.name}_values")
        if base.role == "const":
            return Member(name, "Number", f"real(numbers[{self.numbers.index(base.name)}])")
        if base.role == "size":
            return Member(name, "Number", f"real({SIZES[base.name]})")
        if base.name == "o":
            return Member(name, "Filter", "0", f"{name}.first = group * windows.geometry.filters + first")
        number = self.number(base, taps)
        return Member(name, "Numbers", f"numbers_at({taps}, arena, [&](int64_t k) {{ return {number}; }})")

    @staticmethod
    def number(base: Operand, taps: str) -> str:
        """An offset, or the number of a channel or tap, for each k."""
        return {
            "c": f"{taps}.channel[k]",
            "t": f"{taps}.tap[k]",
            **{axis: f"windows.offset({taps}.tap[k], {number})" for axis, number in OFFSETS.items()},
        }[base.name]

    def value(self, name: str, symbol: sp.Symbol, where: Domain) -> Member:
        """How a value of the window is read."""
        taps = f"shared.{self.id(where)}"
        if symbol in self.schedule.counts:
            return Member(name, "Values<false, false>", f"{name}_values, 0, 0, nullptr")
        axes = domain(symbol.labels).axes
        if isinstance(symbol, TapPosition):
            return Member(name, "Scan", {"ct": "nullptr", "c": f"{taps}.channel", "t": f"{taps}.tap"}[axes])
        kind = f"{'Positions' if isinstance(symbol, Position) else 'Values'}<{flags(True, bool(axes))}>"
        if not axes:
            return Member(name, kind, f"{name}_values, row_length, 0, nullptr")
        extent = self.extent(symbol.labels)
        at = f"axis_places({taps}, '{axes}', {extent}, arena)"
        return Member(name, kind, f"{name}_values, {extent} * row_length, row_length, {at}")

    def image(self, name: str, symbol: Operand, where: Domain, planes: str) -> Member:
        """An input, or its gradient, in planes."""
        channels = f"tensors[{self.tensors.index(symbol.operand.name)}].channels"
        own = isinstance(symbol, Access) and symbol.own
        step = f"{channels} == 1 ? 0 : windows.channel" if own else "0"
        places = f"image_places(windows, shared.{self.id(where)}, {channels}, {self.access(symbol)}, arena)"
        enter = f"{name}.planes = {planes} + first * {self.id(where)}.{name}.own" if own else ""
        return Member(name, f"Image<{flags(own)}>", f"{planes}, {places}, {step}, {channels} * windows.channel", enter)

    def bank(self, name: str, symbol: Operand, where: Domain) -> Member:
        """A weight or parameter."""
        varies = "o" in symbol.axes, bool({"c", "t"} & {*symbol.axes})
        packed, make = f"{self.id(where)}_{name}_packed", self.packed(name, symbol, where, varies)
        self.shared[packed] = ("const real*", make)
        return self.bank_member(name, packed, where, varies)

    def bank_member(self, name: str, packed: str, where: Domain, varies: tuple[bool, bool]) -> Member:
        """What is packed as sweeps read it, along filters and along taps."""
        per_filter, per_tap = varies
        count = f" * {self.id(where)}.{name}.count" if per_tap else ""
        enter = f"{name}.packed = shared.{packed} + (group * padded_filters<{self.block}>(windows) + first){count}"
        make = f"shared.{packed}, shared.{self.id(where)}.count"
        return Member(name, f"Bank<{flags(*varies)}>", make, enter if per_filter else "")

    def packed(self, name: str, symbol: Operand, where: Domain, varies: tuple[bool, bool]) -> str:
        """How the elements of a weight or parameter are packed."""
        elements, tensor = self.elements(name, symbol, where), self.tensors.index(symbol.operand.name)
        kind = f"pack<{flags(*varies)}, {self.block}>"
        return f"{kind}(tensors[{tensor}], {elements}, windows, {self.id(where)}.count, arena)"

    def field_member(self, name: str, base: Operand, where: Domain, values: str) -> Member:
        """A value per output pixel, or its gradient."""
        kind = f"Values<{flags('o' in base.axes, 't' in base.axes)}>"
        extent = "windows.taps" if "t" in base.axes else "1"
        step = f"{extent} * row_length" if "o" in base.axes else "0"
        at = f"axis_places(shared.{self.id(where)}, 't', windows.taps, arena)" if "t" in base.axes else "nullptr"
        return Member(name, kind, f"{values}, {step}, row_length, {at}")

    def elements(self, name: str, symbol: Operand, where: Domain) -> str:
        """Where the elements of a weight or parameter are: a member of what is shared."""
        axes = flags(*(axis in symbol.operand.axes for axis in "oct"))
        number = symbol.element if isinstance(symbol, Access) and symbol.element is not None else 0
        member = f"{self.id(where)}_{name}_elements"
        self.shared[member] = ("Elements", f"windows, {self.id(where)}, {axes}, {self.access(symbol)}, {number}, arena")
        return member

    @staticmethod
    def access(symbol: Operand) -> str:
        if not isinstance(symbol, Access):
            return "Access{false, false, 0}"
        return f"Access{{{flags(symbol.own, symbol.shift is None)}, {symbol.shift or 0}}}"

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

    def sink(self, place: Operand, where: Domain, value: str) -> dict[str, Any]:
        """Where the gradient at a place goes, in a domain."""
        base, name = place.operand, f"grad_{self.identifier(place)}"
        if base.role == "input":
            kind = "own" if isinstance(place, Access) and place.own else "image"
            member = self.image(name, place, where, f"grad_{base.name}_planes")
        elif base.role == "field":
            kind, member = "field", self.field_member(name, base, where, f"grad_{base.name}_values")
        else:
            kind, member = "bank", self.bank_sink(name, place, where)
        self.members.setdefault(where, {})[name] = member
        tensor = self.tensors.index(base.name)
        return {
            "name": f"{self.id(where)}.{name}",
            "kind": kind,
            "of": base.name,
            "tensor": tensor,
            "value": value,
            "factor": "",
        }

    def bank_sink(self, name: str, place: Operand, where: Domain) -> Member:
        """Where the gradient of a weight or parameter goes."""
        at = f"shared.{self.elements(self.identifier(place), place, where)}"
        total = f"grad_{place.operand.name}_total + {at}.first + group * {at}.group + first * {at}.filter"
        return Member(name, "BankSink", f"nullptr, {at}.filter, {at}.places", f"{name}.total = {total}")
