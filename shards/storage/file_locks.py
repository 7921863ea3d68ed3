"""Locks on open files, on local disks and network file systems. The system releases them when their process ends.

flock is used if the file system supports it. On NFS the client turns flock into byte-range locks. So an exclusive lock
needs a file that is open for writing, and a shared lock a file that is open for reading. Without flock, Linux's open
file description locks (fcntl(2), F_OFD_SETLK) are used, which mean the same. Without both, there are no locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform == "win32":
    from filelock import FileLock, Timeout
else:
    import fcntl

#: Error numbers if a file system has no locks, or its lock server is missing.
_NONE = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
#: struct flock of 64-bit Linux: type, whence, start, length (0: to the end), process (0 for these).
_FLOCK = struct.Struct("hhqqi0q")


class NoLocks(OSError):
    """The file system has no locks."""


def locked(descriptor: int, shared: bool = False, wait: bool = False) -> bool:
    """Take a lock on an open file. Returns False if a lock of another open file excludes it.

    The lock lasts until the descriptor is closed. The file must be open for writing, or for reading if ``shared``.
    Raises NoLocks or OSError.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    taken = _taken(lambda: fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB))
    if isinstance(taken, bool):
        return taken
    command = getattr(fcntl, "F_OFD_SETLKW" if wait else "F_OFD_SETLK", None)
    if command is not None and sys.maxsize >= 2**32:
        lock = _FLOCK.pack(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        other = _taken(lambda: fcntl.fcntl(descriptor, command, lock))
        if isinstance(other, bool):
            return other
    raise NoLocks(taken.errno, taken.strerror)


def _taken(take: Callable[[], object]) -> bool | OSError:
    """Return whether ``take`` got the lock, or its error if such locks are not supported. Raises other OSErrors."""
    try:
        take()
        return True
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NONE:
            raise
        return error


@contextlib.contextmanager
def held_file(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file, which is created if it is missing. Yields False if another process or thread holds the lock.

    ``wait``: wait until the lock is released. Raises NoLocks or OSError.
    """
    if sys.platform == "win32":
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(FileLock(path).acquire(timeout=-1 if wait else 0))
            except Timeout:
                yield False
                return
            yield True
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        yield locked(descriptor, wait=wait)
    finally:
        os.close(descriptor)
