"""Kernels as layers, with the arguments and the behaviour of `torch.nn`'s."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from .arguments import Options, check_bias, check_counts, check_groups, check_init
from .errors import ArgumentError, ArgumentTypeError, SymconvWarning
from .functional import KernelLike, as_kernel, is_kernel
from .geometry import IntOrInts, count, per_axis, whole
from .kernel import Initializer
from .language.axes import WindowNode
from .layer import Layer, option
from .reductions import record_of

Arguments = ParamSpec("Arguments")


def _formula_first(init: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Let a layer's `__init__` refuse the arguments of PyTorch's layer, in which no formula comes first.

    And too few and too many of them, by the name of the layer.
    """
    signature = inspect.signature(init)
    places = [name for name, each in signature.parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD][1:]

    @functools.wraps(init)
    def checked(*args: Arguments.args, **options: Arguments.kwargs) -> None:
        layer, *given = args
        if given and isinstance(layer, Layer) and (isinstance(given[0], (tuple, list)) or whole(given[0]) is not None):
            formulas = [options.pop("kernel", None), *given, layer.EXAMPLE]
            formula = next(each for each in formulas if is_kernel(each) and each not in ("same", "valid"))
            shown = [repr(formula), *(repr(each) for each in given if each is not formula)]
            shown += [f"{name}={value!r}" for name, value in options.items()]
            name = type(layer).__name__
            raise ArgumentTypeError(
                f"the first argument of {name} is the formula, not {given[0]!r}: write {name}({', '.join(shown)})"
            )
        try:
            signature.bind(*args, **options)
        except TypeError as error:
            raise ArgumentTypeError(
                f"{type(layer).__name__} takes ({', '.join(places)}) and all else by name: {error}"
            ) from None
        init(*args, **options)

    return checked


class Conv(Layer):
    """A layer with a weight; see `Conv2d`."""

    weight: Tensor | None
    bias: Tensor | None
    out_channels: int = option("out_channels")
    groups: int = option("groups")
    EXAMPLE = "sum(x*w)"

    @_formula_first
    def __init__(
        self,
        kernel: KernelLike,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: str | IntOrInts = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool | None = None,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        padding_value: float = 0.0,
        init: Initializer | None = None,
        backend: str = "auto",
        fast_math: bool = False,
        **options: Any,
    ) -> None:
        check_bias(bias)
        resolved = as_kernel(kernel, bias)
        size = per_axis(kernel_size, self.rank, "kernel_size", 1)
        in_channels, out_channels = count(in_channels, "in_channels"), count(out_channels, "out_channels")
        groups = count(groups, "groups")
        layout = stride, padding, dilation, groups, padding_mode, padding_value
        super().__init__(resolved, Options(size, out_channels, *layout, backend, fast_math), options)
        check_groups(in_channels, out_channels, groups)
        check_counts(self.signature, {"x": in_channels}, out_channels, groups)
        self.in_channels = in_channels
        self.init = init if init is not None else self.kernel.init
        check_init(self.init)
        self._register(in_channels, out_channels, groups, device, dtype)
        for spelled in self.SPELLED.values():
            if spelled not in self._parameters:
                self.register_parameter(spelled, None)
        self._warn_of_zeros()
        self._warn_of_dead_gradients()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill weights and bias as `torch.nn.Conv2d` does, or as `init` says; parameters with their initial value."""
        signature = self.signature
        self._fill_params()
        for name, role, bank in zip(signature.tensors, signature.roles, signature.banks):
            tensor: Any = getattr(self, self.SPELLED.get(name, name), None)
            if role == "weight":
                with torch.no_grad():
                    for each in tensor if bank else [tensor]:
                        _initializer(self.init)(each)
            elif role == "bias":
                fan_in = self.in_channels // self.groups * math.prod(self.kernel_size)
                nn.init.uniform_(tensor, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def forward(self, input: Tensor, *others: Tensor, **inputs: Tensor) -> Tensor:
        """The output `[N, out_channels, *size]` for an input `[N, in_channels, *image]`, or both without N.

        Other operands declared as `input` or `field` follow in the order of their declarations, or go by name.
        """
        if isinstance(input, Tensor) and not input.is_nested and input.dim() in (self.rank + 1, self.rank + 2):
            channels = input.shape[-self.rank - 1]
            if channels != self.in_channels:
                raise ArgumentError(
                    f"input has {channels} channels (shape {list(input.shape)}), but this layer has "
                    f"in_channels={self.in_channels}"
                )
        return self._call(input, others, inputs)

    def extra_repr(self) -> str:
        """The kernel and the arguments, as `torch.nn.Conv2d` shows them."""
        text = f"{self._kernel_repr()}, {self.in_channels}, {self.out_channels}, "
        return text + self._options_repr(self.groups, "zeros") + (", bias=False" if self.bias is None else "")

    def _warn_of_zeros(self) -> None:
        if self.padding_mode != "zeros" or self.padding in ("valid", (0,) * self.rank):
            return
        nodes = self.kernel.expr.atoms(WindowNode)
        names = sorted({record_of(node).name for node in nodes if record_of(node).zeros_matter})
        if names:
            warnings.warn(
                f"padding with zeros enters {', '.join(names)} of {self.kernel.title!r}; padding_mode='ignore' leaves "
                "taps outside the image out, padding_mode='constant' keeps the zeros without this warning",
                SymconvWarning,
                stacklevel=4,
            )


class Pool(Layer):
    """A layer without a weight, one window per channel; see `Pool2d`."""

    EXAMPLE = "max(x)"

    @_formula_first
    def __init__(
        self,
        kernel: KernelLike,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: str | IntOrInts = 0,
        dilation: IntOrInts = 1,
        padding_mode: str = "ignore",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        padding_value: float = 0.0,
        backend: str = "auto",
        fast_math: bool = False,
        **options: Any,
    ) -> None:
        resolved = as_kernel(kernel)
        roles = dict(zip(resolved.signature.tensors, resolved.signature.roles))
        for name in resolved.signature.per_channel:
            raise ArgumentError(
                f"the formula names {name}, a {roles[name]} per filter or channel, and {type(self).__name__} cannot "
                f"tell how many; use Conv{self.rank}d with groups=in_channels"
            )
        size = per_axis(kernel_size, self.rank, "kernel_size", 1)
        layout = size if stride is None else stride, padding, dilation, None, padding_mode, padding_value
        super().__init__(resolved, Options(size, None, *layout, backend, fast_math), options)
        self._register(1, 1, 1, device, dtype)
        self._warn_of_dead_gradients()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the parameters with their initial values."""
        self._fill_params()

    def forward(self, input: Tensor, *others: Tensor, **inputs: Tensor) -> Tensor:
        """The output `[N, C, *size]` for an input `[N, C, *image]`, or both without N."""
        return self._call(input, others, inputs)

    def extra_repr(self) -> str:
        """The kernel and the arguments."""
        return f"{self._kernel_repr()}, {self._options_repr(1, 'ignore')}"


def _initializer(init: Initializer | None) -> Callable[[Any], Any]:
    if init is None:
        return lambda tensor: nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
    return getattr(nn.init, f"{init}_") if isinstance(init, str) else init  # type: ignore[no-any-return]


class Conv2d(Conv):
    """A kernel as a layer, in place of `torch.nn.Conv2d`.

    Args:
        kernel: a `Kernel`, the text of a formula, or a SymPy expression.  A kernel without `w` has no weight.
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, device, dtype: as `torch.nn.Conv2d`.
        bias: None: the formula decides; True adds `+ b` to one without it, False leaves it out.
        padding_mode: "zeros", "reflect", "replicate", "circular", "constant" (with `padding_value`) or "ignore": a tap
            outside the image leaves the reduction.
        padding_value: for "constant"; refused with another mode, unless it is 0.
        init: how weights are filled: a name of `torch.nn.init` such as "zeros", or a function of a tensor.  By default
            what the kernel names, else Kaiming-uniform.
        backend: "auto" or a backend's name.
        fast_math: let CUDA kernels in float32, float16 and bfloat16 use the GPU's own approximations of exp, log, sin,
            cos and tan, also within sigmoid, softmax and the like: about 21 bits behind the point, so that few digits
            are left of log near 1 and of sin near 0, and fewer far from 0.  Other backends compute as always.
        options: values for the formula's `const`s, initial values for its `param`s.

    Shapes: input `[N, in_channels, H, W]`, weight `[out_channels, in_channels / groups, *kernel_size]`, bias
    `[out_channels]`, further weights like `weight`, parameters as declared; they appear under their own names.

    Raises:
        ArgumentError: (a ValueError) a value that is not allowed, by the argument's name.
        ArgumentTypeError: (a TypeError) a type that is not allowed, or an unknown option.
        FormulaError: if the kernel is given as a text that is not a formula.

    >>> import torch, symconv as sc
    >>> layer = sc.Conv2d("sum(w*x) + b", 3, 16, kernel_size=3, padding=1)
    >>> layer.load_state_dict(torch.nn.Conv2d(3, 16, 3).state_dict())
    <All keys matched successfully>
    >>> layer(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    rank = 2


class Conv1d(Conv):
    """A kernel as a layer over `[N, in_channels, L]`, in place of `torch.nn.Conv1d`; see `Conv2d`."""

    rank = 1


class Conv3d(Conv):
    """A kernel as a layer over `[N, in_channels, D, H, W]`, in place of `torch.nn.Conv3d`; see `Conv2d`."""

    rank = 3


class Pool2d(Pool):
    """A kernel without a weight over each channel, in place of `torch.nn.MaxPool2d`.

    Args:
        kernel: a `Kernel`, the text of a formula, or a SymPy expression.
        kernel_size, stride, padding, dilation: as `torch.nn.MaxPool2d`; `stride` is `kernel_size` by default.
        padding_mode, padding_value, backend, fast_math, options: as `Conv2d`; `padding_mode` is "ignore" by default.

    Shapes: input `[N, C, H, W]`, output `[N, C, *size]`.

    >>> import torch, symconv as sc
    >>> sc.Pool2d("logsumexp(x)", 2)(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 3, 4, 4])
    """

    rank = 2


class Pool1d(Pool):
    """A kernel without a weight over each channel of `[N, C, L]`, in place of `torch.nn.MaxPool1d`; see `Pool2d`."""

    rank = 1


class Pool3d(Pool):
    """A kernel without a weight over each channel of `[N, C, D, H, W]`, as `torch.nn.MaxPool3d`; see `Pool2d`."""

    rank = 3
