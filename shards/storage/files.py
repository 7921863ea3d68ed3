"""Files that are either whole or absent: atomic writes, checksums, deletions. lock.py: one process at a time.

All of it works on local paths and on URLs (shards/storage/paths.py); shards/storage/remote_files.py has what URLs need.
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

#: Half-written files carry this mark until they are renamed; readers never look at them.
PARTIAL = ".partial"

#: Bytes of a text at a URL, at most: a CSV of some ten million rows.
LARGEST_TEXT = 1 << 30


@contextlib.contextmanager
def atomic_path(path: StoragePath) -> Iterator[Path]:
    """The name of a local file to write; it becomes ``path`` when the block ends well.

    A local one lies beside ``path``, under a name of this process and call alone: two processes, of one machine or of
    two that share a folder, never write one temporary file. The data are flushed to disk before the rename: after a
    power cut a final name still means a whole file. For a URL the file is uploaded at the end.
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
            error.filename = str(path)  # a full disk does not say which file it was
        raise


@contextlib.contextmanager
def atomic_write(path: StoragePath, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing that becomes ``path`` when the block ends well (see atomic_path).

    Text is UTF-8. Half a character, of a name that is no text, becomes an escape, which JSON reads back.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": "backslashreplace"}
    with atomic_path(path) as temporary, open(temporary, mode, **text) as stream:  # type: ignore[call-overload]
        yield stream


def flush(path: Path) -> None:
    """Bring a local file, or the names in a local folder, to the disk. Raises OSError.

    Some network file systems cannot do it for a folder, whose names their servers keep.
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
    """Bring a local folder and all that is in it to the disk. Raises OSError."""
    for path in [*sorted(folder.rglob("*")), folder]:
        flush(path)


def write_json(path: StoragePath, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically and with a stable layout."""
    with atomic_write(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


@contextlib.contextmanager
def opened_text(path: StoragePath, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """Open a text for reading, line ends as they are; at a URL LARGEST_TEXT at most. Raises OSError, UserError."""
    if not is_remote(path):
        with path.open("r", encoding=encoding, newline="") as stream:
            yield stream
    elif (data := read_small(path, RetryBudget(FIRST_RETRY_SECONDS), LARGEST_TEXT)) is not None:
        yield io.TextIOWrapper(io.BytesIO(data), encoding, newline="")
    else:
        raise FileNotFoundError(str(path))


def small_bytes(path: Path) -> bytes:
    """All bytes of a local manifest or index. Raises UserError if they are too many to be one, OSError."""
    if (size := path.stat().st_size) > MAX_SMALL_BYTES:
        why = f"it has {size} bytes, over the limit of {MAX_SMALL_BYTES}; copy it again"
        raise UserError("path-unreadable", f"{path} cannot be read: {why}")
    return path.read_bytes()


def read_json(path: StoragePath, what: str) -> Any:
    """Read JSON; ``what`` names the file's role in the error. Raises UserError if absent or malformed."""
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
    """SHA-256 of an open file's bytes from the first one on, in hexadecimal."""
    digest = hashlib.sha256()
    stream.seek(0)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``: equal values have equal fingerprints on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def names_in(folder: StoragePath) -> set[str]:
    """Names of the files and folders in a folder as it is now; empty if there is no such folder."""
    if is_remote(folder):
        return remote_files.remote_names(folder)
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def read_present(folder: StoragePath, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of those of a folder's files that are there, in any order."""
    there = names_in(folder)
    wanted = [name for name in names if name in there]
    if is_remote(folder):
        yield from remote_files.read_many(folder, wanted)
    else:
        for name in wanted:
            yield name, (folder / name).read_bytes()


def place_key(folder: StoragePath) -> Callable[[str], str]:
    """Paths below this folder lie in one place if, and only if, their keys are equal.

    ``a//b`` is ``a/b`` everywhere. Some file systems do not tell A from a, or an accented letter from the letter and
    its accent; a file that is there for a moment shows whether this folder's does.
    """
    capital, small, apart = "\u00c9", "\u00e9", "E\u0301"
    case = form = False
    if not is_remote(folder):
        probe = folder / f".{capital}{PARTIAL}"
        with contextlib.suppress(OSError, UnicodeError):  # where there is no such name, there is nothing to confuse
            probe.touch()
            case, form = (probe.with_name(f".{name}{PARTIAL}").exists() for name in (small, apart))
            probe.unlink()

    def key(path: str) -> str:
        plain = str(PurePosixPath(path))
        plain = unicodedata.normalize("NFC", plain) if form else plain
        return plain.casefold() if case else plain

    return key


def remove_partials(folder: StoragePath) -> None:
    """Delete what a killed process left half-written (safe only under the folder's lock)."""
    if is_remote(folder) and remote_files.puts_whole(folder):
        return  # there are none, and the folder may be large
    for name in names_in(folder):
        if name.endswith(PARTIAL):
            remove_file(folder / name)


def remove_file(path: StoragePath) -> None:
    """Delete a file if it is there."""
    if is_remote(path):
        remote_files.remove_remote_file(path)
    else:
        path.unlink(missing_ok=True)


def remove_tree(folder: StoragePath) -> None:
    """Delete a folder of our own and all that is in it, as far as that is possible."""
    if is_remote(folder):
        remote_files.remove_remote_tree(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def local_copy(path: StoragePath) -> Iterator[Path]:
    """A file as a local one: itself, or a copy for as long as the block runs."""
    if is_remote(path):
        with remote_files.downloaded(path) as local:
            yield local
    else:
        yield path
