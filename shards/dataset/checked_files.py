"""Check files only once on each node. An empty file, called the mark, records that a check has passed.

    TMPDIR/posters-checked-UID/KEY       the mark: the files with this key have passed their check
    TMPDIR/posters-checked-UID/XX.lock   lock file of the process that does the check while other processes wait

The key is a digest of the expected contents and of the path, device, inode, size and times of change of each file. If a
file changes after the check, its key changes. The folder is used only if no other user can write to it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path

from shards.storage.file_locks import held_file
from shards.storage.files import fingerprint
from shards.storage.paths import StoragePath

#: Age of a mark in seconds after which the file is checked again.
CHECK_AGAIN_SECONDS = 30 * 86400.0
_version = attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


def once_per_node(files: Iterable[tuple[StoragePath, os.stat_result]], digest: str, check: Callable[[], None]) -> None:
    """Call ``check`` if the files have not passed this check before, on this node and for this user.

    files: path and os.stat result of each file. digest: text that identifies the expected contents.
    """
    key = fingerprint([digest, [[str(path), *_version(facts)] for path, facts in files]])
    with contextlib.ExitStack() as held:  # so that no other process of this user runs the same check
        mark = None
        with contextlib.suppress(OSError):  # the disk is read-only or full, has no locks, or the folder is not safe
            folder = _own_folder()
            held.enter_context(held_file(folder / f"{key[:2]}.lock", wait=True))
            mark = folder / key
        if mark is not None and _fresh(mark):
            return
        check()
        if mark is not None:
            with contextlib.suppress(OSError):  # if the disk is full, the next process checks again
                _sweep(mark.parent)
                mark.touch(mode=0o600)


def _own_folder() -> Path:
    """Return the folder of the marks. Raises OSError if the folder cannot be made, or other users can write to it."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir()) / f"posters-checked-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    is_private = user == "" or (facts.st_uid == user and not facts.st_mode & 0o022)
    if not stat.S_ISDIR(facts.st_mode) or not is_private:
        raise PermissionError(f"{folder} is not this user's own folder")
    return folder


def _fresh(mark: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return time.time() - mark.lstat().st_mtime < CHECK_AGAIN_SECONDS
    return False


def _sweep(folder: Path) -> None:
    """Delete the records of old checks. Keep lock files, because other processes can be waiting for these files."""
    for entry in list(folder.iterdir()):
        if len(entry.name) == 64 and not _fresh(entry):
            entry.unlink(missing_ok=True)
