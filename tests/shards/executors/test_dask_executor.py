"""Tasks on a cluster: every result once, failures tried again or set aside, workers that do not fit refused."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import Cluster, cluster_of
from dask_tasks import (
    Note,
    fail_at_seven,
    fail_once,
    kill_at_three,
    refuse_three,
    write_at_length,
    write_note,
    write_slowly,
)
from failing import fails

from shards.errors import Code, UserError
from shards.executors import dask as dask_executor
from shards.executors.local import open_executor
from shards.executors.retries import MAX_FAILURES_IN_A_ROW, RETRIES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers; a task whose worker dies once is reported at once, so that it need not kill four."""
    folder = tmp_path_factory.mktemp("cluster")
    with cluster_of(folder, 2, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as running:
        yield running


def notes(folder: Path, count: int) -> list[Note]:
    return [Note(folder, number) for number in range(count)]


def run(cluster: Cluster, function: Any, tasks: list[Note], **options: Any) -> tuple[dict[int, Any], str]:
    """Results by number, and the error at the end."""
    results: dict[int, Any] = {}
    cluster.mend()
    with open_executor(scheduler=str(cluster.file), **options) as executor:
        assert executor.slots() == len(cluster.nannies)
        try:
            for task, result in executor.run(function, tasks):
                assert task.number not in results
                results[task.number] = result
        except UserError as error:
            assert "\n" not in str(error)
            return results, str(error)
    return results, ""


def test_every_task_has_its_result(cluster: Cluster, tmp_path: Path) -> None:
    results, error = run(cluster, write_note, notes(tmp_path, 30), writes=[tmp_path])
    assert (results, error) == ({number: number * number for number in range(30)}, "")
    tries = [Note(tmp_path, number).tries() for number in range(30)]
    assert all(len(of_one) == 1 for of_one in tries)
    assert {pid for of_one in tries for pid in of_one} == {str(pid) for pid in cluster.workers().values()}
    assert run(cluster, write_note, []) == ({}, "")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".seen")]


def test_a_passing_failure_is_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    results, error = run(cluster, fail_once, notes(tmp_path, 20))
    assert (sorted(results), error) == (list(range(20)), "")
    for number in range(20):
        tries = Note(tmp_path, number).tries()
        assert len(tries) == (2 if number % 5 == 0 else 1)
        assert len(set(tries)) == len(tries)  # the other worker has the second try


def test_a_poisoned_task_is_set_aside(cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results, error = run(cluster, fail_at_seven, notes(tmp_path, 20))
    assert sorted(results) == [number for number in range(20) if number != 7]
    assert error.startswith("1 of 20 tasks failed: note 7 (ValueError: seven is poison)")
    assert "run the same command again" in error
    assert len(Note(tmp_path, 7).tries()) == 1 + RETRIES
    (bug,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "fail_at_seven" in bug.getMessage() and "Traceback" in bug.getMessage()


def test_a_task_that_kills_its_worker_is_set_aside(cluster: Cluster, tmp_path: Path) -> None:
    before = set(cluster.workers().values())
    results, error = run(cluster, kill_at_three, notes(tmp_path, 12))
    # Tasks that waited on the same worker lost it, too. They have their results all the same.
    assert sorted(results) == [number for number in range(12) if number != 3]
    assert error.startswith("1 of 12 tasks failed: note 3 (1 workers were killed while this task ran")
    assert len(Note(tmp_path, 3).tries()) == 2  # among others, then alone
    assert set(cluster.workers().values()) != before


def test_a_user_error_ends_the_run(cluster: Cluster, tmp_path: Path) -> None:
    results, error = run(cluster, refuse_three, notes(tmp_path, 60))
    assert error == "task 3: 'what' and where" and len(results) < 50


def test_a_consumer_that_stops_takes_its_tasks_back(cluster: Cluster, tmp_path: Path) -> None:
    with open_executor(scheduler=str(cluster.file)) as executor:
        for _ in executor.run(write_slowly, notes(tmp_path, 200)):
            break
    assert len(list(tmp_path.iterdir())) < MAX_FAILURES_IN_A_ROW


def test_a_run_waits_for_what_an_earlier_one_left_in_work(cluster: Cluster, tmp_path: Path) -> None:
    cluster.mend()
    with open_executor(scheduler=str(cluster.file), writes=[tmp_path]) as executor:
        for _ in executor.run(write_at_length, notes(tmp_path, 20)):
            break
    # Threads cannot be stopped: both workers may be in the middle of a task that nobody waits for.
    with open_executor(scheduler=str(cluster.file), writes=[tmp_path]):
        begun, ended = (list(tmp_path.glob(pattern)) for pattern in ("begun-*", "ended-*"))
        assert len(begun) == len(ended) > 1


def test_a_worker_with_other_versions_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    fake = tmp_path / "fake" / "pillow-0.0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 0.0.1\n")
    paths = f"{fake.parent}:{cluster.environment['PYTHONPATH']}"
    cluster.add_workers(1, PYTHONPATH=paths)
    try:
        with fails("environment", f"worker {socket.gethostname()}", "pillow 0.0.1", "constraints.txt"):
            run(cluster, write_note, notes(tmp_path, 3))
        assert not Note(tmp_path, 0).tries()
    finally:
        cluster.remove_worker(cluster.nannies[-1])


def test_a_worker_without_the_package_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "shards"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'shards'\")")
    cluster.add_workers(1, PYTHONPATH=f"{missing.parent}:{cluster.environment['PYTHONPATH']}")
    try:
        with fails("environment", "No module named 'shards'", "of poster-toolkit there"):
            run(cluster, write_note, notes(tmp_path, 3))
    finally:
        cluster.remove_worker(cluster.nannies[-1])


def test_a_worker_that_does_not_see_a_folder_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "posters"
    folder.mkdir()
    (folder / "p.jpg").write_bytes(b"a poster")
    hidden = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs "{folder}" && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("a mount of its own, which hides a folder from a worker, is not permitted here")
    assert run(cluster, write_note, notes(tmp_path, 1), reads=[folder])[1] == ""
    cluster.add_workers(1, before=hidden)
    try:
        for options in ({"reads": [folder]}, {"writes": [folder]}):
            with fails("environment", f"worker {socket.gethostname()}", f"cannot read {folder}"):
                run(cluster, write_note, [], **options)
    finally:
        cluster.remove_worker(cluster.nannies[-1])
    assert [path.name for path in folder.iterdir()] == ["p.jpg"]


def test_no_scheduler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_executor, "CONNECT", 1)

    def connect(scheduler: str, code: Code) -> None:
        with fails(code, scheduler, "tcp://"):
            open_executor(scheduler=scheduler).__enter__()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        connect(f"tcp://127.0.0.1:{free.getsockname()[1]}", "scheduler-lost")
        free.listen()  # and nobody speaks
        connect(f"tcp://127.0.0.1:{free.getsockname()[1]}", "scheduler-lost")
    connect("what://x:1", "scheduler-lost")
    connect(str(tmp_path / "absent.json"), "option-value")
    (tmp_path / "other.json").write_text("[1]")
    connect(str(tmp_path / "other.json"), "option-value")
