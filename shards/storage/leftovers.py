"""Delete the half-written files that killed processes left in folders without a lock."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path

import psutil

from shards.storage.files import PARTIAL
from shards.storage.remote_files import unique_name

DAY = 86_400.0
#: Largest expected difference between the times of a file system and of this machine's processes, in seconds.
CLOCKS = 2.0
#: End of a half-written file's name: machine and process (`unique_name`). Earlier versions wrote only the process.
_WRITER = re.compile(
    r"\.(?:(?P<host>[A-Za-z0-9-]{0,20})-(?P<pid>\d+)-[0-9a-f]{8}|(?P<only>\d+))" + re.escape(PARTIAL) + "$"
)


def remove_dead_partials(folder: Path, name: str = "*") -> None:
    """Delete the half-written files of ended processes in a local folder. Other processes can still write there.

    name: pattern of the final names. The name of a half-written file contains its machine and process. A file of this
    machine is deleted if its process has ended. A file of another machine is deleted if it is over a day old. A
    half-written model folder is deleted if it contains only files.
    """
    for path in folder.glob(f"{name}.*{PARTIAL}"):
        writer = _WRITER.search(path.name)
        with contextlib.suppress(OSError):
            if writer is None or path.is_symlink() or not _is_dead(writer, path):
                continue
            if not path.is_dir():
                path.unlink()
            elif all(entry.is_file() for entry in path.iterdir()):
                shutil.rmtree(path)


def machine() -> str:
    """Return the name of this machine as it appears in the names of half-written files."""
    return unique_name("", "").removeprefix(".").rsplit("-", 2)[0]


def _is_dead(writer: re.Match[str], path: Path) -> bool:
    if writer["host"] not in (None, machine()):
        return time.time() - path.stat().st_mtime > DAY
    try:
        # Process numbers are reused. A process that began after the last write is not the writer.
        return psutil.Process(int(writer["pid"] or writer["only"])).create_time() > path.stat().st_mtime + CLOCKS
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OverflowError):  # the process belongs to another user, or its number is too large
        return False
