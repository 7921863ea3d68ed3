"""HTML from templates: one Jinja2 environment for all pages, which escapes every value that a template shows.

A template is named by its package and its file: ``toolkit.audit/audit.html`` is toolkit/audit/templates/audit.html.
The frame of a page, the common style and the pieces of several pages are in this package's folder.
"""

from __future__ import annotations

import base64
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image

from shards.inputs.images import jpeg

NONE = "\N{EN DASH}"


def render(template: str, **values: Any) -> str:
    """A template with its values. Raises jinja2.UndefinedError for a value that it asks for and does not get."""
    html: str = ENVIRONMENT.get_template(template).render(values)
    return html


def _source(template: str) -> tuple[str, str, None]:
    """The text of a template, and the file's name for messages of errors."""
    package, _, name = template.rpartition("/")
    path = files(package) / "templates" / name
    return path.read_text(encoding="utf-8"), str(path), None


# --- filters ------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """``0.123``; a dash for none."""
    return NONE if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """``+0.012`` or ``−0.012``."""
    return NONE if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None, digits: int | None = None) -> str:
    """``12%``; below 10%, ``3.4%``; with ``digits``, always so many behind the point."""
    if value is None:
        return NONE
    if digits is None:
        digits = 0 if value >= 0.0995 else 1
    return f"{value:.{digits}%}"


def count(value: int) -> str:
    """``1,234``."""
    return f"{value:,}"


def place(share: float) -> float:
    """A place on a bar whose ends are 0 and 1, in percent of its length."""
    return round(100.0 * min(max(share, 0.0), 1.0), 1)


def data_uri(picture: Image.Image | bytes, kind: str = "jpeg") -> str:
    """A picture, or the bytes of an encoded one, as an address that holds it."""
    if isinstance(picture, Image.Image):
        picture = jpeg(picture, 88)
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


ENVIRONMENT = Environment(
    loader=FunctionLoader(_source),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters.update(number=number, signed=signed, percent=percent, count=count, place=place, data_uri=data_uri)
