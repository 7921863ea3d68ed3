"""Evaluate a model folder on a split of a shard set.

    posters evaluate --model RUN/model --shards SHARDS [--split test]
    accelerate launch launch/evaluate.py --model RUN/model --shards SHARDS
    posters evaluate --model RUN/model --shards SHARDS --report DIR [--compare RUN2]

The thresholds and the calibration of the model are applied, not changed. results.py computes the metrics. The command
itself is in toolkit/cli/run_evaluate.py, and the report in toolkit/report/.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from accelerate import Accelerator

from shards.dataset.manifest import Manifest
from shards.dataset.store import ShardsAt
from toolkit.evaluation.results import FIXED_THRESHOLDS, Evaluation, evaluate_arrays, train_prevalence
from toolkit.inference.split_outputs import SplitLogits, infer_split
from toolkit.metrics.helpers import FloatArray
from toolkit.metrics.registry import Metric
from toolkit.model_folder.folder import OWN_KEY, ModelFolder

log = logging.getLogger(__name__)


def evaluate(
    accelerator: Accelerator,
    folder: ModelFolder,
    shards: ShardsAt,
    manifest: Manifest,
    split: str,
    thresholds: list[float],
    batch_size: int = 0,
    workers: int = 0,
    own: Sequence[Metric] = (),
) -> tuple[Evaluation, SplitLogits]:
    """Evaluate a model on a split. Return the evaluation and the model's outputs, on every rank.

    ``own``: metrics of the user (`own_metrics`).
    """
    warn_of_another_set(folder, manifest, shards, split)
    outputs = infer_split(accelerator, folder, shards, manifest, split, batch_size, workers)
    if folder.decisions.chosen_on.get("split", "val") == split:
        log.warning(
            "the model's thresholds and calibration were chosen on %s: the metrics of %s are too good", split, split
        )
    return evaluate_outputs(folder, manifest, outputs, thresholds, own), outputs


def warn_of_another_set(folder: ModelFolder, manifest: Manifest, shards: ShardsAt, split: str) -> None:
    """Warn if the model was not trained on this shard set. The model's training samples could then be in this split."""
    trained_on = folder.config[OWN_KEY].get("shard_set")
    if trained_on and trained_on != manifest.fingerprint:
        log.warning(
            "%s is not the shard set that %s was trained on: if its %s split contains training samples, the metrics "
            "of the split are too good",
            shards,
            folder.path,
            split,
        )


def evaluate_outputs(
    folder: ModelFolder,
    manifest: Manifest,
    outputs: SplitLogits,
    thresholds: list[float] | None = None,
    own: Sequence[Metric] = (),
) -> Evaluation:
    """Evaluate the logits of a split at the model's own thresholds and at fixed ``thresholds``."""
    if "train" not in manifest.split_names:
        log.warning("the shard set has no train split: the baselines use the prevalence of %s", outputs.split)
    return evaluate_arrays(
        outputs.targets,
        outputs.logits,
        folder.labels.genres,
        baseline_prevalence(manifest, outputs),
        folder.decisions,
        thresholds or FIXED_THRESHOLDS,
        split=outputs.split,
        shard_set=outputs.shard_set,
        own=own,
        weights=outputs.sample_weights,
    )


def baseline_prevalence(manifest: Manifest, outputs: SplitLogits) -> FloatArray:
    """Return the (G,) prevalence of the training split, or of the evaluated split if there is no training split."""
    if "train" in manifest.split_names:
        return train_prevalence(manifest)
    return outputs.targets.mean(axis=0)
