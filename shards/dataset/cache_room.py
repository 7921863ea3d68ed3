"""The room of a cache: its limit, what is deleted for it, and what killed processes left there."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
import time
from pathlib import Path

from shards.dataset.cache_locks import FAILED, Ours, delete_unused, held_alone
from shards.dataset.cache_options import CacheOptions, NoRoom, RemoteFile
from shards.errors import UserError, one_line
from shards.storage.files import PARTIAL

log = logging.getLogger(__name__)

#: Seconds after which nobody waits any more for what a failure was about.
FAILURE_SECONDS = 3600.0
#: Seconds after which a partial is left over that had a name of its own, for want of locks.
LEFTOVER_SECONDS = 86400.0
_KEPT = re.compile(r"[0-9a-f]{64}(\.\w+)+")
_UNLOCKED = re.compile(r"[0-9a-f]{64}(\.\w+)+\.[\w-]+-\d+-[0-9a-f]{8}")


class Room:
    """A cache's folder with its limit in bytes (0: the disk's)."""

    def __init__(self, options: CacheOptions, ours: Ours) -> None:
        self.folder, self.limit, self._ours = options.path, options.limit, ours
        self._told = threading.Event()

    def held(self) -> contextlib.AbstractContextManager[None]:
        """The room's lock: while it is held no file comes, goes or gets its name."""
        return held_alone(self.folder / ".room", self._ours)

    def take(self, file: RemoteFile, descriptor: int, over_limit: bool) -> None:
        """Take a file's room for its partial, deleting what was used longest ago if the limit asks for it.

        Raises NoRoom where the limit leaves none, unless ``over_limit``; UserError where the disk does.
        """
        limit = self.limit or float("inf")
        with self.held():
            kept, partials = self._listed()
            total = sum(size for _, size, _ in kept) + partials + file.bytes
            for _, size, path in sorted(kept):
                if total > limit and delete_unused(path, self._ours):
                    total -= size
            if total > limit:
                if not over_limit:
                    raise NoRoom(file.name)
                self._warn_over_limit(total)
            try:
                free = os.fstatvfs(descriptor)
                if file.bytes > free.f_bavail * free.f_frsize:  # what others need meanwhile is not taken in vain
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.ftruncate(descriptor, file.bytes)
                if hasattr(os, "posix_fallocate") and file.bytes:
                    os.posix_fallocate(descriptor, 0, file.bytes)  # a full disk shows now
            except OSError as error:
                what = f"no room for {file.place} ({file.bytes / 2**20:.0f} MiB) in the cache {self.folder}"
                remedy = "set --cache-limit, or name a larger disk with --cache-dir"
                raise UserError("disk-full", f"{what}: {one_line(error)}; {remedy}") from None

    def _listed(self) -> tuple[list[tuple[float, int, Path]], int]:
        """(last use, bytes, path) of every whole file; bytes of those being fetched. Sweeps what a kill left."""
        kept, partials, now = [], 0, time.time()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                # Not all that is half-written is fetched: small files have partials of their own, with other names.
                name = entry.name.removesuffix(PARTIAL)
                whole = _KEPT.fullmatch(name)
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # gone while we looked
                    continue
                if not self._ours.owns(facts):
                    continue
                if whole and entry.name.endswith(PARTIAL):
                    # Our own is held by another descriptor of this process, and so is in use like anybody's.
                    if not delete_unused(Path(entry.path), self._ours):
                        partials += facts.st_size
                elif entry.name.endswith(PARTIAL) and _UNLOCKED.fullmatch(name):
                    partials += facts.st_size
                    # What is whole and checked, and about to get its name, has another time of writing (stamp).
                    if min(abs(now - facts.st_mtime), abs(now - facts.st_atime)) > LEFTOVER_SECONDS:
                        Path(entry.path).unlink(missing_ok=True)
                elif whole and entry.name.endswith(FAILED):
                    if abs(now - facts.st_mtime) > FAILURE_SECONDS:  # clocks differ
                        Path(entry.path).unlink(missing_ok=True)
                elif whole:
                    used = facts.st_atime if facts.st_atime <= now + FAILURE_SECONDS else 0.0
                    kept.append((used, facts.st_size, Path(entry.path)))
        return kept, partials

    def _warn_over_limit(self, size: int) -> None:
        if not self._told.is_set():
            self._told.set()
            over = f"is over its limit ({size / 2**30:.1f} of {self.limit / 2**30:.1f} GiB)"
            why = "what is in it is in use or cannot be deleted"
            log.warning("the cache %s %s: %s; raise --cache-limit", self.folder, over, why)
