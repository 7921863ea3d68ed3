"""Run many repeatable tasks on all cores of this machine.

A task is a pure function of its arguments that leaves a file under a final name; it may be run again at any
time. Other executors (a cluster's) need only this one call: ``run(function, tasks)`` yields results as they come.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from shards.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores this process may use: the scheduler's affinity (containers, Slurm), not the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int = 0
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, result) in completion order. ``workers`` 0 means one per available core.

    One worker, or one task, runs in this process. Raises UserError if a worker is killed from outside
    (usually by the kernel, out of memory): whatever had finished stays on disk.
    """
    if workers < 0:
        raise UserError(f"--workers must be 0 (all cores) or more, not {workers}")
    workers = min(workers or available_cores(), len(tasks))
    if workers <= 1:
        for task in tasks:
            yield task, function(task)
        return
    # spawn: a forked child would inherit the locks of the parent's threads in whatever state they are
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        queue = iter(tasks)
        running: dict[Future[Result], Task] = {}
        while True:
            # A short queue, so that memory stays flat however many tasks there are.
            for task in itertools.islice(queue, 2 * workers - len(running)):
                running[pool.submit(function, task)] = task
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed from outside (out of memory?); finished work is kept: "
            "run the same command again, with fewer --workers if memory is short"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C belongs to the parent, which then shuts the pool down in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Without this, workers of a parent killed by SIGKILL would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
