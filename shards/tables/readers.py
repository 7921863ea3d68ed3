"""Open the metadata of a user: a CSV, JSON, JSONL or Parquet file, or a folder. The content decides how it is read.

    file ─ csv_tables.py │ json_tables.py │ parquet_tables.py ─→ Table
    folder ─ folder_tables.py ─→ Table

Cells of JSON and Parquet become texts, so that all formats are parsed by the same rules. A list becomes JSON text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from shards.errors import UserError, one_line
from shards.storage.files import file_bytes
from shards.storage.kinds import CONFIG, IMAGES, TABLE, kind_of, other_kind
from shards.storage.paths import StoragePath
from shards.tables.csv_tables import text_table
from shards.tables.folder_tables import SPLIT, folder_table
from shards.tables.json_tables import json_table
from shards.tables.parquet_tables import parquet_table
from shards.tables.split_names import split_of_path
from shards.tables.table import FOLDER_FORMATS, Table, TableOptions, refuse_unused


@contextlib.contextmanager
def open_table(path: StoragePath, options: TableOptions = TableOptions()) -> Iterator[Table]:
    """Open a table of posters. Raises UserError if the table cannot be read, also while its rows are read.

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
            refuse_unused(path, made.form, delimiter=options.delimiter)
        return made or _joined(path, {place: _opened(file, options) for place, file in tables.items()})
    if form in FOLDER_FORMATS:
        raise UserError("option-conflict", f"{path} is a file, but --metadata-format {form} is for a folder")
    if form == "parquet" or (form == "auto" and _begins_like_parquet(path)):
        return parquet_table(path, options)
    data = file_bytes(path)
    name = str(path).lower()
    if form == "csv" or (form == "auto" and name.endswith((".csv", ".tsv"))):
        return text_table(path, data, options)
    sure = form in ("json", "jsonl") or name.endswith((".json", ".jsonl", ".ndjson"))
    if sure or data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        try:
            return json_table(path, data, options)
        except UserError:
            if sure:
                raise
    return text_table(path, data, options)


def _joined(folder: Path, tables: Mapping[str, Table]) -> Table:
    """Join the tables of a folder. The paths in a table are relative to the folder of the table."""
    first = next(iter(tables.values()))
    if list(tables) == [""]:
        return first
    header = list(dict.fromkeys(name for table in tables.values() for name in table.header))
    if any(len(set(table.header)) < len(table.header) for table in tables.values()):
        raise UserError("table-column", f"a table in {folder} repeats the name of a column; rename one of the columns")
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
