"""What URLs need beyond reading: writes that are whole or absent, fresh listings. lock.py: who works there."""

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

#: Stores whose puts are visible whole or not at all; elsewhere a file is moved to its name when it is whole.
ATOMIC_PUT = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "obs", "hf", "memory")

#: Folders that are looked through for a first file.
MOST_FOLDERS = 10_000
READ_ONLY = ("http", "https", "github", "data", "zip", "tar")


def unique_name(name: str, suffix: str) -> str:
    """A name beside ``name`` that no other process of any machine uses, at most 255 bytes long."""
    if len(name.encode()) >= 200:  # it may be as long as file systems allow: no room for more
        name = hashlib.sha256(name.encode()).hexdigest()
    host = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname()[:20])
    return f"{name}.{host}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"


def require_writable(folder: StoragePath) -> None:
    """Raise UserError for a kind of URL that can only be read."""
    protocol: str = folder.protocol  # type: ignore[attr-defined]  # an UPath
    if protocol in READ_ONLY:
        raise UserError("url-refused", f"{folder} can only be read: choose a folder, or a URL of a store such as s3://")
    if glob.has_magic(str(folder)):
        why = "choose a URL without"
        raise UserError("url-refused", f"{folder} has a * ? or [, which would stand for other names: {why}")


def puts_whole(place: Any) -> bool:
    """Whether what is put there is visible whole or not at all."""
    return place.protocol in ATOMIC_PUT


@contextlib.contextmanager
def uploaded(path: Any, partial: str) -> Iterator[Path]:
    """A local file to write; it is put at ``path`` when the block ends well. ``partial`` marks unfinished names.

    Raises what the store raises: a task that met a passing failure is tried again.
    """
    with tempfile.TemporaryDirectory(prefix="posters-") as folder:
        local, fs = Path(folder) / "file", path.fs
        yield local
        if puts_whole(path):
            fs.put_file(str(local), path.path)
            return
        fs.makedirs(path.parent.path, exist_ok=True)
        unfinished = path.with_name(unique_name(path.name, partial))
        try:
            fs.put_file(str(local), unfinished.path)
            if fs.exists(path.path):  # not every store moves onto a name that is taken
                fs.rm_file(path.path)
            fs.mv(unfinished.path, path.path)
        except BaseException:
            with contextlib.suppress(*remote_errors()):
                remove_remote_file(unfinished)
            raise


def remove_remote_file(path: Any) -> None:
    """Delete a remote file if it is there; that one alone, where UPath.unlink would take ``a*.jpg`` for many."""
    with contextlib.suppress(FileNotFoundError):
        path.fs.rm_file(path.path)


def read_whole(path: Any, most: int = 0) -> bytes:
    """A remote file's (first ``most``) bytes, in one request where that can be had: posters are many and small."""
    # s3fs would ask for the size first, to fetch large files in parts.
    once = {"max_concurrency": 1} if path.protocol in ("s3", "s3a") else {}
    data: bytes = path.fs.cat_file(path.path, **({"start": 0, "end": most} if most else once))
    return data


def read_many(folder: Any, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of those of a remote folder's files that are there, many at a time but not all at once."""
    for start in range(0, len(names), 500):
        some = names[start : start + 500]
        # Not fs.cat: it would take the name ``Up [2009].jpg`` for a pattern.
        found = folder.fs.cat_ranges([(folder / name).path for name in some], None, None, on_error="return")
        for name, data in zip(some, found, strict=True):
            if not isinstance(data, Exception):
                yield name, data
            elif not isinstance(data, FileNotFoundError):
                raise data


@contextlib.contextmanager
def downloaded(path: Any) -> Iterator[Path]:
    """A local copy of a remote file, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="posters-") as folder:
        local = Path(folder) / path.name
        path.fs.get_file(path.path, str(local))
        yield local


def remote_names(folder: Any) -> set[str]:
    """Names in a remote folder as they are now, whatever was listed before; empty if there is no such folder."""
    with as_user_error("list", folder):
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
    """Names of all files below a remote folder, folder by folder.

    Raises UserError where there are very many folders: a server on HTTP may list some in each without end.
    """
    folder.fs.invalidate_cache()
    try:
        for count, (_, _, names) in enumerate(folder.fs.walk(folder.path)):
            if count == MOST_FOLDERS:
                remedy = "name the one that holds the posters"
                raise UserError("url-refused", f"{folder} has over {MOST_FOLDERS} folders; {remedy}")
            yield from names
    finally:
        folder.fs.invalidate_cache()


def remove_remote_tree(folder: Any) -> None:
    """Delete a remote folder and all that is in it, if it is there."""
    with as_user_error("delete", folder):
        folder.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)
