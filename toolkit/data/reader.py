"""Random access to the samples of one split: the index says where, the tar is mapped into memory."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.errors import UserError
from shards.index import read_index
from shards.labels import LabelSet
from shards.manifest import Manifest, Shard


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
        self._maps = [_map(path) for path in self.paths]

    @classmethod
    def of_split(cls, folder: Path, split: str, manifest: Manifest | None = None) -> ShardReader:
        """All samples of a split of a shard set."""
        manifest = manifest or Manifest.read(folder)
        return cls(folder, manifest.of_split(split), manifest.labels)

    def __len__(self) -> int:
        return len(self.offset)

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of a sample."""
        start = int(self.offset[index])
        return self._maps[self.shard[index]][start : start + int(self.size[index])]

    def key(self, index: int) -> str:
        """WebDataset key of a sample."""
        return self._keys[int(index)].as_py()

    def sample_id(self, index: int) -> str:
        """The user's id of a sample."""
        return self._ids[int(index)].as_py()

    def where(self, index: int) -> str:
        """Shard, key and byte offset of a sample, for messages."""
        return (
            f"{self.paths[self.shard[index]]} member {self.key(index)!r} at offset {int(self.offset[index])}"
        )


def _checked_index(path: Path, shard: Shard) -> pa.Table:
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
    table, facts = read_index(path)
    if facts.get("sha256") != shard.sha256 or table.num_rows != shard.samples:
        raise UserError(
            f"the index of {path} belongs to another build than the manifest; build the set again"
        )
    return table


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _multi_hot(labels: pa.ListArray, width: int) -> np.ndarray:
    """(n, G) uint8 from lists of columns."""
    counts = np.diff(labels.offsets.to_numpy())
    targets = np.zeros((len(labels), width), dtype=np.uint8)
    targets[np.repeat(np.arange(len(labels)), counts), labels.flatten().to_numpy()] = 1
    return targets
