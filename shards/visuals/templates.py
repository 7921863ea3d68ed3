"""Render HTML templates with one Jinja2 environment that escapes all values.

The name of a template is its package and its file: ``toolkit.audit/audit.html`` is toolkit/audit/templates/audit.html.
The templates folder of this package has the base of all pages, the common style and common macros.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image

from shards.inputs.images import jpeg

NONE = "\N{EN DASH}"


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template. Raises jinja2.UndefinedError if the template uses a value that is missing."""
    html: str = ENVIRONMENT.get_template(template).render(values)
    return html


def _source(template: str) -> tuple[str, str, None]:
    """Return the text of a template, and the path of its file for error messages."""
    package, _, name = template.rpartition("/")
    path = files(package) / "templates" / name
    return path.read_text(encoding="utf-8"), str(path), None


# --- filters ------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 3) -> str:
    """Return a text such as ``0.123``, or a dash for None."""
    return NONE if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Return a text such as ``+0.012`` or ``−0.012``, or a dash for None."""
    return NONE if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None, digits: int | None = None) -> str:
    """Return a text such as ``12%``, or a dash for None. ``digits``: number of decimals (default 0, or 1 below 10%)."""
    if value is None:
        return NONE
    if digits is None:
        digits = 0 if value >= 0.0995 else 1
    return f"{value:.{digits}%}"


def count(value: int) -> str:
    """Return a text such as ``1,234``."""
    return f"{value:,}"


def hundred(share: float | None) -> str:
    """Return a text such as ``62`` for 0.62, or a dash for None."""
    return NONE if share is None else f"{100 * share:.0f}"


def place(share: float) -> float:
    """Convert a share (0 to 1) to a position on a bar, in percent of the bar's length."""
    return round(100.0 * min(max(share, 0.0), 1.0), 1)


def data_uri(picture: Image.Image | bytes, kind: str = "jpeg") -> str:
    """Return a picture as a data URI. A Pillow image becomes a JPEG. Bytes must be a file of type image/``kind``."""
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
#: The only script of a page. A page names the hash of the script, so a browser runs no other script.
SCRIPT = (files("shards.visuals") / "templates" / "page.js").read_text(encoding="utf-8")
ENVIRONMENT.globals.update(
    script=SCRIPT, script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
)
ENVIRONMENT.filters.update(
    number=number, signed=signed, percent=percent, count=count, hundred=hundred, place=place, data_uri=data_uri
)
