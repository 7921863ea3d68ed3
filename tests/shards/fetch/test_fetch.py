"""Whole downloads: what lies in the folder afterwards, and what the command takes and refuses."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from fetch_tools import JPEG, PNG, fetch, posters, reasons, table
from misbehaving_server import (
    Handler,
    MisbehavingServer,
    chunked_cut,
    closed_port,
    drip,
    endless,
    in_turn,
    redirect,
    reply,
    slowly,
)
from PIL import Image
from shard_tools import bomb_png, draw, encoded, environment, rows_of

from shards.errors import Code, UserError
from shards.fetch.run import FetchOptions
from shards.inputs.image_files import find_image
from toolkit.cli.main import main


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer("127.0.0.2") as running:
        yield running


def test_every_link_becomes_a_poster_or_a_row(
    server: MisbehavingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lossless = encoded(draw("webp"), "WEBP", lossless=True)
    html = reply(b"<html>Not found, but 200</html>", Content_Type="image/jpeg")
    cases = {
        "plain": (reply(JPEG, Content_Type="text/html"), ""),
        "png.named.jpg": (reply(PNG), ""),
        "sub/folder/webp": (reply(lossless), ""),
        "gif": (reply(encoded(draw("gif"), "GIF")), ""),
        "x" * 240: (in_turn(reply(b"", 500), reply(JPEG)), ""),
        "moved": (redirect("/plain"), ""),
        "gone": (reply(JPEG, 404), "http status"),
        "busy": (reply(b"", 503), "http status"),
        "html": (html, "not an image"),
        "zero": (reply(b""), "zero bytes"),
        "cut": (chunked_cut(JPEG), "truncated"),
        "half": (reply(JPEG[: len(JPEG) // 2]), "truncated"),
        "small": (reply(encoded(draw("small", 20, 90))), "too small"),
        "bomb": (reply(bomb_png()), "decompression bomb"),
        "endless": (endless, "too large"),
        "drip": (drip, "timeout"),
        "loop": (redirect("/loop"), "redirect loop"),
    }
    links: list[tuple[str, str]] = []
    for name, (handler, _) in cases.items():
        links.append((name, server.add(f"/{name}", handler)))
    links += [("refused", f"http://127.0.0.1:{closed_port()}/"), ("none", ""), ("../up", links[0][1]), links[0]]
    with caplog.at_level(logging.INFO):
        result = fetch(tmp_path, links, timeout=0.5)

    stored = posters(tmp_path)
    assert stored.pop("plain.jpg") == stored.pop("moved.jpg") == stored.pop("x" * 240 + ".jpg") == JPEG
    assert stored.pop("png.named.png") == PNG
    webp = Image.open(io.BytesIO(stored.pop("sub/folder/webp.png")))
    assert webp.format == "PNG" and webp.tobytes() == draw("webp").tobytes()
    assert Image.open(io.BytesIO(stored.pop("gif.png"))).format == "PNG"
    assert not stored
    for name in ("plain", "png.named", "sub/folder/webp", "gif"):
        assert find_image(tmp_path / "images", name)

    expected = [(name, reason) for name, (_, reason) in cases.items() if reason]
    expected += [("refused", "no connection"), ("none", "bad link"), ("../up", "bad id"), ("plain", "repeated id")]
    assert [(row[0], row[1]) for row in rows_of(tmp_path / "images" / "rejected.csv")] == expected
    assert (result.fetched, result.present, len(result.rejected)) == (6, 0, len(expected))
    assert "6 posters fetched, 0 already there" in caplog.text and "2 http status" in caplog.text
    assert str(tmp_path / "images" / "rejected.csv") in caplog.text


def test_private_addresses_are_no_lasting_rejection(server: MisbehavingServer, tmp_path: Path) -> None:
    links = {"a": server.add("/x", reply(JPEG))}
    with pytest.raises(UserError, match=r"no poster could be fetched .*: 1 private address; see .*rejected\.csv"):
        fetch(tmp_path, links, allow_private=False)
    assert not server.requests
    assert rows_of(tmp_path / "images" / "rejected.csv") == [["a", "private address", "127.0.0.1"]]
    assert fetch(tmp_path).fetched == 1


def test_a_slow_host_holds_nobody_up(server: MisbehavingServer, tmp_path: Path) -> None:
    asked: list[str] = []

    def noted(host: str, seconds: float) -> Handler:
        async def answer(writer: Any, number: int) -> bool:
            asked.append(host)
            return await slowly(seconds, reply(JPEG))(writer, number)

        return answer

    links = {f"s{n}": server.add(f"/s{n}", noted("slow", 0.5), "127.0.0.2") for n in range(6)}
    links |= {f"q{n}": server.add(f"/q{n}", noted("quick", 0)) for n in range(30)}
    assert fetch(tmp_path, links, concurrency=4, per_host=2).fetched == 36
    # Before the slow one's last two links came to their turn, all of the other's were done.
    assert asked[-2:] == ["slow", "slow"] and asked.index("quick") < 4
    assert server.most_open["127.0.0.2"] == 2 and server.most_open["127.0.0.1"] <= 2


def test_a_place_that_is_taken(server: MisbehavingServer, tmp_path: Path) -> None:
    link = server.add("/x", reply(JPEG))
    (tmp_path / "images" / "b.jpg").mkdir(parents=True)
    links = dict.fromkeys(("a", "a.jpg/under", "b", "rejected.csv/x", ".incoming/x", "./.lock/x"), link)
    fetch(tmp_path, links, concurrency=1)
    bad = dict.fromkeys([*list(links)[1:-1], ".lock/x"], "bad id")
    assert reasons(tmp_path) == bad and list(posters(tmp_path)) == ["a.jpg"]
    (tmp_path / "images" / "b.jpg").rmdir()
    fetch(tmp_path)
    del bad["b"]
    assert reasons(tmp_path) == bad


# --- the command


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_command(server: MisbehavingServer, tmp_path: Path) -> None:
    links = {"a": server.add("/a", reply(JPEG)), "b": server.add("/b", reply(b"", 404))}
    arguments = ("fetch", "--metadata", table(tmp_path, links), "--url-column", 1, "--out", tmp_path / "images")
    assert command(*arguments, "--allow-private", "--user-agent", "us", "--timeout", 5, "--min-side", 8) == 0
    assert posters(tmp_path) == {"a.jpg": JPEG} and server.headers["/a"]["user-agent"] == "us"
    assert command(*arguments) == 0  # nothing new, but all is there
    assert {"allow_private", "concurrency"} <= set(FetchOptions.__dataclass_fields__)


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        *((option, 0, "option-value") for option in ("--concurrency", "--per-host", "--max-bytes", "--min-side")),
        *(("--timeout", value, "option-value") for value in (0, "nan", "inf")),
        *((option, -1, "option-value") for option in ("--connect-timeout", "--retries")),
        ("--user-agent", "a\nX-Evil: 1", "option-value"),
        ("--url-column", "lnk", "table-column"),
        ("--metadata", "absent.csv", "path-missing"),
    ],
)
def test_bad_options_are_user_errors(tmp_path: Path, option: str, value: object, code: Code) -> None:
    given: dict[str, object] = {
        "--metadata": table(tmp_path, {"a": "http://x/"}), "--url-column": "link", "--out": tmp_path / "images"
    }  # fmt: skip
    given[option] = value
    with fails(code, "absent.csv" if option == "--metadata" else option):
        command("fetch", *(word for pair in given.items() for word in pair))
    assert not (tmp_path / "images").exists()


def test_an_empty_csv(tmp_path: Path) -> None:
    with fails("images-none", "meta.csv", "header"):
        fetch(tmp_path, {})


def test_without_aiohttp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UserError, match="`posters fetch` needs aiohttp"):
        fetch(tmp_path, {"a": "http://x/"})


def test_only_a_run_loads_aiohttp() -> None:
    code = "import sys, shards.cli.fetch, shards.fetch.run; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0
