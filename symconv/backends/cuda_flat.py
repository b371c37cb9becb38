"""Which passes of a kernel are *flat*, and what their template is told.

A flat pass sweeps once over all channels and taps of x, and reads everything where the tap is.  So it can be computed
like a product of matrices: results in registers, planes and values of windows in shared memory, see `stages.hpp`.
Weights and x of a tap, values of a window and constants are then variables, which printed functions are called with.
What is computed once per pixel has planes of its own in shared memory, made of those of x when they have come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sympy as sp

from ..language.axes import WINDOW, Domain
from ..language.symbols import Access, Operand
from ..lift import Lifted
from ..lower import GRAD, Sweep
from .lifting import LiftingPass
from .native_source import SIZES

#: The one domain of the sweeps of a flat pass.
ALL = "ct"
#: The variable of a pixel of which something is computed.
UNDER = "under"


class NotFlatError(Exception):
    """A pass does something that tiles in registers cannot."""


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


def here(name: str) -> str:
    """The variable of what is called `name` in formulas, which is no name of the template."""
    return f"{name}_here"


def is_number(symbol: sp.Symbol) -> bool:
    """Whether it is the same everywhere, and finite."""
    return isinstance(symbol, Operand) and symbol.role in ("const", "size")


def of_pixel(symbol: sp.Symbol) -> bool:
    """Whether it is the same at all taps that see a pixel."""
    if isinstance(symbol, Lifted):
        return symbol.pixel is not None
    return is_number(symbol) or (isinstance(symbol, Operand) and symbol.role == "input")


def unused(symbol: sp.Symbol) -> str:
    """What is passed for an argument on which the results in question do not depend."""
    return "splat_int(0)" if getattr(symbol, "position", False) else "splat(0)"


def used(sweep: Sweep, wanted: Callable[[str], bool]) -> list[sp.Symbol]:
    """The arguments of the function of a sweep on which its gradients of operands of some roles depend."""
    needed = set().union(
        *(expr.free_symbols for place, expr in zip(sweep.gradients, sweep.taps.results) if wanted(place.operand.role))
    )
    for symbol, expr in reversed(sweep.taps.temporaries):
        if symbol in needed:
            needed |= expr.free_symbols
    return [symbol for symbol in sweep.taps.arguments if symbol in needed]


class Reader:
    """The symbols that some functions read, as variables of the generated code."""

    def __init__(self, given: LiftingPass) -> None:
        self.given = given
        #: Reads of x, or of what is computed of it: variable, whether at the centre.
        self.images: dict[str, bool] = {}
        #: What is computed of it: variable, how, of a pixel.
        self.lifted: dict[str, str] = {}
        #: Reads of weights and parameters: variable, how they are packed.
        self.banks: dict[str, dict[str, Any]] = {}
        #: Constants: variable, value.
        self.numbers: dict[str, str] = {}
        #: Whether one of them counts taps, which is the same for all windows if none leaves the image.
        self.counts = False

    def variable(
        self, symbol: sp.Symbol, where: Domain, of_image: str = "", of_bank: str = "", of_value: str = ""
    ) -> str:
        """A symbol as it is read at a tap, with the indices of an image, of a bank or of a value of a window."""
        name = here(self.given.identifier(symbol))
        if symbol in self.given.schedule.counts:
            counted = self.given.schedule.counts[symbol]
            self.counts = True
            self.numbers[name] = "windows.taps * " * ("t" in counted.axes) + self.given.channels(counted)
            return name
        if isinstance(symbol, Lifted):
            return self.computed(name, symbol, where, of_image, of_bank)
        if not isinstance(symbol, Operand):
            if getattr(symbol, "position", False) and symbol.name.startswith("position"):
                if where.axes != ALL:
                    raise NotFlatError
                return "position"
            return name + of_value
        base = symbol.operand
        if base.role == "input":
            self.images[name] = self.is_centre(symbol)
            return name + of_image
        if base.role in ("weight", "bias", "param"):
            self.banks[name] = self.bank(name, symbol, where)
            return name + of_bank
        if base.role == "const":
            self.numbers[name] = f"numbers[{self.given.numbers.index(base.name)}]"
        elif base.role == "size":
            self.numbers[name] = SIZES[base.name]
        else:
            raise NotFlatError
        return name

    @staticmethod
    def is_centre(symbol: Operand) -> bool:
        """Whether x is read at the centre of the window, and not at the tap."""
        access = symbol if isinstance(symbol, Access) else None
        if symbol.operand.name != "x" or (access and (access.own or access.shift)):
            raise NotFlatError
        return access is not None and access.shift is None

    def computed(self, name: str, symbol: Lifted, where: Domain, of_image: str, of_bank: str) -> str:
        """What is computed once per pixel or weight."""
        if symbol.pixel is None:
            self.banks[name] = self.bank(name, symbol, where)
            return name + of_bank
        self.images[name] = self.is_centre(symbol.pixel)
        arguments = [UNDER if s.role == "input" else self.variable(s, where) for s in symbol.block.arguments]
        self.lifted[name] = f"{self.given.identifier(symbol)}({', '.join(arguments)})"
        return name + of_image

    def bank(self, name: str, symbol: Operand | Lifted, where: Domain) -> dict[str, Any]:
        per_filter, per_tap = "o" in symbol.axes, bool({"c", "t"} & {*symbol.axes})
        if where.axes == ALL:
            read = symbol.block.arguments if isinstance(symbol, Lifted) else (symbol,)
            if any(isinstance(each, Access) and each.own for each in read):
                raise NotFlatError
        return {
            "name": name,
            "packed": f"shared.{self.given.id(where)}_{self.given.identifier(symbol)}_packed",
            "element": self.given.element(self.given.identifier(symbol), symbol, where, "shared."),
            "per_filter": per_filter,
            "per_tap": per_tap and where.axes == ALL,
            "flags": ", ".join("true" if each else "false" for each in (per_filter, per_tap)),
        }

    def facts(self) -> dict[str, Any]:
        """What the template is told; of images also which of several sets of planes has them."""
        raw = [name for name in self.images if name not in self.lifted]
        sets = dict.fromkeys(raw, 0) | {name: bool(raw) + k for k, name in enumerate(self.lifted)}
        return {
            "images": [(name, centre, sets[name]) for name, centre in self.images.items()],
            "lifted": [(name, call, sets[name]) for name, call in self.lifted.items()],
            "sets": bool(raw) + len(self.lifted),
            "banks": [*self.banks.values()],
            "numbers": [*self.numbers.items()],
            "counts": self.counts,
        }


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
        output = self.given.schedule.output
        at_output = Reader(self.given)
        arguments = [self.at_output(symbol, at_output) for symbol in output.arguments]
        return {
            **reader.facts(),
            "call": f"{self.name}_tap({', '.join(taps)})",
            "accumulators": self.given.printed[0]["nests"][0]["accumulators"],
            "doc": self.given.printed[0]["doc"],
            "combine": f"combine({', '.join(arguments)})",
            "kept": [
                (self.held[self.given.identifier(symbol)], symbol.position) for symbol in self.given.schedule.kept
            ],
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
            "slots": [(name, bool(getattr(self.values[name], "position", False))) for name in slots],
            "places": {here(given.identifier(s)): place for place, s in enumerate(self.kept)},
            "values": [(here(given.identifier(s)), bool(getattr(s, "position", False))) for s in self.kept],
        }

    def slots(self, symbols: Iterable[sp.Symbol]) -> list[str]:
        """The values of a window among some symbols."""
        names = [here(self.given.identifier(s)) for s in symbols if not isinstance(s, (Operand, Lifted))]
        found = [name for name in names if name in self.values]
        known = {*self.values, *(here(self.given.identifier(s)) for s in self.given.schedule.counts)}
        if any(name not in known and not name.startswith("position") for name in names):
            raise NotFlatError
        return found

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
            "inside": printed["inside"] == "inside",
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


def facts_of_flat(forward: dict[str, Any] | None, backward: dict[str, Any] | None) -> list[list[int]]:
    """What a plan needs to know, for each pass that is flat.

    Of the forward pass the tables of places of x, the weights of a tap and the sets of planes.  Of the backward pass
    the sets, the values of a window, the gradients of x and those of weights that one tap gives, the weights that the
    former and the latter read, and whether it counts taps.
    """
    found: list[list[int]] = [[], []]
    if forward is not None:
        found[0] = [len(forward["images"]), per_tap(forward), forward["sets"]]
    if backward is not None:
        sets = max((each["sets"] for each in backward["banks"]), default=0)
        sinks = max((len(each["sinks"]) for each in backward["banks"]), default=0)
        pixels = backward["pixels"]
        of_pixels = [len(pixels["sinks"]), per_tap(pixels)] if pixels else [0, 0]
        every = [*backward["banks"], *backward["befores"], *filter(None, [pixels])]
        counts = int(any(each["counts"] for each in every))
        banks = max(map(per_tap, backward["banks"]), default=0)
        found[1] = [sets, len(backward["slots"]), *of_pixels, sinks, banks, counts]
    return found
