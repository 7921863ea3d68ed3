"""Locks of folders: only one process at a time may write to a folder, on a local disk or at a URL."""

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
#: Largest size of a lock object in bytes.
MAX_LOCK_BYTES = 1 << 16
#: Error numbers which mean that a store does not support exclusive creation, or that the object exists (on S3).
NOT_EXCLUSIVE = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EPERM)

_Text = Annotated[str, msgspec.Meta(max_length=300)]


class LockOwner(msgspec.Struct, frozen=True):
    """The process that has locked a folder at a URL. The lock object contains these fields."""

    token: _Text = ""
    machine: _Text = ""
    host: _Text = ""
    pid: int = 0
    since: _Text = ""


@contextlib.contextmanager
def folder_lock(folder: StoragePath, break_lock: bool = False) -> Iterator[None]:
    """Lock ``folder`` for this process. Raises UserError at once if another process has locked it.

    The lock of a local folder ends with the process. At a URL, a killed run leaves its lock object behind. The next run
    on the same machine replaces that object. A run on another machine replaces it only if ``break_lock`` is true.
    """
    if is_remote(folder):
        with remote_lock(folder, break_lock):
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
        why = f"{file} is a file; choose another path" if file else one_line(error)
        raise UserError("path-unwritable", f"cannot make the folder {folder}: {why}") from None
    with _locked(folder / LOCK_NAME, folder):
        yield


def this_machine() -> str:
    """Return a text for this machine and container. File locks work between two processes if their texts are equal."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/mnt"):
        with contextlib.suppress(OSError):
            path = Path(source)
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
    return "/".join(parts)


@contextlib.contextmanager
def _locked(file: Path, folder: StoragePath) -> Iterator[None]:
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
    """Lock a remote folder with an object ``.lock``, which names the owner. Raises UserError at once if it is locked.

    This function first locks a local file that is named after the URL. After that, a lock object of this machine can
    only come from a process that has ended, so the object is replaced. A lock object of another machine is replaced
    only if ``break_lock`` is true.
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
    """Create the object. Returns False if the object exists, or if the store does not support exclusive creation."""
    try:
        path.fs.pipe_file(path.path, data, mode="create")
        return True
    except (FileExistsError, ValueError, TypeError, NotImplementedError):
        return False  # fsspec's clients raise the last three errors if they do not support mode="create"
    except OSError as error:
        if error.errno not in NOT_EXCLUSIVE:
            raise  # a temporary failure: the store may support exclusive creation
        return False


def _held(path: Any, holder: LockOwner) -> UserError:
    who = f"process {holder.pid} on {holder.host}, since {holder.since}"
    remedy = "wait until it ends, choose another folder, or pass --break-lock if that run was killed"
    return UserError("path-locked", f"{path.parent} is locked by another run ({who}); {remedy}")


def _holder(path: Any) -> LockOwner:
    """Return the owner that the lock object names, or an owner with empty fields if the object cannot be read."""
    try:
        return parse_as(read_whole(path, MAX_LOCK_BYTES), LockOwner, path, "lock", "delete it")
    except (FileNotFoundError, UserError):
        return LockOwner()
