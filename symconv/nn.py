"""Kernels as layers, with the arguments and the behaviour of `torch.nn`'s."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .arguments import (
    Options,
    check_counts,
    check_dtype,
    check_fast_math,
    check_groups,
    check_number,
    operand_shape,
    real,
)
from .backends import backend as backend_named
from .errors import ArgumentError, ArgumentTypeError, SymconvWarning
from .functional import KernelLike, as_kernel, is_kernel, run
from .geometry import Geometry, IntOrInts, check_padding_mode, count, padding_pairs, per_axis, whole
from .kernel import Initializer, Kernel, is_learned, kernel_of
from .language.axes import WindowNode
from .reductions import record_of

Arguments = ParamSpec("Arguments")
#: The most characters of a formula that a layer shows of itself.
LONGEST_SHOWN = 100


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


class Positive(nn.Module):
    """What keeps a `param[positive]` above 0: the parameter is the softplus of what is learned, and a little more."""

    def forward(self, learned: Tensor) -> Tensor:
        """The parameter."""
        return nn.functional.softplus(learned) + torch.finfo(learned.dtype).eps

    def right_inverse(self, value: Tensor) -> Tensor:
        """What is learned, for a given value above 0."""
        if not isinstance(value, Tensor) or not (value.is_meta or bool((value > 0).all())):
            raise ArgumentError(f"this parameter is positive: assign a tensor of values above 0, not {value}")
        above = (value - torch.finfo(value.dtype).eps).clamp(min=torch.finfo(value.dtype).tiny)
        return above + torch.log(-torch.expm1(-above))


def _option(name: str) -> Any:
    """An attribute of a layer that is one of its `Options`.  Like those of `torch.nn.Conv2d` it may be set."""

    def value(layer: Layer) -> Any:
        return getattr(layer._options, name)

    def set_value(layer: Layer, given: Any) -> None:
        frozen: Any = tuple(given) if isinstance(given, list) else given
        layer._options = dataclasses.replace(layer._options, **{name: frozen})

    return property(value, set_value)


class Layer(nn.Module):
    """What `Conv*` and `Pool*` share: a kernel, its numbers, and learned operands by name."""

    rank: int
    kernel_size: tuple[int, ...] = _option("kernel_size")
    stride: tuple[int, ...] = _option("stride")
    padding: str | tuple[int, ...] = _option("padding")
    dilation: tuple[int, ...] = _option("dilation")
    padding_mode: str = _option("padding_mode")
    padding_value: float = _option("padding_value")
    backend: str = _option("backend")
    fast_math: bool = _option("fast_math")
    #: Names of parameters under which a state_dict of `torch.nn.Conv2d` has them.
    SPELLED: ClassVar[dict[str, str]] = {"w": "weight", "b": "bias"}
    #: A formula for messages.
    EXAMPLE: ClassVar[str]

    def __init__(
        self,
        kernel: Kernel,
        options: Options,
        values: dict[str, Any],
    ) -> None:
        super().__init__()
        self.kernel, self.signature = kernel, kernel.signature
        stride = per_axis(options.stride, self.rank, "stride", 1)
        dilation = per_axis(options.dilation, self.rank, "dilation", 1)
        padding = options.padding
        padding_pairs(padding, options.kernel_size, stride, dilation)  # refuse it now, not at the first call
        padding = padding if isinstance(padding, str) else per_axis(padding, self.rank, "padding", 0)
        check_padding_mode(options.padding_mode, options.padding_value)
        if options.backend != "auto":
            backend_named(options.backend)
        check_fast_math(options.fast_math)
        value = float(options.padding_value)
        self._options = dataclasses.replace(
            options, stride=stride, padding=padding, dilation=dilation, padding_value=value
        )
        #: The learned operands, and the attributes that hold them.
        self._learned: list[tuple[str, str]] = []
        self._set_constants(values)
        self.initial = self._initial(values)
        if values:
            name = min(values)
            known = [*inspect.signature(type(self)).parameters, *self.signature.numbers, *self.signature.names("param")]
            close = difflib.get_close_matches(name, known, n=1)
            raise ArgumentTypeError(
                f"{type(self).__name__} has no argument {name!r}, and the formula no const or param of that name"
                + (f"; did you mean {close[0]!r}?" if close else f": {kernel.text}")
            )

    def _set_constants(self, values: dict[str, Any]) -> None:
        """Make attributes of the `const` operands: from `values`, or as declared; they can be set later on."""
        for name, value in zip(self.signature.numbers, self.signature.values):
            self._check_free(name)
            setattr(self, name, values.pop(name, value))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, refused for a `const` if it is no number."""
        signature = vars(self).get("signature")  # which `nn.Module` itself has not
        if signature is not None and name in signature.numbers:
            value = check_number(signature, name, value)
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        """Convert the parameters, as `to(memory_format=torch.channels_last)` asks and all that converts a module.

        PyTorch gives the memory format to whatever has four or five axes.  A bank gets it weight by weight, and what
        has neither the axes of a weight nor those of a bank keeps its own.
        """

        def converted(tensor: Tensor) -> Tensor:
            more = tensor.dim() - (self.rank + 2)
            if more == 1:
                return fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2])
            return fn(tensor.flatten()).reshape(tensor.shape) if more and tensor.dim() > 3 else fn(tensor)

        super()._apply(converted, recurse)  # type: ignore[no-untyped-call]
        return self

    def _check_free(self, name: str) -> None:
        """Refuse a name that an attribute of the layer has."""
        if hasattr(self, name):
            raise ArgumentError(f"a layer has an attribute called {name!r} already; rename it in the formula")

    def _initial(self, values: dict[str, Any]) -> dict[str, float | Tensor]:
        """The initial values of the `param` operands: from `values`, or as declared."""
        found: dict[str, float | Tensor] = {}
        for name, declared, positive in zip(self.signature.tensors, self.signature.inits, self.signature.positive):
            if declared is None:
                continue
            value = values.pop(name, declared)
            is_real = isinstance(value, Tensor) and not value.is_complex() and value.dtype != torch.bool
            initial = value.detach().clone() if is_real else real(value)
            if initial is None:
                raise ArgumentTypeError(f"the initial value of {name} is a number or a tensor of reals, not {value!r}")
            if positive and not bool((torch.as_tensor(initial) > 0).all()):
                raise ArgumentError(f"the initial value of {name} must be above 0, as the formula says, not {value}")
            found[name] = initial
        return found

    def _register(self, in_channels: int, out_channels: int, groups: int, device: Any, dtype: Any) -> None:
        """Make the weights, bias and parameters, unfilled."""
        geometry = Geometry(self.kernel_size, out_channels, self.stride, (), self.dilation, groups)
        signature = self.signature
        check_dtype(dtype)
        if signature.rank > self.rank:
            raise ArgumentError(
                f"the formula uses {'dz' if signature.rank == 3 else 'dy'}; {type(self).__name__} lacks it"
            )
        for name, role, axes, bank, positive in zip(
            signature.tensors, signature.roles, signature.axes, signature.banks, signature.positive
        ):
            if not is_learned(role):
                continue
            spelled = self.SPELLED.get(name, name)
            self._check_free(spelled)
            self._learned.append((name, spelled))
            shape = operand_shape(axes, in_channels, geometry, bank)
            initial = self.initial.get(name)
            if isinstance(initial, Tensor) and not _broadcasts(initial.shape, shape):
                raise ArgumentError(
                    f"the initial value of {name} has shape {list(initial.shape)}, expected {list(shape)}"
                )
            self.register_parameter(spelled, nn.Parameter(torch.ones(shape, device=device, dtype=dtype)))
            if positive:
                parametrize.register_parametrization(self, spelled, Positive())

    def _fill_params(self) -> None:
        """Give the parameters their initial values."""
        for name, value in self.initial.items():
            parameter = getattr(self, name)
            filled = torch.as_tensor(value, dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)
            if parametrize.is_parametrized(self, name):
                setattr(self, name, filled)
            else:
                with torch.no_grad():
                    parameter.copy_(filled)

    def _warn_of_dead_gradients(self) -> None:
        alive = backend_named("torch").compile(kernel_of(self.kernel.text)).has_gradient
        for name in (*self.signature.names("weight"), *self.signature.names("param")):
            if name not in alive:
                warnings.warn(
                    f"the gradient of {self.kernel.title!r} for {name} is 0 everywhere, so {name} will not learn; "
                    "print(kernel) shows which function passes none",
                    SymconvWarning,
                    stacklevel=4,
                )

    def _call(self, x: Tensor, others: tuple[Tensor, ...], inputs: dict[str, Tensor]) -> Tensor:
        given: dict[str, Any] = {"x": x, **inputs}
        if others:
            given |= self._by_name(others, inputs)
        for name in self.signature.numbers:
            given[name] = getattr(self, name)
        for name, spelled in self._learned:
            given[name] = getattr(self, spelled)
        return run(self.signature, self.rank, given, self._options)

    def _by_name(self, others: tuple[Tensor, ...], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Operands that were given by their place, after the input."""
        signature = self.signature
        names = [name for name, role in zip(signature.tensors, signature.roles) if not is_learned(role)][1:]
        if len(others) > len(names) or any(name in inputs for name in names[: len(others)]):
            given = ", ".join(["input", *["a tensor"] * len(others), *(f"{name}=..." for name in inputs)])
            raise ArgumentTypeError(f"this layer takes ({', '.join(['input', *names])}), not ({given})")
        return dict(zip(names, others))

    def _kernel_repr(self) -> str:
        """The name or the formula; of a long one the last lines."""
        lines = (self.kernel.name or self.kernel.text).splitlines()
        first = 0
        while sum(map(len, lines[first:])) > LONGEST_SHOWN and first < len(lines) - 1:
            first += 1
        return repr("\n".join(["..."] * bool(first) + lines[first:]))

    def _options_repr(self, groups: int, padding_mode: str) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0,) * self.rank:
            text += f", padding={self.padding!r}"
        if self.dilation != (1,) * self.rank:
            text += f", dilation={self.dilation}"
        if groups != 1:
            text += f", groups={groups}"
        if self.padding_mode != padding_mode:
            text += f", padding_mode={self.padding_mode!r}"
        if self.padding_mode == "constant":
            text += f", padding_value={self.padding_value:g}"
        if self.fast_math:
            text += ", fast_math=True"
        return text + "".join(f", {name}={getattr(self, name):g}" for name in self.signature.numbers)


class Conv(Layer):
    """A layer with a weight; see `Conv2d`."""

    weight: Tensor | None
    bias: Tensor | None
    out_channels: int = _option("out_channels")
    groups: int = _option("groups")
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
        if isinstance(self.init, str) and not hasattr(nn.init, f"{self.init}_"):
            raise ArgumentError(
                f"init must be a function or a name of torch.nn.init such as 'zeros', not {self.init!r}"
            )
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


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target)))


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
