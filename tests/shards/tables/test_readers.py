"""Files and folders that are no table, or several: one line with the remedy that fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from failing import fails
from shard_tools import draw

from shards.errors import Code
from shards.tables.metadata import GenreOptions, read_metadata
from shards.tables.readers import open_table
from shards.tables.table import SampleColumns

#: Name of a file, its content, and what the line says.
FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "cut Parquet": ("m.parquet", b"PAR1\x00\x00", ["cannot be read as Parquet", "copy it again"]),
    "cut JSON": ("m.json", b'[{"id": "p1", "genres": ["Dr', ["not valid JSON", "json.dumps of Python"]),
    "JSON of numbers": ("m.json", b"[1, 2]", ["not a list of records", "one record on each line"]),
    "empty JSON": ("m.json", b"[]", ["not a list of records"]),
    "empty JSON lines": ("m.jsonl", b"", ["no columns"]),
    "a bad line": ("m.jsonl", b'{"id": "p1", "genre": "War"}\n{"id": p2}\n', ["line 2 is not a JSON object"]),
    "a line with a list": ("m.jsonl", b'{"id": "p1"}\n[1]\n', ["line 2 is not a JSON object"]),
    "deep JSON": ("m.json", b"[" * 100_000, ["not valid JSON"]),
    "several lists": ("m.csv", b"id,genre,tags\n1,War,x\n", ["several columns", "--genre-column"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path: Path, kind: str) -> None:
    name, data, parts = FILES[kind]
    (tmp_path / name).write_bytes(data)
    with fails("table-column" if kind == "several lists" else "table-unreadable", name, *parts) as caught:
        read_metadata(tmp_path / name)
    assert "--encoding" not in str(caught)


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw(name, 40, 40).save(folder / name)
    return folder


def beside(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text('{"genres": ["War"]}' if name.endswith(".json") else "War")


def two_kinds(folder: Path) -> None:
    images(folder, "a.jpg", "b.jpg")
    beside(folder, "a.json", "b.json", "a.txt", "b.txt")


def two_tables(folder: Path) -> None:
    images(folder, "a.jpg")
    beside(folder, "metadata.csv", "metadata.jsonl")


def loose_image(folder: Path) -> None:
    images(folder, "War/a.jpg", "Drama/b.jpg", "c.jpg")


#: Function that fills a folder, and what the line says.
FOLDERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "empty": (lambda folder: None, ["has no genres (0 images", "--metadata TABLE"]),
    "images alone": (lambda folder: images(folder, "a.jpg", "b.jpg"), ["has no genres (2 images"]),
    "splits alone": (lambda folder: images(folder, "train/a.jpg", "val/b.jpg"), ["has no genres (2 images"]),
    "json and txt": (two_kinds, ["json-files, txt-files", "--metadata-format"]),
    "two tables": (two_tables, ["several tables (metadata.csv, metadata.jsonl)", "--metadata "]),
    "an image in no class": (loose_image, ["has no genres (3 images"]),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(tmp_path: Path, kind: str) -> None:
    fill, parts = FOLDERS[kind]
    fill(tmp_path)
    with fails("table-unreadable", tmp_path, *parts):
        read_metadata(tmp_path)


def test_the_format_that_was_chosen_is_used(tmp_path: Path) -> None:
    two_kinds(tmp_path)
    for form in ("json-files", "txt-files"):
        found = read_metadata(tmp_path, GenreOptions(metadata_format=form), strict=False)
        assert [row.id for row in found.rows] == ["a", "b"]
    with fails("table-unreadable", "a.jpg is in no subfolder of a genre"):
        read_metadata(images(tmp_path, "War/c.jpg", "c.jpg"), GenreOptions(metadata_format="class-folders"))
    with fails("option-conflict", "is a folder", "--metadata-format csv"):
        read_metadata(tmp_path, GenreOptions(metadata_format="csv"))
    (tmp_path / "m.csv").write_text("id,genre\na,War\n")
    with fails("option-conflict", "is a file", "--metadata-format txt-files"):
        read_metadata(tmp_path / "m.csv", GenreOptions(metadata_format="txt-files"))


def test_options_without_a_meaning_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"id": ["p1"], "genre": ["War"]}).to_parquet(tmp_path / "m.parquet")
    (tmp_path / "m.jsonl").write_text('{"id": "p1", "genre": "War"}\n')
    for name, options, flag in (
        ("m.parquet", GenreOptions(encoding="latin-1"), "--encoding"),
        ("m.parquet", GenreOptions(delimiter=";"), "--delimiter"),
        ("m.jsonl", GenreOptions(delimiter=";"), "--delimiter"),
    ):
        with fails("option-conflict", name, f"{flag} has no meaning", "leave the option out"):
            read_metadata(tmp_path / name, options)


def test_an_unreadable_file_of_one_image_is_a_rejected_row(tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    beside(tmp_path, "a.json", "b.json")
    (tmp_path / "c.json").write_text('{"genres": ["Dra')
    (tmp_path / "d.json").write_text("[1]")
    found = read_metadata(tmp_path, strict=False)
    assert [row.id for row in found.rows] == ["a", "b"]
    assert [(r.id, r.reason) for r in found.rejected] == [("c", "bad row"), ("d", "bad row")]
    assert "c.json cannot be read" in found.rejected[0].detail and "not a JSON object" in found.rejected[1].detail


def test_a_multi_hot_cell_that_is_no_flag_is_a_rejected_row(tmp_path: Path) -> None:
    rows = "".join(f"p{n},{n % 2},{1 - n % 2}\n" for n in range(600))
    (tmp_path / "m.csv").write_text(f"id,Drama,War\n{rows}x,0.7,1\ny,,1\nz,0,0\n")
    found = read_metadata(tmp_path / "m.csv")
    assert len(found.rows) == 600 and found.rows[0].genres == ("War",)
    assert [(r.id, r.reason) for r in found.rejected] == [
        ("x", "unparsable genres"),
        ("y", "unparsable genres"),
        ("z", "no genres"),
    ]
    assert "column 1 'Drama' has '0.7', which is not 0 or 1" in found.rejected[0].detail


def test_label_columns_choose_among_the_flags(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,adult,Drama,War\n1,1,1,0\n2,0,0,1\n")
    found = read_metadata(tmp_path / "m.csv", GenreOptions(label_columns=("Drama", "3")))
    assert [row.genres for row in found.rows] == [("Drama",), ("War",)]
    with fails("option-conflict", "--genre-column and --label-columns"):
        read_metadata(tmp_path / "m.csv", GenreOptions(label_columns=("Drama",), genre_column="War"))
    with fails("table-column", "no column 'Wra'", "--label-columns"):
        read_metadata(tmp_path / "m.csv", GenreOptions(label_columns=("Wra",)))


@pytest.mark.parametrize("value", [[{"id": "p1", "g": None}], {"data": [{"id": "p1", "g": float("nan")}]}])
def test_missing_values_are_empty_cells(tmp_path: Path, value: object) -> None:
    (tmp_path / "m.json").write_text(json.dumps(value))
    with open_table(tmp_path / "m.json") as table:
        assert table.header == ["id", "g"] and list(table.rows) == [(1, ["p1", ""])]


def test_an_odd_cell_drops_no_genre(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,Action,Drama,Comedy\n1,0,1,0\n2,0,1,1\n3,0,3,1\n4,1,0,1\n")
    found = read_metadata(tmp_path / "m.csv")
    assert [row.genres for row in found.rows] == [("Drama",), ("Drama", "Comedy"), ("Action", "Comedy")]
    assert [(r.id, r.reason) for r in found.rejected] == [("3", "unparsable genres")]


@pytest.mark.parametrize(
    ("header", "code", "part"),
    [("1,0,1,0", "table-unreadable", "has no header line"), ("id,War,Drama,War", "table-column", "of the genre")],
)
def test_names_of_flag_columns(tmp_path: Path, header: str, code: Code, part: str) -> None:
    (tmp_path / "m.csv").write_text(f"{header}\n1,0,1,0\n2,1,0,1\n")
    with fails(code, "m.csv", part):
        read_metadata(tmp_path / "m.csv")


def test_folders_beside_those_of_splits_are_refused(tmp_path: Path) -> None:
    images(tmp_path, "train/War/a.jpg", "test/Drama/b.jpg", "__MACOSX/train/War/a.jpg", ".thumbs/a.jpg")
    found = read_metadata(tmp_path)
    assert [(row.id, row.genres, row.split) for row in found.rows] == [
        ("b", ("Drama",), "test"),
        ("a", ("War",), "train"),
    ]
    images(tmp_path, "sample/War/c.jpg")
    with fails("table-unreadable", "has folders of splits", "sample/War/c.jpg is in none of them"):
        read_metadata(tmp_path)


def test_tables_of_splits_can_have_different_columns(tmp_path: Path) -> None:
    images(tmp_path, "data/train/a.jpg", "data/test/sub/b.jpg")
    (tmp_path / "data/train/metadata.jsonl").write_text('{"file_name": "a.jpg", "genre": "War"}\n')
    (tmp_path / "data/test/metadata.jsonl").write_text(
        '{"note": "x\u2028y", "genre": "Drama", "file_name": "sub\\\\b.jpg"}\n'
    )
    found = read_metadata(tmp_path, strict=False)
    assert [(r.id, r.path, r.genres, r.split) for r in found.rows] == [
        ("b", "data/test/sub/b.jpg", ("Drama",), "test"),
        ("a", "data/train/a.jpg", ("War",), "train"),
    ]


def test_names_of_files_with_tags(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "a.jpg.txt").write_text("War Drama\nold_war\n")
    (tmp_path / "b.TXT").write_text("War")
    found = read_metadata(tmp_path, GenreOptions(genre_separator=" "))
    assert [(row.id, row.genres) for row in found.rows] == [("a", ("War", "Drama", "old_war")), ("b", ("War",))]
    assert "1 of 3 images" in caplog.text


def test_splits_and_groups_of_joined_rows_agree(tmp_path: Path) -> None:
    rows = "".join(f"{n},War,train,None\n{n},Drama,train,nan\n" for n in range(9))
    (tmp_path / "m.csv").write_text(f"id,genre,split,film\n{rows}x,War,train,1\nx,Drama,test,1\ny,War,nan,1\n")
    found = read_metadata(
        tmp_path / "m.csv", strict=False, others=SampleColumns(split_column="split", group_column="film")
    )
    assert len(found.rows) == 9 and {row.group for row in found.rows} == {""}
    assert [(r.id, r.reason) for r in found.rejected] == [
        ("x", "conflicting rows"),
        ("x", "conflicting rows"),
        ("y", "no split"),
    ]
