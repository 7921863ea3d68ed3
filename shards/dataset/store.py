"""Access to the files of a shard set, in a folder or at a URL with a cache on this node.

open_store("data/set")           → LocalShards    opens the files in the folder
open_store("s3://bucket/set")    → RemoteShards   downloads each file to the cache when it is first needed
open_store("data/index")         → RemoteTars     if the manifest says that the tars are at a URL (tars_elsewhere.py)
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from shards.dataset.cache_options import CacheOptions, RemoteFile
from shards.dataset.index import SUFFIX as INDEX
from shards.dataset.index import index_of, index_path, read_index_of, require_index
from shards.dataset.manifest import NAME as MANIFEST
from shards.dataset.manifest import Manifest, Shard
from shards.dataset.sample_table import SampleTable
from shards.dataset.set_files import check_indexes, check_size, local_records, mapped_records
from shards.dataset.tars_elsewhere import place_in
from shards.errors import UserError, one_line
from shards.storage.files import fingerprint, small_bytes
from shards.storage.paths import StoragePath, is_remote, storage_path
from shards.storage.retry import may_pass
from shards.storage.retrying_read import FIRST_RETRY_SECONDS

if TYPE_CHECKING:
    from shards.dataset.cache import Cache

log = logging.getLogger(__name__)


class ShardStore(ABC):
    """The files of one shard set."""

    def __init__(self, root: StoragePath, tars: str | None = None, remote_timeout: float = FIRST_RETRY_SECONDS) -> None:
        """``tars``: folder or URL of the tars. None if the tars are in ``root``, with all other files of the set."""
        self.root, self._place, self._remote_timeout = root, tars, remote_timeout
        self.tars = root if tars is None else storage_path(tars)

    def __str__(self) -> str:
        return str(self.root)

    def where(self, shard: Shard) -> str:
        """Return the path or URL of a shard's tar, for messages."""
        return str(self.tars / shard.name)

    def manifest(self) -> Manifest:
        """Read and return the manifest of the set. Raises UserError if the tars are at another place than before."""
        manifest = Manifest.read(self.root, self._remote_timeout)
        if manifest.tars != self._place:
            path = self.root / MANIFEST
            if is_remote(self.root):
                remedy = "copy the set to a folder, without the tars"
                raise UserError("url-refused", f"{path} has its tars at another place, which is not followed; {remedy}")
            raise UserError("file-changed", f"{path} was replaced while it was read; start again")
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
    def whole_tar(self, shard: Shard) -> contextlib.AbstractContextManager[Path]:
        """Return a context manager that yields a local path of a shard's tar. Raises the errors of ``open_tar``."""

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
    """A shard set in a folder. The tars can be in another folder."""

    def __init__(self, root: Path, tars: str | None = None) -> None:
        super().__init__(root, tars)
        self._seen: dict[str, int] = {}  # hash of each tar's inode, size and time at its first check

    def check(self, shards: Sequence[Shard], indexes: bool = False) -> None:
        """Raise UserError if a tar is missing or changed. With ``indexes``, also check the digests of the indexes."""
        for shard in shards:
            self._require_unchanged(self.tars / shard.name, self._checked(shard))
        if indexes:
            check_indexes(self.root, shards)

    def _checked(self, shard: Shard) -> os.stat_result:
        """Return the os.stat result of a tar. Raises UserError if the tar is missing or changed, or has no index."""
        moved = ""
        if self._place is not None:
            moved = f"its set {self.root} has its tars in {self.tars}; if they were moved, correct the field 'tars'"
            moved += f" of {self.root / MANIFEST}"
        facts = check_size(self.tars / shard.name, shard, moved)
        require_index(self.root / shard.name)
        return facts

    def open_tar(self, shard: Shard, stop: threading.Event | None = None) -> int:
        """See ShardStore.open_tar. A UserError is also raised if the tar was replaced after its first check."""
        path = self.tars / shard.name
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
        if self._seen.setdefault(str(path), now) != now:
            remedy = "start again with the current set"
            raise UserError("file-changed", f"shard {path} was replaced while it was read: {remedy}")

    @contextlib.contextmanager
    def whole_tar(self, shard: Shard) -> Iterator[Path]:
        yield self.tars / shard.name

    def index(self, shard: Shard) -> pa.Table:
        self._checked(shard)
        return read_index_of(self.root, shard)

    def records(self, table: SampleTable, shards: Sequence[Shard], genres: int) -> np.ndarray:
        return local_records(self.root, table, shards, genres)


class RemoteShards(ShardStore):
    """A shard set at a URL. Each file is downloaded once per node, when it is first needed."""

    def __init__(self, root: StoragePath, cache: Cache, tars: str | None = None) -> None:
        super().__init__(root, tars, min(FIRST_RETRY_SECONDS, cache.options.remote_timeout))
        self.cache = cache

    def check(self, shards: Sequence[Shard], indexes: bool = False) -> None:
        """Do nothing, because each remote file is checked after its download."""

    def open_tar(self, shard: Shard, stop: threading.Event | None = None) -> int:
        return self.cache.open(self._file(shard), stop)

    def prefetch(self, shard: Shard, stop: threading.Event | None = None) -> bool:
        """Download a shard to the cache. Return whether this call downloaded it. Raises the errors of Cache.fetch."""
        return self.cache.fetch(self._file(shard), stop=stop)

    @contextlib.contextmanager
    def whole_tar(self, shard: Shard) -> Iterator[Path]:
        descriptor = self.open_tar(shard)  # the cache does not delete an open file
        try:
            yield self.cache.folder / self._file(shard).name
        finally:
            os.close(descriptor)

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
            return mapped_records(stream, file.place, table, shards, genres)

    def _file(self, shard: Shard) -> RemoteFile:
        return RemoteFile(self.tars / shard.name, shard.bytes, shard.sha256)


class RemoteTars(RemoteShards):
    """A shard set in a folder whose tars are at a URL. Only the tars go through the cache."""

    root: Path

    def check(self, shards: Sequence[Shard], indexes: bool = False) -> None:
        """Raise UserError if an index is missing. With ``indexes``, also check the digests of the indexes."""
        for shard in shards:
            require_index(self.root / shard.name)
        if indexes:
            check_indexes(self.root, shards)

    def open_tar(self, shard: Shard, stop: threading.Event | None = None) -> int:
        with self._moved():
            return super().open_tar(shard, stop)

    def prefetch(self, shard: Shard, stop: threading.Event | None = None) -> bool:
        with self._moved():
            return super().prefetch(shard, stop)

    def index(self, shard: Shard) -> pa.Table:
        return read_index_of(self.root, shard)

    def records(self, table: SampleTable, shards: Sequence[Shard], genres: int) -> np.ndarray:
        return local_records(self.root, table, shards, genres)

    @contextlib.contextmanager
    def _moved(self) -> Iterator[None]:
        """Add the remedy to the error of a missing tar."""
        try:
            yield
        except UserError as error:
            if error.code != "path-missing":
                raise
            remedy = f"if the tars were moved, correct the field 'tars' of {self.root / MANIFEST}"
            raise UserError(error.code, f"{error}; {remedy}") from None


#: A shard set: its path, its URL, or its store. A store can have other cache options than the default ones.
ShardsAt: TypeAlias = str | StoragePath | ShardStore


def open_store(shards: ShardsAt, cache: CacheOptions | None = None) -> ShardStore:
    """Return the store of a shard set. Raises UserError for a URL that this system cannot use."""
    if isinstance(shards, ShardStore):
        return shards
    root, tars = storage_path(shards), None
    if not is_remote(root):
        with contextlib.suppress(OSError, UserError):  # the method ``manifest`` of the store raises the error
            tars = place_in(small_bytes(root / MANIFEST))
    return store_at(root, tars, cache)


def store_at(root: StoragePath, tars: str | None, cache: CacheOptions | None = None) -> ShardStore:
    """Return the store of a shard set whose manifest has the field ``tars``. Raises the errors of ``open_store``."""
    place = root if tars is None else storage_path(tars)
    if not is_remote(place):
        return LocalShards(root, tars)
    if sys.platform == "win32":
        raise UserError("environment", f"{place}: shards at a URL need a POSIX system; copy them to a folder first")
    from shards.dataset.cache import Cache

    kept = Cache(cache or CacheOptions())
    return RemoteShards(root, kept) if tars is None else RemoteTars(root, kept, tars)


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
