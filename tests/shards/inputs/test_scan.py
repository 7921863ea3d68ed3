"""The check of all posters, and the answers that a restart may reuse."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from shard_tools import Source, draw, draw_posters, encoded, mtimes, write_file

from shards.executors.local import LocalExecutor
from shards.inputs.duplicates import perceptual_hashes
from shards.inputs.images import ImageOptions
from shards.inputs.scan import CHUNK, Scan, scan_images

pytest_plugins = ("shard_fixtures",)

OPTIONS = ImageOptions()


@pytest.fixture
def own(tmp_path: Path) -> Source:
    return draw_posters(tmp_path / "own", 10)


def scan(source: Source, work: Path, ids: list[str] | None = None, workers: int = 1, chunk: int = CHUNK) -> Scan:
    ids = ids or list(source.good)
    return scan_images(source.images, ids, OPTIONS, work, LocalExecutor(workers), chunk=chunk)


def test_good_and_bad_in_file_order(source: Source, tmp_path: Path) -> None:
    bad = {i: r for i, r in source.bad.items() if r not in ("no genres", "unparsable genres", "bad id", "repeated id")}
    ids = [*bad, *source.good]
    found = scan(source, tmp_path, ids, chunk=16)
    assert [(r.id, r.reason) for r in found.rejected] == list(bad.items())
    assert list(found.digests) == list(found.hashes) == list(found.signatures) == list(source.good)


def test_answers_are_of_the_files(own: Source, tmp_path: Path) -> None:
    found = scan(own, tmp_path / "work")
    data = (own.images / "p0003.jpg").read_bytes()
    assert found.digests["p0003"] == hashlib.sha256(data).hexdigest()
    assert len(set(found.hashes.values())) == 10 and found.hashes["p0003"] < 1 << 64
    assert (perceptual_hashes(draw("p0003"))[0] ^ found.hashes["p0003"]).bit_count() <= 4  # but for JPEG's loss


def test_workers_and_chunks_play_no_part(source: Source, tmp_path: Path) -> None:
    ids = list(source.good)
    one = scan(source, tmp_path / "a", ids, chunk=7)
    assert (
        one == scan(source, tmp_path / "b", ids, chunk=1000) == scan(source, tmp_path / "c", ids, chunk=20, workers=2)
    )


def test_a_restart_reuses_answers(own: Source, tmp_path: Path) -> None:
    first = scan(own, tmp_path / "work", chunk=4)
    before = mtimes(tmp_path / "work", "*.json")
    assert len(before) == 3
    (tmp_path / "work" / "scan-000001.json").write_text('{"state": "cut')  # as no atomic write would leave it
    assert scan(own, tmp_path / "work", chunk=4) == first
    after = mtimes(tmp_path / "work", "*.json")
    assert [name for name in before if before[name] != after[name]] == ["scan-000001.json"]


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"state": 1, "answer": []}'])
def test_foreign_answers_are_not_used(own: Source, tmp_path: Path, content: str) -> None:
    write_file(tmp_path / "work" / "scan-000000.json", content.encode())
    assert len(scan(own, tmp_path / "work").digests) == 10


def test_a_changed_file_or_option_is_checked_again(own: Source, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = scan(own, work)
    stat = (own.images / "p0001.jpg").stat()
    write_file(own.images / "p0001.jpg", encoded(draw("another")))
    os.utime(own.images / "p0001.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = scan(own, work)
    assert [i for i in first.digests if first.digests[i] != changed.digests[i]] == ["p0001"]
    strict = scan_images(own.images, list(own.good), ImageOptions(min_side=61), work, LocalExecutor(1))
    assert [r.reason for r in strict.rejected] == ["too small"] * 10
    (own.images / "p0002.jpg").unlink()
    assert [(r.id, r.reason) for r in scan(own, work).rejected] == [("p0002", "missing file")]


def test_answers_of_other_rules_are_not_used(own: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of earlier versions know one way round of a picture: none of them stands beside one of this version."""
    work = tmp_path / "work"
    first = scan(own, work, chunk=4)
    with monkeypatch.context() as earlier:
        earlier.setattr("shards.inputs.scan.RULES", 2)
        scan(own, work, chunk=4)
    old = work / "scan-000001.json"
    raw = json.loads(old.read_text())
    raw["answer"] = [[row[0], row[1], row[2][:16], *row[3:]] for row in raw["answer"]]
    old.write_text(json.dumps(raw))
    assert scan(own, work, chunk=4) == first


def test_answers_are_whole_files(own: Source, tmp_path: Path) -> None:
    scan(own, tmp_path / "work", chunk=4)
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == [f"scan-{n:06d}.json" for n in range(3)]
    assert len(json.loads((tmp_path / "work" / "scan-000002.json").read_text())["answer"]) == 2
