"""Run many tasks on all cores of this machine, or on the workers of a cluster (shards/executors/dask.py).

The result of a task depends only on its arguments, and a task writes files atomically. So a task can run twice, even at
the same time. Messages name a task by ``str(task)``. shards/executors/retries.py handles failed tasks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from shards.errors import UserError
from shards.executors.retries import Backend, Outcome, Result, Task, attempt, run_all
from shards.extras import require_extra
from shards.options import option
from shards.storage.paths import StoragePath, is_remote
from shards.values import Checked, or_more

if TYPE_CHECKING:
    from shards.executors.dask import DaskExecutor

#: ``run`` yields (task, result) in completion order. ``slots`` returns how many tasks run at the same time.
Executor: TypeAlias = "LocalExecutor | DaskExecutor"


@dataclass(frozen=True, kw_only=True)
class WorkersOption(Checked):
    """Option of commands that run worker processes."""

    workers: Annotated[int, or_more("all cores")] = 0
    """Number of worker processes on this machine (0: one per core)."""


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where tasks run, and whether to ignore the lock of the output folder."""

    executor: Literal["local", "dask"] = "local"
    """Run tasks on this machine (local) or on the workers of a Dask scheduler (dask)."""
    scheduler: str | None = option(None, metavar="ADDRESS")
    """Address of the Dask scheduler (tcp://HOST:PORT), or path of its scheduler file."""
    break_lock: bool = option(False, old=("--take-over",))
    """Use an --out URL that is locked by a run on another machine. First make sure that the other run has ended."""

    def check_executor(self) -> None:
        """Raise UserError if the options contradict each other."""
        if self.executor == "dask":
            if not self.scheduler:
                why = "tcp://HOST:PORT, or the path of a scheduler file"
                raise UserError("option-missing", f"--executor dask needs --scheduler: {why}")
            if getattr(self, "workers", 0):  # `posters fetch` has no --workers
                remedy = "leave --workers out, because a Dask cluster has its own workers"
                raise UserError("option-conflict", f"--workers is for --executor local; {remedy}")
        elif self.scheduler:
            why = "add --executor dask, or leave --scheduler out"
            raise UserError("option-conflict", f"--scheduler {self.scheduler} is for --executor dask; {why}")


@contextlib.contextmanager
def open_executor(
    workers: int = 0,
    scheduler: str | None = None,
    reads: Sequence[StoragePath] = (),
    writes: Sequence[StoragePath] = (),
    libraries: Sequence[str] = (),
) -> Iterator[Executor]:
    """Open a DaskExecutor if ``scheduler`` is given, or else a LocalExecutor with ``workers`` processes.

    Dask workers must have access to the local folders of ``reads`` and ``writes``. They must have the same versions of
    ``libraries`` and of shards.versions.LIBRARIES as this machine. Raises the same errors as DaskExecutor.
    """
    if scheduler is None:
        yield LocalExecutor(workers)
        return
    require_extra("dask", "--executor dask", "distributed")
    from shards.executors.dask import DaskExecutor

    shared, results = ([place for place in places if not is_remote(place)] for places in (reads, writes))
    with DaskExecutor(scheduler, shared, results, libraries) as executor:
        yield executor


def available_cores() -> int:
    """Return the number of cores that this process may use. Slurm or a container may allow only some cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor:
    """Worker processes on this machine. ``workers`` 0 means one per available core.

    With one worker or one task, everything runs in this process. Raises UserError if a worker is killed, usually by the
    kernel because memory is full. Finished work stays on disk.
    """

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers

    def slots(self) -> int:
        return self._workers or available_cores()

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        workers = min(self.slots(), len(tasks))
        backend = _InProcess(function, tasks) if workers <= 1 else _Pool(function, tasks, workers)
        with contextlib.closing(backend):
            try:
                yield from run_all(tasks, backend)
            except BrokenProcessPool:
                what = "a worker process was killed, perhaps because memory was full; finished work is kept"
                remedy = "run the same command again, with fewer --workers if memory is short"
                raise UserError("worker-lost", f"{what}: {remedy}") from None


class _InProcess(Backend):
    this_machine = True

    def __init__(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        self._function, self._tasks, self._next = function, tasks, 0

    def room(self) -> int:
        return 1

    def submit(self, number: int) -> None:
        self._next = number

    def wait(self) -> Sequence[Outcome]:
        return [(self._next, *attempt(self._function, self._tasks[self._next]))]


class _Pool(Backend):
    this_machine = True

    def __init__(self, function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> None:
        self._function, self._tasks, self._workers = function, tasks, workers
        # spawn: a forked child inherits the locks that other threads of the parent hold
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
        self._running: dict[Future[Any], int] = {}

    def room(self) -> int:
        return 2 * self._workers

    def submit(self, number: int) -> None:
        with no_main_module():  # the pool starts its workers in submit()
            self._running[self._pool.submit(attempt, self._function, self._tasks[number])] = number

    def wait(self) -> Sequence[Outcome]:
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        return [(self._running.pop(future), *future.result()) for future in done]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def no_main_module() -> Iterator[None]:
    """Prevent new workers from importing the user's script. Without a ``__main__`` guard, each worker would run it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and shuts the pool down in order
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent process ends. A parent that is killed cannot end its workers itself."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
