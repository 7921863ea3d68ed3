"""Ownership, locks and deletion of the files in a cache.

A reader holds a shared lock on a cached file. A deletion needs an exclusive lock on the file, which NFS grants only if
the file is open for writing. A download holds an exclusive lock on its partial file, NAME.partial. On some file
systems a lock belongs to a process. So this module also records which partial files its process is writing.
On a file system without locks, each download has a partial file of its own, and complete files are not deleted.

Other users can have write access to the folder. A file is used only if it is a regular file of this user or root, has
one hard link, and is not writable for other users. Any other file, link or folder of the same name is removed.
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
#: Error numbers of opening a symbolic link, a socket, a pipe, a folder or another user's file with _OPEN.
_FOREIGN = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR, errno.EACCES)
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class OwnFiles:
    """Files of this user in a folder. A test file shows which owner and mode the file system gives to new files."""

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
        """Lock with file_locks.locked. If the file system has no locks, set ``self.locks`` to False and return True."""
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
        """Return whether the file belongs to this user or root, and no other user can change it."""
        own = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_uid in (self.uid, 0)
        return own and not (self._modes and facts.st_mode & _WRITABLE_BY_OTHERS)

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int | None:
        """Return a descriptor of this user's file, or None. An untrusted file or a link at this path is deleted."""
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
        """Open the file, for writing if permitted. On NFS, an exclusive lock needs a descriptor for writing."""
        if (descriptor := self.open(path)) is None:
            return None
        with contextlib.suppress(OSError):  # not permitted for a file of root, or on a read-only disk
            writable = os.open(path, os.O_RDWR | _OPEN)
            if os.path.sameopenfile(writable, descriptor):
                descriptor, writable = writable, descriptor
            os.close(writable)
        return descriptor

    def make(self, path: Path) -> int:
        """Return a descriptor of this user's file for reading and writing. Create the file if it does not exist."""
        for _ in range(100):
            with contextlib.suppress(FileExistsError):
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
            if (descriptor := self.open(path, os.O_RDWR)) is not None:
                return descriptor
        raise OSError(errno.EEXIST, "another user repeatedly creates this file", str(path))

    def read(self, path: Path, most: int) -> bytes | None:
        """Return at most ``most`` bytes from the start of this user's file. None if there is no such file."""
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
    """Return the modification time in ns that a file gets after its digest was checked.

    The time is computed from the digest, inode and size. A later write changes the time, and a replaced or copied file
    has another inode. So os.stat is enough to find out whether the file was checked on this node.
    """
    digest = hashlib.sha256(f"{sha256} {facts.st_ino} {facts.st_size}".encode()).digest()
    # The time is in the past. If it were later than the access time, Linux would set the access time at each read.
    seconds = 10**8 + int.from_bytes(digest[:4], "big") % 2**29
    return seconds * 10**9 + int.from_bytes(digest[4:8], "big") % 10**9


#: Partial files that this process is writing.
_filled: set[Path] = set()
#: A thread lock for the path of each lock file.
_alone: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
_mutex = threading.Lock()


@contextlib.contextmanager
def held_partial(path: Path, files: OwnFiles) -> Iterator[tuple[int, Path] | None]:
    """Lock the partial file for a download to ``path``. Yield the descriptor and the path of the partial file.

    Yield None if another thread or process has the lock. At the end of the block, delete the file if it still exists.
    """
    partial = path.with_name(path.name + PARTIAL)
    with _mutex:  # before opening the file: on some file systems, closing the file releases another thread's lock
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
        # If the path has another file now, the partial file was renamed or deleted before this thread got the lock.
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
    """Wait for the lock of a lock file, and hold the lock until the block ends."""
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
    """Return a descriptor of this user's file, with a lock that prevents a deletion. None if there is no such file."""
    if (descriptor := files.open(path)) is None:
        return None
    with contextlib.ExitStack() as unless_there:
        unless_there.callback(os.close, descriptor)
        files.lock(descriptor, shared=True, wait=True)  # waits only while another process deletes the file
        if same(descriptor, path):  # on NFS, the link count of a deleted file does not drop while it is open
            unless_there.pop_all()
            return descriptor
    return None


def delete_unused(path: Path, files: OwnFiles) -> bool:
    """Delete this user's file. Returns False if the file is locked, or if the file system has no locks."""
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
    except NoLocks:  # NFS raises this error for a file that this user may not write
        return False
    finally:
        os.close(descriptor)


def same(descriptor: int, path: Path) -> bool:
    """Return whether the path still names the file that the descriptor has opened."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False
