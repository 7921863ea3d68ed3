"""The samples of a split as one file of fixed-width records, which readers map instead of reading.

    SPLIT-FINGERPRINT.samples.npy      a NumPy array of one record a sample, in shard order then index order

Made from the Parquet indexes at the end of a build. A record says where the image lies, its size in pixels, and its
genres as bits: 20 bytes and one for every eight genres. Start-up is then a matter of opening the file, and memory that
of the pages that are looked at, which all processes of a node share. The fingerprint in the name is that of the
split's shards: a table can not be taken for another build's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from shards.errors import UserError, one_line
from shards.files import atomic_write, fingerprint, names_in, remove_file
from shards.index import read_index
from shards.places import Place

SUFFIX = ".samples.npy"


@dataclass(frozen=True)
class SampleTable:
    """A split's table, as the manifest names it."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.bytes, int) or not self.name.endswith(SUFFIX) or "/" in self.name:
            raise TypeError(f"{self.name!r} is no table of samples")


def record_type(genres: int) -> np.dtype[Any]:
    """Of one sample: offset and size of its image in the tar (bytes), height and width (pixels), genres (bits)."""
    return np.dtype(
        [
            ("offset", "<u8"),
            ("size", "<u4"),
            ("height", "<u4"),
            ("width", "<u4"),
            ("genres", "u1", (max(1, -(-genres // 8)),)),
        ]
    )


def records_of(table: pa.Table, genres: int) -> np.ndarray:
    """(n,) records of the samples of an index table (shards/index.py)."""
    records = np.zeros(table.num_rows, dtype=record_type(genres))
    records["offset"] = table["image_offset"].to_numpy()
    records["size"] = table["image_size"].to_numpy()
    records["height"] = table["height"].to_numpy()
    records["width"] = table["width"].to_numpy()
    records["genres"][:, : -(-genres // 8)] = np.packbits(
        _multi_hot(table["labels"].combine_chunks(), genres), axis=1
    )
    return records


def multi_hot_of(records: np.ndarray, genres: int) -> np.ndarray:
    """(n, G) uint8 of 0 and 1 of some records."""
    return np.unpackbits(records["genres"], axis=1, count=genres) if genres else _none(records)


def table_name(split: str, sha256s: Sequence[str], genres: Sequence[str]) -> str:
    """Name of a split's table; another one for any other shards, order of shards, or genres."""
    return f"{split}-{fingerprint([list(genres), list(sha256s)])[:12]}{SUFFIX}"


def write_sample_table(
    folder: Place, split: str, shards: Sequence[tuple[str, str, int]], genres: Sequence[str]
) -> SampleTable:
    """Write a split's table from the indexes of its shards, given as (name, sha256, samples). Memory O(one shard).

    Raises UserError for an index that is absent or of another shard.
    """
    total = sum(samples for _, _, samples in shards)
    path = folder / table_name(split, [sha256 for _, sha256, _ in shards], genres)
    with atomic_write(path) as stream:
        out = _Counted(stream)
        header = {"descr": record_type(len(genres)).descr, "fortran_order": False, "shape": (total,)}
        np.lib.format.write_array_header_1_0(out, header)
        for name, sha256, samples in shards:
            table, facts = read_index(folder / name)
            if facts.get("sha256") != sha256 or table.num_rows != samples:
                raise UserError(f"the index of {folder / name} belongs to another build; build the set again")
            out.write(records_of(table, len(genres)).tobytes())
    return SampleTable(path.name, out.bytes, out.digest.hexdigest())


def remove_other_tables(folder: Place, wanted: Sequence[SampleTable]) -> None:
    """Delete tables of an earlier build."""
    names = {table.name for table in wanted}
    for name in names_in(folder):
        if name.endswith(SUFFIX) and name not in names:
            remove_file(folder / name)


def open_sample_table(path: Path, table: SampleTable, samples: int, genres: int) -> np.ndarray:
    """(n,) records, mapped read-only. Raises UserError for a file that is missing or not as the manifest says."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it again, or run the set's build again") from None
    problem = "" if size == table.bytes else f"{size} bytes, the manifest says {table.bytes}"
    records = None
    try:
        if not problem:
            records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        problem = one_line(error)
    if records is None or records.dtype != record_type(genres) or records.shape != (samples,):
        problem = problem or "another layout than the manifest's"
        raise UserError(f"{path} is damaged ({problem}); copy it again, or delete it and run the build again")
    return records


class _Counted:
    """Writes on and keeps count and digest of what was written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.bytes, self.digest = stream, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        return self.stream.write(data)


def _multi_hot(labels: pa.ListArray, width: int) -> np.ndarray:
    """(n, G) uint8 from lists of columns."""
    counts = np.diff(labels.offsets.to_numpy())
    targets = np.zeros((len(labels), width), dtype=np.uint8)
    targets[np.repeat(np.arange(len(labels)), counts), labels.flatten().to_numpy()] = 1
    return targets


def _none(records: np.ndarray) -> np.ndarray:
    return np.zeros((len(records), 0), dtype=np.uint8)
