"""One use of a kernel, and the two PyTorch operators that stand for it where operators are seen.

Generated code is called directly.  Only `torch.compile`, `torch.export`, `make_fx` and the like, which take down
operators, and tensors and modes that carry them out in their own way get operators of `torch.library` to see, whose
arguments name the kernel by its formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import Compiled, backend
from .build.key import content_key, generator_fields
from .errors import DerivativeError
from .geometry import Geometry
from .kernel import Kernel, kernel_of
from .tracing import constant, is_recorded, is_replaced

#: The types of tensors that only compute.
PLAIN = (Tensor, torch.nn.Parameter)


@constant
def version() -> str:
    """Of the code that generates kernels.

    It is an argument of the operators: PyTorch keeps compiled graphs on disk, and a graph of another version may hold
    other values for the backward pass.
    """
    return content_key(generator_fields())[:12]


class Call(NamedTuple):
    """One use of a kernel, without its tensors."""

    formula: str
    backend: str
    geometry: Geometry
    numbers: tuple[float, ...]
    fast_math: bool = False

    @property
    def kernel(self) -> Kernel:
        return kernel_of(self.formula)

    @property
    def compiled(self) -> Compiled:
        return backend(self.backend).compile(self.kernel, self.fast_math)

    @property
    def names(self) -> tuple[str, ...]:
        return self.kernel.signature.tensors


def is_dispatched(tensors: Sequence[Tensor]) -> bool:
    """Whether a mode or the tensors themselves carry out operators."""
    if is_replaced():
        return True
    for tensor in tensors:
        if type(tensor) not in PLAIN and type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
            return True
    return False


def outputs(call: Call, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The output of a kernel for checked tensors, in the order of its signature, and what it keeps for its gradients.

    Shapes: x `[N, in_channels, *image]`, output `[N, out_channels, *size]`.
    """
    if is_recorded() or is_dispatched(tensors):
        return tuple(torch.ops.symconv.convolve(*_named(call), list(tensors)))
    output, kept = call.compiled.forward(tensors, call.numbers, call.geometry)
    return output, *kept


def gradients(
    call: Call, needs: Sequence[str], grad_output: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients for the operands `needs`, from its tensors and what `outputs` kept."""
    if is_recorded() or is_dispatched([grad_output, *tensors]):
        operands = grad_output, list(tensors), list(kept)
        return tuple(torch.ops.symconv.convolve_backward(*_named(call), ",".join(needs), *operands))
    found = call.compiled.backward(grad_output, kept, tensors, call.numbers, call.geometry, frozenset(needs))
    return tuple(each for each in found if each is not None)


def in_place(names: Sequence[str], needs: Sequence[str], gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients at the places of their names, None elsewhere."""
    found = dict(zip(needs, gradients))
    return tuple(found.get(name) for name in names)


# -- The operators --------------------------------------------------------------------------------------------------


def _named(call: Call) -> tuple[Any, ...]:
    """A call as arguments of the operators."""
    return call.formula, call.backend, version(), call.fast_math, list(call.numbers), call.geometry.numbers()


def _refuse_tangents() -> None:
    """An operator of `torch.library` has none: PyTorch would take them for 0."""
    if forward_ad._current_level >= 0:
        raise DerivativeError(
            "forward-mode derivatives (jvp) are not supported where PyTorch takes down operators (torch.compile, "
            "torch.export, torch.jit.trace); call the layer itself"
        )


def _call(formula: str, backend: str, fast_math: bool, numbers: list[float], geometry: list[int]) -> Call:
    """The call that an operator's arguments stand for."""
    if torch._C._is_fwd_grad_enabled():  # not so within the functions of `autograd`, which see to tangents themselves
        _refuse_tangents()
    return Call(formula, backend, Geometry.from_numbers(geometry), tuple(numbers), fast_math)


@torch.library.custom_op("symconv::convolve", mutates_args=())
def _convolve(
    formula: str,
    backend: str,
    version: str,
    fast_math: bool,
    numbers: list[float],
    geometry: list[int],
    tensors: list[Tensor],
) -> list[Tensor]:
    call = _call(formula, backend, fast_math, numbers, geometry)
    output, kept = call.compiled.forward(tensors, call.numbers, call.geometry)
    return [output, *kept]


@_convolve.register_fake
def _(
    formula: str,
    backend: str,
    version: str,
    fast_math: bool,
    numbers: list[float],
    geometry: list[int],
    tensors: list[Tensor],
) -> list[Tensor]:
    call = _call(formula, backend, fast_math, numbers, geometry)
    x = tensors[0]
    shape = call.geometry.output_shape(x.shape)
    dtypes = {"value": torch.promote_types(x.dtype, torch.float32), "position": torch.int32}
    return [x.new_empty(shape), *(x.new_empty(shape, dtype=dtypes[kind]) for kind in call.compiled.kept)]


@torch.library.custom_op("symconv::convolve_backward", mutates_args=())
def _convolve_backward(
    formula: str,
    backend: str,
    version: str,
    fast_math: bool,
    numbers: list[float],
    geometry: list[int],
    needs: str,
    grad_output: Tensor,
    tensors: list[Tensor],
    kept: list[Tensor],
) -> list[Tensor]:
    call = _call(formula, backend, fast_math, numbers, geometry)
    gradients = call.compiled.backward(
        grad_output, kept, tensors, call.numbers, call.geometry, frozenset(needs.split(","))
    )
    return [gradient for gradient in gradients if gradient is not None]


@_convolve_backward.register_fake
def _(
    formula: str,
    backend: str,
    version: str,
    fast_math: bool,
    numbers: list[float],
    geometry: list[int],
    needs: str,
    grad_output: Tensor,
    tensors: list[Tensor],
    kept: list[Tensor],
) -> list[Tensor]:
    names = kernel_of(formula).signature.tensors
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for name, t in zip(names, tensors)
        if name in needs.split(",")
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _refuse_tangents()
    *ctx.named, tensors = inputs
    ctx.count = len(tensors)
    ctx.tensors_need = [tensor.requires_grad for tensor in tensors]
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    tensors, kept = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    names = kernel_of(ctx.named[0]).signature.tensors
    needs = [name for name, needed in zip(names, ctx.tensors_need) if needed]
    given = torch.ops.symconv.convolve_backward(*ctx.named, ",".join(needs), gradients[0], list(tensors), list(kept))
    no_numbers: list[Any] | None = None if ctx.named[4] else []  # an empty list of numbers looks like a list of tensors
    return None, None, None, None, no_numbers, None, list(in_place(names, needs, given))


_convolve.register_autograd(_backward, setup_context=_setup)
