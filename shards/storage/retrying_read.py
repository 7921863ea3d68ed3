"""Read a file of a store that may hang up, answer in part, not at all for a while, too slowly or without end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

from shards.errors import UserError, one_line
from shards.storage.limits import MIN_REQUEST_SECONDS, TooMuch
from shards.storage.paths import StoragePath, remote_errors

log = logging.getLogger(__name__)

#: Bytes asked for at a time: what is lost when the line is cut.
BLOCK = 8 << 20
#: Seconds between two tries: the first, and the longest.
PAUSES = (0.25, 15.0)
#: Seconds for which a set's first file is asked for: nobody wants to wait long to hear of a wrong address.
FIRST_RETRY_SECONDS = 30.0
#: Bytes of a small file (manifest, index) at most: a hundred times those of 10^8 samples.
MAX_SMALL_BYTES = 256 << 20
#: Bytes a second at which a store is too slow to wait for all of a file, however often a little comes.
SLOWEST = 64 << 10
#: Bytes a second that a request may count on beside the patience, where what comes meanwhile cannot be seen.
USUAL = 1 << 20
#: Patiences in all that a file may take beside that.
RETRY_BUDGETS = 10
#: Errors that asking again does not mend.
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
#: And answers of HTTP.
REFUSALS = (400, 401, 403, 404, 405, 410)


class _Ends(OSError):
    """A file seems to be shorter than the manifest says."""


class _Missing(UserError):
    """There is no such file."""


class Abandoned(Exception):
    """Nobody wants the file any more."""


class RetryBudget:
    """For how long to ask again. Any block that comes renews it, but not without end."""

    def __init__(self, seconds: float, stop: threading.Event | None = None, option: str = "", size: int = 0) -> None:
        """For one file.

        stop: once it is set, waiting raises Abandoned; option: what the user says to have it last longer; size: bytes
        of the file, for what it may take in all.
        """
        self.seconds, self.stop, self.option = seconds, stop, option
        self.ends = time.monotonic() + RETRY_BUDGETS * max(seconds, MIN_REQUEST_SECONDS) + size / SLOWEST
        self.renew()

    def renew(self) -> None:
        """Something came."""
        self._since, self._pause = time.monotonic(), PAUSES[0]

    @property
    def over(self) -> bool:
        """Whether nothing has come for that long, or the whole takes too long."""
        now = time.monotonic()
        return now - self._since >= self.seconds or now >= self.ends

    def wait(self) -> None:
        """Sleep a little longer every time; not all processes wake at once."""
        self.rest(self._pause * random.uniform(0.5, 1.0), self.stop)
        self._pause = min(2 * self._pause, PAUSES[1])

    @staticmethod
    def rest(seconds: float, stop: threading.Event | None) -> None:
        """Sleep. Raises Abandoned as soon as ``stop`` is set."""
        if stop is None:
            time.sleep(seconds)
        elif stop.wait(seconds):
            raise Abandoned


def read_blocks(path: StoragePath, size: int, budget: RetryBudget) -> Iterator[bytes]:
    """The ``size`` bytes of a remote file, in blocks, with patience. Raises UserError if they cannot be had."""
    position = 0
    while position < size:
        block = _asked(path, budget, position, min(position + BLOCK, size), size)
        position += len(block)
        yield block
        budget.rest(0.0, budget.stop)


def read_small(path: StoragePath, budget: RetryBudget, most: int = MAX_SMALL_BYTES) -> bytes | None:
    """All bytes of a small remote file, None if there is no such file. Else as ``read_blocks``."""
    try:
        data = _asked(path, budget, 0, None, most)
    except _Missing:
        return None
    if len(data) > most:
        remedy = "upload the right file again"
        raise UserError("path-unreadable", f"{path} cannot be read: it has more than {most} bytes; {remedy}")
    return data


def _asked(path: StoragePath, budget: RetryBudget, start: int, end: int | None, size: int) -> bytes:
    """Some of the bytes from ``start`` on, at least one and none after ``end``; all of them where that is None.

    size: bytes of the file; where ``end`` is None, at most: one more may come.
    """
    while True:
        try:
            block = _once(path, budget, start, end, size)
            if end is not None:
                if len(block) > end - start:  # a server that knows no ranges sends the whole file
                    block = block[start:] if len(block) == size else b""
                if not block:
                    raise _Ends(f"it ends after {start} of {size} bytes")
            budget.renew()
            return block
        except remote_errors() as error:
            if isinstance(error, FINAL_ERRORS) or _answered(error) in REFUSALS:
                line = f"{path} cannot be read: {_said(error)}"
                if isinstance(error, FileNotFoundError):
                    raise _Missing("path-missing", line) from None
                raise UserError("network", line) from None
            beyond = _answered(error) == 416 or "range" in str(error).lower()
            if beyond and end is None:  # which stores answer where there is not one byte
                return b""
            if end is not None and (beyond or isinstance(error, (_Ends, TooMuch))):
                _check_size(path, size, budget)
            if isinstance(error, TooMuch):
                remedy = "upload the right file again"
                raise UserError("path-unreadable", f"{path} cannot be read: {one_line(error)}; {remedy}") from None
            if budget.over:
                longer = f" ({budget.option} waits longer)" if budget.option else ""
                tried = f"it was asked for during {budget.seconds:.0f} s"
                remedy = f"check the network and the store, then start again{longer}"
                raise UserError("network", f"{path} cannot be read: {_said(error)}; {tried}: {remedy}") from None
            log.info("%s from byte %d: %s; asking again", path, start, _said(error))
            budget.wait()


def _once(path: Any, budget: RetryBudget, start: int, end: int | None, size: int) -> bytes:
    """One request. Only HTTP's client looks at what comes meanwhile; of other stores the whole request has its time."""
    store = path.fs
    limits: dict[str, Any] = {}
    if "get_client" in path.storage_options:  # http_client.py
        limits = {"most": size, "seconds": budget.seconds, "ends": budget.ends}
    else:
        end = size + 1 if end is None else end  # a range, so that no more than that can come
        if getattr(store, "async_impl", False):
            limits = {"timeout": max(budget.seconds, MIN_REQUEST_SECONDS) + min(end - start, BLOCK) / USUAL}
    ranged = {} if end is None else {"start": start, "end": end}
    data: bytes = store.cat_file(path.path, **ranged, **limits)
    return data


def _check_size(path: Any, size: int, budget: RetryBudget) -> None:
    """Raise UserError if the store knows that the file has another size: asking again would not mend that."""
    limits = {"timeout": max(budget.seconds, MIN_REQUEST_SECONDS)} if getattr(path.fs, "async_impl", False) else {}
    there = None
    with contextlib.suppress(*remote_errors()):  # it is silent about that, too
        path.fs.invalidate_cache()
        there = path.fs.info(path.path, **limits).get("size")
    if there not in (None, size):
        raise UserError("set-damaged", f"{path} has {there} bytes, the manifest says {size}: upload it again")


def _answered(error: BaseException) -> int:
    """The status with which a server answered, as aiohttp's and gcsfs's errors have it; 0 if it did not."""
    found = (str(getattr(error, name, None)) for name in ("status", "code"))
    return next((int(text) for text in found if text.isdecimal()), 0)


def _said(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "it did not answer in time"
    return f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
