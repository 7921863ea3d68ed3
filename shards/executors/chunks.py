"""Work in chunks with saved results, so that a killed run can be resumed.

    items ─ split_into_chunks ─→ tasks of several items ─ read_result ─→ valid results of an earlier run
                                                        ─ run_chunks, results_in_order ─→ the other results

Each task saves its result with write_result when it ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, TypeVar

from shards.executors.local import Executor
from shards.executors.retries import Result
from shards.progress import progress
from shards.storage.files import write_json
from shards.storage.paths import StoragePath

Item = TypeVar("Item")
Task = TypeVar("Task", bound=Sized)  # len(task) is the number of its items, for the progress bar


def split_into_chunks(items: Sequence[Item], size: int) -> list[tuple[Item, ...]]:
    """Divide items into chunks of ``size``, in order. The last chunk can be smaller."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def run_chunks(
    executor: Executor, function: Callable[[Task], Result], tasks: Sequence[Task], what: str, unit: str = "img"
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, result) in completion order, with a progress bar named ``what``."""
    with progress(sum(map(len, tasks)), what, unit) as bar:
        for task, result in executor.run(function, tasks):
            yield task, result
            bar.update(len(task))


def results_in_order(
    executor: Executor, function: Callable[[Task], Result], tasks: Sequence[Task], what: str, unit: str = "img"
) -> list[Result]:
    """Run the tasks and return the results in the order of the tasks."""
    found = {id(task): result for task, result in run_chunks(executor, function, tasks, what, unit)}
    return [found[id(task)] for task in tasks]


def write_result(file: StoragePath, state: str, **answer: Any) -> None:
    """Save the result of a task as JSON. ``state`` is a fingerprint of everything that determines the result."""
    write_json(file, {"state": state, **answer})


def read_result(file: StoragePath | bytes, state: str) -> dict[str, Any]:
    """Return the result in ``file`` (a path, or the content). Empty if ``file`` has no result with this ``state``."""
    try:
        found = json.loads(file if isinstance(file, bytes) else file.read_bytes())
        return found if found["state"] == state else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}  # the file has no usable result
