"""A folder of this node that keeps remote files: fetched once, whole and checked, the least recently used go first.

    CACHE/SHA256.tar           a file under the name of its content: sets, builds and jobs share what is the same
    CACHE/SHA256.tar.partial   one that is being fetched, in its full size from the start: its room is taken
    CACHE/SHA256.tar.failed    why it could not be fetched, for those who were waiting for it
    CACHE/.room                held while room is made

Processes agree through locks of the operating system (flock), which it drops when a process dies:

- who fetches a file holds its partial exclusively; the others wait and then find it whole. A partial that nobody holds
  was left by a killed process and is deleted.
- who reads a file holds it shared. A file that is held is in use and stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from shards.cache_files import FAILED, delete_unused, held_for_reading, held_partial, partial_of
from shards.cache_options import CacheOptions, NoRoom, RemoteFile
from shards.errors import UserError, one_line
from shards.files import PARTIAL, atomic_write
from shards.places import Place
from shards.remote_read import Patience, read_blocks, read_small

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")

#: Seconds between two looks at what another process holds.
POLL = 0.05
#: A file's time of last use is noted no more often than this, in seconds: a note is a write.
NOTE = 1.0
#: Times that a whole file is fetched because its digest was another than the manifest's.
WHOLE_TRIES = 3
#: Seconds for which threads of a process take a file that could not be fetched for one that cannot be.
HOPELESS = 30.0
#: Seconds after which nobody waits any more for what a failure was about.
OLD = 3600.0
_KEPT = re.compile(r"[0-9a-f]{64}(\.\w+)+")


class Cache:
    """The kept files of one folder. Safe to use from many threads and processes.

    Whatever is wrong with the folder is a UserError: to readers an OSError means a damaged image.
    """

    def __init__(self, options: CacheOptions) -> None:
        self.options = options
        self.folder = options.path
        self._noted: dict[str, float] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        self._told = threading.Event()
        with self._own_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
        self._room = FileLock(self.folder / ".room")

    def open(self, file: RemoteFile, stop: threading.Event | None = None) -> int:
        """A descriptor of the whole file, which is in use until it is closed. Fetches the file if need be.

        Raises UserError if it cannot be had.
        """
        path = self.folder / file.name
        while True:
            with self._own_errors():
                descriptor = held_for_reading(path, file.bytes)
                if descriptor is not None:
                    self._note(path, descriptor)
                    return descriptor
            self.fetch(file, over_limit=True, stop=stop)

    def fetch(self, file: RemoteFile, over_limit: bool = False, stop: threading.Event | None = None) -> bool:
        """See to it that the file is there; True if this call brought it.

        Where the limit leaves no room, NoRoom is raised, or (``over_limit``) a warning given. Raises UserError if the
        file cannot be had; Abandoned soon after ``stop`` is set. A file that was there counts as used: it is wanted
        soon.
        """
        path, began = self.folder / file.name, time.time()
        with self._own_errors():
            while not self.has(file):
                self._share_failure(path, began)
                with held_partial(path) as descriptor:
                    if descriptor is None:  # somebody else is at it
                        Patience.rest(POLL, stop)
                        continue
                    if self.has(file):  # since we looked
                        break
                    self._share_failure(path, began)
                    self._make_room(file, descriptor, over_limit)
                    self._bring(file, descriptor, stop)
                    os.replace(partial_of(path), path)
                    return True
            self._note(path, path)
            return False

    def checked(self, source: Place, name: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What ``parse`` makes of a small file that no manifest vouches for; it raises UserError for wrong bytes.

        Kept as ``name``; what was damaged here is fetched anew.
        """
        kept = self.folder / name
        with self._own_errors():
            try:
                return parse(kept.read_bytes())
            except FileNotFoundError:
                pass
            except UserError:
                kept.unlink(missing_ok=True)
            data = read_small(source, Patience(self.options.patience, option="--patience"))
            if data is None:
                raise UserError(f"{source} is missing; upload the set again")
            result = parse(data)
            with atomic_write(kept) as stream:
                stream.write(data)
            return result

    def has(self, file: RemoteFile) -> bool:
        """Whether the file is there."""
        try:
            return (self.folder / file.name).stat().st_size == file.bytes
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the cache {self.folder} cannot be used: {one_line(error)}; mend it, or name another with --cache-dir"
            ) from None

    def _note(self, path: Path, file: Path | int) -> None:
        """Note that the file was used now: its time of change, which nothing else needs, says when."""
        now = time.time()
        if now - self._noted.get(path.name, 0.0) >= NOTE:
            self._noted[path.name] = now
            # Gone again, another user's, on a disk that can only be read: the file is no worse for it.
            with contextlib.suppress(OSError):
                os.utime(file)

    def _share_failure(self, path: Path, began: float) -> None:
        """Raise what whoever fetched the file met while we waited for it: patience is not to end once per reader."""
        at, message = self._failures.get(path.name, (0.0, ""))
        if time.time() - at < HOPELESS:
            raise UserError(message)
        marker = path.with_name(path.name + FAILED)
        with contextlib.suppress(FileNotFoundError):
            if marker.stat().st_mtime >= began:
                raise UserError(marker.read_text(encoding="utf-8"))

    def _make_room(self, file: RemoteFile, descriptor: int, over_limit: bool) -> None:
        """Take the file's room, deleting what was used longest ago if the limit asks for it."""
        limit = self.options.limit
        with self._room:
            kept, partials = self._listed()
            if limit:
                total = sum(size for _, size, _ in kept) + partials
                for _, size, path in sorted(kept):
                    if total + file.bytes <= limit:
                        break
                    if delete_unused(path):
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
                # Not all that is half-written is fetched: small files have partials of their own, with other names.
                whole = _KEPT.fullmatch(entry.name.removesuffix(PARTIAL))
                try:
                    facts = entry.stat()
                except FileNotFoundError:  # gone while we looked
                    continue
                if whole and entry.name.endswith(PARTIAL):
                    # Our own is held by another descriptor of this process, and so is in use like anybody's.
                    if not delete_unused(Path(entry.path)):
                        partials += facts.st_size
                elif whole and entry.name.endswith(FAILED):
                    if facts.st_mtime < time.time() - OLD:
                        Path(entry.path).unlink(missing_ok=True)
                elif whole:
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

    def _bring(self, file: RemoteFile, descriptor: int, stop: threading.Event | None) -> None:
        """Fill the partial. Raises UserError if the file cannot be had or is not the manifest's."""
        marker = self.folder / (file.name + FAILED)
        try:
            self._download(file, descriptor, Patience(self.options.patience, stop, "--patience"))
        except UserError as error:
            self._failures[file.name] = (time.time(), str(error))
            with atomic_write(marker, "w") as stream:
                stream.write(str(error))
            raise
        marker.unlink(missing_ok=True)

    def _download(self, file: RemoteFile, descriptor: int, patience: Patience) -> None:
        for _ in range(WHOLE_TRIES):
            digest = hashlib.sha256()
            position = 0
            for block in read_blocks(file.place, file.bytes, patience):
                digest.update(block)
                position += os.pwrite(descriptor, block, position)
            if digest.hexdigest() == file.sha256:
                os.fsync(descriptor)
                return
            log.warning("%s came with other bytes than the manifest's", file.place)
            patience.wait()
        raise UserError(
            f"{file.place} is not the file of the manifest (its sha256 differs, {WHOLE_TRIES} times): the set is being "
            f"replaced or was damaged; run `posters shards verify` where it was built, and upload it again"
        )
