"""Logits of a split: what the file keeps, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from failing import fails

from shards.dataset.manifest import Manifest
from toolkit.distributed.collectives import make_accelerator
from toolkit.inference import split_outputs as split_logits
from toolkit.inference.split_outputs import SplitLogits, infer_split
from toolkit.model_folder.folder import load_model_folder


def test_the_file_keeps_every_bit_without_pickle(tmp_path: Path):
    logits = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32).astype(np.float64)
    targets = np.array([[True, False], [False, False], [True, True]])
    SplitLogits("test", ["a", "ü", "c"], logits, targets, ("X", "Y"), "w" * 64, "s").save(tmp_path / "p.npz")
    kept = np.load(tmp_path / "p.npz", allow_pickle=False)
    assert (kept["logits"] == logits).all() and kept["logits"].dtype == np.float32
    assert (kept["targets"] == targets).all() and kept["ids"].tolist() == ["a", "ü", "c"]
    assert kept["genres"].tolist() == ["X", "Y"] and str(kept["weights"]) == "w" * 64
    assert (str(kept["split"]), str(kept["shard_set"])) == ("test", "s")


def test_outputs_that_are_no_numbers_are_one_line(model_folder: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch):
    folder, manifest = load_model_folder(model_folder), Manifest.read(shard_set)
    accelerator = make_accelerator()
    good = infer_split(accelerator, folder, shard_set, manifest, "val", workers=1)
    assert good.logits.shape == good.targets.shape and len(good.ids) == len(good.logits)
    broken = np.full_like(good.logits, np.inf)
    monkeypatch.setattr(split_logits, "infer_all", lambda *_, **__: (broken, np.ones(len(broken), bool)))
    with fails("not-finite", "18 of 18"):
        infer_split(accelerator, folder, shard_set, manifest, "val", workers=1)
