"""Content keys: a digest of everything that can change what is built."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from ..render import templates

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


def _own_source() -> str:
    package = Path(__file__).resolve().parent.parent
    sources = {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*.py")}
    return content_key(sources)


#: Taken when symconv is imported: an upgrade on disk must not change the key of the code that runs.
OWN_SOURCE = _own_source()


@functools.cache
def generator_fields() -> Mapping[str, str | bytes]:
    """What generated source depends on besides the formula: our own code, the templates and the libraries' versions."""
    versions = {name: version(name) for name in ("sympy", "mpmath", "jinja2", "torch")}
    return {"source": OWN_SOURCE, "templates": content_key(templates()), **versions}
