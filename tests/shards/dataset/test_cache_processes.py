"""The node's cache where processes share it: one download, one limit, one end of patience, and kills."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from cache_tools import PATIENCE, SIZE, body, cache, finish, go, names, remote, start
from filelock import FileLock
from misbehaving_server import MisbehavingServer, Writer, reply, reset, silence

from shards.errors import UserError
from shards.storage.files import PARTIAL

pytest_plugins = ("remote_fixtures",)
pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.skipif(sys.platform == "win32", reason="needs flock")]


def test_one_download_however_many_ranks_ask_at_once(server: MisbehavingServer, tmp_path: Path) -> None:
    async def slow(writer: Writer, number: int) -> bool:
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


def test_patience_ends_once_however_many_wait(server: MisbehavingServer, tmp_path: Path) -> None:
    """In this process and in another: who waited for a file hears why it did not come."""
    file = remote(server, 1, reset)
    code = """
        try:
            content(remote(1))
        except Exception as error:
            assert error.code == "network" and "train-00001.tar cannot be read" in str(error), error
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
            assert error.code == "network"
            return str(error)
        raise AssertionError("it was read")

    with ThreadPoolExecutor(12) as pool:
        messages = set(pool.map(wait, range(12)))
    assert len(messages) == 1 and "cannot be read" in messages.pop()
    assert time.monotonic() - began < 2 * 2.0 + 2 * PATIENCE  # one after the other they would take 24 s and more
    finish([other])


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
