"""What URLs need beyond reading: writes that are whole or absent, fresh listings, and a claim in place of a lock."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shards.errors import UserError
from shards.places import Place, remote_errors, told

#: Stores whose puts are visible whole or not at all; elsewhere a file is moved to its name when it is whole.
ATOMIC_PUT = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "obs", "hf", "memory")

READ_ONLY = ("http", "https", "github", "data", "zip", "tar")

CLAIM = ".lock"

#: What a store says that knows no exclusive creation, or (S3's "precondition failed") that the name is taken.
NOT_EXCLUSIVE = (errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.EPERM)


def unique_name(name: str, suffix: str) -> str:
    """A name beside ``name`` that no other process of any machine uses, at most 255 bytes long."""
    if len(name.encode()) >= 200:  # it may be as long as file systems allow: no room for more
        name = hashlib.sha256(name.encode()).hexdigest()
    host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname()[:20])
    return f"{name}.{host}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def require_writable(folder: Place) -> None:
    """Raise UserError for a kind of URL that can only be read."""
    protocol: str = folder.protocol  # type: ignore[attr-defined]  # an UPath
    if protocol in READ_ONLY:
        raise UserError(f"{folder} can only be read: choose a folder, or a URL of a store such as s3://")
    if glob.has_magic(str(folder)):
        raise UserError(f"{folder} has a * ? or [, which would stand for other names: choose a URL without")


def puts_whole(place: Any) -> bool:
    """Whether what is put there is visible whole or not at all."""
    return place.protocol in ATOMIC_PUT


@contextlib.contextmanager
def uploaded(path: Place, partial: str) -> Iterator[Path]:
    """A local file to write; it is put at ``path`` when the block ends well. ``partial`` marks unfinished names."""
    with tempfile.TemporaryDirectory(prefix="posters-") as folder:
        local = Path(folder) / "file"
        yield local
        _put(local, path, partial)


def _put(local: Path, path: Any, partial: str) -> None:
    """Raises what the store raises: a task that met a passing failure is tried again."""
    fs = path.fs
    if puts_whole(path):
        fs.put_file(str(local), path.path)
        return
    fs.makedirs(path.parent.path, exist_ok=True)
    unfinished = path.with_name(unique_name(path.name, partial))
    with contextlib.ExitStack() as in_vain:
        in_vain.callback(_forget, unfinished)
        fs.put_file(str(local), unfinished.path)
        if fs.exists(path.path):  # not every store moves onto a name that is taken
            fs.rm_file(path.path)
        fs.mv(unfinished.path, path.path)
        in_vain.pop_all()


def _forget(path: Any) -> None:
    with contextlib.suppress(*remote_errors()):
        path.fs.rm_file(path.path)


def remove_remote_file(path: Any) -> None:
    """Delete a remote file if it is there; that one alone, where UPath.unlink would take ``a*.jpg`` for many."""
    with contextlib.suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


def read_whole(path: Any) -> bytes:
    """A remote file's bytes, in one request where that can be had: posters are many and small."""
    # s3fs would ask for the size first, to fetch large files in parts.
    once = {"max_concurrency": 1} if path.protocol in ("s3", "s3a") else {}
    data: bytes = path.fs.cat_file(path.path, **once)
    return data


def read_many(folder: Any, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of those of a remote folder's files that are there, many at a time but not all at once."""
    for start in range(0, len(names), 500):
        some = names[start : start + 500]
        # Not fs.cat: it would take the name ``Up [2009].jpg`` for a pattern.
        found = folder.fs.cat_ranges([(folder / name).path for name in some], None, None, on_error="return")
        for name, data in zip(some, found, strict=True):
            if isinstance(data, FileNotFoundError):
                continue
            if isinstance(data, Exception):
                raise data
            yield name, data


@contextlib.contextmanager
def downloaded(path: Any) -> Iterator[Path]:
    """A local copy of a remote file, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="posters-") as folder:
        local = Path(folder) / path.name
        path.fs.get_file(path.path, str(local))
        yield local


def remote_names(folder: Any) -> set[str]:
    """Names in a remote folder as they are now, whatever was listed before; empty if there is no such folder."""
    with told("list", folder):
        folder.fs.invalidate_cache()
        try:
            entries = folder.fs.ls(folder.path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        folder.fs.invalidate_cache()  # others write there: what is remembered would soon be wrong
    own = folder.path.rstrip("/")  # stores may hold a placeholder object for a folder
    paths = (str(entry).rstrip("/") for entry in entries)
    return {path.rpartition("/")[2] for path in paths if path != own}


def remote_files(folder: Any) -> Iterator[str]:
    """Names of all files below a remote folder, folder by folder."""
    folder.fs.invalidate_cache()
    try:
        for _, _, names in folder.fs.walk(folder.path):
            yield from names
    finally:
        folder.fs.invalidate_cache()


def remove_remote_tree(folder: Any) -> None:
    """Delete a remote folder and all that is in it, if it is there."""
    with told("delete", folder):
        folder.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)


def this_machine() -> str:
    """The same text for all processes that see each other's locks, another one elsewhere (in a container, too)."""
    parts = [socket.gethostname()]
    for source in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/mnt"):
        with contextlib.suppress(OSError):
            path = Path(source)
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
    return "/".join(parts)


@contextlib.contextmanager
def locked(file: Path, folder: Place) -> Iterator[None]:
    """Hold the lock file ``file``, which stands for ``folder``. Raises UserError at once if another one holds it."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process is at work in {folder}; wait for it or choose another folder"
        ) from None
    except OSError as error:
        why = " ".join(str(error).split())
        raise UserError(f"cannot write to {folder}: {why}") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def claimed(folder: Any, take_over: bool = False) -> Iterator[None]:
    """Hold a remote folder. Stores have no locks that a killed process drops: an object ``.lock`` says who holds it.

    On one machine a lock file, named after the URL, comes first: whoever has it knows that a claim from this machine
    is a dead process's. A claim from another machine is respected, unless ``take_over`` says that it is dead.
    Raises UserError at once if the folder is held.
    """
    require_writable(folder)
    name = hashlib.sha256(str(folder).rstrip("/").encode()).hexdigest()[:24]
    user = os.getuid() if hasattr(os, "getuid") else 0
    with locked(Path(tempfile.gettempdir()) / f"posters-{user}-{name}.lock", folder):
        token = secrets.token_hex(8)
        claim = {
            "token": token,
            "machine": this_machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        }
        path = folder / CLAIM
        try:
            with told("write", folder):
                _take(path, claim, take_over)
        except FileNotFoundError as error:
            why = " ".join(str(error).split())
            raise UserError(f"cannot write to {folder}: {why}; make the bucket first") from None
        try:
            yield
        finally:
            # Where the store fails now, the next run on this machine takes over.
            with contextlib.suppress(*remote_errors()):
                if _holder(path).get("token") == token:
                    remove_remote_file(path)


def _take(path: Any, claim: dict[str, Any], take_over: bool) -> None:
    data = json.dumps(claim).encode()
    try:
        path.fs.pipe_file(path.path, data, mode="create")
    except FileExistsError:
        exists = True
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NOT_EXCLUSIVE:
            raise  # a passing failure says nothing of what the store knows
        exists = bool(_holder(path))
        if not exists:
            path.fs.pipe_file(path.path, data)
    else:
        exists = False
    if exists:
        holder = _holder(path)
        if holder and holder.get("machine") != claim["machine"] and not take_over:
            raise _held(path, holder)
        path.fs.pipe_file(path.path, data)
    holder = _holder(path)
    if holder.get("token") != claim["token"]:  # two began in the same moment: the last writer has it
        raise _held(path, holder)


def _held(path: Any, holder: dict[str, Any]) -> UserError:
    who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
    return UserError(
        f"{path.parent} is claimed by another run ({who}); wait for it, choose another folder, or, if that run is "
        f"dead, pass --take-over"
    )


def _holder(path: Any) -> dict[str, Any]:
    """Who holds the folder; empty if nobody does."""
    try:
        value = json.loads(read_whole(path))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
