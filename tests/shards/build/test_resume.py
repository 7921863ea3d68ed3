"""Builds that are killed, stopped, doubled or run out of disk: nothing half-written counts, a restart ends the same."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from shard_tools import Source, build_command, draw_posters, environment, mtimes, only_error, posters, tree

from shards.build.tar_samples import read_members
from shards.build.verify import verify_shards
from shards.dataset.index import SUFFIX, read_index, tar_path
from shards.dataset.sample_table import SUFFIX as TABLE
from shards.storage.files import PARTIAL, sha256_file

pytest_plugins = ("shard_fixtures",)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

POSTERS = 300  # two chunks of the check; large enough to be shrunk, so that a shard takes a while


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return draw_posters(tmp_path_factory.mktemp("large"), POSTERS, (300, 450))


@pytest.fixture(scope="module")
def whole(large: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a build that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    done = posters(*build_command(large, out, "--workers", 2))
    assert done.returncode == 0, done.stderr
    assert verify_shards(out, 1)[1] == []
    return tree(out)


class Running:
    """A build in a session of its own, so that all its processes can be found."""

    def __init__(self, source: Source, out: Path, workers: int = 2) -> None:
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-m", "toolkit", *build_command(source, out, "--workers", workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )

    def until(self, happened: Callable[[], object], timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while not happened():
            assert self.process.poll() is None, f"ended too early: {self.process.communicate()}"
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.01)

    def indexes(self) -> list[Path]:
        return list(self.out.glob(f"*{SUFFIX}"))

    def members(self) -> list[psutil.Process]:
        """All living processes of the build."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess, PermissionError):
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        return [p for p in self.members() if any("spawn_main" in part for part in p.cmdline())]

    def ended(self, timeout: float = 60) -> tuple[int, str]:
        """Exit status and stderr, once every process of the build is gone."""
        _, stderr = self.process.communicate(timeout=timeout)
        end = time.monotonic() + 10
        while left := self.members():
            assert time.monotonic() < end, f"orphans: {[p.cmdline() for p in left]}"
            time.sleep(0.05)
        return self.process.returncode, stderr


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def begin(source: Source, out: Path, workers: int = 2) -> Running:
        started.append(Running(source, out, workers))
        return started[-1]

    yield begin
    for running in started:
        for process in running.members():
            process.kill()
        running.process.communicate()


def assert_no_half_files(out: Path, besides: tuple[str, ...] = ()) -> None:
    """Whatever bears a final name is whole; what is not whole is marked."""
    assert not (out / "manifest.json").exists()
    for path in out.iterdir():
        if path.name.endswith(SUFFIX):
            table, facts = read_index(tar_path(path))
            assert sha256_file(tar_path(path)) == facts["sha256"]
            assert len(read_members(tar_path(path))) == table.num_rows
        elif path.suffix == ".tar":
            assert len(read_members(path)) > 0
        else:
            # A table of samples bears its shards' fingerprint: it may outlive a manifest.
            assert path.name in (".work", ".lock", "_info.json", *besides) or path.name.endswith((PARTIAL, TABLE)), path
    for path in (out / ".work").glob("*"):
        assert path.suffix == ".json" or path.name.endswith(PARTIAL)


def finish(large: Source, out: Path, whole: dict[str, str]) -> None:
    """Run the build again: what was finished stays untouched, and the end is as if nothing had happened."""
    finished = {tar_path(path).name for path in out.glob(f"*{SUFFIX}")}
    before = {name: t for name, t in mtimes(out).items() if name in finished}
    done = posters(*build_command(large, out, "--workers", 2))
    assert done.returncode == 0, done.stderr
    after = mtimes(out)
    assert {name: after[name] for name in before} == before
    assert ("shards were finished before" in done.stderr) == bool(finished)
    assert f"{len(finished)} of " in done.stderr or not finished
    assert tree(out) == whole


MOMENTS: dict[str, Callable[[Running], object]] = {
    "checking posters": lambda build: list(build.out.glob(".work/scan-*.json")),
    "first tar half-written": lambda build: list(build.out.glob(f"*.tar.*{PARTIAL}")),
    "first shard finished": lambda build: build.indexes(),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_kill_9(
    large: Source,
    whole: dict[str, str],
    tmp_path: Path,
    start: Callable[..., Running],
    moment: Callable[[Running], object],
) -> None:
    out = tmp_path / "out"
    build = start(large, out)
    build.until(lambda: moment(build))
    build.process.kill()
    status, _ = build.ended()
    assert status == -signal.SIGKILL
    assert_no_half_files(out)
    finish(large, out, whole)


@pytest.mark.long
def test_kill_9_again_and_again(
    large: Source, whole: dict[str, str], tmp_path: Path, start: Callable[..., Running]
) -> None:
    out = tmp_path / "out"
    for count in (3, 9):
        build = start(large, out)
        build.until(lambda build=build, count=count: len(build.indexes()) >= count)  # type: ignore[misc]
        build.process.kill()
        build.ended()
        assert_no_half_files(out)
    finish(large, out, whole)


def test_a_killed_worker(large: Source, whole: dict[str, str], tmp_path: Path, start: Callable[..., Running]) -> None:
    out = tmp_path / "out"
    build = start(large, out)
    build.until(lambda: len(build.indexes()) >= 2)
    build.workers()[0].kill()
    status, stderr = build.ended()
    assert status == 2
    assert "worker process was killed" in only_error(stderr) and "run the same command again" in stderr
    assert_no_half_files(out)
    finish(large, out, whole)


def test_ctrl_c(large: Source, whole: dict[str, str], tmp_path: Path, start: Callable[..., Running]) -> None:
    out = tmp_path / "out"
    build = start(large, out)
    build.until(lambda: len(build.indexes()) >= 1)
    os.killpg(build.process.pid, signal.SIGSTOP)  # finding the workers takes long enough to finish the build
    for worker in build.workers():
        worker.send_signal(signal.SIGINT)  # Ctrl-C belongs to the parent: workers alone take no notice
    before = len(build.indexes())
    os.killpg(build.process.pid, signal.SIGCONT)
    build.until(lambda: len(build.indexes()) >= before + 2)
    os.killpg(build.process.pid, signal.SIGINT)
    status, stderr = build.ended()
    assert (status, only_error(stderr)) == (130, "error: interrupted")
    assert_no_half_files(out)
    assert not list(out.glob(f"*{PARTIAL}"))
    finish(large, out, whole)


def test_two_builds_in_one_folder(
    large: Source, whole: dict[str, str], tmp_path: Path, start: Callable[..., Running]
) -> None:
    out = tmp_path / "out"
    first = start(large, out)
    first.until(lambda: len(first.indexes()) >= 1)
    os.killpg(first.process.pid, signal.SIGSTOP)  # it holds the folder for as long as the second needs
    first.until(lambda: all(p.status() == psutil.STATUS_STOPPED for p in first.members()))
    before = tree(out)
    for command in (build_command(large, out), [*build_command(large, out), "--overwrite"], ["shards", "index", out]):
        second = posters(*command)
        assert second.returncode == 2
        assert f"another process is working in {out}" in only_error(second.stderr)
    assert tree(out) == before
    os.killpg(first.process.pid, signal.SIGCONT)
    assert first.ended()[0] == 0
    assert tree(out) == whole


@pytest.mark.parametrize(("workers", "limit", "stage"), [(1, 2_000, "check"), (2, 150_000, "tar")])
def test_a_full_disk(
    large: Source, whole: dict[str, str], tmp_path: Path, workers: int, limit: int, stage: str
) -> None:
    """No file may grow beyond the limit: writes fail as on a full disk, with the same exception."""
    out = tmp_path / "out"
    done = posters(
        *build_command(large, out, "--workers", workers),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2
    assert "File too large" in only_error(done.stderr)
    assert_no_half_files(out)
    assert not list(out.rglob(f"*{PARTIAL}"))
    assert (stage == "tar") == bool(list(out.glob(".work/*.json")))
    finish(large, out, whole)


def test_a_set_that_is_mended_is_no_set_until_it_is_whole(few: Source, few_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(few_shards, out)
    lost = max(out.glob("*.tar"), key=lambda path: path.stat().st_size)
    size = lost.stat().st_size
    lost.unlink()
    command = [*build_command(few, out, "--workers", 1), "--samples-per-shard", "8"]
    done = posters(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1)))
    assert done.returncode == 2 and "File too large" in only_error(done.stderr)
    assert_no_half_files(out, besides=("rejected.csv", "duplicates.csv"))
    assert posters(*command).returncode == 0
    assert tree(out) == tree(few_shards)


def test_a_really_full_disk(large: Source, whole: dict[str, str], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    ) if sys.platform == "linux" and os.geteuid() == 0 else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        out = disk / "out"
        done = posters(*build_command(large, out, "--workers", 2))
        assert done.returncode == 2 and "No space left on device" in only_error(done.stderr)
        assert_no_half_files(out)
        assert not list(out.rglob(f"*{PARTIAL}"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finish(large, out, whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
