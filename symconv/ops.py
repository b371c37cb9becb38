"""Kernels as PyTorch operators, differentiable as often as their formula is.

In eager mode two autograd functions call the generated code directly: `Convolve`, and `ConvolveBackward`, which is an
operator with a gradient of its own.  That gradient is the kernel's *tangent*, a formula again (see `derive.tangent`),
so second derivatives run through generated code like first ones.  Under `torch.compile` the same pair stands as two
opaque `torch.library` operators whose arguments name the kernel by its formula.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
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
    return is_replaced() or any(type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__ for tensor in tensors)


def convolve(call: Call, tensors: Sequence[Tensor]) -> Tensor:
    """The output of a kernel for checked tensors, in the order of its signature.

    Shapes: x `[N, in_channels, *image]`, output `[N, out_channels, *size]`.
    """
    return _operator(call, tensors) if is_recorded() else convolve_now(call, tensors)


def _operator(call: Call, tensors: Sequence[Tensor]) -> Tensor:
    """The same by PyTorch's dispatcher, for whoever is to see an operator there."""
    output: Tensor = torch.ops.symconv.convolve(*_named(call), list(tensors))[0]
    return output


def _named(call: Call) -> tuple[Any, ...]:
    """A call as arguments of the operators."""
    return call.formula, call.backend, version(), call.fast_math, list(call.numbers), call.geometry.numbers()


def convolve_now(call: Call, tensors: Sequence[Tensor]) -> Tensor:
    """The same where `torch.compile` does not look on."""
    if is_plain(tensors):
        return call.compiled.repeated(tensors, call.numbers, call.geometry)(tensors)
    if is_dispatched(tensors):
        return _operator(call, tensors)
    if peek_interpreter_stack() is not None:
        raise DerivativeError("torch.func (grad, vmap, jvp) is not supported; use torch.autograd.grad, and the batch")
    result: Tensor = _apply(Convolve, call, [], *tensors)
    return result


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether nobody will ask for a derivative, of whatever kind, so that autograd need not be told."""
    if forward_ad._current_level >= 0 or peek_interpreter_stack() is not None:
        return False
    if is_replaced():
        return False
    learning = is_grad_enabled()
    for tensor in tensors:  # noqa: SIM110, a generator takes longer
        if (learning and tensor.requires_grad) or type(tensor) not in PLAIN:
            return False
    return True


class Convolve(torch.autograd.Function):
    """A kernel's output.  What it keeps for the backward pass is also appended to the list `kept`."""

    @staticmethod
    def forward(ctx: Any, call: Call, kept: list[Tensor], *tensors: Tensor) -> Tensor:  # type: ignore[override]
        output, values = call.compiled.forward(tensors, call.numbers, call.geometry)
        ctx.call = call
        ctx.save_for_backward(*tensors, *values)
        ctx.set_materialize_grads(False)
        kept.extend(values)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        names = ctx.call.names
        needs = tuple(name for name, needed in zip(names, _asked_for(ctx)) if needed)
        if grad_output is None or not needs:
            return (None,) * (2 + len(names))
        refuse_batches([grad_output])
        if is_grad_enabled():
            gradients = _apply(ConvolveBackward, ctx.call, needs, grad_output, *ctx.saved_tensors)
        else:
            gradients = _gradients(ctx.call, needs, grad_output, *ctx.saved_tensors)
        return None, None, *_in_place(names, needs, gradients)


class ConvolveBackward(torch.autograd.Function):
    """A kernel's gradients for the operands `needs`, from its tensors and what the forward pass kept."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, call: Call, needs: tuple[str, ...], grad_output: Tensor, *tensors_and_kept: Tensor
    ) -> tuple[Tensor, ...]:
        count = len(call.names)
        ctx.call, ctx.needs, ctx.kept_count = call, needs, len(tensors_and_kept) - count
        ctx.save_for_backward(grad_output, *tensors_and_kept[:count])
        ctx.set_materialize_grads(False)
        return _gradients(call, needs, grad_output, *tensors_and_kept)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        names = ctx.call.names
        moving = {name: along for name, along in zip(ctx.needs, directions) if along is not None}
        if not moving:
            return (None,) * (3 + len(names) + ctx.kept_count)
        refuse_batches(moving.values())
        grad_output, *tensors = ctx.saved_tensors  # once: a checkpoint hands them out a single time
        tangent, dots = ctx.call.kernel.tangent(tuple(moving))
        values = dict(zip(names, tensors)) | dict(zip(dots, moving.values()))
        numbers = dict(zip(ctx.call.kernel.signature.numbers, ctx.call.numbers))
        call = ctx.call._replace(
            formula=tangent.text, numbers=tuple(numbers[name] for name in tangent.signature.numbers)
        )
        operands = [values[name] for name in call.names]
        # <gradients, directions> is the tangent contracted with grad_output: its gradients are the tangent's own.
        kept: list[Tensor] = []
        for_grad_output = _apply(Convolve, call, kept, *operands)
        wanted = (name for name, needed in zip(names, _asked_for(ctx)[1:]) if needed)
        needs = tuple(name for name in wanted if name in call.names)
        gradients = _apply(ConvolveBackward, call, needs, grad_output, *operands, *kept) if needs else ()
        return None, None, for_grad_output, *_in_place(names, needs, gradients), *(None,) * ctx.kept_count


def refuse_batches(directions: Iterable[Tensor]) -> None:
    """Refuse derivatives along a batch of directions: a kernel would compute along none of them."""
    if peek_interpreter_stack() is not None or any(map(is_legacy_batchedtensor, directions)):
        raise DerivativeError("gradients of a batch of directions (is_grads_batched, vmap) are not supported")


def _gradients(call: Call, needs: Sequence[str], grad_output: Tensor, *tensors_and_kept: Tensor) -> tuple[Tensor, ...]:
    """The gradients for the operands `needs`."""
    tensors, kept = tensors_and_kept[: len(call.names)], tensors_and_kept[len(call.names) :]
    if is_recorded():  # by compiled autograd
        operands = grad_output, list(tensors), list(kept)
        return tuple(torch.ops.symconv.convolve_backward(*_named(call), ",".join(needs), *operands))
    gradients = call.compiled.backward(grad_output, kept, tensors, call.numbers, call.geometry, frozenset(needs))
    return tuple(gradient for gradient in gradients if gradient is not None)


def _asked_for(ctx: Any) -> list[bool]:
    """Of each tensor that went into a function, whether this backward pass uses its gradient.

    `ctx.needs_input_grad` says what some pass could ask for: `torch.autograd.grad(y, x)` asks for less.
    """
    if is_recorded():  # by compiled autograd, which runs no nodes
        return list(ctx.needs_input_grad[-len(ctx.next_functions) :])
    return [node is not None and _is_executed(node) for node, _ in ctx.next_functions]


def _is_executed(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # so it says of a leaf that is asked for, and where no pass runs
        return True


def _apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    return function.apply(*args)  # type: ignore[no-untyped-call]


def _in_place(names: Sequence[str], needs: Sequence[str], gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients at the places of their names, None elsewhere."""
    found = dict(zip(needs, gradients))
    return tuple(found.get(name) for name in names)


# -- The same under torch.compile, where a kernel is named by its formula ------------------------------------------


def _call(formula: str, backend: str, fast_math: bool, numbers: list[float], geometry: list[int]) -> Call:
    """The call that an operator's arguments stand for."""
    if forward_ad._current_level >= 0:  # an operator of `torch.library` would give a tangent of zeros
        raise DerivativeError("forward-mode derivatives (jvp) are not supported; use torch.autograd.grad")
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
    shape = (x.shape[0], call.geometry.out_channels, *call.geometry.output_size(x.shape[2:]))
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
    return None, None, None, None, no_numbers, None, list(_in_place(names, needs, given))


_convolve.register_autograd(_backward, setup_context=_setup)
