"""`posters shards index` reads each tar once: what a killed run has read is kept, and used if nothing has changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from foreign_tars import adopt, found, pack
from misbehaving_server import MisbehavingServer, reply, slowly
from shard_tools import draw, encoded, environment, mtimes, posters, tree, write_file, write_tar

from shards.build.index import kept as index_kept
from shards.build.index.kept import WORK
from shards.build.index.tar_places import Place
from shards.build.verify import verify_shards
from shards.dataset.cache_options import CacheOptions
from shards.dataset.manifest import Manifest
from shards.storage.files import fingerprint

pytest_plugins = ("remote_fixtures",)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tars that are read."""
    names: list[str] = []
    real = index_kept.read_contents

    def noted(task: Any) -> Any:
        names.append(task.tar.name)
        return real(task)

    monkeypatch.setattr(index_kept, "read_contents", noted)
    return names


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars, the last of which is damaged: a run ends after it has read the others."""
    folder = tmp_path / "tars"
    pack(folder / "a.tar", "a1 a2", a1={"genres": ["War"], "kind": "x"}, a2={"genres": "Drama|War", "kind": "y"})
    pack(folder / "b.tar", "b1", b1={"genres": ["Drama"], "kind": "x"})
    write_file(folder / "c.tar", b"damaged" * 99)
    return folder


def fail(place: Place, **options: Any) -> None:
    with fails("tar-unsupported", "c.tar is not an uncompressed tar"):
        adopt(place, **options)


def repair(tars: Path) -> None:
    pack(tars / "c.tar", "c1", c1={"genres": ["War"], "kind": "x"})


@pytest.mark.parametrize("out", [False, True])
def test_what_was_read_is_not_read_again(tars: Path, tmp_path: Path, read: list[str], out: bool) -> None:
    folder = tmp_path / "out" if out else tars
    chosen = {"out": folder} if out else {}
    fail(tars, **chosen)
    assert read == ["a.tar", "b.tar", "c.tar"] and len(list((folder / WORK).iterdir())) == 2
    repair(tars)
    manifest = adopt(tars, **chosen)
    assert read[3:] == ["c.tar"] and not (folder / WORK).exists()
    assert manifest.genres == ["Drama", "War"] and verify_shards(folder, 1)[1] == []
    whole, again = tree(folder), tmp_path / "again"
    adopt(tars, out=again)
    ours = {name: digest for name, digest in whole.items() if not name.endswith((".tar", ".json"))}
    assert ours.items() <= tree(again).items()  # the same bytes as of a run that was not stopped


def test_with_workers(tars: Path, tmp_path: Path, read: list[str]) -> None:
    fail(tars, out=tmp_path / "out", workers=2)
    repair(tars)
    kept = {path.name.partition(".")[0] for path in (tmp_path / "out" / WORK).iterdir()}
    adopt(tars, out=tmp_path / "out")
    names = {name for name in ("a.tar", "b.tar") if fingerprint(name)[:32] in kept}
    assert names and set(read) == {"a.tar", "b.tar", "c.tar"} - names


def test_a_changed_tar_is_read_again(tars: Path, read: list[str]) -> None:
    fail(tars)
    before = (tars / "b.tar").stat()
    repair(tars)
    pack(tars / "b.tar", "b9", b9={"genres": ["Drama"], "kind": "x"})
    assert (tars / "b.tar").stat().st_size == before.st_size
    adopt(tars)
    assert read[3:] == ["b.tar", "c.tar"] and "b9" in found(tars)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"genre_field": "kind"}, True),
        ({"genre_separator": "+"}, True),
        ({"split": "val"}, False),
        ({"spellings": "refuse"}, False),
        ({"workers": 2}, False),
    ],
)
def test_other_options_do_not_use_what_depends_on_them(
    tars: Path, read: list[str], options: dict[str, Any], again: bool
) -> None:
    fail(tars)
    repair(tars)
    adopt(tars, **{"workers": 1, **options})
    assert read[3:] == (["a.tar", "b.tar", "c.tar"] if again else ["c.tar"]) or options == {"workers": 2}
    copy = tars.parent / "copy"
    adopt(tars, **{"workers": 1, **options, "out": copy})
    assert Manifest.read(tars).fingerprint == Manifest.read(copy).fingerprint


def test_another_table_uses_what_was_read(tars: Path, tmp_path: Path, read: list[str]) -> None:
    table = write_file(tmp_path / "meta.csv", b"id,genre\na1,Comedy\nb1,Musical\n")
    fail(tars, metadata=table)
    repair(tars)
    table.write_bytes(b"id,genre\na1,Western\nb1,Musical\n")
    assert adopt(tars, metadata=table).genres == ["Musical", "Western"]
    assert read[3:] == ["c.tar"]


def test_other_versions_of_the_libraries_read_again(
    tars: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(tars)
    repair(tars)
    monkeypatch.setattr(index_kept, "library_versions", lambda: {"pillow": "other"})
    adopt(tars)
    assert read[3:] == ["a.tar", "b.tar", "c.tar"]


def test_damaged_files_of_contents_are_not_used(tars: Path, read: list[str]) -> None:
    fail(tars)
    repair(tars)
    for number, path in enumerate(sorted((tars / WORK).iterdir())):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if number else b"\x92\xa1x\xc0")
    adopt(tars)
    assert read[3:] == ["a.tar", "b.tar", "c.tar"] and verify_shards(tars, 1)[1] == []


def test_contents_that_cannot_be_kept_are_no_failure(tars: Path, read: list[str]) -> None:
    """A field of a JSON with half a character."""
    write_tar(tars / "b.tar", {"b1.jpg": encoded(draw(1)), "b1.json": b'{"\\ud800": 1, "genres": ["War"]}'})
    fail(tars)
    assert len(list((tars / WORK).iterdir())) == 1
    repair(tars)
    adopt(tars)
    assert read[3:] == ["b.tar", "c.tar"]


# --- at a URL


@pytest.mark.parametrize("version", [{"ETag": '"1"'}, {"Last_Modified": "Mon, 30 Nov 2026 10:00:00 GMT"}, {}])
def test_at_a_url(
    tars: Path, tmp_path: Path, server: MisbehavingServer, quick: None, read: list[str], version: dict[str, Any]
) -> None:
    """Without a version of the tar, nothing tells that it is unchanged, so it is read again."""
    place, out = f"{server.url('/set')}/{{a,b,c}}.tar", tmp_path / "out"
    for path in tars.iterdir():
        server.add(f"/set/{path.name}", reply(path.read_bytes(), **version))
    fail(place, out=out)
    repair(tars)
    server.add("/set/c.tar", reply((tars / "c.tar").read_bytes(), **version))
    adopt(place, out=out)
    assert read[3:] == (["c.tar"] if version else ["a.tar", "b.tar", "c.tar"])
    assert verify_shards(out, 1, CacheOptions(tmp_path / "cache"))[1] == []


def test_a_changed_tar_at_a_url_is_read_again(
    tars: Path, tmp_path: Path, server: MisbehavingServer, quick: None, read: list[str]
) -> None:
    place, out = f"{server.url('/set')}/{{a,b,c}}.tar", tmp_path / "out"
    for path in tars.iterdir():
        server.add(f"/set/{path.name}", reply(path.read_bytes(), ETag='"1"'))
    fail(place, out=out)
    repair(tars)
    for name in ("b.tar", "c.tar"):
        server.add(f"/set/{name}", reply((tars / name).read_bytes(), ETag='"2"'))
    adopt(place, out=out)
    assert read[3:] == ["b.tar", "c.tar"]


# --- real processes


@pytest.fixture
def slow(tmp_path: Path, server: MisbehavingServer) -> Iterator[str]:
    """Six tars at a URL. The third and the later ones come slowly."""
    for number in range(6):
        tar = pack(tmp_path / "tars" / f"{number}.tar", f"{number}x", **{f"{number}x": {"genres": ["War"]}})
        good = reply(tar.read_bytes(), ETag='"1"')
        server.add(f"/set/{number}.tar", good if number < 2 else slowly(1.0, good))
    yield f"{server.url('/set')}/{{0..5}}.tar"


def start(place: str, out: Path, workers: int) -> subprocess.Popen[str]:
    words = ["shards", "index", place, "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(
        [sys.executable, "-m", "toolkit", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(), start_new_session=True,
    )  # fmt: skip


def wait_for_kept(out: Path, count: int) -> None:
    until = time.monotonic() + 60
    while len(list((out / WORK).glob("*.contents"))) < count:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("end", "workers"),
    [
        (signal.SIGKILL, 2),
        (signal.SIGTERM, 1),
        *(pytest.param(*end, marks=pytest.mark.long) for end in ((signal.SIGKILL, 1), (signal.SIGINT, 2))),
    ],
)
def test_a_killed_run_goes_on(
    slow: str, tmp_path: Path, server: MisbehavingServer, end: signal.Signals, workers: int
) -> None:
    out = tmp_path / "out"
    process = start(slow, out, workers)
    wait_for_kept(out, 2)
    os.kill(process.pid, end)
    _, err = process.communicate(timeout=60)
    status = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: -15}[end]
    assert process.returncode == status and "Traceback" not in err
    kept = {path: path.stat().st_mtime_ns for path in (out / WORK).glob("*.contents")}
    assert len(kept) >= 2 and not (out / "manifest.json").exists()
    before = {number: server.requests[f"/set/{number}.tar"] for number in range(6)}
    write_file(out / WORK / "download-left" / "x.tar", b"of a killed run")
    for path in list(server.routes):
        server.add(path, reply((tmp_path / "tars" / path.rpartition("/")[2]).read_bytes(), ETag='"1"'))
    done = posters("shards", "index", slow, "--out", out, "--workers", workers)
    assert done.returncode == 0, done.stderr
    assert f"{len(kept)} of 6 tars were read by an earlier run and are not read again" in done.stderr
    for number in range(6):
        asked = server.requests[f"/set/{number}.tar"] - before[number]
        was_kept = out / WORK / f"{fingerprint(f'{number}.tar')[:32]}.contents" in kept
        assert 1 <= asked <= 2 if was_kept else asked > 2  # the size alone, or also the bytes
    assert not (out / WORK).exists() and len(Manifest.read(out).shards) == 6
    adopt(tmp_path / "tars", out=tmp_path / "whole")
    names = {name for name in tree(out) if name != "manifest.json"}
    assert {name: tree(out)[name] for name in names} == {name: tree(tmp_path / "whole")[name] for name in names}


def test_a_second_run_at_the_same_time_is_refused(slow: str, tmp_path: Path) -> None:
    process = start(slow, tmp_path / "out", 1)
    try:
        wait_for_kept(tmp_path / "out", 1)
        with fails("path-locked", "another process is working in"):
            adopt(slow, out=tmp_path / "out")
    finally:
        process.kill()
        process.communicate()


def test_a_finished_set_has_no_kept_contents_and_its_files_stay(tars: Path) -> None:
    repair(tars)
    adopt(tars)
    times = mtimes(tars, "*.parquet")
    adopt(tars)
    assert mtimes(tars, "*.parquet") == times and not (tars / WORK).exists()
