"""``posters compare``: the command from end to end, and what it refuses before the work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from failing import fails
from toolkit_helpers import make_model_folder

import toolkit
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from toolkit.cli.commands import read
from toolkit.comparison.options import parse_models
from toolkit.comparison.run import run_compare
from toolkit.distributed.collectives import make_accelerator
from toolkit.evaluation.evaluate import evaluate_outputs
from toolkit.evaluation.results import figures_of
from toolkit.inference.split_outputs import infer_split
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec


@pytest.fixture(scope="module")
def second(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with another untrained model."""
    run = tmp_path_factory.mktemp("runs") / "second"
    make_model_folder(run / "model", labels, HeadSpec("linear", (), 0.0), size=48)
    return run


def test_the_command_writes_the_metrics_of_evaluate(
    model_folder: Path, second: Path, shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "page"
    words = ["compare", str(model_folder), str(second), "--shards", str(shard_set), "--out", str(out)]
    assert run_compare(read([*words, "--precision", "no"])[1]) == 0
    printed = capsys.readouterr().out
    assert "Take " in printed and f"page        {out / 'index.html'}" in printed
    numbers = json.loads((out / "compare.json").read_text())
    manifest, accelerator = Manifest.read(shard_set), make_accelerator("no")
    for path, model in zip((model_folder, second / "model"), numbers["models"], strict=True):
        folder = load_model_folder(path)
        outputs = infer_split(accelerator, folder, shard_set, manifest, "test")
        figures = figures_of(evaluate_outputs(folder, manifest, outputs).to_dict())
        for metric in ("mAP", "roc_auc", "micro_f1", "macro_f1", "subset_accuracy"):
            assert model["metrics"][metric]["value"] == pytest.approx(figures[metric], abs=1e-6)
        assert model["parameters"] == sum(parameter.numel() for parameter in folder.model.parameters())
        assert model["megabytes"] == (path / "model.safetensors").stat().st_size / 1e6
        assert 0 < model["images_per_s"] < np.inf
    assert numbers["models"][1]["name"] == "second" and numbers["measured"]["batches"] == 5
    page = (out / "index.html").read_text()
    assert "data:image/jpeg" in page and "unreadable image" not in page and manifest.fingerprint in page


def test_what_is_no_comparison_is_refused(tmp_path: Path, model_folder: Path):
    with fails("option-value", "takes 2 to 12", "1 was given"):
        parse_models([tmp_path])
    with fails("option-value", "takes 2 to 12", "13 were given"):
        parse_models([tmp_path / str(at) for at in range(13)])
    with fails("option-value", model_folder, "given twice"):
        parse_models([model_folder.parent, model_folder])


def test_other_labels_and_a_foreign_folder_are_refused_before_the_work(
    labels: LabelSet, model_folder: Path, second: Path, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def infer(*_: object) -> None:
        raise AssertionError("looked at the pictures first")

    monkeypatch.setattr("toolkit.comparison.run.infer_split", infer)
    swapped = LabelSet((labels.genres[1], labels.genres[0], *labels.genres[2:]))
    other = make_model_folder(tmp_path / "m", swapped, HeadSpec("linear", (), 0.0))
    words = ["compare", str(model_folder), str(other), "--shards", str(shard_set), "--out", str(tmp_path / "out")]
    with fails("labels-differ", model_folder, other):
        run_compare(read(words)[1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with fails("path-exists", "notes.txt"):
        run_compare(read([*words[:2], str(second), *words[3:]])[1])


def test_the_function_returns_the_table(model_folder: Path, second: Path, shard_set: Path, tmp_path: Path):
    found = toolkit.compare([model_folder, second], shard_set, out=tmp_path / "out", precision="no")
    assert sorted(set(found["model"])) == sorted({"second", model_folder.parent.name})
    written = pd.read_csv(tmp_path / "out" / "compare.csv")
    assert found["value"].tolist() == pytest.approx(written["value"].tolist(), abs=1e-5, nan_ok=True)
    with fails("option-value", "1 was given"):
        toolkit.compare([model_folder], shard_set)
