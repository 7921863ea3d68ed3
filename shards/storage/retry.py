"""Retry reads after temporary failures of a disk or a network file system.

An OSError does not mean that the bytes of the file are wrong, so the file is not reported as damaged. There are
three kinds of OSErrors:

- Temporary errors (EIO, ESTALE, timeouts, lost connections): the file is opened and read again for some seconds.
- Errors of one file, for example because it was deleted: the file can be left out and reported.
- Errors of this process or its machine, for example too many open files: the run ends with the error.
"""

from __future__ import annotations

import errno
import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shards.errors import UserError, one_line
from shards.storage.retrying_read import RetryBudget

log = logging.getLogger(__name__)

T = TypeVar("T")

#: First and longest pause between two tries, and the total time for one file, in seconds. The total is short, because
#: a network file system has already retried before it reports an error.
PAUSES, LONGEST = (0.1, 5.0), 30.0
#: Numbers of temporary errors. They are looked up by name, because not every system has all of them.
_PASSING = {
    number
    for name in (
        "EIO", "ESTALE", "EREMOTEIO", "ETIMEDOUT", "ETIME", "EAGAIN", "EWOULDBLOCK", "EINTR", "EBUSY", "EPROTO",
        "ECOMM", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN", "EPIPE", "ENETDOWN",
        "ENETRESET", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOLINK", "ENONET", "ENOBUFS",
    )
    if (number := getattr(errno, name, None)) is not None
}  # fmt: skip
#: Error numbers that concern one file, for example because it was deleted or may not be read.
_OF_ONE_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
    errno.EINVAL, errno.EFBIG, errno.EOVERFLOW,
}  # fmt: skip
#: Files for which this process has already logged a warning.
_warned: set[str] = set()


class Unreadable(UserError):
    """A file that cannot be read now. Its contents may be correct."""

    def __init__(self, message: str, passing: bool = False) -> None:
        """``passing``: the failure is temporary. The exit status is then 69 (service unavailable)."""
        super().__init__("path-unreadable", message)
        if passing:
            self.status = 69


def may_pass(error: OSError) -> bool:
    """Return whether an error is temporary, so that the same read may succeed later."""
    kinds = (TimeoutError, ConnectionError, InterruptedError, BlockingIOError)
    return isinstance(error, kinds) or error.errno in _PASSING


def of_one_file(error: OSError) -> bool:
    """Return whether an error concerns only this file, so that other files of the folder may be readable."""
    return error.errno in _OF_ONE_FILE


def unreadable(what: str, error: OSError, seconds: float = 0.0) -> Unreadable:
    """Return the error for the file ``what``, which this machine cannot read after ``seconds`` of retries."""
    tried = f" (tried for {seconds:.0f} s)" if seconds else ""
    reason = f"[Errno {error.errno}] {error.strerror}" if error.errno and error.strerror else one_line(error)
    where = f"{what} cannot be read on {socket.gethostname()}"
    return Unreadable(f"{where}: {reason}{tried}; check that machine's disk or mount", may_pass(error))


def retried(read: Callable[[], T], what: str, stop: threading.Event | None = None) -> T:
    """Return the result of ``read``. After a temporary OSError, call ``read`` again, for LONGEST seconds at most.

    Raises Unreadable after that time, and Abandoned soon after ``stop`` is set. Other OSErrors are raised unchanged.
    """
    began, pause, tries = time.monotonic(), PAUSES[0], 0
    while True:
        try:
            result = read()
            if tries:
                log.info("%s was read after %d failures", what, tries)
            return result
        except OSError as error:
            if not may_pass(error):
                raise
            if (seconds := time.monotonic() - began) >= LONGEST:
                raise unreadable(what, error, seconds) from None
            tries += 1
            if what not in _warned:  # many threads may read the same file
                _warned.add(what)
                log.warning("%s: %s; retrying for up to %.0f s", what, one_line(error), LONGEST)
        RetryBudget.rest(pause * random.uniform(0.5, 1.0), stop)
        pause = min(2 * pause, PAUSES[1])
