"""Random access to the samples of one split: the index says where in which tar.

Bytes are read with pread into memory of the reading thread. A memory map would save a copy of some microseconds, but a
page that is not there yet would be fetched while the GIL is held, and a tar that shrinks under a map kills the process.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.errors import UserError
from shards.index import read_index, require_index
from shards.labels import LabelSet
from shards.manifest import Manifest, Shard
from toolkit.data.jpeg import Undecodable
from toolkit.data.scratch import scratch


class ShardReader:
    """Samples 0..n-1 of some shards, in shard order then index order. Safe to read from many threads.

    Raises UserError at construction for a missing, truncated or changed tar or index: sizes are compared with the
    manifest, so that nobody trains for an hour before finding out.
    """

    def __init__(self, folder: Path, shards: list[Shard], labels: LabelSet) -> None:
        self.labels = labels
        self.paths = [folder / shard.name for shard in shards]
        tables = [_checked_index(path, shard) for path, shard in zip(self.paths, shards, strict=True)]
        table = pa.concat_tables(tables) if tables else None
        if table is None or table.num_rows == 0:
            raise UserError(f"the shards in {folder} hold no sample")
        self.shard = np.repeat(np.arange(len(tables)), [t.num_rows for t in tables])
        self.offset = table["image_offset"].to_numpy()
        self.size = table["image_size"].to_numpy()
        self.heights = table["height"].to_numpy().astype(np.int64)
        self.widths = table["width"].to_numpy().astype(np.int64)
        self._keys, self._ids = table["key"], table["id"]
        self.targets = _multi_hot(table["labels"].combine_chunks(), len(labels))
        self.shard_sizes = [t.num_rows for t in tables]
        self._files = [os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)) for path in self.paths]
        weakref.finalize(self, _close, self._files)

    @classmethod
    def of_split(cls, folder: Path, split: str, manifest: Manifest | None = None) -> ShardReader:
        """All samples of a split of a shard set."""
        manifest = manifest or Manifest.read(folder)
        return cls(folder, manifest.of_split(split), manifest.labels)

    def __len__(self) -> int:
        return len(self.offset)

    def read(self, index: int) -> memoryview:
        """The encoded image of a sample, writable, valid until this thread's next read."""
        size = int(self.size[index])
        target = scratch("encoded", size).data
        got = _read_at(self._files[self.shard[index]], target, int(self.offset[index]))
        if got < size:
            raise Undecodable(f"the tar ends after {got} of {size} bytes")
        return target

    def ask_ahead(self) -> None:
        """Ask the system to have all of the tars' bytes in memory before they are read. Returns at once."""
        if hasattr(os, "posix_fadvise"):
            for file in self._files:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of a sample, as a copy to keep."""
        return bytes(self.read(index))

    def key(self, index: int) -> str:
        """WebDataset key of a sample."""
        return self._keys[int(index)].as_py()

    def sample_id(self, index: int) -> str:
        """The user's id of a sample."""
        return self._ids[int(index)].as_py()

    def sample_ids(self) -> list[str]:
        """The user's ids of all samples, in order."""
        return self._ids.to_pylist()

    def where(self, index: int) -> str:
        """Shard, key and byte offset of a sample, for messages."""
        return (
            f"{self.paths[self.shard[index]]} member {self.key(index)!r} at offset {int(self.offset[index])}"
        )


def check_files(path: Path, shard: Shard) -> None:
    """A glance at a shard's files. Raises UserError if the tar is missing, truncated or changed, or has no index."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"shard {path} is missing; copy it again, or build the set again") from None
    if size != shard.bytes:
        state = "truncated" if size < shard.bytes else "changed"
        raise UserError(
            f"shard {path} is {state}: {size} bytes, the manifest says {shard.bytes}; copy it again, or delete it and "
            f"its index and run `posters shards build` again"
        )
    require_index(path)


def _checked_index(path: Path, shard: Shard) -> pa.Table:
    check_files(path, shard)
    table, facts = read_index(path)
    if facts.get("sha256") != shard.sha256 or table.num_rows != shard.samples:
        raise UserError(
            f"the index of {path} belongs to another build than the manifest; build the set again"
        )
    return table


_seek = threading.Lock()


def _read_at(file: int, target: memoryview, offset: int) -> int:
    """Fill ``target`` from ``offset`` on; returns the bytes read, fewer only at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(file, [target], offset)
    with _seek:  # Windows has no positioned reads
        os.lseek(file, offset, os.SEEK_SET)
        data = os.read(file, len(target))
    target[: len(data)] = data
    return len(data)


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _multi_hot(labels: pa.ListArray, width: int) -> np.ndarray:
    """(n, G) uint8 from lists of columns."""
    counts = np.diff(labels.offsets.to_numpy())
    targets = np.zeros((len(labels), width), dtype=np.uint8)
    targets[np.repeat(np.arange(len(labels)), counts), labels.flatten().to_numpy()] = 1
    return targets
