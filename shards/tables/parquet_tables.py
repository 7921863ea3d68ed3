"""Read a Parquet file. Columns of bytes become text if they are UTF-8. Other bytes, such as images, are left out."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.errors import UserError, one_line, some
from shards.storage.files import file_bytes
from shards.storage.paths import StoragePath
from shards.tables.table import Table, TableOptions, record_table, refuse_unused

#: Largest mean size, in bytes, of the values of a Parquet column of bytes that is read as text. Images are larger.
MOST_BYTES = 4096
#: Largest size, in bytes, of a value that can be an id, such as a hash.
ID_BYTES = 100


def parquet_table(path: StoragePath, options: TableOptions) -> Table:
    """Return the table in a Parquet file. Raises UserError if the file or its column of ids cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_unused(path, "Parquet", encoding=options.encoding, delimiter=options.delimiter)
    try:
        file = pq.ParquetFile(path if isinstance(path, Path) else io.BytesIO(file_bytes(path)))
        records, unread, ids = _without_bytes(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = f"{path} cannot be read as Parquet: {one_line(error)}; copy it again, or save the table as CSV"
        raise UserError("table-unreadable", problem) from None
    if unread and not records.column_names:
        raise UserError("table-unreadable", f"{path} has only columns of bytes that are not text; write ids and genres")
    form = f"Parquet, without the bytes in column {some([repr(name) for name in unread])}" if unread else "Parquet"
    table = record_table(path, records.to_pylist(), form, options, names=records.column_names)
    table = replace(table, unread=unread)
    every = replace(table, header=file.schema_arrow.names, unread={})
    if (name := every.header[every.id_column()]) in ids:
        raise table.not_text(name)
    return table


def _without_bytes(file: Any) -> tuple[Any, dict[str, str], set[str]]:
    """Read the columns of an open Parquet file that have no bytes, or bytes that are UTF-8 text.

    Return the table, a reason for each column that was not read, and the names of those columns whose values are as
    short as ids. Columns with large values, such as images, are not read, because they can be larger than the memory.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names, texts, unread, ids = [], {}, {}, set()
    for field in file.schema_arrow:
        if _has_bytes(field.type):
            texts[field.name] = _text_type(field.type)
            if texts[field.name] is None or _mean_size(file.metadata, field.name) > MOST_BYTES:
                unread[field.name] = "has bytes"
                continue
        names.append(field.name)
    records = file.read(columns=names)
    for name in [name for name in texts if name not in unread]:
        at = records.column_names.index(name)
        column = records.column(at)
        try:
            records = records.set_column(at, name, column.cast(texts[name]))
        except pa.ArrowInvalid:
            records, unread[name] = records.remove_column(at), "has bytes that are not UTF-8 text"
            if _is_bytes(column.type) and pc.max(pc.binary_length(column.cast(pa.large_binary()))).as_py() <= ID_BYTES:
                ids.add(name)
    return records, unread, ids


def _mean_size(facts: Any, name: str) -> float:
    """Return the mean number of bytes per row of a column and of its inner columns, from the metadata of the file."""
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(facts.num_columns)]
    own = [column for column in columns if f"{column.path_in_schema}.".startswith(f"{name}.")]
    return float(sum(column.total_uncompressed_size for column in own) / max(1, facts.num_rows))


def _has_bytes(kind: Any) -> bool:
    """Return whether an Arrow type is bytes, or has bytes inside."""
    return _is_bytes(kind) or any(_has_bytes(kind.field(number).type) for number in range(kind.num_fields))


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _text_type(kind: Any) -> Any:
    """Return the Arrow type of texts, or of lists of texts, for bytes or lists of bytes. None for other types."""
    import pyarrow as pa

    if _is_bytes(kind):
        return pa.large_string()
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return pa.large_list(pa.large_string()) if lists and _is_bytes(kind.value_type) else None
