"""Parquet index beside each tar: byte ranges, image sizes and labels of its samples. Only complete tars have an index.

- ``key`` and ``id`` of the sample are text.
- ``image_offset``, ``image_size``, ``json_offset`` and ``json_size`` are in bytes. Without a JSON, json_* are -1.
- ``crc32`` is the checksum of the bytes of the image, followed by the bytes of the JSON.
- ``height`` and ``width`` of the image are in pixels. ``labels`` are the column numbers of the genres.
- ``weight`` is the sample weight. Sets without sample weights do not have this column.
- The schema's metadata ``poster_toolkit`` identifies the input of the shard, so that a later run can reuse the shard.

The manifest has the SHA-256 of each index. The values of an index are also checked at each reading. Sets can come from
untrusted sources, and their values are used as memory sizes and array positions.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.dataset.labels import MAX_GENRES
from shards.errors import UserError, one_line
from shards.schema import parse_as
from shards.storage.files import PARTIAL, atomic_write, small_bytes
from shards.storage.paths import StoragePath, as_user_error, is_remote

if TYPE_CHECKING:
    from shards.dataset.manifest import Shard

SUFFIX = ".index.parquet"

SCHEMA = pa.schema(
    {
        **dict.fromkeys(("key", "id"), pa.string()),
        **dict.fromkeys(("image_offset", "image_size", "json_offset", "json_size", "crc32"), pa.int64()),
        **dict.fromkeys(("height", "width"), pa.int32()),
        "labels": pa.list_(pa.int16()),
    }
)
WEIGHTED_SCHEMA = SCHEMA.append(pa.field("weight", pa.float64()))

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
#: Largest size of a key or an id in bytes.
NAME_BYTES = 1 << 14
#: Largest total size of the values of one row in bytes.
ROW_BYTES = 1 << 17
AGAIN = "build or index the set again"
COPY_AGAIN = "copy the set again, or build or index it again"


@dataclass(frozen=True)
class Member:
    """One sample of a tar: its key and the byte ranges of its image and JSON."""

    key: str
    image_offset: int
    image_size: int
    json_offset: int = -1
    json_size: int = -1


def index_path(tar: StoragePath) -> StoragePath:
    """Return the path of a tar's index: ``train-00000.index.parquet`` for ``train-00000.tar``."""
    return tar.with_name(tar.name.removesuffix(".tar") + SUFFIX)


def tar_path(index: StoragePath) -> StoragePath:
    """Return the path of the tar that belongs to an index."""
    return index.with_name(index.name.removesuffix(SUFFIX) + ".tar")


def member_checksum(stream: IO[bytes], member: Member) -> int:
    """Return the CRC-32 of a sample's image and JSON bytes. It identifies the damaged samples of a damaged tar."""
    stream.seek(member.image_offset)
    value = zlib.crc32(stream.read(member.image_size))
    if member.json_offset < 0:
        return value
    stream.seek(member.json_offset)
    return zlib.crc32(stream.read(member.json_size), value)


def build_table(
    tar: Path,
    members: Sequence[Member],
    ids: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    labels: Sequence[Any],
    weights: Sequence[float | None] | None = None,
) -> pa.Table:
    """Return the index table of a shard. All sequences have one value for each of ``members``.

    sizes: (width, height) in pixels. labels: list of genre columns. weights: None if the set has no sample weights.
    """
    columns: dict[str, Sequence[Any]] = {}
    for name in Member.__dataclass_fields__:
        columns[name] = [getattr(member, name) for member in members]
    with open(tar, "rb") as stream:
        columns["crc32"] = [member_checksum(stream, member) for member in members]
    columns |= {"id": ids, "labels": labels, "width": [w for w, _ in sizes], "height": [h for _, h in sizes]}
    if weights is None:
        return pa.table(columns, schema=SCHEMA)
    return pa.table(columns | {"weight": weights}, schema=WEIGHTED_SCHEMA)


def write_index(tar: StoragePath, table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write the index atomically. Store ``facts`` as JSON in the metadata of the Parquet schema."""
    text = json.dumps(facts, sort_keys=True)
    with atomic_write(index_path(tar)) as stream:
        pq.write_table(table.replace_schema_metadata({"poster_toolkit": text}), stream, compression="zstd")


def require_index(tar: StoragePath) -> None:
    """Raise UserError if there is no index beside a tar."""
    if not index_path(tar).is_file():
        raise _no_index(tar)


def read_index(tar: StoragePath) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table and the metadata of a tar's index. Raises UserError if the index is absent or not valid."""
    return parse_index(index_bytes(tar), index_path(tar))


def read_index_of(root: StoragePath, shard: Shard) -> pa.Table:
    """Read and check the index of a shard in the folder ``root`` (see ``index_of``)."""
    tar = root / shard.name
    return index_of(index_bytes(tar), index_path(tar), shard)


def index_bytes(tar: StoragePath) -> bytes:
    """Return the bytes of a tar's index. Raises UserError if the index is absent or cannot be read."""
    path = index_path(tar)
    try:
        if not is_remote(path):
            if path.exists():
                require_index(tar)  # only a regular file: reading a device or a pipe may never end
            return small_bytes(path)
        with as_user_error("read the index", path):
            return path.read_bytes()
    except FileNotFoundError:
        raise _no_index(tar) from None
    except OSError as error:
        raise UserError("path-unreadable", f"the index {path} cannot be read: {one_line(error)}") from None


def index_of(data: bytes, path: StoragePath, shard: Shard) -> pa.Table:
    """Return the table of a shard's index from the bytes of the index. Messages name ``path``.

    Raises UserError if the digest differs from the digest in the manifest, or if the values do not fit the shard.
    """
    require_digest(data, path, shard)
    table, facts = parse_index(data, path, shard.samples)
    if foreign := foreign_to(table, facts, shard):
        raise UserError("set-other", f"the index {path} {foreign}; {AGAIN}")
    if problem := misfit_of(table, shard):
        raise _not_sound(path, problem)
    return table


def require_digest(data: bytes, path: StoragePath, shard: Shard) -> None:
    """Raise UserError if the SHA-256 of an index differs from the one in the manifest."""
    if shard.index_sha256 is not None and hashlib.sha256(data).hexdigest() != shard.index_sha256:
        what = "belongs to another build than the manifest, or was changed (its sha256 differs)"
        raise UserError("set-damaged", f"the index {path} of {shard.name} {what}: {COPY_AGAIN}")


def foreign_to(table: pa.Table, facts: dict[str, Any], shard: Shard) -> str:
    """Return a message if an index was made for a tar of another build. Empty if the index fits ``shard``."""
    fits = facts.get("sha256") == shard.sha256 and table.num_rows == shard.samples
    return "" if fits else f"of {shard.name} belongs to another build than the manifest"


def misfit_of(table: pa.Table, shard: Shard) -> str:
    """Return a message if values of an index exceed the size of its tar or the number of genres. Empty if all fit."""
    for part in ("image", "json"):
        ends = table[f"{part}_offset"].to_numpy() + table[f"{part}_size"].to_numpy()
        if np.max(ends, initial=0) > shard.bytes:
            return f"a sample's {part} is outside of its tar"
    highest = np.max(table["labels"].combine_chunks().flatten().to_numpy(), initial=-1)
    return "a label is not one of the set's genres" if highest >= len(shard.genre_counts) else ""


def parse_index(data: bytes, path: StoragePath, rows: int | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """Return the table and the metadata of an index from its bytes. Messages name ``path``.

    rows: expected number of samples. None accepts any number. Raises UserError if the index has the wrong columns, or
    if a value is absent or out of bounds.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        metadata = file.schema_arrow.metadata or {}
        schema = file.schema_arrow.remove_metadata()
        if schema not in (SCHEMA, WEIGHTED_SCHEMA) or b"poster_toolkit" not in metadata:
            remedy = "run `posters shards index` on its folder"
            raise UserError("set-format", f"{path} is not an index of this toolkit; {remedy}")
        if rows not in (None, count := file.metadata.num_rows):
            problem = f"belongs to another build than the manifest: {count} samples instead of {rows}"
            raise UserError("set-other", f"the index {path} {problem}; {AGAIN}")
        if _is_oversize(file.metadata):
            raise UserError("set-damaged", f"the index {path} is too large for its number of samples; {AGAIN}")
        # Keys and ids are read as dictionaries. Then a long text that many samples share is in memory only once.
        names = pq.ParquetFile(pa.BufferReader(data), metadata=file.metadata, read_dictionary=["key", "id"])
        table = names.read(use_threads=False)
        if problem := _unsound(table):
            raise _not_sound(path, problem)
        table = table.cast(schema)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise UserError("set-damaged", f"the index {path} cannot be read: {one_line(error)}") from None
    return table, parse_as(metadata[b"poster_toolkit"], dict[str, Any], path, "index", AGAIN, "set-damaged")


def _is_oversize(found: pq.FileMetaData) -> bool:
    """Return whether a Parquet file needs too much memory. Even a small file can expand to any size."""
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    values = max((group.column(c).num_values for group in groups for c in range(group.num_columns)), default=0)
    size = sum(group.total_byte_size for group in groups)
    return values > MAX_GENRES * max(found.num_rows, 1) or size > ROW_BYTES * (found.num_rows + 8)


def _unsound(table: pa.Table) -> str:
    """Return a message about the first wrong value of an index. Empty if all values are valid."""
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
    return "a label is below 0" if np.min(labels.to_numpy(), initial=0) < 0 else ""


def _not_sound(path: StoragePath, problem: str) -> UserError:
    return UserError("set-damaged", f"the index {path} is damaged: {problem}; {COPY_AGAIN}")


def _no_index(tar: StoragePath) -> UserError:
    remedy = "finish `posters shards build`, or run `posters shards index`"
    return UserError("set-missing", f"no index beside {tar}: {remedy}")


def field_ranges(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the (n,) int64 byte offsets and sizes of a member of all samples. -1 if a sample lacks the member."""
    if name == "json":
        return table["json_offset"].to_numpy(), table["json_size"].to_numpy()
    nothing = np.full(table.num_rows, -1, dtype=np.int64)
    return nothing, nothing


def list_tars(folder: StoragePath) -> list[StoragePath]:
    """Return the tars of a folder, sorted by name. Half-written tars are left out."""
    return sorted(p for p in folder.glob("*.tar") if PARTIAL not in p.name)
