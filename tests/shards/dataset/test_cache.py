"""The node's cache: fetched once, whole, checked, within its limit, whoever shares it and whatever is killed."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_tools import SIZE, body, cache, content, names, remote
from failing import fails
from misbehaving_server import MisbehavingServer, in_turn, reply, reset
from shared_tools import small_file_system

from shards.dataset.cache_options import CacheOptions, NoRoom
from shards.errors import UserError
from shards.storage.files import atomic_write
from shards.storage.paths import storage_path
from shards.storage.retrying_read import Abandoned

pytest_plugins = ("remote_fixtures",)
pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.skipif(sys.platform == "win32", reason="needs flock")]


def test_fetched_once_and_kept(server: MisbehavingServer, tmp_path: Path) -> None:
    file = remote(server, 1)
    kept = cache(tmp_path / "cache")
    assert not kept.has(file)
    assert kept.fetch(file) and kept.has(file) and not kept.fetch(file)
    assert content(kept, file) == content(cache(tmp_path / "cache"), file) == body(1)
    assert server.requests["/train-00001.tar"] == 1
    assert names(kept.folder) == {f"{file.sha256}.tar"}


def test_a_network_cut_in_the_middle_is_mended(server: MisbehavingServer, tmp_path: Path) -> None:
    half = reply(body(1)[: SIZE // 2], Content_Length=SIZE)
    file = remote(server, 1, half, reset, half, reply(body(1)))
    assert content(cache(tmp_path), file) == body(1)
    assert server.requests["/train-00001.tar"] == 4


def test_a_network_that_stays_cut_is_one_line_and_leaves_nothing(server: MisbehavingServer, tmp_path: Path) -> None:
    file = remote(server, 1, reset)
    with fails("network", "train-00001.tar", "--remote-timeout"):
        cache(tmp_path, patience=0.3).open(file)
    (left,) = tmp_path.glob("*.tar*")
    assert left.name == f"{file.sha256}.tar.failed" and "cannot be read" in left.read_text()
    server.add("/train-00001.tar", reply(body(1)))
    assert content(cache(tmp_path), file) == body(1)
    assert names(tmp_path) == {file.name}


def test_who_wants_it_no_more_does_not_wait(server: MisbehavingServer, tmp_path: Path) -> None:
    file, stop = remote(server, 1, reset), threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Abandoned):
        cache(tmp_path, patience=60.0).fetch(file, stop=stop)
    assert time.monotonic() - began < 30 and names(tmp_path) == set()


def test_a_folder_that_cannot_be_used_is_one_line(server: MisbehavingServer, tmp_path: Path) -> None:
    """Not an OSError, which readers take for a damaged image."""
    file = remote(server, 1)
    kept = cache(tmp_path / "cache")
    shutil.rmtree(kept.folder)
    kept.folder.write_text("somebody's file")
    url = storage_path(server.add("/a.index.parquet", reply(b"good")))
    for call in (
        lambda: kept.open(file),
        lambda: kept.fetch(file),
        lambda: kept.checked(url, "0" * 64 + ".index.parquet", bytes.decode),
    ):
        with fails("cache", kept.folder, "--cache-dir"):
            call()


def test_small_files_that_are_being_written_are_not_swept(server: MisbehavingServer, tmp_path: Path) -> None:
    kept = cache(tmp_path, limit=3 * SIZE)
    with atomic_write(tmp_path / ("0" * 64 + ".index.parquet")) as stream:
        stream.write(b"half")
        kept.fetch(remote(server, 1))
    assert (tmp_path / ("0" * 64 + ".index.parquet")).read_bytes() == b"half"


def test_stale_bytes_are_fetched_again(
    server: MisbehavingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = remote(server, 1, reply(body(2)), reply(body(1)))
    assert content(cache(tmp_path), file) == body(1)
    assert "its sha256 differs from the manifest's" in caplog.text


def test_bytes_that_stay_stale_are_one_line_and_leave_nothing(server: MisbehavingServer, tmp_path: Path) -> None:
    file = remote(server, 1, reply(body(2)))
    with fails("set-damaged", "train-00001.tar", "sha256"):
        cache(tmp_path).open(file)
    assert names(tmp_path) == {f"{file.sha256}.tar.failed"} and server.requests["/train-00001.tar"] == 3


def test_what_was_used_longest_ago_goes_first(server: MisbehavingServer, tmp_path: Path) -> None:
    files = [remote(server, number) for number in range(5)]
    kept = cache(tmp_path, limit=3 * SIZE + 10)
    for number in (0, 1, 2):
        kept.fetch(files[number])
        os.utime(tmp_path / files[number].name, (number, number))
    content(kept, files[0])  # now the one used last
    kept.fetch(files[3])
    assert names(tmp_path) == {files[n].name for n in (0, 2, 3)}
    kept.fetch(files[4])
    assert names(tmp_path) == {files[n].name for n in (0, 3, 4)}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * SIZE + 10


def test_what_is_fetched_ahead_again_stays_longer(server: MisbehavingServer, tmp_path: Path) -> None:
    files = [remote(server, number) for number in range(3)]
    kept = cache(tmp_path, limit=2 * SIZE)
    for number in (0, 1):
        kept.fetch(files[number])
        os.utime(tmp_path / files[number].name, (number, number))
    assert not kept.fetch(files[0])
    kept.fetch(files[2])
    assert names(tmp_path) == {files[n].name for n in (0, 2)}


def test_what_is_in_use_stays(server: MisbehavingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [remote(server, number) for number in range(4)]
    kept = cache(tmp_path, limit=2 * SIZE)
    held = [kept.open(files[0]), kept.open(files[1])]
    with pytest.raises(NoRoom):  # what is fetched ahead can wait
        kept.fetch(files[2])
    assert names(tmp_path) == {files[0].name, files[1].name}
    assert content(kept, files[2]) == body(2)  # who needs it now cannot
    assert "over its limit" in caplog.text and "--cache-limit" in caplog.text
    assert names(tmp_path) == {files[n].name for n in (0, 1, 2)}
    os.close(held[0])
    kept.fetch(files[3])
    assert names(tmp_path) == {files[1].name, files[3].name}
    assert os.pread(held[1], SIZE, 0) == body(1)
    os.close(held[1])


def test_a_file_that_was_cut_short_here_is_fetched_again(server: MisbehavingServer, tmp_path: Path) -> None:
    file = remote(server, 1)
    kept = cache(tmp_path)
    kept.fetch(file)
    os.truncate(tmp_path / file.name, SIZE - 1)
    assert content(kept, file) == body(1)


def test_small_files_are_what_they_say(server: MisbehavingServer, tmp_path: Path) -> None:
    url = storage_path(server.add("/a.index.parquet", in_turn(reset, reply(b"good"))))

    def parse(data: bytes) -> str:
        if data != b"good":
            raise UserError("set-damaged", f"no index: {data!r}")
        return "parsed"

    kept = cache(tmp_path)
    name = "0" * 64 + ".index.parquet"
    assert kept.checked(url, name, parse) == kept.checked(url, name, parse) == "parsed"
    assert server.requests["/a.index.parquet"] == 2
    (tmp_path / name).write_bytes(b"goo")
    assert kept.checked(url, name, parse) == "parsed" and (tmp_path / name).read_bytes() == b"good"
    bad = storage_path(server.add("/b.index.parquet", reply(b"bad")))
    with pytest.raises(UserError, match="no index: b'bad'"):
        kept.checked(bad, "1" * 64 + ".index.parquet", parse)
    assert names(tmp_path) == {name}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    with small_file_system(tmp_path / "small", "16k") as folder:
        yield folder


def test_a_full_disk(server: MisbehavingServer, small_disk: Path) -> None:
    kept = cache(small_disk)
    kept.fetch(remote(server, 1))
    with fails("disk-full", "train-00002.tar", "No space left", "--cache-limit"):
        kept.fetch(remote(server, 2))
    assert names(small_disk) == {remote(server, 1).name}
    limited = cache(small_disk, limit=SIZE)  # what the line says helps
    assert content(limited, remote(server, 2)) == body(2)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("POSTERS_CACHE", raising=False)
    assert CacheOptions().path == tmp_path / "xdg" / "poster-toolkit"
    monkeypatch.setenv("POSTERS_CACHE", str(tmp_path / "own"))
    assert CacheOptions().path == tmp_path / "own"
    assert CacheOptions(tmp_path / "told").path == tmp_path / "told"
    (tmp_path / "file").touch()
    with fails("cache", "--cache-dir"):
        cache(tmp_path / "file" / "cache")
