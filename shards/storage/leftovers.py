"""What killed processes left half-written where no lock says that others are done: it goes at the next run."""

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
#: Seconds by which the clocks of files and of processes may differ.
CLOCKS = 2.0
#: The end of a half-written file's name: machine and process, as `unique_name` makes it; earlier, the process alone.
_WRITER = re.compile(rf"\.(?:([A-Za-z0-9-]{{1,20}})-)?(\d+)(?:-[0-9a-f]{{8}})?{re.escape(PARTIAL)}$")


def remove_dead_partials(folder: Path, name: str = "*") -> None:
    """Delete what processes that are gone left half-written in a local folder; live ones may be at work in it.

    name: a pattern of the names that the files were to have. Only names that tell their writer are looked at: a process
    of this machine that is gone, or one of another machine if the file is a day old. A half-written folder (of a
    model) is deleted if it holds files alone.
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
    """This machine's name in names of half-written files."""
    return unique_name("", "").removeprefix(".").rsplit("-", 2)[0]


def _is_dead(writer: re.Match[str], path: Path) -> bool:
    if writer[1] not in (None, machine()):
        return time.time() - path.stat().st_mtime > DAY
    try:
        # Numbers come again, soon where a machine has few: what began after the last write is another process.
        return psutil.Process(int(writer[2])).create_time() > path.stat().st_mtime + CLOCKS
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OverflowError):  # of another user; no process's number
        return False
