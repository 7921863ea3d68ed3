"""Atomic writes, reads, checksums and deletions of files. Locks are in lock.py.

Most functions accept local paths and URLs (paths.py). The code for URLs is in remote_files.py.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from shards.errors import UserError, one_line
from shards.storage import remote_files
from shards.storage.paths import StoragePath, is_remote
from shards.storage.retrying_read import FIRST_RETRY_SECONDS, MAX_SMALL_BYTES, RetryBudget, read_small

#: Ending of the temporary name of a half-written file. Readers ignore such files.
PARTIAL = ".partial"
#: Largest size of a text file at a URL in bytes. It is enough for a CSV of about ten million rows.
LARGEST_TEXT = 1 << 30


@contextlib.contextmanager
def atomic_path(path: StoragePath) -> Iterator[Path]:
    """Yield the path of a temporary local file to write. The file becomes ``path`` if the block ends without an error.

    For a local ``path``, the temporary file is in the same folder and has a name that no other call on any machine
    uses. The data are flushed to the disk before the file is renamed. So a file with its final name is complete, even
    after a power cut. For a URL, the file is uploaded when the block ends.
    """
    if is_remote(path):
        with remote_files.uploaded(path, PARTIAL) as local:
            yield local
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(remote_files.unique_name(path.name, PARTIAL))
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # the system's error for a full disk has no file name
        raise


@contextlib.contextmanager
def atomic_write(path: StoragePath, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file for writing. It becomes ``path`` if the block ends without an error (see atomic_path).

    Text is written as UTF-8. A lone surrogate (from a name that is not UTF-8) becomes a JSON escape sequence.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    with atomic_path(path) as temporary, open(temporary, mode, **text) as stream:  # type: ignore[call-overload]
        yield stream


def flush(path: Path) -> None:
    """Flush a local file, or the list of names in a local folder, to the disk. Raises OSError.

    The error of a network file system that cannot flush folders is ignored.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Flush a local folder and its contents to the disk. Raises OSError."""
    for path in [*sorted(folder.rglob("*")), folder]:
        flush(path)


def write_json(path: StoragePath, value: Any) -> None:
    """Write ``value`` atomically as indented JSON."""
    with atomic_write(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


@contextlib.contextmanager
def opened_text(path: StoragePath, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """Open a text file and keep its line ends. LARGEST_TEXT limits the size at a URL. Raises OSError or UserError."""
    if not is_remote(path):
        with path.open("r", encoding=encoding, newline="") as stream:
            yield stream
    else:
        yield io.TextIOWrapper(io.BytesIO(file_bytes(path)), encoding, newline="")


def file_bytes(path: StoragePath) -> bytes:
    """Return the bytes of a file. LARGEST_TEXT limits the size at a URL. Raises OSError or UserError."""
    if not is_remote(path):
        return path.read_bytes()
    data = read_small(path, RetryBudget(FIRST_RETRY_SECONDS), LARGEST_TEXT)
    if data is None:
        raise FileNotFoundError(str(path))
    return data


def small_bytes(path: Path) -> bytes:
    """Return the bytes of a local manifest or index. Raises OSError, or UserError if it has over MAX_SMALL_BYTES."""
    if (size := path.stat().st_size) > MAX_SMALL_BYTES:
        why = f"it has {size} bytes, over the limit of {MAX_SMALL_BYTES}; copy it again"
        raise UserError("path-unreadable", f"{path} cannot be read: {why}")
    return path.read_bytes()


def read_json(path: StoragePath, what: str) -> Any:
    """Return the value in a JSON file. ``what`` names the file in messages. Raises UserError if it cannot be read."""
    try:
        with opened_text(path) as stream:
            return json.load(stream)
    except FileNotFoundError:
        raise UserError("path-missing", f"{what} not found: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("path-unreadable", f"{what} {path} cannot be read: {one_line(error)}") from None


def sha256_file(path: StoragePath) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return sha256_stream(stream)


def sha256_stream(stream: IO[bytes]) -> str:
    """SHA-256 of all bytes of an open file, in hexadecimal."""
    digest = hashlib.sha256()
    stream.seek(0)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``. Equal values have equal fingerprints on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def names_in(folder: StoragePath) -> set[str]:
    """Return the current names of the files and folders in a folder. Empty if the folder does not exist."""
    if is_remote(folder):
        return remote_files.remote_names(folder)
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def read_present(folder: StoragePath, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of each existing file among ``names``, in any order."""
    there = names_in(folder)
    wanted = [name for name in names if name in there]
    if is_remote(folder):
        yield from remote_files.read_many(folder, wanted)
    else:
        for name in wanted:
            yield name, (folder / name).read_bytes()


def place_key(folder: StoragePath) -> Callable[[str], str]:
    """Return a function that maps a path below a folder to a key. Paths of the same file have equal keys.

    For example, ``a//b`` and ``a/b`` have equal keys. Some file systems do not distinguish A and a, or an accented
    letter and the letter with a combining accent. This function creates a temporary file to test the file system.
    """
    capital, small, apart = "\u00c9", "\u00e9", "E\u0301"
    case = form = False
    if not is_remote(folder):
        probe = folder / f".{capital}{PARTIAL}"
        with contextlib.suppress(OSError, UnicodeError):  # if the name is not allowed, all names count as different
            probe.touch()
            case, form = (probe.with_name(f".{name}{PARTIAL}").exists() for name in (small, apart))
            probe.unlink()

    def key(path: str) -> str:
        plain = str(PurePosixPath(path))
        plain = unicodedata.normalize("NFC", plain) if form else plain
        return plain.casefold() if case else plain

    return key


def remove_partials(folder: StoragePath) -> None:
    """Delete the half-written files of killed processes. The caller must hold the folder's lock."""
    if is_remote(folder) and remote_files.writes_atomically(folder):
        return  # stores with atomic writes have no half-written files, and a listing is slow
    for name in names_in(folder):
        if name.endswith(PARTIAL):
            remove_file(folder / name)


def remove_file(path: StoragePath) -> None:
    """Delete a file if it exists."""
    if is_remote(path):
        remote_files.remove_remote_file(path)
    else:
        path.unlink(missing_ok=True)


def remove_tree(folder: StoragePath) -> None:
    """Delete a folder with its contents. Errors of a local folder are ignored."""
    if is_remote(folder):
        remote_files.remove_remote_tree(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def local_copy(path: StoragePath) -> Iterator[Path]:
    """Yield the local path of a file. For a URL, this is a copy that is deleted when the block ends."""
    if is_remote(path):
        with remote_files.downloaded(path) as local:
            yield local
    else:
        yield path
