"""Files of a cache and the locks on them: what holds a file while it is fetched or read, and what may be deleted."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from shards.files import PARTIAL

#: Marks the line that says why a file could not be fetched.
FAILED = ".failed"


def partial_of(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(path.name + PARTIAL)


@contextlib.contextmanager
def held_partial(path: Path) -> Iterator[int | None]:
    """A descriptor of the file's partial, held; None if another thread or process holds it.

    What is not under its final name when the block ends is deleted.
    """
    partial = partial_of(path)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not _same(descriptor, partial):  # renamed or swept away before the lock was ours
            yield None
            return
        try:
            yield descriptor
        finally:
            if _same(descriptor, partial):
                partial.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def held_for_reading(path: Path, size: int) -> int | None:
    """A descriptor of a whole file, which nobody deletes until it is closed; None if there is no such file.

    One of another size was damaged from outside and is deleted.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with contextlib.ExitStack() as unless_whole:
        unless_whole.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for nothing but an eviction
        facts = os.fstat(descriptor)
        if facts.st_nlink and facts.st_size == size:
            unless_whole.pop_all()
            return descriptor
        if facts.st_nlink:
            path.unlink(missing_ok=True)
    return None


def delete_unused(path: Path) -> bool:
    """Delete a file unless somebody holds it; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same(descriptor, path):
            path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    """Whether a path still is the file that was opened."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
