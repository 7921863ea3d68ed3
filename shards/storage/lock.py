"""Locks of folders: one process at a time works in a folder. A local folder has a file lock, a URL a lock object."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from shards.errors import UserError, one_line
from shards.schema import parse_as
from shards.storage.file_locks import NoLocks, held_file
from shards.storage.paths import StoragePath, as_user_error, is_remote, remote_errors
from shards.storage.remote_files import read_whole, remove_remote_file, require_writable

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
#: Largest lock object in bytes.
MAX_LOCK_BYTES = 1 << 16
#: Error numbers of stores without exclusive creation, and of S3's "precondition failed" (the object exists).
NOT_EXCLUSIVE = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EPERM)


_Text = Annotated[str, msgspec.Meta(max_length=300)]


class LockOwner(msgspec.Struct, frozen=True):
    """Process that holds a folder at a URL."""

    token: _Text = ""
    machine: _Text = ""
    host: _Text = ""
    pid: int = 0
    since: _Text = ""


@contextlib.contextmanager
def folder_lock(folder: StoragePath, break_lock: bool = False) -> Iterator[None]:
    """Lock ``folder`` for this process. Raises UserError at once if another process holds it.

    The operating system releases the lock when its process ends, so a killed run never blocks the next one. A URL has a
    lock object instead. If its run was killed on another machine, only ``break_lock`` breaks the lock (remote_lock).
    """
    if is_remote(folder):
        with remote_lock(folder, break_lock):
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("path-unwritable", f"cannot make the folder {folder}: {one_line(error)}") from None
    with _locked(folder / LOCK_NAME, folder):
        yield


def this_machine() -> str:
    """Return a text that is equal for processes that share file locks. It differs between machines and containers."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/mnt"):
        with contextlib.suppress(OSError):
            path = Path(source)
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
    return "/".join(parts)


@contextlib.contextmanager
def _locked(file: Path, folder: StoragePath) -> Iterator[None]:
    """Hold ``file``, the lock file of ``folder``. Raises UserError at once if another process holds it."""
    with contextlib.ExitStack() as held:
        free = True
        try:
            free = held.enter_context(held_file(file))
        except NoLocks as error:
            warning = "%s is on a file system without locks (%s): do not start a second process on this folder"
            log.warning(warning, folder, one_line(error))
        except OSError as error:
            raise UserError("path-unwritable", f"cannot write to {folder}: {one_line(error)}") from None
        if not free:
            remedy = "wait until it ends, or choose another folder"
            raise UserError("path-locked", f"another process is working in {folder}; {remedy}")
        yield


@contextlib.contextmanager
def remote_lock(folder: Any, break_lock: bool = False) -> Iterator[None]:
    """Lock a remote folder. Its object ``.lock`` names the owner, because a store cannot release a lock by itself.

    A local lock file, named after the URL, is taken first. While this process holds that file, a lock object from the
    same machine belongs to an ended process and is replaced. A lock object from another machine is an error, unless
    ``break_lock`` is true. Raises UserError at once if the folder is locked.
    """
    require_writable(folder)
    name = hashlib.sha256(str(folder).rstrip("/").encode()).hexdigest()[:24]
    user = os.getuid() if hasattr(os, "getuid") else 0
    with _locked(Path(tempfile.gettempdir()) / f"posters-{user}-{name}.lock", folder):
        token = secrets.token_hex(8)
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        owner = LockOwner(token, this_machine(), socket.gethostname(), os.getpid(), since)
        path = folder / LOCK_NAME
        try:
            with as_user_error("write", folder):
                _take(path, owner, break_lock)
        except FileNotFoundError as error:
            remedy = "create the bucket first"
            raise UserError("path-unwritable", f"cannot write to {folder}: {one_line(error)}; {remedy}") from None
        try:
            yield
        finally:
            # If the store fails now, the next run on this machine replaces the lock object.
            with contextlib.suppress(*remote_errors()):
                if _holder(path).token == token:
                    remove_remote_file(path)


def _take(path: Any, owner: LockOwner, break_lock: bool) -> None:
    data = msgspec.json.encode(owner)
    if not _created(path, data):
        holder = _holder(path)
        if holder.token and holder.machine != owner.machine and not break_lock:
            raise _held(path, holder)
        path.fs.pipe_file(path.path, data)
    holder = _holder(path)
    if holder.token != owner.token:  # two runs began at the same time: the last writer has the lock
        raise _held(path, holder)


def _created(path: Any, data: bytes) -> bool:
    """Create the object if it does not exist. Returns False if it exists, or if the store cannot create exclusively."""
    try:
        path.fs.pipe_file(path.path, data, mode="create")
        return True
    except (FileExistsError, ValueError, TypeError, NotImplementedError):
        return False  # fsspec's clients raise the last three if they do not support the mode
    except OSError as error:
        if error.errno not in NOT_EXCLUSIVE:
            raise  # a temporary failure: the store may support exclusive creation
        return False


def _held(path: Any, holder: LockOwner) -> UserError:
    who = f"process {holder.pid} on {holder.host}, since {holder.since}"
    remedy = "wait until it ends, choose another folder, or pass --break-lock if that run is dead"
    return UserError("path-locked", f"{path.parent} is locked by another run ({who}); {remedy}")


def _holder(path: Any) -> LockOwner:
    """Return the owner of the folder's lock; an empty owner if there is no readable lock object."""
    try:
        return parse_as(read_whole(path, MAX_LOCK_BYTES), LockOwner, path, "lock", "delete it")
    except (FileNotFoundError, UserError):
        return LockOwner()
