"""``posters evaluate``: its numbers are scikit-learn's on the model's own logits, and the threshold is validation's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from toolkit_helpers import error_lines, make_model_folder, posters_command

from shards.errors import UserError
from shards.labels import LabelSet
from toolkit.data.cuts import eval_cutter
from toolkit.data.loader import Loader
from toolkit.data.plan import EvalPlan
from toolkit.data.reader import ShardReader
from toolkit.data.transforms import decode_rgb
from toolkit.evaluate import parse_thresholds
from toolkit.model_folder import load_model_folder
from toolkit.models import HeadSpec


@pytest.fixture(scope="module")
def evaluated(model_folder: Path, shard_set: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("eval") / "test.json"
    run = posters_command(
        "evaluate",
        "--model",
        model_folder,
        "--shards",
        shard_set,
        "--out",
        out,
        "--thresholds",
        "0.4,0.45,0.6",
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(out.read_text())


def test_numbers_are_scikit_learns(evaluated, model_folder: Path, shard_set: Path):
    _, result = evaluated
    folder = load_model_folder(model_folder)
    reader = ShardReader.of_split(shard_set, "test")
    cutter = eval_cutter(reader, folder.preprocessing, "cpu", torch.device("cpu"))
    with Loader(reader, 1, 1) as loader, torch.inference_mode():
        (batch,) = loader.batches(EvalPlan(len(reader), len(reader)).shares(0, 1), cutter)
        probabilities = folder.model(folder.preprocessing.normalize(batch.images)).sigmoid().numpy()
    assert result["num_samples"] == len(reader)
    supported = reader.targets.any(axis=0)
    expected = average_precision_score(
        reader.targets[:, supported], probabilities[:, supported], average="macro"
    )
    assert result["ranking"]["mAP"] == pytest.approx(expected, abs=1e-6)
    assert [row["label"] for row in result["thresholds"]] == ["0.40", "0.45", "0.60", "chosen 0.50"]
    for row in result["thresholds"]:
        named = probabilities.astype(np.float64) >= row["threshold"]
        expected = f1_score(reader.targets, named, average="micro", zero_division=0)
        assert row["metrics"]["micro_f1"] == pytest.approx(expected, abs=1e-6)
    assert {row["kind"] for row in result["baselines"]} == {"prevalence", "top_k"}


def test_tables_name_every_genre_and_baseline(evaluated, labels: LabelSet):
    shown, _ = evaluated
    for word in (
        *labels.genres,
        "mAP",
        "always top-2",
        "prevalence",
        "micro-F1",
        "macro-F1",
        "F0.5",
        "support",
    ):
        assert word in shown


def test_pixels_are_those_of_the_stored_jpeg(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "test")
    image = decode_rgb(reader.image_bytes(0))
    assert isinstance(image, Image.Image) and image.size == (reader.widths[0], reader.heights[0])


@pytest.mark.parametrize("text", ["", "a", "0.5,1.5", "-0.1"])
def test_thresholds_outside_zero_to_one(text: str):
    with pytest.raises(UserError, match="--thresholds"):
        parse_thresholds(text)


def test_labels_of_another_set_are_refused_with_the_difference(
    shard_set: Path, labels: LabelSet, tmp_path: Path
):
    swapped = LabelSet((labels.genres[1], labels.genres[0], *labels.genres[2:]))
    folder = make_model_folder(tmp_path / "m", swapped, HeadSpec("linear", (), 0.0))
    run = posters_command("evaluate", "--model", folder, "--shards", shard_set)
    (line,) = error_lines(run)
    assert run.returncode == 2 and "another order, first at column 0" in line


def test_an_unknown_split_and_a_missing_model(model_folder: Path, shard_set: Path):
    run = posters_command("evaluate", "--model", model_folder, "--shards", shard_set, "--split", "dev")
    assert run.returncode == 2 and "no split 'dev'" in error_lines(run)[0]
    run = posters_command("evaluate", "--model", "nowhere", "--shards", shard_set)
    assert run.returncode == 2 and "nowhere" in error_lines(run)[0]
