"""Sample table of a split: one file with a record of fixed size for each sample. Readers map the file into memory.

    SPLIT-FINGERPRINT.samples.npy      a NumPy array of the records, in the order of the shards and of their indexes

A build writes the table at its end, from the Parquet indexes. 20 bytes of a record are the byte range, height and width
of the image. In a set with sample weights, 8 bytes are the weight. The other bytes have one bit per genre. Readers
start fast, because only the used pages of the file are read. All processes of a node share these pages. The
fingerprint in the file name depends on the shards of the split. So a table of another build is not used by mistake.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shards.dataset.index import AGAIN, index_bytes, index_of, index_path
from shards.dataset.index_values import MAX_PIXELS, WEIGHTS
from shards.errors import UserError, one_line
from shards.schema import Count, Sha256
from shards.storage.files import atomic_path, fingerprint, sha256_file, sha256_stream
from shards.storage.paths import StoragePath

if TYPE_CHECKING:
    from shards.dataset.manifest import Shard

SUFFIX = ".samples.npy"
#: Number of records that are checked at a time.
CHECKED_AT_A_TIME = 1 << 18


@dataclass(frozen=True)
class SampleTable:
    """The sample table of a split, as listed in the manifest."""

    name: str
    """Name of the file. Manifest.table_of compares it with the result of ``table_name`` for the split's shards."""
    bytes: Count
    sha256: Sha256
    weighted: bool = False
    """Whether the records have sample weights."""


def record_type(genres: int, weighted: bool = False) -> np.dtype[Any]:
    """Return the type of a record: offset and size of the image (bytes), height and width (pixels), genres (bits).

    If ``weighted`` is true, the sample weight comes before the genres.
    """
    numbers = [("offset", "<u8"), ("size", "<u4"), ("height", "<u4"), ("width", "<u4")]
    weight = [("weight", "<f8")] if weighted else []
    return np.dtype([*numbers, *weight, ("genres", "u1", (max(1, -(-genres // 8)),))])


def records_of(table: pa.Table, genres: int) -> np.ndarray:
    """Return an array (n,) with the records of the samples in an index table (index.py)."""
    weighted = "weight" in table.column_names
    records = np.zeros(table.num_rows, dtype=record_type(genres, weighted))
    for field in ("offset", "size", "height", "width", *(["weight"] if weighted else [])):
        records[field] = table[field if field in table.column_names else f"image_{field}"].to_numpy()
    records["genres"][:, : -(-genres // 8)] = np.packbits(_multi_hot(table["labels"].combine_chunks(), genres), axis=1)
    return records


def multi_hot_of(records: np.ndarray, genres: int) -> np.ndarray:
    """Return the genres of records as an (n, G) uint8 array of 0 and 1."""
    return np.unpackbits(records["genres"], axis=1, count=genres)


def table_name(split: str, sha256s: Sequence[str], genres: Sequence[str]) -> str:
    """Return the file name of a split's table. The name depends on the shards, their order and the genres."""
    return f"{split}-{fingerprint([list(genres), list(sha256s)])[:12]}{SUFFIX}"


def write_sample_table(
    folder: StoragePath, split: str, shards: Sequence[Shard], genres: Sequence[str], weighted: bool = False
) -> tuple[SampleTable, list[tuple[int, str]]]:
    """Write a split's table from the indexes of its shards. Return the table, and (bytes, SHA-256) of each index.

    weighted: whether the indexes have sample weights. Only one index is in memory at a time. Raises UserError if an
    index is absent, damaged or made for another shard.
    """
    total = sum(shard.samples for shard in shards)
    path = folder / table_name(split, [shard.sha256 for shard in shards], genres)
    kind, digests = record_type(len(genres), weighted), []
    with atomic_path(path) as written:
        with open(written, "wb") as stream:
            header = {"descr": kind.descr, "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(stream, header)
            for shard in shards:
                tar = folder / shard.name
                data = index_bytes(tar)
                records = records_of(index_of(data, index_path(tar), shard), len(genres))
                if records.dtype != kind:
                    what = (
                        "no sample weights, but the set has weights"
                        if weighted
                        else "sample weights, but the set has none"
                    )
                    raise UserError("set-other", f"the index {index_path(tar)} has {what}; {AGAIN}")
                stream.write(records.tobytes())
                digests.append((len(data), hashlib.sha256(data).hexdigest()))
        table = SampleTable(path.name, written.stat().st_size, sha256_file(written), weighted)
    return table, digests


def open_sample_table(path: Path) -> IO[bytes]:
    """Open the file of a table. Raises UserError if it is missing or cannot be opened."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError(
            "set-missing", f"{path} is missing; copy it again, or run the set's build (or `posters shards index`) again"
        ) from None
    except OSError as error:
        raise UserError("path-unreadable", f"{path} cannot be opened: {one_line(error)}") from None


def map_sample_table(
    stream: IO[bytes], path: StoragePath, table: SampleTable, samples: int, genres: int
) -> np.memmap[Any, Any]:
    """Map an open table read-only into memory. Return its records, an array (n,). ``path`` is for messages.

    Raises UserError if the layout of the file is not as expected. ``check_sample_table`` checks the contents.
    """
    if (size := os.fstat(stream.fileno()).st_size) != table.bytes:
        raise _damaged(path, f"{size} bytes, but the manifest says {table.bytes}")
    kind = record_type(genres, table.weighted)
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran, found = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # NumPy may raise any exception for a damaged header
        raise _damaged(path, one_line(error)) from None
    start = stream.tell()
    whole = start + samples * kind.itemsize == size
    if version != (1, 0) or fortran or found != kind or shape != (samples,) or not whole:
        raise _damaged(path, "its layout differs from the manifest's")
    return np.memmap(stream, dtype=kind, mode="r", offset=start, shape=(samples,))


def check_sample_table(
    stream: IO[bytes], path: StoragePath, records: np.ndarray, table: SampleTable, shards: Sequence[Shard]
) -> None:
    """Raise UserError if the digest of the file is not the one in ``table``, or if a record does not fit its tar.

    Reads the whole file, which takes 1 to 2 s per GB.
    """
    if sha256_stream(stream) != table.sha256:
        raise _damaged(path, "its sha256 differs from the manifest's")
    filled = [shard for shard in shards if shard.samples]
    ends = np.cumsum([shard.samples for shard in filled])
    limits = np.array([shard.bytes for shard in filled], dtype=np.uint64)
    first = shard = 0
    while shard < len(filled):  # each pass checks several whole shards
        after = max(shard + 1, int(np.searchsorted(ends, first + CHECKED_AT_A_TIME, side="right")))
        part = records[first : ends[after - 1]]
        starts = np.concatenate([[0], ends[shard : after - 1] - first])
        reach = np.maximum.reduceat(part["offset"] + part["size"], starts)
        if part["offset"].max() > limits.max() or (reach > limits[shard:after]).any():
            raise _damaged(path, "a sample is outside of its tar")
        pixels = part["height"].astype(np.uint64) * part["width"]
        if not pixels.min() or pixels.max() > MAX_PIXELS:
            raise _damaged(path, f"a sample has no pixels, or more than {MAX_PIXELS}")
        if table.weighted and not ((part["weight"] >= WEIGHTS[0]) & (part["weight"] <= WEIGHTS[1])).all():
            raise _damaged(path, f"a sample has a weight that is not from {WEIGHTS[0]:g} to {WEIGHTS[1]:g}")
        first, shard = int(ends[after - 1]), after


def _damaged(path: StoragePath, problem: str) -> UserError:
    remedy = "copy it again, or delete it and run the set's build (or `posters shards index`) again"
    return UserError("set-damaged", f"{path} is damaged ({problem}); {remedy}")


def _multi_hot(labels: pa.ListArray, width: int) -> np.ndarray:
    counts = np.diff(labels.offsets.to_numpy())
    targets = np.zeros((len(labels), width), dtype=np.uint8)
    targets[np.repeat(np.arange(len(labels)), counts), labels.flatten().to_numpy()] = 1
    return targets
