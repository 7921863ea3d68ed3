"""Fixtures of tests that read from a server; who wants them says ``pytest_plugins = ("remote_fixtures",)``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from misbehaving_server import MisbehavingServer


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    """On loopback, with nothing to serve yet."""
    with MisbehavingServer() as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once, and take silence for a cut line soon."""
    monkeypatch.setattr("shards.storage.retrying_read.PAUSES", (0.01, 0.05))
    monkeypatch.setattr("shards.storage.paths.HTTP_TIMEOUT", (5.0, 0.4))
