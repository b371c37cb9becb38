"""Kernels as functions, with the arguments of `torch.nn.functional`."""

from __future__ import annotations

import difflib
import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import DTYPES, choose
from .errors import ArgumentError, ArgumentTypeError
from .geometry import Geometry, IntOrInts, check_padding_mode, check_windows_fit, padding_pairs, per_axis
from .kernel import Kernel, Signature, is_learned
from .ops import Call, convolve, convolve_now, is_plain, is_recorded

KernelLike: TypeAlias = Kernel | str | sp.Expr

#: Operands that have arguments of their own.
ARGUMENTS = {"x": "input", "w": "weight", "b": "bias"}
#: Options whose value decides even where it is given as a tensor.
NUMBERS = frozenset(["padding_value"])


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
    said = spelled(given, options, "conv", rank, kernel)
    output = recalled(said, {**given, **options} if options else given)
    return _conv_first(said, rank, kernel, given, **options) if output is None else output


def _conv_first(
    said: Said,
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
    return run_first(said, signature, rank, given, *geometry, backend, fast_math)


def _pool(
    rank: int, kernel: KernelLike, input: Tensor, kernel_size: IntOrInts, args: tuple[Any, ...], options: dict[str, Any]
) -> Tensor:
    given = {"x": input}
    if "x" in options:
        raise ArgumentTypeError("x was given twice: as input and by its name")
    said = spelled(given, options, "pool", rank, kernel, kernel_size, *args)
    output = recalled(said, {**given, **options} if options else given)
    return _pool_first(said, rank, kernel, given, kernel_size, *args, **options) if output is None else output


def _pool_first(
    said: Said,
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
    return run_first(said, signature, rank, given, *geometry, backend, fast_math)


# -- Calls that were made before: a training loop repeats itself ---------------------------------------------------


class Ready:
    """A call that was checked, and the names of its tensors."""

    def __init__(self, call: Call, names: tuple[str, ...]) -> None:
        self.call, self.names = call, names
        self._repeated: Callable[[Sequence[Tensor]], Tensor] | None = None

    def __call__(self, given: Mapping[str, Any]) -> Tensor:
        """The output for other tensors of which the same is known."""
        tensors = [given[name] for name in self.names]
        if not is_plain(tensors):
            return convolve_now(self.call, tensors)
        if self._repeated is None:
            self._repeated = self.call.compiled.repeated(tensors, self.call.numbers, self.call.geometry)
        return self._repeated(tensors)


#: What a caller said: all that a check looks at, which is everything but the values of tensors.
Said: TypeAlias = tuple[Any, ...] | None
_READY: dict[Said, Ready] = {}
MAX_READY = 4096


def spelled(
    given: Mapping[str, Any], options: Mapping[str, Any], kind: str, rank: int, kernel: KernelLike, *others: Any
) -> Said:
    """What the caller of a function said; None if it cannot be told.

    While `torch.jit.trace` records, sizes are tensors, of which none is equal to what was said before.
    """
    if torch.compiler.is_compiling() or is_autocast(given["x"]):
        return None
    if isinstance(kernel, Kernel):
        kernel = kernel.text
    elif not isinstance(kernel, (str, sp.Expr)):
        return None
    said = [kind, rank, kernel, repr(others) if others else "", *described(given)]
    return (*said, "by name", *described(options)) if options else tuple(said)


def described(given: Mapping[str, Any]) -> list[Any]:
    """What is known of operands and options without the values of tensors.

    By their spelling: True is equal to 1, and as a stride it is refused.
    """
    said: list[Any] = []
    for name, value in given.items():
        if isinstance(value, Tensor) and name not in NUMBERS:
            said += (name, value.shape, value.dtype, value.device)
        else:
            said += (name, repr(value))
    return said


def recalled(said: Said, given: Mapping[str, Any]) -> Tensor | None:
    """The output, if the same was said before."""
    if said is None or (ready := _READY.get(said)) is None:
        return None
    return ready(given)


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
    said = None if torch.compiler.is_compiling() else (signature.text, rank, repr(options), *described(given))
    output = recalled(said, given)
    return run_first(said, signature, rank, given, *options) if output is None else output


def run_first(said: Said, signature: Signature, rank: int, given: Mapping[str, Any], *options: Any) -> Tensor:
    """Check everything, pad, and call the operator; remember what was said if it can be called again."""
    check_input("input", given["x"], rank)
    if is_autocast(given["x"]):
        given = autocast(signature, given)
    call, tensors, batched, as_given = checked(signature, rank, given, *options)
    if said is not None and as_given and not is_recorded():
        if len(_READY) >= MAX_READY:
            _READY.clear()
        _READY[said] = Ready(call, signature.tensors)
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
            raise ArgumentTypeError(f"the formula names {name}: {argument} is needed")
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


def pad(x: Tensor, pairs: Sequence[tuple[int, int]], mode: str, value: float) -> Tensor:
    """The image `[N, C, *size]` with padding of a mode that the kernel cannot do itself; itself where there is none."""
    flat = [side for pair in reversed(pairs) for side in pair]
    if not any(flat):
        return x
    return F.pad(x, flat, "constant", value) if mode == "constant" else F.pad(x, flat, mode)


# -- Checks --------------------------------------------------------------------------------------------------------


def check_input(name: str, x: Any, rank: int) -> None:
    """Refuse what is not a floating-point image of the right number of axes."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError(f"{name} must be a torch.Tensor, not {type(x).__name__}")
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


def check_tensor(name: str, value: Any, x: Tensor) -> None:
    """Refuse an operand that is no tensor, or of another dtype or device than the input."""
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.dtype != x.dtype:
        raise ArgumentTypeError(f"{name} has dtype {value.dtype} and input has {x.dtype}; they must be the same")
    if value.device != x.device:
        raise ArgumentTypeError(f"{name} is on {value.device} and input on {x.device}; they must be on one device")


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
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        what = "has no value: give" if value is None else f"is a number, not {value!r}: give"
        raise ArgumentTypeError(f"the const {name} {what} {name}=...")
    if name in signature.shares and not 0 <= float(value) <= 1:
        raise ArgumentError(f"the const {name} is the share of a quantile and lies between 0 and 1, not at {value!r}")
    return float(value)


def check_fast_math(fast_math: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(fast_math, bool):
        raise ArgumentTypeError(f"fast_math must be True or False, not {fast_math!r}")


def check_names(signature: Signature, given: Mapping[str, Any]) -> None:
    """Refuse an operand that the formula does not name."""
    known = (*signature.tensors, *signature.numbers)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its operands are {', '.join(known)}"
            raise ArgumentTypeError(f"{ARGUMENTS.get(name, name)} was given, but the formula has no {name}; {hint}")


def check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuse groups that do not divide the channels."""
    if not isinstance(groups, int) or groups < 1:
        raise ArgumentError(f"groups must be a positive int, not {groups!r}")
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups or channels < 1:
            raise ArgumentError(f"{name} ({channels}) must be a positive multiple of groups ({groups})")


# -- The public functions ------------------------------------------------------------------------------------------


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
