"""Content keys: a digest of everything that can change what is built."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from ..render import template_directory

#: Raised when the layout of a cache entry changes.
FORMAT = 1


def content_key(fields: Mapping[str, str | bytes]) -> str:
    """The sha256 over labelled fields, each written with its length, so that no two sets of fields run together.

    >>> content_key({"a": "bc"}) == content_key({"ab": "c"})
    False
    """
    digest = hashlib.sha256(FORMAT.to_bytes(8, "little"))
    for label, value in sorted(fields.items()):
        if not isinstance(value, (str, bytes)):
            raise TypeError(
                f"the key field {label!r} is a {type(value).__name__}; only str and bytes have one spelling"
            )
        for part in (label.encode(), value.encode() if isinstance(value, str) else value):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


@functools.cache
def generator_fields() -> Mapping[str, str | bytes]:
    """What generated source depends on besides the formula: our own code, the templates and the libraries' versions."""
    digest = hashlib.sha256()
    package = Path(__file__).resolve().parent.parent
    for root, pattern in ((package, "*.py"), (template_directory(), "*")):
        for path in sorted(path for path in root.rglob(pattern) if path.is_file() and path.suffix != ".pyc"):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)}:{len(content)}:".encode() + content)
    return {"generator": digest.digest(), **{name: version(name) for name in ("sympy", "mpmath", "jinja2", "torch")}}
