"""Reading from stores that hang up, lie about lengths, stall, or know no ranges: the right bytes or one line."""

from __future__ import annotations

import random
import time

import pytest
from failing import fails
from misbehaving_server import (
    Handler,
    MisbehavingServer,
    Writer,
    chunked_cut,
    closed_port,
    in_turn,
    reply,
    reset,
    silence,
)

from shards.storage.paths import StoragePath, storage_path
from shards.storage.retrying_read import RetryBudget, read_blocks, read_small

pytest_plugins = ("remote_fixtures",)
pytestmark = pytest.mark.usefixtures("quick")

BODY = random.Random(1).randbytes(10_000)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.retrying_read.BLOCK", 4_000)


def ranged(server: MisbehavingServer, body: bytes, most: int = 1 << 30) -> Handler:
    """A server that knows ranges, and sends at most so many bytes of one."""

    async def answer(writer: Writer, number: int) -> bool:
        wanted = server.headers["/file"].get("range")
        if wanted is None:
            return await reply(body, Accept_Ranges="bytes")(writer, number)
        first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        if first >= len(body):
            return await reply(b"", 416)(writer, number)
        part = body[first : last + 1][:most]
        shown = f"bytes {first}-{first + len(part) - 1}/{len(body)}"
        return await reply(part, 206, Content_Range=shown)(writer, number)

    return answer


def read(server: MisbehavingServer, handler: Handler, patience: float = 20.0, size: int = len(BODY)) -> bytes:
    return b"".join(read_blocks(storage_path(server.add("/file", handler)), size, RetryBudget(patience)))


def test_in_blocks(server: MisbehavingServer) -> None:
    assert read(server, ranged(server, BODY)) == BODY
    assert server.requests["/file"] == 3


def test_a_server_that_sends_less_than_it_was_asked_for(server: MisbehavingServer) -> None:
    assert read(server, ranged(server, BODY, most=1_500)) == BODY


def test_a_server_that_knows_no_ranges(server: MisbehavingServer) -> None:
    assert read(server, reply(BODY)) == BODY
    assert server.requests["/file"] == 1  # and is not asked for the whole file once per block


def test_whatever_fails_in_passing_is_asked_again(server: MisbehavingServer) -> None:
    good = ranged(server, BODY)
    cut = reply(BODY[:2_000], 206, Content_Length=4_000)
    turns = (reset, cut, good, silence, chunked_cut(b"x"), reply(b"busy", 503), reply(b"", 206), good)
    assert read(server, in_turn(*turns)) == BODY
    assert server.requests["/file"] >= len(turns)


@pytest.mark.parametrize("status", [404, 403, 401, 410])
def test_a_refusal_is_not_asked_for_again(server: MisbehavingServer, status: int) -> None:
    with fails("path-missing" if status == 404 else "network", server.url("/file")):
        read(server, reply(b"", status))
    assert server.requests["/file"] == 1


@pytest.mark.parametrize("length", [9_000, 11_000])
def test_a_file_of_another_size_is_not_asked_for_again(server: MisbehavingServer, length: int) -> None:
    other = random.Random(2).randbytes(length)
    started = time.monotonic()
    if length < len(BODY):
        with fails("set-damaged", f"{length} bytes", "manifest", len(BODY)):
            read(server, ranged(server, other))
        assert time.monotonic() - started < 15
    else:  # its first bytes are had; their digest is another (test_cache.py)
        assert read(server, ranged(server, other)) == other[: len(BODY)]


def test_patience_ends() -> None:
    url = f"http://127.0.0.1:{closed_port()}/set/train-00000.tar"
    with fails("network", url) as caught:
        list(read_blocks(storage_path(url), 10, RetryBudget(0.2)))
    assert str(caught.value).endswith("then start again")
    with fails("network", url, "--remote-timeout"):
        list(read_blocks(storage_path(url), 10, RetryBudget(0.2, option="--remote-timeout")))


def test_progress_renews_patience(server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """More failures in all than patience bears at a time."""
    monkeypatch.setattr("shards.storage.retrying_read.PAUSES", (0.15, 0.15))
    good = ranged(server, BODY, most=1_000)
    failing = [handler for _ in range(10) for handler in (reset, reset, good)]
    started = time.monotonic()
    assert read(server, in_turn(*failing), patience=1.0) == BODY
    assert time.monotonic() - started > 1.0


def test_small_files_in_one_piece(server: MisbehavingServer) -> None:
    url = server.add("/small", in_turn(reset, reply(BODY)))
    assert read_small(storage_path(url), RetryBudget(20)) == BODY


def test_s3(bucket: str) -> None:
    path: StoragePath = storage_path(f"{bucket}/set/train-00000.tar")
    path.write_bytes(BODY)
    assert b"".join(read_blocks(path, len(BODY), RetryBudget(20))) == BODY
    with fails("set-damaged", path, f"{len(BODY)} bytes", len(BODY) + 1):
        list(read_blocks(path, len(BODY) + 1, RetryBudget(20)))
    path.unlink()
    with fails("path-missing", path):
        list(read_blocks(path, len(BODY), RetryBudget(20)))
