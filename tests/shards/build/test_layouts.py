"""Each layout of users' data gives the same tars and indexes as the plain CSV."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing import fails
from shard_tools import draw_posters, write_csv

from shards.build.dry_run import dry_run
from shards.build.run import BuildOptions, build_shards
from shards.dataset.index import read_index
from shards.tables.metadata import read_metadata

#: Labelled posters that some machines have beside the project.
REAL = Path(__file__).resolve().parents[4] / "shared" / "posters"
Posters = Mapping[str, Sequence[str]]


@pytest.fixture(scope="module")
def posters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """(folder of images, genres by id) of 60 posters: real ones if the machine has them, else drawn ones."""
    folder = tmp_path_factory.mktemp("posters") / "images"
    if REAL.is_dir():
        with open(REAL / "meta_processed.csv", newline="", encoding="utf-8") as stream:
            rows = [(row["poster_id"], read_list(row["genre"])) for row in csv.DictReader(stream)]
        found = [(i, genres) for i, genres in rows if (REAL / "images" / f"{i}.jpg").exists()][:60]
        folder.mkdir()
        for sample_id, _ in found:
            shutil.copy(REAL / "images" / f"{sample_id}.jpg", folder)
        return folder, dict(found)
    source = draw_posters(folder.parent, 60)
    return source.images, {row.id: list(row.genres) for row in read_metadata(source.csv).rows}


def read_list(text: str) -> list[str]:
    return list(json.loads(text.replace("'", '"')))


def built(out: Path, **options: Any) -> dict[str, Any]:
    """Build a set, and return the digest of each tar and the content of its index."""
    build_shards(BuildOptions(out=out, workers=1, samples_per_shard=20, **options))
    tars = sorted(out.glob("*.tar"))
    return {tar.name: (hashlib.sha256(tar.read_bytes()).hexdigest(), read_index(tar)[0].to_pylist()) for tar in tars}


@pytest.fixture(scope="module")
def plain(posters: tuple[Path, Posters], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    images, genres = posters
    folder = tmp_path_factory.mktemp("plain")
    table = write_csv(folder / "m.csv", [(i, "|".join(of)) for i, of in genres.items()], ("id", "genre"))
    found = built(folder / "out", images=images, metadata=table)
    assert len(found) == 5 and sum(len(index) for _, index in found.values()) == 60
    return found


def rows_csv(path: Path, header: str, rows: Sequence[Sequence[str]], encoding: str = "utf-8", sep: str = ",") -> Path:
    with open(path, "w", newline="", encoding=encoding) as stream:
        csv.writer(stream, delimiter=sep).writerows([header.split(","), *rows])
    return path


def multi_hot(posters: Posters) -> tuple[list[str], list[list[int]]]:
    names = sorted({genre for genres in posters.values() for genre in genres})
    return names, [[int(name in genres) for name in names] for genres in posters.values()]


def text(posters: Posters, mark: str) -> list[tuple[str, str]]:
    return [(sample_id, mark.join(genres)) for sample_id, genres in posters.items()]


def flags(path: Path, posters: Posters) -> Path:
    names, cells = multi_hot(posters)
    rows = [[i, *map(str, row)] for i, row in zip(posters, cells, strict=True)]
    return rows_csv(path / "m.csv", ",".join(["id", *names]), rows)


def records(posters: Posters) -> list[dict[str, Any]]:
    return [{"id": sample_id, "title": "A title", "genres": list(genres)} for sample_id, genres in posters.items()]


def lines(path: Path, values: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def parquet(path: Path, posters: Posters) -> Path:
    table = pa.table(
        {
            "image": [{"bytes": b"\xff\xd8", "path": "x.jpg"} for _ in posters],
            "poster_id": list(posters),
            "genre": [list(genres) for genres in posters.values()],
        }
    )
    pq.write_table(table, path)
    return path


#: Name of a layout → function of (folder, posters) that writes it and returns its path.
TABLES: dict[str, Callable[[Path, Posters], Path]] = {
    "semicolons, latin-1": lambda f, p: rows_csv(
        f / "m.csv", "imdbId,Title,Genre", [(i, "Amélie", g) for i, g in text(p, "|")], "latin-1", ";"
    ),
    "tabs, utf-16": lambda f, p: rows_csv(f / "m.tsv", "tconst,genres", text(p, ","), "utf-16", "\t"),
    "byte order mark": lambda f, p: rows_csv(f / "m.csv", "id,genre", text(p, ", "), "utf-8-sig"),
    "other columns first": lambda f, p: rows_csv(
        f / "m.csv", "title,id,genre", [("T", i, g) for i, g in text(p, ";")], sep="|"
    ),
    "slashes": lambda f, p: rows_csv(f / "m.csv", "id,category", text(p, "/")),
    "lists of dicts": lambda f, p: rows_csv(
        f / "m.csv", "id,genres", [(i, repr([{"id": 18, "name": g} for g in of])) for i, of in p.items()]
    ),
    "numpy lists": lambda f, p: rows_csv(
        f / "m.csv", "id,genres", [(i, "[" + " ".join(map(repr, of)) + "]") for i, of in p.items()]
    ),
    "0 and 1": flags,
    "row numbers of pandas": lambda f, p: (
        pd.DataFrame({"poster_id": list(p), "genre": ["|".join(of) for of in p.values()]}).to_csv(f / "m.csv"),
        f / "m.csv",
    )[1],
    "file names": lambda f, p: rows_csv(f / "m.csv", "file_name,genre", [(f"{i}.JPG", g) for i, g in text(p, "|")]),
    "paths": lambda f, p: rows_csv(f / "m.csv", "path,genre", [(f"./posters/{i}.jpg", g) for i, g in text(p, "|")]),
    "absolute paths": lambda f, p: rows_csv(
        f / "m.csv", "path,genre", [(f"/kaggle/input/posters/{i}.jpg", g) for i, g in text(p, "|")]
    ),
    "windows paths": lambda f, p: rows_csv(
        f / "m.csv", "path,genre", [(f"C:\\data\\{i}.jpg", g) for i, g in text(p, "|")]
    ),
    "json": lambda f, p: written(f / "m.json", json.dumps(records(p))),
    "json by id": lambda f, p: written(f / "m.json", json.dumps(dict(p))),
    "json columns": lambda f, p: written(f / "m.json", pd.DataFrame(records(p)).to_json()),
    "json lines": lambda f, p: lines(f / "m.jsonl", records(p)),
    "parquet": lambda f, p: parquet(f / "m.parquet", p),
    "parquet, another ending": lambda f, p: parquet(f / "m.data", p),
}


@pytest.mark.parametrize("layout", TABLES)
def test_tables(posters: tuple[Path, Posters], plain: dict[str, Any], tmp_path: Path, layout: str) -> None:
    images, genres = posters
    assert built(tmp_path / "out", images=images, metadata=TABLES[layout](tmp_path, genres)) == plain


def linked(images: Path, folder: Path, place: Callable[[str], str]) -> Path:
    """A folder with the images at other places. The place is a function of the id, without ending."""
    for image in images.iterdir():
        path = folder / f"{place(image.stem)}{image.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(image, path)
    return folder


def json_files(folder: Path, posters: Posters) -> None:
    for sample_id, genres in posters.items():
        written(folder / f"{sample_id}.json", json.dumps({"title": "T", "genres": list(genres), "cast": [{"n": 1}]}))


def txt_files(folder: Path, posters: Posters) -> None:
    for number, (sample_id, genres) in enumerate(posters.items()):
        written(folder / f"{sample_id}.txt", (", " if number % 2 else "\n").join(genres) + "\n")


#: Name of a layout → function that writes it beside the images.
BESIDE: dict[str, Callable[[Path, Posters], object]] = {
    "metadata.csv": lambda f, p: rows_csv(
        f / "metadata.csv", "file_name,genres", [(f"{i}.jpg", g) for i, g in text(p, "|")]
    ),
    "metadata.jsonl": lambda f, p: lines(
        f / "metadata.jsonl", [{"file_name": f"{i}.jpg", "genres": list(of)} for i, of in p.items()]
    ),
    "json files": json_files,
    "txt files": txt_files,
}


@pytest.mark.parametrize("layout", BESIDE)
def test_files_beside_the_images(
    posters: tuple[Path, Posters], plain: dict[str, Any], tmp_path: Path, layout: str
) -> None:
    images, genres = posters
    folder = linked(images, tmp_path / "images", str)
    BESIDE[layout](folder, genres)
    assert built(tmp_path / "out", images=folder) == plain
    assert built(tmp_path / "again", images=images, metadata=folder) == plain


def test_class_folders(posters: tuple[Path, Posters], tmp_path: Path) -> None:
    images, genres = posters
    table = write_csv(tmp_path / "m.csv", [(i, of[0]) for i, of in genres.items()], ("id", "genre"))
    single = built(tmp_path / "single", images=images, metadata=table)
    folder = linked(images, tmp_path / "images", lambda stem: f"{genres[stem][0]}/{stem}")
    assert built(tmp_path / "out", images=folder) == single


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "validation", "testing")])
def test_a_subfolder_for_each_split(posters: tuple[Path, Posters], tmp_path: Path, names: tuple[str, ...]) -> None:
    images, genres = posters
    split = {sample_id: names[min(number % 4, 2)] for number, sample_id in enumerate(genres)}
    rows = [(i, of[0], split[i]) for i, of in genres.items()]
    table = write_csv(tmp_path / "m.csv", rows, ("id", "genre", "fold"))
    single = built(tmp_path / "single", images=images, metadata=table, split_column="fold")
    folder = linked(images, tmp_path / "images", lambda stem: f"{split[stem]}/{genres[stem][0]}/{stem}")
    assert built(tmp_path / "out", images=folder) == single
    beside = linked(images, tmp_path / "beside", lambda stem: f"{split[stem]}/{stem}")
    for name in names:
        members = [{"file_name": f"{i}.jpg", "genre": of[0]} for i, of in genres.items() if split[i] == name]
        lines(beside / name / "metadata.jsonl", members)
    assert built(tmp_path / "hf", images=beside) == single


def test_images_in_subfolders_and_other_unicode_forms(
    posters: tuple[Path, Posters], plain: dict[str, Any], tmp_path: Path
) -> None:
    images, genres = posters
    folder = linked(images, tmp_path / "images", lambda stem: f"{stem[-1]}/{stem}")
    table = write_csv(tmp_path / "m.csv", text(genres, "|"), ("id", "genre"))
    assert built(tmp_path / "out", images=folder, metadata=table) == plain
    first = next(iter(genres))
    composed, apart = (unicodedata.normalize(form, "é") + first for form in ("NFC", "NFD"))
    accented = linked(images, tmp_path / "accented", lambda stem: apart if stem == first else stem)
    rows = [(composed if i == first else i, g) for i, g in text(genres, "|")]
    found = built(
        tmp_path / "nfc", images=accented, metadata=write_csv(tmp_path / "n.csv", rows, ("id", "genre")), seed=1
    )
    assert composed in {row["id"] for _, index in found.values() for row in index}


def test_ids_with_files_in_two_subfolders_are_left_out_and_said(
    posters: tuple[Path, Posters], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, genres = posters
    folder = linked(images, tmp_path / "images", lambda stem: f"a/{stem}")
    first = next(iter(genres))
    (folder / "b").mkdir()
    shutil.copy(images / f"{first}.jpg", folder / "b")
    table = write_csv(tmp_path / "m.csv", text(genres, "|"), ("id", "genre"))
    found = built(tmp_path / "out", images=folder, metadata=table)
    assert first not in {row["id"] for _, index in found.values() for row in index}
    assert f"1 ids have files in several subfolders: {first} (a, b)" in caplog.text


# --- splits and groups of the table


def test_a_group_stays_in_one_split(posters: tuple[Path, Posters], tmp_path: Path) -> None:
    images, genres = posters
    group = {sample_id: f"film {number // 3}" for number, sample_id in enumerate(genres)}
    rows = [(i, "|".join(of), group[i]) for i, of in genres.items()]
    table = write_csv(tmp_path / "m.csv", rows, ("id", "genre", "film"))
    found = built(tmp_path / "out", images=images, metadata=table, group_column="film")
    splits: dict[str, set[str]] = {}
    for name, (_, index) in found.items():
        for row in index:
            splits.setdefault(group[row["id"]], set()).add(name.partition("-")[0])
    assert len(splits) == 20 and all(len(of) == 1 for of in splits.values())
    assert set().union(*splits.values()) == {"train", "val", "test"}


def test_a_dry_run_builds_nothing(posters: tuple[Path, Posters], tmp_path: Path) -> None:
    images, genres = posters
    table = write_csv(tmp_path / "m.csv", [*text(genres, "|"), ("absent", "War"), ("none", "")], ("id", "genre"))
    options = BuildOptions(out=tmp_path / "out", images=images, metadata=table, workers=1, dry_run=True)
    plan = dry_run(options)
    assert [row.id for row in plan.rows] == list(genres) and plan.seconds > 0 and len(plan.labels) > 1
    assert {(r.id, r.reason) for r in plan.rejected} == {("absent", "missing file"), ("none", "no genres")}
    with fails("option-conflict", "dry_run builds nothing"):
        build_shards(options)
    assert not plan.problem and not (tmp_path / "out").exists()
    rows = [(i, "['Dr" if number < 20 else g) for number, (i, g) in enumerate(text(genres, "|"))]
    broken = write_csv(tmp_path / "b.csv", rows, ("id", "genre"))
    plan = dry_run(BuildOptions(out=tmp_path / "out", images=images, metadata=broken, workers=1))
    assert "a build stops: 20 of 60 rows with an image are unreadable, over --max-rejected 5%" in plan.problem
    other = write_csv(tmp_path / "n.csv", [("x1", "War"), ("x2", "Drama")], ("id", "genre"))
    with fails("table-row", "no id of", "n.csv", "--id-column"):
        dry_run(BuildOptions(out=tmp_path / "out", images=images, metadata=other, workers=1))


def test_wrong_splits_are_one_line(posters: tuple[Path, Posters], tmp_path: Path) -> None:
    images, genres = posters
    rows = [(i, "|".join(of), "train" if n % 2 else "test", "one film") for n, (i, of) in enumerate(genres.items())]
    header = ("id", "genre", "split", "film")
    table = write_csv(tmp_path / "m.csv", rows, header)
    with fails("table-row", "group 'one film' has posters in", "--group-column"):
        built(tmp_path / "out", images=images, metadata=table, split_column="split", group_column="film")
    with fails("table-row", "column 2 'split' has 'dev2', no split", "train, val"):
        other = write_csv(tmp_path / "n.csv", [*rows[1:], (*rows[0][:2], "dev2", "")], header)
        built(tmp_path / "out", images=images, metadata=other, split_column="split")
    with fails("option-conflict", "--split-column and --split-like"):
        BuildOptions(out=tmp_path, metadata=table, split_column="split", split_like=tmp_path)


def test_duplicates_in_two_splits_of_the_table_are_said(
    posters: tuple[Path, Posters], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, genres = posters
    folder = linked(images, tmp_path / "images", str)
    first = next(iter(genres))
    shutil.copy(images / f"{first}.jpg", folder / "copy.jpg")
    rows = [(i, "|".join(of), "train") for i, of in genres.items()]
    table = write_csv(tmp_path / "m.csv", [*rows, ("copy", "|".join(genres[first]), "test")], ("id", "genre", "split"))
    built(tmp_path / "out", images=folder, metadata=table, split_column="split")
    assert "1 groups of near-duplicates are in several splits of the table" in caplog.text
