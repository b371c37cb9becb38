"""What all layers share: a kernel, its options and numbers, and learned operands by name."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .arguments import Options, check_dtype, check_fast_math, check_number, hint_for, operand_shape, real
from .backends import backend as backend_named
from .errors import ArgumentError, ArgumentTypeError, SymconvWarning
from .functional import run
from .geometry import Geometry, check_padding_mode, padding_pairs, per_axis
from .kernel import Kernel, is_learned, kernel_of

#: The most characters of a formula that a layer shows of itself.
LONGEST_SHOWN = 100


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


def option(name: str) -> Any:
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
    kernel_size: tuple[int, ...] = option("kernel_size")
    stride: tuple[int, ...] = option("stride")
    padding: str | tuple[int, ...] = option("padding")
    dilation: tuple[int, ...] = option("dilation")
    padding_mode: str = option("padding_mode")
    padding_value: float = option("padding_value")
    backend: str = option("backend")
    fast_math: bool = option("fast_math")
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
        value = float(options.padding_value or 0.0)
        self._options = dataclasses.replace(
            options, stride=stride, padding=padding, dilation=dilation, padding_value=value
        )
        #: The learned operands, and the attributes that hold them.
        self._learned: list[tuple[str, str]] = []
        self._set_constants(values)
        self._initials = self._initial(values)
        if values:
            name = min(values)
            known = [*inspect.signature(type(self)).parameters, *self.signature.numbers, *self.signature.names("param")]
            hint = hint_for(name, known)
            raise ArgumentTypeError(
                f"{type(self).__name__} has no argument {name!r}, and the formula no const or param of that name"
                + (f"; {hint}" if hint else f": {kernel.text}")
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
            initial = self._initials.get(name)
            if isinstance(initial, Tensor) and not _broadcasts(initial.shape, shape):
                raise ArgumentError(
                    f"the initial value of {name} has shape {list(initial.shape)}, expected {list(shape)}"
                )
            self.register_parameter(spelled, nn.Parameter(torch.ones(shape, device=device, dtype=dtype)))
            if positive:
                parametrize.register_parametrization(self, spelled, Positive())

    def _fill_params(self) -> None:
        """Give the parameters their initial values."""
        for name, value in self._initials.items():
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
        given: dict[str, Any] = {"x": x}
        if others or inputs:
            given |= self._by_name(others, inputs)
        for name in self.signature.numbers:
            given[name] = getattr(self, name)
        for name, spelled in self._learned:
            given[name] = getattr(self, spelled)
        return run(self.signature, self.rank, given, self._options)

    def _by_name(self, others: tuple[Tensor, ...], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The operands of a call after the input, by their place or by their name."""
        signature = self.signature
        names = [name for name, role in zip(signature.tensors, signature.roles) if not is_learned(role)][1:]
        if len(others) > len(names) or any(name in inputs for name in names[: len(others)]):
            given = ", ".join(["input", *["a tensor"] * len(others), *(f"{name}=..." for name in inputs)])
            raise ArgumentTypeError(f"this layer takes ({', '.join(['input', *names])}), not ({given})")
        for name in inputs:  # a mistyped one is refused with all other operands
            if name not in names and name in (*signature.tensors, *signature.numbers):
                own = f"layer.{self.SPELLED.get(name, name)}"
                place = "it comes first, as input" if name == "x" else f"it is {own}, which the layer learns"
                if name in signature.numbers:
                    place = f"set {own} = {inputs[name]!r} before it"
                raise ArgumentTypeError(f"a call of this layer takes no {name}=...: {place}")
        return {**dict(zip(names, others)), **inputs}

    def _kernel_repr(self) -> str:
        """The name or the formula on one line, without values of consts, which are options; of a long one the end."""
        consts = {f"{name}: const" for name in self.signature.numbers}
        lines = (self.kernel.name or self.kernel.text).splitlines()
        lines = [declared if (declared := line.partition(" = ")[0]) in consts else line for line in lines]
        first = 0
        while sum(map(len, lines[first:])) > LONGEST_SHOWN and first < len(lines) - 1:
            first += 1
        return repr("; ".join(["..."] * bool(first) + lines[first:]))

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


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target)))
