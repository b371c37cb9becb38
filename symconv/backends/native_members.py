"""How native code reads operands and values of windows, and where it puts gradients.

A pass (forward, backward) does so at *places*.  For each domain that its sweeps run over, the generated struct has one
member per symbol, which knows by itself how its operand lies: every call in a sweep is the same text, `x(here)`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, NamedTuple

import sympy as sp

from ..kernel import Kernel
from ..language.axes import WINDOW, Domain, Labels, Position, TapPosition, domain
from ..language.symbols import Access, Operand
from ..printers.cpp import CppPrinter, identifier
from ..schedule import Schedule
from .description import identifiers

SIZES = {"T": "windows.taps", "C": "windows.geometry.channels", "N": "windows.taps * windows.geometry.channels"}
OFFSETS = {"dx": 2, "dy": 1, "dz": 0}


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


def varies_along(axes: Collection[str]) -> tuple[bool, bool]:
    """Whether a value with these axes varies along filters, and along taps."""
    return "o" in axes, bool({"c", "t"} & {*axes})


class Members:
    """The members of a pass: for each domain one per symbol that is read there, and one per gradient.

    Args:
        kernel, schedule: what the pass computes, and how.
    """

    #: The filters of a block in which weights are packed.
    block: str

    def __init__(self, kernel: Kernel, schedule: Schedule) -> None:
        self.schedule, self.printer = schedule, CppPrinter(identifiers(kernel, schedule))
        self.operands = {operand.name: operand for operand in kernel.formula.operands}
        self.tensors, self.numbers = kernel.signature.tensors, kernel.signature.numbers
        self.members: dict[Domain, dict[str, Member]] = {WINDOW: {}}
        #: What is made once per call: where the elements of weights are, and the weights as they are read.
        self.shared: dict[str, tuple[str, str]] = {}
        #: The inputs that are read.
        self.seen: set[str] = set()

    # -- Domains -----------------------------------------------------------------------------------------------------

    @staticmethod
    def id(where: Domain) -> str:
        """The name for the places of a domain: `ct`, `t`, `c_g`, or `window`."""
        return where.name or "window"

    @classmethod
    def shared_name(cls, where: Domain, name: str, ending: str) -> str:
        """A name for what is shared of a symbol at the places of a domain, which nothing else there has.

        Lengths tell the inputs of a domain from the symbol: `ct1g_h_packed` is of h, `ct_g_h_packed` of g_h.
        """
        inputs = "".join(f"{len(each)}{each}" for each in where.inputs)
        return f"{where.axes + inputs if inputs else cls.id(where)}_{name}_{ending}"

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

    # -- What is read ------------------------------------------------------------------------------------------------

    def identifier(self, symbol: sp.Symbol) -> str:
        return identifier(self.printer.names.get(symbol, symbol.name))

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
        varies = varies_along(symbol.axes)
        packed, make = self.shared_name(where, name, "packed"), self.packed(name, symbol, where, varies)
        self.shared[packed] = ("const real*", make)
        return self.bank_member(name, packed, where, varies)

    def bank_member(self, name: str, packed: str, where: Domain, varies: tuple[bool, bool]) -> Member:
        """What is packed as sweeps read it, along filters and along taps."""
        per_filter, per_tap = varies
        layout, count = self.layout(varies), f"shared.{self.id(where)}.count" if per_tap else "1"
        make = f"shared.{packed}, {layout}::step(windows, {count})"
        enter = f"{name}.packed = shared.{packed} + {layout}::at(windows, {count}, group, first)" if per_filter else ""
        return Member(name, f"Bank<{flags(*varies)}, {layout}>", make, enter)

    def layout(self, varies: tuple[bool, bool]) -> str:
        """How weights lie that vary along filters and along taps."""
        return f"ByFilters<{self.block}>"

    def packed(self, name: str, symbol: Operand, where: Domain, varies: tuple[bool, bool]) -> str:
        """How the elements of a weight or parameter are packed."""
        elements, tensor = self.elements(name, symbol, where), self.tensors.index(symbol.operand.name)
        kind, layout = self.packing(symbol, where, varies), self.layout(varies)
        return f"{kind}({layout}{{}}, tensors[{tensor}], {elements}, windows, {self.id(where)}.count, arena)"

    def packing(self, symbol: Operand, where: Domain, varies: tuple[bool, bool]) -> str:
        """The function that packs them."""
        return f"pack<{flags(*varies)}>"

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
        member = self.shared_name(where, name, "elements")
        self.shared[member] = ("Elements", f"windows, {self.id(where)}, {axes}, {self.access(symbol)}, {number}, arena")
        return member

    @staticmethod
    def access(symbol: Operand) -> str:
        if not isinstance(symbol, Access):
            return "Access{false, false, 0}"
        return f"Access{{{flags(symbol.own, symbol.shift is None)}, {symbol.shift or 0}}}"

    # -- Where gradients go ------------------------------------------------------------------------------------------

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
        return Member(name, "BankSink", f"nullptr, &{at}", f"{name}.total = {total}")
