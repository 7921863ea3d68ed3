"""What becomes of tasks that fail: tried again, set aside, or the end of the run. The same for every executor.

- A UserError, and a full disk of this machine, end the run at once: all tasks would meet them.
- Any other exception may pass (a store that was busy): the task is tried again, ``RETRIES`` times. Then it is set
  aside, all other tasks are done, and one UserError at the end names it. A bug's traceback is logged.
- A task whose worker was killed several times may have stood beside the culprit. It is tried alone, after all others.
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
"""Further tries of a task that failed for what may be a passing reason."""

MAX_FAILURES_IN_A_ROW = 20
"""So many tasks set aside, one after the other, and the cause is not theirs: the run ends."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class Failure:
    """Why a task failed, in plain values: not every library's exceptions can travel between processes."""

    line: str
    """One line, with the exception's type where that says more."""
    kind: str = "bug"
    """``user``: a UserError; ``disk``: it is full; ``passing``: system or store; ``killed``: its worker; ``bug``."""
    code: Code = "tasks-failed"
    status: int = UserError.status
    """Of a UserError, with its exit status."""
    disk: tuple[int, str, str | None] | None = None
    """errno, its word and the file."""
    trace: str = ""
    host: str = field(default_factory=socket.gethostname)
    worker: str = ""
    """Address of a cluster's worker."""


#: (position of a task, its result, or why there is none)
Outcome = tuple[int, Any, Failure | None]


class Backend(Protocol):
    """Where tasks run, by their positions."""

    this_machine: bool
    """Whether a full disk is every task's."""

    def room(self) -> int:
        """How many tasks may be submitted and not yet done: a short queue keeps memory flat."""

    def submit(self, number: int) -> None: ...

    def wait(self) -> Sequence[Outcome]:
        """What is done by now; waits for something to be done if nothing is, or comes back empty after a while."""

    def close(self) -> None:
        """Take back what nobody waits for any more."""
        return


def attempt(function: Callable[[Task], Result], task: Task, worker: str = "") -> tuple[Any, Failure | None]:
    """(result, None), or (None, why there is none)."""
    try:
        return function(task), None
    except Exception as error:  # whatever it is: judged, told and counted by drive()
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
    """Yield (task, result) in completion order. Raises UserError as the module says, and OSError for a full disk."""
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
        """Tasks set aside since the last one that went well."""

    def failed(self, number: int, failure: Failure) -> bool:
        """Whether the task is to be tried again. Raises what ends the run."""
        if failure.kind == "user":
            error = UserError(failure.code, failure.line)
            error.status = failure.status
            raise error
        if failure.disk is not None and self._this_machine:
            raise OSError(*failure.disk)
        self._tries[number] += 1
        name = str(self._tasks[number])
        if failure.kind != "killed" and self._tries[number] <= RETRIES:
            log.warning("%s failed on %s and is tried again: %s", name, failure.host, failure.line)
            return True
        if failure.kind == "bug":
            log.error("%s failed on %s:\n%s", name, failure.host, failure.trace.rstrip())
        self._aside[number] = f"{name} ({failure.line})"
        self.in_a_row += 1
        if MAX_FAILURES_IN_A_ROW <= self.in_a_row < len(self._tasks):
            what = f"{self.in_a_row} tasks failed one after the other, so the rest was not tried"
            kept = "finished work is kept: mend the cause and run the same command again"
            raise UserError("tasks-failed", f"{what}; the last was {self._aside[number]}; {kept}")
        return False

    def finish(self) -> None:
        """Raises UserError if tasks were set aside."""
        if told := [self._aside[number] for number in sorted(self._aside)]:
            more = [f"and {len(told) - 5} more"] if len(told) > 5 else []
            kept = "Whatever was finished is kept: mend the cause and run the same command again"
            what = f"{len(told)} of {len(self._tasks)} tasks failed: {'; '.join(told[:5] + more)}"
            raise UserError("tasks-failed", f"{what}. {kept}")
