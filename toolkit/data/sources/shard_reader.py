"""Read samples of one split in any order. A table has the offset of each sample in its tar file.

The table of a split (shards/dataset/sample_table.py) is memory-mapped, so memory per process does not grow with the
set. A limited number of tars is open at a time. Image bytes are read with pread into memory of the reading thread. The
tars are not memory-mapped: a page fault holds the GIL, and a tar that becomes shorter kills the process (SIGBUS).
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from shards.dataset.index import field_ranges
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest, Shard, column_sums
from shards.dataset.sample_table import SampleTable, multi_hot_of, records_of
from shards.dataset.store import LocalShards, RemoteShards, ShardsAt, ShardStore, open_store
from shards.errors import UserError
from shards.storage.retry import may_pass, retried, unreadable
from toolkit.data.sources.file_handles import Handles
from toolkit.data.sources.prefetch import Prefetcher
from toolkit.data.sources.thread_buffer import scratch

#: Largest number of open tars per process. The cache of the node does not delete a tar while it is open.
OPEN_TARS = 128
#: If samples are read in order, this number of remote shards is kept open, and the same number is prefetched.
IN_ORDER = 3


class ShardReader:
    """Reader of some shards. Samples are numbered from 0, in the order of shards and indexes. Many threads can read.

    The constructor raises UserError for a missing, truncated or changed tar or table. It compares the sizes of tars and
    the digests of tables and indexes with the manifest. Files at a URL are checked at their first use.
    """

    def __init__(
        self,
        shards_at: ShardsAt,
        shards: Sequence[Shard],
        labels: LabelSet,
        records: np.ndarray | None = None,
        classes: bool = False,
        table: SampleTable | None = None,
    ) -> None:
        """``records``: the rows of the sample table for exactly these shards. If None, the indexes are read instead.

        classes: whether each sample has exactly one label, its class. table: the sample table of ``records``, if they
        are a whole table, so that another process maps the same file instead of getting a copy.
        """
        self.store, self.shards, self.labels = open_store(shards_at), list(shards), labels
        self.classes, self._table = classes, table
        self.store.check(self.shards)
        if not sum(shard.samples for shard in self.shards):
            raise UserError("set-split", f"the shards in {self.store} contain no samples")
        if records is None:
            records = np.concatenate([records_of(self.store.index(s), len(labels)) for s in self.shards])
        self.records = records.view(np.ndarray)  # same memory, but faster access than through np.memmap
        self.shard_sizes = [shard.samples for shard in self.shards]
        self._ends = list(itertools.accumulate(self.shard_sizes))
        self._offsets, self._sizes = self.records["offset"], self.records["size"]
        # The functions below do not refer to self, so that an unused reader is freed and closes its files at once.
        store, numbered, stop = self.store, self.shards, threading.Event()
        self._stop = stop
        self._handles = Handles(lambda number: store.open_tar(numbered[number], stop), OPEN_TARS)
        self._index = lru_cache(maxsize=4)(lambda number: store.index(numbered[number]))
        self._keys = cache(lambda: _column(store, numbered, "key"))
        self._prefetcher: Prefetcher | None = None

    @classmethod
    def of_split(cls, shards_at: ShardsAt, split: str, manifest: Manifest | None = None) -> ShardReader:
        """Return a reader of all samples of a split of a shard set."""
        store = open_store(shards_at)
        manifest = manifest or store.manifest()
        shards, table = manifest.of_split(split), manifest.table_of(split)
        return _reopened(cls, store, shards, manifest.labels, bool(manifest.source.get("classes")), table)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what another process needs to open the same shards. Raises UserError for shards at a URL."""
        if isinstance(self.store, RemoteShards):
            what = f"{self.store} has its shards at a URL, which only the process that opened them reads"
            raise UserError("option-conflict", f"{what}; use threads, or copy the set to a local disk")
        if self._table is None:
            return type(self), (self.store, self.shards, self.labels, self.records, self.classes)
        return _reopened, (type(self), self.store, self.shards, self.labels, self.classes, self._table)

    def __len__(self) -> int:
        return len(self.records)

    def sizes(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the widths and the heights of samples in pixels, each as (n,) int64."""
        records = self.records[indices]
        return records["width"].astype(np.int64), records["height"].astype(np.int64)

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the (n, G) uint8 targets, 0 or 1, of samples."""
        return multi_hot_of(self.records[indices], len(self.labels))

    @property
    def targets(self) -> np.ndarray:
        """Return the (N, G) uint8 targets of all samples. They are computed again at each access."""
        return multi_hot_of(self.records, len(self.labels))

    @property
    def weights(self) -> np.ndarray | None:
        """Return the (N,) float64 sample weights. None if the set has no weights."""
        return self.records["weight"] if "weight" in self.records.dtype.names else None

    def weights_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the (n,) float64 weights of samples in a set with weights."""
        return np.asarray(self.records["weight"][indices])

    @property
    def positives(self) -> np.ndarray:
        """Return the (G,) int64 number of samples of each label."""
        return np.array(column_sums(self.shards, len(self.labels)), dtype=np.int64)

    def shard_of(self, index: int) -> int:
        """Return the number of the shard that contains a sample."""
        return bisect.bisect_right(self._ends, index)

    def read(self, index: int) -> memoryview:
        """Return the encoded image of a sample in writable memory. It is valid until the next read of this thread.

        Temporary errors are retried (shards/storage/retry.py). Raises UserError, which names the shard, if the shard
        cannot be read or is truncated.
        """
        number = self.shard_of(index)
        return self._range(number, int(self._offsets[index]), int(self._sizes[index]), "encoded")

    def field(self, index: int, offset: int, size: int) -> bytes:
        """Return a copy of another member of a sample, from its byte range in the tar. Raises as ``read``."""
        return bytes(self._range(self.shard_of(index), offset, size, "field"))

    def _range(self, number: int, offset: int, size: int, memory: str) -> memoryview:
        """Return ``size`` bytes of a shard, in this thread's memory called ``memory``."""
        try:
            return self._read(number, offset, size, memory)
        except OSError as error:
            what = f"shard {self.store.where(self.shards[number])}"
            if not may_pass(error):
                raise unreadable(what, error) from None
            self._handles.forget(number)  # open the tar again: its file server may have closed it
            try:
                return retried(lambda: self._read(number, offset, size, memory), what, self._stop)
            except OSError as other:
                raise unreadable(what, other) from None

    def _read(self, number: int, offset: int, size: int, memory: str) -> memoryview:
        target = scratch(memory, size).data
        handle = self._handles.take(number)
        try:
            if self._prefetcher is not None:  # the cache keeps the tar from now on, because it is open
                self._prefetcher.reached(number)
            got = _read_at(handle.descriptor, target, offset)
        except OSError:
            self._handles.forget(number)
            raise
        finally:
            self._handles.give_back(handle)
        if got < size:
            tar, what = self.store.where(self.shards[number]), "an image" if memory == "encoded" else "a member"
            raise UserError(
                "tar-damaged",
                f"shard {tar} is truncated: it ends at byte {offset + got}, but its index has {what} of {size} bytes "
                f"at {offset}; copy the shard again, or build the set again",
            )
        return target

    @contextlib.contextmanager
    def in_order(self, prefetch: bool = True) -> Iterator[None]:
        """Prefetch remote shards in a ``with`` block. The code in the block should read all samples in order."""
        self.begin(range(len(self.shards)), (), IN_ORDER, prefetch)
        try:
            yield
        finally:
            self.end()

    def begin(self, numbers: Sequence[int], following: Sequence[int], window: int, prefetch: bool = True) -> None:
        """Prepare to read the shards ``numbers`` in order, then shards ``following``. Has no effect on local shards.

        window: number of shards that are read at the same time. The next ``window`` shards are prefetched.
        prefetch: False if another process of this node prefetches the shards.
        """
        if isinstance(self.store, RemoteShards):
            self._handles.capacity = min(window, OPEN_TARS)
            if prefetch:
                self._prefetcher = self._prefetcher or Prefetcher(self.store, self.shards)
                self._prefetcher.begin(numbers, following, window)

    def end(self) -> None:
        """Close remote shards and stop prefetching, until the next ``begin``."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        if isinstance(self.store, RemoteShards):
            self._handles.close_idle()

    def abandon(self) -> None:
        """Stop all reads. Threads that wait for a remote shard raise Abandoned."""
        self._stop.set()
        self.end()

    def read_ahead(self) -> None:
        """Start loading all local tars into the page cache of the operating system. Return at once."""
        if hasattr(os, "posix_fadvise") and isinstance(self.store, LocalShards):
            for number in range(len(self.shards)):
                with contextlib.suppress(OSError), self._handles.use(number) as descriptor:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)

    def image_bytes(self, index: int) -> bytes:
        """Return a copy of the encoded image of a sample."""
        return bytes(self.read(index))

    def key(self, index: int) -> str:
        """Return the WebDataset key of a sample."""
        return self._name("key", index)

    def sample_id(self, index: int) -> str:
        """Return the user's id of a sample."""
        return self._name("id", index)

    def sample_ids(self) -> list[str]:
        """Return the user's ids of all samples, in order."""
        return [name for number in range(len(self.shards)) for name in self._index(number)["id"].to_pylist()]

    def keys_of(self, indices: np.ndarray) -> list[str]:
        """Return the WebDataset keys of samples. The first call loads the keys of all samples, some 20 bytes each."""
        return self._keys().take(pa.array(indices)).to_pylist()

    def field_ranges(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the (N,) int64 byte offsets and sizes of a member of all samples, such as "txt". -1 if it is missing.

        Raises UserError if an index is missing or damaged.
        """
        parts = [field_ranges(self._index(number), name) for number in range(len(self.shards))]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def members(self, index: int) -> list[str]:
        """Return the names of a sample's members beside its image, such as "json" and "txt"."""
        number = self.shard_of(index)
        row = self._index(number).slice(index - (self._ends[number] - self.shard_sizes[number]), 1).to_pylist()[0]
        fields = [field["name"] for field in row.get("fields") or ()]
        return sorted(fields + ["json"] * (row["json_offset"] >= 0))

    def where(self, index: int) -> str:
        """Return a text for messages, with the shard, the key and the byte offset of a sample."""
        tar = self.store.where(self.shards[self.shard_of(index)])
        return f"{tar} member {self.key(index)!r} at offset {int(self.records[index]['offset'])}"

    def _name(self, column: str, index: int) -> str:
        number = self.shard_of(index)
        table: pa.Table = self._index(number)
        return table[column][int(index) - (self._ends[number] - self.shard_sizes[number])].as_py()


def _reopened(
    kind: type[ShardReader],
    store: ShardStore,
    shards: Sequence[Shard],
    labels: LabelSet,
    classes: bool,
    table: SampleTable | None,
) -> ShardReader:
    """Return a reader of all shards of a sample table, or of ``shards`` without a table."""
    records = None if table is None else store.records(table, shards, len(labels))
    return kind(store, shards, labels, records, classes, table)


def _column(store: ShardStore, shards: Sequence[Shard], name: str) -> pa.Array:
    """Return a column of text of all indexes, in the order of the shards."""
    return pa.concat_arrays([store.index(shard)[name].cast(pa.large_string()).combine_chunks() for shard in shards])


_seek = threading.Lock()


def _read_at(file: int, target: memoryview, offset: int) -> int:
    """Read from ``offset`` until ``target`` is full or the file ends. Return the number of bytes read."""
    done = more = _read_some(file, target, offset)
    while more and done < len(target):  # a network file system may return fewer bytes than requested
        more = _read_some(file, target[done:], offset + done)
        done += more
    return done


def _read_some(file: int, target: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file, [target], offset)
    with _seek:  # Windows has no positioned reads
        os.lseek(file, offset, os.SEEK_SET)
        data = os.read(file, len(target))
    target[: len(data)] = data
    return len(data)
