"""Cache of remote files on this node. Each file is fetched once. The least recently used file is deleted first.

    CACHE/SHA256.tar           a complete file, named after its digest, so that shard sets share equal files
    CACHE/SHA256.tar.partial   partial file (an unfinished download). Its full size is reserved at the start
    CACHE/SHA256.tar.failed    the error of a failed download, for other processes that wait for the file
    CACHE/.room                lock file, locked while a process deletes old files or renames a partial file

Processes lock these files (file_locks.py). The operating system releases a lock when its process ends.

- A download holds an exclusive lock on the partial file. Other processes wait, and then use the complete file. A
  partial file without a lock was left by a killed process and is deleted.
- A reader holds a shared lock on the complete file. A locked file is not deleted.

A file must belong to this user (cache_locks.py). Its digest is checked once per node, after the download or at the
first use. A special modification time marks a checked file. The access time is the time of the last use.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import TypeVar, get_args

from shards.dataset.cache_locks import FAILED, OwnFiles, held_for_reading, held_partial, stamp, write_own
from shards.dataset.cache_options import CacheOptions, RemoteFile
from shards.dataset.cache_room import CacheSpace
from shards.errors import Code, UserError, one_line
from shards.storage.files import sha256_stream
from shards.storage.paths import StoragePath
from shards.storage.retry import retried
from shards.storage.retrying_read import MAX_SMALL_BYTES, RetryBudget, read_blocks, read_small

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")

#: Seconds between two checks whether another process has fetched a file.
POLL_SECONDS = 0.05
#: Shortest time in seconds between two updates of a file's time of last use, because each update is a write.
USE_NOTE_SECONDS = 1.0
#: Largest number of downloads of a file if the digest differs from the digest in the manifest.
WHOLE_TRIES = 3
#: Seconds after a failed download. In this time, other threads of the process raise the same error without a download.
FAILURE_SECONDS = 30.0
#: Largest number of tries to open a file. Other processes may delete the file between its download and its opening.
OPEN_TRIES = 100
_key = attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns")
_SMALL = re.compile(r"\w[\w.-]{0,200}", re.ASCII)


class Cache:
    """Cache of remote files in one folder. Many threads and processes can use the folder at the same time.

    Errors of the folder become a UserError that names the folder. Temporary failures are retried (retry.py).
    """

    def __init__(self, options: CacheOptions) -> None:
        self.options, self.folder = options, options.path
        self._noted: dict[str, float] = {}
        self._failures: dict[str, tuple[float, Code, str]] = {}
        self._checked: set[tuple[int, ...]] = set()
        with self._own_errors():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files = OwnFiles(self.folder)
            self._keep_private()
        self._space = CacheSpace(options, self._files)
        self._writable = os.access(self.folder, os.W_OK)

    def open(self, file: RemoteFile, stop: threading.Event | None = None) -> int:
        """Return a descriptor of the complete file, after a download if needed. The descriptor locks the file."""
        path = self.folder / file.name
        for _ in range(OPEN_TRIES):
            with self._own_errors():
                descriptor = retried(lambda: self._opened(path, file), f"{path} in the cache", stop)
            if descriptor is not None:
                return descriptor
            self.fetch(file, over_limit=True, stop=stop)
        gone = f"{file.name} disappears right after each download"
        raise UserError("cache", f"the cache {self.folder} cannot be used: {gone}; choose another with --cache-dir")

    def _opened(self, path: Path, file: RemoteFile) -> int | None:
        if (descriptor := held_for_reading(path, self._files)) is None:
            return None
        with contextlib.ExitStack() as unless_whole:
            unless_whole.callback(os.close, descriptor)
            if self._is_whole(file, os.fstat(descriptor)):
                self._update_last_use(path, descriptor)
                unless_whole.pop_all()
                return descriptor
        return None

    def fetch(self, file: RemoteFile, over_limit: bool = False, stop: threading.Event | None = None) -> bool:
        """Download the file if it is not in the cache. Return whether this call downloaded the file.

        The time of last use of an existing file is updated. Raises NoRoom if the cache would exceed its size limit.
        With ``over_limit``, logs a warning instead. Raises UserError if the download fails, and Abandoned soon after
        ``stop`` is set.
        """
        path = self.folder / file.name
        with self._own_errors():
            before = _version(path.with_name(path.name + FAILED))
            while not self.has(file):
                self._share_failure(path, before)
                if not self._writable and self._check_kept(path, file):
                    break
                with held_partial(path, self._files) as held:
                    if held is None:  # another thread or process fetches the file
                        RetryBudget.rest(POLL_SECONDS, stop)
                        continue
                    descriptor, partial = held
                    if self.has(file) or self._check_kept(path, file):  # another process fetched or copied the file
                        break
                    self._share_failure(path, before)
                    self._space.take(file, descriptor, over_limit)
                    self._fetch_into(file, descriptor, stop)
                    with self._space.held():  # a listing of the folder must not find both names
                        if not self._files.locks and self.has(file):  # another process fetched the file and may use it
                            break
                        os.replace(partial, path)
                    return True
            self._update_last_use(path, path)
            return False

    def checked(self, source: StoragePath, name: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        """Cache a small file as ``name`` and return its parsed contents. The manifest has no digest of this file.

        parse: must raise UserError for wrong bytes. If the cached file is damaged, it is fetched again.
        """
        if not _SMALL.fullmatch(name):
            raise UserError("path-name", f"{source} cannot be cached: {name[:200]!r} is not a file name")
        kept = self.folder / name
        with self._own_errors():
            if (data := self._files.read(kept, MAX_SMALL_BYTES)) is not None:
                with contextlib.suppress(UserError):
                    return parse(data)
                kept.unlink(missing_ok=True)
            if (
                data := read_small(source, RetryBudget(self.options.remote_timeout, option="--remote-timeout"))
            ) is None:
                raise UserError("set-missing", f"{source} is missing; upload the set again")
            result = parse(data)
            if self._writable:
                write_own(kept, data)
            return result

    def has(self, file: RemoteFile) -> bool:
        """Return whether the file is in the cache, belongs to this user and was checked."""
        with contextlib.suppress(FileNotFoundError):
            return self._is_whole(file, (self.folder / file.name).lstat())
        return False

    def _is_whole(self, file: RemoteFile, facts: os.stat_result) -> bool:
        if not self._files.owns(facts) or facts.st_size != file.bytes:
            return False
        return facts.st_mtime_ns == stamp(file.sha256, facts) or _key(facts) in self._checked

    def _check_kept(self, path: Path, file: RemoteFile) -> bool:
        """Return whether an unchecked cached file has the right size and digest. If not, delete the file."""
        if (descriptor := self._files.open(path)) is None:
            return False
        try:
            facts = os.fstat(descriptor)
            if facts.st_size != file.bytes and facts.st_mtime_ns == stamp(file.sha256, facts):
                sizes = f"the manifest says {file.bytes} bytes, but the file with this sha256 has {facts.st_size}"
                why = f"{sizes}: the manifest is damaged; upload the set again"
                raise UserError("set-damaged", f"{file.place}: {why}")
            with open(descriptor, "rb", closefd=False) as stream:
                same = facts.st_size == file.bytes and sha256_stream(stream) == file.sha256
            if same:
                self._mark_checked(descriptor, file)
                return True
            log.warning("%s in the cache %s is damaged and is fetched again", file.place, self.folder)
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)

    def _mark_checked(self, descriptor: int, file: RemoteFile) -> None:
        """Record for all processes of this node that the open file has the right digest."""
        facts = os.fstat(descriptor)
        with contextlib.suppress(OSError):  # fails for a file of root, or on a read-only disk
            os.utime(descriptor, ns=(time.time_ns(), stamp(file.sha256, facts)))
        # This process also remembers the file, in case the file system stores times with less precision.
        self._checked.add(_key(os.fstat(descriptor)))

    def _keep_private(self) -> None:
        """Remove other users' write permission from the default folder. For any other folder, only log a warning."""
        facts = self.folder.stat()
        if not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and facts.st_uid in (self._files.uid, 0):
            return
        if self.options.is_usual and facts.st_uid == self._files.uid:
            self.folder.chmod(0o700)
        else:
            hint = "set --cache-dir to your own folder, so that they cannot delete or block files"
            log.warning("other users may write to the cache %s: their files are not used; %s", self.folder, hint)

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "repair it, or choose another with --cache-dir"
            raise UserError("cache", f"the cache {self.folder} cannot be used: {one_line(error)}; {remedy}") from None

    def _update_last_use(self, path: Path, file: Path | int) -> None:
        now = time.time()
        if now - self._noted.get(path.name, 0.0) >= USE_NOTE_SECONDS:
            self._noted[path.name] = now
            # An update can fail if the file was deleted, or if it belongs to root on a read-only disk.
            with contextlib.suppress(OSError):
                facts = os.stat(file) if isinstance(file, int) else file.lstat()
                if self._files.owns(facts):
                    os.utime(file, ns=(time.time_ns(), facts.st_mtime_ns))

    def _share_failure(self, path: Path, before: tuple[int, ...] | None) -> None:
        """Raise the error if a download of the file has just failed in another thread or process.

        before: `_version` of the .failed file at the start of the call. If this value has changed, the failure is new.
        """
        at, code, message = self._failures.get(path.name, (-FAILURE_SECONDS, "network", ""))
        if time.monotonic() - at < FAILURE_SECONDS:
            raise UserError(code, message)
        marker = path.with_name(path.name + FAILED)
        text = b"" if _version(marker) in (None, before) else self._files.read(marker, 4096) or b""
        message, _, word = text.decode("utf-8", "replace").strip().partition("\n")
        if message:  # .failed files of earlier versions have no error code
            raise UserError(next((code for code in get_args(Code) if code == word), "network"), one_line(message))

    def _fetch_into(self, file: RemoteFile, descriptor: int, stop: threading.Event | None) -> None:
        marker = self.folder / (file.name + FAILED)
        try:
            budget = RetryBudget(self.options.remote_timeout, stop, "--remote-timeout", file.bytes)
            self._download(file, descriptor, budget)
        except UserError as error:
            self._failures[file.name] = (time.monotonic(), error.code, str(error))
            write_own(marker, f"{error}\n{error.code}".encode())
            raise
        marker.unlink(missing_ok=True)

    def _download(self, file: RemoteFile, descriptor: int, budget: RetryBudget) -> None:
        for _ in range(WHOLE_TRIES):
            digest = hashlib.sha256()
            position = 0
            for block in read_blocks(file.place, file.bytes, budget):
                digest.update(block)
                position += os.pwrite(descriptor, block, position)
            if digest.hexdigest() == file.sha256:
                os.fsync(descriptor)
                self._mark_checked(descriptor, file)
                return
            log.warning("%s was downloaded, but its sha256 differs from the manifest's", file.place)
            budget.wait()
        what = f"{file.place} is not the file of the manifest (its sha256 differs after {WHOLE_TRIES} downloads)"
        remedy = "run `posters shards verify` in the folder of the build, and upload the set again"
        raise UserError("set-damaged", f"{what}: the set is being replaced or is damaged; {remedy}")


def _version(path: Path) -> tuple[int, ...] | None:
    """Return a value that changes when the file is written again. None if there is no file."""
    with contextlib.suppress(FileNotFoundError):
        version: tuple[int, ...] = _key(path.lstat())
        return version
    return None
