"""What lies in a cache's folder is not believed for its name: planted links, wrong contents, others' files, markers."""

from __future__ import annotations

import os
import random
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from cache_tools import SIZE, body, cache, content, finish, go, names, remote, start
from failing import fails
from misbehaving_server import MisbehavingServer, reply, reset

from shards.dataset import cache as cache_module
from shards.dataset.cache import Cache
from shards.dataset.cache_locks import stamp
from shards.dataset.cache_options import CacheOptions, RemoteFile
from shards.storage.paths import storage_path

pytest_plugins = ("remote_fixtures",)
pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.skipif(sys.platform == "win32", reason="needs flock")]

WRONG = random.Random(99).randbytes(SIZE)
INDEX = "0" * 64 + ".index.parquet"


def link_to(victim: Path, path: Path) -> None:
    path.symlink_to(victim)


def hard_link_to(victim: Path, path: Path) -> None:
    os.link(victim, path)


def dangling(victim: Path, path: Path) -> None:
    path.symlink_to(victim.with_name("made"))


def pipe(_: Path, path: Path) -> None:
    os.mkfifo(path)


def writable(_: Path, path: Path) -> None:
    path.write_bytes(WRONG)
    path.chmod(0o666)


def of_another_user(_: Path, path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to make another user's file")
    path.write_bytes(WRONG)
    os.chown(path, 12345, 12345)


PLANTS = [link_to, hard_link_to, dangling, pipe, writable, of_another_user]


@pytest.mark.parametrize("mark", ["", ".partial", ".failed", ".room", "index"])
@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_is_not_followed(
    server: MisbehavingServer, tmp_path: Path, plant: Callable[[Path, Path], None], mark: str
) -> None:
    folder, victim = tmp_path / "cache", tmp_path / "victim"
    folder.mkdir()
    victim.write_bytes(WRONG)
    before = victim.stat()
    file = remote(server, 1, *([reset] * 20 if mark == ".failed" else []))
    name = {".room": ".room", "index": INDEX}.get(mark, file.name + mark)
    plant(victim, folder / name)
    kept = cache(folder, patience=0.1 if mark == ".failed" else 20.0)
    if mark == "index":
        source = storage_path(server.add("/index", reply(b"good")))
        assert kept.checked(source, INDEX, bytes.decode) == kept.checked(source, INDEX, bytes.decode) == "good"
        assert server.requests["/index"] == 1
    elif mark == ".failed":
        with fails("network", "train-00001.tar"):
            kept.open(file)
    else:
        assert content(kept, file) == content(kept, file) == body(1)
        assert server.requests["/train-00001.tar"] == 1
    after = victim.stat()
    assert victim.read_bytes() == WRONG and not victim.with_name("made").exists()
    assert (before.st_mtime_ns, before.st_mode) == (after.st_mtime_ns, after.st_mode)
    assert all(stat.S_IMODE(path.lstat().st_mode) == 0o600 for path in folder.iterdir())


def test_a_folder_with_the_name_of_a_file_is_one_line(server: MisbehavingServer, tmp_path: Path) -> None:
    file = remote(server, 1)
    (tmp_path / file.name).mkdir()
    with fails("cache", tmp_path, file.sha256, "--cache-dir"):
        cache(tmp_path).open(file)


def test_the_right_size_is_not_the_right_content(
    server: MisbehavingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = remote(server, 1)
    (tmp_path / file.name).write_bytes(WRONG)
    kept = cache(tmp_path)
    assert not kept.has(file)
    assert content(kept, file) == body(1)
    assert "is damaged and is fetched again" in caplog.text and server.requests["/train-00001.tar"] == 1
    (tmp_path / file.name).write_bytes(WRONG)  # later, in place
    assert content(kept, file) == content(cache(tmp_path), file) == body(1)
    assert server.requests["/train-00001.tar"] == 2


def test_our_own_files_under_anothers_name(server: MisbehavingServer, tmp_path: Path) -> None:
    """Checked ones, which another user of the folder renamed."""
    first, second = remote(server, 1), remote(server, 2)
    kept = cache(tmp_path)
    kept.fetch(first)
    kept.fetch(second)
    for target, source in ((first, second), (second, first)):
        os.replace(tmp_path / source.name, tmp_path / "moved")
        os.replace(tmp_path / "moved", tmp_path / target.name)
    assert content(kept, first) == body(1) and content(cache(tmp_path), second) == body(2)


def test_what_earlier_versions_kept_is_checked_and_used(server: MisbehavingServer, tmp_path: Path) -> None:
    file = remote(server, 1)
    (tmp_path / file.name).write_bytes(body(1))
    (tmp_path / file.name).chmod(0o644)
    assert content(cache(tmp_path), file) == body(1)
    assert not server.requests
    facts = (tmp_path / file.name).stat()
    assert facts.st_mtime_ns == stamp(file.sha256, facts)
    assert time.time() - facts.st_atime < 60  # and it counts as used now


def test_a_digest_is_computed_once_per_node_and_file(
    server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [remote(server, number) for number in range(3)]
    computed: list[IO[bytes]] = []
    real = cache_module.sha256_stream

    def counted(stream: IO[bytes]) -> str:
        computed.append(stream)
        return real(stream)

    monkeypatch.setattr(cache_module, "sha256_stream", counted)
    kept = cache(tmp_path)
    kept.fetch(files[0])  # as it comes
    (tmp_path / files[1].name).write_bytes(body(1))  # of an earlier version
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: content(kept, files[1]), range(8))) == {body(1)}
    assert len(computed) == 1
    code = """
        from shards.dataset import cache
        def refuse(descriptor):
            raise AssertionError("it was read again")
        cache.sha256_stream = refuse
        assert content(remote(0)) == body(0) and content(remote(1)) == body(1)
    """
    process = start(code, tmp_path, 0, server.url(""))
    go([process])
    finish([process])
    assert server.requests["/train-00000.tar"] == 1 and not server.requests["/train-00001.tar"]


def test_a_manifest_that_lies_about_a_size_takes_nothing_away(server: MisbehavingServer, tmp_path: Path) -> None:
    file = remote(server, 1)
    kept = cache(tmp_path)
    kept.fetch(file)
    with fails("set-damaged", SIZE, SIZE + 1):
        kept.open(RemoteFile(file.place, SIZE + 1, file.sha256))
    assert kept.has(file)


@pytest.mark.parametrize("at", [4_070_908_800, 0, -1, time.time()], ids=["2099", "1970", "before", "now"])
@pytest.mark.parametrize("said", [b"", b"\xff\xfe\x00", b"it failed\nand failed", b"x" * 100_000])
def test_a_marker_of_another_time_blocks_nobody(
    server: MisbehavingServer, tmp_path: Path, at: float, said: bytes
) -> None:
    file = remote(server, 1)
    marker = tmp_path / f"{file.name}.failed"
    marker.write_bytes(said)
    os.utime(marker, (at, at))
    assert content(cache(tmp_path), file) == body(1)
    assert names(tmp_path) == {file.name}


def test_a_marker_of_the_future_is_swept(server: MisbehavingServer, tmp_path: Path) -> None:
    old, new, other = (tmp_path / f"{digit * 64}.tar.failed" for digit in "abc")
    for path, age in ((old, -7200), (new, 0), (other, 10**9)):
        path.write_text("it failed")
        os.utime(path, (time.time() + age,) * 2)
    cache(tmp_path, limit=10 * SIZE).fetch(remote(server, 1))
    assert {path.name for path in tmp_path.glob("*.failed")} == {new.name}


def test_a_file_used_in_the_future_goes_first(server: MisbehavingServer, tmp_path: Path) -> None:
    files = [remote(server, number) for number in range(3)]
    kept = cache(tmp_path, limit=2 * SIZE)
    kept.fetch(files[0])
    kept.fetch(files[1])
    facts = (tmp_path / files[1].name).stat()
    os.utime(tmp_path / files[1].name, ns=(4_070_908_800 * 10**9, facts.st_mtime_ns))
    kept.fetch(files[2])
    assert names(tmp_path) == {files[0].name, files[2].name}


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "..", "a/b", ".room", "x" * 300])
def test_a_small_file_has_a_plain_name(server: MisbehavingServer, tmp_path: Path, name: str) -> None:
    source = storage_path(server.add("/index", reply(b"good")))
    with fails("path-name", source):
        cache(tmp_path / "cache").checked(source, name, bytes.decode)
    assert {path.name for path in tmp_path.rglob("*")} == {"cache"}


def test_more_than_the_disk_has_is_refused_before_it_is_taken(server: MisbehavingServer, tmp_path: Path) -> None:
    file = remote(server, 1)
    with fails("disk-full", "No space left"):
        cache(tmp_path).open(RemoteFile(file.place, 1 << 52, file.sha256))
    assert names(tmp_path) == set() and not server.requests


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def test_a_folder_is_private(
    server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("POSTERS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = os.umask(0)
    try:
        usual = Cache(CacheOptions())
        assert mode(usual.folder) == 0o700
        usual.folder.chmod(0o775)  # of an earlier version
        assert Cache(CacheOptions()).folder == usual.folder and mode(usual.folder) == 0o700
        file = remote(server, 1)
        assert content(usual, file) == body(1)
        assert mode(usual.folder / file.name) == 0o600
        assert not caplog.text
        named = tmp_path / "shared"
        named.mkdir(mode=0o777)
        assert content(cache(named), file) == body(1)
        assert f"other users may write to the cache {named}" in caplog.text and mode(named) == 0o777
        if not os.geteuid():
            (of_another := tmp_path / "another").mkdir(mode=0o755)
            os.chown(of_another, 12345, 12345)
            assert content(cache(of_another), file) == body(1)
            assert f"other users may write to the cache {of_another}" in caplog.text
    finally:
        os.umask(before)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One into which all users may look; pytest's own are the user's alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_a_folder_that_can_only_be_read(server: MisbehavingServer, open_folder: Path) -> None:
    """Filled by root, for all: its files are checked by each process for itself."""
    if os.geteuid():
        pytest.skip("needs root")
    right, wrong = remote(server, 1), remote(server, 2)
    (open_folder / right.name).write_bytes(body(1))
    (open_folder / wrong.name).write_bytes(WRONG)
    code = """
        import os, cache_tools
        files = [remote(1), remote(2)]
        os.setuid(12345)
        kept = cache_tools.cache(Path(sys.argv[1]))
        assert cache_tools.content(kept, files[0]) == body(1)
        try:
            cache_tools.content(kept, files[1])
        except cache_tools.UserError as error:
            assert error.code == "cache", error
        else:
            raise SystemExit("it was believed")
    """
    process = start(code, open_folder, 0, server.url(""))
    go([process])
    finish([process])
    assert (open_folder / wrong.name).read_bytes() == WRONG and not server.requests
