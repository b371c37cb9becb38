"""Standalone files: a layer that needs only torch."""

from __future__ import annotations

import ast
import builtins
import keyword
import math
from typing import Any

from .arguments import check_init
from .backends.torch_source import torch_source
from .errors import ArgumentError
from .kernel import Kernel, is_learned
from .layer import Layer
from .lower import lower

_SIZES = {"o": "out_channels", "c": "in_channels // groups", "t": "*self.kernel_size"}
_FILLS = {
    "weight": "torch.nn.init.kaiming_uniform_({}, a=math.sqrt(5))",
    "bias": "torch.nn.init.uniform_({0}, -1, 1).data.div_(math.sqrt(self.in_channels // self.groups * "
    "math.prod(self.kernel_size)))",
    "param": "torch.nn.init.constant_({{}}, {init})",
}


def standalone(kernel: Kernel, name: str = "Layer", rank: int = 2) -> str:
    """The text of one Python file with an `nn.Module` that computes a kernel and imports only torch.

    A kernel of which `Signature.pools` says so becomes a pooling layer, any other a convolution layer; its state_dict
    has the keys of the symconv layer.

    Args:
        kernel: the kernel; each `const` needs a value.
        name: of the class.
        rank: 1, 2 or 3 axes of the image.

    Raises:
        ArgumentError: for a name that is not one or means something in the file, or a rank that the formula does not
            allow.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ArgumentError(f"the class name must be an identifier, not {name!r}")
    signature = kernel.signature
    if rank not in (1, 2, 3) or rank < signature.rank:
        raise ArgumentError(
            f"the layer has 1, 2 or 3 axes and this formula needs at least {signature.rank}, not {rank}"
        )
    for number, value in zip(signature.numbers, signature.values):
        if value is None:
            raise ArgumentError(f"the const {number} has no value: write {number}: const = ... in the formula")
    learned, operands = [], []
    for operand, role, axes, bank, init, positive in zip(
        signature.tensors, signature.roles, signature.axes, signature.banks, signature.inits, signature.positive
    ):
        attribute = Layer.SPELLED.get(operand, operand)
        operands.append(f"self.{attribute}" if is_learned(role) else operand)
        if is_learned(role):
            sizes = [str(bank)] * bool(bank) + [_SIZES[axis] for axis in axes]
            shape = "".join(f"{size}, " for size in sizes).removesuffix(" ")
            fill = kernel_fill(kernel) if role == "weight" else _FILLS[role].format("{}", init=_number(init))
            fill = f"for each in {{}}:\n            {fill.format('each')}" if bank else fill
            fill = f"{{0}} = torch.full_like({{0}}, {_number(init)})" if positive else fill
            learned.append((attribute, f"({shape})", fill, positive))
    layer: dict[str, Any] = {
        "name": name,
        "rank": rank,
        "pool": signature.pools,
        "constants": [*zip(signature.numbers, map(_number, signature.values))],
        "inputs": signature.names("input"),
        "fields": signature.names("field"),
        "learned": learned,
        "positive": any(signature.positive),
        "operands": operands,
    }
    source = torch_source(kernel, lower(kernel.formula), "torch/module.py.jinja", layer=layer)
    if hasattr(builtins, name) or _names(source).count(name) > 1:
        raise ArgumentError(f"{name} means something else in the file already; choose another name for the class")
    return source


def _number(value: float | None) -> str:
    """A number as Python reads it, also an infinite one."""
    return f"float('{value}')" if value is not None and math.isinf(value) else repr(value)


def _names(source: str) -> list[str]:
    """What a module defines and imports, each as often as it does."""
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [each.name for each in node.names]
    return found


def kernel_fill(kernel: Kernel) -> str:
    """How the standalone layer fills a weight: as the kernel names, else Kaiming-uniform.

    Raises:
        ArgumentError: for an initialiser that is none, or a function: its text is not ours to write.
    """
    check_init(kernel.init)
    if kernel.init is None:
        return _FILLS["weight"]
    if not isinstance(kernel.init, str):
        raise ArgumentError("a standalone file needs an initialiser by name, such as init='zeros', not a function")
    return f"torch.nn.init.{kernel.init}_({{}})"
