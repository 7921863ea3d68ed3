"""What thresholds aim at: f1, f0.5, precision>=X or recall>=X, for one threshold or one per genre.

Every aim reaches on the validation split what it states: f1 and f0.5 at least the micro-F of the best single
threshold less decide.max_micro_f_loss (label_thresholds.py), the others their level for each genre. Rare genres are
smoothed (sweep.py): a level must be reached by the smoothed counts too, so one lucky positive does not set a threshold.
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

_LEVEL = re.compile(r"(precision|recall)>=(0?\.\d+|0|1|1\.0+)")  # config/validation.py refuses what this does

#: Names nobody (save a probability of exactly 1).
NAMES_NOTHING = 1.0


@dataclass(frozen=True)
class Aim:
    """``kind`` "f" with ``value`` beta, or "precision" or "recall" with the level to reach."""

    kind: Literal["f", "precision", "recall"]
    value: float

    def __str__(self) -> str:
        return f"f{self.value:g}" if self.kind == "f" else f"{self.kind}>={self.value:g}"


def parse_aim(text: str) -> Aim:
    """``"f1"``, ``"f0.5"``, ``"precision>=0.6"``, ``"recall>=0.8"``. Raises UserError for anything else."""
    plain = text.replace(" ", "")
    if plain in ("f1", "f0.5"):
        return Aim("f", float(plain[1:]))
    found = _LEVEL.fullmatch(plain)
    if found is None:
        raise UserError(
            "option-value", f"an aim is f1, f0.5, precision>=X or recall>=X with X from 0 to 1, not {text!r}"
        )
    return Aim("precision" if found[1] == "precision" else "recall", float(found[2]))


def single_threshold(aim: Aim, truth: BoolArray, probabilities: FloatArray) -> float:
    """The one threshold for all genres: highest micro-F, or the level reached by the pooled precision or recall.

    0.5 without any positive. It lies in the middle of the thresholds that name the same (`Sweep.threshold`). Of
    equally good ones for micro-F, 0.5 wins, then the one whose lowest named score is nearest to 0.5, then the higher.
    """
    if not truth.any():
        return DEFAULT_THRESHOLD
    flat, scores = truth.ravel(), probabilities.ravel()
    pooled = make_sweep(flat, flat.astype(np.float64), scores)
    if aim.kind == "f":
        values = f_beta(pooled.hits, pooled.named, pooled.support, aim.value)
        best = np.flatnonzero(values == values.max())  # never 0: what names nobody has an F of 0
        default = best == pooled.position(DEFAULT_THRESHOLD)
        lowest = np.where(default, DEFAULT_THRESHOLD, pooled.scores[best - 1])
        first = np.lexsort((-lowest, np.abs(lowest - DEFAULT_THRESHOLD)))[0]
        return pooled.threshold(int(best[first]), DEFAULT_THRESHOLD)
    return _at_level(aim, pooled, None)


def genre_thresholds(
    aim: Aim, truth: BoolArray, probabilities: FloatArray, expected: FloatArray, single: float, slack: float = 0.0
) -> tuple[FloatArray, float | None]:
    """((G,) thresholds, the weight of macro-F for F aims).

    probabilities (N, G) are those that the thresholds will meet; ``expected`` (N, G) calibrated ones, the same in
    other numbers if the model goes uncalibrated; ``single`` from `single_threshold`; ``slack`` for F aims.

    precision>=X: the lowest threshold at which a genre's precision, observed and smoothed, reaches X (so the most
    recall); 1, which names nobody, where none does. recall>=X: the highest at which recall does; a genre without
    positives has the single threshold.
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
