"""What the user says in variables of the environment."""

from __future__ import annotations

import os

from ..errors import SymconvError


def setting(name: str, default: float, error: type[SymconvError]) -> float:
    """A number from the environment; read when it is needed, so that a wrong one does not break the import.

    Args:
        name: of the variable.
        default: where it is not set, or empty.
        error: what is raised unless it is a number from 0 on; the callers of each setting expect another one.

    >>> setting("SYMCONV_NOT_SET", 120.0, SymconvError)
    120.0
    """
    text = os.environ.get(name, "")
    try:
        value = float(text or default)
    except ValueError:
        value = -1.0
    if not value >= 0:  # this way around, NaN is refused too
        raise error(f"{name} must be a number from 0 on, not {text!r}")
    return value


def building_is_forbidden() -> bool:
    """Whether `$SYMCONV_DISABLE_JIT` is set to anything but 0: nothing is built that the cache lacks."""
    return os.environ.get("SYMCONV_DISABLE_JIT", "0") not in ("", "0")
