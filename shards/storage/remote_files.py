"""Files at URLs: atomic writes, reads of whole files, fresh listings, deletions. Locks are in lock.py."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.storage.paths import StoragePath, as_user_error, remote_errors

#: Protocols of stores with atomic writes. In other stores, a file is uploaded and then moved to its final name.
ATOMIC_PUT = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "obs", "hf", "memory")
#: Largest number of folders in one listing.
MOST_FOLDERS = 10_000
READ_ONLY = ("http", "https", "github", "data", "zip", "tar")


def unique_name(name: str, suffix: str) -> str:
    """Make a unique file name from ``name``. It has at most 255 bytes, and no process on any machine has used it."""
    if len(os.fsencode(name)) >= 200:  # file systems allow 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname()[:20])
    return f"{name}.{host}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def require_writable(folder: StoragePath) -> None:
    """Raise UserError if the URL is read-only or contains a wildcard."""
    protocol: str = folder.protocol  # type: ignore[attr-defined]  # an UPath
    if protocol in READ_ONLY:
        raise UserError("url-refused", f"{folder} can only be read: choose a folder, or a URL of a store such as s3://")
    if glob.has_magic(str(folder)):
        why = "choose another URL"
        raise UserError("url-refused", f"{folder} contains a wildcard (*, ? or [): {why}")


def writes_atomically(place: Any) -> bool:
    """Return whether writes to the store of a path are atomic."""
    return place.protocol in ATOMIC_PUT


@contextlib.contextmanager
def uploaded(path: Any, partial: str) -> Iterator[Path]:
    """Yield the path of a local file to write. The file is uploaded to ``path`` if the block ends without an error.

    partial: extension of an unfinished upload. Errors of the store are raised unchanged, so that a task can be retried.
    """
    with tempfile.TemporaryDirectory(prefix="posters-") as folder:
        local, fs = Path(folder) / "file", path.fs
        yield local
        if writes_atomically(path):
            fs.put_file(str(local), path.path)
            return
        fs.makedirs(path.parent.path, exist_ok=True)
        unfinished = path.with_name(unique_name(path.name, partial))
        try:
            fs.put_file(str(local), unfinished.path)
            if fs.exists(path.path):  # some stores cannot move a file to an existing name
                fs.rm_file(path.path)
            fs.mv(unfinished.path, path.path)
        except BaseException:
            with contextlib.suppress(*remote_errors()):
                remove_remote_file(unfinished)
            raise


def remove_remote_file(path: Any) -> None:
    """Delete a remote file if it exists. UPath.unlink is not used, because it treats ``a*.jpg`` as a pattern."""
    with contextlib.suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


def read_whole(path: Any, most: int = 0) -> bytes:
    """Return the bytes of a remote file, or only the first ``most`` bytes if ``most`` is not 0."""
    # Without this option, s3fs requests the size first, to download large files in parts.
    once = {"max_concurrency": 1} if path.protocol in ("s3", "s3a") else {}
    data: bytes = path.fs.cat_file(path.path, **({"start": 0, "end": most} if most else once))
    return data


def read_many(folder: Any, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the existing files among ``names`` in a remote folder. Reads 500 files at a time."""
    for start in range(0, len(names), 500):
        some = names[start : start + 500]
        # fs.cat is not used, because it treats ``Up [2009].jpg`` as a pattern.
        found = folder.fs.cat_ranges([(folder / name).path for name in some], None, None, on_error="return")
        for name, data in zip(some, found, strict=True):
            if not isinstance(data, Exception):
                yield name, data
            elif not isinstance(data, FileNotFoundError):
                raise data


@contextlib.contextmanager
def downloaded(path: Any) -> Iterator[Path]:
    """Yield the path of a local copy of a remote file. The copy is deleted when the block ends."""
    with tempfile.TemporaryDirectory(prefix="posters-") as folder:
        local = Path(folder) / path.name
        path.fs.get_file(path.path, str(local))
        yield local


def remote_names(folder: Any) -> set[str]:
    """Return the current names in a remote folder, without a cache. Empty if the folder does not exist."""
    with as_user_error("list", folder):
        folder.fs.invalidate_cache()
        try:
            entries = folder.fs.ls(folder.path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return set()
        folder.fs.invalidate_cache()  # other processes write there: a cached listing would soon be wrong
    own = folder.path.rstrip("/")  # some stores list an object for the folder itself
    paths = (str(entry).rstrip("/") for entry in entries)
    return {path.rpartition("/")[2] for path in paths if path != own}


def remote_files(folder: Any) -> Iterator[str]:
    """Yield the names of all files below a remote folder, folder by folder.

    Raises UserError if there are over MOST_FOLDERS folders, because an HTTP server can list folders without end.
    """
    folder.fs.invalidate_cache()
    try:
        for count, (_, _, names) in enumerate(folder.fs.walk(folder.path)):
            if count == MOST_FOLDERS:
                remedy = "give the folder that contains the posters"
                raise UserError("url-refused", f"{folder} has over {MOST_FOLDERS} folders; {remedy}")
            yield from names
    finally:
        folder.fs.invalidate_cache()


def remove_remote_tree(folder: Any) -> None:
    """Delete a remote folder with its contents, if it exists."""
    with as_user_error("delete", folder):
        folder.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)
