"""Files of predictions: columns that do not clash, nulls where there is no prediction, facts that must agree."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from shards.errors import UserError
from shards.labels import LabelSet
from toolkit.predict_tables import (
    KEY,
    Rows,
    csv_of,
    genre_columns,
    is_finished,
    jsonl_of,
    output_path,
    table_of,
    write_rows,
)

LABELS = LabelSet(("Drama", "Error", "Sci-Fi"))
FACTS = {
    "version": 2, "labels": "f", "weights": "w", "content": "c", "calibration": {}, "thresholds": [0.5] * 3,
    "precision": "no", "tta": "none", "embeddings": False,
}  # fmt: skip


@pytest.fixture
def rows() -> Rows:
    return Rows(
        ['a,"b', "später", "third"],
        np.array([[0.25, 0.5, 0.75], [np.nan, np.nan, np.nan], [1 / 3, 0, 1]], np.float32),
        np.array([[False, True, True], [False] * 3, [False] * 3]),
        [None, "truncated", None],
        np.arange(12, dtype=np.float32).reshape(3, 4),
    )


def test_genres_keep_their_names_but_for_ours() -> None:
    assert genre_columns(LABELS) == {"Drama": "Drama", "Error": "genre:Error", "Sci-Fi": "Sci-Fi"}
    assert genre_columns(LabelSet(("ID", "Genres"))) == {"ID": "genre:ID", "Genres": "genre:Genres"}


def test_a_table_for_pandas(rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_rows(path, rows, LABELS, FACTS, "parquet")
    assert [str(field.type) for field in pq.read_schema(path)] == [
        "string", "list<element: string>", "float", "float", "float", "string",
        "fixed_size_list<element: float>[4]",
    ]  # fmt: skip
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["id", "genres", "Drama", "genre:Error", "Sci-Fi", "error", "embedding"]
    assert frame["id"].tolist() == rows.ids
    assert [list(names) for names in frame["genres"]] == [["Error", "Sci-Fi"], [], []]
    assert frame["Sci-Fi"].dtype == np.float32
    assert frame[["Drama", "genre:Error", "Sci-Fi"]].isna().all(axis=1).tolist() == [False, True, False]
    assert frame["error"].isna().tolist() == [True, False, True]
    assert frame["embedding"][0].tolist() == [0, 1, 2, 3] and frame["embedding"][1] is None
    assert json.loads(pq.read_schema(path).metadata[KEY]) == FACTS
    assert frame.query("`Sci-Fi` > 0.5")["id"].tolist() == [rows.ids[0], "third"]


def test_without_embeddings_there_is_no_column(rows: Rows) -> None:
    rows.embeddings = None
    assert "embedding" not in table_of(rows, LABELS, FACTS).column_names


def test_csv(rows: Rows) -> None:
    found = list(csv.reader(csv_of(rows, LABELS).splitlines()))
    assert found == [
        ["id", "genres", "Drama", "genre:Error", "Sci-Fi", "error"],
        ['a,"b', "Error|Sci-Fi", "0.25", "0.5", "0.75", ""],
        ["später", "", "", "", "", "truncated"],
        ["third", "", "0.3333333", "0", "1", ""],
    ]


def test_jsonl(rows: Rows) -> None:
    first, second, _ = (json.loads(line) for line in jsonl_of(rows, LABELS).splitlines())
    assert first == {
        "id": 'a,"b',
        "genres": ["Error", "Sci-Fi"],
        "probabilities": {"Drama": 0.25, "Error": 0.5, "Sci-Fi": 0.75},
        "error": None,
        "embedding": [0, 1, 2, 3],
    }
    assert second["probabilities"] is None and second["embedding"] is None and second["error"] == "truncated"


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_finished_is_what_has_the_same_facts(rows: Rows, tmp_path: Path, format: Any) -> None:
    path = output_path(tmp_path, "train-00000", format)
    assert path.name == f"train-00000.{format}" and not is_finished(path, FACTS)
    write_rows(path, rows, LABELS, FACTS, format)
    assert is_finished(path, FACTS)
    for name, word in (
        ("version", "another version"),
        ("labels", "other genres"),
        ("weights", "another model"),
        ("content", "other images"),
        ("calibration", "another calibration"),
        ("thresholds", "other thresholds"),
        ("precision", "another precision"),
        ("tta", "--tta"),
        ("embeddings", "--embeddings"),
    ):
        with pytest.raises(UserError, match=word):
            is_finished(path, {**FACTS, name: "other"})


def test_a_file_of_another_tool_is_not_ours(tmp_path: Path) -> None:
    pd.DataFrame({"id": ["x"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="another version of this toolkit"):
        is_finished(tmp_path / "a.parquet", FACTS)
