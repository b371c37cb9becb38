"""Numerical verification of one kernel, for users who want to trust a new formula."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .arguments import field_shape, operand_shape
from .autograd import convolve
from .backends import backend
from .functions import custom_grad, detach, ste
from .geometry import Geometry
from .kernel import Kernel, kernel_of
from .ops import Call
from .reference import reference

#: Central differences of step h in float64 are right to about h**2 and eps/h; near a pole only a smaller step is.
STEPS, TOLERANCE, POINTS = (1e-5, 1e-6), 1e-5, 16
#: One-sided differences further apart than this, relative to their size, say that a kink lies within the step.
KINK = 1e-2
#: The spacing of float64 numbers at 1.
EPS = 2.0**-52
#: Where operands are drawn from: inputs, and all others.  The first ranges where a formula is finite are taken.
RANGES = (
    ((-1.0, 1.0), (-1.0, 1.0)),
    ((0.1, 1.0), (0.1, 1.0)),
    ((0.6, 0.9), (0.6, 0.9)),
    ((0.05, 0.45), (0.05, 0.45)),
    ((2.2, 2.8), (0.6, 0.9)),
    ((0.6, 0.9), (2.2, 2.8)),
)


@dataclass(frozen=True)
class Row:
    """One thing that was compared: where, what, how many values, how many skipped at kinks, the largest error."""

    case: str
    quantity: str
    values: int
    skipped: int
    error: float
    ok: bool


@dataclass
class Report:
    """What `check` tried and found.

    `ok` says whether everything agreed; `print(report)` shows the table.  `dead` are the operands whose gradient is 0
    everywhere: right, but seldom meant.
    """

    kernel: str
    sampled: str
    rows: list[Row] = field(default_factory=list)
    dead: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    def __str__(self) -> str:
        lines = [f"check of {self.kernel}, float64, operands {self.sampled}"]
        for case, rows in itertools.groupby(self.rows, lambda row: row.case):
            lines.append(case)
            lines += map(self._line, rows)
        if not self.rows:
            lines.append(
                "NOT CHECKED: the formula was not finite, or all kinks and rounding errors, at all operands tried"
            )
        else:
            lines.append("all agree" if self.ok else "DISAGREEMENT: do not trust this kernel")
        if self.dead:
            lines.append(f"mind: the gradient for {' and '.join(self.dead)} is 0 everywhere; print(kernel) shows why")
        return "\n".join(lines)

    @staticmethod
    def _line(row: Row) -> str:
        skipped = f", {row.skipped} at kinks or below rounding errors skipped" if row.skipped else ""
        verdict = "ok  " if row.ok else "FAIL"
        return f"  {verdict} {row.quantity}, {row.values} values{skipped}, error {row.error:.1e}"


def check(kernel: Kernel, seed: int = 0) -> Report:
    """Compare a kernel with its definition.

    Values are compared with the reference evaluator (unfold, broadcast, reduce) and gradients with central
    differences in float64, at random operands, in one, two or three dimensions, with stride, dilation, groups and
    ignored padding.  Coordinates within a step of a kink are skipped, and counted.

    Args:
        kernel: the kernel.
        seed: of the random operands.

    >>> import symconv as sc
    >>> sc.Kernel("prod(tan(x + w))").check().ok
    True
    """
    generator = torch.Generator().manual_seed(seed)
    alive = backend("torch").compile(kernel_of(kernel.text)).has_gradient
    dead = tuple(name for name in kernel.signature.tensors if name not in alive)
    for of_inputs, of_others in RANGES:
        beside = "" if of_inputs == of_others else ", inputs in ({:g}, {:g})".format(*of_inputs)
        report = Report(kernel.title, "uniform in ({:g}, {:g})".format(*of_others) + beside, dead=dead)
        for case, geometry, image in _fitting(kernel):
            given = _operands(kernel, geometry, image, of_inputs, of_others, generator)
            rows = _compare(kernel, case, given, geometry, generator)
            # Outside the formula's domain, as log of a negative number or a pole; or all at kinks or lost in rounding.
            if rows is None or any(row.skipped and not row.values for row in rows):
                break
            report.rows += rows
        else:
            return report
    return report


def _fitting(kernel: Kernel) -> Iterator[tuple[str, Geometry, tuple[int, ...]]]:
    """The cases, with as many channels, outputs and groups as the formula asks for."""
    signature = kernel.signature
    for case, geometry, (batch, channels, *size) in _cases(kernel):
        if signature.own or signature.single:
            geometry = geometry._replace(out_channels=channels)
        if signature.single:
            geometry = geometry._replace(groups=channels)
        groups = f", {geometry.groups} groups" if geometry.groups > 1 else ""
        yield case + groups, geometry, (batch, channels, *size)


def _cases(kernel: Kernel) -> Iterator[tuple[str, Geometry, tuple[int, ...]]]:
    rank = max(kernel.signature.rank, 2)
    ones, zeros, padded = (1,) * rank, ((0, 0),) * rank, ((1, 1),) * rank
    size = (5, 6, 4)[:rank]
    yield f"{rank}-D, window 3", Geometry((3,) * rank, 2, ones, zeros, ones, 1), (2, 2, *size)
    yield (
        f"{rank}-D, window 2, stride 2",
        Geometry((2,) * rank, 4, (2,) * rank, zeros, ones, 2),
        (1, 4, *size),
    )
    yield (
        f"{rank}-D, window 3, dilation 2, padding ignored",
        Geometry((3,) * rank, 2, ones, padded, (2,) * rank, 1),
        (
            1,
            1,
            *(4,) * rank,
        ),
    )
    if kernel.signature.rank == 1:
        yield "1-D, window 5, stride 2", Geometry((5,), 3, (2,), ((0, 0),), (1,), 1), (2, 2, 11)


def _operands(
    kernel: Kernel,
    geometry: Geometry,
    image: tuple[int, ...],
    of_inputs: tuple[float, float],
    of_others: tuple[float, float],
    generator: torch.Generator,
) -> dict[str, Tensor | float]:
    signature = kernel.signature
    given: dict[str, Tensor | float] = {}
    for name, role, axes, bank, positive in zip(
        signature.tensors, signature.roles, signature.axes, signature.banks, signature.positive
    ):
        shape = image if role == "input" else operand_shape(axes, image[1], geometry, bank)
        if role == "field":
            shape = (image[0], *field_shape(axes, geometry), *geometry.output_size(image[2:]))
        low, high = of_inputs if role == "input" else of_others
        given[name] = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
        if positive:
            given[name] = torch.as_tensor(given[name]).abs() + 0.5
    for name, value in zip(signature.numbers, signature.values):
        given[name] = value if value is not None else 0.5 if name in signature.shares else 1.5
    return given


def _compare(
    kernel: Kernel, case: str, given: dict[str, Tensor | float], geometry: Geometry, generator: torch.Generator
) -> list[Row] | None:
    signature = kernel.signature
    numbers = tuple(float(given[name]) for name in signature.numbers)
    call = Call(kernel.text, "torch", geometry, numbers)
    tensors = [torch.as_tensor(given[name]).requires_grad_() for name in signature.tensors]
    output = convolve(call, tensors)
    expected = reference(kernel, given, geometry)
    if not expected.isfinite().all():
        return None
    error = _relative(output, expected)
    rows = [Row(case, "values against the reference", output.numel(), 0, error, error < 1e-9)]
    # A random contraction, so that one number depends on every output.
    mix = torch.rand(output.shape, generator=generator, dtype=torch.float64) + 0.5
    gradients = _gradients(output, mix, tensors)
    chosen = kernel.expr.has(custom_grad, ste, detach)
    defined = _gradients(expected, mix, tensors) if chosen else gradients
    for position, (name, gradient) in enumerate(zip(signature.tensors, gradients)):
        if chosen:
            rows.append(_by_choice(case, name, gradient, defined[position]))
        else:
            rows.append(_differences(call, tensors, position, name, gradient, mix, case, generator))
    return rows


def _gradients(output: Tensor, mix: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Those of the contraction for each operand; None where nothing depends on it."""
    if not output.requires_grad:
        return (None,) * len(tensors)
    return torch.autograd.grad((output * mix).sum(), tensors, allow_unused=True)


def _by_choice(case: str, name: str, gradient: Tensor | None, defined: Tensor | None) -> Row:
    """Gradients that the formula chose are no limits of differences: they are compared with what it says."""
    if gradient is None or defined is None:
        here = gradient if gradient is not None else defined
        error, values = (0.0 if here is None else float(here.abs().max())), 0 if here is None else here.numel()
    else:
        error, values = _relative(gradient, defined), gradient.numel()
    return Row(case, f"gradient for {name} against the formula's own", values, 0, error, error < TOLERANCE)


@torch.no_grad()
def _differences(
    call: Call,
    tensors: list[Tensor],
    position: int,
    name: str,
    gradient: Tensor | None,
    mix: Tensor,
    case: str,
    generator: torch.Generator,
) -> Row:
    flat = tensors[position].detach().clone().reshape(-1)
    chosen = torch.randperm(flat.numel(), generator=generator)[:POINTS].tolist()
    worst, skipped = 0.0, 0

    def output(at: int, step: float) -> Tensor:
        moved = flat.clone()
        moved[at] += step
        operands = [*tensors[:position], moved.reshape(tensors[position].shape), *tensors[position + 1 :]]
        return convolve(call, operands) * mix

    for at in chosen:
        error: float | None = None
        for step in STEPS:
            below, here, above = (output(at, offset) for offset in (-step, 0.0, step))
            # Output by output: those that do not depend on it cancel.  The bound on rounding errors is that of all.
            left, right = float((here - below).sum()) / step, float((above - here).sum()) / step
            rounding = EPS * float(here.abs().sum()) / step
            analytic = 0.0 if gradient is None else float(gradient.reshape(-1)[at])
            if abs(left - right) > KINK * (1 + abs(left) + abs(right)) or rounding > TOLERANCE * (1 + abs(analytic)):
                continue
            error = abs((left + right) / 2 - analytic) / (1 + abs(analytic))
            if error < TOLERANCE:
                break
        if error is None:
            skipped += 1
        else:
            worst = max(worst, error)
    ok = worst < TOLERANCE and skipped < len(chosen)
    return Row(case, f"gradient for {name} against central differences", len(chosen) - skipped, skipped, worst, ok)


def _relative(value: Tensor, expected: Tensor) -> float:
    if value.numel() == 0:
        return 0.0
    return float(((value - expected).abs() / (1 + expected.abs())).max().detach())
