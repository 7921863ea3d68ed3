"""What became of each link, a line each: an append-only file that a killed run leaves usable."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.metadata import Rejection


@dataclass(frozen=True)
class Entry:
    """A link that is settled: fetched (no reason), or rejected for good under the limits of that run."""

    id: str
    url: str
    reason: str = ""
    detail: str = ""
    limits: str = ""


class Journal:
    """The open journal; entries may come from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stream = open(path, "a+b")  # noqa: SIM115  # closed by close()
        if self._stream.tell():
            self._stream.seek(-1, os.SEEK_END)
            if self._stream.read(1) != b"\n":  # a killed run's last line: it must not swallow the next
                self._stream.write(b"\n")

    def add(self, entry: Entry) -> None:
        line = json.dumps({key: value for key, value in asdict(entry).items() if value})
        with self._lock:
            try:
                self._stream.write(line.encode() + b"\n")
                self._stream.flush()
            except OSError as error:
                error.filename = str(self._path)  # a full disk does not say which file it was
                raise

    def close(self) -> None:
        # What could not be flushed has been reported by add(); closing would only report it again.
        with contextlib.suppress(OSError):
            self._stream.close()


def read_journal(path: Path) -> Iterator[Entry]:
    """Entries in the order in which they were made; a half-written line is passed over."""
    if not path.exists():
        return
    with open(path, "rb") as stream:
        for line in stream:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # cut short by a kill or a power cut: the link counts as not yet tried
            if isinstance(entry.id, str) and isinstance(entry.url, str):
                yield entry


@dataclass(frozen=True)
class Memory:
    """What earlier runs settled about the links of this one."""

    moved: set[str]
    """Ids whose poster came from another link than the one they have now."""
    rejected: dict[str, Rejection]
    """Rejections, by id, of links that are still the same and would be judged by the same limits."""


def recall(path: Path, urls: Mapping[str, str], limits: str) -> Memory:
    """Read the journal for these ids and links; the last entry of an id counts."""
    memory = Memory(set(), {})
    for entry in read_journal(path):
        url = urls.get(entry.id)
        memory.moved.discard(entry.id)
        memory.rejected.pop(entry.id, None)
        if url is None:
            continue
        if not entry.reason:
            if entry.url != url:
                memory.moved.add(entry.id)
        elif entry.url == url and entry.limits == limits:
            memory.rejected[entry.id] = Rejection(entry.id, entry.reason, entry.detail)
    return memory
