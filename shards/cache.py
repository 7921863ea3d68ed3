"""A folder of this node that keeps remote files: fetched once, whole and checked, the least recently used go first.

    CACHE/SHA256.tar           a file under the name of its content: sets, builds and jobs share what is the same
    CACHE/SHA256.tar.partial   one that is being fetched, in its full size from the start: its room is taken
    CACHE/.room                held while room is made

Processes agree through locks of the operating system (flock), which it drops when a process dies:

- who fetches a file holds its partial exclusively; the others wait and then find it whole. A partial that nobody holds
  was left by a killed process and is deleted.
- who reads a file holds it shared. A file that is held is in use and stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from shards.errors import UserError
from shards.files import PARTIAL, atomic_write, one_line
from shards.places import Place
from shards.remote_read import Patience, read_remote, read_whole
from shards.store import CacheOptions, NoRoom

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")

#: Seconds between two looks at what another process holds.
POLL = 0.05
#: A file's time of last use is noted no more often than this, in seconds: a note is a write.
NOTE = 1.0
#: Times that a whole file is fetched again because its digest was another than the manifest's.
WHOLE_TRIES = 3
_KEPT = re.compile(r"[0-9a-f]{64}(\.\w+)+")


@dataclass(frozen=True)
class RemoteFile:
    """A file that a manifest vouches for."""

    place: Place
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Its name in a cache."""
        return f"{self.sha256}{self.place.suffix}"


class Cache:
    """The kept files of one folder. Safe to use from many threads and processes."""

    def __init__(self, options: CacheOptions) -> None:
        self.options = options
        self.folder = options.path
        self._noted: dict[str, float] = {}
        self._told = threading.Event()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the cache {self.folder}: {one_line(error)}; name another with --cache-dir"
            ) from None
        self._room = FileLock(self.folder / ".room")

    def open(self, file: RemoteFile) -> int:
        """A descriptor of the whole file, which is in use until it is closed. Fetches the file if need be.

        Raises UserError if it cannot be had.
        """
        while True:
            descriptor = self._held(file)
            if descriptor is not None:
                return descriptor
            self.fetch(file, over_limit=True)

    def fetch(self, file: RemoteFile, over_limit: bool = False) -> bool:
        """See to it that the file is there; True if this call brought it.

        Where the limit leaves no room, NoRoom is raised, or (``over_limit``) a warning given. Raises UserError if the
        file cannot be had. A file that was there counts as used: it is wanted soon.
        """
        path = self.folder / file.name
        while not self._there(file):
            with self._partial(path) as descriptor:
                if descriptor is None:  # somebody else is at it
                    time.sleep(POLL)
                    continue
                if self._there(file):  # since we looked
                    break
                self._make_room(file, descriptor, over_limit)
                self._bring(file, descriptor)
                os.replace(_partial_of(path), path)
                return True
        self._note(path, path)
        return False

    def checked(self, source: Place, name: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What ``parse`` makes of a small file that no manifest vouches for; it raises UserError for wrong bytes.

        Kept as ``name``; what was damaged here is fetched anew.
        """
        kept = self.folder / name
        try:
            return parse(kept.read_bytes())
        except FileNotFoundError:
            pass
        except UserError:
            kept.unlink(missing_ok=True)
        data = read_whole(source, Patience(self.options.patience))
        if data is None:
            raise UserError(f"{source} is missing; upload the set again")
        result = parse(data)
        with atomic_write(kept) as stream:
            stream.write(data)
        return result

    def has(self, file: RemoteFile) -> bool:
        """Whether the file is there."""
        return self._there(file)

    def _there(self, file: RemoteFile) -> bool:
        try:
            return (self.folder / file.name).stat().st_size == file.bytes
        except FileNotFoundError:
            return False

    def _held(self, file: RemoteFile) -> int | None:
        path = self.folder / file.name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for nothing but an eviction
        facts = os.fstat(descriptor)
        if facts.st_nlink == 0 or facts.st_size != file.bytes:
            os.close(descriptor)
            if facts.st_nlink:  # damaged from outside: sizes never differ otherwise
                path.unlink(missing_ok=True)
            return None
        self._note(path, descriptor)
        return descriptor

    def _note(self, path: Path, file: Path | int) -> None:
        """Note that the file was used now: its time of change, which nothing else needs, says when."""
        now = time.time()
        if now - self._noted.get(path.name, 0.0) >= NOTE:
            self._noted[path.name] = now
            # Gone again, or another user's in a cache that is shared to be read: it is no worse for it.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                os.utime(file)

    @contextlib.contextmanager
    def _partial(self, path: Path) -> Iterator[int | None]:
        """The file's partial, held; None if another thread or process holds it."""
        partial = _partial_of(path)
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
                if _same(descriptor, partial):  # not under its final name: whatever the reason, it goes
                    partial.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def _make_room(self, file: RemoteFile, descriptor: int, over_limit: bool) -> None:
        """Take the file's room, deleting what was used longest ago if the limit asks for it."""
        limit = self.options.limit
        with self._room:
            if limit:
                kept, partials = self._listed()
                total = sum(size for _, size, _ in kept) + partials
                for _, size, path in sorted(kept):
                    if total + file.bytes <= limit:
                        break
                    if _delete_unused(path):
                        total -= size
                if total + file.bytes > limit:
                    if not over_limit:
                        raise NoRoom(file.name)
                    self._tell_over(total + file.bytes)
            try:
                os.ftruncate(descriptor, file.bytes)
                if hasattr(os, "posix_fallocate") and file.bytes:
                    os.posix_fallocate(descriptor, 0, file.bytes)  # a full disk shows now
            except OSError as error:
                raise UserError(
                    f"no room for {file.place} ({file.bytes / 2**20:.0f} MiB) in the cache {self.folder}: "
                    f"{one_line(error)}; set --cache-limit, or name a larger disk with --cache-dir"
                ) from None

    def _listed(self) -> tuple[list[tuple[float, int, Path]], int]:
        """(last use, bytes, path) of every whole file; bytes of those being fetched. Sweeps what a kill left."""
        kept, partials = [], 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    facts = entry.stat()
                except FileNotFoundError:  # gone while we looked
                    continue
                if entry.name.endswith(PARTIAL):
                    # Our own is held by another descriptor of this process, and so is in use like anybody's.
                    if not _delete_unused(Path(entry.path)):
                        partials += facts.st_size
                elif _KEPT.fullmatch(entry.name):
                    kept.append((facts.st_mtime, facts.st_size, Path(entry.path)))
        return kept, partials

    def _tell_over(self, size: int) -> None:
        if not self._told.is_set():
            self._told.set()
            log.warning(
                "the cache %s is over its limit (%.1f of %.1f GiB): all that is in it is in use; raise --cache-limit",
                self.folder,
                size / 2**30,
                self.options.limit / 2**30,
            )

    def _bring(self, file: RemoteFile, descriptor: int) -> None:
        """Fill the partial. Raises UserError if the file cannot be had or is not the manifest's."""
        patience = Patience(self.options.patience)
        for _ in range(WHOLE_TRIES):
            digest = hashlib.sha256()
            position = 0
            for block in read_remote(file.place, file.bytes, patience):
                digest.update(block)
                position += os.pwrite(descriptor, block, position)
            if digest.hexdigest() == file.sha256:
                os.fsync(descriptor)
                return
            log.warning("%s came with other bytes than the manifest's; fetching it again", file.place)
            patience.wait()
        raise UserError(
            f"{file.place} is not the file of the manifest (its sha256 differs, {WHOLE_TRIES} times): the set is being "
            f"replaced or was damaged; run `posters shards verify` where it was built, and upload it again"
        )


def _partial_of(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _same(descriptor: int, path: Path) -> bool:
    """Whether a path still is the file that was opened."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _delete_unused(path: Path) -> bool:
    """Delete a file of the cache unless somebody holds it; whether it is gone."""
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
