"""Read a JSON or JSONL: records, columns, an object with a key per id, or what pandas writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from shards.errors import UserError, one_line
from shards.storage.paths import StoragePath
from shards.tables.csv_tables import decoded
from shards.tables.table import Table, TableOptions, is_genre_name, is_id_name, record_table, refuse_unused

#: Keys of a JSON object that contains a list of records.
LISTS = ("data", "rows", "records", "items", "images", "results", "movies")
#: Number of keys from which an object of objects is more probably a table with an object per column.
MANY_COLUMNS = 20
PANDAS = 'In pandas: table.to_json(FILE, orient="records"), after table = table.reset_index() if the index has the ids'


def json_table(path: StoragePath, data: bytes, options: TableOptions) -> Table:
    """Return the table in the bytes of a JSON or JSONL. Raises UserError if the bytes are not such a table."""
    refuse_unused(path, "JSON", delimiter=options.delimiter)
    text, encoding = decoded(path, data, options.encoding)
    name = "" if encoding == "utf-8" else f", {encoding}"
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    by_line = options.metadata_format == "jsonl" or str(path).lower().endswith((".jsonl", ".ndjson"))
    if not by_line and not (len(lines) > 1 and _is_record(lines[0][1])):
        try:
            found = _records(path, parsed(text))
        except (ValueError, RecursionError) as error:
            raise UserError("table-unreadable", f"{path} is not valid JSON: {_explained(error)}") from None
        if found is None:
            what = 'is not a list of records such as [{"id": "p1", "genres": ["Drama"]}]'
            remedy = "write such a list, or one record on each line"
            raise UserError("table-unreadable", f"{path} {what}; {remedy}. {PANDAS}")
        return record_table(path, found, f"JSON{name}", options)
    records = []
    for number, line in lines:
        try:
            records.append(parsed(line))
        except (ValueError, RecursionError) as error:
            what = f"line {number} is not a JSON object: {_explained(error)}"
            raise UserError("table-unreadable", f"{path}: {what}") from None
        if not isinstance(records[-1], dict):
            raise UserError("table-unreadable", f'{path}: line {number} is not a JSON object such as {{"id": "p1"}}')
    return record_table(path, records, f"JSON lines{name}", options, [number for number, _ in lines], unit="line")


def parsed(text: str) -> Any:
    """Return the value in a JSON text. Raises ValueError if the text is not JSON, or if an object repeats a key."""
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice[:60]!r} several times; join the values of this key")
    return found


def _explained(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{one_line(error)}; write it with a JSON library, such as json.dumps of Python"
    return one_line(error)


def _is_record(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _records(path: StoragePath, value: Any) -> list[Mapping[str, Any]] | None:
    """Return the records in a JSON value. None if the value has no known form.

    The forms are a list of objects, an object of columns, an object with a key per id, and those that pandas writes.
    """
    if isinstance(value, dict) and (split := _split_form(value)) is not None:
        return split
    if isinstance(value, dict) and len(lists := [value[key] for key in LISTS if isinstance(value.get(key), list)]) == 1:
        value = lists[0]
    if isinstance(value, list):
        return value if value and all(isinstance(record, dict) for record in value) else None
    if not isinstance(value, dict) or not value:
        return None
    parts = list(value.values())
    if all(isinstance(part, dict) for part in parts):
        if len({frozenset(part) for part in parts}) == 1 and _are_columns(path, list(value), list(parts[0])):
            return _of_columns({name: list(part.values()) for name, part in value.items()}, list(parts[0]))
        return [{"id": key, **record} for key, record in value.items()]
    if all(isinstance(part, (list, str)) for part in parts):
        named = {"id", "genre", "genres", "label", "labels"} & {name.lower() for name in value}
        if named and len({len(part) for part in parts}) == 1 and all(isinstance(part, list) for part in parts):
            return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
        return [{"id": key, "genres": part} for key, part in value.items()]
    return None


def _split_form(value: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the records of an object that pandas writes with orient="split". None if the object has another form."""
    names, rows = value.get("columns"), value.get("data")
    index = value.get("index", list(range(len(rows))) if isinstance(rows, list) else None)
    if not (isinstance(names, list) and isinstance(rows, list) and isinstance(index, list)):
        return None
    if not rows or len(index) != len(rows) or len(set(map(str, names))) < len(names):
        return None
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return None
    return _of_columns(dict(zip(map(str, names), zip(*rows, strict=True), strict=True)), list(map(str, index)))


def _are_columns(path: StoragePath, outer: Sequence[str], inner: Sequence[str]) -> bool:
    """Return whether an object of objects has a key per column (``outer``) and not a key per id.

    All inner objects have the keys ``inner``. Raises UserError if the names do not show which keys are columns.
    """
    named = any(map(is_genre_name, inner))
    if all(key.isdecimal() for key in inner) or (any(map(is_genre_name, outer)) and not named):
        return True
    if not named and len(inner) > max(MANY_COLUMNS, len(outer)):
        what = f"has {len(outer)} objects with the same {len(inner)} keys, which can be ids or names of columns"
        raise UserError("table-unreadable", f"{path} {what}; {PANDAS}")
    return False


def _of_columns(columns: Mapping[str, Sequence[Any]], index: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return records of columns and of the index of a pandas table, unless the index has row numbers.

    The index becomes the last column if it has only whole numbers, or if another column has a usual name for ids. Whole
    numbers can be the row numbers of a table from which rows were deleted. Any other index becomes the first column.
    """
    rows = zip(*columns.values(), strict=True)
    records: list[Mapping[str, Any]] = [dict(zip(columns, row, strict=True)) for row in rows]
    if list(index) == [str(number) for number in range(len(index))]:
        return records
    if any(map(is_id_name, columns)) or all(key.isdecimal() for key in index):
        return [{**record, "index": record.get("index", key)} for record, key in zip(records, index, strict=True)]
    return [{"id": key, **record} for record, key in zip(records, index, strict=True)]
