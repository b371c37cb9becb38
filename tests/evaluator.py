"""The formula language a second time, plainly: syntax trees of our own, their text, and their values.

A formula is a tree of `Node`.  `Formula.text` writes it in the text language and `read` reads it; `evaluate` unfolds
the image, broadcasts and reduces, and leaves the gradients to autograd.  Nothing here comes from symconv.

Values lie as `[n, g, f, *size, c, t]`: batch, group, filter of the group, output pixels, channel of the group, tap.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: The operands besides `x`, `w` and `b`: their declaration, and the axes along which they vary.
DECLARED: dict[str, tuple[str, str]] = {
    "v": ("weight", "oct"),
    "s": ("weight[2]", "oct"),
    "g": ("input", "ct"),
    "q": ("field[o]", "o"),
    "k": ("field[t]", "t"),
    "m": ("field", ""),
    "p": ("param", ""),
    "a": ("param[o]", "o"),
    "r": ("param[t]", "t"),
    "d": ("param[c]", "c"),
    "u": ("param[o, c] = 0.5", "oc"),
    "beta": ("const = 0.75", ""),
}
#: The axes of all names, "o" among them.
AXES = {name: axes for name, (_, axes) in DECLARED.items()} | {
    "x": "ct", "w": "oct", "b": "o", "dx": "t", "dy": "t", "c": "c", "t": "t", "o": "o", "T": "", "C": "", "N": ""
}  # fmt: skip
#: Values closer than this, relative to their size, may be told apart by rounding alone.
NEAR = 1e-9
#: How tightly each sort of expression binds.
ADD, MUL, NEG, POW, ATOM = range(5)


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        op: "number", "name", "read" (with a place), "line", an operator, the name of a function, "reduce", ...
        args: what it is applied to.
        value: what else it needs: the number, the name and place, the axes reduced.
    """

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None

    @functools.cached_property
    def labels(self) -> frozenset[str]:
        """The axes of the window along which the value varies: "t", "c", and "c:g" for the channels of g."""
        found: frozenset[str] = frozenset().union(*(argument.labels for argument in self.args))
        if self.op in ("name", "read"):
            name, channel, tap = self.value[:3] if self.op == "read" else (self.value, "c", "t")
            axes = AXES.get(name, "")
            own = {"c"} if "c" in axes and channel == "c" else set()
            own = {"c:g"} if own and name == "g" else own
            return frozenset(own | ({"t"} if "t" in axes and tap != "0" else set()))
        if self.op == "reduce":
            return frozenset(label for label in found if label[0] not in self.value[1])
        if self.op == "softmax":
            return domain(found, self.value)
        if self.op == "custom_grad":
            return found.union(*(Node("name", (), name).labels for name in self.value))
        return found

    def walk(self) -> Iterator[Node]:
        """All nodes of the tree, arguments first."""
        for argument in self.args:
            yield from argument.walk()
        yield self

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """The operands that the tree names."""
        found: set[str] = set()
        for node in self.walk():
            if node.op in ("name", "read"):
                found.add(node.value if node.op == "name" else node.value[0])
            elif node.op == "custom_grad":
                found.update(node.value)
        return frozenset(found)

    @functools.cached_property
    def whole(self) -> bool:
        """Whether nothing in it was reduced over one axis alone, or read at the centre."""
        return not any(
            (node.op == "reduce" and set(node.value[1]) != {"c", "t"}) or (node.op == "read" and node.value[2] == "0")
            for node in self.walk()
        )

    @functools.cached_property
    def simple(self) -> bool:
        """Whether it is a number or an operand, which rounding does not touch."""
        return self.op in ("number", "name", "read")

    def at(self, element: int) -> Node:
        """The tree with a number in place of the variable of `Sum`."""
        if self.op == "bound":
            return Node("number", (), element)
        if self.op == "read" and self.value[3] == "j":
            return Node("read", (), (*self.value[:3], element))
        return Node(self.op, tuple(argument.at(element) for argument in self.args), self.value) if self.args else self


def domain(labels: frozenset[str], dims: str) -> frozenset[str]:
    """The axes of a value with these axes that is looked at along `dims`."""
    channels = frozenset(label for label in labels if label[0] == "c")
    return labels | ({"t"} if "t" in dims else set()) | ({"c"} if "c" in dims and not channels else set())


@dataclass(frozen=True)
class Formula:
    """A tree that gives one value per window, and how it was written if not as `text` would write it."""

    result: Node
    written: str = ""

    @property
    def text(self) -> str:
        """The formula in the text language."""
        if self.written:
            return self.written
        writer = _Writer()
        last = writer.write(self.result)
        declared = [f"{name}: {DECLARED[name][0]}" for name in sorted(self.result.names) if name in DECLARED]
        return "\n".join([*declared, *writer.lines, last])


@dataclass
class _Writer:
    lines: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def write(self, node: Node, least: int = ADD) -> str:
        text, binding = self._written(node)
        return text if binding >= least else f"({text})"

    def _written(self, node: Node) -> tuple[str, int]:
        op, args, value = node.op, node.args, node.value
        if op == "number":
            return repr(value), ATOM if value >= 0 else NEG
        if op in ("name", "bound"):
            return value, ATOM
        if op == "read":
            name, channel, tap, element = value
            index = [] if element is None else [str(element)]
            index += [channel, tap] if element is None or (channel, tap) != ("c", "t") else []
            return f"{name}[{', '.join(index)}]", ATOM
        if op == "line":
            if value not in self.known:
                self.known.add(value)
                self.lines.append(f"{value} = {self.write(args[0])}")
            return value, ATOM
        if op in ("+", "-"):
            return f"{self.write(args[0])} {op} {self.write(args[1], MUL)}", ADD
        if op in ("*", "/"):
            return f"{self.write(args[0], MUL)}{op}{self.write(args[1], NEG)}", MUL
        if op == "neg":
            return f"-{self.write(args[0], NEG)}", NEG
        if op == "**":
            return f"{self.write(args[0], ATOM)}**{self.write(args[1], NEG)}", POW
        if op in ("<", "<=", ">", ">=", "&", "|"):
            return f"({self.write(args[0])} {op} {self.write(args[1])})", ATOM
        if op == "~":
            return f"~{self.write(args[0])}", NEG
        if op == "guard":
            inside = self.write(args[0])
            return f"where({inside} > 0, {value}({inside}), {self.write(args[1])})", ATOM
        if op == "Sum":
            return f"Sum({self.write(args[0])}, (j, {value[0]}, {value[1]}))", ATOM
        written = [self.write(argument) for argument in args]
        if op == "custom_grad":
            written[1:] = [f"{name}={slope}" for name, slope in zip(value, written[1:])]
            return f"custom_grad({', '.join(written)})", ATOM
        if op in ("reduce", "softmax"):
            name, dims, weighted, said = value if op == "reduce" else ("softmax", value, False, value != "ct")
            if weighted:
                written[-1] = f"weight={written[-1]}"
            if said:
                written.append(f"dim={dims}" if len(dims) == 1 else f"dim=({', '.join(dims)})")
            return f"{name}({', '.join(written)})", ATOM
        return f"{op}({', '.join(written)})", ATOM


#: What reduces; `max` and `min` of one value do too.
REDUCTIONS = frozenset(
    ("sum", "prod", "mean", "max", "min", "logsumexp", "norm", "var", "std", "cov", "median", "quantile")
)
_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.USub: "neg", ast.Invert: "~",
}  # fmt: skip


def read(text: str) -> Formula:
    """A formula from its text, for as much of the language as is evaluated here."""
    lines: dict[str, Node] = {}
    *statements, last = ast.parse(text).body
    for statement in statements:
        if isinstance(statement, ast.AnnAssign):
            assert ast.unparse(statement) == f"{statement.target.id}: {DECLARED[statement.target.id][0]}", text
        else:
            name = statement.targets[0].id
            lines[name] = Node("line", (_read(statement.value, lines),), name)
    return Formula(_read(last.value, lines), text)


def _read(tree: Any, lines: dict[str, Node]) -> Node:
    parts = [_read(each, lines) for each in getattr(tree, "args", [])] if not _is_unrolled(tree) else []
    if isinstance(tree, ast.Constant):
        return Node("number", (), tree.value)
    if isinstance(tree, ast.Name):
        return lines.get(tree.id) or (Node("bound", (), "j") if tree.id == "j" else Node("name", (), tree.id))
    if isinstance(tree, ast.Subscript):
        index = [ast.unparse(each).replace(" ", "") for each in getattr(tree.slice, "elts", [tree.slice])]
        element = index.pop(0) if tree.value.id == "s" else None
        channel, tap = index or ("c", "t")
        return Node("read", (), (tree.value.id, channel, tap, element if element in (None, "j") else int(element)))
    if isinstance(tree, ast.BinOp):
        return Node(_OPERATORS[type(tree.op)], (_read(tree.left, lines), _read(tree.right, lines)))
    if isinstance(tree, ast.UnaryOp):
        return Node(_OPERATORS[type(tree.op)], (_read(tree.operand, lines),))
    if isinstance(tree, ast.Compare):
        return Node(_OPERATORS[type(tree.ops[0])], (_read(tree.left, lines), _read(tree.comparators[0], lines)))
    name = tree.func.id
    if name == "Sum":
        first, last = (end.value for end in tree.args[1].elts[1:])
        return Node("Sum", (_read(tree.args[0], lines),), (first, last))
    words = {each.arg: each.value for each in tree.keywords}
    if name == "custom_grad":
        return Node(name, (*parts, *(_read(each, lines) for each in words.values())), tuple(words))
    dims = ast.unparse(words["dim"]).strip("()").replace(", ", "") if "dim" in words else "ct"
    if name == "softmax":
        return Node(name, tuple(parts), dims)
    if name in REDUCTIONS and not (name in ("max", "min") and len(parts) > 1):
        parts += [_read(words["weight"], lines)] if "weight" in words else []
        return Node("reduce", tuple(parts), (name, dims, "weight" in words, "dim" in words))
    if (
        name == "where"
        and parts[1].op in ("log", "sqrt")
        and parts[0] == Node(">", (*parts[1].args, Node("number", (), 0)))
    ):
        return Node("guard", (parts[1].args[0], parts[2]), parts[1].op)
    return Node(name, tuple(parts))


def _is_unrolled(tree: Any) -> bool:
    return isinstance(tree, ast.Call) and tree.func.id == "Sum"


@dataclass(frozen=True)
class Geometry:
    """The windows of a case."""

    batch: int
    image: tuple[int, ...]
    channels: int
    filters: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    ignore: bool
    own_channels: int

    @property
    def rank(self) -> int:
        """How many axes the image has."""
        return len(self.image)

    @property
    def taps(self) -> int:
        """How many taps a window has."""
        return math.prod(self.kernel_size)

    @property
    def size(self) -> tuple[int, ...]:
        """The number of windows along each axis."""
        axes = zip(self.image, self.kernel_size, self.stride, self.dilation, self.padding)
        return tuple((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, d, p in axes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an operand."""
        out, inside = self.groups * self.filters, self.channels
        sizes: dict[str, tuple[int, ...]] = {"o": (out,), "c": (inside,), "t": self.kernel_size}
        if name in ("x", "g"):
            return (self.batch, self.groups * self.channels if name == "x" else self.own_channels, *self.image)
        kind = DECLARED[name][0] if name in DECLARED else ""
        if kind.startswith("field"):
            axes = [out] * ("o" in AXES[name]) + [self.taps] * ("t" in AXES[name])
            return (self.batch, *axes, *self.size)
        shape = tuple(length for axis in AXES[name] for length in sizes[axis])
        return (2, *shape) if name == "s" else shape


def evaluate(
    formula: Formula, given: dict[str, Any], geometry: Geometry, late: bool = False, noise: float = 0.0
) -> Evaluation:
    """The output of a formula `[n, out, *size]`, and what is to be known about how it came about."""
    evaluation = Evaluation(given, geometry, late, noise)
    value = evaluation.value(formula.result)
    full = (geometry.batch, geometry.groups, geometry.filters, *geometry.size, 1, 1)
    evaluation.output = value.expand(full)[..., 0, 0].flatten(1, 2)
    return evaluation


class Evaluation:
    """Values of the nodes of a formula.

    Args:
        given: the operands by name.
        geometry: the windows.
        late: resolve each near-tie and near-kink the other way, to see whether it matters.
        noise: the relative size of random errors made at every node, to see how much rounding matters.

    Attributes:
        output: the values of the windows.
        doubt: whether there was a near-tie or a near-kink.
        largest: the largest finite magnitude on the way.
    """

    output: Tensor

    def __init__(self, given: dict[str, Any], geometry: Geometry, late: bool, noise: float) -> None:
        self.given, self.geometry, self.late, self.noise = given, geometry, late, noise
        self.doubt, self.largest = False, 0.0
        self.known: dict[Node, Tensor] = {}
        inside = torch.ones((1, 1, *geometry.image), dtype=torch.float64)
        self.valid = self.unfolded(inside) > 0 if geometry.ignore else torch.ones((), dtype=torch.bool)

    def value(self, node: Node) -> Tensor:
        """The value of a node, `[n, g, f, *size, c, t]` with 1 for the axes that it lacks."""
        if node not in self.known:
            value = self._value(node)
            if self.noise and value.dtype.is_floating_point:
                value = value * (1 + self.noise * torch.randn(value.shape, dtype=value.dtype))
            self.known[node] = value
            if value.dtype.is_floating_point and value.numel():
                finite = torch.where(value.isfinite(), value, 0.0)
                self.largest = max(self.largest, finite.detach().abs().max().item())
        return self.known[node]

    # -- Operands ------------------------------------------------------------------------------------------------

    def unfolded(self, image: Tensor) -> Tensor:
        """An image as `[n, g, 1, *size, c, t]`, 0 outside; one group where its channels do not divide by them."""
        geometry = self.geometry
        image = F.pad(image, [side for p in reversed(geometry.padding) for side in (p, p)])
        taps = []
        for place in itertools.product(*map(range, geometry.kernel_size)):
            seen = image
            for axis, (k, d, s, n) in enumerate(zip(place, geometry.dilation, geometry.stride, geometry.size)):
                pixels = torch.arange(n) * s + k * d
                seen = seen.index_select(2 + axis, pixels)
            taps.append(seen)
        value = torch.stack(taps, -1)
        groups = geometry.groups if value.shape[1] % geometry.groups == 0 else 1
        return value.unflatten(1, (groups, 1, -1)).movedim(3, -2)

    def placed(self, value: Tensor, axes: str) -> Tensor:
        """A weight or parameter with the axes "oct", or some of them, beside the windows."""
        geometry = self.geometry
        shape = [geometry.groups, geometry.filters] if "o" in axes else [1, 1]
        shape += [1] * geometry.rank
        shape += [geometry.channels if "c" in axes else 1, geometry.taps if "t" in axes else 1]
        return value.reshape(1, *shape)

    def operand(self, name: str, element: int | None = None) -> Tensor:
        """An operand under the tap."""
        geometry = self.geometry
        if name in ("dx", "dy"):
            axis = geometry.rank - 1 - ("dx", "dy").index(name)
            places = itertools.product(*map(range, geometry.kernel_size))
            middle = (geometry.kernel_size[axis] - 1) // 2
            return torch.tensor([(place[axis] - middle) * geometry.dilation[axis] for place in places]).double()
        if name in ("c", "t", "o"):
            count = {"c": geometry.channels, "t": geometry.taps, "o": geometry.groups * geometry.filters}[name]
            return self.placed(torch.arange(count).double(), name)
        if name in ("T", "C", "N"):
            sizes = {"T": geometry.taps, "C": geometry.channels, "N": geometry.taps * geometry.channels}
            return torch.tensor(float(sizes[name]), dtype=torch.float64)
        given = self.given[name]
        if isinstance(given, float):
            return torch.tensor(given, dtype=torch.float64)
        if name in ("x", "g"):
            return self.unfolded(given)
        if DECLARED.get(name, ("",))[0].startswith("field"):
            outputs = (geometry.groups, geometry.filters) if "o" in AXES[name] else (1, 1)
            taps = geometry.taps if "t" in AXES[name] else 1
            return given.reshape(geometry.batch, *outputs, taps, *geometry.size).movedim(3, -1).unsqueeze(-2)
        return self.placed(given if element is None else given[element], AXES[name])

    def read(self, name: str, channel: str, tap: str, element: int | None) -> Tensor:
        """An operand elsewhere than under the tap."""
        value, geometry = self.operand(name, element), self.geometry
        if channel == "o" and name in ("x", "g"):
            groups, channels = value.shape[1], value.shape[-2]
            by_filter = value.squeeze(2).movedim(-2, 2)  # [n, g, c, *size, t]
            assert (groups, channels) in ((geometry.groups, geometry.filters), (1, 1))
            value = by_filter.unsqueeze(-2)
        elif channel == "o":
            value = torch.stack([value[:, :, i, ..., i : i + 1, :] for i in range(geometry.filters)], 2)
        if tap == "t":
            return value
        if tap == "0":
            middle = 0
            for k in geometry.kernel_size:
                middle = middle * k + (k - 1) // 2
            return value[..., middle : middle + 1]
        step = int(tap[1:])
        around = F.pad(value, (abs(step), abs(step)))
        return around[..., abs(step) + step : abs(step) + step + geometry.taps]

    # -- Operations ----------------------------------------------------------------------------------------------

    def _value(self, node: Node) -> Tensor:
        op = node.op
        if op == "number":
            return torch.tensor(float(node.value), dtype=torch.float64)
        if op == "name":
            return self.operand(node.value)
        if op == "read":
            return self.read(*node.value)
        if op == "Sum":
            terms = [self.value(node.args[0].at(k)) for k in range(node.value[0], node.value[1] + 1)]
            return functools.reduce(torch.add, terms)
        args = [self.value(argument) for argument in node.args]
        if op == "line":
            return args[0]
        if op == "reduce":
            return self.reduced(node, args)
        if op == "softmax":
            return self.softmax(node, args[0])
        if op == "custom_grad":
            return Chosen.apply(args[0], *args[1:], *map(self.operand, node.value))
        if op in ("<", "<=", ">", ">="):
            return self.compared(node, *args)
        if op == "guard":
            positive = self.compared(Node(">", (node.args[0], Node("number", (), 0))), args[0], torch.zeros(()))
            inside = torch.where(positive, args[0], 1.0)
            return torch.where(positive, getattr(torch, node.value)(inside), args[1])
        return getattr(self, f"op_{op}", None)(*args) if hasattr(self, f"op_{op}") else POINTWISE[op](*args)

    def compared(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        """A comparison; a near-tie goes the other way if late."""
        holds = {"<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge}[node.op](a, b)
        near = (a - b).abs() < NEAR * (1 + b.abs())
        if all(argument.simple for argument in node.args):
            near = near & (a != b)
        self.doubt |= bool(near.any())
        return holds ^ near if self.late else holds

    def op_abs(self, value: Tensor) -> Tensor:
        """|value|, of slope 0 at 0."""
        near = value.abs() < NEAR
        self.doubt |= bool(near.any())
        return torch.where(near, value, value.abs()) if self.late else value.abs()

    def op_relu(self, value: Tensor) -> Tensor:
        """The positive part."""
        near = value.abs() < NEAR
        self.doubt |= bool(near.any())
        return torch.where(near, value, value.relu()) if self.late else value.relu()

    def op_sign(self, value: Tensor) -> Tensor:
        """The sign, 0 at 0."""
        near = value.abs() < NEAR
        self.doubt |= bool(near.any())
        return torch.where(near, 1.0, value.sign()) if self.late else value.sign()

    def op_maximum(self, *values: Tensor) -> Tensor:
        """The largest; a tie of two is shared."""
        self.doubt |= any(
            bool(((a - b).abs() < NEAR * (1 + a.abs())).any()) for a, b in itertools.combinations(values, 2)
        )
        return functools.reduce(lambda a, b: torch.where(b - a > -NEAR, b, a) if self.late else a.maximum(b), values)

    def op_minimum(self, *values: Tensor) -> Tensor:
        """The smallest; a tie of two is shared."""
        return -self.op_maximum(*(-value for value in values))

    op_max, op_min = op_maximum, op_minimum

    def op_hypot(self, a: Tensor, b: Tensor) -> Tensor:
        """sqrt(a**2 + b**2), of slope 0 at 0."""
        return self.root(a**2 + b**2)

    def root(self, square: Tensor, trusted: Tensor | None = None) -> Tensor:
        """The square root of a sum of squares, of slope 0 at 0.

        Args:
            square: the sum.
            trusted: where it is exactly 0 if it is 0 at all.
        """
        small = square < NEAR**2
        near = small & ((square != 0) if trusted is None else ~trusted)
        self.doubt |= bool(near.any())
        root = torch.where(small, 0.0, torch.where(small, 1.0, square).sqrt())
        return torch.where(near, torch.nan, root) if self.late else root

    # -- Reductions ----------------------------------------------------------------------------------------------

    def along(self, values: list[Tensor], labels: frozenset[str], dims: str) -> tuple[list[Tensor], Tensor]:
        """Values with the axes `dims` last and flat (channel, then tap), and which of them count."""
        geometry, rank = self.geometry, self.geometry.rank
        whole = domain(labels, dims)
        channels, taps = 1, geometry.taps if "t" in whole else 1
        if "c" in whole:
            channels = geometry.channels
        elif "c:g" in whole:
            groups = geometry.groups
            channels = geometry.own_channels // groups if geometry.own_channels % groups == 0 else 1
        valid = self.valid if "t" in dims else torch.ones((), dtype=torch.bool)
        full = torch.broadcast_shapes(
            *(value.shape for value in values), valid.shape, (1,) * (3 + rank) + (channels, taps)
        )
        spread = [value.expand(full) for value in (*values, valid)]
        if dims == "c":
            spread = [value.transpose(-1, -2) for value in spread]
        elif dims == "ct":
            spread = [value.flatten(-2) for value in spread]
        return spread[:-1], spread[-1]

    def back(self, value: Tensor, dims: str) -> Tensor:
        """A reduced value with its two axes again."""
        return value[..., None, :] if dims == "c" else value[..., None] if dims == "t" else value[..., None, None]

    def softmax(self, node: Node, value: Tensor) -> Tensor:
        """exp(value) over its sum along the axes."""
        dims = node.value
        (value,), valid = self.along([value], node.args[0].labels, dims)
        shares = torch.softmax(torch.where(valid, value, -torch.inf), -1)
        shares = torch.where(valid.any(-1, keepdim=True), shares, 0.0)
        if dims == "c":
            return shares.transpose(-1, -2)
        taps = self.geometry.taps
        return shares if dims == "t" else shares.unflatten(-1, (-1, taps))

    def reduced(self, node: Node, args: list[Tensor]) -> Tensor:
        """A reduction along the last axis of what `along` gives."""
        name, dims, weighted, _ = node.value
        dims = "".join(sorted(dims))
        labels = frozenset().union(*(argument.labels for argument in node.args))
        rank = None
        if name == "quantile":
            rank = args[1]
            args, labels = args[:1], node.args[0].labels
        values, valid = self.along(args, labels, dims)
        weight = torch.where(valid, values.pop() if weighted else 1.0, 0.0)
        return self.back(getattr(self, f"reduce_{name}")(*values, valid=valid, weight=weight, rank=rank), dims)

    def reduce_sum(self, e: Tensor, valid: Tensor, **_: Any) -> Tensor:
        return torch.where(valid, e, 0.0).sum(-1)

    def reduce_prod(self, e: Tensor, valid: Tensor, **_: Any) -> Tensor:
        return torch.where(valid, e, 1.0).prod(-1)

    def reduce_logsumexp(self, e: Tensor, valid: Tensor, **_: Any) -> Tensor:
        return torch.where(valid, e, -torch.inf).logsumexp(-1)

    def reduce_norm(self, e: Tensor, valid: Tensor, **_: Any) -> Tensor:
        return self.root((torch.where(valid, e, 0.0) ** 2).sum(-1))

    def reduce_mean(self, e: Tensor, weight: Tensor, **_: Any) -> Tensor:
        total = weight.sum(-1)
        return (weight * e).sum(-1) / torch.where(total == 0, 1.0, total)

    def reduce_cov(self, a: Tensor, b: Tensor, weight: Tensor, **_: Any) -> Tensor:
        by_a, by_b = (e - self.reduce_mean(e, weight)[..., None] for e in (a, b))
        return self.reduce_mean(by_a * by_b, weight)

    def reduce_var(self, e: Tensor, weight: Tensor, **_: Any) -> Tensor:
        return self.reduce_cov(e, e, weight)

    def reduce_std(self, e: Tensor, valid: Tensor, weight: Tensor, **_: Any) -> Tensor:
        lonely = (valid.sum(-1) <= 1) & ((weight == 0) | (weight == 1)).all(-1)
        return self.root(self.reduce_var(e, weight), lonely)

    def reduce_max(self, e: Tensor, valid: Tensor, **_: Any) -> Tensor:
        return self.ranked(torch.where(valid, e, -torch.inf), valid, lambda ordered, count: ordered[..., -1:])

    def reduce_min(self, e: Tensor, valid: Tensor, **_: Any) -> Tensor:
        return self.ranked(torch.where(valid, e, torch.inf), valid, lambda ordered, count: ordered[..., :1])

    def reduce_median(self, e: Tensor, valid: Tensor, **_: Any) -> Tensor:
        middle = (valid.sum(-1, keepdim=True).clamp(min=1) - 1) // 2
        return self.at_rank(e, valid, middle)

    def reduce_quantile(self, e: Tensor, valid: Tensor, rank: Tensor, **_: Any) -> Tensor:
        rank = rank.detach().reshape(()) * (valid.sum(-1, keepdim=True).clamp(min=1) - 1)
        low, high = (self.at_rank(e, valid, at.long()) for at in (rank.floor(), rank.ceil()))
        part = (rank - rank.floor())[..., 0]
        return (1 - part) * low + part * high

    def at_rank(self, e: Tensor, valid: Tensor, rank: Tensor) -> Tensor:
        """The value of a rank counted from 0, and 0 where nothing counts."""
        found = self.ranked(
            torch.where(valid, e, torch.inf),
            valid,
            lambda ordered, count: ordered.gather(-1, rank.expand(ordered[..., :1].shape)),
        )
        return torch.where(valid.any(-1), found, 0.0)

    def ranked(self, e: Tensor, valid: Tensor, pick: Any) -> Tensor:
        """The value that `pick` takes from the ordered ones, read at the first place that has it."""
        target = pick(e.detach().sort(-1).values, valid)
        near = valid & ((e.detach() - target).abs() <= NEAR * (1 + target.abs()))
        self.doubt |= bool((near.sum(-1) > 1).any())
        if self.late:
            place = e.shape[-1] - 1 - near.flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
        else:
            place = (valid & (e == target)).to(torch.uint8).argmax(-1, keepdim=True)
        return e.gather(-1, place)[..., 0]


class Chosen(torch.autograd.Function):
    """A value whose slopes along operands are chosen: `apply(value, *slopes, *operands)`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *slopes_and_operands: Tensor) -> Tensor:
        count = len(slopes_and_operands) // 2
        ctx.save_for_backward(*slopes_and_operands[:count])
        ctx.shapes = [each.shape for each in slopes_and_operands[count:]]
        return value.expand(torch.broadcast_shapes(value.shape, *(each.shape for each in slopes_and_operands))).clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [(upstream * slope).sum_to_size(shape) for slope, shape in zip(ctx.saved_tensors, ctx.shapes)]
        return (None, *[None] * len(gradients), *gradients)


POINTWISE: dict[str, Any] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "neg": torch.neg,
    "**": torch.pow,
    "&": torch.logical_and,
    "|": torch.logical_or,
    "~": torch.logical_not,
    "where": torch.where,
    "detach": torch.Tensor.detach,
    "ste": lambda hard, soft: hard.detach() + (soft - soft.detach()),
    "softplus": lambda e: torch.logaddexp(e, torch.zeros_like(e)),
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    **{name: getattr(torch, name) for name in ("sin", "cos", "tanh", "exp", "log", "sqrt", "atan", "erf", "log1p")},
}
