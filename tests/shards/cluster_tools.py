"""A real Dask cluster of a few processes, started as its users start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from distributed import Client
from shard_tools import environment

HERE = Path(__file__).resolve().parent


def until(happened: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < end, f"not in {timeout} s: {what}"
        time.sleep(0.02)


class Cluster:
    """A scheduler and workers of one thread, each a process (below a nanny, which starts a dead one again)."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.nannies: list[subprocess.Popen[bytes]] = []
        # The tests' modules can be imported on the workers, as users' own packages can.
        paths = os.pathsep.join((str(HERE), environment()["PYTHONPATH"]))
        self.environment = {**environment(), "PYTHONPATH": paths, **settings}
        self.scheduler = self._start(
            ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"], "scheduler", {}
        )
        until(self.file.exists, "a scheduler file")

    def _start(
        self, command: list[str], log: str, more: dict[str, str], before: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{log}.log", "ab") as stream:
            return subprocess.Popen(
                [*before, sys.executable, "-m", "dask", *command, "--scheduler-file", str(self.file)],
                stdout=stream,
                stderr=stream,
                env={**self.environment, **more},
                cwd=self.folder,
                start_new_session=True,
            )

    def add_workers(self, count: int, before: tuple[str, ...] = (), **settings: str) -> None:
        """Start workers, and wait until they have joined. ``before`` is a command that starts theirs."""
        there = self.count()
        for _ in range(count):
            command = ["worker", "--nthreads", "1", "--no-dashboard", "--local-directory", str(self.folder)]
            self.nannies.append(self._start(command, f"worker-{len(self.nannies)}", settings, before))
        until(lambda: self.count() >= there + count, "workers that joined")

    def count(self) -> int:
        """How many workers the scheduler has."""
        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            return len(client.nthreads())

    def workers(self) -> dict[str, int]:
        """Address and process of each worker, all of which must be alive."""
        with Client(scheduler_file=str(self.file), set_as_default=False) as client:
            return dict(client.run(os.getpid))

    def mend(self) -> None:
        """Wait until nannies have started all dead workers again."""
        until(lambda: self.count() == len(self.nannies), "as many workers as nannies")

    def remove_worker(self, nanny: subprocess.Popen[bytes]) -> None:
        """End a nanny and its worker, and wait until the scheduler has noticed."""
        there = self.count()
        _kill(nanny)
        self.nannies.remove(nanny)
        until(lambda: self.count() < there, "a worker that is gone")

    def close(self) -> None:
        for process in (*self.nannies, self.scheduler):
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all below it."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    for one in (process, *below):
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@contextmanager
def cluster_of(folder: Path, workers: int, **settings: str) -> Iterator[Cluster]:
    """A cluster for the length of a block."""
    cluster = Cluster(folder, **settings)
    try:
        cluster.add_workers(workers)
        yield cluster
    finally:
        cluster.close()
