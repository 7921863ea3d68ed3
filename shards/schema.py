"""JSON from outside, read by a schema: types and bounds are checked once, where the file is read.

A schema is a ``msgspec.Struct`` whose fields carry their bounds (``msgspec.Meta``). Keys that it does not name are
ignored, because later versions add some. msgspec was chosen by import time: 0.05 s, against 0.2 s of pydantic.
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

#: 64 hex digits: a digest that names a file or is compared with one.
Sha256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
#: Numbers of things, bytes and pixels: far more than fits a disk, far less than overflows 64 bits.
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


def parse_as(
    data: bytes | str, schema: type[T], where: object, what: str, remedy: str, code: Code = "path-unreadable"
) -> T:
    """The value of a JSON text of the type ``schema``.

    where: the file, for the error; what: its role, such as "manifest"; remedy: what to do about a bad one.
    Raises UserError of the ``code``, in one line that names the field, for JSON that is not of that schema.
    """
    with _message(where, what, remedy, code, data):
        return msgspec.json.decode(data, type=schema)


def check_as(
    value: object, schema: type[T], where: object, what: str, remedy: str, code: Code = "path-unreadable"
) -> T:
    """As ``parse_as``, for a value that was parsed already: JSON types, or what a checkpoint holds."""
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
    """msgspec's message with the field first: ``shards[0].bytes: expected int >= 0``."""
    text, _, at = one_line(error).partition(" - at `$")
    text = text.replace("`", "")
    field = at.removesuffix("`").removeprefix(".")
    text = f"{field}: {text[:1].lower()}{text[1:]}" if field else text
    return printable(text[:300])


def _not_finite(data: bytes | str) -> str:
    """The first number that is not finite, which Python writes and other JSON has not; empty if there is none.

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
