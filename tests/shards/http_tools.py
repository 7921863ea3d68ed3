"""What tests of HTTP servers share: two hosts, quick patience, the ways in which places are read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from misbehaving_server import MisbehavingServer, reply

from shards.storage.paths import StoragePath, as_user_error
from shards.storage.remote_files import read_whole
from shards.storage.retrying_read import RetryBudget, read_blocks, read_small

PUBLIC, PRIVATE = "127.0.0.1", "127.0.0.2"
BODY = b"the right bytes"


@pytest.fixture
def hosts() -> Iterator[MisbehavingServer]:
    """On both hosts, with a file that is the private one's business."""
    with MisbehavingServer(PRIVATE) as running:
        running.add("/victim", reply(b"of this machine alone"))
        yield running


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once, and wait no longer than the patience says."""
    monkeypatch.setattr("shards.storage.retrying_read.PAUSES", (0.01, 0.05))
    monkeypatch.setattr("shards.storage.retrying_read.MIN_REQUEST_SECONDS", 0.5)
    monkeypatch.setattr("shards.storage.http_client.MIN_REQUEST_SECONDS", 0.5)


def got(path: StoragePath, patience: float = 1.0, most: int = 1 << 20) -> bytes | None:
    return read_small(path, RetryBudget(patience), most)


def blocks(path: StoragePath, patience: float = 1.0, size: int = 1 << 20) -> bytes:
    return b"".join(read_blocks(path, size, RetryBudget(patience)))


def whole(path: StoragePath) -> bytes:
    with as_user_error("read a poster", path):
        return read_whole(path)


READERS = [got, blocks, whole]
