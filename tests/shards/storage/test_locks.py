"""Locks on file systems that are no local disk: NFS, and those without any. Real processes under each one's rule."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from pathlib import Path

import pytest
from cache_tools import SIZE, body, cache, content, finish, go, names, remote, start
from failing import fails
from lock_rules import set_rule
from misbehaving_server import MisbehavingServer

from shards.storage.file_locks import NoLocks, held_file, locked
from shards.storage.files import PARTIAL
from shards.storage.lock import folder_lock

pytest_plugins = ("remote_fixtures",)
pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.skipif(sys.platform != "linux", reason="the rules of Linux"),
]

RULES = ["nfs", "posix", "ofd ENOSYS"]
NONE = ["none ENOLCK", "none ENOTSUP", "none ENOSYS", "none EBADF"]


@pytest.fixture
def rule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    set_rule(request.param, monkeypatch.setattr)
    return str(request.param)


def test_the_rule_of_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests stand on: with it, an exclusive lock on a file that is read fails."""
    set_rule("nfs", monkeypatch.setattr)
    (tmp_path / "file").touch()
    for flags, operation in ((os.O_RDONLY, fcntl.LOCK_EX), (os.O_WRONLY, fcntl.LOCK_SH)):
        descriptor = os.open(tmp_path / "file", flags)
        with pytest.raises(OSError, match="Bad file descriptor"):
            fcntl.flock(descriptor, operation)
        os.close(descriptor)


@pytest.mark.parametrize("rule", RULES, indirect=True)
def test_a_cache_keeps_its_limit(rule: str, server: MisbehavingServer, tmp_path: Path) -> None:
    """What is read stays, what was used longest ago goes; nothing is said."""
    kept, other = cache(tmp_path, 3 * SIZE), cache(tmp_path, 3 * SIZE)
    files = [remote(server, number) for number in range(5)]
    held = kept.open(files[0])
    for number in (1, 2, 3, 4):
        assert content(other, files[number]) == body(number)
    found = names(tmp_path)
    if rule == "posix":  # a process's own locks do not keep its own threads apart
        assert len(found) == 3
    else:
        assert found == {files[number].name for number in (0, 3, 4)}
    assert os.pread(held, SIZE, 0) == body(0)
    os.close(held)


@pytest.mark.parametrize("rule", RULES[:2])
def test_processes_fetch_once(rule: str, server: MisbehavingServer, tmp_path: Path) -> None:
    for number in range(4):
        remote(server, number)
    code = """
        import lock_rules
        lock_rules.set_rule(sys.argv[4])
        for number in range(4):
            with ThreadPoolExecutor(3) as pool:
                assert set(pool.map(content, [remote(number)] * 3)) == {body(number)}
    """
    processes = [start(code, tmp_path, 0, server.url(""), rule) for _ in range(2)]
    go(processes)
    finish(processes)
    assert [server.requests[f"/train-{number:05d}.tar"] for number in range(4)] == [1] * 4
    assert not any(name.endswith(PARTIAL) for name in names(tmp_path))


@pytest.mark.parametrize("rule", RULES[:2])
def test_what_another_process_reads_is_not_deleted(rule: str, server: MisbehavingServer, tmp_path: Path) -> None:
    first = remote(server, 0)
    for number in (1, 2, 3):
        remote(server, number)
    code = """
        import lock_rules
        lock_rules.set_rule(sys.argv[4])
        descriptor = kept.open(remote(0))
        print("held", flush=True)
        sys.stdin.readline()
    """
    reader = start(code, tmp_path, 0, server.url(""), rule)
    go([reader])
    assert reader.stdout is not None and reader.stdout.readline() == "held\n"
    code = """
        import lock_rules
        lock_rules.set_rule(sys.argv[4])
        for number in (1, 2, 3):
            assert content(remote(number)) == body(number)
    """
    writer = start(code, tmp_path, 2 * SIZE, server.url(""), rule)
    go([writer])
    finish([writer])
    assert first.name in names(tmp_path) and len(names(tmp_path)) == 2
    finish([reader])


@pytest.mark.parametrize("rule", NONE, indirect=True)
def test_without_locks_nothing_is_deleted_and_a_line_says_so(
    rule: str, server: MisbehavingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = cache(tmp_path, 2 * SIZE)
    (line,) = caplog.messages
    assert f"the cache {tmp_path} is on a file system without locks ([Errno " in line
    assert "--cache-limit deletes no files" in line
    files = [remote(server, number) for number in range(4)]
    for number, file in enumerate(files):
        assert content(kept, file) == body(number)
    assert names(tmp_path) == {file.name for file in files}
    assert len(caplog.messages) == 2 and "is over its limit" in caplog.messages[1]


def test_without_locks_processes_do_each_other_no_harm(server: MisbehavingServer, tmp_path: Path) -> None:
    for number in range(6):
        remote(server, number)
    code = """
        import lock_rules
        lock_rules.set_rule("none ENOLCK")
        kept = cache_tools.cache(Path(sys.argv[1]), 0, cache_tools.PATIENCE)
        draw = random.Random(int(sys.argv[4]))
        numbers = [draw.randrange(6) for _ in range(60)]
        with ThreadPoolExecutor(3) as pool:
            for number, data in zip(numbers, pool.map(lambda n: cache_tools.content(kept, remote(n)), numbers)):
                assert data == body(number)
    """
    processes = [start(code, tmp_path, 0, server.url(""), seed) for seed in (1, 2)]
    go(processes)
    finish(processes)
    assert len(names(tmp_path)) == 6 and not any(name.endswith(PARTIAL) for name in names(tmp_path))


@pytest.mark.parametrize("rule", NONE, indirect=True)
def test_a_folder_without_locks_is_used_with_a_line(
    rule: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with folder_lock(tmp_path / "run"), folder_lock(tmp_path / "run"):
        pass
    assert len(caplog.messages) == 2
    assert f"{tmp_path / 'run'} is on a file system without locks ([Errno " in caplog.messages[0]
    with pytest.raises(NoLocks), held_file(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("rule", ["nfs", "ofd ENOSYS", "ofd ENOTSUP"], indirect=True)
def test_a_folder_is_held_under_other_rules(rule: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with folder_lock(tmp_path), fails("path-locked", tmp_path):
        folder_lock(tmp_path).__enter__()
    with folder_lock(tmp_path):
        pass
    assert caplog.records == [] or all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("rule", ["nfs", "ofd ENOSYS"], indirect=True)
def test_shared_and_exclusive(rule: str, tmp_path: Path) -> None:
    files = [open(tmp_path / "file", "w+b") for _ in range(3)]  # noqa: SIM115 (closed below, one by one)
    one, two, three = (stream.fileno() for stream in files)
    assert locked(one, shared=True) and locked(two, shared=True) and not locked(three)
    files[0].close()
    assert not locked(three)
    files[1].close()
    assert locked(three)
    files[2].close()
