"""Locks on open files, which the system drops when their holder ends: on local disks and on network file systems.

They are flock's where the file system has it. On NFS its client makes byte-range locks of them, so an exclusive one
needs a file that was opened for writing, and a shared one a file that was opened for reading. Where flock is not there,
Linux's open file description locks are (fcntl(2), F_OFD_SETLK), which mean the same; else there are none.
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

#: What a system says where a file system has no locks, or its lock server is not there.
_NONE = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
#: struct flock of 64-bit Linux: type, whence, start, length (0: to the end), process (0 for these).
_FLOCK = struct.Struct("hhqqi0q")


class NoLocks(OSError):
    """The file system has no locks."""


def locked(descriptor: int, shared: bool = False, wait: bool = False) -> bool:
    """Whether this open file has the lock now: False if another open file has one that excludes it.

    It lasts until the descriptor is closed. The file must be opened for writing, or for a ``shared`` lock for reading.
    Raises NoLocks, OSError.
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
    """Whether ``take`` got the lock, or what it says where there are no locks of its kind. Raises other OSErrors."""
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
    """Hold a lock file, which is made if need be; yields False if another process or thread has it.

    ``wait``: once it lets go. Raises NoLocks, OSError.
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
