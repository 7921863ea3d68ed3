"""``posters predict --top-k`` and ``-t GENRE=NUMBER``: images and shard sets, every format, torch and ONNX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from failing import fails
from toolkit_helpers import make_model_folder, some_decisions

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from toolkit.cli.main import main
from toolkit.models.heads import HeadSpec
from toolkit.prediction.formats import KEY

ODD = LabelSet(("Drama", "Film Noir", "a=b", "Sci-Fi"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With names of genres that have a space or an equals sign. Read-only."""
    folder = tmp_path_factory.mktemp("odd") / "model"
    return make_model_folder(folder, ODD, HeadSpec("linear", (), 0.0), decisions=some_decisions(len(ODD)))


@pytest.fixture
def images(posters: Path) -> list[str]:
    return [str(posters / "images" / name) for name in ("p00000.jpg", "p00001.jpg", "bad_zero_bytes.jpg")]


def predict(model: Path, *options: object) -> int:
    return main(["predict", "-m", str(model), *map(str, options)])


def most_probable(row: Mapping[Any, Any], genres: tuple[str, ...], k: int) -> list[str]:
    """In the order of the model."""
    best = sorted(genres, key=lambda genre: -row[genre])[:k]
    return [genre for genre in genres if genre in best]


def test_top_k_of_images_in_every_format(
    model: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = ["a.csv", "a.json", "a.jsonl", "a.parquet", "a.txt"]
    for name in names:
        assert predict(model, "-i", *images, "--top-k", 3, "-o", tmp_path / name) == 0
        assert "named          the 3 most probable genres" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "a.parquet")
    expected = [most_probable(row, ODD.genres, 3) for row in table.to_dict("records")[:2]]
    assert [list(found) for found in table["genres"]] == [*expected, []]
    assert json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[KEY])["top_k"] == 3

    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["genres"] for line in lines] == [*expected, []]
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["top_k"] == 3 and [set(p["genres"]) for p in facts["predictions"][:2]] == list(map(set, expected))
    cells = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)["genres"]
    assert [set(cell.split("|")) for cell in cells] == [*map(set, expected), {""}]
    text = (tmp_path / "a.txt").read_text().splitlines()
    assert text[2] == "named      the 3 most probable genres of each image"
    assert [line.count("%") for line in text[5:]] == [3, 3, 0]


def test_top_k_of_shards_by_torch_and_onnx(
    model: Path, shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", "--model", str(model), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]) == 0
    shards = ["--shards", shard_set, "--split", "test", "--ignore-labels", "--top-k", 2]
    for name, options in (
        ("torch", []), ("onnx", ["--onnx", tmp_path / "m.onnx"]), ("csv", ["-f", "csv"]), ("jsonl", ["-f", "jsonl"]),
    ):  # fmt: skip
        assert predict(model, *shards, "--out", tmp_path / name, *options) == 0
        assert "named          the 2 most probable genres of each image" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "torch")
    assert len(table) == sum(shard.samples for shard in Manifest.read(shard_set).of_split("test"))
    named = [list(found) for found in table["genres"]]
    assert named == [most_probable(row, ODD.genres, 2) for row in table.to_dict("records")]
    assert [list(found) for found in pd.read_parquet(tmp_path / "onnx")["genres"]] == named
    (facts,) = (tmp_path / "csv").glob("*.facts.json")
    assert json.loads(facts.read_text())["top_k"] == 2
    (rows,) = (tmp_path / "jsonl").glob("*.jsonl")
    assert [json.loads(line)["genres"] for line in rows.read_text().splitlines()] == named
    # files of another rule are not continued
    with fails("predictions-other", "--top-k", "--out"):
        predict(model, *shards[:-2], "--out", tmp_path / "torch")


def test_the_threshold_of_one_genre(model: Path, images: list[str], shard_set: Path, tmp_path: Path):
    given = ["-t", "a=b=0", "--threshold", "0.99", "-t", "Film Noir=0"]
    assert predict(model, "-i", images[0], *given, "-o", tmp_path / "a.json") == 0
    facts = json.loads((tmp_path / "a.json").read_text())
    assert facts["thresholds"] == {"Drama": 0.99, "Film Noir": 0, "a=b": 0, "Sci-Fi": 0.99} and "top_k" not in facts
    assert sorted(facts["predictions"][0]["genres"]) == ["Film Noir", "a=b"]

    shards = ["--shards", shard_set, "--split", "test", "--ignore-labels", "--out", tmp_path / "out"]
    assert predict(model, *shards, "-t", "a=b=0") == 0
    (path,) = (tmp_path / "out").glob("*.parquet")
    own = some_decisions(len(ODD)).thresholds
    assert json.loads(pq.read_schema(path).metadata[KEY])["thresholds"] == [own[0], own[1], 0.0, own[3]]
    assert all("a=b" in found for found in pd.read_parquet(path)["genres"])
    with fails("predictions-other", "other thresholds"):
        predict(model, *shards)


def test_what_does_not_fit_the_model_is_one_line(model: Path, images: list[str], shard_set: Path, tmp_path: Path):
    shards = ["--shards", shard_set, "--ignore-labels", "--out", tmp_path / "out"]
    for source in (["-i", images[0]], shards):
        with fails("option-value", "--threshold", "'Film noir'", "did you mean 'Film Noir'"):
            predict(model, *source, "-t", "Film noir=0.5")
        with fails("option-value", "--top-k", len(ODD), 5):
            predict(model, *source, "--top-k", 5)
    assert not (tmp_path / "out").exists()


def test_probabilities_do_not_depend_on_what_is_named(model: Path, images: list[str], tmp_path: Path):
    assert predict(model, "-i", images[0], "-o", tmp_path / "a.parquet") == 0
    assert predict(model, "-i", images[0], "--top-k", 1, "-o", tmp_path / "b.parquet") == 0
    one, other = (pd.read_parquet(tmp_path / name)[list(ODD.genres)] for name in ("a.parquet", "b.parquet"))
    np.testing.assert_array_equal(one, other)
