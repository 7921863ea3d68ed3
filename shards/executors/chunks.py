"""Work in chunks whose answers are kept: a run that was killed goes on where it was.

    items ─ cut ─→ tasks, some items each ─ kept ─→ answers of an earlier run that still hold
                                          ─ work_through, answers ─→ the others; a task writes its own (keep) last

``posters fetch`` has its journal instead of answers: what is settled there is of single links.
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
Task = TypeVar("Task", bound=Sized)  # its items, which the progress bar counts


def split_into_chunks(items: Sequence[Item], size: int) -> list[tuple[Item, ...]]:
    """The items in their order, ``size`` at a time."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def run_chunks(
    executor: Executor, function: Callable[[Task], Result], tasks: Sequence[Task], what: str, unit: str = "img"
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, result) as they are done, under a progress bar that says ``what``."""
    with progress(sum(map(len, tasks)), what, unit) as bar:
        for task, result in executor.run(function, tasks):
            yield task, result
            bar.update(len(task))


def results_in_order(
    executor: Executor, function: Callable[[Task], Result], tasks: Sequence[Task], what: str, unit: str = "img"
) -> list[Result]:
    """The results in the order of the tasks."""
    found = {id(task): result for task, result in run_chunks(executor, function, tasks, what, unit)}
    return [found[id(task)] for task in tasks]


def write_result(file: StoragePath, state: str, **answer: Any) -> None:
    """Write a task's answer (JSON types). ``state``: fingerprint of all that decides it."""
    write_json(file, {"state": state, **answer})


def read_result(file: StoragePath | bytes, state: str) -> dict[str, Any]:
    """What ``keep`` wrote for this very state; empty without it. ``file`` may be what it holds."""
    try:
        found = json.loads(file if isinstance(file, bytes) else file.read_bytes())
        return found if found["state"] == state else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}  # no usable answer of an earlier run
