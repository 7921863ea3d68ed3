"""The Parquet index beside each tar: where each member lies, and its labels. Written last, as the done marker.

Columns: key, id (str); image_offset, image_size, json_offset, json_size (bytes; json_* -1 without a JSON
member); crc32 (of the image's, then the JSON's bytes); height, width (pixels); labels (genre columns). The
schema's metadata ``poster_toolkit`` holds what the shard was built from, so that a later run can tell its own work
from another's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError, one_line
from shards.files import PARTIAL, atomic_write
from shards.places import Place, told

SUFFIX = ".index.parquet"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("crc32", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("labels", pa.list_(pa.int16())),
    ]
)


@dataclass(frozen=True)
class Member:
    """One sample of a tar: its key and the byte ranges of its image and JSON."""

    key: str
    image_offset: int
    image_size: int
    json_offset: int = -1
    json_size: int = -1


def index_path(tar: Place) -> Place:
    """``train-00000.tar`` → ``train-00000.index.parquet`` (img2dataset's own .parquet keeps its name)."""
    return tar.with_name(tar.name.removesuffix(".tar") + SUFFIX)


def tar_path(index: Place) -> Place:
    """The tar that an index describes."""
    return index.with_name(index.name.removesuffix(SUFFIX) + ".tar")


def member_checksum(stream: IO[bytes], member: Member) -> int:
    """CRC-32 of a sample's image and JSON bytes: names the damaged sample when the tar's sha256 differs."""
    stream.seek(member.image_offset)
    value = zlib.crc32(stream.read(member.image_size))
    if member.json_offset >= 0:
        stream.seek(member.json_offset)
        value = zlib.crc32(stream.read(member.json_size), value)
    return value


def build_table(tar: Path, members: Sequence[Member], columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """The index table of one shard; ``columns`` gives id, height, width and labels in member order."""
    with open(tar, "rb") as stream:
        checksums = [member_checksum(stream, member) for member in members]
    return pa.table(
        {
            "key": [m.key for m in members],
            "id": columns["id"],
            "image_offset": [m.image_offset for m in members],
            "image_size": [m.image_size for m in members],
            "json_offset": [m.json_offset for m in members],
            "json_size": [m.json_size for m in members],
            "crc32": checksums,
            "height": columns["height"],
            "width": columns["width"],
            "labels": columns["labels"],
        },
        schema=SCHEMA,
    )


def write_index(tar: Place, table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write the index, atomically. ``facts`` (JSON types) go into the schema's metadata."""
    text = json.dumps(facts, sort_keys=True)
    with atomic_write(index_path(tar)) as stream:
        pq.write_table(table.replace_schema_metadata({"poster_toolkit": text}), stream, compression="zstd")


def require_index(tar: Place) -> None:
    """Raise UserError if there is no index beside a tar."""
    if not index_path(tar).is_file():
        raise _no_index(tar)


def read_index(tar: Place) -> tuple[pa.Table, dict[str, Any]]:
    """(table, facts) of a tar's index. Raises UserError if it is absent or no index of ours."""
    path = index_path(tar)
    try:
        with told("read the index", path):
            data = path.read_bytes()
    except FileNotFoundError:
        raise _no_index(tar) from None
    except OSError as error:
        raise UserError(f"the index {path} cannot be read: {one_line(error)}") from None
    return parse_index(data, path)


def parse_index(data: bytes, path: Place) -> tuple[pa.Table, dict[str, Any]]:
    """(table, facts) of the bytes of an index. Raises UserError, naming ``path``, if they are none of ours."""
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"the index {path} cannot be read: {one_line(error)}") from None
    metadata = table.schema.metadata or {}
    if not table.schema.remove_metadata().equals(SCHEMA) or b"poster_toolkit" not in metadata:
        raise UserError(f"{path} is no index of this toolkit; run `posters shards index` on its folder")
    return table, json.loads(metadata[b"poster_toolkit"])


def _no_index(tar: Place) -> UserError:
    return UserError(f"no index beside {tar}: finish `posters shards build`, or run `posters shards index`")


def list_tars(folder: Place) -> list[Place]:
    """The tars of a folder, by name, without unfinished ones."""
    return sorted(p for p in folder.glob("*.tar") if PARTIAL not in p.name)
