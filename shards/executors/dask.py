"""Run tasks on the workers of a Dask scheduler. Functions, tasks and results are the same as on this machine.

Only tasks and their results are sent. Workers read and write posters and shards directly in the store or the shared
file system. Each worker is checked before its first task. It must have access to the same folders as this machine.
The libraries that determine the output bytes must have the same versions. So results do not depend on the cluster.

If a worker is lost, Dask runs its tasks on another worker. If more than
``distributed.scheduler.allowed-failures`` workers are lost while they run the same task, the task fails.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import logging
import os
import queue
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from distributed import Client, Future, Security, Worker, get_worker
from distributed.client import ClosedClientError
from distributed.comm import connect
from distributed.scheduler import KilledWorker

from shards.errors import UserError, one_line
from shards.executors.retries import Backend, Failure, Outcome, Result, Task, attempt, run_all
from shards.storage.files import fingerprint, names_in
from shards.versions import library_versions

log = logging.getLogger(__name__)

CONNECT = 15
"""Seconds to wait for an answer of the scheduler."""
POLL_SECONDS = 5
"""Seconds between two checks of the scheduler."""
NO_WORKERS = 4
"""Number of tasks to submit while the scheduler has no workers. The first worker can then start at once."""
WITNESS_PREFIX = ".seen-"
"""Prefix of the name of a test file in each output folder. Workers must find this file."""
CONNECTION_ERRORS = (OSError, asyncio.TimeoutError, concurrent.futures.CancelledError)
"""Exceptions that calls raise if the scheduler is lost."""


@dataclass(frozen=True)
class Terms:
    """Library versions and files that each worker must have. Terms are hashable, so that the check can be cached."""

    versions: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str, int], ...]
    """(folder, path, size in bytes) of each file that a worker must find."""


def on_worker(function: Callable[[Task], Result], task: Task, terms: Terms) -> tuple[Any, Failure | None]:
    """Run a task on this worker. Return a failure if the worker does not meet ``terms``."""
    if problem := _misfit(terms):
        return None, Failure(problem, "user", "environment")
    return attempt(function, task, get_worker().address)


def check_worker(terms: Terms, run_key: str, dask_worker: Worker) -> tuple[str, bool]:
    """Return why ``terms`` are not met ("" if met), and whether this worker still runs tasks of an earlier run."""
    return _misfit(terms), any(str(task.key).startswith(run_key) for task in dask_worker.state.executing)


@lru_cache(maxsize=8)
def _misfit(terms: Terms) -> str:
    host = socket.gethostname()
    ours = library_versions([name for name, _ in terms.versions])
    for name, wanted in terms.versions:
        if ours[name] != wanted:
            remedy = "install the same versions on all machines (constraints.txt)"
            return f"worker {host} has {name} {ours[name]} but this machine has {wanted}: shards could differ; {remedy}"
    for folder, path, size in terms.files:
        with contextlib.suppress(OSError):
            if os.stat(path).st_size == size:
                continue
        return f"worker {host} cannot read {folder}: use a shared file system, or a URL such as s3://bucket/folder"
    return ""


class DaskExecutor:
    """Executor that is connected to a Dask scheduler inside a ``with`` block.

    ``scheduler`` is an address such as ``tcp://host:8786`` or the path of a scheduler file. Workers must have access to
    the local folders ``reads`` and ``writes``. Raises UserError if the scheduler does not answer or is lost, or if a
    worker cannot read these folders or has other library versions than this machine.
    """

    def __init__(
        self, scheduler: str, reads: Sequence[Path] = (), writes: Sequence[Path] = (), libraries: Sequence[str] = ()
    ) -> None:
        self._scheduler = scheduler
        self._reads, self._writes, self._libraries = reads, writes, libraries
        self._stack = contextlib.ExitStack()
        self._run_key = f"posters-{fingerprint([str(path) for path in writes])[:12]}"
        self._threads: dict[str, int] = {}
        self._polled_at, self._warned = 0.0, False

    def __enter__(self) -> DaskExecutor:
        with self._stack:
            self._terms = Terms(tuple(library_versions(self._libraries).items()), tuple(self._witnesses()))
            self._client = _connect(self._scheduler)
            self._stack.callback(self._close)
            self.poll()
            self._meet_workers()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def slots(self) -> int:
        return max(1, sum(self._threads.values()))

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[Task, Result]]:
        backend = _Cluster(self, function, tasks)
        with contextlib.closing(backend):
            yield from run_all(tasks, backend)

    def submit(self, function: Callable[[Any], Any], task: Any, avoid: set[str]) -> Future:
        """Submit a task to a worker. Workers in ``avoid`` are used only if no other workers exist."""
        others = sorted(self._threads.keys() - avoid) if avoid else []
        key = f"{self._run_key}-{function.__name__}-{secrets.token_hex(8)}"
        with self.as_user_error():
            return self._client.submit(
                on_worker, function, task, self._terms,
                key=key, pure=False, workers=others or None, allow_other_workers=bool(others),
            )  # fmt: skip

    def poll(self) -> int:
        """Return how many tasks the current workers can run at once. Raises UserError if the scheduler is lost."""
        if self._client.status != "running":
            raise self._lost("the connection was closed")
        if time.monotonic() - self._polled_at >= POLL_SECONDS:
            with self.as_user_error():
                self._threads = self._client.nthreads()
            self._polled_at = time.monotonic()
            if not self._threads and not self._warned:
                log.warning("the scheduler %s has no worker yet; start one with `dask worker`", self._scheduler)
            self._warned = not self._threads
        return sum(self._threads.values())

    def cancel(self, futures: Sequence[Future]) -> None:
        with contextlib.suppress(*CONNECTION_ERRORS):
            self._client.cancel(futures, force=True)

    @contextlib.contextmanager
    def as_user_error(self) -> Iterator[None]:
        """Turn the errors of a lost scheduler into a UserError."""
        try:
            yield
        except (*CONNECTION_ERRORS, RuntimeError, ClosedClientError) as error:
            # RuntimeError and ClosedClientError come from a client that was closed before or during the call.
            if self._client.status == "running" and not isinstance(error, CONNECTION_ERRORS):
                raise
            raise self._lost(error) from None

    def _lost(self, why: object) -> UserError:
        remedy = "finished work is kept: start the scheduler and the workers, and run the same command again"
        return UserError("scheduler-lost", f"the Dask scheduler {self._scheduler} is lost ({one_line(why)}); {remedy}")

    def _close(self) -> None:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            self._client.close(timeout=3)

    def _witnesses(self) -> Iterator[tuple[str, str, int]]:
        for folder in self._reads:
            below = (Path(parent) / name for parent, _, names in os.walk(folder.resolve()) for name in names)
            path = next((path for path in below if path.is_file()), None)
            if path is not None:
                yield str(folder), str(path), path.stat().st_size
        for folder in self._writes:
            for name in names_in(folder):
                if name.startswith(WITNESS_PREFIX):  # left by a killed run, because this run holds the lock
                    (folder / name).unlink(missing_ok=True)
            path = folder.resolve() / f"{WITNESS_PREFIX}{secrets.token_hex(8)}"
            path.write_text(self._run_key)
            self._stack.callback(path.unlink, missing_ok=True)
            yield str(folder), str(path), path.stat().st_size

    def _meet_workers(self) -> None:
        """Raise UserError if a worker does not meet the terms. Wait until no worker runs tasks of an earlier run."""
        for check in itertools.count():
            with self.as_user_error():
                answers = self._client.run(check_worker, self._terms, self._run_key, on_error="return")
            for address, answer in sorted(answers.items()):
                if isinstance(answer, Exception):
                    raise UserError("environment", _cannot(f"worker {address}", answer))
                if answer[0]:
                    raise UserError("environment", answer[0])
            if not (busy := sum(at_work for _, at_work in answers.values())):
                break
            if check == 0:
                log.warning("%d workers still run tasks of an earlier run: waiting for them", busy)
            time.sleep(0.5)


class _Cluster(Backend):
    this_machine = False

    def __init__(self, executor: DaskExecutor, function: Callable[[Any], Any], tasks: Sequence[Any]) -> None:
        self._executor, self._function, self._tasks = executor, function, tasks
        self._running: dict[str, tuple[int, Future]] = {}
        self._failed_on: defaultdict[int, set[str]] = defaultdict(set)
        self._done: queue.SimpleQueue[str] = queue.SimpleQueue()

    def room(self) -> int:
        return 2 * self._executor.poll() or NO_WORKERS

    def submit(self, number: int) -> None:
        future = self._executor.submit(self._function, self._tasks[number], self._failed_on[number])
        self._running[str(future.key)] = (number, future)
        done = self._done
        future.add_done_callback(lambda future: done.put(str(future.key)))

    def wait(self) -> Sequence[Outcome]:
        keys = []
        try:
            keys.append(self._done.get(timeout=POLL_SECONDS))
            while True:
                keys.append(self._done.get_nowait())
        except queue.Empty:
            self._executor.poll()
        return [self._outcome(*self._running.pop(key)) for key in keys]

    def close(self) -> None:
        if self._running:
            self._executor.cancel([future for _, future in self._running.values()])

    def _outcome(self, number: int, future: Future) -> Outcome:
        try:
            with self._executor.as_user_error():
                result, failure = future.result()
        except UserError:
            raise
        except KilledWorker as killed:
            workers, last = killed.allowed_failures + 1, killed.last_worker.address
            line = f"{workers} workers were killed while this task ran (out of memory?); the last was {last}"
            return number, None, Failure(line, "killed")
        except Exception as error:  # the worker cannot load the function or the task
            return number, None, Failure(_cannot("a worker", error), "user", "environment")
        if failure is not None:
            self._failed_on[number].add(failure.worker)
        return number, result, failure


def _cannot(worker: str, error: Exception) -> str:
    remedy = "install the same version of poster-toolkit there, with the same extras"
    return f"{worker} cannot run tasks of this program ({one_line(error)}); {remedy}"


def _connect(scheduler: str) -> Client:
    # A UserError reports a lost scheduler, so the log of distributed is off. distributed.client has its own level.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = _address(scheduler)
    try:
        # Client() can wait without end for a peer that accepts the connection but does not answer. So check first.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:  # the caller may have a running event loop
            thread.submit(asyncio.run, _require_answer(address)).result()
        return Client(address, timeout=CONNECT, set_as_default=False, name="posters")
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        what = f"no Dask scheduler answers at {scheduler} ({one_line(error)})"
        remedy = "start one with `dask scheduler`, or give the address of one, such as tcp://host:8786"
        raise UserError("scheduler-lost", f"{what}; {remedy}") from None


async def _require_answer(address: str) -> None:
    arguments = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=CONNECT, **arguments), CONNECT + 1)
    await comm.close()


def _address(scheduler: str) -> str:
    if "://" in scheduler:
        return scheduler
    try:
        return str(json.loads(Path(scheduler).read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "is neither an address such as tcp://host:8786 nor a scheduler file"
        raise UserError("option-value", f"--scheduler {scheduler} {what} ({one_line(error)})") from None
