"""Validation after an epoch: metrics and decisions from logits, and the model folder of the best epoch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from shards.dataset.manifest import Manifest
from shards.errors import UserError, one_line
from shards.extras import load_object
from shards.storage.files import atomic_write, fingerprint
from toolkit.config.extensions import code_digest, is_place
from toolkit.config.io import config_dict
from toolkit.config.schema import Config, DecideConfig
from toolkit.decisions.cross_fit import CrossFit
from toolkit.decisions.decisions import Decisions, decisions_of
from toolkit.distributed.collectives import by_main
from toolkit.evaluation.results import Evaluation, evaluate_arrays, train_prevalence
from toolkit.inference.split_outputs import infer_split
from toolkit.metrics.helpers import FloatArray, check_arrays
from toolkit.metrics.registry import METRICS, PLACES, Metric, values
from toolkit.metrics.weighted import Outcome, Weighed
from toolkit.model_folder.folder import load_model_folder, save_model_folder
from toolkit.models.heads import HeadSpec

if TYPE_CHECKING:
    from toolkit.training.checkpoints.checkpoint import Progress
    from toolkit.training.setup import TrainingSetup

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationResult:
    """Result of an epoch on the validation split."""

    evaluation: Evaluation
    decisions: Decisions
    """Calibration and thresholds, chosen on this split."""
    held_out: dict[str, float]
    """Metrics by cross-fitting: each fold is measured with thresholds and calibration from the other folds. The
    metrics of ``decisions`` on this split are too high, because ``decisions`` were chosen on the same samples."""
    own: dict[str, float | None] = field(default_factory=dict)
    """Metrics of the user, with labels predicted by cross-fitting."""
    outcome: Outcome | None = None
    """Targets, labels predicted by cross-fitting, and calibrated probabilities."""

    def row(self) -> dict[str, Any]:
        """Return the validation columns of epochs.csv."""
        known = self.evaluation.ranking | self.held_out
        figures = {f"val_{metric.key}": known[metric.key] for metric in PLACES["epochs"]}
        own = {f"val_{name}": value for name, value in self.own.items()}
        return {"val_loss": self.evaluation.loss, **figures, "threshold": self.decisions.global_threshold, **own}


def validate(
    targets: np.ndarray,
    logits: np.ndarray,
    manifest: Manifest,
    decide: DecideConfig | None = None,
    groups: np.ndarray | None = None,
    own: Sequence[Metric] = (),
    weights: FloatArray | None = None,
) -> ValidationResult:
    """Return metrics and decisions for validation logits (n, G) and targets (n, G) of 0 and 1.

    If ``decide`` is None, use DecideConfig(). ``groups`` (n,): near-duplicates have equal numbers. None if
    there are no near-duplicates. The loss is computed without calibration. ``own``: metrics of the user. ``weights``
    (n,): sample weights for the metrics, or None if all samples have the same weight. Decisions are chosen without
    weights. Raises UserError if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise UserError("not-finite", "the model's outputs on validation are not finite: lower --optim.lr")
    truth, scores = check_arrays(targets, logits)
    fits = CrossFit(truth, scores, decide, groups)
    decisions = decisions_of(fits.choose(), fits)
    prevalence, shard_set = train_prevalence(manifest), manifest.fingerprint
    evaluation = evaluate_arrays(
        truth, scores, manifest.genres, prevalence, decisions, split="val", shard_set=shard_set, own=own,
        weights=weights,
    )  # fmt: skip
    held_out = Outcome(truth, fits.named(), decisions.probabilities(scores), weights)
    figures = {metric.key: metric.value(Weighed(held_out)) for metric in own}
    named = values(held_out, "decisions")
    return ValidationResult(evaluation, decisions, named, figures, held_out)


def draw_thresholds(result: ValidationResult, path: Path) -> bool:
    """Draw metrics against the threshold into a PNG file. Return False after an error, which must not end a run."""
    try:
        sweep = load_object("toolkit.report.plots.threshold_plots:validation_sweep")  # imports matplotlib: seconds
        with atomic_write(path) as stream:
            stream.write(sweep(result.outcome, result.decisions).png)
    except Exception as error:
        log.warning("the picture %s cannot be drawn: %s", path, one_line(error))
        return False
    return True


def remeasure_best(setup: TrainingSetup, state: Progress, own: Sequence[Metric] = ()) -> None:
    """Measure a run's best model again if the rule of its score differs from the current rule. Called by every rank.

    ``own``: metrics of the user. If the model cannot be read, the next epoch counts as the best.
    """
    config, before, rule = setup.config, state.best_score, scoring_rule(setup.config)
    outdated, state.scored = state.scored != rule, rule
    if before is None or not outdated:
        return
    try:
        state.best_score = monitored(_validate_folder(setup, own).row(), config.train.monitor)
        result = f"{state.best_score:.4f}"
    except UserError as error:
        state.best_score, result = None, f"not possible, so the next epoch counts as the best ({error})"
    if setup.accelerator.is_main_process:
        log.info(
            "the best %s so far, %.4f of epoch %d, was measured with another rule, because the version, the decide "
            "options or the code of the metric differ; measured again: %s",
            *(config.train.monitor, before, state.best_epoch + 1, result),
        )


def _validate_folder(setup: TrainingSetup, own: Sequence[Metric]) -> ValidationResult:
    """Measure RUN/model on the validation split. Raises UserError if the model cannot be read."""
    accelerator, config, manifest = setup.accelerator, setup.config, setup.manifest
    folder = load_model_folder(setup.out / "model")
    rows, workers = config.train.eval_batch_size, config.data.workers
    outputs = infer_split(accelerator, folder, setup.val.store, manifest, "val", rows, workers)
    folder.model.to("cpu")  # frees memory of the device
    return by_main(
        accelerator,
        lambda: validate(
            outputs.targets,
            outputs.logits,
            manifest,
            config.decide,
            manifest.units_of("val"),
            own,
            weights=outputs.sample_weights,
        ),
    )


def scoring_rule(config: Config) -> str:
    """Return the rule by which the metric train.monitor is measured. Scores of different rules are not comparable.

    The rule is "" for metrics without decisions. It is also "" in runs of earlier versions, which chose and
    measured decisions on the same samples. The rule of a metric of the user also has the digest of its code.
    """
    monitor = config.train.monitor
    if not is_place(monitor) and METRICS[monitor].group != "decisions":
        return ""
    decide = asdict(config.decide)
    decide["slack"] = decide.pop("max_micro_f_loss")  # the option's earlier name, so that the digest stays the same
    code = f", code {code_digest(monitor)[:16]}" if is_place(monitor) else ""
    return f"cross-fit {fingerprint(decide)[:16]}{code}"


def monitored(row: dict[str, Any], monitor: str) -> float:
    """Return metric ``monitor`` from an epoch's row. Raises UserError if the metric is not defined on this split."""
    name = f"val_{monitor.rpartition(':')[2]}"
    if row[name] is None and is_place(monitor):
        raise UserError(
            "option-value",
            f"the metric {monitor} returned NaN, so this epoch cannot be compared with other epochs: correct the "
            f"metric, and continue with --resume",
        )
    if row[name] is None:
        raise UserError(
            "option-value",
            f"train.monitor {monitor} is not defined on this validation split (no genre has positives and negatives): "
            f"use --train.monitor loss",
        )
    return float(row[name])


def better(score: float, best: float | None, monitor: str, own: Sequence[Metric] = ()) -> bool:
    """Return True if ``best`` (the best score so far) is None, or if ``score`` is better than ``best``.

    ``own``: metrics of the user.
    """
    metric = own[0] if is_place(monitor) else METRICS[monitor]
    return best is None or (score < best if metric.better == "lower" else score > best)


def export_model(
    setup: TrainingSetup,
    trained: nn.Module,
    result: ValidationResult,
    *,
    epoch: int,
    score: float,
    state: dict[str, Any] | None,
) -> str:
    """Write RUN/model, the model folder of the best epoch so far, and return the sha256 of its weights.

    ``trained`` is the unwrapped trained module, or its moving average. ``epoch`` counts from 1. ``score`` is the value
    of train.monitor, which is saved for resumed runs. ``state`` is the whole state dict if
    ``trained`` contains only a part of each tensor, else None.
    """
    config, manifest = setup.config, setup.manifest
    model, head, metrics = setup.inputs.whole(trained), HeadSpec.of(config.model), result.evaluation.to_dict()
    facts = {
        "epoch": epoch,
        "monitor": config.train.monitor,
        "score": score,
        "weights": "raw" if setup.ema is None else "ema",
        "shard_set": manifest.fingerprint,
        "training_config": config_dict(config),
    }
    described = manifest.labels, result.decisions, setup.preprocessing, facts, {"val": metrics}
    return save_model_folder(setup.out / "model", model, head, *described, state)
