"""Counts for every possible threshold of a label, from one sort of its scores.

Positives are counted in two ways: ``hits`` counts the observed positives; ``smooth`` mixes them with the positives that
the calibrated probabilities predict. For n positives, the observed ones have the weight n / (n + OWN_EVIDENCE). A few
positives say little about the best threshold; the probabilities of all other samples add information.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from toolkit.metrics.multilabel import BoolArray, FloatArray, sigmoid

DEFAULT_THRESHOLD = 0.5
#: Number of positives at which observed positives and calibrated probabilities have equal weight. Measured on splits of
#: 400 (real posters, and simulated ones with AUC 0.6 to 0.7): values below about 100 fit noise, which lowers micro-F1
#: on new samples; values above 400 leave little gain.
OWN_EVIDENCE = 200.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """Counts of one label by position: position j predicts the label for all samples with one of the j highest scores.

    Position 0 predicts it for no sample; m is the number of distinct scores.
    """

    scores: FloatArray
    """(m,) distinct scores in strictly falling order."""
    named: FloatArray
    """(m + 1,) number of samples for which the label is predicted."""
    hits: FloatArray
    """(m + 1,) observed positives among these samples; the last value is the support."""
    smooth: FloatArray
    """(m + 1,) sum of the smoothed targets of these samples."""

    @property
    def support(self) -> float:
        return float(self.hits[-1])

    def position(self, threshold: float) -> int:
        """Return the position of a threshold."""
        return int(np.searchsorted(-self.scores, -threshold, side="right"))

    def threshold(self, position: int, near: float | None = None) -> float:
        """Return a threshold in [0, 1] with this position: ``near`` if possible, else the middle between two scores.

        The middle in log-odds is far from both logits. Rounding differences between devices then change no decision.
        For position 0, the threshold is halfway between the highest score and 1.
        """
        if near is not None and self.position(near) == position:
            return near
        if position == 0:
            return (float(self.scores[0]) + 1.0) / 2.0
        upper = float(self.scores[position - 1])
        if position == len(self.scores):
            return upper / 2.0
        lower = float(self.scores[position])
        middle = float(sigmoid((log_odds(lower) + log_odds(upper)) / 2.0))
        return middle if lower < middle <= upper else upper


def make_sweep(truth: BoolArray, smoothed: FloatArray, probabilities: FloatArray) -> Sweep:
    """Return the sweep of (N,) probabilities with (N,) targets and (N,) smoothed targets."""
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True))

    def counts(values: FloatArray) -> FloatArray:
        return np.append(0.0, np.cumsum(values[order])[ends])

    return Sweep(ordered[ends], np.append(0.0, ends + 1.0), counts(truth.astype(np.float64)), counts(smoothed))


def smoothed_targets(truth: BoolArray, expected: FloatArray) -> FloatArray:
    """Return (N, G) targets mixed with the calibrated probabilities ``expected``; the rarer the label, the more."""
    support = truth.sum(axis=0)
    own = support / (support + OWN_EVIDENCE)
    return own * truth + (1.0 - own) * expected


def log_odds(probabilities: ArrayLike) -> FloatArray:
    """Return the elementwise logit, which is finite at 0 and 1 too."""
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-12, 1.0 - 1e-12)
    return np.log(clipped) - np.log1p(-clipped)
