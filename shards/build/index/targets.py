"""Read the target of a sample: names of genres, a class number, numbers of several labels, or fields of 0 and 1.

A JSON field or a ``.cls`` member has the target. timm reads the same forms (``timm.data.readers``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from shards.dataset.labels import MAX_GENRES
from shards.errors import one_line
from shards.tables.genre_cells import parse_genres

CLASS_FIELD = "cls"
"""Name of the member with a class number, as WebDataset and timm write it."""
MAX_CLASS = (1 << 31) - 1
"""Largest number that can be a class. A label set has less classes, and labels.LabelSet has the limit."""
MAX_CLASS_BYTES = 64
MAX_GENRE = 4096
"""Largest length of a genre in characters."""

#: ``binary`` is a list of 0 and 1: a multi-hot vector, or numbers of labels. Only all samples together show which.
Form = Literal["", "names", "class", "binary", "numbers", "flags", "bad"]


class Target(NamedTuple):
    """Target of a sample in one place of the tar. ``form`` is empty if the sample has none."""

    form: Form = ""
    values: tuple[Any, ...] = ()
    """Names of genres; the class number; positions of the 1s; distinct numbers of labels; or reason and detail."""
    length: int = 0
    """Length of the list, for ``binary`` and ``numbers``."""


def flag_names(field: str) -> list[str]:
    """Return the names of the JSON fields of 0 and 1 that ``field`` lists, such as ``red,green``. Empty if it is one.

    >>> flag_names("red, green"), flag_names("genres")
    (['red', 'green'], [])
    """
    return [name.strip() for name in field.split(",")] if "," in field else []


def json_target(record: dict[str, Any], field: str, separator: str) -> Target:
    """Return the target in a field of a JSON.

    field: name of the field; a path such as ``objects/category``; or names of fields of 0 and 1, joined by commas.
    """
    if field not in record and (names := flag_names(field)):
        return _flags(names, [value_of(record, name) for name in names])
    value = value_of(record, field)
    if value is None:
        return Target()
    if (number := _whole(value)) is not None and not isinstance(value, bool):
        return _class(number)
    if isinstance(value, list) and len({isinstance(item, bool) for item in value}) == 1:
        numbers = [number for item in value if (number := _whole(item)) is not None]
        if len(numbers) == len(value):
            return _numbers(numbers)
    return _names(value, separator)


def class_target(data: bytes) -> Target:
    """Return the target in the bytes of a ``.cls`` member."""
    if re.fullmatch(rb"\s*[-+]?[0-9]+\s*", data) and len(data) <= MAX_CLASS_BYTES:
        return _class(int(data))
    what = f"not a whole number: {data[:40]!r}" if data.strip() else "empty"
    return Target("bad", ("bad class", f"the .{CLASS_FIELD} member is {what}"))


def value_of(record: dict[str, Any], path: str) -> Any:
    """Return the value of a field, or of a path of nested fields. None if it is missing.

    A list of objects on the path gives the list of their values.

    >>> value_of({"objects": [{"category": 3}, {"category": 5}]}, "objects/category")
    [3, 5]
    """
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("/"):
        if isinstance(value, list):
            value = [item.get(part) if isinstance(item, dict) else None for item in value]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value


def columns_of(target: Target, form: str) -> Sequence[int]:
    """Return the label columns of a target. ``form`` is the form of the whole set (see ``genres.py``)."""
    if target.form == "binary" and form == "indices":
        return [0] * (len(target.values) < target.length) + [1] * bool(target.values)
    return target.values


def _whole(value: Any) -> int | None:
    """Return a whole number, such as 3, 3.0 or true. None for other values."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)  # pandas may write a whole number as 42.0
    return int(value) if isinstance(value, int) else None


def _class(number: int) -> Target:
    if not 0 <= number <= MAX_CLASS:
        return Target("bad", ("bad class", f"the class {number} is not from 0 to {MAX_CLASS}"))
    return Target("class", (number,))


def _numbers(numbers: Sequence[int]) -> Target:
    if len(numbers) > MAX_GENRES:
        return Target("bad", ("unparsable genres", f"a list of {len(numbers)} numbers, over the limit of {MAX_GENRES}"))
    found = sorted(set(numbers))
    if found[-1] <= 1 and found[0] >= 0:
        return Target("binary", tuple(n for n, flag in enumerate(numbers) if flag), len(numbers))
    if bad := [number for number in found if not 0 <= number <= MAX_CLASS]:
        return Target("bad", ("bad class", f"the class {bad[0]} is not from 0 to {MAX_CLASS}"))
    return Target("numbers", tuple(found), len(numbers))


def _flags(names: Sequence[str], values: Sequence[Any]) -> Target:
    """Return the target of fields of 0 and 1. As in timm, a value above 0 is a 1."""
    if all(value is None for value in values):
        return Target()
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, (int, float)) or math.isnan(value):
            what = "missing" if value is None else f"not a number: {json.dumps(value)[:60]}"
            return Target("bad", ("unparsable genres", f"the field {name[:60]!r} is {what}"))
    return Target("flags", tuple(n for n, value in enumerate(values) if value > 0))


def _names(value: Any, separator: str) -> Target:
    if not isinstance(value, (list, str)):
        what = f"the field is not a list, a text or a whole number: {json.dumps(value)[:60]}"
        return Target("bad", ("unparsable genres", what))
    try:
        genres = parse_genres(text_of(value), separator)
    except ValueError as error:
        return Target("bad", ("unparsable genres", one_line(error)))
    if longest := max((len(genre) for genre in genres if len(genre) > MAX_GENRE), default=0):
        return Target("bad", ("unparsable genres", f"a genre has {longest} characters, over the limit of {MAX_GENRE}"))
    return Target("names", genres) if genres else Target()


def text_of(genres: Any) -> str:
    """Return the value of a JSON field as the text of a cell of genres. Empty if the field is missing."""
    return genres if isinstance(genres, str) else "" if genres is None else json.dumps(genres)
