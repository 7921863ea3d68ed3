"""Locks on open files, on local disks and network file systems. The system releases a lock when its process ends.

flock is used if the file system supports it. An NFS client turns flock into byte-range locks. For an
exclusive byte-range lock, the file must be open for writing. For a shared one, the file must be open for reading.
If flock is not supported, Linux's open file description locks (F_OFD_SETLK in fcntl(2)) are used in the same way.
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

#: Error numbers which mean that the file system has no locks, or that its lock server is missing.
_NONE = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
#: struct flock of 64-bit Linux: type, whence, start, length (0 means to the end of the file), process (must be 0).
_FLOCK = struct.Struct("hhqqi0q")


class NoLocks(OSError):
    """The file system has no locks."""


def locked(descriptor: int, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file. Returns False if another descriptor holds a conflicting lock.

    The lock lasts until the descriptor is closed. For a ``shared`` lock, the file must be open for reading. For an
    exclusive lock, it must be open for writing. Raises NoLocks if the file system has no locks.
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
    """Lock a file until the block ends. Create the file if it is missing.

    Yields False if another process or thread has locked the file. With ``wait``, wait until the lock is released.
    Raises NoLocks if the file system has no locks.
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
