"""Which files this node has checked already, so that only the first of its processes reads them whole.

    TMPDIR/posters-checked-UID/KEY     an empty file: the files of that key were found to be what they must be
    TMPDIR/posters-checked-UID/XX.lock held by the process that checks; the others wait for it

The key is made of the files' paths, devices, inodes, sizes and times of change, and of what they were checked for: a
file that was written to since has another one. The folder is the user's own, and is not used if another can write
there.
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

#: Seconds after which a file is checked again.
CHECK_AGAIN_SECONDS = 30 * 86400.0
_version = attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


def once_per_node(
    files: Iterable[tuple[StoragePath, os.stat_result]], expected: str, check: Callable[[], None]
) -> None:
    """Run ``check`` on some files, unless a process of this node and user did so before and it raised nothing.

    files: their paths and what they are now; expected: what they are checked for, such as their digest.
    """
    key = fingerprint([expected, [[str(path), *_version(facts)] for path, facts in files]])
    with contextlib.ExitStack() as held:  # so that no other process of this user checks the same
        mark = None
        with contextlib.suppress(OSError):  # a read-only or full disk; one without locks; no safe folder
            folder = _own_folder()
            held.enter_context(held_file(folder / f"{key[:2]}.lock", wait=True))
            mark = folder / key
        if mark is not None and _fresh(mark):
            return
        check()
        if mark is not None:
            with contextlib.suppress(OSError):  # a full disk: the next process checks again
                _sweep(mark.parent)
                mark.touch(mode=0o600)


def _own_folder() -> Path:
    """Raises OSError if it cannot be made, or is not this user's alone."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir()) / f"posters-checked-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    mine = user == "" or (facts.st_uid == user and not facts.st_mode & 0o022)
    if not stat.S_ISDIR(facts.st_mode) or not mine:
        raise PermissionError(f"{folder} is not this user's own folder")
    return folder


def _fresh(mark: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return time.time() - mark.lstat().st_mtime < CHECK_AGAIN_SECONDS
    return False


def _sweep(folder: Path) -> None:
    """Delete marks that no longer count. Locks stay: another process may wait for one."""
    for entry in list(folder.iterdir()):
        if len(entry.name) == 64 and not _fresh(entry):
            entry.unlink(missing_ok=True)
