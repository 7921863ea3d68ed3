"""A few open files of many: opened when they are first used, the one used longest ago is closed first."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class _Open:
    descriptor: int
    users: int = 0


class Handles:
    """Descriptors by number. Safe to use from many threads; no descriptor is closed while it is used."""

    def __init__(self, open_file: Callable[[int], int], capacity: int) -> None:
        """``open_file`` opens the file of a number; at most ``capacity`` stay open besides those in use."""
        self._open_file, self.capacity = open_file, capacity
        self._files: OrderedDict[int, _Open] = OrderedDict()
        self._forgotten: dict[int, _Open] = {}
        """Descriptor → what was forgotten while somebody used it."""
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._files)

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[int]:
        """The descriptor of a file, for as long as the block runs. Raises what opening it raises."""
        descriptor = self.take(number)
        try:
            yield descriptor
        finally:
            self.give_back(number, descriptor)

    def take(self, number: int) -> int:
        """As ``use``, for where every microsecond counts; to be given back whatever happens."""
        with self._lock:
            entry = self._files.get(number)
            if entry is not None:
                entry.users += 1
                self._files.move_to_end(number)
                return entry.descriptor
        descriptor = self._open_file(number)  # may take its time: nobody else waits for it
        return self._added(number, descriptor).descriptor

    def give_back(self, number: int, descriptor: int) -> None:
        """One user less of a file that was taken."""
        with self._lock:
            entry = self._forgotten.get(descriptor)
            if entry is None:
                self._files[number].users -= 1
                if len(self._files) > self.capacity:
                    self._close(len(self._files) - self.capacity)
                return
            entry.users -= 1
            if not entry.users:
                os.close(self._forgotten.pop(descriptor).descriptor)

    def forget(self, number: int) -> None:
        """Have the file opened anew when it is taken next: reading it failed."""
        with self._lock:
            entry = self._files.pop(number, None)
            if entry is not None and entry.users:
                self._forgotten[entry.descriptor] = entry
            elif entry is not None:
                os.close(entry.descriptor)

    def close_idle(self) -> None:
        """Close all that are not in use."""
        with self._lock:
            self._close(len(self._files))

    def _added(self, number: int, descriptor: int) -> _Open:
        with self._lock:
            entry = self._files.get(number)
            if entry is None:
                entry = self._files[number] = _Open(descriptor)
            else:  # two threads opened it at once
                os.close(descriptor)
            entry.users += 1
            self._files.move_to_end(number)
            return entry

    def _close(self, surplus: int) -> None:
        if surplus > 0:
            for number in [number for number, entry in self._files.items() if not entry.users][:surplus]:
                os.close(self._files.pop(number).descriptor)


def _close_all(files: OrderedDict[int, _Open]) -> None:
    for entry in files.values():
        os.close(entry.descriptor)
    files.clear()
