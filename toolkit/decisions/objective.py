"""Objectives of thresholds (--aim): f1, f0.5, precision>=X and recall>=X, for one threshold or one per label.

label_thresholds.py computes thresholds per label for f1 and f0.5. For precision>=X or recall>=X, each label must reach
X with the observed targets and with the smoothed targets of sweep.py. With observed targets alone, a single positive of
a rare label can determine the threshold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.errors import UserError
from toolkit.decisions.label_thresholds import balanced_thresholds
from toolkit.decisions.sweep import DEFAULT_THRESHOLD, Sweep, make_sweep, smoothed_targets
from toolkit.metrics.helpers import BoolArray, FloatArray, f_beta, ratio

_LEVEL = re.compile(r"(precision|recall)>=(0?\.\d+|0|1|1\.0+)")  # config/values.py has this pattern, too

#: At this threshold a label is predicted only for a probability of exactly 1.
NAMES_NOTHING = 1.0


@dataclass(frozen=True)
class Aim:
    """An objective of thresholds."""

    kind: Literal["f", "precision", "recall"]
    value: float
    """For kind "f", the beta of F-beta. For the other kinds, the precision or recall that must be reached."""

    def __str__(self) -> str:
        return f"f{self.value:g}" if self.kind == "f" else f"{self.kind}>={self.value:g}"


def parse_aim(text: str) -> Aim:
    """Parse "f1", "f0.5", "precision>=X" or "recall>=X" with X from 0 to 1. Raises UserError for other texts."""
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
    """Return one threshold for all labels. It maximises micro-F, or reaches the precision or recall of ``aim``.

    The thresholds between two neighbouring scores form a range and predict the same labels. `Sweep.threshold` selects
    one of them. If several ranges have the highest micro-F, the range nearest to 0.5 is used. Of two equally near
    ranges, the higher one is used. Without positives, the threshold is 0.5. Precision and recall are micro-averaged.
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
    """Return (G,) thresholds and the weight of macro-F (None for precision>=X and recall>=X).

    The thresholds apply to the (N, G) ``probabilities``. ``expected`` (N, G): calibrated probabilities for the smoothed
    targets. ``single``: result of `single_threshold`. ``slack``: largest share of micro-F that can be lost.

    precision>=X: the lowest threshold at which the observed and the smoothed precision of the label reach X. The
    threshold is 1 if X is not reached. recall>=X: the highest threshold at which the observed and the smoothed recall
    reach X. A label without positives gets the single threshold.
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
