"""Owners, checks, locks and deletion of the files in a cache.

Locks are on the files themselves: a reader has a shared lock, a deletion needs an exclusive one. For the latter the
file is opened for writing, as NFS requires. Some file systems bind locks to a process, not to an open file, so the
partials of this process are also recorded here. Without locks, each download has its own partial; nothing is deleted.

Other users may be able to write to the folder. A file is used only if it is a regular file of this user (or of root),
has one hard link, and is not writable for other users. Anything else of that name is removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from shards.errors import one_line
from shards.storage.file_locks import NoLocks, locked
from shards.storage.files import PARTIAL, atomic_path
from shards.storage.remote_files import unique_name

log = logging.getLogger(__name__)

#: Extension of the file with the error of a failed download.
FAILED = ".failed"

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: Errors of opening symbolic links, sockets, pipes, directories and files of other users with these flags.
_FOREIGN = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR, errno.EACCES)
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class OwnFiles:
    """Owner and mode of this user's files in a folder: some file systems give all files the same owner or mode."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.locks = folder, True
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                facts = os.fstat(probe.fileno())
                self.lock(probe.fileno())
            self.uid, self._modes = facts.st_uid, not facts.st_mode & _WRITABLE_BY_OTHERS
        except OSError:  # on a read-only disk
            self.uid, self._modes = os.geteuid(), True

    def lock(self, descriptor: int, shared: bool = False, wait: bool = False) -> bool:
        """Lock a file as ``locked`` does. Without lock support, set ``locks`` to False and return True."""
        if not self.locks:
            return True
        try:
            return locked(descriptor, shared, wait)
        except NoLocks as error:
            self.locks = False
            what = "the cache %s is on a file system without locks (%s): processes may fetch a file twice, and %s"
            hint = "--cache-limit deletes no files; set --cache-dir to a folder on a local disk"
            log.warning(what, self.folder, one_line(error), hint)
            return True

    def owns(self, facts: os.stat_result) -> bool:
        """Return whether only this user or root can have made or changed the file."""
        own = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_uid in (self.uid, 0)
        return own and not (self._modes and facts.st_mode & _WRITABLE_BY_OTHERS)

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int | None:
        """Return a descriptor of this user's file; None if there is none. Delete anything else of that name."""
        try:
            descriptor = os.open(path, flags | _OPEN)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _FOREIGN:
                raise
            path.unlink(missing_ok=True)
            return None
        if self.owns(os.fstat(descriptor)):
            return descriptor
        try:
            if same(descriptor, path):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        return None

    def open_to_delete(self, path: Path) -> int | None:
        """As ``open``, but for writing if permitted: NFS requires it for an exclusive lock. Writes nothing."""
        if (descriptor := self.open(path)) is None:
            return None
        with contextlib.suppress(OSError):  # a file of root, or a read-only disk
            writable = os.open(path, os.O_RDWR | _OPEN)
            if os.path.sameopenfile(writable, descriptor):
                descriptor, writable = writable, descriptor
            os.close(writable)
        return descriptor

    def make(self, path: Path) -> int:
        """Return a descriptor of this user's file for reading and writing; make the file if needed."""
        for _ in range(100):
            with contextlib.suppress(FileExistsError):
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
            if (descriptor := self.open(path, os.O_RDWR)) is not None:
                return descriptor
        raise OSError(errno.EEXIST, "another user repeatedly creates this file", str(path))

    def read(self, path: Path, most: int) -> bytes | None:
        """Return the first ``most`` bytes of this user's file; None if there is no file."""
        if (descriptor := self.open(path)) is None:
            return None
        with open(descriptor, "rb") as stream:
            return stream.read(most)


def write_own(path: Path, data: bytes) -> None:
    """Write a small file atomically, without read or write permission for other users."""
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(data)


def stamp(sha256: str, facts: os.stat_result) -> int:
    """Return the modification time, in ns, that marks a file whose digest was checked.

    It is derived from digest, inode and size. A later write changes the time, and a replaced or copied file has another
    inode. So os.stat is enough to see whether a file was checked on this node.
    """
    digest = hashlib.sha256(f"{sha256} {facts.st_ino} {facts.st_size}".encode()).digest()
    # In the past: with a modification time in the future, every read would update the access time.
    seconds = 10**8 + int.from_bytes(digest[:4], "big") % 2**29
    return seconds * 10**9 + int.from_bytes(digest[4:8], "big") % 10**9


#: Partials that this process fills, and a thread lock for each lock file, by path.
_filled: set[Path] = set()
_alone: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
_mutex = threading.Lock()


@contextlib.contextmanager
def held_partial(path: Path, files: OwnFiles) -> Iterator[tuple[int, Path] | None]:
    """Lock the file's partial; yield (descriptor, path), or None if in use. Delete it at the end unless renamed."""
    partial = path.with_name(path.name + PARTIAL)
    with _mutex:  # before the partial is opened: closing it may release the lock of the thread that fills it
        busy = partial in _filled
        _filled.add(partial)
    if busy:
        yield None
        return
    try:
        with _opened_partial(partial, path, files) as found:
            yield found
    finally:
        with _mutex:
            _filled.discard(partial)


@contextlib.contextmanager
def _opened_partial(partial: Path, path: Path, files: OwnFiles) -> Iterator[tuple[int, Path] | None]:
    if not files.locks:
        partial = path.with_name(unique_name(path.name, PARTIAL))
    descriptor = files.make(partial)
    try:
        # Not the same file: it was renamed or deleted before this thread got the lock.
        if not files.lock(descriptor) or not same(descriptor, partial):
            yield None
            return
        try:
            yield descriptor, partial
        finally:
            if same(descriptor, partial):
                partial.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held_alone(path: Path, files: OwnFiles) -> Iterator[None]:
    """Wait for a lock file and hold it until the block ends."""
    with _mutex:
        thread_lock = _alone[path]
    with thread_lock:
        while True:
            descriptor = files.make(path)
            try:
                files.lock(descriptor, wait=True)
                if same(descriptor, path):
                    yield
                    return
            finally:
                os.close(descriptor)


def held_for_reading(path: Path, files: OwnFiles) -> int | None:
    """Return a descriptor of this user's file; the file is not deleted until it is closed. None if there is no file."""
    if (descriptor := files.open(path)) is None:
        return None
    with contextlib.ExitStack() as unless_there:
        unless_there.callback(os.close, descriptor)
        files.lock(descriptor, shared=True, wait=True)  # only a deletion has an exclusive lock
        if same(descriptor, path):  # on NFS, the link count of a deleted file does not drop while it is open
            unless_there.pop_all()
            return descriptor
    return None


def delete_unused(path: Path, files: OwnFiles) -> bool:
    """Delete this user's file unless it is locked or locks are not supported; return whether it is gone."""
    if not files.locks or path in _filled:
        return False
    if (descriptor := files.open_to_delete(path)) is None:
        return True
    try:
        if not locked(descriptor):
            return False
        if same(descriptor, path):
            path.unlink(missing_ok=True)
        return True
    except NoLocks:  # on NFS, for a file that this user may not write
        return False
    finally:
        os.close(descriptor)


def same(descriptor: int, path: Path) -> bool:
    """Return whether the path is still the file of the descriptor."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False
