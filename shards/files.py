"""Files that are either whole or absent: atomic writes, checksums, and a lock for a folder under construction."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from shards.errors import UserError

#: Half-written files carry this mark until they are renamed; readers never look at them.
PARTIAL = ".partial"


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it to ``path`` when the block ends well.

    The name holds the process id, so that two processes never write one temporary file. The data are
    flushed to disk before the rename: after a power cut a final name still means a whole file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name may be as long as file systems allow (255 bytes), and then has no room for more.
    name = path.name if len(path.name.encode()) < 200 else hashlib.sha256(path.name.encode()).hexdigest()
    temporary = path.with_name(f"{name}.{os.getpid()}{PARTIAL}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with open(temporary, mode, **text) as stream:  # type: ignore[call-overload]
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it was
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically and with a stable layout."""
    with atomic_write(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def read_json(path: Path, what: str) -> Any:
    """Read JSON; ``what`` names the file's role in the error. Raises UserError if absent or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {path} cannot be read: {one_line(error)}") from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``: equal values have equal fingerprints on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def remove_partials(folder: Path) -> None:
    """Delete what a killed process left half-written (safe only under the folder's lock)."""
    for leftover in folder.glob(f"*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process. Raises UserError at once if another one holds it.

    The operating system drops the lock when its holder dies, so a killed run never blocks the next one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {one_line(error)}") from None
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process is at work in {folder}; wait for it or choose another folder"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {one_line(error)}") from None
    try:
        yield
    finally:
        lock.release()


def one_line(error: object) -> str:
    """An exception's (or any) text folded into one line."""
    return " ".join(str(error).split()) or type(error).__name__
