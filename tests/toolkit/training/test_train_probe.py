"""Training on cached features, whole runs: a real model comes out, alike in one and two processes and after a stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from toolkit_helpers import TINY, launch_2, posters_command, weights_option

PROBE = [
    *TINY,
    "--model.head=levels",
    "--model.prior=true",
    "--model.freeze=[backbone]",
    weights_option(),
    "--optim.name=adamw",
    "--optim.lr=0.01",
    "--train.feature_views=2",
    "--train.standardize=true",
    "--train.ema=0.9",
    "--train.epochs=4",
    "--train.patience=0",
    "--train.precision=no",
]


@pytest.fixture(scope="module")
def run(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe") / "run"
    done = posters_command("train", "--shards", shard_set, "--out", out, *PROBE)
    assert done.returncode == 0, done.stderr
    return out


def test_the_model_on_pixels_gives_the_metrics_that_the_head_had_on_features(run: Path, shard_set: Path):
    before = pd.read_csv(run / "epochs.csv")
    assert before["val_loss"].iloc[-1] < before["val_loss"].iloc[0]
    done = posters_command("evaluate", "--model", run / "model", "--shards", shard_set, "--split", "val")
    assert done.returncode == 0, done.stderr
    best = float(before["val_loss"].min())
    found = json.loads((run / "model" / "metrics-val.json").read_text())
    assert found["loss"] == pytest.approx(best, abs=2e-3)


def test_features_are_taken_once(run: Path, shard_set: Path, tmp_path: Path):
    files = sorted((run / "features").iterdir())
    assert [path.name.split("-")[0] for path in files] == ["train", "train", "val"]
    before = {path: path.stat().st_mtime_ns for path in files}
    out = tmp_path / "again"
    done = posters_command(
        "train", "--shards", shard_set, "--out", out, *PROBE, f"--train.feature_cache={run / 'features'}"
    )
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in sorted((run / "features").iterdir())} == before
    assert not (out / "features").exists()
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (run, out))
    assert all((first[key] == second[key]).all() for key in first)


def test_resumed_it_is_the_uninterrupted_run(run: Path, shard_set: Path, tmp_path: Path):
    part = tmp_path / "part"
    done = posters_command("train", "--shards", shard_set, "--out", part, *PROBE, "--train.epochs=2")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(part / "features")  # they are only a cache
    done = posters_command("train", "--shards", shard_set, "--out", part, *PROBE, "--resume")
    assert done.returncode == 0, done.stderr
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (run, part))
    assert all((first[key] == second[key]).all() for key in first)


def test_two_processes_give_the_same_model(shard_set: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"  # dropout is drawn per rank
    options = [*PROBE, "--model.dropout=0", "--shards", str(shard_set), "--out"]
    for done in (posters_command("train", *options, one), launch_2("launch/train.py", *options, two)):
        assert done.returncode == 0, done.stderr
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    for key in first:
        assert np.allclose(first[key], second[key], rtol=1e-3, atol=1e-4), key


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.freeze=[stem]", "model.freeze [backbone]"),
        ("--augment.cutmix=1", "feature_views 0"),
        ("--train.auto_batch=true", "auto_batch"),
    ],
)
def test_what_features_cannot_give_is_refused(option: str, words: str, shard_set: Path, tmp_path: Path):
    done = posters_command("train", "--shards", shard_set, "--out", tmp_path / "r", *PROBE, option)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
