"""Files of a cache: whose they are, whether they were checked, the locks on them, and what may be deleted.

A folder may be one where other users write. So no name in it is followed or believed: a file counts if it is a regular
one of this user (or root's), under one name only, that no other user may write. All else of that name is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shards.files import PARTIAL, atomic_path

#: Marks the line that says why a file could not be fetched.
FAILED = ".failed"

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: Of what cannot be opened so: symbolic links, sockets, pipes, directories, files of others.
_FOREIGN = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR, errno.EACCES)
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Ours:
    """What a file of this user looks like in a folder: some file systems give all files one owner or one mode."""

    def __init__(self, folder: Path) -> None:
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                facts = os.fstat(probe.fileno())
            self.uid, self._modes = facts.st_uid, not facts.st_mode & _WRITABLE_BY_OTHERS
        except OSError:  # on a disk that can only be read
            self.uid, self._modes = os.geteuid(), True

    def owns(self, facts: os.stat_result) -> bool:
        """Whether no other user (but root) can have made or changed the file."""
        return (
            stat.S_ISREG(facts.st_mode)
            and facts.st_nlink == 1
            and facts.st_uid in (self.uid, 0)
            and not (self._modes and facts.st_mode & _WRITABLE_BY_OTHERS)
        )

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int | None:
        """A descriptor of our file, None if there is none; what is there under its name instead is deleted."""
        try:
            descriptor = os.open(path, flags | _OPEN)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _FOREIGN:
                raise
            path.unlink(missing_ok=True)
            return None
        if self.owns(os.fstat(descriptor)):
            return descriptor
        try:
            if same(descriptor, path):
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        return None

    def make(self, path: Path) -> int:
        """A descriptor of our file, to read and write, made if need be."""
        for _ in range(100):
            with contextlib.suppress(FileExistsError):
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
            descriptor = self.open(path, os.O_RDWR)
            if descriptor is not None:
                return descriptor
        raise OSError(errno.EEXIST, "another user puts files there", str(path))

    def read(self, path: Path, most: int) -> bytes | None:
        """The first ``most`` bytes of our file, None if there is none."""
        descriptor = self.open(path)
        if descriptor is None:
            return None
        with open(descriptor, "rb") as stream:
            return stream.read(most)


def write_own(path: Path, data: bytes) -> None:
    """Write a small file that no other user may read or write, atomically."""
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(data)


def stamp(sha256: str, facts: os.stat_result) -> int:
    """The time of last change, in ns, that a file gets when its digest was checked.

    It says which content was found in which inode of which size. Any later write gives the file another one; a file
    that is renamed, replaced or copied does not have it. So a look at a file says whether it was checked on this node.
    """
    said = hashlib.sha256(f"{sha256} {facts.st_ino} {facts.st_size}".encode()).digest()
    # In the past: reading a file whose last change lies ahead would note its time of access again and again.
    seconds = 10**8 + int.from_bytes(said[:4], "big") % 2**29
    return seconds * 10**9 + int.from_bytes(said[4:8], "big") % 10**9


def sha256_of(descriptor: int) -> str:
    """SHA-256 of a file's bytes from its beginning, in hexadecimal."""
    digest, position = hashlib.sha256(), 0
    while block := os.pread(descriptor, 1 << 20, position):
        digest.update(block)
        position += len(block)
    return digest.hexdigest()


def partial_of(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(path.name + PARTIAL)


@contextlib.contextmanager
def held_partial(path: Path, ours: Ours) -> Iterator[int | None]:
    """A descriptor of the file's partial, held; None if another thread or process holds it.

    What is not under its final name when the block ends is deleted.
    """
    partial = partial_of(path)
    descriptor = ours.make(partial)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        if not same(descriptor, partial):  # renamed or swept away before the lock was ours
            yield None
            return
        try:
            yield descriptor
        finally:
            if same(descriptor, partial):
                partial.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held_alone(path: Path, ours: Ours) -> Iterator[None]:
    """Hold a lock file, once whoever has it lets go."""
    while True:
        descriptor = ours.make(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if same(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def held_for_reading(path: Path, ours: Ours) -> int | None:
    """A descriptor of our file, which nobody deletes until it is closed; None if there is no such file."""
    descriptor = ours.open(path)
    if descriptor is None:
        return None
    with contextlib.ExitStack() as unless_there:
        unless_there.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for nothing but an eviction
        if os.fstat(descriptor).st_nlink:
            unless_there.pop_all()
            return descriptor
    return None


def delete_unused(path: Path, ours: Ours) -> bool:
    """Delete our file unless somebody holds it; whether it is gone."""
    descriptor = ours.open(path)
    if descriptor is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if same(descriptor, path):
            path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def same(descriptor: int, path: Path) -> bool:
    """Whether a path still is the file that was opened."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    facts = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (facts.st_dev, facts.st_ino)
