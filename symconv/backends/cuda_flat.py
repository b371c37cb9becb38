"""Which passes of a kernel are *flat*, and what their template is told.

A flat pass sweeps once over all channels and taps of x, and reads everything where the tap is.  So it can be computed
like a product of matrices: results in registers, planes and values of windows in shared memory, see `stages.hpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sympy as sp

from ..language.axes import WINDOW, Position, TapPosition
from ..language.symbols import Access, Operand
from ..lift import Lifted
from ..schedule import GRAD, Sweep
from .cuda_reader import ALL, NotFlatError, Reader, here, is_number, of_pixel, unused
from .lifting import LiftingPass
from .native_facts import FlatBackward, FlatForward


def flat_forward(given: LiftingPass) -> dict[str, Any] | None:
    """What the template is told of a flat forward pass; None for one that is not flat."""
    try:
        return Forward(given).context()
    except NotFlatError:
        return None


def flat_backward(given: LiftingPass) -> dict[str, Any] | None:
    """What the template is told of a flat backward pass; None for one that is not flat."""
    try:
        return Backward(given).context()
    except NotFlatError:
        return None


def used(sweep: Sweep, wanted: Callable[[str], bool]) -> list[sp.Symbol]:
    """The arguments of the function of a sweep on which its gradients of operands of some roles depend."""
    needed = set().union(
        *(expr.free_symbols for place, expr in zip(sweep.gradients, sweep.taps.results) if wanted(place.operand.role))
    )
    for symbol, expr in reversed(sweep.taps.temporaries):
        if symbol in needed:
            needed |= expr.free_symbols
    return [symbol for symbol in sweep.taps.arguments if symbol in needed]


class Forward:
    """A forward pass whose accumulators stay in registers."""

    def __init__(self, given: LiftingPass) -> None:
        self.given = given
        if len(given.sweeps) != 1:
            raise NotFlatError
        ((self.name, self.sweep),) = given.sweeps.items()
        if self.sweep.names or given.id(self.sweep.where) != ALL:
            raise NotFlatError
        if any(each.left or each.rank is not None for each in self.sweep.accumulators):
            raise NotFlatError
        # At the output the symbols of accumulators are what they hold.
        self.held = {
            given.identifier(symbol): f"{each['variable']}[i][v].{attribute}()"
            for each in given.printed[0]["nests"][0]["accumulators"]
            for symbol, attribute in self._attributes(each)
        }

    def _attributes(self, printed: dict[str, Any]) -> Iterable[tuple[sp.Symbol, str]]:
        by_name = {self.given.identifier(s): s for a in self.sweep.accumulators for s in a.symbols}
        return [(by_name[name], attribute) for name, attribute, _ in printed["stores"]]

    def context(self) -> dict[str, Any]:
        reader = Reader(self.given)
        taps = [reader.variable(s, self.sweep.where, "[v]", "[i]") for s in self.sweep.taps.arguments]
        if not reader.images:
            raise NotFlatError
        schedule, identifier = self.given.schedule, self.given.identifier
        combine, make = (
            f"{name}({', '.join(self.at_output(symbol, Reader(self.given)) for symbol in block.arguments)})"
            for name, block in (("combine", schedule.output), ("make", schedule.make))
        )
        made = [make] if len(schedule.made) == 1 else [f"{make}[{k}]" for k in range(len(schedule.made))]
        return {
            **reader.facts(),
            "call": f"{self.name}_tap({', '.join(taps)})",
            "accumulators": self.given.printed[0]["nests"][0]["accumulators"],
            "doc": self.given.printed[0]["doc"],
            "combine": combine,
            "kept": [(self.held[identifier(symbol)], isinstance(symbol, Position)) for symbol in schedule.accumulated]
            + [(value, False) for value in made],
        }

    def at_output(self, symbol: sp.Symbol, reader: Reader) -> str:
        """What the output is made of, at one window."""
        given, name = self.given, self.given.identifier(symbol)
        if name in self.held:
            return self.held[name]
        if symbol in given.schedule.counts:
            where = given.schedule.counts[symbol]
            has_taps = "true" if "t" in where.axes else "false"
            return f"count({given.channels(where)}, {has_taps})"
        if isinstance(symbol, Operand) and symbol.operand.role == "field" and "t" not in symbol.operand.axes:
            tensor = f"tensors[{given.tensors.index(symbol.operand.name)}]"
            channel = "o" if "o" in symbol.operand.axes else "0"
            return (
                f"splat(real(static_cast<const storage*>({tensor}.data)[element({tensor}, {channel}, 0, strip, at)]))"
            )
        if isinstance(symbol, Operand) and symbol.operand.role == "index" and symbol.name == "o":
            return "splat(real(o))"
        found = reader.variable(symbol, WINDOW)
        if found in reader.banks:
            bank = reader.banks[found]
            return f"splat({bank['packed']}[{'group * padded + f + i' if bank['per_filter'] else '0'}])"
        if found in reader.numbers:
            return f"splat(real({reader.numbers[found]}))"
        raise NotFlatError


class Backward:
    """A backward pass all whose sweeps give gradients of x, at the tap, and of weights and parameters."""

    def __init__(self, given: LiftingPass) -> None:
        self.given = given
        self.kept = [GRAD, *given.schedule.kept]
        self.values = {here(given.identifier(symbol)): symbol for symbol in self.kept}
        if not given.sweeps or any(not sweep.gradients for sweep in given.sweeps.values()):
            raise NotFlatError
        for sweep in given.sweeps.values():
            if given.id(sweep.where) != ALL and sweep.where != WINDOW:
                raise NotFlatError
            self.values |= {here(given.identifier(symbol)): symbol for symbol in sweep.names}

    def context(self) -> dict[str, Any]:
        given = self.given
        pairs = [*zip(given.sweeps.items(), given.printed)]
        if any(printed["others"] for _, printed in pairs):
            raise NotFlatError
        banks = [self.banks(name, sweep, printed) for (name, sweep), printed in pairs if printed["banks"]]
        pixels = [self.pixels(name, sweep, printed) for (name, sweep), printed in pairs if printed["images"]]
        if len(pixels) > 1:
            raise NotFlatError
        befores = [self.before(name, sweep, printed) for (name, sweep), printed in pairs if sweep.names]
        slots = sorted({slot for each in (*banks, *pixels) for slot in each["slots"]})
        return {
            "banks": banks,
            "pixels": pixels[0] if pixels else None,
            "befores": befores,
            "slots": [(name, isinstance(self.values[name], Position)) for name in slots],
            "places": {here(given.identifier(s)): place for place, s in enumerate(self.kept)},
            "values": [(here(given.identifier(s)), isinstance(s, Position)) for s in self.kept],
        }

    def slots(self, symbols: Iterable[sp.Symbol]) -> list[str]:
        """The values of a window among some symbols."""
        elsewhere = (Operand, Lifted, TapPosition)
        found = [s for s in symbols if not isinstance(s, elsewhere) and s not in self.given.schedule.counts]
        names = [here(self.given.identifier(s)) for s in found]
        if not self.values.keys() >= {*names}:
            raise NotFlatError
        return names

    def sinks(
        self,
        name: str,
        sweep: Sweep,
        printed: dict[str, Any],
        kind: str,
        at_end: Callable[[sp.Symbol], bool],
        readers: tuple[Reader, Reader],
        indices: tuple[str, str],
    ) -> list[dict[str, Any]]:
        """Where gradients go, each with what its sum is multiplied by at the end, or its value at each tap.

        Args:
            name, sweep, printed: the sweep.
            kind: "images" or "banks".
            at_end: whether something is known when all taps have passed.
            readers: of what is read at a tap, and at the end.
            indices: of images and of weights at a tap.
        """
        factors = sweep.factors or (None,) * len(sweep.gradients)
        found, sinks = [], iter(printed[kind])
        for place, value, block in zip(sweep.gradients, printed["taps"]["values"], factors):
            if (place.operand.role == "input") != (kind == "images"):
                continue
            factor = ""
            if block is not None:
                last = all(map(at_end, block.arguments))
                reader, at = (readers[1], ("", "")) if last else (readers[0], indices)
                arguments = [reader.variable(symbol, sweep.where, *at) for symbol in block.arguments]
                factor = f"{name}_{self.given.identifier(place)}_factor({', '.join(arguments)})"
                value, factor = (value, factor) if last else (f"{value} * {factor}", "")
            found.append({**next(sinks), "value": value, "factor": factor})
        return found

    def banks(self, name: str, sweep: Sweep, printed: dict[str, Any]) -> dict[str, Any]:
        reader = Reader(self.given)
        read = used(sweep, lambda role: role not in ("input", "field"))
        arguments = [
            reader.variable(s, sweep.where, "[j]", "[i][j]", "[i]") if s in read else unused(s)
            for s in sweep.taps.arguments
        ]
        if sweep.where == WINDOW and reader.images:
            raise NotFlatError
        sinks = self.sinks(name, sweep, printed, "banks", is_number, (reader, reader), ("", "[i][j]"))
        return {
            **reader.facts(),
            "name": name,
            "id": printed["id"],
            "inside": printed["inside"],
            "call": f"{name}_tap({', '.join(arguments)})",
            "sinks": sinks,
            "slots": self.slots(read),
        }

    def pixels(self, name: str, sweep: Sweep, printed: dict[str, Any]) -> dict[str, Any]:
        inputs = [place for place in sweep.gradients if place.operand.role == "input"]
        if any(isinstance(place, Access) or place.name != "x" for place in inputs):
            raise NotFlatError
        reader = Reader(self.given)
        read = used(sweep, lambda role: role == "input")
        arguments = [
            reader.variable(s, sweep.where, "[i][v]", "[i]", "[v]") if s in read else unused(s)
            for s in sweep.taps.arguments
        ]
        at_end = Reader(self.given)
        sinks = self.sinks(name, sweep, printed, "images", of_pixel, (reader, at_end), ("[i][v]", "[i]"))
        reader.numbers |= at_end.numbers
        if any((reader.images | at_end.images).values()):
            raise NotFlatError
        return {
            **reader.facts(),
            "name": name,
            "id": printed["id"],
            "call": f"{name}_tap({', '.join(arguments)})",
            "sinks": sinks,
            "at_end": at_end.facts(),
            "slots": self.slots(read),
        }

    def before(self, name: str, sweep: Sweep, printed: dict[str, Any]) -> dict[str, Any]:
        """What a sweep computes of each window before its taps."""
        reader = Reader(self.given)
        if set(self.slots(sweep.before.arguments)) - {here(self.given.identifier(s)) for s in self.kept}:
            raise NotFlatError
        arguments = [reader.variable(s, WINDOW) for s in sweep.before.arguments]
        if reader.images or reader.banks:
            raise NotFlatError
        values = printed["before"]["values"]
        return {
            **reader.facts(),
            "call": f"{name}_before({', '.join(arguments)})",
            "names": [*zip(map(here, printed["names"]), [value.replace("value", f"{name}_value") for value in values])],
            "result": f"{name}_value",
        }


def per_tap(sweep: dict[str, Any]) -> int:
    """How many weights a tap reads."""
    return sum(bank["per_tap"] for bank in sweep["banks"])


def forward_facts(context: dict[str, Any]) -> FlatForward:
    """What a plan needs to know of a flat forward pass, from what its template is told."""
    return FlatForward(tables=len(context["images"]), weights=per_tap(context), sets=context["sets"])


def backward_facts(context: dict[str, Any]) -> FlatBackward:
    """What a plan needs to know of a flat backward pass, from what its template is told."""
    banks, pixels = context["banks"], context["pixels"]
    return FlatBackward(
        sets=max((each["sets"] for each in banks), default=0),
        values=len(context["slots"]),
        pixel_sums=len(pixels["sinks"]) if pixels else 0,
        pixel_weights=per_tap(pixels) if pixels else 0,
        weight_sums=max((len(each["sinks"]) for each in banks), default=0),
        weight_weights=max(map(per_tap, banks), default=0),
        counts=any(each["counts"] for each in (*banks, *context["befores"], *filter(None, [pixels]))),
    )
