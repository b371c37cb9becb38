"""Kernels as functions, with the arguments of `torch.nn.functional`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import (
    ARGUMENTS,
    check_channels,
    check_fast_math,
    check_groups,
    check_input,
    check_names,
    collect,
)
from .backends import choose
from .call_cache import CallKey, CheckedCall, cached_output, function_key, operand_key, remember
from .errors import ArgumentError, ArgumentTypeError
from .geometry import Geometry, IntOrInts, check_padding_mode, check_windows_fit, padding_pairs, per_axis
from .kernel import Kernel, Signature, is_learned
from .ops import Call, convolve, is_recorded

KernelLike: TypeAlias = Kernel | str | sp.Expr

_parsed = functools.lru_cache(maxsize=1024)(Kernel)


def as_kernel(kernel: KernelLike, bias: bool | None = None) -> Kernel:
    """A kernel, given as itself, as text or as a SymPy expression; with or without `+ b` as `bias` says."""
    if not isinstance(kernel, (Kernel, str, sp.Expr)):
        raise ArgumentTypeError(f"a kernel is text, a SymPy expression or a symconv.Kernel, not {_shown(kernel)}")
    return (kernel if isinstance(kernel, Kernel) else _parsed(kernel)).with_bias(bias)


def _shown(value: object) -> str:
    """A value that a message can hold, or its type."""
    return repr(value) if isinstance(value, (int, float, tuple, type(None))) else f"a {type(value).__name__}"


def _signature_fields(kernel: KernelLike, bias: bool | None) -> tuple[Any, ...]:
    return tuple(as_kernel(kernel, bias).signature)


# SymPy is not for torch.compile to trace.  See the same line in `backends`.
_signature_fields._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _signature(kernel: KernelLike, bias: bool | None) -> Signature:
    if torch.compiler.is_compiling():
        return Signature(*_signature_fields(kernel, bias))
    return as_kernel(kernel, bias).signature


def conv2d(
    kernel: KernelLike, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, /, **options: Any
) -> Tensor:
    """A kernel over images, as `torch.nn.functional.conv2d`.

    Args:
        kernel: a `Kernel`, the text of a formula, or a SymPy expression.
        input: `[N, in_channels, H, W]` or without N; float64, float32, float16 or bfloat16.
        weight: `[out_channels, in_channels / groups, *kernel_size]`, for a kernel with `w`.
        bias: `[out_channels]`; adds `+ b` to a kernel that has no `b`.
        stride: at least 1; an int, or one per axis.
        padding: at least 0, or "same" or "valid".
        dilation: at least 1.
        groups: divides both numbers of channels.
        padding_mode: "zeros", "reflect", "replicate", "circular", "constant" (with `padding_value`) or "ignore": a tap
            outside the image leaves the reduction.
        padding_value: for "constant".
        backend: "auto" or a backend's name.
        fast_math: let CUDA kernels in float32, float16 and bfloat16 use the GPU's own approximations of exp, log, sin,
            cos and tan, also within sigmoid, softmax and the like: about 21 bits behind the point, so that few digits
            are left of log near 1 and of sin near 0, and fewer far from 0.  Other backends compute as always.
        kernel_size, out_channels: for a kernel without a weight to tell them.
        operands: the formula's other operands by name; a `param` or `const` left out takes its declared value.

    Returns:
        `[N, out_channels, *size]`, of the size that `torch.nn.functional.conv2d` gives.

    Raises:
        ArgumentError: (a ValueError) a shape or value that is not allowed, by the argument's name.
        ArgumentTypeError: (a TypeError) a type or dtype that is not allowed, a missing or unknown operand.
        FormulaError: if the kernel is given as a text that is not a formula.

    >>> import torch, symconv as sc
    >>> sc.conv2d("-sum(abs(x - w))", torch.ones(1, 2, 4, 4), torch.zeros(3, 2, 3, 3)).flatten()[0]
    tensor(-18.)
    """
    return _conv(2, kernel, input, weight, bias, options)


def conv1d(
    kernel: KernelLike, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, /, **options: Any
) -> Tensor:
    """A kernel over sequences `[N, in_channels, L]`, as `torch.nn.functional.conv1d`; see `conv2d`."""
    return _conv(1, kernel, input, weight, bias, options)


def conv3d(
    kernel: KernelLike, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, /, **options: Any
) -> Tensor:
    """A kernel over volumes `[N, in_channels, D, H, W]`, as `torch.nn.functional.conv3d`; see `conv2d`."""
    return _conv(3, kernel, input, weight, bias, options)


def pool2d(kernel: KernelLike, input: Tensor, kernel_size: IntOrInts, *args: Any, **options: Any) -> Tensor:
    """A kernel without a weight over each channel, as `torch.nn.functional.max_pool2d`.

    Args:
        kernel: a `Kernel`, the text of a formula, or a SymPy expression.
        input: `[N, C, H, W]` or without N.
        kernel_size: at least 1; an int, or one per axis.
        stride: `kernel_size` by default.
        padding, dilation, padding_mode, padding_value, backend, fast_math, operands: as `conv2d`; `padding_mode` is
            "ignore" by default.

    Returns:
        `[N, C, *size]`.

    >>> import torch, symconv as sc
    >>> sc.pool2d("max(x)", torch.arange(16.).reshape(1, 1, 4, 4), 2)
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """
    return _pool(2, kernel, input, kernel_size, args, options)


def pool1d(kernel: KernelLike, input: Tensor, kernel_size: IntOrInts, *args: Any, **options: Any) -> Tensor:
    """A kernel without a weight over each channel of `[N, C, L]`, as `max_pool1d`; see `pool2d`."""
    return _pool(1, kernel, input, kernel_size, args, options)


def pool3d(kernel: KernelLike, input: Tensor, kernel_size: IntOrInts, *args: Any, **options: Any) -> Tensor:
    """A kernel without a weight over each channel of `[N, C, D, H, W]`, as `max_pool3d`; see `pool2d`."""
    return _pool(3, kernel, input, kernel_size, args, options)


# -- The path of a call ---------------------------------------------------------------------------------------------


def _conv(
    rank: int, kernel: KernelLike, input: Tensor, weight: Tensor | None, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    given = {"x": input}
    if weight is not None:
        given["w"] = weight
    if bias is not None:
        given["b"] = bias
    if options and (twice := given.keys() & options.keys()):
        name = min(twice)
        raise ArgumentTypeError(f"{name} was given twice: as {ARGUMENTS[name]} and by its name")
    key = None if is_autocast(input) else function_key(given, options, "conv", rank, kernel)
    output = cached_output(key, {**given, **options} if options else given)
    return _conv_first(key, rank, kernel, given, **options) if output is None else output


def _conv_first(
    key: CallKey | None,
    rank: int,
    kernel: KernelLike,
    given: dict[str, Any],
    /,
    *,
    stride: IntOrInts = 1,
    padding: str | IntOrInts = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    padding_value: float = 0.0,
    backend: str = "auto",
    fast_math: bool = False,
    kernel_size: IntOrInts | None = None,
    out_channels: int | None = None,
    **operands: Any,
) -> Tensor:
    """A call of a function that was not made before."""
    signature = _signature(kernel, True if "b" in given else None)
    given |= {name: value for name, value in operands.items() if value is not None}
    for name, role, bank in zip(signature.tensors, signature.roles, signature.banks):
        weight_given = given.get(name) if role == "weight" else None
        if isinstance(weight_given, Tensor) and weight_given.dim() == rank + 2 + bool(bank):
            # While `torch.jit.trace` records, sizes are tensors.
            out, _, *size = (int(n) if isinstance(n, Tensor) else n for n in weight_given.shape[bool(bank) :])
            kernel_size = size if kernel_size is None else kernel_size
            out_channels = out if out_channels is None else out_channels
    if kernel_size is None or out_channels is None:
        check_names(signature, given)  # a mistyped operand is the likelier mistake
        missing = "kernel_size" if kernel_size is None else "out_channels"
        raise ArgumentTypeError(f"{missing} is needed: there is no weight of {rank + 2} dimensions to tell it")
    kernel_size = per_axis(
        tuple(kernel_size) if isinstance(kernel_size, Sequence) else kernel_size, rank, "kernel_size", 1
    )
    geometry = kernel_size, out_channels, stride, padding, dilation, groups, padding_mode, padding_value
    return run_first(key, signature, rank, given, *geometry, backend, fast_math)


def _pool(
    rank: int, kernel: KernelLike, input: Tensor, kernel_size: IntOrInts, args: tuple[Any, ...], options: dict[str, Any]
) -> Tensor:
    given = {"x": input}
    if "x" in options:
        raise ArgumentTypeError("x was given twice: as input and by its name")
    key = None if is_autocast(input) else function_key(given, options, "pool", rank, kernel, kernel_size, *args)
    output = cached_output(key, {**given, **options} if options else given)
    return _pool_first(key, rank, kernel, given, kernel_size, *args, **options) if output is None else output


def _pool_first(
    key: CallKey | None,
    rank: int,
    kernel: KernelLike,
    given: dict[str, Any],
    /,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: str | IntOrInts = 0,
    dilation: IntOrInts = 1,
    *,
    padding_mode: str = "ignore",
    padding_value: float = 0.0,
    backend: str = "auto",
    fast_math: bool = False,
    **operands: Any,
) -> Tensor:
    """A call of a function that was not made before."""
    signature = _signature(kernel, None)
    for role in ("weight", "bias"):
        for name in signature.names(role):
            raise ArgumentError(
                f"the formula names {name}, and pool{rank}d has no {role}; use conv{rank}d with groups=in_channels"
            )
    check_input("input", given["x"], rank)
    channels = given["x"].shape[-rank - 1]
    kernel_size = per_axis(kernel_size, rank, "kernel_size", 1)
    stride = kernel_size if stride is None else stride
    geometry = kernel_size, channels, stride, padding, dilation, channels, padding_mode, padding_value
    given |= {name: value for name, value in operands.items() if value is not None}
    return run_first(key, signature, rank, given, *geometry, backend, fast_math)


def is_autocast(x: object) -> bool:
    """Whether `torch.autocast` wants operators on the device of a tensor to compute with fewer bits."""
    if not torch._C._is_any_autocast_enabled():  # which is quick to ask
        return False
    return isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type)


def autocast(signature: Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """Operands as `torch.autocast` gives them to a convolution: float64 and what is no tensor are left as they are."""
    dtype = torch.get_autocast_dtype(given["x"].device.type)
    cast = dict(given)
    for name in signature.tensors:
        value = given.get(name)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            cast[name] = value.to(dtype)
    return cast


def run(signature: Signature, rank: int, given: Mapping[str, Any], *options: Any) -> Tensor:
    """Check everything, pad, and call the operator; what was checked before goes straight to the operator.

    Args: see `checked`.
    """
    if is_autocast(given["x"]):
        given = autocast(signature, given)
    key = None if torch.compiler.is_compiling() else (signature.text, rank, repr(options), *operand_key(given))
    output = cached_output(key, given)
    return run_first(key, signature, rank, given, *options) if output is None else output


def run_first(key: CallKey | None, signature: Signature, rank: int, given: Mapping[str, Any], *options: Any) -> Tensor:
    """Check everything, pad, and call the operator; remember the call if it can be made again."""
    check_input("input", given["x"], rank)
    if is_autocast(given["x"]):
        given = autocast(signature, given)
    call, tensors, batched, as_given = checked(signature, rank, given, *options)
    if key is not None and as_given and not is_recorded():
        remember(key, CheckedCall(call, signature.tensors))
    output = convolve(call, tensors)
    return output if batched else output.squeeze(0)


def checked(
    signature: Signature,
    rank: int,
    given: Mapping[str, Any],
    kernel_size: tuple[int, ...],
    out_channels: int,
    stride: IntOrInts,
    padding: str | IntOrInts,
    dilation: IntOrInts,
    groups: int,
    padding_mode: str,
    padding_value: float,
    backend: str,
    fast_math: bool,
) -> tuple[Call, list[Tensor], bool, bool]:
    """Check everything and pad.

    Returns:
        The call, its tensors, whether they are batched, and whether they are just those that were given.

    Args:
        signature: the kernel's.
        rank: 1, 2 or 3 axes of the image.
        given: the operands by name; `x` is the input.
        kernel_size, out_channels, stride, padding, dilation, groups, padding_mode, padding_value: as `Conv2d`.
        backend: a backend's name or "auto".
        fast_math: as `conv2d`.
    """
    x = given["x"]
    check_names(signature, given)
    if signature.rank > rank:
        raise ArgumentError(f"the formula uses {'dz' if signature.rank == 3 else 'dy'}, an axis that conv{rank}d lacks")
    check_padding_mode(padding_mode)
    stride, dilation = per_axis(stride, rank, "stride", 1), per_axis(dilation, rank, "dilation", 1)
    pairs = padding_pairs(padding, kernel_size, stride, dilation)
    ignore = padding_mode == "ignore"
    zeros = padding_mode == "zeros" or (padding_mode == "constant" and padding_value == 0)
    kept = pairs if ignore or zeros else ((0, 0),) * rank  # what the kernel pads itself, without a copy of the image
    geometry = Geometry(kernel_size, out_channels, stride, kept, dilation, groups, ignore)
    in_channels = x.shape[-rank - 1]
    check_groups(in_channels, out_channels, groups)
    check_windows_fit(x.shape[-rank:], pairs, geometry._replace(padding=((0, 0),) * rank), padding_mode)
    tensors, numbers = collect(
        signature, given, geometry, geometry._replace(padding=pairs).output_size(x.shape[-rank:])
    )
    check_channels(signature, dict(zip(signature.tensors, tensors)), geometry)

    batched = x.dim() == rank + 2
    for index, role in enumerate(signature.roles):
        if not is_learned(role):
            image = tensors[index] if batched else tensors[index].unsqueeze(0)
            padded = role == "input" and kept != pairs
            tensors[index] = pad(image, pairs, padding_mode, padding_value) if padded else image
    as_given = batched and kept == pairs and all(name in given for name in signature.tensors)
    check_fast_math(fast_math)
    call = Call(signature.text, choose(backend, x.device, x.dtype), geometry, numbers, fast_math)
    return call, tensors, batched, as_given


def pad(x: Tensor, pairs: Sequence[tuple[int, int]], mode: str, value: float) -> Tensor:
    """The image `[N, C, *size]` with padding of a mode that the kernel cannot do itself; itself where there is none."""
    flat = [side for pair in reversed(pairs) for side in pair]
    if not any(flat):
        return x
    return F.pad(x, flat, "constant", value) if mode == "constant" else F.pad(x, flat, mode)
