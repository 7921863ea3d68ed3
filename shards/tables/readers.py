"""Open the metadata of a user: a CSV, JSON, JSONL or Parquet file, or a folder. The content decides how it is read.

    file ─ csv_tables.py (CSV) │ this module (JSON, JSONL, Parquet) ─→ Table
    folder ─ folder_tables.py ─→ Table

Cells of JSON and Parquet become texts, so that all formats are parsed by the same rules. A list becomes JSON text.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.errors import UserError, one_line
from shards.storage.files import file_bytes
from shards.storage.kinds import CONFIG, IMAGES, TABLE, kind_of, other_kind
from shards.storage.paths import StoragePath
from shards.tables.csv_tables import decoded, text_table
from shards.tables.folder_tables import SPLIT, cell_text, folder_table
from shards.tables.split_names import split_of_path
from shards.tables.table import FOLDER_FORMATS, Table, TableOptions

#: Keys of a JSON object that contains a list of records.
LISTS = ("data", "rows", "records", "items", "images")


@contextlib.contextmanager
def open_table(path: StoragePath, options: TableOptions = TableOptions()) -> Iterator[Table]:
    """Open a table of posters. Raises UserError if it is missing or cannot be read. Reading a row can also raise it.

    A Parquet file is recognised by its first bytes, JSON by its first character, and other files are CSV.
    """
    try:
        yield _opened(path, options)
    except FileNotFoundError:
        raise UserError("path-missing", f"metadata not found: {path}") from None
    except OSError as error:
        raise UserError("path-unreadable", f"{path} cannot be read: {one_line(error)}") from None


def _opened(path: StoragePath, options: TableOptions) -> Table:
    form = options.metadata_format
    if isinstance(path, Path) and kind_of(path) not in (None, TABLE, IMAGES, CONFIG):
        raise UserError("table-unreadable", other_kind(path, TABLE) or f"{path} is not a table")
    if isinstance(path, Path) and path.is_dir():
        if form not in ("auto", *FOLDER_FORMATS):
            raise UserError("option-conflict", f"{path} is a folder, but --metadata-format {form} is for a file")
        tables, made = folder_table(path, options)
        if made:
            _refuse_unused(path, made.form, delimiter=options.delimiter)
        return made or _joined(path, {place: _opened(file, options) for place, file in tables.items()})
    if form in FOLDER_FORMATS:
        raise UserError("option-conflict", f"{path} is a file, but --metadata-format {form} is for a folder")
    if form == "parquet" or (form == "auto" and _begins_like_parquet(path)):
        return _parquet(path, options)
    data = file_bytes(path)
    name = str(path).lower()
    if form == "csv" or (form == "auto" and name.endswith((".csv", ".tsv"))):
        return text_table(path, data, options)
    sure = form in ("json", "jsonl") or name.endswith((".json", ".jsonl", ".ndjson"))
    if sure or data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        try:
            return _json(path, data, options)
        except UserError:
            if sure:
                raise
    return text_table(path, data, options)


def _refuse_unused(path: StoragePath, form: str, **given: str | None) -> None:
    """Raise UserError if an option was given that has no meaning for this format."""
    for name, value in given.items():
        if value is not None:
            raise UserError(
                "option-conflict", f"{path} is read as {form}, for which --{name} has no meaning; leave it out"
            )


def _joined(folder: Path, tables: Mapping[str, Table]) -> Table:
    """Join the tables of a folder. The paths in a table are relative to the folder of the table."""
    first = next(iter(tables.values()))
    if list(tables) == [""]:
        return first
    header = list(dict.fromkeys(name for table in tables.values() for name in table.header))
    if any(len(set(table.header)) < len(table.header) for table in tables.values()):
        raise UserError("table-column", f"a table in {folder} has several columns of one name; rename one of them")
    id_name = first.header[first.id_column()]
    splits = {place: split_of_path(f"{place}/x") for place in tables}
    has_splits = all(splits.values())

    def rows() -> Iterator[tuple[int, list[str]]]:
        for place, table in tables.items():
            at = [table.header.index(name) if name in table.header else None for name in header]
            for number, row in table.rows:
                while len(row) > len(table.header) and not row[-1].strip():
                    row = row[:-1]
                if len(row) == len(table.header):
                    row = ["" if position is None else row[position] for position in at]
                    where = header.index(id_name)
                    row[where] = f"{place}/{row[where].strip()}".replace("\\", "/")
                    row += [splits[place]] * has_splits
                yield number, row  # a row of another length is rejected later

    joined = replace(first, path=folder, header=[*header, *[SPLIT] * has_splits], rows=rows(), by_file=True)
    return replace(joined, form=f"{len(tables)} tables: {first.form}", has_splits=has_splits)


def _begins_like_parquet(path: StoragePath) -> bool:
    if isinstance(path, Path):
        with path.open("rb") as stream:
            return stream.read(4) == b"PAR1"
    return path.suffix == ".parquet"


def _parquet(path: StoragePath, options: TableOptions) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _refuse_unused(path, "Parquet", encoding=options.encoding, delimiter=options.delimiter)
    try:
        file = pq.ParquetFile(path if isinstance(path, Path) else io.BytesIO(file_bytes(path)))
        # Columns with the bytes of images are not read: they can be larger than the memory.
        names = [field.name for field in file.schema_arrow if not _has_bytes(field.type)]
        records = file.read(columns=names).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = f"{path} cannot be read as Parquet: {one_line(error)}; copy it again, or save the table as CSV"
        raise UserError("table-unreadable", problem) from None
    return record_table(path, records, "Parquet", options, names=names)


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(_has_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _json(path: StoragePath, data: bytes, options: TableOptions) -> Table:
    _refuse_unused(path, "JSON", delimiter=options.delimiter)
    text, encoding = decoded(path, data, options.encoding)
    name = "" if encoding == "utf-8" else f", {encoding}"
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    by_line = options.metadata_format == "jsonl" or str(path).lower().endswith((".jsonl", ".ndjson"))
    if not by_line and not (len(lines) > 1 and _is_record(lines[0][1])):
        try:
            found = _records(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise UserError("table-unreadable", f"{path} is not valid JSON: {one_line(error)}") from None
        if found is None:
            what = 'is not a list of records such as [{"id": "p1", "genres": ["Drama"]}]'
            raise UserError("table-unreadable", f"{path} {what}; write it so, or one record on each line")
        return record_table(path, found, f"JSON{name}", options)
    records = []
    for number, line in lines:
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            what = f"line {number} is not a JSON object: {one_line(error)}"
            raise UserError("table-unreadable", f"{path}: {what}") from None
        if not isinstance(records[-1], dict):
            raise UserError("table-unreadable", f'{path}: line {number} is not a JSON object such as {{"id": "p1"}}')
    return record_table(path, records, f"JSON lines{name}", options, [number for number, _ in lines], unit="line")


def _is_record(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _records(value: Any) -> list[Mapping[str, Any]] | None:
    """Return the records in a JSON value: a list of objects, an object of columns, or an object with a key per id.

    None if the value has another form.
    """
    if isinstance(value, dict) and len(lists := [value[key] for key in LISTS if isinstance(value.get(key), list)]) == 1:
        value = lists[0]
    if isinstance(value, list):
        return value if value and all(isinstance(record, dict) for record in value) else None
    if not isinstance(value, dict) or not value:
        return None
    parts = list(value.values())
    if all(isinstance(part, dict) for part in parts):
        same = {frozenset(part) for part in parts}
        if len(same) == 1 and all(key.isdecimal() for key in parts[0]):  # {"id": {"0": ...}, "genre": {"0": ...}}
            return [{name: column[key] for name, column in value.items()} for key in parts[0]]
        return [{"id": key, **record} for key, record in value.items()]
    if all(isinstance(part, (list, str)) for part in parts):
        named = {"id", "genre", "genres", "label", "labels"} & {name.lower() for name in value}
        if named and len({len(part) for part in parts}) == 1 and all(isinstance(part, list) for part in parts):
            return [dict(zip(value, row, strict=True)) for row in zip(*parts, strict=True)]
        return [{"id": key, "genres": part} for key, part in value.items()]
    return None


def record_table(
    path: StoragePath,
    records: Sequence[Mapping[str, Any]],
    form: str,
    options: TableOptions,
    numbers: Iterable[int] | None = None,
    *,
    names: Sequence[str] | None = None,
    unit: str = "record",
) -> Table:
    """Return a table of records. ``names`` are the columns (None: all keys, in the order of their first use)."""
    header = list(names) if names is not None else list(dict.fromkeys(key for record in records for key in record))
    if not header:
        raise UserError("table-unreadable", f'{path} has no columns: records such as {{"id": "p1"}} are needed')
    rows = ([cell_text(record.get(name)) for name in header] for record in records)
    return Table(path, header, zip(numbers or range(1, len(records) + 1), rows, strict=True), form, options, unit=unit)
