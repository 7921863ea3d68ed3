"""``posters evaluate``: its numbers are scikit-learn's on the model's own logits, and the threshold is validation's."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from failing import fails
from metric_tools import calibration_summary
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, log_loss
from toolkit_helpers import error_lines, launch_2, make_model_folder, posters_command, some_decisions

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.inputs.images import ANY, decode
from shards.storage.files import write_json
from toolkit.cli.main import main, run
from toolkit.data.loader.loader import Loader
from toolkit.data.sampling.plan import EvalPlan
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.transforms.batch_transform import eval_transforms
from toolkit.evaluation.options import parse_thresholds
from toolkit.metrics.calibration_error import label_calibration_errors
from toolkit.metrics.helpers import sigmoid
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import OWN_KEY, load_model_folder
from toolkit.models.heads import HeadSpec


@pytest.fixture(scope="module")
def evaluated(model_folder: Path, shard_set: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("eval") / "test.json"
    run = posters_command(
        "evaluate", "--model", model_folder, "--shards", shard_set, "--out", out, "--thresholds", "0.4,0.45,0.6"
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(out.read_text())


def test_numbers_are_scikit_learns(evaluated, model_folder: Path, shard_set: Path):
    _, result = evaluated
    folder = load_model_folder(model_folder)
    reader = ShardReader.of_split(shard_set, "test")
    transforms = eval_transforms(reader, folder.preprocessing, "cpu", torch.device("cpu"))
    with Loader(reader, 1, 1) as loader, torch.inference_mode():
        (batch,) = loader.batches(EvalPlan(len(reader), len(reader)).micro_batches(0, 1), transforms)
        probabilities = folder.model(folder.preprocessing.normalize(batch.images)).sigmoid().numpy()
    assert result["num_samples"] == len(reader)
    supported = reader.targets.any(axis=0)
    expected = average_precision_score(reader.targets[:, supported], probabilities[:, supported], average="macro")
    assert result["ranking"]["mAP"] == pytest.approx(expected, abs=1e-6)
    assert [row["label"] for row in result["thresholds"]] == ["0.40", "0.45", "0.60", "chosen 0.50"]
    for row in result["thresholds"]:
        named = probabilities.astype(np.float64) >= row["threshold"]
        expected = f1_score(reader.targets, named, average="micro", zero_division=0)
        assert row["metrics"]["micro_f1"] == pytest.approx(expected, abs=1e-6)
    assert {row["kind"] for row in result["baselines"]} == {"prevalence", "top_k"}


@pytest.fixture(scope="module")
def calibrated(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with calibration and a threshold for each genre."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    decisions = some_decisions(len(labels))
    return make_model_folder(folder, labels, HeadSpec("linear", (), 0.0), decisions=decisions)


def test_decisions_of_the_folder_are_applied_and_kept(
    calibrated: Path, shard_set: Path, capsys: pytest.CaptureFixture[str]
):
    before = (calibrated / "labels.json").read_bytes()
    assert main(["evaluate", "--model", str(calibrated), "--shards", str(shard_set), "--workers", "1"]) == 0
    assert (calibrated / "labels.json").read_bytes() == before
    result = json.loads((calibrated / "metrics-test.json").read_text())
    kept = np.load(calibrated / "predictions-test.npz", allow_pickle=False)
    folder, reader = load_model_folder(calibrated), ShardReader.of_split(shard_set, "test")
    assert kept["ids"].tolist() == [reader.sample_id(index) for index in range(len(reader))]
    assert (kept["targets"] == reader.targets).all() and kept["targets"].dtype == np.uint8
    assert kept["logits"].dtype == np.float32 and kept["genres"].tolist() == list(folder.labels.genres)
    assert kept["weights"] == folder.fingerprint and kept["split"] == "test"
    assert kept["shard_set"] == Manifest.read(shard_set).fingerprint

    probabilities = folder.decisions.probabilities(kept["logits"])
    assert [row["label"] for row in result["thresholds"]] == [
        "0.30", "0.50", "0.70", "single of val 0.45", "chosen (per genre)",
    ]  # fmt: skip
    for row in result["thresholds"]:
        named = probabilities >= np.array(row["threshold"])
        expected = f1_score(reader.targets, named, average="micro", zero_division=0)
        assert row["metrics"]["micro_f1"] == pytest.approx(expected)
    assert result["thresholds"][-1]["threshold"] == folder.thresholds.tolist()
    calibration = result["calibration"]
    assert calibration["method"] == "platt"
    for name, values in (("before", sigmoid(kept["logits"])), ("after", probabilities)):
        assert calibration[name]["ece"] == calibration_summary(reader.targets, values)["ece"]
        assert calibration[name]["ece_macro"] == label_calibration_errors(reader.targets, values).mean()
        assert calibration[name]["curve"] == calibration_summary(reader.targets, values)["curve"]
        assert calibration[name]["loss"] == pytest.approx(log_loss(reader.targets.ravel(), values.ravel()), rel=1e-5)
    assert calibration["before"]["ece"] != calibration["after"]["ece"]
    assert result["loss"] == calibration["before"]["loss"]
    shown = capsys.readouterr().out
    assert "single of val 0.45" in shown and "calibrated (platt)" in shown and "ECE" in shown


def test_metrics_name_their_shard_set_and_the_card_says_another_one(calibrated: Path, shard_set: Path, tmp_path: Path):
    model = shutil.copytree(calibrated, tmp_path / "model")
    here = Manifest.read(shard_set).fingerprint

    def card(trained_on: str) -> str:
        config = json.loads((model / "config.json").read_text())
        config[OWN_KEY]["shard_set"] = trained_on
        write_json(model / "config.json", config)
        write_card(model)
        return (model / "README.md").read_text()

    assert main(["evaluate", "--model", str(model), "--shards", str(shard_set), "--workers", "1"]) == 0
    metrics = json.loads((model / "metrics-test.json").read_text())
    assert metrics["shard_set"] == here
    warning = f"Measured on shard set {here}, **not the shard set of training**"
    assert warning in (model / "README.md").read_text() and warning in card("0123456789abcdef")
    assert "## Metrics on test" in card(here) and "Measured on shard set" not in card(here)
    del metrics["shard_set"]  # as older versions left it
    write_json(model / "metrics-test.json", metrics)
    assert "## Metrics on test" in card("x") and "Measured on shard set" not in card("x")


def test_two_processes_evaluate_as_one_does(calibrated: Path, shard_set: Path, tmp_path: Path):
    arguments = ["--model", calibrated, "--shards", shard_set, "--workers", "1", "--out"]
    assert main(["evaluate", *map(str, arguments), str(tmp_path / "one.json")]) == 0
    run = launch_2("launch/evaluate.py", *arguments, tmp_path / "two.json")
    assert run.returncode == 0, run.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert [row["metrics"] for row in one["thresholds"]] == [row["metrics"] for row in two["thresholds"]]
    for name in ("before", "after"):
        for key in ("loss", "ece", "ece_macro"):
            assert two["calibration"][name][key] == pytest.approx(one["calibration"][name][key], abs=1e-5)
    first, second = (np.load(tmp_path / f"{name}.npz", allow_pickle=False) for name in ("one", "two"))
    assert (first["ids"] == second["ids"]).all() and (first["targets"] == second["targets"]).all()
    np.testing.assert_allclose(first["logits"], second["logits"], atol=1e-5)


def test_tables_name_every_genre_and_baseline(evaluated, labels: LabelSet):
    shown, _ = evaluated
    for word in (*labels.genres, "mAP", "always top-2", "prevalence", "micro", "macro-F1", "F0.5", "support"):
        assert word in shown


def test_pixels_are_those_of_the_stored_jpeg(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "test")
    image = decode(reader.image_bytes(0), ANY)
    (width,), (height,) = reader.sizes(np.array([0]))
    assert isinstance(image, Image.Image) and image.size == (width, height)


@pytest.mark.parametrize("text", ["", "a", "0.5,1.5", "-0.1"])
def test_thresholds_outside_zero_to_one(text: str):
    with fails("option-value", "--thresholds", repr(text)):
        parse_thresholds(text)


def test_labels_of_another_set_are_refused_with_the_difference(shard_set: Path, labels: LabelSet, tmp_path: Path):
    swapped = LabelSet((labels.genres[1], labels.genres[0], *labels.genres[2:]))
    folder = make_model_folder(tmp_path / "m", swapped, HeadSpec("linear", (), 0.0))
    run = posters_command("evaluate", "--model", folder, "--shards", shard_set)
    (line,) = error_lines(run)
    assert run.returncode == 2 and "another order, with the first difference at column 0" in line


def test_an_unknown_split_and_a_missing_model(model_folder: Path, shard_set: Path):
    run = posters_command("evaluate", "--model", model_folder, "--shards", shard_set, "--split", "dev")
    assert run.returncode == 2 and "no split 'dev'" in error_lines(run)[0]
    run = posters_command("evaluate", "--model", "nowhere", "--shards", shard_set)
    assert run.returncode == 2 and "nowhere" in error_lines(run)[0]


def test_metrics_do_not_take_the_place_of_another_file(model_folder: Path, shard_set: Path, tmp_path: Path):
    for name in ("x.npz", "x.csv", "x.JSON.txt"):
        with fails("option-value", "--out", tmp_path / name, ".json", ".npz"):
            main(["evaluate", "--model", str(model_folder), "--shards", str(shard_set), "--out", str(tmp_path / name)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["evaluate", "tune"])
@pytest.mark.parametrize("end", ["a reader that has gone", "a full disk"])
def test_stdout_that_takes_nothing_loses_no_results(
    command: str,
    end: str,
    model_folder: Path,
    shard_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    model = shutil.copytree(model_folder, tmp_path / "model")
    if end == "a full disk":
        stream = open("/dev/full", "w")  # noqa: SIM115  # for the command, as its shell would open it
    else:
        read, write = os.pipe()
        os.close(read)
        stream = os.fdopen(write, "w")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as ended:
        run([command, "--model", str(model), "--shards", str(shard_set)])
    stream.close()
    split = "test" if command == "evaluate" else "val"
    assert json.loads((model / f"metrics-{split}.json").read_text())["split"] == split
    assert (model / f"predictions-{split}.npz").exists() and split in (model / "README.md").read_text()
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    if end == "a full disk":
        assert ended.value.code == 2 and len(errors) == 1
        assert "standard output cannot be written (No space left on device)" in errors[0]
    else:
        assert ended.value.code == 0 and not errors
