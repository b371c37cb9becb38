"""Every error that symconv raises on purpose.

Each message says what was given, what is allowed and what to do.  Catch `SymconvError` for all of them; the
subclasses also derive from the built-in exception that a PyTorch user would expect in their place.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class SymconvError(Exception):
    """The base of every error raised by symconv."""


class Span(NamedTuple):
    """A place in a formula's text: a line (from 0) and a half-open range of columns (from 0)."""

    line: int
    start: int
    end: int


class FormulaError(SymconvError, ValueError):
    """A formula that symconv refuses, with a caret under the place.

    Args:
        message: what is wrong, and what to write instead.
        text: the whole formula.
        span: the place in `text`, or None where there is no single place.
    """

    def __init__(self, message: str, text: str = "", span: Span | None = None) -> None:
        self.message = message
        self.text = text
        self.span = span
        super().__init__(message + self._excerpt())

    def __reduce__(self) -> tuple[type[FormulaError], tuple[str, str, Span | None]]:
        return type(self), (self.message, self.text, self.span)

    def _excerpt(self) -> str:
        lines = self.text.split("\n")
        if self.span is None or self.span.line >= len(lines):
            return ""
        line, width = lines[self.span.line], 100
        first = max(0, min(self.span.start - width // 2, len(line) - width))
        start = self.span.start - first
        carets = "^" * max(1, min(self.span.end, first + width, len(line)) - self.span.start)
        return f"\n    {line[first : first + width]}\n    {' ' * start}{carets}"


class ArgumentError(SymconvError, ValueError):
    """An argument whose value is not allowed: a negative stride, an unknown padding mode, a wrong shape."""


class ArgumentTypeError(SymconvError, TypeError):
    """An argument of a type or dtype that is not allowed, or an operand that is missing or unknown."""


class BackendError(SymconvError, RuntimeError):
    """A backend that cannot run here, or cannot run this call; the message says why and what to do."""


class CompilationError(BackendError):
    """Generated code that the compiler does not build.

    Args:
        reason: what failed.
        command: the run of the compiler that failed.
        stderr: all that it said.
        source: where the source was left.
    """

    def __init__(self, reason: str, command: Sequence[str], stderr: str, source: Path) -> None:
        self.reason, self.command, self.stderr, self.source = reason, tuple(command), stderr, source
        said = "".join(f"\n    {line}" for line in stderr.splitlines()[-20:])
        super().__init__(
            f"{reason}{said}\nThe source is {source}\nThe command was {shlex.join(self.command)}\n"
            "Compile it by hand to see more; `symconv doctor` shows the compiler, SYMCONV_CXX chooses another one, and "
            "backend='torch' needs none."
        )

    def __reduce__(self) -> tuple[type[CompilationError], tuple[str, tuple[str, ...], str, Path]]:
        return type(self), (self.reason, self.command, self.stderr, self.source)


class DerivativeError(SymconvError, NotImplementedError):
    """A derivative that symconv does not provide.  It is refused, never silently zero."""


class CacheError(SymconvError, OSError):
    """The cache directory is not usable: not ours, writable by others, locked, full or read-only."""


class InternalError(SymconvError, AssertionError):
    """A mistake in symconv itself.  Please report it with the formula."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}\nThis is a bug in symconv, not in your formula; please report it.")


class SymconvWarning(UserWarning):
    """A choice that is allowed but probably not meant: zeros under a maximum, a gradient that is always 0."""
