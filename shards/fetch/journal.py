"""What became of each link, a line each: a file that a killed run leaves usable.

On this machine that is one append-only file. Chunks of links (tasks.py) have parts of their own, in the folder
``PARTS`` beside it, which the client takes in at the end, or at the next start: several machines cannot append to one
file, and to an object in a store nobody can.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.inputs.metadata import Rejection
from shards.storage.files import atomic_write, names_in, read_present, remove_tree
from shards.storage.paths import StoragePath

PARTS = ".fetch"


@dataclass(frozen=True)
class Entry:
    """A link that is settled: fetched (no reason), or rejected for good under the limits of that run."""

    id: str
    url: str
    reason: str = ""
    detail: str = ""
    limits: str = ""


class Journal:
    """The open journal of a local folder. Takes entries from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stream = open(path, "a+b")  # noqa: SIM115  # closed by close()
        if self._stream.tell():
            self._stream.seek(-1, os.SEEK_END)
            if self._stream.read(1) != b"\n":  # a killed run's last line: it must not swallow the next
                self._stream.write(b"\n")

    def add(self, entry: Entry) -> None:
        """Note an entry. One without a reason is safe when this returns: its poster is put in place next."""
        with self._lock:
            try:
                self._stream.write(_line(entry))
                self._stream.flush()
            except OSError as error:
                error.filename = str(self._path)  # a full disk does not say which file it was
                raise

    def close(self) -> None:
        # What could not be flushed has been reported by add(); closing would only report it again.
        with contextlib.suppress(OSError):
            self._stream.close()


class RemoteJournal:
    """As Journal, of a part in a store, which is written anew each time: before a poster is put, and at the end.

    The links that are ``expected`` to give posters, and have none yet, are noted in advance, all at once. If one gives
    none, its entry is of a poster that is not there, and the link counts as not yet tried.
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


def take_in_parts(folder: StoragePath, journal: str) -> None:
    """Move what the parts say to the folder's journal (only for the holder of the folder)."""
    parts = [name for name in names_in(folder / PARTS) if name.endswith(".jsonl")]
    if not parts:
        return
    path = folder / journal
    with atomic_write(path) as stream:
        if path.exists():
            stream.write(_whole_lines(path.read_bytes()))
        # In any order: parts of one run speak of other links, or of the same ones tried twice, which are tried again
        # if the journal says that they gave nothing and kept if their posters are there.
        for _, data in read_present(folder / PARTS, parts):
            stream.write(_whole_lines(data))
    remove_tree(folder / PARTS)


def _whole_lines(data: bytes) -> bytes:
    return data if data.endswith(b"\n") or not data else data + b"\n"


def read_journal(path: StoragePath) -> Iterator[Entry]:
    """Entries in the order in which they were made; a half-written line is passed over."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # cut short by a kill or a power cut: the link counts as not yet tried
            if isinstance(entry.id, str) and isinstance(entry.url, str):
                yield entry


def recall(
    path: StoragePath, urls: Mapping[str, str], limits: str, key: Callable[[str], str]
) -> tuple[set[str], dict[str, Rejection]]:
    """What earlier runs settled about these links, by their ids' keys (files.place_key).

    Returns the keys of ids whose poster came from another link than the one they have now, and the rejections of links
    that are still the same and would be judged by the same limits.
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
