"""An epoch's verdict: its figures are those of the decisions that are saved with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import fails
from metric_tools import prediction_metrics, threshold_metrics
from toolkit_helpers import TINY

from shards.dataset.manifest import Manifest
from toolkit.cli.main import main
from toolkit.config.schema import DecideConfig
from toolkit.decisions.cross_fit import CrossFit
from toolkit.decisions.decisions import choose_decisions
from toolkit.metrics.helpers import cross_entropy
from toolkit.training.validation import monitored, validate


def outputs(manifest: Manifest, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    prevalence = 0.6 / np.arange(1, len(manifest.genres) + 1) ** 1.2
    targets = rng.random((count, len(prevalence))) < prevalence
    odds = np.log(prevalence / (1 - prevalence)) + targets + rng.normal(size=targets.shape)
    return targets, (3 * odds).astype(np.float32).astype(np.float64)


def test_the_verdict_is_of_its_decisions(shard_set: Path):
    manifest = Manifest.read(shard_set)
    targets, logits = outputs(manifest)
    for decide in (None, DecideConfig("global", "f0.5", "none"), DecideConfig("genre", "f1", "platt")):
        verdict = validate(targets, logits, manifest, decide)
        assert verdict.decisions.to_dict() == choose_decisions(targets, logits, decide).to_dict()
        row = verdict.row()
        held_out = prediction_metrics(targets, CrossFit(targets, logits, decide).named())
        assert (row["val_micro_f1"], row["val_macro_f1"]) == (held_out["micro_f1"], held_out["macro_f1"])
        saved = verdict.evaluation.thresholds[-1].metrics  # of the decisions that are saved, on the same samples
        assert saved == threshold_metrics(
            targets, verdict.decisions.probabilities(logits), verdict.decisions.thresholds
        )
        assert row["threshold"] == verdict.decisions.global_threshold
        # the figure that picks the best epoch is the model's own, not the calibrated one
        assert row["val_loss"] == cross_entropy(logits.astype(np.float64), targets).mean()
    assert verdict.evaluation.calibration["after"]["loss"] < row["val_loss"]


def test_what_is_monitored_does_not_reward_a_fit_to_the_split(shard_set: Path):
    """Logits that say nothing: thresholds fitted on the same samples find macro-F1 in them that others have not."""
    manifest = Manifest.read(shard_set)
    flattered, monitored_ = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        targets = rng.random((60, len(manifest.genres))) < np.linspace(0.4, 0.1, len(manifest.genres))
        verdict = validate(targets, rng.normal(size=targets.shape), manifest, DecideConfig("genre", "f1", "none"))
        flattered.append(verdict.evaluation.thresholds[-1].metrics["macro_f1"])
        monitored_.append(monitored(verdict.row(), "macro_f1"))
    assert np.mean(flattered) > np.mean(monitored_) + 0.005


def test_near_duplicates_are_not_measured_on_one_another(shard_set: Path):
    """Every sample four times: with the copies in other folds, noise would be learnt by them."""
    manifest = Manifest.read(shard_set)
    targets, logits = outputs(manifest, 40)
    copies, decide = np.arange(160) % 40, DecideConfig("genre", "f1", "platt")
    alone = validate(targets[copies], logits[copies], manifest, decide, np.arange(160))
    together = validate(targets[copies], logits[copies], manifest, decide, copies)
    assert together.row()["val_macro_f1"] < alone.row()["val_macro_f1"]


def test_outputs_that_are_no_numbers_are_one_line(shard_set: Path):
    manifest = Manifest.read(shard_set)
    targets, logits = outputs(manifest)
    logits[3, 1] = np.nan
    with fails("not-finite", "--optim.lr"):
        validate(targets, logits, manifest)


def edit_state(run: Path, **progress: Any) -> dict[str, Any]:
    """The progress of a run's only checkpoint, and then with other values; None takes a key away."""
    (path,) = (run / "checkpoints").glob("*/state.json")
    raw = json.loads(path.read_text())
    before = dict(raw["progress"])
    raw["progress"] = {k: v for k, v in {**before, **progress}.items() if v is not None}
    path.write_text(json.dumps(raw))
    return before


def last_progress(run: Path) -> dict[str, Any]:
    newest = max((run / "checkpoints").glob("*/state.json"))
    progress: dict[str, Any] = json.loads(newest.read_text())["progress"]
    return progress


@pytest.mark.parametrize("other", ["an earlier version", "another aim", "a lost model", "the loss"])
def test_a_resumed_run_compares_figures_of_one_kind(
    shard_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, other: str
):
    """The score of earlier versions was that of a fit to the split: no later epoch would ever have beaten it."""
    run, monitor = tmp_path / "run", "loss" if other == "the loss" else "macro_f1"
    train = ["train", "--shards", str(shard_set), "--out", str(run), *TINY, f"--train.monitor={monitor}"]
    assert main([*train, "--train.epochs=1"]) == 0
    before = edit_state(run, best_score=0.99, scored=None)
    options = ["--train.epochs=2", "--resume"]
    if other == "another aim":
        edit_state(run, **before)
        options.append("--decide.aim=f0.5")
    if other == "a lost model":
        (run / "model" / "model.safetensors").unlink()
    with caplog.at_level("INFO"):
        assert main([*train, *options]) == 0
    said = [r.getMessage() for r in caplog.records if "was measured with another rule" in r.getMessage()]
    after = last_progress(run)
    if other == "a lost model":
        assert not said and any("the run's best model is lost" in r.getMessage() for r in caplog.records)
        assert after["best_epoch"] == 1 and (run / "model" / "model.safetensors").exists()
        return
    if other == "the loss":  # what needs no decisions is what it was
        assert not said and after["scored"] == before["scored"] == "" and after["best_epoch"] == 1
        return
    (line,) = said
    assert "\n" not in line and after["scored"].startswith("cross-fit ")
    again = float(line.rpartition(": ")[2])
    if other == "an earlier version":
        assert again == pytest.approx(before["best_score"], abs=1e-4)
    assert after["best_score"] >= again - 1e-4 and after["best_score"] < 0.99
    assert (after["scored"] == before["scored"]) == (other != "another aim")
