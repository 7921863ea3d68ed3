"""The node's cache: fetched once, whole, checked, within its limit, whoever shares it and whatever is killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from misbehaving_server import MisbehavingServer, Writer, in_turn, reply, reset, silence
from shard_tools import environment
from shared_tools import small_file_system

from shards.cache import Cache, RemoteFile
from shards.errors import UserError
from shards.files import PARTIAL, atomic_write
from shards.places import place
from shards.remote_read import Abandoned
from shards.store import CacheOptions, NoRoom

pytest_plugins = ("shard_fixtures",)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")

SIZE = 10_000
PATIENCE = 6.0  # of other processes, seconds


def body(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer() as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.remote_read.PAUSES", (0.01, 0.05))


def remote(server: MisbehavingServer, number: int, *handlers: object) -> RemoteFile:
    path = f"/train-{number:05d}.tar"
    url = server.add(path, in_turn(*handlers) if handlers else reply(body(number)))  # type: ignore[arg-type]
    return RemoteFile(place(url), SIZE, hashlib.sha256(body(number)).hexdigest())


def cache(folder: Path, limit: int = 0, patience: float = 20.0) -> Cache:
    return Cache(CacheOptions(folder, limit, patience))


def content(kept: Cache, file: RemoteFile) -> bytes:
    descriptor = kept.open(file)
    try:
        return os.pread(descriptor, SIZE + 1, 0)
    finally:
        os.close(descriptor)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".room"}


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


def test_a_network_that_stays_cut_is_one_line_and_leaves_nothing(
    server: MisbehavingServer, tmp_path: Path
) -> None:
    file = remote(server, 1, reset)
    with pytest.raises(UserError, match=r"train-00001\.tar cannot be read.*check the network.*--patience"):
        cache(tmp_path, patience=0.3).open(file)
    (left,) = tmp_path.glob("*.tar*")
    assert left.name == f"{file.sha256}.tar.failed" and "cannot be read" in left.read_text()
    server.add("/train-00001.tar", reply(body(1)))
    assert content(cache(tmp_path), file) == body(1)
    assert names(tmp_path) == {file.name}


def test_patience_ends_once_however_many_wait(server: MisbehavingServer, tmp_path: Path) -> None:
    """In this process and in another: who waited for a file hears why it did not come."""
    file = remote(server, 1, reset)
    code = """
        try:
            content(remote(1))
        except Exception as error:
            assert "cannot be read" in str(error), error
        else:
            raise SystemExit("it was read")
    """
    kept = cache(tmp_path, patience=2.0)
    other = start(code, tmp_path, 0, server.url(""))
    go([other])
    began = time.monotonic()

    def wait(_: int) -> str:
        try:
            kept.open(file)
        except UserError as error:
            return str(error)
        raise AssertionError("it was read")

    with ThreadPoolExecutor(12) as pool:
        messages = set(pool.map(wait, range(12)))
    assert len(messages) == 1 and "cannot be read" in messages.pop()
    assert (
        time.monotonic() - began < 2 * 2.0 + 2 * PATIENCE
    )  # one after the other they would take 24 s and more
    finish([other])


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
    url = place(server.add("/a.index.parquet", reply(b"good")))
    for call in (
        lambda: kept.open(file),
        lambda: kept.fetch(file),
        lambda: kept.checked(url, "0" * 64 + ".index.parquet", bytes.decode),
    ):
        with pytest.raises(UserError, match=r"cannot be used.*--cache-dir"):
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
    assert "other bytes than the manifest's" in caplog.text


def test_bytes_that_stay_stale_are_one_line_and_leave_nothing(
    server: MisbehavingServer, tmp_path: Path
) -> None:
    file = remote(server, 1, reply(body(2)))
    with pytest.raises(UserError, match=r"train-00001\.tar is not the file of the manifest"):
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


def test_what_is_in_use_stays(
    server: MisbehavingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
    url = place(server.add("/a.index.parquet", in_turn(reset, reply(b"good"))))

    def parse(data: bytes) -> str:
        if data != b"good":
            raise UserError(f"no index: {data!r}")
        return "parsed"

    kept = cache(tmp_path)
    name = "0" * 64 + ".index.parquet"
    assert kept.checked(url, name, parse) == kept.checked(url, name, parse) == "parsed"
    assert server.requests["/a.index.parquet"] == 2
    (tmp_path / name).write_bytes(b"goo")
    assert kept.checked(url, name, parse) == "parsed" and (tmp_path / name).read_bytes() == b"good"
    bad = place(server.add("/b.index.parquet", reply(b"bad")))
    with pytest.raises(UserError, match="no index: b'bad'"):
        kept.checked(bad, "1" * 64 + ".index.parquet", parse)
    assert names(tmp_path) == {name}


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that has a cache: ``kept`` of argv[1] with the limit argv[2]."""
    head = """
        import hashlib, os, random, sys, time
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        import shards.remote_read
        from shards.cache import Cache, RemoteFile
        from shards.places import place
        from shards.store import CacheOptions
        shards.remote_read.PAUSES = (0.01, 0.05)
        kept = Cache(CacheOptions(Path(sys.argv[1]), int(sys.argv[2]), {PATIENCE}))
        def body(number): return random.Random(number).randbytes(10_000)
        def remote(number):
            url = f"{sys.argv[3]}/train-{number:05d}.tar"
            return RemoteFile(place(url), 10_000, hashlib.sha256(body(number)).hexdigest())
        def content(file):
            descriptor = kept.open(file)
            try: return os.pread(descriptor, 10_001, 0)
            finally: os.close(descriptor)
        print("ready", flush=True)
        sys.stdin.readline()
    """
    program = textwrap.dedent(head).replace("{PATIENCE}", str(PATIENCE)) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err


def test_one_download_however_many_ranks_ask_at_once(server: MisbehavingServer, tmp_path: Path) -> None:
    async def slow(writer: Writer, number: int) -> bool:
        import asyncio

        await asyncio.sleep(0.5)
        return await reply(body(1))(writer, number)

    remote(server, 1, slow)
    code = """
        with ThreadPoolExecutor(3) as pool:
            assert set(pool.map(content, [remote(1)] * 3)) == {body(1)}
    """
    processes = [start(code, tmp_path, 0, server.url("")) for _ in range(3)]
    go(processes)
    finish(processes)
    assert server.requests["/train-00001.tar"] == 1


def total(folder: Path) -> int:
    """Bytes of a cache's files; one that is renamed meanwhile counts once."""
    sizes = {}
    for name in names(folder):
        with contextlib.suppress(FileNotFoundError):
            sizes[name.removesuffix(PARTIAL)] = (folder / name).stat().st_size
    return sum(sizes.values())


def test_two_jobs_share_a_cache_within_its_limit(server: MisbehavingServer, tmp_path: Path) -> None:
    for number in range(12):
        remote(server, number)
    code = """
        draw = random.Random(int(sys.argv[4]))
        for _ in range(150):
            number = draw.randrange(12)
            assert content(remote(number)) == body(number)
    """
    limit = 5 * SIZE
    processes = [start(code, tmp_path, limit, server.url(""), seed) for seed in (1, 2)]
    go(processes)
    largest = 0
    while any(process.poll() is None for process in processes):
        with FileLock(tmp_path / ".room"):  # nothing is added or deleted meanwhile, but partials are renamed
            largest = max(largest, total(tmp_path))
        time.sleep(0.005)
    finish(processes)
    largest = max(largest, total(tmp_path))
    assert 3 * SIZE <= largest <= limit
    assert sum(server.requests.values()) > 12  # it did have to delete


@pytest.mark.parametrize(("numbers", "limit"), [((1,), 2 * SIZE), ((2, 3), 2 * SIZE), ((2, 3), 0)])
def test_killed_while_it_fetches(
    server: MisbehavingServer, tmp_path: Path, numbers: tuple[int, ...], limit: int
) -> None:
    """Its partial is another's to replace, and its room another's to use."""
    remote(server, 1, silence)
    process = start("content(remote(1))", tmp_path, 2 * SIZE, server.url(""))
    go([process])
    until = time.monotonic() + 20
    while not server.requests["/train-00001.tar"]:
        assert time.monotonic() < until
        time.sleep(0.01)
    (partial,) = names(tmp_path)
    assert partial.endswith(PARTIAL) and (tmp_path / partial).stat().st_size == SIZE
    psutil.Process(process.pid).send_signal(signal.SIGKILL)
    process.communicate()
    kept = cache(tmp_path, limit)
    files = [remote(server, number) for number in numbers]
    for file in files:
        kept.fetch(file)
    assert names(tmp_path) == {file.name for file in files}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    with small_file_system(tmp_path / "small", "16k") as folder:
        yield folder


def test_a_full_disk(server: MisbehavingServer, small_disk: Path) -> None:
    kept = cache(small_disk)
    kept.fetch(remote(server, 1))
    with pytest.raises(UserError, match=r"no room for .*train-00002\.tar.*No space left.*--cache-limit"):
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
    with pytest.raises(UserError, match="--cache-dir"):
        cache(tmp_path / "file" / "cache")
