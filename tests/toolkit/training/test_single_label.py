"""A set of classes, such as ImageNet's, through the commands: one positive label for each sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from shard_tools import encoded, write_tar
from toolkit_helpers import TINY, error_lines, posters_command

from toolkit.data.sources.shard_set import ShardSet

COLOURS = ((220, 40, 40), (40, 200, 40), (40, 40, 220))
SIZES = {"train": 48, "validation": 18, "test": 12}


def class_of(split: str, row: int) -> int:
    return (row * 7 + len(split)) % 3


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of pictures in one of three colours, with the class in .cls. Every tar numbers its samples from 0."""
    folder = tmp_path_factory.mktemp("classes")
    for split, count in SIZES.items():
        members = {}
        for row in range(count):
            noise = np.random.default_rng((len(split), row)).integers(-30, 30, (40, 30, 3))
            pixels = np.clip(np.array(COLOURS[class_of(split, row)]) + noise, 0, 255).astype(np.uint8)
            members[f"{row:06d}.jpg"] = encoded(Image.fromarray(pixels))
            members[f"{row:06d}.cls"] = str(class_of(split, row)).encode()
        write_tar(folder / f"colours-{split}-0000.tar", members)
    done = posters_command("shards", "index", folder, "--workers", 1)
    assert done.returncode == 0, done.stderr
    return folder


def test_train_evaluate_and_predict(classes: Path, tmp_path: Path) -> None:
    targets = ShardSet(classes).targets
    assert targets.shape == (78, 3) and (targets.sum(axis=1) == 1).all()
    options = [*TINY, "--model.freeze=[]", "--model.head=linear", "--optim.lr=0.01", "--train.epochs=4"]
    done = posters_command("train", "--shards", classes, "--out", tmp_path / "run", *options)
    assert done.returncode == 0 and not error_lines(done), done.stderr
    model = tmp_path / "run" / "model"
    assert json.loads((model / "labels.json").read_text())["genres"] == ["0", "1", "2"]
    done = posters_command("evaluate", "--model", model, "--shards", classes, "--split", "test")
    assert done.returncode == 0 and not error_lines(done), done.stderr
    metrics = json.loads((model / "metrics-test.json").read_text())
    assert metrics["ranking"]["mAP"] > 0.9  # the colours are learnt
    saved = np.load(model / "predictions-test.npz")
    assert saved["ids"][0] == "colours-test-0000/000000" and (saved["targets"].sum(axis=1) == 1).all()
    done = posters_command(
        "predict", "--model", model, "--shards", classes, "--split", "test", "--top-k", 1, "--out", tmp_path / "out"
    )
    assert done.returncode == 0 and not error_lines(done), done.stderr
    rows = pd.read_parquet(next((tmp_path / "out").glob("*.parquet")))
    assert list(rows["id"]) == [f"colours-test-0000/{row:06d}" for row in range(SIZES["test"])]
    right = [list(found) == [str(class_of("test", row))] for row, found in enumerate(rows["genres"])]
    assert np.mean(right) > 0.8
