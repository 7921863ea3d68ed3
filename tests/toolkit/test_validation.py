"""An epoch's verdict: its figures are those of the decisions that are saved with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.errors import UserError
from shards.manifest import Manifest
from toolkit.config import DecideConfig
from toolkit.decisions import choose_decisions
from toolkit.metrics import bce_from_logits, threshold_metrics
from toolkit.validation import judge


def outputs(manifest: Manifest, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    prevalence = 0.6 / np.arange(1, len(manifest.genres) + 1) ** 1.2
    targets = rng.random((count, len(prevalence))) < prevalence
    odds = np.log(prevalence / (1 - prevalence)) + targets + rng.normal(size=targets.shape)
    return targets, (3 * odds).astype(np.float32)


def test_the_verdict_is_of_its_decisions(shard_set: Path):
    manifest = Manifest.read(shard_set)
    targets, logits = outputs(manifest)
    for decide in (None, DecideConfig("global", "f0.5", "none"), DecideConfig("genre", "f1", "platt")):
        verdict = judge(targets, logits, manifest, decide)
        assert verdict.decisions.to_dict() == choose_decisions(targets, logits, decide).to_dict()
        row = verdict.row()
        expected = threshold_metrics(
            targets, verdict.decisions.probabilities(logits), verdict.decisions.thresholds
        )
        assert (row["val_micro_f1"], row["val_macro_f1"]) == (expected["micro_f1"], expected["macro_f1"])
        assert row["threshold"] == verdict.decisions.global_threshold
        # the figure that picks the best epoch is the model's own, not the calibrated one
        assert row["val_loss"] == bce_from_logits(logits, targets)
    assert verdict.evaluation.calibration["after"]["loss"] < row["val_loss"]


def test_outputs_that_are_no_numbers_are_one_line(shard_set: Path):
    manifest = Manifest.read(shard_set)
    targets, logits = outputs(manifest)
    logits[3, 1] = np.nan
    with pytest.raises(UserError, match=r"not finite: lower --optim\.lr"):
        judge(targets, logits, manifest)
