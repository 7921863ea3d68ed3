"""Objectives of thresholds: f1, f0.5, precision>=X or recall>=X, for one threshold or one per label.

On the validation split, f1 and f0.5 keep the micro-F of the best single threshold, except for the share
decide.max_micro_f_loss (label_thresholds.py). Precision and recall must reach X for each label, also with the smoothed
counts of sweep.py, so that one lucky positive of a rare label does not determine its threshold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.errors import UserError
from toolkit.decisions.label_thresholds import balanced_thresholds
from toolkit.decisions.sweep import DEFAULT_THRESHOLD, Sweep, make_sweep, smoothed_targets
from toolkit.metrics.multilabel import BoolArray, FloatArray, f_beta, ratio

_LEVEL = re.compile(r"(precision|recall)>=(0?\.\d+|0|1|1\.0+)")  # the same rule as in config/values.py

#: The threshold that predicts a label for no sample (except at a probability of exactly 1).
NAMES_NOTHING = 1.0


@dataclass(frozen=True)
class Aim:
    """``kind`` "f" with beta as ``value``, or "precision" or "recall" with the level to reach."""

    kind: Literal["f", "precision", "recall"]
    value: float

    def __str__(self) -> str:
        return f"f{self.value:g}" if self.kind == "f" else f"{self.kind}>={self.value:g}"


def parse_aim(text: str) -> Aim:
    """Parse "f1", "f0.5", "precision>=X" or "recall>=X" (X from 0 to 1). Raises UserError for anything else."""
    plain = text.replace(" ", "")
    if plain in ("f1", "f0.5"):
        return Aim("f", float(plain[1:]))
    found = _LEVEL.fullmatch(plain)
    if found is None:
        raise UserError(
            "option-value", f"the aim must be f1, f0.5, precision>=X or recall>=X with X from 0 to 1, not {text!r}"
        )
    return Aim("precision" if found[1] == "precision" else "recall", float(found[2]))


def single_threshold(aim: Aim, truth: BoolArray, probabilities: FloatArray) -> float:
    """Return one threshold for all labels: with the highest micro-F, or with the level for pooled precision or recall.

    Without positives, it is 0.5. Of the thresholds with the same decisions, the middle is used (`Sweep.threshold`). Of
    several with the highest micro-F, 0.5 is preferred, then the one nearest to 0.5, then the highest.
    """
    if not truth.any():
        return DEFAULT_THRESHOLD
    flat, scores = truth.ravel(), probabilities.ravel()
    pooled = make_sweep(flat, flat.astype(np.float64), scores)
    if aim.kind == "f":
        values = f_beta(pooled.hits, pooled.named, pooled.support, aim.value)
        best = np.flatnonzero(values == values.max())  # never position 0, whose F is 0
        default = best == pooled.position(DEFAULT_THRESHOLD)
        lowest = np.where(default, DEFAULT_THRESHOLD, pooled.scores[best - 1])
        first = np.lexsort((-lowest, np.abs(lowest - DEFAULT_THRESHOLD)))[0]
        return pooled.threshold(int(best[first]), DEFAULT_THRESHOLD)
    return _at_level(aim, pooled, None)


def thresholds_per_label(
    aim: Aim, truth: BoolArray, probabilities: FloatArray, expected: FloatArray, single: float, slack: float = 0.0
) -> tuple[FloatArray, float | None]:
    """Return ((G,) thresholds, the weight of macro-F for F aims or None).

    probabilities (N, G) are the final ones, calibrated or not. ``expected`` (N, G) are calibrated in any case, to
    smooth the targets. ``single`` comes from `single_threshold`; ``slack`` is used for F aims only.

    precision>=X: the lowest threshold at which observed and smoothed precision of the label reach X, for the highest
    recall; 1 if no threshold does. recall>=X: the highest threshold at which observed and smoothed recall reach X; a
    label without positives gets the single threshold.
    """
    smoothed = smoothed_targets(truth, expected)
    sweeps = [make_sweep(truth[:, g], smoothed[:, g], probabilities[:, g]) for g in range(truth.shape[1])]
    if aim.kind == "f":
        return balanced_thresholds(sweeps, single, aim.value, slack)
    return np.array([_at_level(aim, sweep, single) for sweep in sweeps]), None


def _at_level(aim: Aim, sweep: Sweep, single: float | None) -> float:
    if aim.kind == "recall":
        if sweep.support == 0 and single is not None:
            return single
        reached = np.minimum(sweep.hits / sweep.support, sweep.smooth / sweep.smooth[-1])
        return sweep.threshold(int(np.argmax(reached >= aim.value - 1e-12)), single)
    reached = np.minimum(ratio(sweep.hits, sweep.named), ratio(sweep.smooth, sweep.named))
    good = np.flatnonzero(reached[1:] >= aim.value - 1e-12)
    return sweep.threshold(int(good[-1]) + 1, single) if len(good) else NAMES_NOTHING
