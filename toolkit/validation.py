"""From the validation logits of an epoch to its verdict: metrics, decisions, and the model folder of the best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from shards.errors import UserError
from shards.manifest import Manifest
from toolkit.config import Config, DecideConfig
from toolkit.config_cli import config_dict
from toolkit.data.transforms import Preprocessing
from toolkit.decisions import Decisions, choose_decisions
from toolkit.model_folder import save_model_folder
from toolkit.models import HeadSpec
from toolkit.report_tables import Evaluation, evaluate_arrays


@dataclass(frozen=True)
class Verdict:
    """An epoch, judged on the validation split."""

    evaluation: Evaluation
    decisions: Decisions
    """Calibration and thresholds, chosen on this split."""

    @property
    def loss(self) -> float:
        return self.evaluation.loss

    def row(self) -> dict[str, Any]:
        """Its columns of epochs.csv."""
        chosen = self.evaluation.thresholds[-1].metrics
        return {
            "val_loss": self.loss,
            "val_mAP": self.evaluation.ranking["mAP"],
            "val_micro_f1": chosen["micro_f1"],
            "val_macro_f1": chosen["macro_f1"],
            "threshold": self.decisions.global_threshold,
        }

    def __str__(self) -> str:
        row = self.row()
        m_ap = "-" if row["val_mAP"] is None else f"{row['val_mAP']:.3f}"
        return (
            f"val loss {self.loss:.4f}, mAP {m_ap}, micro-F1 {row['val_micro_f1']:.3f}, "
            f"macro-F1 {row['val_macro_f1']:.3f}"
        )


def judge(
    targets: np.ndarray,
    logits: np.ndarray,
    manifest: Manifest,
    decide: DecideConfig | None = None,
) -> Verdict:
    """Verdict on (n, G) validation logits against (n, G) targets of 0 and 1; ``decide`` is DecideConfig() by default.

    The evaluation's loss is that of the logits as they are: it picks the best epoch, whatever calibration mends.
    """
    if not np.isfinite(logits).all():
        raise UserError("the model's outputs on validation are not finite: lower --optim.lr")
    decisions = choose_decisions(targets, logits, decide)
    evaluation = evaluate_arrays(
        targets,
        logits,
        manifest.genres,
        train_prevalence(manifest),
        decisions,
        split="val",
        shard_set=manifest.fingerprint,
    )
    return Verdict(evaluation, decisions)


def export_model(
    folder: Path,
    model: nn.Module,
    config: Config,
    manifest: Manifest,
    preprocessing: Preprocessing,
    verdict: Verdict,
    *,
    epoch: int,
    score: float,
    weights: str = "raw",
    state: dict[str, Any] | None = None,
) -> str:
    """Write the model folder of the best epoch so far, and return the sha256 of its weights.

    ``model`` is unwrapped, ``epoch`` counts from 1; ``score`` is the figure of train.monitor, by which a resume
    compares what lies there with what its checkpoint knows.

    ``state`` is its whole state where ``model`` holds a part of each tensor only.
    ``weights`` says whose they are: "raw" (of the last update) or "ema" (their moving average).
    """
    return save_model_folder(
        folder,
        model,
        HeadSpec.of(config.model),
        manifest.labels,
        verdict.decisions,
        preprocessing,
        {
            "epoch": epoch,
            "monitor": config.train.monitor,
            "score": score,
            "weights": weights,
            "shard_set": manifest.fingerprint,
            "training_config": config_dict(config),
        },
        {"val": verdict.evaluation.to_dict()},
        state,
    )


def train_prevalence(manifest: Manifest) -> np.ndarray:
    """(G,) share of training samples with each genre; what the baselines know."""
    summary = manifest.split_summary()["train"]
    return np.array([summary["genre_counts"][genre] for genre in manifest.genres]) / summary["samples"]
