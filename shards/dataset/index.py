"""The Parquet index beside each tar: where each member lies, and its labels. Written last, as the done marker.

Columns: key, id (str); image_offset, image_size, json_offset, json_size (bytes; json_* -1 without a JSON
member); crc32 (of the image's, then the JSON's bytes); height, width (pixels); labels (genre columns). The
schema's metadata ``poster_toolkit`` holds what the shard was built from, so that a later run can tell its own work
from another's.

The manifest has each index's SHA-256. What an index says is checked where it is read all the same: a set may come from
a stranger, and its numbers become sizes of memory and places in arrays.
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

#: Over so many pixels Pillow refuses an image, whoever asks.
MAX_PIXELS = 178_956_970
#: Least and largest value of the columns that are numbers.
BOUNDS = {
    "image_offset": (0, 1 << 53),
    "image_size": (0, (1 << 32) - 1),
    "json_offset": (-1, 1 << 53),
    "json_size": (-1, (1 << 32) - 1),
    "crc32": (0, (1 << 32) - 1),
    "height": (1, MAX_PIXELS),
    "width": (1, MAX_PIXELS),
}
#: Bytes of a key or an id, and of all values of a row, at most.
NAME_BYTES = 1 << 14
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
    """``train-00000.tar`` → ``train-00000.index.parquet`` (img2dataset's own .parquet keeps its name)."""
    return tar.with_name(tar.name.removesuffix(".tar") + SUFFIX)


def tar_path(index: StoragePath) -> StoragePath:
    """The tar that an index describes."""
    return index.with_name(index.name.removesuffix(SUFFIX) + ".tar")


def member_checksum(stream: IO[bytes], member: Member) -> int:
    """CRC-32 of a sample's image and JSON bytes: names the damaged sample when the tar's sha256 differs."""
    stream.seek(member.image_offset)
    value = zlib.crc32(stream.read(member.image_size))
    if member.json_offset < 0:
        return value
    stream.seek(member.json_offset)
    return zlib.crc32(stream.read(member.json_size), value)


def build_table(
    tar: Path, members: Sequence[Member], ids: Sequence[str], sizes: Sequence[tuple[int, int]], labels: Sequence[Any]
) -> pa.Table:
    """The index table of one shard, of ids, (width, height) in pixels and genre columns in member order."""
    columns: dict[str, Sequence[Any]] = {}
    for name in Member.__dataclass_fields__:
        columns[name] = [getattr(member, name) for member in members]
    with open(tar, "rb") as stream:
        columns["crc32"] = [member_checksum(stream, member) for member in members]
    columns |= {"id": ids, "labels": labels, "width": [w for w, _ in sizes], "height": [h for _, h in sizes]}
    return pa.table(columns, schema=SCHEMA)


def write_index(tar: StoragePath, table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write the index, atomically. ``facts`` (JSON types) go into the schema's metadata."""
    text = json.dumps(facts, sort_keys=True)
    with atomic_write(index_path(tar)) as stream:
        pq.write_table(table.replace_schema_metadata({"poster_toolkit": text}), stream, compression="zstd")


def require_index(tar: StoragePath) -> None:
    """Raise UserError if there is no index beside a tar."""
    if not index_path(tar).is_file():
        raise _no_index(tar)


def read_index(tar: StoragePath) -> tuple[pa.Table, dict[str, Any]]:
    """(table, facts) of a tar's index. Raises UserError if it is absent or no sound index of ours."""
    return parse_index(index_bytes(tar), index_path(tar))


def read_index_of(root: StoragePath, shard: Shard) -> pa.Table:
    """The index of a set's shard, as ``index_of`` has it."""
    tar = root / shard.name
    return index_of(index_bytes(tar), index_path(tar), shard)


def index_bytes(tar: StoragePath) -> bytes:
    """The bytes of a tar's index. Raises UserError if it is absent."""
    path = index_path(tar)
    try:
        if not is_remote(path):
            if path.exists():
                require_index(tar)  # a device or a pipe has no end
            return small_bytes(path)
        with as_user_error("read the index", path):
            return path.read_bytes()
    except FileNotFoundError:
        raise _no_index(tar) from None
    except OSError as error:
        raise UserError("path-unreadable", f"the index {path} cannot be read: {one_line(error)}") from None


def index_of(data: bytes, path: StoragePath, shard: Shard) -> pa.Table:
    """The table of the bytes of a shard's index.

    Raises UserError, naming ``path``, if they are not those that the manifest vouches for, or say of the tar what
    cannot be.
    """
    require_digest(data, path, shard)
    table, facts = parse_index(data, path, shard.samples)
    if foreign := foreign_to(table, facts, shard):
        raise UserError("set-other", f"the index {path} {foreign}; {AGAIN}")
    if problem := misfit_of(table, shard):
        raise _not_sound(path, problem)
    return table


def require_digest(data: bytes, path: StoragePath, shard: Shard) -> None:
    """Raise UserError if the bytes of an index are not those that the manifest vouches for."""
    if shard.index_sha256 is not None and hashlib.sha256(data).hexdigest() != shard.index_sha256:
        what = "belongs to another build than the manifest, or was changed (its sha256 differs)"
        raise UserError("set-damaged", f"the index {path} of {shard.name} {what}: {COPY_AGAIN}")


def foreign_to(table: pa.Table, facts: dict[str, Any], shard: Shard) -> str:
    """Whether an index was made for another tar than the manifest's; empty if not."""
    ours = facts.get("sha256") == shard.sha256 and table.num_rows == shard.samples
    return "" if ours else f"of {shard.name} belongs to another build than the manifest"


def misfit_of(table: pa.Table, shard: Shard) -> str:
    """What an index says that cannot be true of a tar of that size and a set of so many genres; empty if nothing."""
    for part in ("image", "json"):
        ends = table[f"{part}_offset"].to_numpy() + table[f"{part}_size"].to_numpy()
        if np.max(ends, initial=0) > shard.bytes:
            return f"a sample's {part} lies outside of its tar"
    highest = np.max(table["labels"].combine_chunks().flatten().to_numpy(), initial=-1)
    return "a label is none of the set's genres" if highest >= len(shard.genre_counts) else ""


def parse_index(data: bytes, path: StoragePath, rows: int | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """(table, facts) of the bytes of an index; with ``rows``, of so many samples.

    Raises UserError, naming ``path``, if they are no sound index of ours: of other columns, with values that are absent
    or out of bounds.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        metadata = file.schema_arrow.metadata or {}
        if not file.schema_arrow.remove_metadata().equals(SCHEMA) or b"poster_toolkit" not in metadata:
            remedy = "run `posters shards index` on its folder"
            raise UserError("set-format", f"{path} is no index of this toolkit; {remedy}")
        if rows not in (None, count := file.metadata.num_rows):
            problem = f"belongs to another build than the manifest: {count} samples instead of {rows}"
            raise UserError("set-other", f"the index {path} {problem}; {AGAIN}")
        if _is_oversize(file.metadata):
            raise UserError("set-damaged", f"the index {path} is larger than its samples make it; {AGAIN}")
        # As dictionaries: a long text that is said of every sample is there once, until its length is known.
        names = pq.ParquetFile(pa.BufferReader(data), metadata=file.metadata, read_dictionary=["key", "id"])
        table = names.read(use_threads=False)
        if problem := _unsound(table):
            raise _not_sound(path, problem)
        table = table.cast(SCHEMA)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise UserError("set-damaged", f"the index {path} cannot be read: {one_line(error)}") from None
    return table, parse_as(metadata[b"poster_toolkit"], dict[str, Any], path, "index", AGAIN, "set-damaged")


def _is_oversize(found: pq.FileMetaData) -> bool:
    """Whether a Parquet file is not even to be read: some bytes of it can stand for any amount of memory."""
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    values = max((group.column(c).num_values for group in groups for c in range(group.num_columns)), default=0)
    size = sum(group.total_byte_size for group in groups)
    return values > MAX_GENRES * max(found.num_rows, 1) or size > ROW_BYTES * (found.num_rows + 8)


def _unsound(table: pa.Table) -> str:
    """Values that no index of ours holds; empty if there are none."""
    table.validate(full=True)  # text that is not UTF-8, offsets that lead out of their buffers
    labels = table["labels"].combine_chunks().flatten()
    for name in SCHEMA.names:
        if table[name].null_count or (name == "labels" and labels.null_count):
            return f"the column {name!r} has empty values"
    for name in ("key", "id"):
        longest = max((pc.max(pc.binary_length(c.dictionary)).as_py() or 0 for c in table[name].chunks), default=0)
        if longest > NAME_BYTES:
            return f"the column {name!r} has a value of {longest} bytes"
    for name, (low, high) in BOUNDS.items():
        values = table[name].to_numpy()
        if len(values) and not low <= values.min() <= values.max() <= high:
            return f"the column {name!r} has values that are not from {low} to {high}"
    pixels = table["height"].to_numpy().astype(np.int64) * table["width"].to_numpy()
    if np.max(pixels, initial=0) > MAX_PIXELS:
        return f"an image of {np.max(pixels)} pixels, over {MAX_PIXELS}"
    return "a label is below 0" if np.min(labels.to_numpy(), initial=0) < 0 else ""


def _not_sound(path: StoragePath, problem: str) -> UserError:
    return UserError("set-damaged", f"the index {path} is not sound: {problem}; {COPY_AGAIN}")


def _no_index(tar: StoragePath) -> UserError:
    remedy = "finish `posters shards build`, or run `posters shards index`"
    return UserError("set-missing", f"no index beside {tar}: {remedy}")


def list_tars(folder: StoragePath) -> list[StoragePath]:
    """The tars of a folder, by name, without unfinished ones."""
    return sorted(p for p in folder.glob("*.tar") if PARTIAL not in p.name)
