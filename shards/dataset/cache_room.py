"""Keep a cache within its size limit: delete unused files, and files that killed processes have left."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
import time
from pathlib import Path

from shards.dataset.cache_locks import FAILED, OwnFiles, delete_unused, held_alone
from shards.dataset.cache_options import CacheOptions, NoRoom, RemoteFile
from shards.errors import UserError, one_line
from shards.storage.files import PARTIAL

log = logging.getLogger(__name__)

#: Age in seconds after which NAME.failed (the error of a failed download) is deleted. No process waits that long.
FAILURE_SECONDS = 3600.0
#: Age in seconds after which an unchanged partial file is deleted, on file systems without locks.
LEFTOVER_SECONDS = 86400.0
_KEPT = re.compile(r"[0-9a-f]{64}(\.\w+)+")
_UNLOCKED = re.compile(r"[0-9a-f]{64}(\.\w+)+\.[\w-]+-\d+-[0-9a-f]{8}")


class CacheSpace:
    """Disk space of a cache. ``limit`` is the largest size of the cache in bytes. 0 means no limit."""

    def __init__(self, options: CacheOptions, files: OwnFiles) -> None:
        self.folder, self.limit, self._files = options.path, options.limit, files
        self._warned = threading.Event()

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager that locks the folder. The lock is needed to free space or add a complete file."""
        return held_alone(self.folder / ".room", self._files)

    def take(self, file: RemoteFile, descriptor: int, over_limit: bool) -> None:
        """Reserve disk space in an open partial file. If needed, first delete the least recently used files.

        Raises NoRoom if the cache would exceed its size limit. With ``over_limit``, logs a warning instead. Raises
        UserError if the disk is full.
        """
        limit = self.limit or float("inf")
        with self.held():
            kept, partials = self._listed()
            total = sum(size for _, size, _ in kept) + partials + file.bytes
            for _, size, path in sorted(kept):
                if total > limit and delete_unused(path, self._files):
                    total -= size
            if total > limit:
                if not over_limit:
                    raise NoRoom(file.name)
                self._warn_over_limit(total)
            try:
                free = os.fstatvfs(descriptor)
                if file.bytes > free.f_bavail * free.f_frsize:  # do not fill the disk for a file that cannot fit
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.ftruncate(descriptor, file.bytes)
                if hasattr(os, "posix_fallocate") and file.bytes:
                    os.posix_fallocate(descriptor, 0, file.bytes)  # a full disk is an error now, not later
            except OSError as error:
                what = f"no room for {file.place} ({file.bytes / 2**20:.0f} MiB) in the cache {self.folder}"
                remedy = "set --cache-limit, or name a larger disk with --cache-dir"
                raise UserError("disk-full", f"{what}: {one_line(error)}; {remedy}") from None

    def _listed(self) -> tuple[list[tuple[float, int, Path]], int]:
        """Delete the files that killed processes left, and list the other files.

        Returns (time of last use, bytes, path) of each complete file, and the total bytes of the partial files.
        """
        kept, partials, now = [], 0, time.time()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                # Small files have partial files with other names, which are not counted here.
                name = entry.name.removesuffix(PARTIAL)
                whole = _KEPT.fullmatch(name)
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # deleted meanwhile
                    continue
                if not self._files.owns(facts):
                    continue
                if whole and entry.name.endswith(PARTIAL):
                    # A partial file that a process is writing is locked, so it is not deleted.
                    if not delete_unused(Path(entry.path), self._files):
                        partials += facts.st_size
                elif entry.name.endswith(PARTIAL) and _UNLOCKED.fullmatch(name):
                    partials += facts.st_size
                    # A partial file that is complete but not yet renamed has an artificial modification time (stamp).
                    if min(abs(now - facts.st_mtime), abs(now - facts.st_atime)) > LEFTOVER_SECONDS:
                        Path(entry.path).unlink(missing_ok=True)
                elif whole and entry.name.endswith(FAILED):
                    if abs(now - facts.st_mtime) > FAILURE_SECONDS:  # abs: clocks of machines differ
                        Path(entry.path).unlink(missing_ok=True)
                elif whole:
                    used = facts.st_atime if facts.st_atime <= now + FAILURE_SECONDS else 0.0
                    kept.append((used, facts.st_size, Path(entry.path)))
        return kept, partials

    def _warn_over_limit(self, size: int) -> None:
        if not self._warned.is_set():
            self._warned.set()
            over = f"is over its limit ({size / 2**30:.1f} of {self.limit / 2**30:.1f} GiB)"
            why = "its files are in use or cannot be deleted"
            log.warning("the cache %s %s: %s; raise --cache-limit", self.folder, over, why)
