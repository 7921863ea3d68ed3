"""How much servers on HTTP may send, and how slowly."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Callable

import pytest
from failing import fails
from http_tools import BODY, blocks, got
from misbehaving_server import Handler, MisbehavingServer, Writer, drip, endless, raw, reply, silence

from shards.inputs.listing import list_posters, list_sizes
from shards.storage.paths import storage_path
from shards.storage.remote_files import remote_files
from shards.storage.retrying_read import RetryBudget, read_blocks

pytest_plugins = ("http_tools",)
pytestmark = pytest.mark.usefixtures("short_waits")


def test_an_endless_body_ends(hosts: MisbehavingServer) -> None:
    path = storage_path(hosts.add("/manifest.json", endless))
    with fails("path-unreadable", path, "more than", 1 << 20):
        got(path, most=1 << 20)
    with fails("path-unreadable", path, "more than", 100_000):
        blocks(path, size=100_000)
    assert hosts.requests["/manifest.json"] <= 4  # what it says of its size is asked for, too


def test_a_body_that_says_it_is_too_long_is_not_read(hosts: MisbehavingServer) -> None:
    path = storage_path(hosts.add("/manifest.json", reply(b"{", Content_Length=1 << 40)))
    with fails("path-unreadable", path, 1 << 40, "at most", 1 << 20):
        got(path, most=1 << 20)


def test_a_bomb_that_is_sent_compressed(hosts: MisbehavingServer) -> None:
    data = gzip.compress(bytes(64 << 20))
    path = storage_path(hosts.add("/manifest.json", reply(data, Content_Encoding="gzip")))
    assert len(data) < 1 << 20
    with fails("path-unreadable", path, "more than", 1 << 20):
        got(path, most=1 << 20)


def test_a_shorter_file_of_a_server_that_knows_no_ranges(hosts: MisbehavingServer) -> None:
    path = storage_path(hosts.add("/file", reply(BODY)))
    with fails("set-damaged", path, f"{len(BODY)} bytes", "manifest", 1 << 20):
        blocks(path)
    assert hosts.requests["/file"] <= 4


def test_what_goes_with_an_error_is_not_read(hosts: MisbehavingServer) -> None:
    async def endless_refusal(writer: Writer, _: int) -> bool:
        writer.write(b"HTTP/1.1 404 Not Found\r\n\r\n")
        while True:
            writer.write(b"\xff" * 65536)
            await writer.drain()

    path = storage_path(hosts.add("/file", endless_refusal))
    assert got(path) is None


async def slow_head(writer: Writer, _: int) -> bool:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("handler", [drip, silence, slow_head], ids=["drip", "silence", "head"])
@pytest.mark.parametrize("read", [got, blocks])
def test_what_hardly_comes_ends_with_the_patience(
    hosts: MisbehavingServer, read: Callable[..., object], handler: Handler
) -> None:
    path = storage_path(hosts.add("/file", handler))
    began = time.monotonic()
    with fails("network", path, "1 s"):
        read(path, patience=1.0)
    assert time.monotonic() - began < 4


def test_a_little_each_time_is_not_progress_without_end(
    hosts: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte an answer: each block renews the patience, but the whole has its time."""

    async def a_byte(writer: Writer, number: int) -> bool:
        await asyncio.sleep(0.1)
        shown = f"bytes {number - 1}-{number - 1}/1000000"
        return await reply(b"x", 206, Content_Range=shown)(writer, number)

    path = storage_path(hosts.add("/file", a_byte))
    monkeypatch.setattr("shards.storage.retrying_read.RETRY_BUDGETS", 2)
    monkeypatch.setattr("shards.storage.retrying_read.SLOWEST", 1 << 20)
    patience = RetryBudget(0.5, size=1_000_000)
    patience.ends = time.monotonic() + 1.5
    with fails("network", path):
        list(read_blocks(path, 1_000_000, patience))
    assert 5 < hosts.requests["/file"] < 40


def test_who_is_slow_but_comes_is_waited_for(hosts: MisbehavingServer) -> None:
    body = bytes(range(256)) * 64

    async def slowly(writer: Writer, _: int) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 1024):
            writer.write(body[start : start + 1024])
            await writer.drain()
            await asyncio.sleep(0.1)
        return True

    path = storage_path(hosts.add("/file", slowly))
    began = time.monotonic()
    assert got(path, patience=0.5) == body
    assert time.monotonic() - began > 1.5


def test_an_answer_that_is_not_http(hosts: MisbehavingServer) -> None:
    path = storage_path(hosts.add("/file", raw(b"SSH-2.0-x\r\n")))
    with fails("network", "Bad status line"):
        got(path)


def test_folders_in_folders_without_end(hosts: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers every path with a listing of one more folder."""

    class Listings(dict[str, Handler]):
        def get(self, path: str, default: object = None) -> Handler:
            return reply(b'<a href="again/">again/</a> <a href="1.jpg">1.jpg</a>', Content_Type="text/html")

    hosts.routes = Listings()
    monkeypatch.setattr("shards.storage.remote_files.MOST_FOLDERS", 20)
    folder = storage_path(hosts.url("/posters/"))
    with fails("url-refused", "over 20 folders"):
        list(remote_files(folder))
    asked = sum(hosts.requests.values())
    assert set(list_posters(folder, ["1", "2"])) == {"1"}
    assert set(list_sizes(folder, ["again/1.jpg", "2.jpg"])) == {"again/1.jpg"}
    assert sum(hosts.requests.values()) < asked + 40
