"""Files of predictions: columns that do not clash, nulls where there is no prediction, facts that must agree."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.labels import LabelSet
from toolkit.inference.naming import NamingOptions
from toolkit.inference.rows import Rows, genre_columns
from toolkit.prediction.batch import Job
from toolkit.prediction.chunks import FilesChunk
from toolkit.prediction.facts import is_finished, refuse_others, write_rows
from toolkit.prediction.formats import FOLDER_FORMATS, FORMATS, KEY

LABELS = LabelSet(("Drama", "Error", "Sci-Fi"))
FACTS = {
    "version": 2, "labels": "f", "weights": "w", "content": "c", "index": "i", "calibration": {},
    "thresholds": [0.5] * 3, "precision": "no", "tta": "none", "embeddings": False, "preprocessing": {},
    "columns": {"Drama": "Drama", "Error": "genre:Error", "Sci-Fi": "Sci-Fi"},
}  # fmt: skip


@pytest.fixture
def rows() -> Rows:
    return Rows(
        ['a,"b', "später", "third"],
        np.array([[0.25, 0.5, 0.75], [np.nan, np.nan, np.nan], [1 / 3, 0, 1]], np.float32),
        [None, "truncated", None],
        LABELS,
        np.array([0.5, 0.5, 0.75]),
        np.arange(12, dtype=np.float32).reshape(3, 4),
    )


@dataclass(frozen=True, kw_only=True)
class OnlyTheFirst(NamingOptions):
    """An option on what is named, as a later version may have it."""

    only_first: bool = False

    def named(self, probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        found = super().named(probabilities, thresholds)
        return found & (probabilities == probabilities.max(axis=-1, keepdims=True)) if self.only_first else found


def test_every_place_that_names_genres_asks_the_options(rows: Rows) -> None:
    for naming, expected in (
        (NamingOptions(), [["Error", "Sci-Fi"], [], ["Sci-Fi"]]),
        (OnlyTheFirst(only_first=True), [["Sci-Fi"], [], ["Sci-Fi"]]),
    ):
        rows.naming = naming
        assert rows.names() == expected
        assert [[line.genre for line in lines if line.named][::-1] for lines in rows.ranked()] == expected


def test_a_file_states_options_on_naming_where_they_are_not_the_default(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert NamingOptions(threshold=0.25).facts() == {}  # its thresholds are stated
    monkeypatch.setattr("toolkit.inference.naming.NamingOptions", OnlyTheFirst)
    assert OnlyTheFirst().facts() == {}  # files of before are whole
    stated = OnlyTheFirst(only_first=True).facts()
    assert stated == {"only_first": True}
    path = tmp_path / "a.csv"
    write_rows(path, rows, FACTS | stated)
    assert is_finished(path, FACTS | stated)
    with fails("predictions-other", path, "--only-first", "--out"):
        is_finished(path, FACTS)


def test_genres_keep_their_names_but_for_ours() -> None:
    assert genre_columns(LABELS.genres) == {"Drama": "Drama", "Error": "genre:Error", "Sci-Fi": "Sci-Fi"}
    assert genre_columns(("ID", "Genres")) == {"ID": "genre:ID", "Genres": "genre:Genres"}


def test_a_table_for_pandas(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rows(path, rows, FACTS)
    assert [str(field.type) for field in pq.read_schema(path)] == [
        "string", "list<element: string>", "float", "float", "float", "string", "list<element: float>",
    ]  # fmt: skip
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["id", "genres", "Drama", "genre:Error", "Sci-Fi", "error", "embedding"]
    assert frame["id"].tolist() == rows.ids
    assert [list(names) for names in frame["genres"]] == [["Error", "Sci-Fi"], [], ["Sci-Fi"]]
    assert frame["Sci-Fi"].dtype == np.float32
    assert frame[["Drama", "genre:Error", "Sci-Fi"]].isna().all(axis=1).tolist() == [False, True, False]
    assert frame["error"].isna().tolist() == [True, False, True]
    assert frame["embedding"][0].tolist() == [0, 1, 2, 3] and frame["embedding"][1] is None
    assert json.loads(pq.read_schema(path).metadata[KEY]) == FACTS
    assert frame.query("`Sci-Fi` > 0.5")["id"].tolist() == [rows.ids[0], "third"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["id", "Id", "image", "genre:id", "genre:Id", "genre:genre:id", "x"]), unique=True),
    st.sets(st.sampled_from(["id", "image", "error", "genre:id"])),
)
def test_columns_are_never_two_of_one_name(genres: list[str], reserved: set[str]) -> None:
    columns = list(genre_columns(genres, reserved).values())
    assert len({*columns, *reserved}) == len(genres) + len(reserved)
    assert not {column.lower() for column in columns} & reserved
    # a name that clashes with nothing is kept, whatever the others are
    assert all(c == g for c, g in zip(columns, genres, strict=True) if g.lower() not in reserved)


ODD_IDS = ["007", "1e5", "66773.0", "=1+1", 'a,"b', "a\nb", "a\rb", "\x1b[2J\x9b", "-0", "a\x00b", "'x", "NA"]


def test_ids_and_numbers_stay_exact_in_every_format(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).random((len(ODD_IDS), 3)) ** 20
    exact = numbers.astype(np.float32)
    rows = Rows(ODD_IDS, numbers, [None] * len(ODD_IDS), LABELS, np.full(3, 0.5))
    for format in FOLDER_FORMATS:
        write_rows(tmp_path / f"a.{format}", rows, FACTS)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["id"].to_pylist() == ODD_IDS and np.array_equal(table["Drama"].to_numpy(), exact[:, 0])
    with open(tmp_path / "a.csv", newline="") as stream:  # the csv module of Python 3.10 cannot read NUL
        records = list(csv.DictReader(io.StringIO(stream.read().replace("\0", "NUL"), newline="")))
    assert [r["id"].replace("NUL", "\0") for r in records] == ODD_IDS
    assert np.array_equal(np.array([r["genre:Error"] for r in records], np.float32), exact[:, 1])
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().split("\n")[:-1]]
    assert [r["id"] for r in lines] == ODD_IDS
    assert np.array_equal(np.array([r["probabilities"]["Sci-Fi"] for r in lines], np.float32), exact[:, 2])
    assert not set((tmp_path / "a.jsonl").read_text()) & set("\x1b\x9b\x7f")


def test_without_embeddings_there_is_no_column(rows: Rows, tmp_path: Path) -> None:
    rows.embeddings = None
    write_rows(tmp_path / "a.parquet", rows, FACTS)
    assert "embedding" not in pq.read_schema(tmp_path / "a.parquet").names


def test_csv(rows: Rows) -> None:
    found = list(csv.reader(FORMATS["csv"].text(rows, None).splitlines()))
    assert found == [
        ["id", "genres", "Drama", "genre:Error", "Sci-Fi", "error"],
        ['a,"b', "Error|Sci-Fi", "0.25", "0.5", "0.75", ""],
        ["später", "", "", "", "", "truncated"],
        ["third", "Sci-Fi", "0.33333334", "0.0", "1.0", ""],
    ]


def test_jsonl(rows: Rows) -> None:
    first, second, _ = (json.loads(line) for line in FORMATS["jsonl"].text(rows, None).splitlines())
    assert first == {
        "id": 'a,"b',
        "genres": ["Error", "Sci-Fi"],
        "probabilities": {"Drama": 0.25, "Error": 0.5, "Sci-Fi": 0.75},
        "error": None,
        "embedding": [0, 1, 2, 3],
    }
    assert second["probabilities"] is None and second["embedding"] is None and second["error"] == "truncated"


def test_a_file_has_the_ending_of_its_format(tmp_path: Path) -> None:
    chunk, unused = FilesChunk(tmp_path, 0, ()), cast(Any, None)
    names = {format: Job([chunk], unused, unused, tmp_path, format).path(chunk).name for format in FORMATS}
    assert names["text"] == "images-00000.txt" and names["csv"] == "images-00000.csv"


@pytest.mark.parametrize("format", FOLDER_FORMATS)
def test_finished_is_what_has_the_same_facts(rows: Rows, tmp_path: Path, format: Any) -> None:
    path = tmp_path / f"train-00000.{format}"
    assert path.name == f"train-00000.{format}" and not is_finished(path, FACTS)
    write_rows(path, rows, FACTS)
    assert is_finished(path, FACTS)
    for name, word in (
        ("version", "another version"),
        ("labels", "other genres"),
        ("weights", "another model"),
        ("content", "other images"),
        ("index", "another index of the same images"),
        ("calibration", "another calibration"),
        ("thresholds", "other thresholds"),
        ("precision", "another precision"),
        ("tta", "--tta"),
        ("preprocessing", "another preprocessing"),
        ("columns", "other columns"),
        ("embeddings", "--embeddings"),
    ):
        with fails("predictions-other", path, word, "--out"):
            is_finished(path, {**FACTS, name: "other"})


def test_files_of_earlier_versions_state_less(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    added = ("preprocessing", "index")
    write_rows(path, rows, {k: v for k, v in FACTS.items() if k not in added})
    assert is_finished(path, FACTS)
    assert is_finished(path, {k: v for k, v in FACTS.items() if k != "index"})  # of a folder, which has none


@pytest.mark.parametrize(("found", "wanted"), [(None, "i"), ("i", None), (None, None)])
def test_sets_of_earlier_versions_have_no_digest_of_an_index(
    rows: Rows, tmp_path: Path, found: str | None, wanted: str | None
) -> None:
    write_rows(tmp_path / "a.csv", rows, {**FACTS, "index": found})
    assert is_finished(tmp_path / "a.csv", {**FACTS, "index": wanted})


def test_a_file_without_facts_is_unfinished_or_not_ours(rows: Rows, tmp_path: Path) -> None:
    for format in ("csv", "jsonl"):
        path = tmp_path / f"a.{format}"
        write_rows(path, rows, FACTS)
        path.with_name(f"{path.name}.facts.json").unlink()
        assert not is_finished(path, FACTS)
        for foreign in ("title,year\nx,1\n", '{"title": "x"}\n', "[" * 100_000, "\xff"):
            path.write_text(foreign, encoding="latin-1")
            with fails("path-exists", path, "posters predict", "--out"):
                is_finished(path, FACTS)
            assert path.read_text(encoding="latin-1") == foreign


def test_files_of_others_are_refused_by_name(rows: Rows, tmp_path: Path) -> None:
    write_rows(tmp_path / "train-00000.csv", rows, FACTS)
    (tmp_path / "notes.txt").touch()
    refuse_others(tmp_path, ["train-00000.csv"])
    refuse_others(tmp_path / "none", [])
    for name in ("images-00001.csv", "train-00000.parquet", "x.PARQUET", "x.jsonl"):
        (tmp_path / name).touch()
        with fails("predictions-other", tmp_path, f"--format: {name};", "--out"):
            refuse_others(tmp_path, ["train-00000.csv"])
        (tmp_path / name).unlink()
    with fails("predictions-other", "--format: train-00000.csv;"):
        refuse_others(tmp_path, ["train-00000.parquet"])


def test_a_file_of_another_tool_is_not_ours(tmp_path: Path) -> None:
    pd.DataFrame({"id": ["x"]}).to_parquet(tmp_path / "a.parquet")
    with fails("predictions-other", tmp_path / "a.parquet", "version"):
        is_finished(tmp_path / "a.parquet", FACTS)
