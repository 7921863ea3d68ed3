"""A folder of this node that keeps remote files: fetched once, whole and checked, the least recently used go first.

    CACHE/SHA256.tar           a file under the name of its content: sets, builds and jobs share what is the same
    CACHE/SHA256.tar.partial   one that is being fetched, in its full size from the start: its room is taken
    CACHE/SHA256.tar.failed    why it could not be fetched, for those who were waiting for it
    CACHE/.room                held while room is made and while a whole file gets its name

Processes agree through locks of the operating system (file_locks.py), which it drops when a process dies:

- who fetches a file holds its partial exclusively; the others wait and then find it whole. A partial that nobody holds
  was left by a killed process and is deleted.
- who reads a file holds it shared. A file that is held is in use and stays.

No file is believed for its name and size (cache_locks.py): it must be this user's, and its digest is checked once per
node and file, when it comes or when it is first used; the time of its last change says so afterwards. The time of last
use is its time of access.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import TypeVar, get_args

from shards.dataset.cache_locks import FAILED, Ours, held_for_reading, held_partial, stamp, write_own
from shards.dataset.cache_options import CacheOptions, RemoteFile
from shards.dataset.cache_room import Room
from shards.errors import Code, UserError, one_line
from shards.storage.files import sha256_stream
from shards.storage.paths import StoragePath
from shards.storage.retry import retried
from shards.storage.retrying_read import MAX_SMALL_BYTES, RetryBudget, read_blocks, read_small

log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")

#: Seconds between two looks at what another process holds.
POLL_SECONDS = 0.05
#: A file's time of last use is noted no more often than this, in seconds: a note is a write.
USE_NOTE_SECONDS = 1.0
#: Times that a whole file is fetched because its digest was another than the manifest's.
WHOLE_TRIES = 3
#: Seconds for which threads of a process take a file that could not be fetched for one that cannot be.
FAILURE_SECONDS = 30.0
#: Times that a file is opened that is gone again: others may need its room.
OPEN_TRIES = 100
_key = attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns")
_SMALL = re.compile(r"\w[\w.-]{0,200}", re.ASCII)


class Cache:
    """The kept files of one folder. Safe to use from many threads and processes.

    Whatever is wrong with the folder is a UserError that names it. What fails in passing is tried again (retry.py).
    """

    def __init__(self, options: CacheOptions) -> None:
        self.options, self.folder = options, options.path
        self._noted: dict[str, float] = {}
        self._failures: dict[str, tuple[float, Code, str]] = {}
        self._checked: set[tuple[int, ...]] = set()
        with self._own_errors():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._ours = Ours(self.folder)
            self._keep_private()
        self._room = Room(options, self._ours)
        self._writable = os.access(self.folder, os.W_OK)

    def open(self, file: RemoteFile, stop: threading.Event | None = None) -> int:
        """A descriptor of the whole file, in use until closed; fetched if need be. Raises UserError without it."""
        path = self.folder / file.name
        for _ in range(OPEN_TRIES):
            with self._own_errors():
                descriptor = retried(lambda: self._opened(path, file), f"{path} in the cache", stop)
            if descriptor is not None:
                return descriptor
            self.fetch(file, over_limit=True, stop=stop)
        gone = f"{file.name} is gone as soon as it is there"
        raise UserError("cache", f"the cache {self.folder} cannot be used: {gone}; name another with --cache-dir")

    def _opened(self, path: Path, file: RemoteFile) -> int | None:
        """A descriptor of the file, held; None if it is not there, or not whole."""
        if (descriptor := held_for_reading(path, self._ours)) is None:
            return None
        with contextlib.ExitStack() as unless_whole:
            unless_whole.callback(os.close, descriptor)
            if self._is_whole(file, os.fstat(descriptor)):
                self._note(path, descriptor)
                unless_whole.pop_all()
                return descriptor
        return None

    def fetch(self, file: RemoteFile, over_limit: bool = False, stop: threading.Event | None = None) -> bool:
        """See to it that the file is there; True if this call brought it.

        Where the limit leaves no room, NoRoom is raised, or (``over_limit``) a warning given. Raises UserError if the
        file cannot be had; Abandoned soon after ``stop`` is set. A file that was there counts as used: it is wanted
        soon.
        """
        path = self.folder / file.name
        with self._own_errors():
            before = _version(path.with_name(path.name + FAILED))
            while not self.has(file):
                self._share_failure(path, before)
                if not self._writable and self._check_kept(path, file):
                    break
                with held_partial(path, self._ours) as held:
                    if held is None:  # somebody else is at it
                        RetryBudget.rest(POLL_SECONDS, stop)
                        continue
                    descriptor, partial = held
                    if self.has(file) or self._check_kept(path, file):  # since we looked; of another origin
                        break
                    self._share_failure(path, before)
                    self._room.take(file, descriptor, over_limit)
                    self._bring(file, descriptor, stop)
                    with self._room.held():  # who looks for room sees it under one of its names
                        if not self._ours.locks and self.has(file):  # another brought it, and may read it
                            break
                        os.replace(partial, path)
                    return True
            self._note(path, path)
            return False

    def checked(self, source: StoragePath, name: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        """What ``parse`` makes of a small file that no manifest vouches for; it raises UserError for wrong bytes.

        Kept as ``name``; what was damaged here is fetched anew.
        """
        if not _SMALL.fullmatch(name):
            raise UserError("path-name", f"{source} cannot be kept as {name[:200]!r}: that is not a name of a file")
        kept = self.folder / name
        with self._own_errors():
            if (data := self._ours.read(kept, MAX_SMALL_BYTES)) is not None:
                with contextlib.suppress(UserError):
                    return parse(data)
                kept.unlink(missing_ok=True)
            if (
                data := read_small(source, RetryBudget(self.options.remote_timeout, option="--remote-timeout"))
            ) is None:
                raise UserError("set-missing", f"{source} is missing; upload the set again")
            result = parse(data)
            if self._writable:
                write_own(kept, data)
            return result

    def has(self, file: RemoteFile) -> bool:
        """Whether the file is there, ours, and was checked."""
        with contextlib.suppress(FileNotFoundError):
            return self._is_whole(file, (self.folder / file.name).lstat())
        return False

    def _is_whole(self, file: RemoteFile, facts: os.stat_result) -> bool:
        if not self._ours.owns(facts) or facts.st_size != file.bytes:
            return False
        return facts.st_mtime_ns == stamp(file.sha256, facts) or _key(facts) in self._checked

    def _check_kept(self, path: Path, file: RemoteFile) -> bool:
        """Whether a file that was not checked yet is the one; one that is not is deleted. Reads all of it."""
        if (descriptor := self._ours.open(path)) is None:
            return False
        try:
            facts = os.fstat(descriptor)
            if facts.st_size != file.bytes and facts.st_mtime_ns == stamp(file.sha256, facts):
                why = f"the manifest says {file.bytes}: the manifest is damaged; upload the set again"
                raise UserError("set-damaged", f"{file.place} has {facts.st_size} bytes by its sha256, {why}")
            with open(descriptor, "rb", closefd=False) as stream:
                same = facts.st_size == file.bytes and sha256_stream(stream) == file.sha256
            if same:
                self._mark_checked(descriptor, file)
                return True
            log.warning("%s in the cache %s was damaged: it is fetched again", file.place, self.folder)
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)

    def _mark_checked(self, descriptor: int, file: RemoteFile) -> None:
        """Note, for all processes of this node, that the open file has the digest."""
        facts = os.fstat(descriptor)
        with contextlib.suppress(OSError):  # root's, on a disk that can only be read
            os.utime(descriptor, ns=(time.time_ns(), stamp(file.sha256, facts)))
        # For this process, in case that the file system keeps other times.
        self._checked.add(_key(os.fstat(descriptor)))

    def _keep_private(self) -> None:
        """See to it that no other user writes to the usual folder; say so of one that the user named."""
        facts = self.folder.stat()
        if not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and facts.st_uid in (self._ours.uid, 0):
            return
        if self.options.is_usual and facts.st_uid == self._ours.uid:
            self.folder.chmod(0o700)
        else:
            hint = "with a folder of your own as --cache-dir they cannot delete or block files"
            said = "other users may write to the cache %s: what is not yours there is not used; %s"
            log.warning(said, self.folder, hint)

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "repair it, or name another with --cache-dir"
            raise UserError("cache", f"the cache {self.folder} cannot be used: {one_line(error)}; {remedy}") from None

    def _note(self, path: Path, file: Path | int) -> None:
        """Note that the file was used now."""
        now = time.time()
        if now - self._noted.get(path.name, 0.0) >= USE_NOTE_SECONDS:
            self._noted[path.name] = now
            # Gone again, root's, on a disk that can only be read: the file is no worse for it.
            with contextlib.suppress(OSError):
                facts = os.stat(file) if isinstance(file, int) else file.lstat()
                if self._ours.owns(facts):
                    os.utime(file, ns=(time.time_ns(), facts.st_mtime_ns))

    def _share_failure(self, path: Path, before: tuple[int, ...] | None) -> None:
        """Raise what whoever fetched the file met while we waited for it: patience is not to end once per reader.

        before: the marker's version when we began, whatever its date says.
        """
        at, code, message = self._failures.get(path.name, (-FAILURE_SECONDS, "network", ""))
        if time.monotonic() - at < FAILURE_SECONDS:
            raise UserError(code, message)
        marker = path.with_name(path.name + FAILED)
        said = b"" if _version(marker) in (None, before) else self._ours.read(marker, 4096) or b""
        message, _, word = said.decode("utf-8", "replace").strip().partition("\n")
        if message:  # earlier versions wrote no code
            raise UserError(next((code for code in get_args(Code) if code == word), "network"), one_line(message))

    def _bring(self, file: RemoteFile, descriptor: int, stop: threading.Event | None) -> None:
        """Fill the partial. Raises UserError if the file cannot be had or is not the manifest's."""
        marker = self.folder / (file.name + FAILED)
        try:
            self._download(file, descriptor, RetryBudget(self.options.remote_timeout, stop, "--budget", file.bytes))
        except UserError as error:
            self._failures[file.name] = (time.monotonic(), error.code, str(error))
            write_own(marker, f"{error}\n{error.code}".encode())
            raise
        marker.unlink(missing_ok=True)

    def _download(self, file: RemoteFile, descriptor: int, budget: RetryBudget) -> None:
        for _ in range(WHOLE_TRIES):
            digest = hashlib.sha256()
            position = 0
            for block in read_blocks(file.place, file.bytes, budget):
                digest.update(block)
                position += os.pwrite(descriptor, block, position)
            if digest.hexdigest() == file.sha256:
                os.fsync(descriptor)
                self._mark_checked(descriptor, file)
                return
            log.warning("%s came with other bytes than the manifest's", file.place)
            budget.wait()
        what = f"{file.place} is not the file of the manifest (its sha256 differs, {WHOLE_TRIES} times)"
        remedy = "run `posters shards verify` where it was built, and upload it again"
        raise UserError("set-damaged", f"{what}: the set is being replaced or was damaged; {remedy}")


def _version(path: Path) -> tuple[int, ...] | None:
    """Changes when a file is written anew; None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        version: tuple[int, ...] = _key(path.lstat())
        return version
    return None
