"""Other file systems' rules for locks, for this process: what ``fcntl.flock`` says there."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any

_flock, _fcntl = fcntl.flock, fcntl.fcntl


def nfs(descriptor: int, operation: int) -> None:
    """Linux's NFS client: exclusive needs a file opened for writing, shared one opened for reading."""
    _need_mode(descriptor, operation)
    _flock(descriptor, operation)


def posix(descriptor: int, operation: int) -> None:
    """The same with locks of a process, which any close of the file drops: other systems' NFS clients."""
    _need_mode(descriptor, operation)
    fcntl.lockf(descriptor, operation)


def _need_mode(descriptor: int, operation: int) -> None:
    mode = _fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    lacking = os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY
    if not operation & fcntl.LOCK_UN and mode == lacking:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def missing(number: int) -> Callable[[int, int], None]:
    """No locks: flock fails with this error."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def set_rule(rule: str, patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have ``nfs``, ``posix``, ``ofd ERRNO`` (flock fails, the other locks work) or ``none ERRNO`` hold."""
    name, _, error = rule.partition(" ")
    if name in ("nfs", "posix"):
        patch(fcntl, "flock", {"nfs": nfs, "posix": posix}[name])
        return
    number = getattr(errno, error)
    patch(fcntl, "flock", missing(number))
    if name == "none":

        def refused(descriptor: int, command: int, *arguments: Any) -> Any:
            if command in (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW):
                raise OSError(number, os.strerror(number))
            return _fcntl(descriptor, command, *arguments)

        patch(fcntl, "fcntl", refused)
