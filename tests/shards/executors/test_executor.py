"""Many tasks on all cores: every result once, every failure told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from failing import fails

from shards.errors import UserError
from shards.executors.local import LocalExecutor, available_cores, open_executor
from shards.executors.retries import RETRIES

ROOT = Path(__file__).resolve().parents[3]
#: The project importable.
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(function: Callable[[Any], Any], tasks: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    return LocalExecutor(workers).run(function, tasks)


def square(number: int) -> int:
    return number * number


def fail_at_seven(number: int) -> int:
    if number == 7:
        raise UserError("device", f"task {number}: 'what' and where")
    return number


def fail_with_errno(number: int) -> int:
    raise OSError(28, "No space left on device", f"/disk/{number}")


def process(number: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def torch_is_loaded(number: int) -> bool:
    return any(name.split(".")[0] == "torch" for name in sys.modules)


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number


def fail_at_seven_with_a_bug(number: int) -> int:
    if number == 7:
        raise ZeroDivisionError("seven is\npoison")
    return number


def fail_once(folder: Path) -> str:
    tries = len(list(folder.iterdir()))
    (folder / str(tries)).touch()
    if tries == 0:
        raise TimeoutError("the store was busy")
    return folder.name


def fail_after_three(number: int) -> int:
    if number >= 3:
        raise PermissionError("the store refuses")
    return number


def unpicklable(number: int) -> int:
    error = RuntimeError("only here")
    error.args = (lambda: None,)
    raise error


def touch(path: Path) -> Path:
    path.touch()
    time.sleep(0.02)
    return path


@pytest.mark.parametrize("workers", [0, 1, 2, 50])
def test_every_task_has_its_result(workers: int) -> None:
    tasks = list(range(30)) if workers != 50 else [1, 2, 3]
    results = list(run(square, tasks, workers))
    assert sorted(results) == [(task, task * task) for task in tasks]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_tasks(workers: int) -> None:
    assert list(run(square, [], workers)) == []


def test_one_worker_is_this_process_and_several_are_not() -> None:
    assert {pid for _, pid in run(process, range(3), 1)} == {os.getpid()}
    assert {pid for _, pid in run(process, [1], 8)} == {os.getpid()}
    pids = {pid for _, pid in run(process, range(20), 2)}
    assert os.getpid() not in pids and len(pids) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_user_error_arrives_as_it_was(workers: int) -> None:
    seen = []
    with fails("device") as caught:
        for task, _ in run(fail_at_seven, range(20), workers):
            seen.append(task)
    assert str(caught.value) == "task 7: 'what' and where"
    assert len(seen) < 19
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_other_errors_arrive_too(workers: int) -> None:
    with pytest.raises(OSError) as caught:
        list(run(fail_with_errno, [1, 2], workers))
    assert caught.value.errno == 28 and str(caught.value.filename).startswith("/disk/")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_poisoned_task_is_set_aside_and_the_others_are_done(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    seen = []
    with fails("tasks-failed") as caught:
        for task, _ in run(fail_at_seven_with_a_bug, range(20), workers):
            seen.append(task)
    assert sorted(seen) == [number for number in range(20) if number != 7]
    assert str(caught.value).startswith("1 of 20 tasks failed: 7 (ZeroDivisionError: seven is poison).")
    (bug,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "Traceback" in bug and "in fail_at_seven_with_a_bug" in bug  # a bug keeps its traceback
    assert len([record for record in caplog.records if "is retried" in record.getMessage()]) == RETRIES


@pytest.mark.parametrize("workers", [1, 2])
def test_a_passing_failure_is_tried_again(workers: int, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    assert sorted(result for _, result in run(fail_once, folders, workers)) == ["0", "1", "2", "3"]
    assert [len(list(folder.iterdir())) for folder in folders] == [2] * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_without_hope_ends(workers: int) -> None:
    seen = []
    with fails("tasks-failed", 20, "PermissionError: the store"):
        for task, _ in run(fail_after_three, range(100), workers):
            seen.append(task)
    assert sorted(seen) == [0, 1, 2]


def test_an_error_that_cannot_travel_is_told_all_the_same() -> None:
    with fails("tasks-failed", "2 of 2", "0 (RuntimeError: ", "lambda"):
        list(run(unpicklable, range(2), 2))


def test_a_cluster_without_its_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "shards.executors.dask", raising=False)
    with fails("extra-missing", "--executor dask", "distributed"):
        open_executor(scheduler="tcp://127.0.0.1:1").__enter__()


def test_a_killed_worker_is_one_clear_line() -> None:
    with fails("worker-lost", "killed", "--workers"):
        list(run(die_at_three, range(10), 2))
    assert multiprocessing.active_children() == []


def test_a_consumer_that_stops_leaves_no_workers_and_starts_no_more_tasks(tmp_path: Path) -> None:
    for _ in run(touch, [tmp_path / str(number) for number in range(200)], 2):
        break
    assert multiprocessing.active_children() == []
    assert len(list(tmp_path.iterdir())) < 20


def test_workers_do_without_torch() -> None:
    assert [loaded for _, loaded in run(torch_is_loaded, [1, 2, 3], 2)] == [False] * 3


def test_cores_are_those_this_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no scheduler affinity")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cores() == len(allowed)


def test_a_script_without_a_guard_runs_once(tmp_path: Path):
    """Although its workers start as fresh processes."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\n"
        "from shards.errors import printable\n"
        "from shards.executors.local import LocalExecutor\n"
        "print(sorted(LocalExecutor(2).run(printable, ['a', 'b'])))\n"
    )
    done = subprocess.run([sys.executable, script], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.stdout == "once\n[('a', 'a'), ('b', 'b')]\n", done.stderr
