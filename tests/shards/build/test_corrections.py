"""``posters shards build --corrections FILE``: whose genres change, what is recorded, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
from failing import fails
from shard_tools import Source, build, draw_posters, read_csv, samples, tree, write_csv

from shards.build.dry_run import dry_run
from shards.build.run import BuildOptions
from shards.dataset.manifest import Manifest
from shards.storage.files import sha256_file

HEADER = ("id", "genres")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return draw_posters(tmp_path_factory.mktemp("plain"), 12)


def table(folder: Path, rows: Iterable[tuple[str, str]], header: tuple[str, ...] = HEADER) -> Path:
    return write_csv(folder / "corrections.csv", rows, header)


def test_the_lists_replace_the_genres_and_the_set_says_so(plain: Source, tmp_path: Path):
    same = "|".join(reversed(plain.good["p0002"]))
    rows = [("p0000.jpg", "Western|Comedy"), ("p0001", "['Drama', 'Western']"), ("p0002", same)]
    path = table(tmp_path, rows)
    out = tmp_path / "out"
    build(plain, out, corrections=path)
    found = {sample_id: set(sample["genres"]) for sample_id, sample in samples(out).items()}
    changed = {"p0000": {"Western", "Comedy"}, "p0001": {"Drama", "Western"}}
    assert found == {sample_id: set(genres) for sample_id, genres in plain.good.items()} | changed
    facts = {"sha256": sha256_file(path), "rows": 3, "changed": 2}
    assert Manifest.read(out).source["corrections"] == facts
    assert read_csv(out / "corrections-applied.csv") == [
        {"id": "p0000", "before": "|".join(plain.good["p0000"]), "after": "Western|Comedy"},
        {"id": "p0001", "before": "|".join(plain.good["p0001"]), "after": "Drama|Western"},
    ]
    before = tree(out)
    build(plain, out, corrections=path)  # the same set again
    assert tree(out) == before
    options = BuildOptions(metadata=plain.csv, images=plain.images, out=tmp_path / "none", corrections=path)
    assert next(row for row in dry_run(options).rows if row.id == "p0000").genres == ("Western", "Comedy")


def test_other_corrections_are_another_set(plain: Source, tmp_path: Path):
    out = tmp_path / "out"
    build(plain, out, corrections=table(tmp_path, [("p0000", "Western")]))
    with fails("path-exists", "already contains other shards"):
        build(plain, out, corrections=table(tmp_path, [("p0000", "Western|Comedy")]))
    with fails("path-exists", "already contains other shards"):
        build(plain, out)
    build(plain, out, overwrite=True)
    assert "corrections" not in Manifest.read(out).source and not (out / "corrections-applied.csv").exists()


def test_a_new_genre_is_said(plain: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    build(plain, tmp_path / "out", corrections=table(tmp_path, [("p0003", "Comdy")]))
    assert "'Comdy'; did you mean 'Comedy'?" in caplog.text and "Comdy" in Manifest.read(tmp_path / "out").genres


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        (("poster", "genres"), [("p0000", "War")], "has 0 columns named 'id'"),
        (("id", "genre"), [("p0000", "War")], "has 0 columns named 'genres'"),
        (HEADER, [("p0000", "War"), ("q", "War")], "no usable row for 'q'"),
        (HEADER, [("p000O", "War")], "did you mean 'p00"),
        (HEADER, [("p0000", "")], "cannot be used: no genres"),
        (HEADER, [("p0000", "War"), ("p0001", "Drama"), ("p0000", "Drama")], "several rows with different genres"),
        (HEADER, [("p0000", "War|Drama"), ("p0000", "Drama")], "conflicting rows"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    plain: Source, tmp_path: Path, header: tuple[str, ...], rows: list[tuple[str, str]], words: str
):
    path = table(tmp_path, rows, header)
    with fails("table-column" if "columns named" in words else "table-row", words) as raised:
        build(plain, tmp_path / "out", corrections=path)
    assert f"--corrections {path}" in str(raised.value) and not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_file_is_one_line(plain: Source, tmp_path: Path):
    with fails("path-missing", "name a CSV with columns id and genres"):
        build(plain, tmp_path / "out", corrections=tmp_path / "absent.csv")


def test_the_label_errors_of_a_report_fit(plain: Source, tmp_path: Path):
    header = ("id", "score", "genre", "given", "probability", "genres")
    path = write_csv(tmp_path / "label-errors.csv", [("p0000", 0.1, "War", True, 0.2, "Western|War")] * 2, header)
    options = BuildOptions(metadata=plain.csv, images=plain.images, out=tmp_path / "none", corrections=path)
    assert next(row for row in dry_run(options).rows if row.id == "p0000").genres == ("Western", "War")
