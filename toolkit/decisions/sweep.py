"""One sort tells what every threshold of a genre does: counts at each distinct score, nothing between them missed.

The counts come twice. ``hits`` are the positives observed; ``smooth`` weighs them against those that the calibrated
probabilities expect, by the number n of a genre's positives: n / (n + OWN_EVIDENCE). Four horror films in a split
say little about where horror's threshold should lie; the probabilities of all its other posters say more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from toolkit.metrics.multilabel import BoolArray, FloatArray, sigmoid

DEFAULT_THRESHOLD = 0.5
#: Positives from which a genre's own labels weigh as much as its calibrated probabilities. Measured on splits of 400
#: (real posters, and simulated ones with AUC 0.6 to 0.7): below about 100 thresholds fit noise and cost fresh
#: samples micro-F1, above 400 little is left to gain.
OWN_EVIDENCE = 200.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """A genre's counts by position: 0 names nobody, j everybody down to the j-th highest of m distinct scores."""

    scores: FloatArray
    """(m,) falling strictly."""
    named: FloatArray
    """(m + 1,) samples named."""
    hits: FloatArray
    """(m + 1,) observed positives among them; the last is the support."""
    smooth: FloatArray
    """(m + 1,) the same of smoothed targets."""

    @property
    def support(self) -> float:
        return float(self.hits[-1])

    def position(self, threshold: float) -> int:
        """What a threshold names."""
        return int(np.searchsorted(-self.scores, -threshold, side="right"))

    def threshold(self, position: int, near: float | None = None) -> float:
        """A threshold in [0, 1] that names just that: ``near`` if it does, else the middle of those that do.

        The middle is taken in log-odds: no logit then lies so near to a threshold that a difference in its last
        digits, as another batch or device gives, turns a decision. Position 0 is halfway to 1.
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
    """The sweep of (N,) probabilities against (N,) targets and smoothed targets."""
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True))

    def counts(values: FloatArray) -> FloatArray:
        return np.append(0.0, np.cumsum(values[order])[ends])

    return Sweep(ordered[ends], np.append(0.0, ends + 1.0), counts(truth.astype(np.float64)), counts(smoothed))


def smoothed_targets(truth: BoolArray, expected: FloatArray) -> FloatArray:
    """(N, G) targets, each genre's drawn toward its calibrated probabilities ``expected`` the rarer it is."""
    support = truth.sum(axis=0)
    own = support / (support + OWN_EVIDENCE)
    return own * truth + (1.0 - own) * expected


def log_odds(probabilities: ArrayLike) -> FloatArray:
    """Elementwise logit, finite also at 0 and 1."""
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-12, 1.0 - 1e-12)
    return np.log(clipped) - np.log1p(-clipped)
