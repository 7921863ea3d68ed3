"""Access to the files of a shard set, in a folder or at a URL with a cache on this node.

open_store("data/set")           → LocalShards    opens the files in the folder
open_store("s3://bucket/set")    → RemoteShards   downloads each file to the cache when it is first needed
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from shards.dataset.cache_options import CacheOptions, RemoteFile
from shards.dataset.checked_files import once_per_node
from shards.dataset.index import SUFFIX as INDEX
from shards.dataset.index import index_bytes, index_of, index_path, read_index_of, require_digest, require_index
from shards.dataset.manifest import Manifest, Shard
from shards.dataset.sample_table import SampleTable, check_sample_table, map_sample_table, open_sample_table
from shards.errors import UserError, one_line
from shards.storage.files import fingerprint
from shards.storage.paths import StoragePath, is_remote, storage_path
from shards.storage.retry import may_pass
from shards.storage.retrying_read import FIRST_RETRY_SECONDS

if TYPE_CHECKING:
    from shards.dataset.cache import Cache

log = logging.getLogger(__name__)


class ShardStore(ABC):
    """The files of one shard set."""

    def __init__(self, root: StoragePath, remote_timeout: float = FIRST_RETRY_SECONDS) -> None:
        self.root, self._remote_timeout = root, remote_timeout

    def __str__(self) -> str:
        return str(self.root)

    def where(self, shard: Shard) -> str:
        """Return the path or URL of a shard's tar, for messages."""
        return str(self.root / shard.name)

    def manifest(self) -> Manifest:
        """Read and return the manifest of the set."""
        manifest = Manifest.read(self.root, self._remote_timeout)
        warn_of_unknown_indexes(self.root, manifest)
        return manifest

    @abstractmethod
    def check(self, shards: Sequence[Shard], indexes: bool = False) -> None:
        """Raise UserError if a file is missing or changed. ``indexes``: whether to check the indexes as well."""

    @abstractmethod
    def open_tar(self, shard: Shard, stop: threading.Event | None = None) -> int:
        """Return a descriptor of a shard's tar, which the caller must close.

        Raises OSError for a temporary failure (retry.py), and UserError if the tar cannot be opened for another reason.
        Raises Abandoned soon after ``stop`` is set.
        """

    @abstractmethod
    def index(self, shard: Shard) -> pa.Table:
        """Return the index of a shard. Raises UserError if the index is missing, damaged or from another build."""

    @abstractmethod
    def records(self, table: SampleTable, shards: Sequence[Shard], genres: int) -> np.ndarray:
        """Map a split's sample table (sample_table.py) into memory. Return the records as an array (n,).

        shards: all shards of the split. The first process of a node checks the digest. Raises UserError if the file is
        missing, or if the digest is not the one in the manifest.
        """


class LocalShards(ShardStore):
    """A shard set in a folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._seen: dict[str, int] = {}  # hash of each tar's inode, size and time at its first check

    def check(self, shards: Sequence[Shard], indexes: bool = False) -> None:
        """Raise UserError if a tar is missing or changed. With ``indexes``, also check the digests of the indexes."""
        for shard in shards:
            path = self.root / shard.name
            self._require_unchanged(path, check_files(path, shard))
        if indexes:
            with_digest = [shard for shard in shards if shard.index_sha256 is not None]
            paths = [index_path(self.root / shard.name) for shard in with_digest]
            expected = fingerprint([shard.index_sha256 for shard in with_digest])
            once_per_node([(path, path.stat()) for path in paths], expected, lambda: self._check_indexes(with_digest))

    def _check_indexes(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            tar = self.root / shard.name
            require_digest(index_bytes(tar), index_path(tar), shard)

    def open_tar(self, shard: Shard, stop: threading.Event | None = None) -> int:
        """See ShardStore.open_tar. A UserError is also raised if the tar was replaced after its first check."""
        path = self.root / shard.name
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            if may_pass(error):
                raise
            raise UserError("path-unreadable", f"shard {path} cannot be opened: {one_line(error)}") from None
        try:
            self._require_unchanged(path, os.fstat(descriptor))
        except UserError:
            os.close(descriptor)
            raise
        return descriptor

    def _require_unchanged(self, path: Path, facts: os.stat_result) -> None:
        now = hash((facts.st_ino, facts.st_size, facts.st_mtime_ns))
        if self._seen.setdefault(path.name, now) != now:
            remedy = "start again with the current set"
            raise UserError("file-changed", f"shard {path} was replaced while it was read: {remedy}")

    def index(self, shard: Shard) -> pa.Table:
        check_files(self.root / shard.name, shard)
        return read_index_of(self.root, shard)

    def records(self, table: SampleTable, shards: Sequence[Shard], genres: int) -> np.ndarray:
        path = self.root / table.name
        with open_sample_table(path) as stream:
            return _records(stream, path, table, shards, genres)


class RemoteShards(ShardStore):
    """A shard set at a URL. Each file is downloaded once per node, when it is first needed."""

    def __init__(self, root: StoragePath, cache: Cache) -> None:
        super().__init__(root, min(FIRST_RETRY_SECONDS, cache.options.remote_timeout))
        self.cache = cache

    def check(self, shards: Sequence[Shard], indexes: bool = False) -> None:
        """Do nothing, because each remote file is checked after its download."""

    def open_tar(self, shard: Shard, stop: threading.Event | None = None) -> int:
        return self.cache.open(self._file(shard), stop)

    def prefetch(self, shard: Shard, stop: threading.Event | None = None) -> bool:
        """Download a shard to the cache. Return whether this call downloaded it. Raises the errors of Cache.fetch."""
        return self.cache.fetch(self._file(shard), stop=stop)

    def index(self, shard: Shard) -> pa.Table:
        source = index_path(self.root / shard.name)
        if shard.index_sha256 is not None:
            file = RemoteFile(source, shard.index_bytes, shard.index_sha256)
            with os.fdopen(self.cache.open(file), "rb") as stream:
                return index_of(stream.read(), source, shard)
        # The manifest has no digest of the index. So the name of the cached copy identifies this shard at this URL.
        name = fingerprint([str(self.root), asdict(shard)]) + INDEX
        return self.cache.checked(source, name, lambda data: index_of(data, source, shard))

    def records(self, table: SampleTable, shards: Sequence[Shard], genres: int) -> np.ndarray:
        file = RemoteFile(self.root / table.name, table.bytes, table.sha256)
        # The mapping stays valid if the cache deletes the file.
        with os.fdopen(self.cache.open(file), "rb") as stream:
            return _records(stream, file.place, table, shards, genres)

    def _file(self, shard: Shard) -> RemoteFile:
        return RemoteFile(self.root / shard.name, shard.bytes, shard.sha256)


#: A shard set: its path, its URL, or its store. A store can have other cache options than the default ones.
ShardsAt: TypeAlias = str | StoragePath | ShardStore


def open_store(shards: ShardsAt, cache: CacheOptions | None = None) -> ShardStore:
    """Return the store of a shard set. Raises UserError for a URL that this system cannot use."""
    if isinstance(shards, ShardStore):
        return shards
    root = storage_path(shards)
    if not is_remote(root):
        return LocalShards(root)
    if sys.platform == "win32":
        raise UserError("environment", f"{root}: shards at a URL need a POSIX system; copy them to a folder first")
    from shards.dataset.cache import Cache

    return RemoteShards(root, Cache(cache or CacheOptions()))


def check_files(path: Path, shard: Shard) -> os.stat_result:
    """Return the os.stat result of a tar. Raises UserError if the tar is missing, has a wrong size or has no index."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise UserError("set-missing", f"shard {path} is missing; copy it again, or build the set again") from None
    if (size := facts.st_size) != shard.bytes:
        state = "truncated" if size < shard.bytes else "changed"
        what = f"shard {path} is {state}: {size} bytes, but the manifest says {shard.bytes}"
        remedy = "copy it again, or delete it and its index and run `posters shards build` again"
        raise UserError("set-damaged", f"{what}; {remedy}")
    require_index(path)
    return facts


def _records(
    stream: IO[bytes], path: StoragePath, table: SampleTable, shards: Sequence[Shard], genres: int
) -> np.ndarray:
    """Return the records of an open sample table, mapped into memory. The table is checked once per node."""
    records = map_sample_table(stream, path, table, sum(shard.samples for shard in shards), genres)
    limits = np.array([(shard.samples, shard.bytes) for shard in shards], dtype=np.int64)
    expected = table.sha256 + hashlib.sha256(limits.tobytes()).hexdigest()
    seen = [(path, os.fstat(stream.fileno()))]
    once_per_node(seen, expected, lambda: check_sample_table(stream, path, records, table, shards))
    return records


_warned: set[str] = set()


def warn_of_unknown_indexes(root: StoragePath, manifest: Manifest) -> None:
    """Warn if the manifest has no digests of the indexes. Only rank 0 warns, and only once for each set."""
    if str(root) in _warned or os.environ.get("RANK", "0") != "0":
        return
    if any(shard.index_sha256 is None for shard in manifest.shards):
        _warned.add(str(root))
        how = ", with the same options as before" if manifest.source.get("indexed") else ""
        where = "LOCAL_FOLDER" if is_remote(root) else root
        message = (
            "an earlier version wrote %s: its manifest has no digests of its indexes, so changes of indexes are not "
            "detected; add the digests with `posters shards index %s`%s"
        )
        log.warning(message, root, where, how)
