"""The one renderer: a strict Jinja2 environment over the templates, and the lookup that finds them."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from .errors import InternalError


@functools.cache
def template_directory() -> Path:
    """Where the templates are: inside the installed package, or beside it in a checkout or editable install."""
    package = Path(__file__).resolve().parent
    for directory in (package / "templates", package.parent / "templates"):
        if (directory / "include" / "window.py").is_file():
            return directory
    raise InternalError(f"no templates beside or inside {package}")


@functools.cache
def templates() -> dict[str, str]:
    """The text of every template by its path, read once: what is rendered is what the cache's key was made of."""
    root = template_directory()
    paths = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def _loaded(name: str) -> tuple[str, str, Callable[[], bool]] | None:
    text = templates().get(name)
    return None if text is None else (text, str(template_directory() / name), lambda: True)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_loaded),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["below_cut"] = _below_cut
    environment.filters["statement"] = _statement
    environment.filters["prose"] = _prose
    return environment


def render(template: str, **context: Any) -> str:
    """Render a template.  A name that the template uses and the context lacks is an error, never an empty string."""
    return _environment().get_template(template).render(**context)


def static_header(name: str) -> str:
    """The text of a file under `templates/include`."""
    return templates()[f"include/{name}"]


@functools.cache
def static_headers() -> dict[str, str]:
    """The static files of native code by their names."""
    named = {Path(name).name: text for name, text in templates().items() if name.startswith("include/")}
    return {name: text for name, text in named.items() if name.endswith((".hpp", ".cpp"))}


def _below_cut(text: str) -> str:
    """The part of a static header that generated files copy: all below the line that says so."""
    _, _, rest = text.partition("-- cut here")
    return rest.partition("\n")[2].strip("\n")


def _prose(text: str, indent: int, mark: str = "", width: int = 118) -> str:
    """A line of a docstring or, with a mark, of a comment; broken at spaces where it is too long."""
    margin = " " * indent + mark
    wrap = textwrap.TextWrapper(
        width, initial_indent=margin, subsequent_indent=margin + " " * 4, break_long_words=False, break_on_hyphens=False
    )
    return wrap.fill(text)


def _statement(text: str, indent: int, width: int = 118) -> str:
    """A Python statement, broken over lines inside brackets where it is too long for one."""
    margin = " " * indent
    if indent + len(text) <= width:
        return margin + text
    head, _, inside = text.partition("(")
    if not (_is_one_group(inside) and head.isprintable() and "*" not in head):
        equals = " = " if " = " in text else " "
        head, _, inside = text.partition(equals)
        head, inside = head + equals, inside + ")"
    lines = textwrap.wrap(inside[:-1], width - indent - 4, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"{margin}{head}(", *(f"{margin}    {line}" for line in lines), f"{margin})"])


def _is_one_group(inside: str) -> bool:
    """Whether the bracket that was opened before `inside` is closed by its last character."""
    depth = 1
    for position, character in enumerate(inside):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return position == len(inside) - 1
    return False
