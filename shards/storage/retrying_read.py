"""Read a file from an unreliable store, with retries. A response can be cut off, late, too slow or endless."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from shards.errors import UserError, one_line
from shards.storage.limits import MIN_REQUEST_SECONDS, TooMuch
from shards.storage.paths import StoragePath, remote_errors

log = logging.getLogger(__name__)

#: Bytes per request. At most this number of bytes is lost if a connection breaks.
BLOCK = 8 << 20
#: First and longest pause between two tries, in seconds.
PAUSES = (0.25, 15.0)
#: Seconds of retries for the first file of a shard set. The time is short, so that a wrong address is reported soon.
FIRST_RETRY_SECONDS = 30.0
#: Largest size of a manifest or an index in bytes. For 10^8 samples, they need about 1 % of this size.
MAX_SMALL_BYTES = 256 << 20
#: Lowest accepted rate in bytes per second. It limits the total time of a file, even if blocks keep arriving.
SLOWEST = 64 << 10
#: Assumed rate in bytes per second, for clients whose progress cannot be observed. The time limit of a request is
#: extended by the size of the request divided by this rate.
USUAL = 1 << 20
#: The total time for a file is RETRY_BUDGETS times the time limit, plus the time for its bytes at the rate SLOWEST.
RETRY_BUDGETS = 10
#: Errors that are never retried.
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
#: HTTP statuses that are never retried.
REFUSALS = (400, 401, 403, 404, 405, 410)
#: Keys with which the clients of stores give the version of a file. The first key that is there is used.
VERSION_KEYS = (
    "ETag", "etag", "md5Hash", "generation", "blob_id", "Content-MD5", "Digest", "Last-Modified", "LastModified",
    "mtime", "created",
)  # fmt: skip


class _Ends(OSError):
    """A file seems to be shorter than its size in the manifest."""


class _Missing(UserError):
    """The file does not exist."""


class Abandoned(Exception):
    """A read was stopped, because its file is no longer needed."""


class RetryBudget:
    """Time limit of the retries for one file. Each received block starts the limit again, up to a total time."""

    def __init__(self, seconds: float, stop: threading.Event | None = None, option: str = "", size: int = 0) -> None:
        """Start the time limit of ``seconds``.

        stop: as soon as this event is set, a wait raises Abandoned. option: command-line option that sets ``seconds``,
        for messages. size: bytes of the file. A larger file has a longer total time.
        """
        self.seconds, self.stop, self.option = seconds, stop, option
        self.ends = time.monotonic() + RETRY_BUDGETS * max(seconds, MIN_REQUEST_SECONDS) + size / SLOWEST
        self.renew()

    def renew(self) -> None:
        """Start the time limit again, after a received block."""
        self._since, self._pause = time.monotonic(), PAUSES[0]

    @property
    def over(self) -> bool:
        """Whether nothing was received for ``seconds``, or the total time is used up."""
        now = time.monotonic()
        return now - self._since >= self.seconds or now >= self.ends

    def wait(self) -> None:
        """Sleep before a retry. The pauses get longer. They are random, so that processes retry at different times."""
        self.rest(self._pause * random.uniform(0.5, 1.0), self.stop)
        self._pause = min(2 * self._pause, PAUSES[1])

    @staticmethod
    def rest(seconds: float, stop: threading.Event | None) -> None:
        """Sleep for ``seconds``. Raises Abandoned as soon as ``stop`` is set."""
        if stop is None:
            time.sleep(seconds)
        elif stop.wait(seconds):
            raise Abandoned


def read_blocks(path: StoragePath, size: int, budget: RetryBudget) -> Iterator[bytes]:
    """Yield the ``size`` bytes of a remote file in blocks, with retries. Raises UserError if they cannot be read."""
    position = 0
    while position < size:
        block = _read_range(path, budget, position, min(position + BLOCK, size), size)
        position += len(block)
        yield block
        budget.rest(0.0, budget.stop)


def read_small(path: StoragePath, budget: RetryBudget, most: int = MAX_SMALL_BYTES) -> bytes | None:
    """Return the bytes of a small remote file. None if the file does not exist. Retries like ``read_blocks``."""
    try:
        data = _read_range(path, budget, 0, None, most)
    except _Missing:
        return None
    if len(data) > most:
        remedy = "upload the right file again"
        raise UserError("path-unreadable", f"{path} cannot be read: it has more than {most} bytes; {remedy}")
    return data


def read_facts(path: Any, budget: RetryBudget) -> tuple[int, str] | None:
    """Return the size and the version of a remote file (see facts_in), with retries. None if the file is missing.

    Raises UserError if the store refuses the request, does not answer in time, or does not tell the size.
    """
    while True:
        path.fs.invalidate_cache()
        try:
            size, version = facts_in(path.fs.info(path.path, **_limits(path, budget, 1 << 53)))
        except remote_errors() as error:
            # fsspec's HTTP client reports every error as a missing file. The cause is the real error.
            error = error.__cause__ if isinstance(error.__cause__, remote_errors()) else error
            if isinstance(error, FileNotFoundError) or _http_status(error) in (404, 410):
                return None
            if isinstance(error, FINAL_ERRORS) or _http_status(error) in REFUSALS:
                remedy = "check the address and your credentials"
                raise UserError("network", f"{path} cannot be read: {_reason(error)}; {remedy}") from None
            if budget.over:
                raise UserError("network", f"{path} cannot be read: {_reason(error)}; check the network") from None
            log.info("asking for the size of %s failed: %s; retrying", path, _reason(error))
            budget.wait()
            continue
        if size is None:
            remedy = "download the file to a folder first"
            raise UserError("network", f"{path} cannot be read: its server does not tell its size; {remedy}")
        return size, version


def facts_in(info: Mapping[str, Any]) -> tuple[int | None, str]:
    """Return the size and the version of a file from fsspec's description. The version is "" if it is unknown.

    >>> facts_in({"size": 5, "ETag": "abc"}), facts_in({"name": "x"})
    ((5, 'ETag abc'), (None, ''))
    """
    size = info.get("size")
    versions = (f"{key} {info[key]}" for key in VERSION_KEYS if info.get(key))
    return (int(size) if size is not None else None), next(versions, "")


def _read_range(path: StoragePath, budget: RetryBudget, start: int, end: int | None, size: int) -> bytes:
    """Return at least one byte of the range from ``start`` to ``end``. If ``end`` is None, return the whole file.

    size: bytes of the file. If ``end`` is None, a file over ``size`` bytes gives ``size`` + 1 bytes or an error.
    """
    while True:
        try:
            block = _request(path, budget, start, end, size)
            if end is not None:
                if len(block) > end - start:  # a server without ranges sends the whole file
                    block = block[start:] if len(block) == size else b""
                if not block:
                    raise _Ends(f"it ends after {start} of {size} bytes")
            budget.renew()
            return block
        except remote_errors() as error:
            if isinstance(error, FINAL_ERRORS) or _http_status(error) in REFUSALS:
                line = f"{path} cannot be read: {_reason(error)}"
                if isinstance(error, FileNotFoundError):
                    raise _Missing("path-missing", line) from None
                raise UserError("network", line) from None
            beyond = _http_status(error) == 416 or "range" in str(error).lower()
            if beyond and end is None:  # stores refuse every range of an empty file
                return b""
            if end is not None and (beyond or isinstance(error, (_Ends, TooMuch))):
                _check_size(path, size, budget)
            if isinstance(error, TooMuch):
                remedy = "upload the right file again"
                raise UserError("path-unreadable", f"{path} cannot be read: {one_line(error)}; {remedy}") from None
            if budget.over:
                longer = f" (a larger {budget.option} waits longer)" if budget.option else ""
                tried = f"(retried for {budget.seconds:.0f} s)"
                remedy = f"check the network and the store, then start again{longer}"
                raise UserError("network", f"{path} cannot be read: {_reason(error)} {tried}; {remedy}") from None
            log.info("reading %s from byte %d failed: %s; retrying", path, start, _reason(error))
            budget.wait()


def _request(path: Any, budget: RetryBudget, start: int, end: int | None, size: int) -> bytes:
    """Send one request. Our HTTP client limits the response's rate and time. Other clients limit at most its time."""
    if "get_client" not in path.storage_options:  # not the client of http_client.py
        end = size + 1 if end is None else end  # a range limits the size of the response
    ranged = {} if end is None else {"start": start, "end": end}
    data: bytes = path.fs.cat_file(path.path, **ranged, **_limits(path, budget, size, (end or start) - start))
    return data


def _limits(path: Any, budget: RetryBudget, size: int, wanted: int = 0) -> dict[str, Any]:
    """Return the options that limit a request. ``size``: bytes of the file. ``wanted``: bytes of the range."""
    if "get_client" in path.storage_options:
        return {"most": size, "seconds": budget.seconds, "ends": budget.ends}
    if getattr(path.fs, "async_impl", False):
        return {"timeout": max(budget.seconds, MIN_REQUEST_SECONDS) + min(wanted, BLOCK) / USUAL}
    return {}


def _check_size(path: Any, size: int, budget: RetryBudget) -> None:
    """Raise UserError if the file's size in the store differs from ``size``. A retry cannot repair a wrong size."""
    there = None
    with contextlib.suppress(*remote_errors()):  # this request may fail as well
        path.fs.invalidate_cache()
        there = path.fs.info(path.path, **_limits(path, budget, 1 << 53)).get("size")
    if there not in (None, size):
        raise UserError("set-damaged", f"{path} has {there} bytes, but the manifest says {size}: upload it again")


def _http_status(error: BaseException) -> int:
    """Return the HTTP status of an error of aiohttp or gcsfs. 0 if the error has no status."""
    found = (str(getattr(error, name, None)) for name in ("status", "code"))
    return next((int(text) for text in found if text.isdecimal()), 0)


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError) and not str(error):
        return "no response in time"
    return f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
