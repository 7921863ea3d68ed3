"""Shards at a URL of a server that may be anybody's: one line, in time, without the user's secrets."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from misbehaving_server import Handler, MisbehavingServer, closed_port, drip, endless, redirect, reply, silence
from toolkit_helpers import TINY

from shards.dataset.cache_options import CacheOptions
from shards.dataset.store import open_store
from shards.errors import UserError
from shards.storage import address_policy as addresses
from shards.storage.paths import StoragePath
from shards.storage.retrying_read import RetryBudget, read_small
from toolkit.cli.main import main
from toolkit.data.sources.shard_reader import ShardReader


@pytest.fixture
def server(shard_set: Path) -> Iterator[MisbehavingServer]:
    """The set over HTTP, on two addresses; the first counts as one of the open internet."""
    with MisbehavingServer("127.0.0.2") as running:
        for path in shard_set.iterdir():
            if path.is_file() and path.name != ".lock":
                running.add(f"/set/{path.name}", reply(path.read_bytes()))
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.storage.retrying_read.PAUSES", (0.01, 0.05))
    monkeypatch.setattr("shards.storage.retrying_read.MIN_REQUEST_SECONDS", 0.5)
    monkeypatch.setattr("shards.storage.http_client.MIN_REQUEST_SECONDS", 0.5)
    real = addresses.is_public
    monkeypatch.setattr(addresses, "is_public", lambda address: address == ip_address("127.0.0.1") or real(address))


def read_all(server: MisbehavingServer, folder: Path) -> None:
    """Manifest, table, index and tar."""
    store = open_store(server.url("/set"), CacheOptions(folder / "cache", remote_timeout=1.0))
    reader = ShardReader.of_split(store, "val")
    reader.sample_ids()
    reader.image_bytes(0)


def away(server: MisbehavingServer) -> Handler:
    return redirect(f"http://127.0.0.2:{server.port}/victim")


ANSWERS: dict[str, tuple[Callable[[MisbehavingServer], Handler], str]] = {
    "a byte at a time": (lambda _: drip, "cannot be read|has 100000 bytes"),
    "nothing": (lambda _: silence, "cannot be read"),
    "without end": (lambda _: endless, "more than"),
    "a redirect to a private address": (away, "an address of this machine or network"),
    "a redirect to a file": (lambda _: redirect("file:///etc/passwd"), "not to http"),
}


@pytest.mark.parametrize("kind", ["manifest.json", ".samples.npy", ".index.parquet", ".tar"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_any_file_of_a_set(
    answer: str, kind: str, server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.dataset.manifest.read_small", smaller)
    monkeypatch.setattr("shards.dataset.cache.read_small", smaller)
    read_all(server, tmp_path / "good")
    handler, words = ANSWERS[answer]
    server.add("/victim", reply(b"of this machine alone"))
    for path in [path for path in server.routes if path.endswith(kind)]:
        server.add(path, handler(server))
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        read_all(server, tmp_path / "bad")
    line = str(caught.value)
    assert re.search(words, line) and kind in line and "\n" not in line
    assert not server.requests["/victim"] and time.monotonic() - began < 10


def smaller(path: StoragePath, patience: RetryBudget, most: int = 1 << 20) -> bytes | None:
    """As read_small, with a limit that is soon reached."""
    return read_small(path, patience, min(most, 1 << 20))


SECRET = "hidden-word"


@pytest.mark.parametrize(
    "command",
    [
        "shards info URL",
        "shards verify URL",
        "shards index URL",
        "shards build --metadata URL --images URL --out OUT",
        "shards build --metadata OUT/m.csv --images OUT --out URL",
        "train --shards URL --out OUT/run --remote-timeout 0.1",
        "evaluate --model MODEL --shards URL --remote-timeout 0.1",
        "tune --model MODEL --shards URL --remote-timeout 0.1",
        "predict --model MODEL --shards URL --out OUT/predicted --remote-timeout 0.1",
        "predict --model URL OUT/x.jpg",
        "export --model URL",
        "clean --metadata URL --images URL --out OUT/cleaned",
        "fetch --metadata URL --url-column 1 --out OUT/images",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_no_command_shows_what_is_secret_in_a_url(
    command: str,
    scheme: str,
    model_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shards.storage.retrying_read.RetryBudget.over", property(lambda self: True))
    url = f"{scheme}://me:{SECRET}@127.0.0.1:{closed_port()}/set?token={SECRET}"
    words = [
        word.replace("URL", url).replace("OUT", str(tmp_path)).replace("MODEL", str(model_folder))
        for word in command.split()
    ]
    with pytest.raises((UserError, SystemExit, OSError)) as caught:
        main([*words, *(TINY if words[0] == "train" else [])])
    said = capfd.readouterr()
    assert SECRET not in str(caught.value) + said.out + said.err + caplog.text
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() or SECRET in path.name for path in written)
