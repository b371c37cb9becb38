"""Kernels as functions, with the arguments of `torch.nn.functional`."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import (
    ARGUMENTS,
    Options,
    check_channels,
    check_fast_math,
    check_input,
    check_layout,
    check_names,
    collect,
    windows,
)
from .autograd import convolve
from .backends import choose
from .call_cache import CallKey, CheckedCall, cached_output, function_key, operand_key, remember
from .errors import ArgumentError, ArgumentTypeError
from .geometry import IntOrInts, per_axis
from .kernel import Kernel, Signature, is_learned
from .ops import Call
from .tracing import constant, is_recorded, is_replaced

KernelLike: TypeAlias = Kernel | str | sp.Expr

_parsed = functools.lru_cache(maxsize=1024)(Kernel)


def is_kernel(value: object) -> bool:
    """Whether something may be given as a kernel."""
    return isinstance(value, (Kernel, str, sp.Expr))


def as_kernel(kernel: KernelLike, bias: bool | None = None) -> Kernel:
    """A kernel, given as itself, as text or as a SymPy expression; with or without `+ b` as `bias` says."""
    if not is_kernel(kernel):
        raise ArgumentTypeError(f"a kernel is text, a SymPy expression or a symconv.Kernel, not {_shown(kernel)}")
    return (kernel if isinstance(kernel, Kernel) else _parsed(kernel)).with_bias(bias)


def _shown(value: object) -> str:
    """A value that a message can hold, or its type."""
    return repr(value) if isinstance(value, (int, float, tuple, type(None))) else f"a {type(value).__name__}"


@constant
def _signature_fields(kernel: KernelLike, bias: bool | None) -> tuple[Any, ...]:
    return tuple(as_kernel(kernel, bias).signature)


def _signature(kernel: KernelLike, bias: bool | None) -> Signature:
    if torch.compiler.is_compiling():
        return Signature(*_signature_fields(kernel, bias))
    return as_kernel(kernel, bias).signature


def conv2d(
    kernel: KernelLike, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, **options: Any
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
        padding_value: for "constant"; refused with another mode, unless it is 0.
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
    kernel: KernelLike, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """A kernel over sequences `[N, in_channels, L]`, as `torch.nn.functional.conv1d`; see `conv2d`."""
    return _conv(1, kernel, input, weight, bias, options)


def conv3d(
    kernel: KernelLike, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, **options: Any
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
    check_names(signature, given, CONV_OPTIONS)
    unfit: list[str] = []  # weights that tell nothing, and why
    for name, role, bank in zip(signature.tensors, signature.roles, signature.banks):
        weight_given = given.get(name) if role == "weight" else None
        if weight_given is None:
            continue
        check_layout(ARGUMENTS.get(name, name), weight_given)
        if weight_given.dim() != (dimensions := rank + 2 + bool(bank)):
            has, of = weight_given.dim(), f", as a bank of {bank} weights" if bank else ""
            unfit.append(f"{ARGUMENTS.get(name, name)} has {has} dimensions and needs {dimensions}{of}")
        else:
            # While `torch.jit.trace` records, sizes are tensors, and symbols for `make_fx`.
            shape = weight_given.shape[bool(bank) :]
            out, _, *size = (int(n) if isinstance(n, (Tensor, torch.SymInt)) else n for n in shape)
            kernel_size = size if kernel_size is None else kernel_size
            out_channels = out if out_channels is None else out_channels
    if kernel_size is None or out_channels is None:
        missing = "kernel_size" if kernel_size is None else "out_channels"
        weights = [ARGUMENTS.get(name, name) for name in signature.names("weight")]
        why = ", ".join(unfit) or (f"give {weights[0]}=..." if weights else f"give {missing}=...")
        raise ArgumentTypeError(f"{missing} is needed, and there is no weight to tell it: {why}")
    kernel_size = per_axis(
        tuple(kernel_size) if isinstance(kernel_size, Sequence) else kernel_size, rank, "kernel_size", 1
    )
    layout = stride, padding, dilation, groups, padding_mode, padding_value
    return run(signature, rank, given, Options(kernel_size, out_channels, *layout, backend, fast_math), key)


def _pool(
    rank: int, kernel: KernelLike, input: Tensor, kernel_size: IntOrInts, args: tuple[Any, ...], options: dict[str, Any]
) -> Tensor:
    given = {"x": input}
    if "x" in options:
        raise ArgumentTypeError("x was given twice: as input and by its name")
    key = None if is_autocast(input) else function_key(given, options, "pool", rank, kernel, kernel_size, *args)
    output = cached_output(key, {**given, **options} if options else given)
    if output is not None:
        return output
    places = ("stride", "padding", "dilation")
    if len(args) > len(places) or any(name in options for name in places[: len(args)]):
        shown = ", ".join(["kernel", "input", "kernel_size", *map(repr, args), *(f"{name}=..." for name in options)])
        raise ArgumentTypeError(
            f"pool{rank}d takes (kernel, input, kernel_size, {', '.join(places)}) and all else by name, each once, not "
            f"({shown})"
        )
    return _pool_first(key, rank, kernel, given, kernel_size, *args, **options)


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
    given |= {name: value for name, value in operands.items() if value is not None}
    check_names(signature, given, POOL_OPTIONS)
    # A param per filter or channel is welcome, unlike in a layer: the input tells how many there are.
    for role in ("weight", "bias"):
        for name in signature.names(role):
            raise ArgumentError(
                f"the formula names {name}, and pool{rank}d has no {role}; use conv{rank}d with groups=in_channels"
            )
    kernel_size = per_axis(kernel_size, rank, "kernel_size", 1)
    stride = kernel_size if stride is None else stride
    options = Options(
        kernel_size, None, stride, padding, dilation, None, padding_mode, padding_value, backend, fast_math
    )
    return run(signature, rank, given, options, key)


def run(
    signature: Signature, rank: int, given: Mapping[str, Any], options: Options, key: CallKey | None = None
) -> Tensor:
    """Check a call, pad, and call the operator; what went through before goes straight to the operator.

    Args:
        signature: the kernel's.
        rank: 1, 2 or 3 axes of the image.
        given: the operands by name; `x` is the input.
        options: all else that the caller said.
        key: of the call, where the caller has looked for it already.
    """
    given = autocast(signature, given)
    if key is None and not (torch.compiler.is_compiling() or is_replaced()):
        key = (signature.text, rank, options.spelled, *operand_key(given))
        if (output := cached_output(key, given)) is not None:
            return output
    call, tensors = checked(signature, rank, given, options)
    # Tensors that were padded, given a batch or filled in are made anew for each call, and the key tells no number that
    # stands in a tensor or array.
    same = all(given.get(name) is tensor for name, tensor in zip(signature.tensors, tensors))
    told = all(isinstance(given.get(name, 0), numbers.Real) for name in signature.numbers)
    if key is not None and not is_recorded() and same and told:
        remember(key, CheckedCall(call, signature.tensors))
    output = convolve(call, tensors)
    return output if given["x"].dim() == rank + 2 else output.squeeze(0)


def checked(signature: Signature, rank: int, given: Mapping[str, Any], options: Options) -> tuple[Call, list[Tensor]]:
    """The call, and its tensors with a batch and padded as far as the kernel does not do it itself.

    Args: as `run`.
    """
    x = given["x"]
    check_input("input", x, rank)
    check_names(signature, given)
    if signature.rank > rank:
        raise ArgumentError(f"the formula uses {'dz' if signature.rank == 3 else 'dy'}, an axis that conv{rank}d lacks")
    geometry, padding, output_size = windows(options, x.shape[-rank - 1], x.shape[-rank:])
    tensors, numbers = collect(signature, given, geometry, output_size)
    check_channels(signature, dict(zip(signature.tensors, tensors)), geometry)
    check_fast_math(options.fast_math)
    call = Call(signature.text, choose(options.backend, x.device, x.dtype), geometry, numbers, options.fast_math)
    for index, role in enumerate(signature.roles):
        if not is_learned(role):
            image = tensors[index] if x.dim() == rank + 2 else tensors[index].unsqueeze(0)
            padded = role == "input" and geometry.padding != padding
            tensors[index] = pad(image, padding, options.padding_mode, options.padding_value) if padded else image
    return call, tensors


def is_autocast(x: object) -> bool:
    """Whether `torch.autocast` wants operators on the device of a tensor to compute with fewer bits."""
    if not torch._C._is_any_autocast_enabled():  # which is quick to ask
        return False
    return isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type)


def autocast(signature: Signature, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Operands as `torch.autocast` gives them to a convolution: float64 and what is no tensor are left as they are.

    A pool computes with what its input has, as PyTorch's do.
    """
    x = given["x"]
    if not is_autocast(x):
        return given
    dtype = x.dtype if signature.pools else torch.get_autocast_dtype(x.device.type)
    cast = dict(given)
    for name in signature.tensors:
        value = given.get(name)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            cast[name] = value.to(dtype)
    return cast


def pad(x: Tensor, pairs: Sequence[tuple[int, int]], mode: str, value: float) -> Tensor:
    """The image `[N, C, *size]` with padding of a mode that the kernel cannot do itself; itself where there is none."""
    flat = [side for pair in reversed(pairs) for side in pair]
    if not any(flat):
        return x
    return F.pad(x, flat, "constant", value) if mode == "constant" else F.pad(x, flat, mode)


# -- What `help` and editors show -----------------------------------------------------------------------------------


def _options(first: Callable[..., Tensor]) -> tuple[str, ...]:
    """The names of all that a function hands on to `first` by name, but for operands."""
    parameters = inspect.signature(first).parameters.items()
    return tuple(name for name, each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))


CONV_OPTIONS, POOL_OPTIONS = _options(_conv_first), _options(_pool_first)


def _show_options(function: Callable[..., Tensor], first: Callable[..., Tensor]) -> None:
    """Let a function show the options of `first`, to which it hands on its own as a dictionary: that is quicker."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    names = {each.name for each in own}
    handed_on = [
        each
        for each in inspect.signature(first).parameters.values()
        if each.kind is not each.POSITIONAL_ONLY and each.name not in names
    ]
    function.__signature__ = signature.replace(parameters=[*own, *handed_on])  # type: ignore[attr-defined]


for _convolution in (conv1d, conv2d, conv3d):
    _show_options(_convolution, _conv_first)
for _pooling in (pool1d, pool2d, pool3d):
    _show_options(_pooling, _pool_first)
