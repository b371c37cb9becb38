"""The arguments of a call, checked: operands, and the options by which the windows lie."""

from __future__ import annotations

import difflib
import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backends import DTYPES
from .errors import ArgumentError, ArgumentTypeError
from .geometry import Geometry, IntOrInts, check_padding_mode, check_windows_fit, count, padding_pairs, per_axis
from .kernel import Signature

#: Operands that have arguments of their own.
ARGUMENTS = {"x": "input", "w": "weight", "b": "bias"}
#: Arguments of PyTorch's pools that ours have not, and what to do instead.
OF_TORCH = {
    "ceil_mode": "give padding, or fill the input up at its end with torch.nn.functional.pad",
    "return_indices": "torch.nn.functional.max_pool2d has it",
    "count_include_pad": "padding_mode='zeros' counts the padding, 'ignore' does not",
    "divisor_override": "write sum(x)/n in place of mean(x)",
}


@dataclass(frozen=True)
class Options:
    """What a call is told besides its operands, as `Conv2d` and `conv2d` take it.

    Args:
        kernel_size: one int per axis of the image.
        out_channels: None where each channel of the input is a group by itself, as pools have it; so is `groups`.
        stride: at least 1; an int, or one per axis.
        padding: at least 0, or "same" or "valid".
        dilation: at least 1.
        groups: divides both numbers of channels.
        padding_mode: one of `geometry.PADDING_MODES`.
        padding_value: for "constant"; 0 for other modes.
        backend: a backend's name, or "auto".
        fast_math: whether CUDA kernels may use the GPU's own approximations.
    """

    kernel_size: tuple[int, ...]
    out_channels: int | None
    stride: IntOrInts
    padding: str | IntOrInts
    dilation: IntOrInts
    groups: int | None
    padding_mode: str
    padding_value: float
    backend: str
    fast_math: bool

    @functools.cached_property
    def spelled(self) -> str:
        """All of them as text, for the key of a call: True is equal to 1, and as a stride it is refused."""
        return repr(self)


class Windows(NamedTuple):
    """How the windows of a call lie on its images.

    Args:
        geometry: what the kernel is told; of the padding what it does itself, without a copy of the image.
        padding: all of it, before and after the image along each axis.
        output_size: how many windows there are along each axis.
    """

    geometry: Geometry
    padding: tuple[tuple[int, int], ...]
    output_size: tuple[int, ...]


def windows(options: Options, in_channels: int, image_size: tuple[int, ...]) -> Windows:
    """Where the windows of a call lie, for an image of some channels and size before padding.

    Raises:
        ArgumentError, ArgumentTypeError: if an option is none, or does not fit the image.
    """
    rank, mode = len(image_size), options.padding_mode
    check_padding_mode(mode, options.padding_value)
    stride, dilation = per_axis(options.stride, rank, "stride", 1), per_axis(options.dilation, rank, "dilation", 1)
    pairs, nothing = padding_pairs(options.padding, options.kernel_size, stride, dilation), ((0, 0),) * rank
    own = mode in ("ignore", "zeros") or (mode == "constant" and options.padding_value == 0)
    # While `torch.jit.trace` records, sizes are tensors.
    channels = int(in_channels) if isinstance(in_channels, Tensor) else in_channels
    out_channels = channels if options.out_channels is None else count(options.out_channels, "out_channels")
    groups = channels if options.groups is None else count(options.groups, "groups")
    check_groups(in_channels, out_channels, groups)
    geometry = Geometry(
        options.kernel_size, out_channels, stride, pairs if own else nothing, dilation, groups, mode == "ignore"
    )
    check_windows_fit(image_size, pairs, geometry, mode)
    geometry = geometry._replace(stride=_clamped_stride(stride, geometry._replace(padding=pairs), image_size))
    return Windows(geometry, pairs, geometry._replace(padding=pairs).output_size(image_size))


def _clamped_stride(stride: tuple[int, ...], geometry: Geometry, image_size: tuple[int, ...]) -> tuple[int, ...]:
    """The stride, at most one that leaves a single window: what lies beyond is felt nowhere, and would take memory."""
    spans = zip(stride, image_size, geometry.padding, geometry.dilation, geometry.kernel_size)
    return tuple(s if s == 1 else min(s, i + sum(p) - d * (k - 1)) for s, i, p, d, k in spans)


def collect(
    signature: Signature, given: Mapping[str, Any], geometry: Geometry, output_size: tuple[int, ...]
) -> tuple[list[Tensor], tuple[float, ...]]:
    """The tensors and numbers of a call in the order of the signature, each checked."""
    x = given["x"]
    rank = len(geometry.kernel_size)
    in_channels = x.shape[-rank - 1]
    tensors: list[Tensor] = []
    for name, role, axes, bank, init in zip(
        signature.tensors, signature.roles, signature.axes, signature.banks, signature.inits
    ):
        argument = ARGUMENTS.get(name, name)
        value = given.get(name)
        shape = operand_shape(axes, in_channels, geometry, bank)
        if role == "field":
            shape = (*x.shape[: -rank - 1], *field_shape(axes, geometry), *output_size)
        if value is None and role == "param":
            value = torch.full(shape, init or 0.0, dtype=x.dtype, device=x.device)
        if value is None:
            raise ArgumentTypeError(f"the formula names {name}: {argument} is needed; give {argument}=...")
        check_tensor(argument, value, x)
        if role == "input":
            check_other_input(argument, value, x, rank)
        elif tuple(value.shape) != shape:
            raise ArgumentError(
                f"{argument} has shape {list(value.shape)}, expected {list(shape)} for in_channels={in_channels}, "
                f"out_channels={geometry.out_channels}, groups={geometry.groups}, kernel_size={geometry.kernel_size}"
                + (f", output size {output_size}" if role == "field" else "")
            )
        tensors.append(value)
    given_numbers = []
    for name, declared in zip(signature.numbers, signature.values):
        given_numbers.append(check_number(signature, name, given.get(name, declared)))
    return tensors, tuple(given_numbers)


def operand_shape(axes: str, in_channels: int, geometry: Geometry, bank: int = 0) -> tuple[int, ...]:
    """The shape of a weight or parameter with the given axes: `[out, in/groups, *kernel_size]` for "oct".

    A bank has an axis more, the first.
    """
    sizes = {"o": (geometry.out_channels,), "c": (in_channels // geometry.groups,), "t": geometry.kernel_size}
    shape: tuple[int, ...] = (bank,) if bank else ()
    for axis in axes:
        shape += sizes[axis]
    return shape


def field_shape(axes: str, geometry: Geometry) -> tuple[int, ...]:
    """The shape of a field between the batch and the output's size: `[out_channels, T]` for "ot"."""
    sizes = {"o": geometry.out_channels, "t": math.prod(geometry.kernel_size)}
    return tuple(sizes[axis] for axis in axes)


def check_input(name: str, x: Any, rank: int) -> None:
    """Refuse what is not a floating-point image of the right number of axes."""
    check_layout(name, x)
    if x.dim() not in (rank + 1, rank + 2):
        axes = "DHW"[3 - rank :]
        raise ArgumentError(
            f"{name} has {x.dim()} dimensions {list(x.shape)}; expected {rank + 2} [N, C, {', '.join(axes)}] "
            f"or {rank + 1} without the batch"
        )
    if x.dtype not in DTYPES:
        hint = f"convert it, for example {name}.float()" if not x.is_complex() else "complex numbers are not supported"
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ArgumentTypeError(f"{name} has dtype {str(x.dtype).removeprefix('torch.')}; expected {allowed}: {hint}")


def check_dtype(dtype: Any) -> None:
    """Refuse a layer's dtype that no backend computes with; None is PyTorch's default."""
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentTypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype!r}")


def check_layout(name: str, value: Any) -> None:
    """Refuse what is no tensor, or not numbers at strides: a nested or sparse one, or one of another library."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.is_nested:
        raise ArgumentTypeError(
            f"{name} is a nested tensor; a plain one is needed: fill it up, for example "
            f"torch.nested.to_padded_tensor({name}, 0.0), or give one tensor of {name}.unbind() at a time"
        )
    if value.layout != torch.strided:
        raise ArgumentTypeError(
            f"{name} has layout {value.layout}; torch.strided is needed: convert it, for example {name}.to_dense()"
        )


def check_tensor(name: str, value: Any, x: Tensor) -> None:
    """Refuse an operand that is no tensor, or of another dtype or device than the input."""
    check_layout(name, value)
    if value.dtype != x.dtype:
        raise ArgumentTypeError(
            f"{name} has dtype {value.dtype} and input has {x.dtype}; they must be the same: convert one of them, such "
            f"as {name}.to({x.dtype}), or a whole layer by layer.to({x.dtype})"
        )
    if value.device != x.device:
        raise ArgumentTypeError(
            f"{name} is on {value.device} and input on {x.device}; they must be on one device: move one of them, such "
            f"as {name}.to('{x.device}'), or a whole layer by layer.to('{x.device}')"
        )


def check_other_input(name: str, value: Tensor, x: Tensor, rank: int) -> None:
    """Refuse a second input that does not lie over the first; its number of channels is its own."""
    channel = x.dim() - rank - 1
    same = value.dim() == x.dim() and all(value.shape[d] == x.shape[d] or d == channel for d in range(x.dim()))
    if not same or value.shape[channel] == 0:
        raise ArgumentError(
            f"{name} has shape {list(value.shape)} and input {list(x.shape)}; they must be the same except for the "
            f"number of channels"
        )


def check_channels(signature: Signature, tensors: Mapping[str, Tensor], geometry: Geometry) -> None:
    """Refuse numbers of channels that do not fit the way in which the formula puts its operands together."""
    axis = -len(geometry.kernel_size) - 1
    counts = {name: tensors[name].shape[axis] for name in ("x", *signature.names("input"))}
    check_counts(signature, counts, geometry.out_channels, geometry.groups)


def check_counts(signature: Signature, counts: Mapping[str, int], out_channels: int, groups: int) -> None:
    """The same, of those inputs alone whose channels are known."""
    per_group = {name: n // groups if n % groups == 0 else n for name, n in counts.items()}
    unknown = {*signature.names("input")} - {*counts}
    for together in signature.together:
        names = [name for name in together if name not in unknown]
        whole = per_group["x"] if "x" in names else max((per_group[name] for name in names), default=1)
        for name in names:
            if per_group[name] != whole and (per_group[name] != 1 or name in signature.unshared):
                others = " and ".join(f"{each} {counts[each]}" for each in names if each != name)
                raise ArgumentError(
                    f"{name} has {counts[name]} channels and {others}"
                    f" with groups={groups}; the formula combines them, so they must be the same"
                    + (f", or {name} have 1" if name not in signature.unshared else "")
                )
    for name in signature.own:
        has = counts.get(name, counts["x"])
        if name not in unknown and has != out_channels and not (has == 1 and name in counts and name != "x"):
            raise ArgumentError(
                f"the formula reads {name}[o, ...], the output's own channel, so there must be as many channels as "
                f"outputs: {name if name in counts else 'x'} has {has}, out_channels is {out_channels}"
            )
    for name in signature.single:
        if per_group.get(name, 1) != 1:
            raise ArgumentError(
                f"the formula uses {name}[c, 0] outside a reduction, so each output needs one channel of {name}, not "
                f"{per_group[name]}: use groups=in_channels or a pooling layer, write {name}[o, 0], or reduce over c"
            )


def check_number(signature: Signature, name: str, value: Any) -> float:
    """The value of a const, refused if it is no number, or no share where a quantile wants one."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise ArgumentTypeError(
            f"the const {name} has no gradient, and was given a tensor that requires one: declare it as "
            f"`{name}: param`, or give {name}.item()"
        )
    if (number := real(value)) is None:
        what = "has no value: give" if value is None else f"is a number, not {value!r}: give"
        raise ArgumentTypeError(f"the const {name} {what} {name}=...")
    if name in signature.shares and not 0 <= number <= 1:
        raise ArgumentError(f"the const {name} is the share of a quantile and lies between 0 and 1, not at {value!r}")
    return number


def real(value: Any) -> float | None:
    """A real number as a float, also one in a tensor or array without axes; None for a bool and for what is none.

    >>> real(2), real(torch.tensor(2)), real(True), real(2j)
    (2.0, 2.0, None, None)
    """
    if not isinstance(value, numbers.Real) and getattr(value, "ndim", None) == 0:
        value = None if getattr(value, "is_meta", False) else value.item()
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def check_init(init: Any) -> None:
    """Refuse what fills no weights: what is neither a function nor the name of one of `torch.nn.init`, nor None."""
    if not (init is None or callable(init) or (isinstance(init, str) and hasattr(torch.nn.init, f"{init}_"))):
        raise ArgumentError(f"init must be a function or a name of torch.nn.init such as 'zeros', not {init!r}")


def check_fast_math(fast_math: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(fast_math, bool):
        raise ArgumentTypeError(f"fast_math must be True or False, not {fast_math!r}")


def check_bias(bias: Any) -> None:
    """Refuse what is neither True nor False nor None."""
    if not (bias is None or isinstance(bias, bool)):
        raise ArgumentTypeError(f"bias must be True, False or None, not {bias!r}")


def check_names(signature: Signature, given: Mapping[str, Any], options: Sequence[str] = ()) -> None:
    """Refuse an operand that the formula does not name; `options` are what the caller takes by name besides."""
    known = (*signature.tensors, *signature.numbers)
    for name in given:
        if name not in known:
            others = f"; the options are {', '.join(options)}" if options and name not in ARGUMENTS else ""
            hint = hint_for(name, (*known, *options)) or f"its operands are {', '.join(known)}{others}"
            raise ArgumentTypeError(f"{ARGUMENTS.get(name, name)} was given, but the formula has no {name}; {hint}")


def hint_for(name: str, known: Sequence[str]) -> str:
    """What somebody may have meant by a name that is none of the known ones; empty if nobody can tell."""
    if name in OF_TORCH:
        return f"{name} is not supported: {OF_TORCH[name]}"
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuse groups that do not divide the channels."""
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels < 1 or groups < 1 or channels % groups:
            raise ArgumentError(f"{name} ({channels}) must be a positive multiple of groups ({groups})")
