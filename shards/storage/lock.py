"""Who is at work in a folder: one process at a time, by a lock, or at a URL by a claim that stands for one."""

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
#: Bytes of a claim, at most.
MAX_LOCK_BYTES = 1 << 16
#: What a store says that knows no exclusive creation, or (S3's "precondition failed") that the name is taken.
NOT_EXCLUSIVE = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EPERM)


_Text = Annotated[str, msgspec.Meta(max_length=300)]


class LockOwner(msgspec.Struct, frozen=True):
    """Who is at work at a URL."""

    token: _Text = ""
    machine: _Text = ""
    host: _Text = ""
    pid: int = 0
    since: _Text = ""


@contextlib.contextmanager
def folder_lock(folder: StoragePath, take_over: bool = False) -> Iterator[None]:
    """Hold ``folder`` for this process. Raises UserError at once if another one holds it.

    The operating system drops the lock when its holder dies, so a killed run never blocks the next one. A URL is
    claimed instead: only ``take_over`` overrules the claim of a run that died on another machine (claimed).
    """
    if is_remote(folder):
        with remote_lock(folder, take_over):
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("path-unwritable", f"cannot make the folder {folder}: {one_line(error)}") from None
    with _locked(folder / LOCK_NAME, folder):
        yield


def this_machine() -> str:
    """The same text for all processes that see each other's locks, another one elsewhere (in a container, too)."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/mnt"):
        with contextlib.suppress(OSError):
            path = Path(source)
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
    return "/".join(parts)


@contextlib.contextmanager
def _locked(file: Path, folder: StoragePath) -> Iterator[None]:
    """Hold the lock file ``file``, which stands for ``folder``. Raises UserError at once if another one holds it."""
    with contextlib.ExitStack() as held:
        free = True
        try:
            free = held.enter_context(held_file(file))
        except NoLocks as error:
            warning = "%s is on a file system without locks (%s): nothing keeps a second process from working there"
            log.warning(warning, folder, one_line(error))
        except OSError as error:
            raise UserError("path-unwritable", f"cannot write to {folder}: {one_line(error)}") from None
        if not free:
            remedy = "wait for it or choose another folder"
            raise UserError("path-locked", f"another process is at work in {folder}; {remedy}")
        yield


@contextlib.contextmanager
def remote_lock(folder: Any, take_over: bool = False) -> Iterator[None]:
    """Hold a remote folder. Stores have no locks that a killed process drops: an object ``.lock`` says who holds it.

    On one machine a lock file, named after the URL, comes first: whoever has it knows that a claim from this machine
    is a dead process's. A claim from another machine is respected, unless ``take_over`` says that it is dead.
    Raises UserError at once if the folder is held.
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
                _take(path, owner, take_over)
        except FileNotFoundError as error:
            remedy = "make the bucket first"
            raise UserError("path-unwritable", f"cannot write to {folder}: {one_line(error)}; {remedy}") from None
        try:
            yield
        finally:
            # Where the store fails now, the next run on this machine takes over.
            with contextlib.suppress(*remote_errors()):
                if _holder(path).token == token:
                    remove_remote_file(path)


def _take(path: Any, owner: LockOwner, take_over: bool) -> None:
    data = msgspec.json.encode(owner)
    if not _created(path, data):
        holder = _holder(path)
        if holder.token and holder.machine != owner.machine and not take_over:
            raise _held(path, holder)
        path.fs.pipe_file(path.path, data)
    holder = _holder(path)
    if holder.token != owner.token:  # two began in the same moment: the last writer has it
        raise _held(path, holder)


def _created(path: Any, data: bytes) -> bool:
    """Whether the store made the object because there was none; False also where it cannot do so."""
    try:
        path.fs.pipe_file(path.path, data, mode="create")
        return True
    except (FileExistsError, ValueError, TypeError, NotImplementedError):
        return False  # the last three are what fsspec's clients say to a mode that they do not know
    except OSError as error:
        if error.errno not in NOT_EXCLUSIVE:
            raise  # a passing failure says nothing of what the store knows
        return False


def _held(path: Any, holder: LockOwner) -> UserError:
    who = f"process {holder.pid} on {holder.host}, since {holder.since}"
    remedy = "wait for it, choose another folder, or, if that run is dead, pass --break-lock"
    return UserError("path-locked", f"{path.parent} is claimed by another run ({who}); {remedy}")


def _holder(path: Any) -> LockOwner:
    """Who holds the folder; an empty claim if there is none that can be read."""
    try:
        return parse_as(read_whole(path, MAX_LOCK_BYTES), LockOwner, path, "claim", "delete it")
    except (FileNotFoundError, UserError):
        return LockOwner()
