"""``posters tune``: new decisions from validation alone, whole files, no weight touched, one or two processes alike."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from toolkit_helpers import launch_2, make_model_folder, reverse_labels

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from toolkit.cli.main import main
from toolkit.config.schema import DecideConfig
from toolkit.decisions.decisions import Decisions, choose_decisions
from toolkit.model_folder.folder import load_labels, load_model_folder, write_labels
from toolkit.models.heads import HeadSpec


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def tune(model: Path, shards: Path, *options: str) -> int:
    return main(["tune", "--model", str(model), "--shards", str(shards), "--workers", "1", *options])


def test_it_rewrites_what_depends_on_decisions_and_nothing_else(
    model: Path, shard_set: Path, capsys: pytest.CaptureFixture[str]
):
    before = {name: (model / name).read_bytes() for name in ("model.safetensors", "config.json")}
    assert main(["evaluate", "--model", str(model), "--shards", str(shard_set), "--workers", "1"]) == 0
    assert "## Metrics on test" in (model / "README.md").read_text()
    assert tune(model, shard_set, "--aim", "recall>=0.8", "--calibration", "platt") == 0  # per genre: a level
    assert "recall of at least 0.8" in capsys.readouterr().out
    assert {name: (model / name).read_bytes() for name in before} == before

    folder = load_model_folder(model)
    assert folder.decisions.aim == "recall>=0.8" and folder.decisions.calibration == "platt"
    kept = np.load(model / "predictions-val.npz", allow_pickle=False)
    again = choose_decisions(
        kept["targets"] > 0, kept["logits"].astype(float), DecideConfig("auto", "recall>=0.8", "platt")
    )
    assert again.to_dict() == folder.decisions.to_dict()  # a function of what the npz holds
    named = folder.decisions.named(kept["logits"])
    hits, support = (named & (kept["targets"] == 1)).sum(axis=0), kept["targets"].sum(axis=0)
    assert (hits >= 0.8 * support).all()

    metrics = json.loads((model / "metrics-val.json").read_text())
    assert metrics["decisions"] == folder.decisions.fingerprint
    assert metrics["thresholds"][-1]["threshold"] == folder.decisions.thresholds.tolist()
    card = (model / "README.md").read_text()
    # test's metrics are of the old decisions
    assert "## Metrics on val" in card and "## Metrics on test" not in card and "Platt" in card
    assert main(["evaluate", "--model", str(model), "--shards", str(shard_set), "--workers", "1"]) == 0
    assert "## Metrics on test" in (model / "README.md").read_text()
    assert not list(model.glob("*.partial"))


def test_options_reach_the_choice(model: Path, shard_set: Path):
    assert tune(model, shard_set, "--thresholds", "global", "--calibration", "none") == 0
    decisions = load_labels(model)[1]
    assert not decisions.per_label and decisions.calibration == "none" and decisions.aim == "f1"
    assert (decisions.thresholds == decisions.global_threshold).all()
    assert tune(model, shard_set, "--calibration", "temperature") == 0
    other = load_labels(model)[1]
    assert other.calibration == "temperature" and (other.scale != 1).all()
    assert other.chosen_on["cross_fit"].keys() >= {"single", "per genre, slack 0.01"}
    assert other.per_label == ("slack" in other.chosen_on)
    assert tune(model, shard_set, "--thresholds", "genre") == 0
    assert load_labels(model)[1].chosen_on["slack"] == DecideConfig().max_micro_f_loss
    assert tune(model, shard_set, "--thresholds", "genre", "--max-micro-f-loss", "0") == 0
    assert load_labels(model)[1].chosen_on["slack"] == 0


def test_test_labels_change_no_bit(model: Path, shard_set: Path, tmp_path: Path):
    other = shutil.copytree(shard_set, tmp_path / "set")
    reverse_labels(other, "test")
    assert tune(model, shard_set) == 0
    first = (model / "labels.json").read_bytes()
    assert main(["evaluate", "--model", str(model), "--shards", str(shard_set), "--workers", "1"]) == 0
    figures = json.loads((model / "metrics-test.json").read_text())
    assert tune(model, other) == 0
    assert (model / "labels.json").read_bytes() == first
    assert main(["evaluate", "--model", str(model), "--shards", str(other), "--workers", "1"]) == 0
    others = json.loads((model / "metrics-test.json").read_text())
    assert (model / "labels.json").read_bytes() == first  # evaluating chooses nothing
    assert others["per_genre"] != figures["per_genre"] and others["decisions"] == figures["decisions"]


def test_another_set_is_told_and_other_labels_are_refused(
    model: Path, shard_set: Path, labels: LabelSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        assert tune(model, shard_set) == 0  # the untrained folder names no set
    assert "is not the shard set that the model was trained on" in caplog.text
    caplog.clear()
    config = json.loads((model / "config.json").read_text())
    config["poster_toolkit"]["shard_set"] = Manifest.read(shard_set).fingerprint
    (model / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        assert tune(model, shard_set) == 0
    assert "is not the shard set" not in caplog.text

    swapped = LabelSet((labels.genres[1], labels.genres[0], *labels.genres[2:]))
    foreign = make_model_folder(tmp_path / "m", swapped, HeadSpec("linear", (), 0.0))
    before = (foreign / "labels.json").read_bytes()
    with pytest.raises(UserError, match="another order, with the first difference at column 0"):
        tune(foreign, shard_set)
    assert (foreign / "labels.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--aim", "accuracy"], ["--aim", "f0.5", "accuracy"]),
        (["--calibration", "isotonic"], ["isotonic"]),
        (["--batch-size", "-1"], ["--batch-size"]),
        (["--max-micro-f-loss", "1"], ["--max-micro-f-loss", "1.0"]),
    ],
)
def test_bad_options_are_one_line(model: Path, shard_set: Path, options: list[str], facts: list[str]):
    with fails("option-value", *facts):
        tune(model, shard_set, *options)


def test_two_processes_choose_what_one_does(model: Path, shard_set: Path, tmp_path: Path):
    double = shutil.copytree(model, tmp_path / "double")
    assert tune(model, shard_set, "--calibration", "platt") == 0
    run = launch_2("launch/tune.py", "--model", double, "--shards", shard_set, "--calibration", "platt", "--workers", 1)
    assert run.returncode == 0, run.stderr
    alone, together = load_labels(model)[1], load_labels(double)[1]
    for name in ("thresholds", "scale", "bias"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), rtol=1e-4, atol=1e-5)
    one, two = (json.loads((folder / "metrics-val.json").read_text()) for folder in (model, double))
    assert [row["metrics"] for row in two["thresholds"]] == [row["metrics"] for row in one["thresholds"]]
    assert two["calibration"]["after"]["ece"] == pytest.approx(one["calibration"]["after"]["ece"], abs=1e-5)


def test_labels_are_written_whole_or_not_at_all(model: Path, labels: LabelSet):
    before = (model / "labels.json").read_bytes()
    with pytest.raises(ValueError, match="1 thresholds for"):
        write_labels(model, labels, Decisions.plain([0.5]))
    assert (model / "labels.json").read_bytes() == before
