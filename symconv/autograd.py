"""Kernels as differentiable functions: in reverse and forward mode, as often as their formula is, under `torch.func`.

Three autograd functions call generated code.  `Convolve` is the one that training uses: reverse mode, once, and quick
to call.  `ConvolveAndKeep` is the same with a rule for everything else, and `ConvolveBackward` are its gradients, as a
function with rules of its own.  All of these come down to the kernel's *tangent*, a formula again (see
`derive.tangent`), so derivatives of any order and mode run through generated code like first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch.autograd import forward_ad

from .errors import DerivativeError
from .kernel import is_learned
from .ops import PLAIN, Call, gradients, in_place, is_dispatched, outputs
from .tracing import constant, is_recorded, is_replaced, untraced


def convolve(call: Call, tensors: Sequence[Tensor]) -> Tensor:
    """The output of a kernel for checked tensors, in the order of its signature.

    Shapes: x `[N, in_channels, *image]`, output `[N, out_channels, *size]`.
    """
    if not is_recorded() or is_transformed():
        return convolve_now(call, tensors)
    return outputs(call, tensors)[0]


@untraced
def convolve_now(call: Call, tensors: Sequence[Tensor]) -> Tensor:
    """The same where `torch.compile` does not look on."""
    if is_plain(tensors):
        return call.compiled.repeated(tensors, call.numbers, call.geometry)(tensors)
    if is_transformed():
        return _apply(ConvolveAndKeep, call, *tensors)[0]
    if is_dispatched(tensors):
        return outputs(call, tensors)[0]
    output: Tensor = _apply(Convolve, call, *tensors)
    return output


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether nobody will ask for a derivative, of whatever kind, so that autograd need not be told."""
    if is_transformed() or is_replaced():
        return False
    learning = is_grad_enabled()
    for tensor in tensors:  # noqa: SIM110, a generator takes longer
        if (learning and tensor.requires_grad) or type(tensor) not in PLAIN:
            return False
    return True


@constant
def is_transformed() -> bool:
    """Whether `torch.func` transforms what is computed, or tensors may have tangents in forward mode."""
    return forward_ad._current_level >= 0 or peek_interpreter_stack() is not None


# -- Reverse mode, once -----------------------------------------------------------------------------------------------


class Convolve(torch.autograd.Function):
    """A kernel's output."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        output, kept = call.compiled.forward(tensors, call.numbers, call.geometry)  # nobody is to see an operator
        ctx.call = call
        ctx.save_for_backward(*tensors, *kept)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if is_grad_enabled() or is_transformed():
            return _backward(ctx, grad_output, ConvolveBackward.apply)
        return _backward(ctx, grad_output, _gradients)


def _backward(ctx: Any, grad_output: Tensor | None, gradients: Callable[..., Any]) -> tuple[Tensor | None, ...]:
    """The gradients of a kernel's tensors, as `gradients` computes them; None for the call itself."""
    names = ctx.call.names
    needs = tuple(name for name, needed in zip(names, _asked_for(ctx)) if needed)
    if grad_output is None or not needs:
        return (None,) * (1 + len(names))
    _refuse_batches([grad_output])
    return None, *in_place(names, needs, gradients(ctx.call, needs, grad_output, *ctx.saved_tensors))


def _refuse_batches(directions: Iterable[Tensor]) -> None:
    """Refuse the batches of older functions of PyTorch, which have no rules for what is not its own."""
    if any(map(is_legacy_batchedtensor, directions)):
        raise DerivativeError(
            "gradients of a batch of directions (is_grads_batched=True, vectorize=True) are not supported; use "
            "torch.func.vmap, jacrev or hessian"
        )


def _gradients(call: Call, needs: Sequence[str], grad_output: Tensor, *tensors_and_kept: Tensor) -> tuple[Tensor, ...]:
    """The gradients for the operands `needs`, from a kernel's tensors and what the forward pass kept."""
    count = len(call.names)
    return gradients(call, needs, grad_output, tensors_and_kept[:count], tensors_and_kept[count:])


# -- Any mode, any number of times ---------------------------------------------------------------------------------


class ConvolveAndKeep(torch.autograd.Function):
    """A kernel's output, and the values that it keeps for its gradients."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return outputs(call, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *tensors = inputs
        kept = output[1:]
        ctx.kept_count = len(kept)
        ctx.save_for_backward(*tensors, *kept)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _backward(ctx, grad_output, ConvolveBackward.apply)

    @staticmethod
    def jvp(ctx: Any, _: None, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        moving = _moving(ctx.call.names, directions)
        along = _apply(ConvolveAndKeep, *_tangent(ctx.call, ctx.saved_tensors, moving))[0] if moving else None
        return along, *(None,) * ctx.kept_count

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        return _over_a_batch(
            lambda *each: _apply(ConvolveAndKeep, call, *each), info.batch_size, in_dims[1:], tensors, _are_images(call)
        )


class ConvolveBackward(torch.autograd.Function):
    """A kernel's gradients for the operands `needs`, from its tensors and what the forward pass kept."""

    @staticmethod
    def forward(  # type: ignore[override]
        call: Call, needs: tuple[str, ...], grad_output: Tensor, *tensors_and_kept: Tensor
    ) -> tuple[Tensor, ...]:
        return _gradients(call, needs, grad_output, *tensors_and_kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, ctx.needs, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        names, moving = ctx.call.names, _moving(ctx.needs, directions)
        grad_output, tensors, kept = _saved(ctx)  # once: a checkpoint hands them out a single time
        nothing = (None,) * len(kept)
        if not moving:
            return None, None, None, *(None,) * len(names), *nothing
        _refuse_batches(moving.values())
        # <gradients, directions> is the tangent contracted with grad_output: its gradients are the tangent's own.
        wanted = [name for name, needed in zip(names, _asked_for(ctx)[1:]) if needed]
        for_grad_output, found = _of_tangent(ctx.call, tensors, moving, grad_output, wanted)
        return None, None, for_grad_output, *map(found.get, names), *nothing

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients are linear in grad_output, and <gradients, directions> is the tangent of the kernel."""
        grad_output, tensors, kept = _saved(ctx)
        along: dict[str, Tensor] = {}
        if directions[0] is not None:
            along = dict(zip(ctx.needs, _apply(ConvolveBackward, ctx.call, ctx.needs, directions[0], *tensors, *kept)))
        if moving := _moving(ctx.call.names, directions[1:]):
            found = _of_tangent(ctx.call, tensors, moving, grad_output, ctx.needs)[1]
            for name, each in found.items():
                along[name] = along[name] + each if name in along else each
        return tuple(along.get(name) for name in ctx.needs)

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[Any, ...], call: Call, needs: tuple[str, ...], *tensors: Tensor
    ) -> tuple[Any, ...]:
        images = _are_images(call)
        shared = any(not image and name in needs for name, image in zip(call.names, images))
        every = [True, *images, *[True] * (len(tensors) - 1 - len(images))]
        return _over_a_batch(
            lambda *each: _apply(ConvolveBackward, call, needs, *each),
            info.batch_size,
            in_dims[2:],
            tensors,
            every,
            joined=not shared,
        )


def _saved(ctx: Any) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What `ConvolveBackward` was given: grad_output, the kernel's tensors, what the forward pass kept."""
    grad_output, *others = ctx.saved_tensors
    count = len(ctx.call.names)
    return grad_output, tuple(others[:count]), tuple(others[count:])


def _moving(names: Sequence[str], directions: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The directions that there are, by the names of their operands."""
    return {name: along for name, along in zip(names, directions) if along is not None}


def _tangent(call: Call, tensors: Sequence[Tensor], moving: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """The directional derivative of a call, as another call with its tensors."""
    tangent, dots = call.kernel.tangent(tuple(moving))
    values = dict(zip(call.names, tensors)) | dict(zip(dots, moving.values()))
    numbers = dict(zip(call.kernel.signature.numbers, call.numbers))
    moved = call._replace(formula=tangent.text, numbers=tuple(numbers[name] for name in tangent.signature.numbers))
    return moved, *(values[name] for name in moved.names)


def _of_tangent(
    call: Call, tensors: Sequence[Tensor], moving: Mapping[str, Tensor], grad_output: Tensor, wanted: Iterable[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output of a call's tangent, and by operand those of its gradients that are wanted."""
    tangent, *operands = _tangent(call, tensors, moving)
    output, *kept = _apply(ConvolveAndKeep, tangent, *operands)
    needs = tuple(name for name in wanted if name in tangent.names)
    found = _apply(ConvolveBackward, tangent, needs, grad_output, *operands, *kept) if needs else ()
    return output, dict(zip(needs, found))


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


# -- Batches of calls -----------------------------------------------------------------------------------------------


def _are_images(call: Call) -> list[bool]:
    """Of each tensor of a call, whether its first axis counts images."""
    return [not is_learned(role) for role in call.kernel.signature.roles]


def _over_a_batch(
    function: Callable[..., tuple[Tensor, ...]],
    size: int,
    in_dims: Sequence[int | None],
    tensors: Sequence[Tensor],
    images: Sequence[bool],
    joined: bool = True,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A function for a batch of calls, as `vmap` wants it: its outputs and where their batch is.

    Args:
        function: of tensors.
        size: of the batch.
        in_dims: for each tensor the axis that counts the calls, None where all have the same.
        tensors: of all calls.
        images: of each tensor, whether its first axis in a call counts images.
        joined: whether the images of all calls may be those of one; else, and where calls differ in what is no image,
            they are made one after the other.
    """
    if size == 0:  # as of one call, of which nothing is left
        shapes = [list(tensor.shape) for tensor in tensors]
        for shape, dim in zip(shapes, in_dims):
            if dim is not None:
                shape[dim] = 1
        one = [tensor.new_zeros(shape) for tensor, shape in zip(tensors, shapes)]
        found, dims = _over_a_batch(function, 1, in_dims, one, images, joined)
        return tuple(each[:0] for each in found), dims
    if joined and all(image or dim is None for image, dim in zip(images, in_dims)):
        found = function(
            *(
                _in_front(tensor, dim, size).flatten(0, 1) if image else tensor
                for tensor, dim, image in zip(tensors, in_dims, images)
            )
        )
        split = tuple(each.unflatten(0, (size, each.shape[0] // size)) for each in found)
    else:
        batches = [tensor if dim is None else tensor.movedim(dim, 0) for tensor, dim in zip(tensors, in_dims)]
        calls = (
            function(*(each if dim is None else each[index] for each, dim in zip(batches, in_dims)))
            for index in range(size)
        )
        split = tuple(map(torch.stack, zip(*calls)))
    return split, (0,) * len(split)


def _in_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """A tensor whose first axis counts the calls of a batch."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
