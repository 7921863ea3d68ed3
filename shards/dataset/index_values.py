"""Checks of the values of an index file. They are used as memory sizes and array positions after these checks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.dataset.labels import MAX_GENRES
from shards.errors import printable

#: Pillow refuses images with more pixels.
MAX_PIXELS = 178_956_970
#: Smallest and largest sample weight.
WEIGHTS = (1e-6, 1e6)
#: Smallest and largest value of each numeric column.
BOUNDS = {
    "image_offset": (0, 1 << 53),
    "image_size": (0, (1 << 32) - 1),
    "json_offset": (-1, 1 << 53),
    "json_size": (-1, (1 << 32) - 1),
    "crc32": (0, (1 << 32) - 1),
    "height": (1, MAX_PIXELS),
    "width": (1, MAX_PIXELS),
    "weight": WEIGHTS,
}
#: Largest offset of a member in a tar, and largest size of a member, in bytes.
MAX_MEMBER = 1 << 53
#: Largest size of a key or an id in bytes.
NAME_BYTES = 1 << 14
#: Largest size of the name of a field in bytes, and largest number of fields of a sample.
FIELD_BYTES, MAX_FIELDS = 128, 256
#: Largest total size of the values of one row in bytes.
ROW_BYTES = 1 << 17


def is_field_name(name: str) -> bool:
    """Return whether a text can be the name of a field: short, not empty, and printable in one line.

    >>> [is_field_name(name) for name in ("txt", "seg.png", "", "a/b", "a\\n", "x" * 200)]
    [True, True, False, False, False, False]
    """
    plain = printable(name) == name and not set(name) & set("\n\t/\\")
    return bool(name) and plain and len(name.encode()) <= FIELD_BYTES


def is_oversize(found: pq.FileMetaData) -> bool:
    """Return whether a Parquet file needs too much memory. Even a small file can expand to any size."""
    size, rows = 0, max(found.num_rows, 1)
    values: dict[str, int] = {}
    for number in range(found.num_row_groups):
        group = found.row_group(number)
        size += group.total_byte_size
        for column in map(group.column, range(group.num_columns)):
            values[column.path_in_schema] = values.get(column.path_in_schema, 0) + column.num_values
    most = {path: MAX_FIELDS if path.startswith("fields.") else MAX_GENRES for path in values}
    return size > ROW_BYTES * (found.num_rows + 8) or any(n > most[path] * rows for path, n in values.items())


def problem_of(table: pa.Table) -> str:
    """Return a message about the first wrong value of an index. Empty if all values are valid.

    The columns ``key`` and ``id``, and the names of fields, must be dictionaries (see ``index.parse_index``).
    """
    table.validate(full=True)  # finds text that is not UTF-8, and offsets outside of their buffers
    labels = table["labels"].combine_chunks().flatten()
    for name in table.column_names:
        if table[name].null_count or (name == "labels" and labels.null_count):
            return f"the column {name!r} has empty values"
    for name in ("key", "id"):
        longest = max((pc.max(pc.binary_length(c.dictionary)).as_py() or 0 for c in table[name].chunks), default=0)
        if longest > NAME_BYTES:
            return f"the column {name!r} has a value of {longest} bytes"
    for name, (low, high) in BOUNDS.items():
        values = table[name].to_numpy() if name in table.column_names else np.empty(0)
        if len(values) and not low <= values.min() <= values.max() <= high:
            return f"the column {name!r} has values that are not from {low} to {high}"
    pixels = table["height"].to_numpy().astype(np.int64) * table["width"].to_numpy()
    if np.max(pixels, initial=0) > MAX_PIXELS:
        return f"an image has {np.max(pixels)} pixels, over the limit of {MAX_PIXELS}"
    if np.min(labels.to_numpy(), initial=0) < 0:
        return "a label is below 0"
    chunks = table["fields"].chunks if "fields" in table.column_names else []
    return next(filter(None, map(_problem_of_fields, chunks)), "")


def _problem_of_fields(lists: pa.ListArray) -> str:
    """Return a message about the first wrong value in a part of the column ``fields``. Empty if all are valid."""
    fields, counts = lists.flatten(), np.diff(lists.offsets.to_numpy())
    if fields.null_count or any(fields.field(part).null_count for part in ("name", "offset", "size")):
        return "the column 'fields' has empty values"
    if np.max(counts, initial=0) > MAX_FIELDS:
        return f"a sample has {np.max(counts)} fields, over the limit of {MAX_FIELDS}"
    names = fields.field("name")
    if (longest := pc.max(pc.binary_length(names.dictionary)).as_py() or 0) > FIELD_BYTES:
        return f"the name of a field has {longest} bytes"
    for name in names.dictionary.to_pylist():
        if not is_field_name(name):
            return f"{name!a} is not a name of a field"
    for part in ("offset", "size"):
        values = fields.field(part).to_numpy()
        if len(values) and not 0 <= values.min() <= values.max() <= MAX_MEMBER:
            return f"a field has a value {part!r} that is not from 0 to {MAX_MEMBER}"
    # The dictionary of a file can have a name twice, so the names are numbered again.
    numbers = pc.dictionary_encode(names.cast(pa.string())).indices.to_numpy().astype(np.int64)
    pairs = np.repeat(np.arange(len(lists)), counts) * (np.max(numbers, initial=0) + 1) + numbers
    return "a sample has two fields with the same name" if len(np.unique(pairs)) < len(pairs) else ""
