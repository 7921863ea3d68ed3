"""Read again what failed in passing: a disk or a network file system that does not answer for a moment.

An OSError says nothing of the bytes in a file, so it never makes a file a damaged one. There are three kinds:

- it may pass (EIO, ESTALE, timeouts, lost connections): the read is made again for some seconds, from a file that is
  opened anew;
- it is about one file, such as one that was deleted or may not be read: who lists files of users says so of each;
- all others are about this process or its machine, such as too many open files: the run ends with the system's word.

`tenacity` would not shorten this. What counts as passing, one warning for many threads, the error at the end, and a
wait that ends as soon as ``stop`` is set are all there is here, and would be its callbacks. So it is with reads of
stores (retrying_read.py), whose patience is renewed by every block that comes, and with downloads (fetch/download.py),
where a server says how long to wait.
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

#: Seconds between two tries, the first and the longest, and for how long a file is tried in all. Network file systems
#: have tried for themselves before they say anything.
PAUSES, LONGEST = (0.1, 5.0), 30.0

#: By name, for not every system has them all.
_PASSING = {
    number
    for name in (
        "EIO", "ESTALE", "EREMOTEIO", "ETIMEDOUT", "ETIME", "EAGAIN", "EWOULDBLOCK", "EINTR", "EBUSY", "EPROTO",
        "ECOMM", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN", "EPIPE", "ENETDOWN",
        "ENETRESET", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOLINK", "ENONET", "ENOBUFS",
    )
    if (number := getattr(errno, name, None)) is not None
}  # fmt: skip
#: Of a file that was deleted, moved, or may not be read.
_OF_ONE_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
    errno.EINVAL, errno.EFBIG, errno.EOVERFLOW,
}  # fmt: skip

#: Files of which this process has said that they are read again.
_told: set[str] = set()


class Unreadable(UserError):
    """A file that cannot be read now, whatever is in it."""

    def __init__(self, message: str, passing: bool = False) -> None:
        """``passing``: another start may find it; the exit status is then that of a service that was lost."""
        super().__init__("path-unreadable", message)
        if passing:
            self.status = 69


def may_pass(error: OSError) -> bool:
    """Whether the same read may succeed a moment later."""
    kinds = (TimeoutError, ConnectionError, InterruptedError, BlockingIOError)
    return isinstance(error, kinds) or error.errno in _PASSING


def of_one_file(error: OSError) -> bool:
    """Whether an error is about the file alone: others of its folder may be read all the same."""
    return error.errno in _OF_ONE_FILE


def unreadable(what: str, error: OSError, seconds: float = 0.0) -> Unreadable:
    """What is said of a file, ``what``, that cannot be read on this machine, though it was tried for ``seconds``."""
    tried = f" (tried for {seconds:.0f} s)" if seconds else ""
    reason = f"[Errno {error.errno}] {error.strerror}" if error.errno and error.strerror else one_line(error)
    where = f"{what} cannot be read on {socket.gethostname()}"
    return Unreadable(f"{where}: {reason}{tried}; look at that machine's disk or mount", may_pass(error))


def retried(read: Callable[[], T], what: str, stop: threading.Event | None = None) -> T:
    """What ``read`` returns, called again while its OSError may pass, for LONGEST seconds at most.

    Raises Unreadable after that, Abandoned soon after ``stop`` is set, and any other OSError as it is.
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
            if what not in _told:  # many threads read one file
                _told.add(what)
                log.warning("%s: %s; it is read again for up to %.0f s", what, one_line(error), LONGEST)
        RetryBudget.rest(pause * random.uniform(0.5, 1.0), stop)
        pause = min(2 * pause, PAUSES[1])
