"""Files of a cache: whose they are, whether they were checked, the locks on them, and what may be deleted.

Locks are on the files themselves: shared for who reads one, exclusive for who deletes it. The latter opens it for
writing, which NFS wants. Partials that this process fills are also noted here, for file systems whose locks belong to a
process and not to an open file. Without locks every fetch has a partial of its own, and nothing is deleted.

A folder may be one where other users write. So no name in it is followed or believed: a file counts if it is a regular
one of this user (or root's), under one name only, that no other user may write. All else of that name is removed.
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

#: Marks the line that says why a file could not be fetched.
FAILED = ".failed"

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: Of what cannot be opened so: symbolic links, sockets, pipes, directories, files of others.
_FOREIGN = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR, errno.EACCES)
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Ours:
    """What a file of this user looks like in a folder: some file systems give all files one owner or one mode."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.locks = folder, True
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                facts = os.fstat(probe.fileno())
                self.lock(probe.fileno())
            self.uid, self._modes = facts.st_uid, not facts.st_mode & _WRITABLE_BY_OTHERS
        except OSError:  # on a disk that can only be read
            self.uid, self._modes = os.geteuid(), True

    def lock(self, descriptor: int, shared: bool = False, wait: bool = False) -> bool:
        """See ``locked``; also True where there are no locks, which ``locks`` then says."""
        if not self.locks:
            return True
        try:
            return locked(descriptor, shared, wait)
        except NoLocks as error:
            self.locks = False
            said = "the cache %s is on a file system without locks (%s): processes may fetch a file twice, and %s"
            hint = "nothing is deleted there for --cache-limit; with a local disk as --cache-dir they share it"
            log.warning(said, self.folder, one_line(error), hint)
            return True

    def owns(self, facts: os.stat_result) -> bool:
        """Whether no other user (but root) can have made or changed the file."""
        ours = stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and facts.st_uid in (self.uid, 0)
        return ours and not (self._modes and facts.st_mode & _WRITABLE_BY_OTHERS)

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int | None:
        """A descriptor of our file, None if there is none; what is there under its name instead is deleted."""
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
        """As ``open``, for writing if that is allowed (on NFS an exclusive lock needs it); nothing is written."""
        if (descriptor := self.open(path)) is None:
            return None
        with contextlib.suppress(OSError):  # root's, or on a disk that can only be read
            writable = os.open(path, os.O_RDWR | _OPEN)
            if os.path.sameopenfile(writable, descriptor):
                descriptor, writable = writable, descriptor
            os.close(writable)
        return descriptor

    def make(self, path: Path) -> int:
        """A descriptor of our file, to read and write, made if need be."""
        for _ in range(100):
            with contextlib.suppress(FileExistsError):
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
            if (descriptor := self.open(path, os.O_RDWR)) is not None:
                return descriptor
        raise OSError(errno.EEXIST, "another user puts files there", str(path))

    def read(self, path: Path, most: int) -> bytes | None:
        """The first ``most`` bytes of our file, None if there is none."""
        if (descriptor := self.open(path)) is None:
            return None
        with open(descriptor, "rb") as stream:
            return stream.read(most)


def write_own(path: Path, data: bytes) -> None:
    """Write a small file that no other user may read or write, atomically."""
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(data)


def stamp(sha256: str, facts: os.stat_result) -> int:
    """The time of last change, in ns, that a file gets when its digest was checked.

    It says which content was found in which inode of which size. Any later write gives the file another one; a file
    that is renamed, replaced or copied does not have it. So a look at a file says whether it was checked on this node.
    """
    said = hashlib.sha256(f"{sha256} {facts.st_ino} {facts.st_size}".encode()).digest()
    # In the past: reading a file whose last change lies ahead would note its time of access again and again.
    seconds = 10**8 + int.from_bytes(said[:4], "big") % 2**29
    return seconds * 10**9 + int.from_bytes(said[4:8], "big") % 10**9


#: Partials that this process fills, and the locks of its threads on each lock file, by path.
_filled: set[Path] = set()
_alone: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
_mutex = threading.Lock()


@contextlib.contextmanager
def held_partial(path: Path, ours: Ours) -> Iterator[tuple[int, Path] | None]:
    """(descriptor, path) of the file's partial, held; at the end deleted unless renamed. None if another holds it."""
    partial = path.with_name(path.name + PARTIAL)
    with _mutex:  # before it is opened: closing it again may drop the lock of the thread that fills it
        busy = partial in _filled
        _filled.add(partial)
    if busy:
        yield None
        return
    try:
        with _opened_partial(partial, path, ours) as found:
            yield found
    finally:
        with _mutex:
            _filled.discard(partial)


@contextlib.contextmanager
def _opened_partial(partial: Path, path: Path, ours: Ours) -> Iterator[tuple[int, Path] | None]:
    if not ours.locks:
        partial = path.with_name(unique_name(path.name, PARTIAL))
    descriptor = ours.make(partial)
    try:
        # Not the same: renamed or swept away before the lock was ours
        if not ours.lock(descriptor) or not same(descriptor, partial):
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
def held_alone(path: Path, ours: Ours) -> Iterator[None]:
    """Hold a lock file, once whoever has it lets go."""
    with _mutex:
        own = _alone[path]
    with own:
        while True:
            descriptor = ours.make(path)
            try:
                ours.lock(descriptor, wait=True)
                if same(descriptor, path):
                    yield
                    return
            finally:
                os.close(descriptor)


def held_for_reading(path: Path, ours: Ours) -> int | None:
    """A descriptor of our file, which nobody deletes until it is closed; None if there is no such file."""
    if (descriptor := ours.open(path)) is None:
        return None
    with contextlib.ExitStack() as unless_there:
        unless_there.callback(os.close, descriptor)
        ours.lock(descriptor, shared=True, wait=True)  # waits for nothing but an eviction
        if same(descriptor, path):  # NFS keeps a deleted file's links while it is open
            unless_there.pop_all()
            return descriptor
    return None


def delete_unused(path: Path, ours: Ours) -> bool:
    """Delete our file unless somebody holds it, or none can say so; whether it is gone."""
    if not ours.locks or path in _filled:
        return False
    if (descriptor := ours.open_to_delete(path)) is None:
        return True
    try:
        if not locked(descriptor):
            return False
        if same(descriptor, path):
            path.unlink(missing_ok=True)
        return True
    except NoLocks:  # on NFS, a file that this user may not write
        return False
    finally:
        os.close(descriptor)


def same(descriptor: int, path: Path) -> bool:
    """Whether a path still is the file that was opened."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False
