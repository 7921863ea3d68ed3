"""Downloads by a cluster and into stores: the posters and the account of this machine's own run; kills lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import Cluster, until
from failing import fails
from fetch_tools import JPEG, PNG, fetch, table
from fetch_tools import posters as posters_of
from misbehaving_server import MisbehavingServer, chunked_cut, in_turn, redirect, reply, slowly
from shard_tools import draw, encoded, environment, posters
from url_tools import remote_tree

from shards.fetch import tasks as chunk_module
from shards.fetch.journal import read_journal
from shards.fetch.poster_store import JOURNAL
from shards.fetch.run import Fetched, FetchOptions, fetch_posters
from shards.storage.paths import storage_path

pytest_plugins = ("cluster_fixtures",)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer("127.0.0.2") as running:
        yield running


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_module, "CHUNK", 4)
    monkeypatch.setattr(chunk_module, "CHUNK_HERE", 7)


def fetch_to(out: Any, csv: Path, **changed: Any) -> Fetched:
    quick = {"backoff": 0.01, "retries": 1, "timeout": 5, "max_bytes": 200_000, "allow_private": True}
    return fetch_posters(FetchOptions(csv, out, "link", **{**quick, **changed}))


def all_kinds(server: MisbehavingServer) -> dict[str, str]:
    """Links of which some are good, some are dead, and some are as odd as a name can be."""
    lossless = encoded(draw("webp"), "WEBP", lossless=True)
    answers = {
        "plain": reply(JPEG),
        "png.named.jpg": reply(PNG),
        "sub/folder/webp": reply(lossless),
        "é-日本": reply(JPEG),
        "100%": reply(PNG),
        "moved": redirect("/plain"),
        "again": in_turn(reply(b"", 500), reply(JPEG), reply(JPEG)),
        "gone": reply(JPEG, 404),
        "html": reply(b"<html>Not found, but 200</html>"),
        "zero": reply(b""),
        "cut": chunked_cut(JPEG),
        "large": reply(b"x" * 300_000),
        ".fetch/x": reply(JPEG),
    }
    links = {name: server.add(f"/{number}", answer) for number, (name, answer) in enumerate(answers.items())}
    server.add("/plain", reply(JPEG))
    return {
        **links,
        "ftp": "ftp://x/y",
        "../up": links["plain"],
        "elsewhere": server.add("/other", reply(PNG), "127.0.0.2"),
    }


def test_everywhere_the_same(cluster: Cluster, server: MisbehavingServer, tmp_path: Path, bucket: str) -> None:
    links = all_kinds(server)
    here = fetch(tmp_path, links)
    wanted = posters_of(tmp_path)
    account = (tmp_path / "images" / "rejected.csv").read_bytes()
    assert here.fetched == len(wanted) == 8
    csv = tmp_path / "meta.csv"
    scheduler = str(cluster.file)
    runs = [
        (tmp_path / "dask" / "images", scheduler),
        (storage_path(f"{bucket}/local"), None),
        (storage_path(f"{bucket}/dask"), scheduler),
    ]
    for out, by in runs:
        server.requests.clear()
        result = fetch_to(out, csv, scheduler=by)
        assert (result.fetched, result.present, len(result.rejected)) == (8, 0, len(here.rejected))
        assert (out / "rejected.csv").read_bytes() == account
        files = _files(out)
        assert {name: files[name] for name in wanted} == wanted
        assert set(files) == {*wanted, "rejected.csv", JOURNAL}
        known = {(e.id, e.reason) for e in read_journal(out / JOURNAL)}
        assert {("plain", ""), ("gone", "http status"), ("zero", "zero bytes")} <= known
        server.requests.clear()
        again = fetch_to(out, csv, scheduler=by)
        # Asked again is only what may have passed: the one that was cut.
        assert (again.present, again.fetched) == (8, 0) and set(server.requests) <= {"/10", "/12"}
        assert (out / "rejected.csv").read_bytes() == account and _files(out).keys() == files.keys()


def _files(out: Any) -> dict[str, bytes]:
    if isinstance(out, Path):
        names = [p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file() and p.name != ".lock"]
    else:
        names = list(remote_tree(out))
    return {name: (out / name).read_bytes() for name in names}


def test_workers_keep_to_public_addresses(cluster: Cluster, server: MisbehavingServer, tmp_path: Path) -> None:
    csv = table(tmp_path, {"a": server.add("/a", reply(JPEG)), "b": "http://localhost:1/x"})
    accounts = []
    for name, by in (("here", None), ("there", str(cluster.file))):
        out = tmp_path / name
        with fails("images-none", csv, "2 private address", out / "rejected.csv"):
            fetch_to(out, csv, allow_private=False, scheduler=by)
        accounts.append((out / "rejected.csv").read_bytes())
    assert accounts[0] == accounts[1] and not server.requests


def test_a_changed_link_in_a_store(server: MisbehavingServer, tmp_path: Path, bucket: str) -> None:
    old, new = server.add("/old", reply(JPEG)), server.add("/new", reply(PNG))
    gone, busy = server.add("/gone", reply(b"", 410)), server.add("/busy", reply(b"", 503))
    out = storage_path(f"{bucket}/posters")
    fetch_to(out, table(tmp_path, {"a": old, "b": old, "c": old, "d": gone, "e": old}))
    result = fetch_to(out, table(tmp_path, {"a": new, "b": gone, "c": busy, "d": gone, "e": old}))
    assert (result.fetched, result.present) == (1, 1)
    assert set(remote_tree(out)) == {"a.png", "c.jpg", "e.jpg", "rejected.csv", JOURNAL}
    server.add("/busy", reply(PNG))
    assert fetch_to(out, tmp_path / "meta.csv").fetched == 1
    assert {"c.png"} == {name for name in remote_tree(out) if name.startswith("c")}


SCRIPT = """
import sys
from shards.fetch.run import FetchOptions, fetch_posters
from shards.storage.paths import storage_path
csv, out = map(storage_path, sys.argv[1:])
fetch_posters(FetchOptions(csv, out, "link", allow_private=True, concurrency=4))
"""


def test_kill_9_of_a_download_into_a_store(server: MisbehavingServer, tmp_path: Path, bucket: str) -> None:
    bodies = {f"p{n:02d}": encoded(draw(f"kill{n}")) for n in range(30)}
    links = {name: server.add(f"/{name}", slowly(0.05, reply(body))) for name, body in bodies.items()}
    csv = table(tmp_path, links)
    out = storage_path(f"{bucket}/posters")
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(csv), str(out)], env=environment(), stderr=subprocess.PIPE
    )
    until(lambda: sum(server.requests.values()) >= 15, "half of the requests")
    process.kill()
    process.communicate()
    left = set(remote_tree(out))
    assert ".lock" in left and any(name.startswith(".fetch/") for name in left)
    assert 5 < len([name for name in left if name.endswith(".jpg")]) < 30
    fetch_to(out, csv)
    files = _files(out)
    assert {name: files[f"{name}.jpg"] for name in bodies} == bodies
    assert set(files) == {*(f"{name}.jpg" for name in bodies), "rejected.csv", JOURNAL}
    assert sum(server.requests.values()) <= 30 + 4  # only what was on its way is asked for again


def test_a_worker_that_is_killed_in_the_middle(cluster: Cluster, server: MisbehavingServer, tmp_path: Path) -> None:
    bodies = {f"p{n:02d}": encoded(draw(f"lost{n}")) for n in range(48)}
    links = {name: server.add(f"/{name}", slowly(0.1, reply(body))) for name, body in bodies.items()}
    csv, out = table(tmp_path, links), tmp_path / "images"
    victim, survivor = cluster.workers().values()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(fetch_to, out, csv, scheduler=str(cluster.file), per_host=2)
        until(lambda: sum(server.requests.values()) >= 8, "some requests")
        for process in (victim, survivor):
            os.kill(process, signal.SIGSTOP)  # with chunks in work: each has the next ones waiting
        assert not run.done() and len(server.requests) < 30
        os.kill(victim, signal.SIGKILL)
        os.kill(survivor, signal.SIGCONT)
        result = run.result(timeout=90)
    assert (result.fetched, result.rejected) == (48, {})
    assert {name: (out / f"{name}.jpg").read_bytes() for name in bodies} == bodies
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".jpg") == [JOURNAL, ".lock", "rejected.csv"]
    assert {entry.id for entry in read_journal(out / JOURNAL)} == set(bodies)
    # The lost worker's chunk is asked for again, and nothing else is.
    assert 48 <= sum(server.requests.values()) <= 48 + 8


def test_the_command(cluster: Cluster, server: MisbehavingServer, tmp_path: Path, bucket: str) -> None:
    csv = table(tmp_path, {"a": server.add("/a", reply(JPEG)), "b": server.add("/b", reply(b"", 404))})
    command = ("fetch", "--metadata", csv, "--url-column", "link", "--out", f"{bucket}/posters", "--allow-private")
    done = posters(*command, "--executor", "dask", "--scheduler", cluster.file)
    assert done.returncode == 0, done.stderr
    assert f"1 posters fetched, 0 already there, in {bucket}/posters" in done.stderr
    assert (storage_path(bucket) / "posters" / "a.jpg").read_bytes() == JPEG


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    csv = table(tmp_path, {"a": "http://x/y"})
    done = posters("fetch", "--metadata", csv, "--url-column", "link", "--out", tmp_path / "o", "--executor", "dask")
    assert done.returncode == 2 and "needs --scheduler" in done.stderr
