"""A cache of open files. A file is opened at its first use, and the least recently used file is closed first."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class Handle:
    """An open file and the number of threads that use it."""

    descriptor: int
    users: int = 0
    forgotten: bool = False
    """Whether the last user must close the file, because the cache no longer contains the handle."""


class Handles:
    """A cache of open files with numbers. Many threads can use it. A file is not closed while a thread uses it."""

    def __init__(self, open_file: Callable[[int], int], capacity: int) -> None:
        """``open_file(number)`` opens a file. If more than ``capacity`` files are open, unused files are closed."""
        self._open_file, self.capacity = open_file, capacity
        self._files: OrderedDict[int, Handle] = OrderedDict()
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._files)

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[int]:
        """Provide a file's descriptor in a ``with`` block. Errors of ``open_file`` are passed on."""
        handle = self.take(number)
        try:
            yield handle.descriptor
        finally:
            self.give_back(handle)

    def take(self, number: int) -> Handle:
        """Return the handle of a file. Call ``give_back`` after use, also after an error."""
        with self._lock:
            handle = self._files.get(number)
            if handle is not None:
                handle.users += 1
                self._files.move_to_end(number)
                return handle
        descriptor = self._open_file(number)  # outside the lock, as it may be slow
        with self._lock:
            handle = self._files.setdefault(number, Handle(descriptor))
            if handle.descriptor != descriptor:  # another thread opened the file at the same time
                os.close(descriptor)
            handle.users += 1
            self._files.move_to_end(number)
            return handle

    def give_back(self, handle: Handle) -> None:
        """Release a handle from ``take``."""
        with self._lock:
            handle.users -= 1
            if handle.forgotten and not handle.users:
                os.close(handle.descriptor)
            if len(self._files) > self.capacity:
                self._close(len(self._files) - self.capacity)

    def forget(self, number: int) -> None:
        """Remove a file from the cache, so that its next use opens it again. Call this after an error of reading."""
        with self._lock:
            handle = self._files.pop(number, None)
            if handle is not None:
                handle.forgotten = True
                if not handle.users:
                    os.close(handle.descriptor)

    def close_idle(self) -> None:
        with self._lock:
            self._close(len(self._files))

    def _close(self, surplus: int) -> None:
        for number in [number for number, handle in self._files.items() if not handle.users][:surplus]:
            os.close(self._files.pop(number).descriptor)


def _close_all(files: OrderedDict[int, Handle]) -> None:
    for handle in files.values():
        os.close(handle.descriptor)
    files.clear()
