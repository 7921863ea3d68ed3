"""``posters predict --onnx``: the exported file gives the rows that PyTorch gives, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from failing import fails
from toolkit_helpers import make_model_folder, some_decisions

from shards.dataset.labels import LabelSet
from shards.errors import Code
from toolkit.cli.main import main
from toolkit.models.heads import HeadSpec

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def model(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its model.onnx. Read-only."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    make_model_folder(folder, labels, HeadSpec("levels", (), 0.0), decisions=some_decisions(len(labels)))
    assert main(["export", "--model", str(folder), "--format", "onnx"]) == 0
    return folder


def predict(model: Path, *options: object) -> int:
    return main(["predict", "-m", str(model), *map(str, options)])


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder).sort_values("id", ignore_index=True)


def test_the_same_rows(model: Path, shard_set: Path, tmp_path: Path, labels: LabelSet) -> None:
    options = ["--shards", shard_set, "--embeddings", "--tta", "flip", "--out"]
    assert predict(model, *options, tmp_path / "torch") == 0
    assert predict(model, "--onnx", *options, tmp_path / "onnx") == 0
    ours, theirs = rows_of(tmp_path / "onnx"), rows_of(tmp_path / "torch")
    assert ours["id"].tolist() == theirs["id"].tolist()
    genres = list(labels.genres)
    np.testing.assert_allclose(ours[genres], theirs[genres], atol=1e-5)
    np.testing.assert_allclose(
        np.stack(ours["embedding"].tolist()), np.stack(theirs["embedding"].tolist()), rtol=1e-3, atol=1e-4
    )
    # its own file elsewhere, without embeddings; a finished set is the same set whoever ran the network
    assert predict(model, "--onnx", model / "model.onnx", "--shards", shard_set, "--out", tmp_path / "more") == 0
    assert "embedding" not in rows_of(tmp_path / "more").columns
    assert predict(model, "--shards", shard_set, "--out", tmp_path / "more") == 0


def test_a_few_images_too(model: Path, posters: Path, tmp_path: Path) -> None:
    image = posters / "images" / "p00000.jpg"
    for name, options in (("a.csv", []), ("b.csv", ["--onnx"])):
        assert predict(model, "-i", image, "-v", "-o", tmp_path / name, *options) == 0
    ours, theirs = (pd.read_csv(tmp_path / name) for name in ("a.csv", "b.csv"))
    pd.testing.assert_frame_equal(ours, theirs, atol=1e-5)


def test_what_is_refused(model: Path, labels: LabelSet, shard_set: Path, tmp_path: Path) -> None:
    other = make_model_folder(tmp_path / "other", labels, HeadSpec("linear", (), 0.0))
    shards = ["--shards", shard_set, "--out", tmp_path / "out"]
    refused: list[tuple[Path, list[Any], Code, Any]] = [
        (other, ["--onnx"], "model-missing", other / "model.onnx"),
        (other, ["--onnx", model / "model.onnx"], "model-other", model / "model.onnx"),
        (model, ["--onnx", "--precision", "bf16"], "option-conflict", "--compile or --precision"),
        (model, ["--onnx", "--compile"], "option-conflict", "--compile or --precision"),
    ]
    for folder, options, code, fact in refused:
        with fails(code, fact):
            predict(folder, *shards, *options)
    assert not list((tmp_path / "out").glob("*.parquet"))
