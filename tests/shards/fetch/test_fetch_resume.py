"""Downloads once more: what a second run asks for, what a kill or a full disk leaves behind, the journal of both."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fetch_tools import JPEG, PNG, fetch, posters, reasons, table
from misbehaving_server import MisbehavingServer, reply, silence, slowly
from shard_tools import draw, encoded, environment, rows_of, tree, write_csv, write_file

from shards.fetch import poster_store as store_module
from shards.fetch.journal import Entry, Journal, read_journal
from shards.inputs.images import ImageOptions
from shards.inputs.listing import find_posters
from shards.tables.metadata import GenreOptions, read_metadata


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer("127.0.0.2") as running:
        yield running


# --- a second run


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
    assert rows_of(tmp_path / "images" / "rejected.csv") == [row for row in first if row[0] in ("gone", "html")]
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


def test_two_ids_never_share_a_file(server: MisbehavingServer, tmp_path: Path) -> None:
    links = [
        (name, server.add(f"/{number}", reply(data)))
        for number, (name, data) in enumerate(
            [("a/b", JPEG), ("a//b", PNG), ("a/./b", b""), ("A/b", PNG), ("a/b/", JPEG)]
        )
    ]
    fetch(tmp_path, links)
    assert posters(tmp_path) == {"a/b.jpg": JPEG, "A/b.png": PNG}
    assert rows_of(tmp_path / "images" / "rejected.csv") == [
        ["a/b", "repeated id", f"line {line}: the first row with this id is used"] for line in (3, 4, 6)
    ]
    # Written otherwise, with another link: the file that is there is not taken for this link's.
    fetch(tmp_path, [("a//b", links[1][1])])
    assert posters(tmp_path)["a/b.png"] == PNG and "a/b.jpg" not in posters(tmp_path)


#: Ids as a table has them, and the ids of a build.
WRITTEN = {
    "image paths": (["posters/p1.jpg", "posters/p2.png"], ["p1", "p2"]),
    "decimals": (["66773.0", "12.0"], ["66773", "12"]),
    "Windows paths": (["a\\p1", "b\\p2"], ["a/p1", "b/p2"]),
    "letters with a combining accent": (["cafe\u0301", "p2"], ["caf\u00e9", "p2"]),
    "absolute paths": (["/data/x/p1.jpg", "/data/y/p2.jpg"], ["x/p1", "y/p2"]),
    "one name twice": (["p1.jpg", "p1.png"], ["p1.jpg", "p1.png"]),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_ids_are_those_of_a_build(server: MisbehavingServer, tmp_path: Path, kind: str) -> None:
    written, ids = WRITTEN[kind]
    links = [(text, server.add(f"/{number}", reply(JPEG))) for number, text in enumerate(written)]
    fetch(tmp_path, links)
    assert set(posters(tmp_path)) == {f"{sample_id}.jpg" for sample_id in ids}
    path = write_csv(tmp_path / "genres.csv", [(text, "War") for text in written], ("id", "genre"))
    metadata = read_metadata(path, GenreOptions(genre_column="genre"), images=tmp_path / "images")
    assert [row.id for row in metadata.rows] == ids
    found = find_posters(tmp_path / "images", ids, metadata.paths)
    assert {sample_id: file.name for sample_id, file in found.items()} == {name: f"{name}.jpg" for name in ids}


def test_posters_and_rejections_of_earlier_versions_are_used(server: MisbehavingServer, tmp_path: Path) -> None:
    """Earlier versions took the text in the table as the id."""
    there, gone = server.add("/there", reply(JPEG)), server.add("/gone", reply(b"", 404))
    links = [("a/p1.jpg", there), ("a/p2.jpg", gone)]
    fetch(tmp_path, links)
    images = tmp_path / "images"
    write_file(images / "a" / "p1.jpg.jpg", (images / "p1.jpg").read_bytes())
    (images / "p1.jpg").unlink()
    journal = (images / ".fetch.jsonl").read_text()
    assert '"p1"' in journal and '"p2"' in journal
    (images / ".fetch.jsonl").write_text(journal.replace('"p1"', '"a/p1.jpg"').replace('"p2"', '"a/p2.jpg"'))
    server.requests.clear()
    result = fetch(tmp_path)
    assert (result.fetched, result.present, server.requests) == (0, 1, {})
    assert reasons(tmp_path) == {"p2": "http status"} and set(posters(tmp_path)) == {"a/p1.jpg.jpg"}
    # A new link replaces the poster that is there.
    assert fetch(tmp_path, [("a/p1.jpg", server.add("/new", reply(PNG))), links[1]]).fetched == 1
    assert posters(tmp_path) == {"a/p1.jpg.png": PNG}


def test_other_limits_are_other_judgements(server: MisbehavingServer, tmp_path: Path) -> None:
    link = server.add("/x", reply(JPEG))
    good = server.add("/good", reply(encoded(draw("big", 200, 300))))
    fetch(tmp_path, {"a": link, "b": good}, image=ImageOptions(min_side=100))
    assert reasons(tmp_path) == {"a": "too small"}
    assert fetch(tmp_path, image=ImageOptions(min_side=100)).fetched == 0
    assert fetch(tmp_path).fetched == 1
    assert server.requests == {"/x": 2, "/good": 1}


# --- runs that are stopped
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


def test_a_full_disk_stops_the_run(server: MisbehavingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# --- the journal


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
