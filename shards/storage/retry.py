"""Retry reads after temporary failures of a disk or a network file system.

An OSError does not mean that the file's bytes are wrong, so such a file is never reported as damaged. Three kinds:

- Temporary (EIO, ESTALE, timeouts, lost connections): the file is opened and read again for some seconds.
- About one file, for example if it was deleted or may not be read: code that lists a user's files reports each one.
- All others are about this process or its machine, for example too many open files: the run ends with that error.

`tenacity` would not shorten this: the choice of errors, the one warning for many threads, the final error and the wait
that ``stop`` ends would be its callbacks. The same is true for retrying_read.py and for fetch/download.py.
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

#: Seconds between two tries (first and longest pause), and in total for one file. Network file systems have already
#: retried before they report an error.
PAUSES, LONGEST = (0.1, 5.0), 30.0

#: Numbers of temporary errors. They are found by name, because some systems lack some of them.
_PASSING = {
    number
    for name in (
        "EIO", "ESTALE", "EREMOTEIO", "ETIMEDOUT", "ETIME", "EAGAIN", "EWOULDBLOCK", "EINTR", "EBUSY", "EPROTO",
        "ECOMM", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN", "EPIPE", "ENETDOWN",
        "ENETRESET", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOLINK", "ENONET", "ENOBUFS",
    )
    if (number := getattr(errno, name, None)) is not None
}  # fmt: skip
#: Error numbers of a file that was deleted, moved, or may not be read.
_OF_ONE_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
    errno.EINVAL, errno.EFBIG, errno.EOVERFLOW,
}  # fmt: skip

#: Files whose retry this process has already logged.
_warned: set[str] = set()


class Unreadable(UserError):
    """A file that cannot be read now. Its contents may be correct."""

    def __init__(self, message: str, passing: bool = False) -> None:
        """``passing``: another run may read the file. The exit status is then 69, as for a lost service."""
        super().__init__("path-unreadable", message)
        if passing:
            self.status = 69


def may_pass(error: OSError) -> bool:
    """Return whether the same read may succeed later."""
    kinds = (TimeoutError, ConnectionError, InterruptedError, BlockingIOError)
    return isinstance(error, kinds) or error.errno in _PASSING


def of_one_file(error: OSError) -> bool:
    """Return whether an error is only about this file, so that other files of its folder may be readable."""
    return error.errno in _OF_ONE_FILE


def unreadable(what: str, error: OSError, seconds: float = 0.0) -> Unreadable:
    """Return the error for a file ``what`` that cannot be read on this machine after ``seconds`` of retries."""
    tried = f" (tried for {seconds:.0f} s)" if seconds else ""
    reason = f"[Errno {error.errno}] {error.strerror}" if error.errno and error.strerror else one_line(error)
    where = f"{what} cannot be read on {socket.gethostname()}"
    return Unreadable(f"{where}: {reason}{tried}; check that machine's disk or mount", may_pass(error))


def retried(read: Callable[[], T], what: str, stop: threading.Event | None = None) -> T:
    """Call ``read`` and return its result. It is called again after temporary OSErrors, for LONGEST seconds at most.

    Raises Unreadable after that time, Abandoned soon after ``stop`` is set, and other OSErrors unchanged.
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
            if what not in _warned:  # many threads read one file
                _warned.add(what)
                log.warning("%s: %s; retrying for up to %.0f s", what, one_line(error), LONGEST)
        RetryBudget.rest(pause * random.uniform(0.5, 1.0), stop)
        pause = min(2 * pause, PAUSES[1])
