"""Journal of a download: a file in which each line is the result of a link. It stays usable if a run is killed.

A run in one process appends to the journal. A run with tasks (tasks.py) writes a separate part of the journal for each
task. The reason is that several machines cannot append to one file, or to an object in a store. The parts are files in
the folder ``PARTS``. They are merged into the journal at the end of the run, or at the start of the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.inputs.rejections import Rejection
from shards.storage.files import atomic_write, names_in, read_present, remove_tree
from shards.storage.paths import StoragePath

PARTS = ".fetch"


@dataclass(frozen=True)
class Entry:
    """Final result of a link. ``reason`` is empty if the poster was fetched. ``limits``: see FetchOptions.limits."""

    id: str
    url: str
    reason: str = ""
    detail: str = ""
    limits: str = ""


class Journal:
    """Open journal in a local folder. Any thread may call ``add``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stream = open(path, "a+b")  # noqa: SIM115  # closed by close()
        if self._stream.tell():
            self._stream.seek(-1, os.SEEK_END)
            if self._stream.read(1) != b"\n":  # a killed run did not end its last line
                self._stream.write(b"\n")

    def add(self, entry: Entry) -> None:
        """Write and flush an entry. Call this method before the poster gets its final name."""
        with self._lock:
            try:
                self._stream.write(_line(entry))
                self._stream.flush()
            except OSError as error:
                error.filename = str(self._path)  # the system's error for a full disk has no file name
                raise

    def close(self) -> None:
        # add() has already reported data that could not be flushed; close() would report the same error again.
        with contextlib.suppress(OSError):
            self._stream.close()


class RemoteJournal:
    """Part of a journal at a URL. Each write replaces the whole part, because a store cannot append to an object.

    To save requests, the entries ``expected`` are written before the downloads, as if all downloads had succeeded. If
    the poster of an entry does not exist at the next run, the link is tried again.
    """

    def __init__(self, path: StoragePath, expected: Iterable[Entry]) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known = set(expected)
        self._lines = [_line(entry) for entry in self._known]
        self._write()

    def add(self, entry: Entry) -> None:
        with self._lock:
            if entry in self._known:
                return
            self._lines.append(_line(entry))
            if not entry.reason:
                self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        with atomic_write(self._path) as stream:
            stream.writelines(self._lines)


EntryLog = Journal | RemoteJournal


def _line(entry: Entry) -> bytes:
    return json.dumps({key: value for key, value in asdict(entry).items() if value}).encode() + b"\n"


def merge_parts(folder: StoragePath, journal: str) -> None:
    """Merge the files in the subfolder ``PARTS`` into the folder's journal. The caller must hold the folder's lock."""
    parts = [name for name in names_in(folder / PARTS) if name.endswith(".jsonl")]
    if not parts:
        return
    path = folder / journal
    with atomic_write(path) as stream:
        if path.exists():
            stream.write(_whole_lines(path.read_bytes()))
        # The order of the parts does not matter. Usually they have different links. If two parts have results of the
        # same link, its poster is kept if it exists.
        for _, data in read_present(folder / PARTS, parts):
            stream.write(_whole_lines(data))
    remove_tree(folder / PARTS)


def _whole_lines(data: bytes) -> bytes:
    return data if data.endswith(b"\n") or not data else data + b"\n"


def read_journal(path: StoragePath) -> Iterator[Entry]:
    """Yield the entries in the order of writing. Half-written lines are skipped."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # incomplete after a kill or a power cut: the link counts as not tried
            if isinstance(entry.id, str) and isinstance(entry.url, str):
                yield entry


def recall(
    path: StoragePath, urls: Mapping[str, str], limits: str, key: Callable[[str], str]
) -> tuple[set[str], dict[str, Rejection]]:
    """Read the results of earlier runs. ``urls`` maps the ``key`` (files.place_key) of each id to its current link.

    Returns the keys of ids whose poster came from an earlier link. Also returns the rejections that are still
    valid, because the link and the limits have not changed.
    """
    moved: set[str] = set()
    rejected: dict[str, Rejection] = {}
    for entry in read_journal(path):  # the last entry of a key counts
        place = key(entry.id)
        url = urls.get(place)
        moved.discard(place)
        rejected.pop(place, None)
        if entry.reason and (entry.url, entry.limits) == (url, limits):
            rejected[place] = Rejection(entry.id, entry.reason, entry.detail)
        elif not entry.reason and url not in (None, entry.url):
            moved.add(place)
    return moved, rejected
