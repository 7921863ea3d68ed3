"""Whole downloads: what lies in the folder afterwards, what a second run does, what a kill leaves behind."""

from __future__ import annotations

import argparse
import errno
import io
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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
    silence,
    slowly,
)
from PIL import Image
from shard_tools import bomb_png, draw, encoded, environment, rows_of, tree, write_csv, write_file

from shards.errors import UserError
from shards.fetch import store as store_module
from shards.fetch.cli import add_fetch_parser
from shards.fetch.journal import Entry, Journal, read_journal
from shards.fetch.run import FetchOptions, fetch_posters
from shards.fetch.workers import Fetched
from shards.images import ImageOptions, find_image

JPEG = encoded(draw("jpeg"))
PNG = encoded(draw("png"), "PNG")


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer("127.0.0.2") as running:
        yield running


def table(folder: Path, links: dict[str, str] | list[tuple[str, str]]) -> Path:
    rows = links.items() if isinstance(links, dict) else links
    return write_csv(folder / "meta.csv", rows, ("id", "link"))


def fetch(
    folder: Path, links: dict[str, str] | list[tuple[str, str]] | None = None, **changed: Any
) -> Fetched:
    """Fetch these links (None: as before) into folder/images."""
    if links is not None:
        table(folder, links)
    quick = {"backoff": 0.01, "retries": 1, "timeout": 5, "max_bytes": 200_000, "allow_private": True}
    return fetch_posters(FetchOptions(folder / "meta.csv", folder / "images", "link", **{**quick, **changed}))


def posters(folder: Path) -> dict[str, bytes]:
    """Every file of the folder that is no account of ours."""
    images = folder / "images"
    own = {"rejected.csv", ".fetch.jsonl", ".lock"}
    return {
        path.relative_to(images).as_posix(): path.read_bytes()
        for path in sorted(images.rglob("*"))
        if path.is_file() and path.name not in own
    }


def reasons(folder: Path) -> dict[str, str]:
    return {row[0]: row[1] for row in rows_of(folder / "images" / "rejected.csv")}


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
    links += [
        ("refused", f"http://127.0.0.1:{closed_port()}/"),
        ("none", ""),
        ("../up", links[0][1]),
        links[0],
    ]
    with caplog.at_level(logging.INFO):
        result = fetch(tmp_path, links, timeout=0.5)

    stored = posters(tmp_path)
    assert stored.pop("plain.jpg") == stored.pop("moved.jpg") == stored.pop("x" * 240 + ".jpg") == JPEG
    assert stored.pop("png.named.jpg.png") == PNG
    webp = Image.open(io.BytesIO(stored.pop("sub/folder/webp.png")))
    assert webp.format == "PNG" and webp.tobytes() == draw("webp").tobytes()
    assert Image.open(io.BytesIO(stored.pop("gif.png"))).format == "PNG"
    assert not stored
    for name in ("plain", "png.named.jpg", "sub/folder/webp", "gif"):
        assert find_image(tmp_path / "images", name)

    expected = [(name, reason) for name, (_, reason) in cases.items() if reason]
    expected += [
        ("refused", "no connection"),
        ("none", "bad link"),
        ("../up", "bad id"),
        ("plain", "repeated id"),
    ]
    assert [(row[0], row[1]) for row in rows_of(tmp_path / "images" / "rejected.csv")] == expected
    assert (result.fetched, result.present, len(result.rejected)) == (6, 0, len(expected))
    assert "6 posters fetched, 0 already there" in caplog.text and "2 http status" in caplog.text
    assert str(tmp_path / "images" / "rejected.csv") in caplog.text


def test_a_second_run_asks_only_what_may_have_changed(server: MisbehavingServer, tmp_path: Path) -> None:
    links = {
        "good": server.add("/good", reply(JPEG)),
        "gone": server.add("/gone", reply(b"", 404)),
        "html": server.add("/html", reply(b"<html>")),
        "busy": server.add("/busy", reply(b"", 503)),
        "late": server.add("/late", silence),
    }
    fetch(tmp_path, links, timeout=0.3)
    assert reasons(tmp_path) == {
        "gone": "http status", "html": "not an image", "busy": "http status", "late": "timeout"
    }  # fmt: skip
    first = rows_of(tmp_path / "images" / "rejected.csv")
    server.requests.clear()
    server.add("/busy", reply(PNG))
    server.add("/late", reply(JPEG))

    result = fetch(tmp_path)
    assert server.requests == {"/busy": 1, "/late": 1}
    assert (result.fetched, result.present) == (2, 1)
    assert rows_of(tmp_path / "images" / "rejected.csv") == [
        row for row in first if row[0] in ("gone", "html")
    ]
    server.requests.clear()

    before = tree(tmp_path / "images")
    assert fetch(tmp_path).present == 3
    assert not server.requests and tree(tmp_path / "images") == before

    assert fetch(tmp_path, retry_rejected=True).present == 3
    assert server.requests == {"/gone": 1, "/html": 1}


def test_a_changed_link_is_fetched_again(server: MisbehavingServer, tmp_path: Path) -> None:
    old, new = server.add("/old", reply(JPEG)), server.add("/new", reply(PNG))
    gone, busy = server.add("/gone", reply(b"", 410)), server.add("/busy", reply(b"", 503))
    fetch(tmp_path, {"a": old, "b": old, "c": old, "d": gone, "e": old})
    write_file(tmp_path / "images" / "d.jpg", JPEG)  # by hand, since its link is dead
    result = fetch(tmp_path, {"a": new, "b": gone, "c": busy, "d": gone, "e": old})
    assert (result.fetched, result.present) == (1, 2)
    # b's poster was another link's, and now that is known; c's may yet be replaced
    assert posters(tmp_path) == {"a.png": PNG, "c.jpg": JPEG, "d.jpg": JPEG, "e.jpg": JPEG}
    assert reasons(tmp_path) == {"b": "http status", "c": "http status"}
    server.add("/busy", reply(PNG))
    assert fetch(tmp_path).fetched == 1
    assert posters(tmp_path)["c.png"] == PNG and "c.jpg" not in posters(tmp_path)
    assert fetch(tmp_path, {"a": old}).fetched == 1
    assert posters(tmp_path)["a.jpg"] == JPEG and "a.png" not in posters(tmp_path)


def test_other_limits_are_other_judgements(server: MisbehavingServer, tmp_path: Path) -> None:
    link = server.add("/x", reply(JPEG))
    good = server.add("/good", reply(encoded(draw("big", 200, 300))))
    fetch(tmp_path, {"a": link, "b": good}, image=ImageOptions(min_side=100))
    assert reasons(tmp_path) == {"a": "too small"}
    assert fetch(tmp_path, image=ImageOptions(min_side=100)).fetched == 0
    assert fetch(tmp_path).fetched == 1
    assert server.requests == {"/x": 2, "/good": 1}


def test_private_addresses_are_no_lasting_rejection(server: MisbehavingServer, tmp_path: Path) -> None:
    links = {"a": server.add("/x", reply(JPEG))}
    with pytest.raises(
        UserError, match=r"no poster could be fetched .*: 1 private address; see .*rejected\.csv"
    ):
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
    bad = dict.fromkeys(list(links)[1:], "bad id")
    assert reasons(tmp_path) == bad and list(posters(tmp_path)) == ["a.jpg"]
    (tmp_path / "images" / "b.jpg").rmdir()
    fetch(tmp_path)
    del bad["b"]
    assert reasons(tmp_path) == bad


SCRIPT = """
import sys, pathlib
from shards.fetch.run import FetchOptions, fetch_posters
folder = pathlib.Path(sys.argv[1])
fetch_posters(FetchOptions(folder / "meta.csv", folder / "images", "link", allow_private=True, concurrency=4))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)], env=environment(), stderr=subprocess.PIPE, text=True
    )


def wait_for(server: MisbehavingServer, requests: int) -> None:
    end = time.monotonic() + 30
    while sum(server.requests.values()) < requests:
        assert time.monotonic() < end, server.requests
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_kill_9_loses_nothing(server: MisbehavingServer, tmp_path: Path) -> None:
    bodies = {f"p{n:02d}": encoded(draw(f"kill{n}")) for n in range(60)}
    links = {name: server.add(f"/{name}", slowly(0.02, reply(body))) for name, body in bodies.items()}
    links["gone"] = server.add("/gone", reply(b"", 404))
    table(tmp_path, links)
    for goal in (20, 40):
        process = start(tmp_path)
        wait_for(server, goal)
        process.kill()
        process.communicate()
        for name, data in posters(tmp_path).items():
            if not name.startswith(".incoming/"):
                assert data == bodies[name.removesuffix(".jpg")]
    assert 20 < len(posters(tmp_path)) < 60
    fetch(tmp_path)
    assert posters(tmp_path) == {f"{name}.jpg": body for name, body in bodies.items()}
    assert reasons(tmp_path) == {"gone": "http status"}
    # Only what was on its way at a kill is asked for again: four workers, two kills.
    assert sum(server.requests.values()) <= 61 + 8
    assert max(server.requests.values()) <= 3


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_ends_at_once_and_the_next_run_goes_on(server: MisbehavingServer, tmp_path: Path) -> None:
    links = {f"p{n}": server.add(f"/p{n}", slowly(0.02, reply(JPEG))) for n in range(20)}
    links |= {f"s{n}": server.add(f"/s{n}", silence, "127.0.0.2") for n in range(3)}
    table(tmp_path, links)
    process = start(tmp_path)
    wait_for(server, 15)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert errors.rstrip().endswith("KeyboardInterrupt")  # which the command tree says in a word
    assert not (tmp_path / "images" / ".incoming").exists()
    before = server.requests.copy()
    for n in range(3):
        server.add(f"/s{n}", reply(PNG))
    assert fetch(tmp_path).present >= 8
    assert sum((server.requests - before).values()) <= 23 - 8
    assert len(posters(tmp_path)) == 23


def test_a_full_disk_stops_the_run(
    server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {f"p{n}": server.add(f"/p{n}", reply(JPEG)) for n in range(50)}
    real, count = store_module.atomic_write, iter(range(1000))

    def full(path: Path) -> Any:
        if next(count) >= 10:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path)

    monkeypatch.setattr(store_module, "atomic_write", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fetch(tmp_path, links, concurrency=2)
    assert caught.value.errno == errno.ENOSPC
    assert len(posters(tmp_path)) == 10 and not (tmp_path / "images" / "rejected.csv").exists()
    monkeypatch.undo()
    assert fetch(tmp_path).present == 10


def test_journal_survives_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    entries = [Entry("a", "http://x/ü"), Entry("b", "http://y", "http status", "404", "limits")]
    for entry in entries:
        journal = Journal(path)
        journal.add(entry)
        journal.close()
        with open(path, "ab") as stream:
            stream.write(b'{"id": "c", "url": "htt')
    with open(path, "ab") as stream:
        stream.write(b'\n[1]\n{"id": 3, "url": null}\n{"other": 1}\n\xff\n')
    assert list(read_journal(path)) == entries
    assert list(read_journal(tmp_path / "absent")) == []


def test_journal_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    entries = [Entry(f"{n}", "http://x/" + "y" * n) for n in range(200)]

    def write(part: list[Entry]) -> None:
        for entry in part:
            journal.add(entry)

    threads = [threading.Thread(target=write, args=(entries[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert sorted(read_journal(tmp_path / "journal"), key=lambda e: int(e.id)) == entries


def command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_fetch_parser(parser.add_subparsers())
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.run(args)


def test_command(server: MisbehavingServer, tmp_path: Path) -> None:
    links = {"a": server.add("/a", reply(JPEG)), "b": server.add("/b", reply(b"", 404))}
    arguments = (
        "fetch",
        "--metadata",
        table(tmp_path, links),
        "--url-column",
        1,
        "--out",
        tmp_path / "images",
    )
    assert command(*arguments, "--allow-private", "--user-agent", "us", "--timeout", 5, "--min-side", 8) == 0
    assert posters(tmp_path) == {"a.jpg": JPEG} and server.headers["/a"]["user-agent"] == "us"
    assert command(*arguments) == 0  # nothing new, but all is there
    assert {"allow_private", "concurrency"} <= set(FetchOptions.__dataclass_fields__)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--concurrency", 0), ("--per-host", 0), ("--timeout", 0), ("--timeout", "nan"), ("--timeout", "inf"),
        ("--connect-timeout", -1), ("--retries", -1), ("--max-bytes", 0), ("--min-side", 0),
        ("--user-agent", "a\nX-Evil: 1"), ("--url-column", "lnk"), ("--metadata", "absent.csv"),
    ],
)  # fmt: skip
def test_bad_options_are_user_errors(tmp_path: Path, option: str, value: object) -> None:
    given: dict[str, object] = {
        "--metadata": table(tmp_path, {"a": "http://x/"}), "--url-column": "link", "--out": tmp_path / "images"
    }  # fmt: skip
    given[option] = value
    with pytest.raises(UserError) as caught:
        command("fetch", *(word for pair in given.items() for word in pair))
    assert option in str(caught.value) or option == "--metadata"
    assert not (tmp_path / "images").exists()


def test_an_empty_csv(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a header line and nothing else"):
        fetch(tmp_path, {})


def test_without_aiohttp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[clean\]'"):
        fetch(tmp_path, {"a": "http://x/"})


def test_only_a_run_loads_aiohttp() -> None:
    code = "import sys, shards.fetch.cli, shards.fetch.run; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0
