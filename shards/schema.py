"""Check JSON files against schemas: types and bounds are checked once, when a file is read.

A schema is a ``msgspec.Struct`` whose fields have bounds (``msgspec.Meta``). Unknown keys are ignored, because later
versions can add keys. msgspec is used because its import takes 0.05 s. The import of pydantic takes 0.2 s.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from typing import Annotated, TypeVar

import msgspec

from shards.errors import Code, UserError, one_line, printable, printable_line

T = TypeVar("T")

#: SHA-256 of a file, as 64 hex digits.
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
#: A number of items, bytes or pixels. The bound is larger than any disk, and sums of such numbers fit in 64 bits.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


def parse_as(
    data: bytes | str, schema: type[T], where: object, what: str, remedy: str, code: Code = "path-unreadable"
) -> T:
    """Parse a JSON text and return a value of the type ``schema``.

    where: the file. what: the role of the file, such as "manifest". remedy: how to repair the file. If the JSON does
    not match the schema, raise UserError with ``code``. The message has these three texts and the name of the field.
    """
    with _message(where, what, remedy, code, data):
        return msgspec.json.decode(data, type=schema)


def check_as(
    value: object, schema: type[T], where: object, what: str, remedy: str, code: Code = "path-unreadable"
) -> T:
    """Convert a parsed value, such as a checkpoint's contents, to ``schema``. See ``parse_as`` for the arguments."""
    with _message(where, what, remedy, code):
        return msgspec.convert(value, schema)


@contextlib.contextmanager
def _message(where: object, what: str, remedy: str, code: Code, data: bytes | str = "") -> Iterator[None]:
    try:
        yield
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        problem = "its values are nested too deeply" if deep else _not_finite(data) or problem_of(error)
        raise UserError(code, f"{where} is not a valid {what}: {problem}; {remedy}") from None


def problem_of(error: Exception) -> str:
    """Return msgspec's error message with the field at its start: ``shards[0].bytes: expected int >= 0``."""
    text, _, at = one_line(error).partition(" - at `$")
    text = text.replace("`", "")
    field = at.removesuffix("`").removeprefix(".")
    text = f"{field}: {text[:1].lower()}{text[1:]}" if field else text
    return printable(text[:300])


def _not_finite(data: bytes | str) -> str:
    """Return a message about the first NaN or infinite number, which JSON does not allow. Empty if there is none.

    >>> _not_finite('{"mean": [0.5, NaN]}')
    'mean[1]: expected a finite number, got nan'
    """
    try:
        left = [("", json.loads(data))]
    except (ValueError, RecursionError):
        return ""
    while left:
        field, value = left.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return printable_line(f"{field.removeprefix('.')[-200:]}: expected a finite number, got {value}")
        if isinstance(value, dict):
            left += [(f"{field}.{key}", inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            left += [(f"{field}[{at}]", value[at]) for at in range(len(value) - 1, -1, -1)]
    return ""
