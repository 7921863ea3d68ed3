"""Handle failed tasks in the same way for every executor: retry, skip, or end the run.

- A UserError or a full disk of this machine ends the run at once, because all tasks would fail.
- Any other exception may be temporary, for example if a store is busy. The task is retried ``RETRIES`` times and then
  skipped. All other tasks run, and one UserError at the end names the skipped tasks. The traceback of a bug is logged.
- If several workers are killed while they run a task, the cause may be another task on the same workers. So the failed
  task runs again alone, after all other tasks.
"""

from __future__ import annotations

import errno
import logging
import socket
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from shards.errors import Code, UserError, one_line
from shards.storage.paths import remote_errors

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

RETRIES = 2
"""Number of times that a failed task is retried."""
MAX_FAILURES_IN_A_ROW = 20
"""The run ends after this number of consecutive failed tasks, because the cause is probably not in the tasks."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class Failure:
    """Failure of a task as plain values, because some exceptions cannot be sent between processes."""

    line: str
    """Message in one line, with the type of the exception if it is not a UserError."""
    kind: str = "bug"
    """Type of failure: ``user`` for a UserError, ``disk`` for a full disk, ``passing`` for an error of the system or a
    store, ``killed`` for a killed worker, and ``bug`` for any other exception."""
    code: Code = "tasks-failed"
    status: int = UserError.status
    """Exit status of a UserError."""
    disk: tuple[int, str, str | None] | None = None
    """(errno, message, path) of the OSError if a disk is full. None for other failures."""
    trace: str = ""
    host: str = field(default_factory=socket.gethostname)
    worker: str = ""
    """Address of the Dask worker. Empty on this machine."""


#: (position of the task, result or None, failure or None)
Outcome = tuple[int, Any, Failure | None]


class Backend(Protocol):
    """Runs submitted tasks. The number of a task is its position in the sequence of tasks."""

    this_machine: bool
    """Whether all tasks run on this machine, so that a full disk affects every task."""

    def room(self) -> int:
        """Return how many submitted tasks can be unfinished at the same time. This limit saves memory."""

    def submit(self, number: int) -> None: ...

    def wait(self) -> Sequence[Outcome]:
        """Wait for finished tasks and return their outcomes. The result can be empty if no task finishes soon."""

    def close(self) -> None:
        """Cancel the tasks whose results are no longer needed."""
        return


def attempt(function: Callable[[Task], Result], task: Task, worker: str = "") -> tuple[Any, Failure | None]:
    """Run a task. Return (result, None), or (None, failure)."""
    try:
        return function(task), None
    except Exception as error:  # run_all() handles errors of all types
        return None, _failure_of(error, worker)


def _failure_of(error: Exception, worker: str) -> Failure:
    if isinstance(error, UserError):
        return Failure(str(error), "user", error.code, error.status, worker=worker)
    text, name = one_line(error), type(error).__name__
    line = text if text == name else f"{name}: {text}"
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        path = None if error.filename is None else str(error.filename)
        return Failure(line, "disk", disk=(error.errno, error.strerror or "", path), worker=worker)
    kind = "passing" if isinstance(error, remote_errors()) else "bug"
    return Failure(line, kind, trace=traceback.format_exc(), worker=worker)


def run_all(tasks: Sequence[Task], backend: Backend) -> Iterator[tuple[Task, Any]]:
    """Yield (task, result) in completion order. Raises UserError for failed tasks, and OSError for a full disk."""
    retries = _Retries(tasks, backend.this_machine)
    queue, suspects = deque(range(len(tasks))), deque[int]()
    running, alone = 0, False
    while queue or running or suspects:
        if not queue and not running:
            alone = True
            queue.append(suspects.popleft())
        while queue and running < (1 if alone else backend.room()):
            backend.submit(queue.popleft())
            running += 1
        for number, result, failure in backend.wait():
            running -= 1
            if failure is None:
                retries.in_a_row = 0
                yield tasks[number], result
            elif failure.kind == "killed" and not alone:
                suspects.append(number)
            elif retries.failed(number, failure):
                queue.append(number)
    retries.finish()


class _Retries(Generic[Task]):
    def __init__(self, tasks: Sequence[Task], this_machine: bool) -> None:
        self._tasks, self._this_machine = tasks, this_machine
        self._tries: Counter[int] = Counter()
        self._aside: dict[int, str] = {}
        self.in_a_row = 0
        """Number of tasks skipped since the last success."""

    def failed(self, number: int, failure: Failure) -> bool:
        """Return whether to try the task again. Raises UserError or OSError if the run must end."""
        if failure.kind == "user":
            error = UserError(failure.code, failure.line)
            error.status = failure.status
            raise error
        if failure.disk is not None and self._this_machine:
            raise OSError(*failure.disk)
        self._tries[number] += 1
        name = str(self._tasks[number])
        if failure.kind != "killed" and self._tries[number] <= RETRIES:
            log.warning("%s failed on %s and is retried: %s", name, failure.host, failure.line)
            return True
        if failure.kind == "bug":
            log.error("%s failed on %s:\n%s", name, failure.host, failure.trace.rstrip())
        self._aside[number] = f"{name} ({failure.line})"
        self.in_a_row += 1
        if MAX_FAILURES_IN_A_ROW <= self.in_a_row < len(self._tasks):
            what = f"{self.in_a_row} tasks failed in a row, so the remaining tasks were not tried"
            kept = "Finished work is kept: repair the cause and run the same command again"
            raise UserError("tasks-failed", f"{what}. The last failure: {self._aside[number]}. {kept}")
        return False

    def finish(self) -> None:
        """Raise UserError if tasks were skipped."""
        if failed := [self._aside[number] for number in sorted(self._aside)]:
            more = [f"and {len(failed) - 5} more"] if len(failed) > 5 else []
            kept = "Finished work is kept: repair the cause and run the same command again"
            what = f"{len(failed)} of {len(self._tasks)} tasks failed: {'; '.join(failed[:5] + more)}"
            raise UserError("tasks-failed", f"{what}. {kept}")
