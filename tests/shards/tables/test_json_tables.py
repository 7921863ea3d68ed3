"""JSON as pandas writes it: ids in the index or in a column. A remedy of a message is followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from failing import fails

from shards.tables.metadata import GenreOptions, read_metadata

GENRES = [["Drama"], ["War", "Drama"], ["Comedy"], ["War"]]
IDS = ["tt9", "tt3", "tt7", "tt5"]


def films(ids: list[str] | list[int] = IDS, name: str = "film") -> pd.DataFrame:
    return pd.DataFrame({name: ids, "genre": GENRES, "year": [1999, 2001, 1950, 1960]})


def read(path: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    return {row.id: row.genres for row in read_metadata(path, GenreOptions(**options)).rows}


WANTED = {key: tuple(genres) for key, genres in zip(IDS, GENRES, strict=True)}


@pytest.mark.parametrize("orient", ["index", "columns", "split", "table"])
def test_ids_in_the_index(tmp_path: Path, orient: Any) -> None:
    films().set_index("film").to_json(tmp_path / "m.json", orient=orient)
    assert read(tmp_path / "m.json") == WANTED


@pytest.mark.parametrize("orient", ["columns", "split", "records"])
@pytest.mark.parametrize("name", ["film", "imdb_id"])
def test_ids_in_a_column(tmp_path: Path, orient: Any, name: str) -> None:
    films(name=name).to_json(tmp_path / "m.json", orient=orient)
    assert read(tmp_path / "m.json") == WANTED
    films(name=name).drop(index=1).to_json(tmp_path / "m.json", orient=orient)
    assert read(tmp_path / "m.json") == {key: genres for key, genres in WANTED.items() if key != "tt3"}


def test_another_index_beside_a_column_of_ids(tmp_path: Path) -> None:
    films(name="imdb_id").set_index(pd.Index(["a", "b", "c", "d"])).to_json(tmp_path / "m.json")
    assert read(tmp_path / "m.json") == WANTED
    assert list(read(tmp_path / "m.json", id_column="index")) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("orient", ["columns", "split"])
def test_numbers_in_the_index_need_a_choice(tmp_path: Path, orient: Any) -> None:
    """They can be ids, or the row numbers of a table of which rows were deleted."""
    films([862, 15602, 949, 5]).set_index("film").to_json(tmp_path / "m.json", orient=orient)
    with fails("table-column", "0 'genre' has a name for genres", "--id-column", "2 'index'"):
        read(tmp_path / "m.json")
    assert list(read(tmp_path / "m.json", id_column="index")) == ["862", "15602", "949", "5"]


def test_an_index_that_was_not_written(tmp_path: Path) -> None:
    table = films().set_index("film")
    table.to_json(tmp_path / "m.json", orient="records")
    with fails("table-column", "0 'genre' has a name for genres", "write the ids too (in pandas: reset_index())"):
        read(tmp_path / "m.json")
    table.reset_index().to_json(tmp_path / "m.json", orient="records")
    assert read(tmp_path / "m.json") == WANTED


def test_rows_without_names(tmp_path: Path) -> None:
    films().to_json(tmp_path / "m.json", orient="values")
    remedy = 'table.to_json(FILE, orient="records")'
    with fails("table-unreadable", "not a list of records", remedy):
        read(tmp_path / "m.json")
    films().to_json(tmp_path / "m.json", orient="records")
    assert read(tmp_path / "m.json") == WANTED


def test_columns_that_no_name_tells_from_ids(tmp_path: Path) -> None:
    ids = [f"tt{number}" for number in range(24)]
    table = pd.DataFrame({"film": ids, "kind": [["War"], ["Drama"]] * 12}).set_index("film")
    table.to_json(tmp_path / "m.json")
    with fails("table-unreadable", "1 objects with the same 24 keys", "table.reset_index()", 'orient="records"'):
        read(tmp_path / "m.json", genre_column="kind")
    table.reset_index().to_json(tmp_path / "m.json", orient="records")
    assert list(read(tmp_path / "m.json", genre_column="kind")) == ids


@pytest.mark.parametrize(
    "text",
    [
        '{"columns": 1, "index": 2, "data": 3}',
        '{"columns": ["id", "genre"], "data": [["p1"]]}',
        '{"columns": ["id"], "index": [0, 1], "data": [["p1"]]}',
        '{"columns": [], "index": [], "data": []}',
        '{"columns": ["id", "id"], "index": [0], "data": [["p1", "p2"]]}',
    ],
)
def test_what_only_begins_like_pandas(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with fails("table-unreadable", "m.json is not a list of records"):
        read(tmp_path / "m.json")


@pytest.mark.parametrize("key", ["results", "movies"])
def test_records_in_an_answer_of_a_web_service(tmp_path: Path, key: str) -> None:
    records = [{"id": name, "genres": [{"id": 1, "name": genre} for genre in WANTED[name]]} for name in IDS]
    (tmp_path / "m.json").write_text(json.dumps({"page": 1, key: records, "total_pages": 9}))
    assert read(tmp_path / "m.json") == WANTED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.json", '{"tt9": ["Drama"], "tt3": ["War"], "tt9": ["War"]}'),
        ("m.json", '[{"id": "tt9", "genres": "Drama", "genres": "War"}]'),
        ("m.jsonl", '{"id": "tt9", "genres": "Drama", "genres": "War"}'),
    ],
)
def test_a_repeated_key_would_lose_genres(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with fails("table-unreadable", name, "several times", "join the values"):
        read(tmp_path / name)
