"""The kernel: a formula with its derivatives, its generated code and its checks."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import sympy as sp

from .derive import gradients, tangent
from .errors import FormulaError
from .language.axes import WindowNode, domain, labels_of
from .language.formula import Formula
from .language.parser import parse
from .language.symbols import Access, Operand, b, x
from .printers.mathematics import latex_lines, pretty
from .printers.text import TextPrinter, print_expression
from .reductions import Quantile

if TYPE_CHECKING:
    import torch

    from .check import Report

#: How a weight is filled: the name of a function of `torch.nn.init` without its underscore, or a function.
Initializer: TypeAlias = "str | Callable[[torch.Tensor], Any]"


class Signature(NamedTuple):
    """What a kernel is called and what it takes, in plain Python: all that a call needs, also under `torch.compile`.

    Args:
        text: the formula; `kernel_of` gives the kernel.
        tensors: the names of the tensor operands in the order of the generated functions; the first is "x".
        roles: "input", "weight", "bias", "param" or "field" for each of them.
        axes: for each of them the axes of one element: a string out of "oct".
        banks: for each of them how many weights it has per tap, 0 for what is no bank.
        inits: the initial value of each `param`, None for the other roles.
        positive: for each of them whether a layer keeps it above 0.
        numbers: the names of the `const` operands.
        values: their declared values, None where the layer must give one.
        rank: the least number of image axes (3 for a formula with `dz`).
        together: sets of inputs that the formula combines channel by channel; "x" stands for weights too.
        unshared: the inputs with a softmax, say, over their own channels: where they meet others, one channel cannot be
            shared by all.
        own: the operands that are read at the output's own channel.
        shares: the consts that are the share of a quantile: between 0 and 1.
        single: the inputs whose centre pixel is used outside reductions: they have one channel per group.
    """

    text: str
    tensors: tuple[str, ...]
    roles: tuple[str, ...]
    axes: tuple[str, ...]
    banks: tuple[int, ...]
    inits: tuple[float | None, ...]
    positive: tuple[bool, ...]
    numbers: tuple[str, ...]
    values: tuple[float | None, ...]
    rank: int
    together: tuple[tuple[str, ...], ...]
    unshared: tuple[str, ...]
    own: tuple[str, ...]
    shares: tuple[str, ...]
    single: tuple[str, ...]

    @classmethod
    def of(cls, formula: Formula) -> Signature:
        tensors = [operand for operand in formula.operands if operand.is_tensor]
        numbers = [operand for operand in formula.operands if operand.role == "const"]
        expr = formula.expr
        inside = [frozenset().union(*map(labels_of, node.args)) for node in expr.atoms(WindowNode)]
        together = {_channels(labels) for labels in (*inside, labels_of(expr))}
        across = [node for node in expr.atoms(WindowNode) if "c" in node.dims and not node.reduces]
        unshared = {name for node in across for name in domain(labels_of(node)).inputs}
        own = {each.base.name for each in expr.free_symbols if isinstance(each, Access) and each.own}
        return cls(
            formula.text,
            tuple(operand.name for operand in tensors),
            tuple(operand.role for operand in tensors),
            tuple("".join(operand.axes) for operand in tensors),
            tuple(operand.bank or 0 for operand in tensors),
            tuple(operand.init for operand in tensors),
            tuple(operand.positive for operand in tensors),
            tuple(operand.name for operand in numbers),
            tuple(operand.init for operand in numbers),
            max([1] + [["dx", "dy", "dz"].index(o.name) + 1 for o in formula.operands if o.role == "offset"]),
            tuple(sorted(names for names in together if len(names) > 1)),
            tuple(sorted(unshared)),
            tuple(sorted(own)),
            tuple(sorted({str(node.args[1]) for node in expr.atoms(Quantile) if node.args[1].is_Symbol})),
            _channels(labels_of(expr)),
        )

    def names(self, role: str) -> tuple[str, ...]:
        """The tensor operands of a role."""
        return tuple(name for name, each in zip(self.tensors, self.roles) if each == role)

    @property
    def per_channel(self) -> tuple[str, ...]:
        """The learned operands of which there is one per filter or channel: a layer must be told how many."""
        operands = zip(self.tensors, self.roles, self.axes)
        return tuple(name for name, role, axes in operands if is_learned(role) and {"o", "c"} & {*axes})

    @property
    def pools(self) -> bool:
        """Whether its layer is a pool, with one window per channel.

        Not if something is learned per filter or channel, and not if the formula tells the output's own channel from
        the others of its group: a pool's has no others.
        """
        return not (self.per_channel or self.own)


def is_learned(role: str) -> bool:
    """Whether a layer learns the operands of a role, rather than being given them with each call."""
    return role not in ("input", "field")


def _channels(labels: frozenset[str]) -> tuple[str, ...]:
    """The inputs along whose channels a value with these axes varies."""
    return tuple(sorted(label[2:] or "x" for label in labels if label[0] == "c"))


class Gradients(dict[Operand, sp.Expr]):
    """Partial derivatives by operand; the name of an operand will do.  They are shown as formulas are written."""

    def __missing__(self, key: object) -> sp.Expr:
        for operand, derivative in self.items():
            if operand.name == str(key):
                return derivative
        raise KeyError(f"no derivative along {key}: there is one along each of {', '.join(map(str, self))}")

    def __contains__(self, key: object) -> bool:
        return any(operand.name == str(key) for operand in self)

    def get(self, key: object, default: Any = None) -> Any:
        try:
            return self[key]  # type: ignore[index]
        except KeyError:
            return default

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{operand}: {TextPrinter().doprint(each)}" for operand, each in self.items()) + "}"


class Kernel:
    """What happens in a window: a formula, ready to be differentiated, inspected and run.

    Args:
        formula: the text of a formula, or a SymPy expression of the symbols and functions that symconv hands out.
            Both give the same kernel.
        name: a name for messages, `repr` and the source that `source` shows.
        init: how `reset_parameters` fills the weights: a name of `torch.nn.init` such as "zeros" or "normal", or a
            function of a tensor.  By default Kaiming-uniform as in `torch.nn.Conv2d`.

    Raises:
        FormulaError: with the place, if the formula is not one.

    >>> import symconv as sc
    >>> adder = sc.Kernel("-sum(abs(x - w))", name="adder")
    >>> adder.gradients()
    {x: -sign(x - w), w: sign(x - w)}
    >>> adder == sc.Kernel(-sc.sum(abs(sc.x - sc.w)))
    True
    """

    formula: Formula
    name: str | None
    init: Initializer | None
    signature: Signature

    def __init__(
        self, formula: str | sp.Expr | Kernel, name: str | None = None, init: Initializer | None = None
    ) -> None:
        if isinstance(formula, Kernel):
            name, init = name or formula.name, init or formula.init
            self.formula = formula.formula
        elif not isinstance(formula, (str, sp.Expr)):
            raise FormulaError(f"a formula is text or a SymPy expression, not {type(formula).__name__}")
        else:
            self.formula = parse(formula if isinstance(formula, str) else print_expression(formula))
        if name is not None and not (isinstance(name, str) and name.isprintable() and not {*name} & {*'"\\'}):
            raise FormulaError(
                f"the name of a kernel is printable text without double quotes and backslashes, not {name!r}"
            )
        if not any(isinstance(each, Operand) and each.operand == x for each in self.formula.expr.free_symbols):
            message = f"the formula never uses the input x{_where_x_went(formula, self.formula)}"
            raise FormulaError(message, self.formula.text)
        self.name = name
        self.init = init
        self.signature = Signature.of(self.formula)
        Kernel.from_formula(self.formula, self.signature)

    @classmethod
    def from_formula(cls, formula: Formula, signature: Signature | None = None) -> Kernel:
        """The kernel of a formula without a name; the formula may be one that was derived and lacks x."""
        signature = Signature.of(formula) if signature is None else signature
        if signature.text not in _KERNELS:
            kernel = cls.__new__(cls)
            kernel.formula, kernel.signature, kernel.name, kernel.init = formula, signature, None, None
            _KERNELS.setdefault(kernel.text, kernel)
        return _KERNELS[signature.text]

    # -- What it is ----------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """The formula in the text language; `Kernel(kernel.text) == kernel`."""
        return self.signature.text

    @functools.cached_property
    def title(self) -> str:
        """The name, or the last line of the formula, on one line."""
        return self.name or self.text.splitlines()[-1]

    @functools.cached_property
    def expr(self) -> sp.Expr:
        """The formula as one SymPy expression."""
        return self.formula.expr

    def gradients(self) -> Gradients:
        """The partial derivatives of a window's value, as SymPy expressions.

        For x and weights the derivative at one tap, for other operands that of the window.  `others(e)` is the
        product of e over the other taps, `first_max(e)` is 1 at the first tap that attains the maximum, `softmax(e)`
        is exp(e) over its sum.  They are found by operand, or by its name.

        >>> import symconv as sc
        >>> sc.Kernel("prod(tan(x + w))").gradients()[sc.w]
        (tan(x + w)**2 + 1)*others(tan(x + w))
        >>> sc.Kernel("p: param = 2\\nsum(w*x**p)").gradients()["p"]
        sum(w*x**p*log(x))
        """
        return Gradients(gradients(self.formula))

    def latex(self) -> str:
        """The formula and its partial derivatives in LaTeX, as an `aligned` environment."""
        return r"\begin{aligned}" + r" \\ ".join(latex_lines(self.formula)) + r"\end{aligned}"

    def source(self, backend: str = "torch") -> str:
        """The source text that a backend generates for this kernel; "auto" is the backend of float32 on this CPU."""
        from .backends import backend as backend_named

        return backend_named(backend).source(self)

    def check(self, seed: int = 0) -> Report:
        """Verify values and gradients numerically; see `symconv.check`."""
        from .check import check

        return check(self, seed)

    # -- Kernels made from it ------------------------------------------------------------------------------------

    def with_bias(self, bias: bool | None) -> Kernel:
        """The kernel with `+ b` if `bias` is True and it has none, without `b` if False, itself if None."""
        has = self.formula.operand("b") is not None
        if bias is None or bias == has:
            return self
        return self._without_b if has else self._with_b

    @functools.cached_property
    def _with_b(self) -> Kernel:
        formula = Formula.of(self.formula.lines, self.formula.result + b)
        return Kernel(formula.text, self.name, self.init)

    @functools.cached_property
    def _without_b(self) -> Kernel:
        lines = ((name, expr.xreplace({b: sp.S.Zero})) for name, expr in self.formula.lines)
        formula = Formula.of(lines, self.formula.result.xreplace({b: sp.S.Zero}))
        return Kernel(formula.text, self.name, self.init)

    def tangent(self, names: tuple[str, ...]) -> tuple[Kernel, tuple[str, ...]]:
        """The directional derivative along the operands `names`, as a kernel, and the names of the directions."""
        return _tangent(self.text, names)

    # -- How it shows itself -------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        name = "" if self.name is None else f", name={self.name!r}"
        return f"Kernel({self.text!r}{name})"

    def __str__(self) -> str:
        return pretty(self.formula, self.name)

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex()}$"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Kernel):
            return NotImplemented
        return self.expr == other.expr and self.formula.operands == other.formula.operands

    def __hash__(self) -> int:
        return hash((self.expr, self.formula.operands))

    def __reduce__(self) -> tuple[Any, ...]:
        return Kernel, (self.text, self.name, self.init)


#: Every kernel of this process by its text, so that an operator can name it by a string.  None has a name: kernels of
#: one text may have several, and are compiled once.
_KERNELS: dict[str, Kernel] = {}


def kernel_of(text: str) -> Kernel:
    """The kernel of a text, without a name; also of a derived one that lacks x."""
    return _KERNELS.get(text) or Kernel.from_formula(parse(text))


def _where_x_went(written: object, formula: Formula) -> str:
    """Why a formula has no x although x was written in it; empty where it was not."""
    if not isinstance(written, str) or not re.search(r"\bx\b", re.sub("#.*", "", written)):
        return ""
    if any(isinstance(each, Operand) and each.operand == x for _, line in formula.lines for each in line.free_symbols):
        return ": the result is made of none of the lines in which x stands"
    return f": it cancels, and the result that is left is {formula.text.splitlines()[-1]}"


@functools.lru_cache(maxsize=256)
def _tangent(text: str, names: tuple[str, ...]) -> tuple[Kernel, tuple[str, ...]]:
    """Derived once: a gradient penalty asks for it in every step."""
    formula = kernel_of(text).formula
    taken = {operand.name for operand in formula.operands}
    dots = {}
    for name in names:
        dots[name] = f"{name}_dot"
        while dots[name] in taken:
            dots[name] += "_"
    return Kernel.from_formula(tangent(formula, dots)), tuple(dots.values())
