"""What runs on a Dask worker: the question whether it fits, then the task."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from distributed import Worker, get_worker

from shards.executors.retries import Failure, attempt
from shards.versions import library_versions

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Terms:
    """What a worker must have in common with this machine. Hashable: each worker looks once."""

    versions: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str, int], ...]
    """(folder, a file in it, its size)."""


def on_worker(function: Callable[[Task], Result], task: Task, terms: Terms) -> tuple[Any, Failure | None]:
    """Runs on a worker: the task, if the worker fits."""
    if problem := _misfit(terms):
        return None, Failure(problem, "user")
    return attempt(function, task, get_worker().address)


def meet(terms: Terms, run_key: str, dask_worker: Worker) -> tuple[str, bool]:
    """Runs on a worker: (why it does not fit, whether it still runs tasks of an earlier run on the same folder)."""
    return _misfit(terms), any(str(task.key).startswith(run_key) for task in dask_worker.state.executing)


@lru_cache(maxsize=8)
def _misfit(terms: Terms) -> str:
    host = socket.gethostname()
    ours = library_versions([name for name, _ in terms.versions])
    for name, wanted in terms.versions:
        if ours[name] != wanted:
            return (
                f"worker {host} has {name} {ours[name]} and this machine {wanted}: shards could differ; install the "
                f"same versions everywhere (constraints.txt)"
            )
    for folder, path, size in terms.files:
        try:
            seen = os.stat(path).st_size == size
        except OSError:
            seen = False
        if not seen:
            return f"worker {host} does not see {folder}: use a shared file system, or a URL such as s3://bucket/folder"
    return ""
