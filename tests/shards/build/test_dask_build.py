"""``posters shards build --executor dask``: the bytes of this machine's own build, whoever dies in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import Cluster, cluster_of, until
from remote_tools import new_bucket
from shard_tools import Source, build, build_command, draw_posters, environment, mtimes, only_error, posters, tree
from url_tools import at_url, remote_tree

from shards.dataset.index import SUFFIX, tar_path
from shards.storage.files import names_in
from shards.storage.paths import storage_path

pytest_plugins = ("shard_fixtures", "cluster_fixtures")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

SHARDS = 4  # posters a shard: many small tasks


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Posters that are to be shrunk, so that a shard takes a while."""
    return draw_posters(tmp_path_factory.mktemp("large"), 120, (400, 600))


@pytest.fixture(scope="module")
def whole(large: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a build by this machine that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build(large, out, workers=2, samples_per_shard=SHARDS)
    return tree(out)


def command_of(source: Source, out: object, scheduler: Path) -> list[str]:
    command = build_command(source, out, "--executor", "dask", "--scheduler", scheduler)  # type: ignore[arg-type]
    return [*command, "--samples-per-shard", str(SHARDS)]


class Running:
    """The command in a process of its own."""

    def __init__(self, source: Source, out: Any, cluster: Cluster, log: Path) -> None:
        self.out, self.log = out, log
        with open(self.log, "wb") as stream:
            command = [sys.executable, "-m", "toolkit", *command_of(source, out, cluster.file)]
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment())

    def finished(self) -> set[str]:
        return {tar_path(self.out / name).name for name in names_in(self.out) if name.endswith(SUFFIX)}

    def until(self, happened: Callable[[], object], what: str) -> None:
        def checked() -> object:
            assert self.process.poll() is None, f"ended too early: {self.said()}"
            return happened()

        until(checked, what)

    def said(self) -> str:
        return self.log.read_text()

    def ended(self) -> int:
        return self.process.wait(timeout=90)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Source, Any, Cluster], Running]]:
    started: list[Running] = []

    def begin(source: Source, out: Any, cluster: Cluster) -> Running:
        started.append(Running(source, out, cluster, tmp_path / "said.log"))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait()


def test_all_kinds_of_rows_into_a_folder(cluster: Cluster, source: Source, shard_set: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", workers=0, scheduler=str(cluster.file))
    assert tree(tmp_path / "out") == tree(shard_set)


def test_from_a_store_to_a_store(cluster: Cluster, source: Source, shard_set: Path, bucket: str) -> None:
    out = storage_path(f"{bucket}/set")
    build(at_url(source, new_bucket()), out, workers=0, scheduler=str(cluster.file))
    assert remote_tree(out) == tree(shard_set)


@pytest.mark.parametrize("where", ["folder", pytest.param("store", marks=pytest.mark.long)])
def test_a_worker_that_is_killed_in_the_middle(
    cluster: Cluster,
    large: Source,
    whole: dict[str, str],
    start: Callable[[Source, Any, Cluster], Running],
    where: str,
    bucket: str,
    tmp_path: Path,
) -> None:
    """The whole command line; in a store with every place a URL."""
    out = tmp_path / "out" if where == "folder" else storage_path(f"{bucket}/set")
    victim, survivor = cluster.workers().values()
    running = start(large if where == "folder" else at_url(large, bucket), out, cluster)
    running.until(running.finished, "a finished shard")
    for process in (victim, survivor):
        os.kill(process, signal.SIGSTOP)  # with shards in work: the queue is longer than there are workers
    total = sum(name.endswith(".tar") for name in whole)
    assert 0 < len(running.finished()) < total - 2
    os.kill(victim, signal.SIGKILL)
    os.kill(survivor, signal.SIGCONT)
    assert running.ended() == 0, running.said()
    assert (tree(out) if where == "folder" else remote_tree(out)) == whole
    cluster.mend()
    assert victim not in cluster.workers().values()


@pytest.mark.long
def test_a_scheduler_without_workers_that_is_killed_in_the_middle(
    cluster: Cluster,
    large: Source,
    whole: dict[str, str],
    start: Callable[[Source, Any, Cluster], Running],
    tmp_path: Path,
) -> None:
    with cluster_of(tmp_path / "other", 0) as other:
        running = start(large, tmp_path / "out", other)
        running.until(lambda: "has no worker yet" in running.said(), "a word about missing workers")
        other.add_workers(1)
        running.until(running.finished, "a finished shard")
        other.scheduler.kill()
        assert running.ended() == 2
        error = only_error(running.said())
        assert f"the Dask scheduler {other.file} is lost" in error and "run the same command again" in error
    finished = running.finished()
    assert finished and not (running.out / "manifest.json").exists()
    before = mtimes(running.out)
    done = posters(*command_of(large, running.out, cluster.file))
    assert done.returncode == 0, done.stderr
    after = mtimes(running.out)
    assert {name: after[name] for name in finished} == {name: before[name] for name in finished}
    assert f"{len(finished)} of " in done.stderr and "were finished before" in done.stderr
    assert tree(running.out) == whole


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--executor", "dask"), "needs --scheduler"),
        (("--scheduler", "tcp://x:1"), "is for --executor dask"),
        (("--executor", "dask", "--scheduler", "x", "--workers", "3"), "--workers is for --executor local"),
    ],
)
def test_options_that_do_not_go_together(
    few: Source, tmp_path: Path, options: tuple[str, ...], says: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, error = command(*build_command(few, tmp_path / "out", *options))
    assert status == 2 and says in only_error(error)
    assert not (tmp_path / "out").exists()
