"""Random access to the samples of one split: a table says where in which tar.

The table of a split (shards/dataset/sample_table.py) is mapped, not read: memory per process does not grow with the
set. Only a few tars are open at a time. Image bytes are read with pread into memory of the reading thread. A memory map
of the tars would save a copy of some microseconds, but a page that is not there yet would be fetched while the GIL is
held, and a tar that shrinks under a map kills the process.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest, Shard, column_sums
from shards.dataset.sample_table import multi_hot_of, records_of
from shards.dataset.store import LocalShards, RemoteShards, ShardsAt, open_store
from shards.errors import UserError
from shards.storage.retry import may_pass, retried, unreadable
from toolkit.data.sources.file_handles import Handles
from toolkit.data.sources.prefetch import Prefetcher
from toolkit.data.sources.thread_buffer import scratch

#: Tars that a process has open at a time. A remote one that is open stays in the node's cache.
OPEN_TARS = 128
#: Remote shards that are held, and that are fetched ahead, where samples are read one after the other.
IN_ORDER = 3


class ShardReader:
    """Samples 0..n-1 of some shards, in shard order then index order. Safe to read from many threads.

    Raises UserError at construction for a missing, truncated or changed tar or table: sizes of tars, digests of tables
    and indexes are compared with the manifest's, so that no hour of training comes before the error. (At a URL: when
    the file is first asked for.)
    """

    def __init__(
        self, shards_at: ShardsAt, shards: Sequence[Shard], labels: LabelSet, records: np.ndarray | None = None
    ) -> None:
        """``records``: the samples' records, if there is a table of just these shards; else their indexes are read."""
        self.store, self.shards, self.labels = open_store(shards_at), list(shards), labels
        self.store.check(self.shards)
        if not sum(shard.samples for shard in self.shards):
            raise UserError("set-split", f"the shards in {self.store} hold no sample")
        if records is None:
            records = np.concatenate([records_of(self.store.index(s), len(labels)) for s in self.shards])
        self.records = records.view(np.ndarray)  # the same memory; looking into a memmap is slow
        self.shard_sizes = [shard.samples for shard in self.shards]
        self._ends = list(itertools.accumulate(self.shard_sizes))
        self._offsets, self._sizes = self.records["offset"], self.records["size"]
        # Not self: a reader that nobody needs closes its files at once.
        store, numbered, stop = self.store, self.shards, threading.Event()
        self._stop = stop
        self._handles = Handles(lambda number: store.open_tar(numbered[number], stop), OPEN_TARS)
        self._index = lru_cache(maxsize=4)(lambda number: store.index(numbered[number]))
        self._prefetcher: Prefetcher | None = None

    @classmethod
    def of_split(cls, shards_at: ShardsAt, split: str, manifest: Manifest | None = None) -> ShardReader:
        """All samples of a split of a shard set."""
        store = open_store(shards_at)
        manifest = manifest or store.manifest()
        shards, table = manifest.of_split(split), manifest.table_of(split)
        records = None if table is None else store.records(table, shards, len(manifest.labels))
        return cls(store, shards, manifest.labels, records)

    def __len__(self) -> int:
        return len(self.records)

    def sizes(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((n,), (n,)) int64 widths and heights of samples, pixels."""
        records = self.records[indices]
        return records["width"].astype(np.int64), records["height"].astype(np.int64)

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        """(n, G) uint8 of 0 and 1: the genres of samples."""
        return multi_hot_of(self.records[indices], len(self.labels))

    @property
    def targets(self) -> np.ndarray:
        """(N, G) uint8 genres of all samples, made anew at every call: for splits that are looked at as a whole."""
        return multi_hot_of(self.records, len(self.labels))

    @property
    def positives(self) -> np.ndarray:
        """(G,) int64 samples of each genre."""
        return np.array(column_sums(self.shards, len(self.labels)), dtype=np.int64)

    def shard_of(self, index: int) -> int:
        """The number of the shard that holds a sample."""
        return bisect.bisect_right(self._ends, index)

    def read(self, index: int) -> memoryview:
        """The encoded image of a sample, writable, valid until this thread's next read.

        What fails in passing is read again (shards/storage/retry.py). Raises UserError, which names the shard, for one
        that cannot be read or ends before the sample does: neither says anything of an image.
        """
        try:
            return self._read(index)
        except OSError as error:
            number = self.shard_of(index)
            what = f"shard {self.store.where(self.shards[number])}"
            if not may_pass(error):
                raise unreadable(what, error) from None
            self._handles.forget(number)  # its server may not know the open file any more
            try:
                return retried(lambda: self._read(index), what, self._stop)
            except OSError as other:
                raise unreadable(what, other) from None

    def _read(self, index: int) -> memoryview:
        number, size = self.shard_of(index), int(self._sizes[index])
        target = scratch("encoded", size).data
        handle = self._handles.take(number)
        try:
            if self._prefetcher is not None:  # after it is held: what comes next could take its room
                self._prefetcher.reached(number)
            got = _read_at(handle.descriptor, target, int(self._offsets[index]))
        except OSError:
            self._handles.forget(number)
            raise
        finally:
            self._handles.give_back(handle)
        if got < size:
            tar, offset = self.store.where(self.shards[number]), int(self._offsets[index])
            raise UserError(
                "tar-damaged",
                f"shard {tar} is truncated: it ends at byte {offset + got}, and its index has an image of {size} bytes "
                f"at {offset}; copy it again, or build the set again",
            )
        return target

    @contextlib.contextmanager
    def in_order(self, prefetch: bool = True) -> Iterator[None]:
        """While the block runs, samples are read from the first to the last: remote shards are fetched ahead."""
        self.begin(range(len(self.shards)), (), IN_ORDER, prefetch)
        try:
            yield
        finally:
            self.rest()

    def begin(self, numbers: Sequence[int], following: Sequence[int], window: int, prefetch: bool = True) -> None:
        """Reading begins to need remote shards in this order, then the ``following``; local ones are where they are.

        window: shards that are read at a time. So many are held in the cache, and so many fetched ahead.
        prefetch: False where another process of this node does it.
        """
        if isinstance(self.store, RemoteShards):
            self._handles.capacity = min(window, OPEN_TARS)
            if prefetch:
                self._prefetcher = self._prefetcher or Prefetcher(self.store, self.shards)
                self._prefetcher.begin(numbers, following, window)

    def rest(self) -> None:
        """Let go of remote shards and stop fetching, until somebody reads again."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        if isinstance(self.store, RemoteShards):
            self._handles.close_idle()

    def abandon(self) -> None:
        """Nobody reads any more: who waits for a remote shard gives up, with Abandoned."""
        self._stop.set()
        self.rest()

    def ask_ahead(self) -> None:
        """Ask the system to have all of the tars' bytes in memory before they are read. Returns at once."""
        if hasattr(os, "posix_fadvise") and isinstance(self.store, LocalShards):
            for number in range(len(self.shards)):
                with contextlib.suppress(OSError), self._handles.use(number) as descriptor:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of a sample, as a copy to keep."""
        return bytes(self.read(index))

    def key(self, index: int) -> str:
        """WebDataset key of a sample."""
        return self._name("key", index)

    def sample_id(self, index: int) -> str:
        """The user's id of a sample."""
        return self._name("id", index)

    def sample_ids(self) -> list[str]:
        """The user's ids of all samples, in order."""
        return [name for number in range(len(self.shards)) for name in self._index(number)["id"].to_pylist()]

    def where(self, index: int) -> str:
        """Shard, key and byte offset of a sample, for messages."""
        tar = self.store.where(self.shards[self.shard_of(index)])
        return f"{tar} member {self.key(index)!r} at offset {int(self.records[index]['offset'])}"

    def _name(self, column: str, index: int) -> str:
        number = self.shard_of(index)
        table: pa.Table = self._index(number)
        return table[column][int(index) - (self._ends[number] - self.shard_sizes[number])].as_py()


_seek = threading.Lock()


def _read_at(file: int, target: memoryview, offset: int) -> int:
    """Fill ``target`` from ``offset`` on; returns the bytes read, fewer only at the end of the file."""
    done = more = _read_some(file, target, offset)
    while more and done < len(target):  # a network file system may answer with a part
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
