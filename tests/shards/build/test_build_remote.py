"""Builds from and to URLs: the same bytes as from and to folders, few questions to the store, one run at a time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from remote_tools import new_bucket
from shard_tools import Source, build, draw, draw_posters, encoded, posters, tree
from text_tools import one_line_error
from url_tools import at_url, remote_tree

from shards.inputs import listing
from shards.inputs.listing import list_posters, list_sizes
from shards.storage import remote_files as remote
from shards.storage.files import PARTIAL
from shards.storage.lock import folder_lock
from shards.storage.paths import storage_path

pytest_plugins = ("shard_fixtures",)


@pytest.fixture(scope="module")
def there(s3_address: str, source: Source) -> Source:
    """``source`` at a URL: odd ids, duplicates, every kind of bad row. Read-only."""
    return at_url(source, new_bucket())


@pytest.fixture(scope="module")
def few_there(s3_address: str, few: Source) -> Source:
    return at_url(few, new_bucket())


@pytest.fixture
def requests(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """``METHOD /path`` of every request to the server, which is in this process."""
    seen: list[str] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logger, reader = logging.getLogger("werkzeug"), Reader()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(reader)
    yield seen
    logger.removeHandler(reader)
    logger.setLevel(level)


def test_from_url_to_url(there: Source, shard_set: Path, bucket: str) -> None:
    assert remote_tree(build(there, storage_path(f"{bucket}/sets/a")) and storage_path(f"{bucket}/sets/a")) == tree(
        shard_set
    )


def test_from_url_to_folder(there: Source, shard_set: Path, tmp_path: Path) -> None:
    build(there, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(shard_set)


def test_the_command_with_two_processes(few: Source, few_there: Source, few_shards: Path, bucket: str) -> None:
    out = f"{bucket}/set"
    command = ("shards", "build", "--metadata", few_there.csv, "--out", out, "--samples-per-shard", 8)
    done = posters(*command, "--images", few.images, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert out in done.stdout and remote_tree(storage_path(out)) == tree(few_shards)
    with fails("path-exists", out, "--overwrite"):
        build(few_there, storage_path(out), samples_per_shard=8, seed=1)
    assert remote_tree(storage_path(out)) == tree(few_shards)
    done = posters(*command, "--images", few_there.images, "--labels", f"{out}/manifest.json", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 shards were finished before" in done.stderr


def test_a_build_that_stopped_goes_on(few_there: Source, few_shards: Path, bucket: str) -> None:
    out: Any = storage_path(f"{bucket}/set")
    build(few_there, out, samples_per_shard=8)
    (out / "manifest.json").unlink()
    (out / "train-00001.index.parquet").unlink()  # killed between the tar and its index
    (out / "val-00000.tar").unlink()
    before = {name: out.fs.info(f"{out.path}/{name}")["LastModified"] for name in ("train-00000.tar", "test-00000.tar")}
    build(few_there, out, samples_per_shard=8)
    assert remote_tree(out) == tree(few_shards)
    assert before == {name: out.fs.info(f"{out.path}/{name}")["LastModified"] for name in before}


def test_answers_of_the_check_are_used_while_files_stay_as_they_are(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, requests: list[str]
) -> None:
    local = draw_posters(tmp_path, 12)
    source = at_url(local, bucket)
    out = storage_path(f"{bucket}/set")
    monkeypatch.setattr("shards.build.run.plan_shards", _stop)
    for changed, read in ((False, 12), (False, 0), (True, 12)):
        if changed:
            (source.images / "p0003.jpg").write_bytes(encoded(draw("another")))
        requests.clear()
        with pytest.raises(Stopped):
            build(source, out)
        assert sum(_is(line, "GET", "raw/posters/p") for line in requests) == read
        # No question for every name that a poster may have, nor for its size.
        assert not [line for line in requests if _is(line, "HEAD", "raw/posters/p")]
        assert sum("list-type=2&prefix=raw/posters" in line for line in requests) <= 3
    monkeypatch.undo()
    (local.images / "p0003.jpg").write_bytes(encoded(draw("another")))
    build(source, out)
    build(local, tmp_path / "out")
    assert remote_tree(out) == tree(tmp_path / "out")


class Stopped(Exception):
    """In place of a kill."""


def _stop(*_: object) -> None:
    raise Stopped


def _is(line: str, method: str, path: str) -> bool:
    return f"{method} /" in line and path in line and "list-type" not in line


def test_one_run_at_a_time(few_there: Source, bucket: str) -> None:
    out = storage_path(f"{bucket}/set")
    with folder_lock(out):
        with fails("path-locked", out):
            build(few_there, out)
        claim = json.loads((out / ".lock").read_bytes())
    assert not (out / ".lock").exists()
    # A run on this machine was killed: its claim is known to be a dead one's.
    (out / ".lock").write_bytes(json.dumps(claim | {"token": "another", "pid": 1}).encode())
    with folder_lock(out):
        assert json.loads((out / ".lock").read_bytes())["pid"] == os.getpid()
    # One on another machine may be alive.
    foreign = json.dumps(claim | {"token": "another", "machine": "there/1", "host": "there", "pid": 7}).encode()
    (out / ".lock").write_bytes(foreign)
    with fails("path-locked", out, "process 7 on there", "--break-lock"):
        build(few_there, out)
    assert (out / ".lock").read_bytes() == foreign
    build(few_there, out, break_lock=True)
    assert not (out / ".lock").exists() and (out / "manifest.json").exists()


def test_places_that_are_not_there(few: Source, few_there: Source, bucket: str, tmp_path: Path) -> None:
    def line(**places: Any) -> str:
        changed = {"images": few_there.images, "csv": few_there.csv, "out": tmp_path / "out", **places}
        return one_line_error(lambda: build(Source(changed["images"], changed["csv"], {}, {}), changed["out"]))

    assert "image folder not found" in line(images=storage_path(f"{bucket}/absent"))
    assert "image folder not found" in line(images=storage_path("s3://no-such-bucket-here/x"))
    assert "metadata not found" in line(csv=storage_path(f"{bucket}/absent.csv"))
    with fails("path-unwritable", "no-such-bucket-here", "bucket first"):
        build(few_there, storage_path("s3://no-such-bucket-here/set"))
    with fails("url-refused", "http://127.0.0.1:9/set"):
        build(few_there, storage_path("http://127.0.0.1:9/set"))
    assert "names a file in" in line(images=few_there.images.parent)


def test_listing_in_groups(bucket: str, monkeypatch: pytest.MonkeyPatch, requests: list[str]) -> None:
    monkeypatch.setattr(listing, "GROUP", 12)
    folder = storage_path(f"{bucket}/posters")
    names = [f"tt{number:03d}.jpg" for number in range(0, 40, 2)] + ["a.png", "sub/a.JPG", "tt01.jpeg", "x.jpg"]
    for name in [*names, "x.jpg.png", "other/folder.jpg", "tt9.txt"]:
        (folder / name).write_bytes(name.encode())
    ids = [f"tt{number:03d}" for number in range(40)] + ["a", "sub/a", "tt01", "tt", "x.jpg", "./sub//a", "tt9", "é"]
    requests.clear()
    found = list_posters(folder, ids)
    assert {i: file.name for i, file in found.items()} == {
        **{f"tt{number:03d}": f"tt{number:03d}.jpg" for number in range(0, 40, 2)},
        "a": "a.png",
        "sub/a": "sub/a.JPG",
        "./sub//a": "sub/a.JPG",
        "tt01": "tt01.jpeg",
        "x.jpg": "x.jpg.png",
    }
    listings = [line for line in requests if "list-type=2" in line]
    assert 5 < len(listings) < len(ids) / 2
    assert list_sizes(folder, [*names, "absent.jpg"]) == {name: len(name) for name in names}
    assert list_sizes(storage_path(f"{bucket}/absent"), names) == {}
    before = found["tt002"].state
    (folder / "tt002.jpg").write_bytes(b"otherwise")  # as long as it was
    assert list_posters(folder, ["tt002"])["tt002"].state != before


def test_a_store_without_whole_puts(
    few: Source, few_shards: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere a file is put under another name, and moved when it is whole."""
    monkeypatch.setattr(remote, "ATOMIC_PUT", ())
    out: Any = storage_path(f"{bucket}/set")
    put = out.fs.put_file
    seen: set[str] = set()

    def watched(source: str, target: str, **options: Any) -> None:
        assert target.endswith(PARTIAL)
        seen.add(target)
        if "val-00000.tar" in target and not broken:
            broken.append(target)
            put(source, target, **options)
            raise ConnectionError("the line was cut")
        put(source, target, **options)

    broken: list[str] = []
    monkeypatch.setattr(out.fs, "put_file", watched)
    build(few, out, samples_per_shard=8)
    assert broken and len(seen) > 10
    assert remote_tree(out) == tree(few_shards)
