"""Thresholds per label that maximise micro-F + macro-F, with a limit on the loss of micro-F.

Micro-F alone never predicts a rare label; macro-F alone predicts a rare label for half of all samples. So micro-F +
weight * macro-F is maximised with the largest weight up to 1 for which micro-F loses at most a share (the slack) of the
micro-F of the best single threshold (Lagrange's method). For a given weight, coordinate ascent starts at the single
threshold. Each label in turn moves to its best position, until no label moves. Every move raises the objective, so the
ascent ends. docs/concepts/decisions.md has the rule in words and its measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.decisions.sweep import Sweep, log_odds
from toolkit.metrics.multilabel import FloatArray, IntArray, f_beta, sigmoid

#: Weights of macro-F in the order in which they are tried; the weight of micro-F is 1.
MACRO_WEIGHTS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
#: For n positives, the final threshold has n / (n + COMMON_EVIDENCE) of the label's own threshold, in log-odds, and the
#: rest of the single one.
COMMON_EVIDENCE = 1.0
#: The weight that is used for some of the labels if no weight satisfies the constraint for all of them.
_LAST_RESORT = 0.2
#: Differences of F up to this are rounding errors.
_NOTHING = 1e-12


def balanced_thresholds(
    sweeps: Sequence[Sweep], single: float, beta: float, slack: float = 0.0
) -> tuple[FloatArray, float]:
    """Return ((G,) thresholds, the weight of macro-F; 0 if all thresholds are the single one).

    Micro-F is at least (1 - ``slack``) times that of the single threshold, with the observed and with the smoothed
    counts (which predict new samples better). A label without positives gets the single threshold.
    """
    start = np.array([sweep.position(single) for sweep in sweeps])
    floor = [(1.0 - slack) * _micro(sweeps, start, beta, smooth) for smooth in (False, True)]

    def good(thresholds: FloatArray) -> bool:
        positions = np.array([s.position(float(t)) for s, t in zip(sweeps, thresholds, strict=True)])
        return all(
            _micro(sweeps, positions, beta, smooth) >= least - _NOTHING
            for smooth, least in zip((False, True), floor, strict=True)
        )

    def wanted(weight: float) -> FloatArray:
        return _toward_common(sweeps, ascend(sweeps, start, beta, weight), single)

    for weight in MACRO_WEIGHTS:
        thresholds = wanted(weight)
        if good(thresholds):
            return thresholds, weight
    # No weight satisfies the constraint. So each label moves by itself, the commonest first, if the constraint allows.
    thresholds, chosen = np.full(len(sweeps), single), wanted(_LAST_RESORT)
    for label in np.argsort([-sweep.support for sweep in sweeps], kind="stable"):
        moved = np.where(np.arange(len(sweeps)) == label, chosen, thresholds)
        if good(moved):
            thresholds = moved
    return thresholds, _LAST_RESORT if (thresholds != single).any() else 0.0


def ascend(sweeps: Sequence[Sweep], start: IntArray, beta: float, weight: float) -> IntArray:
    """Return (G,) positions at which no move of one label raises micro-F + ``weight`` * macro-F (smoothed counts).

    Labels without positives stay at the start and count in micro-F only. Of equally good positions, the nearest to the
    current one is used, then the one of the higher threshold.
    """
    positions = start.copy()
    active = [g for g, sweep in enumerate(sweeps) if sweep.support > 0]
    square = beta * beta
    bottom = square * sum(float(sweep.smooth[-1]) for sweep in sweeps)
    hits = sum(float(sweep.smooth[p]) for sweep, p in zip(sweeps, positions, strict=True))
    named = sum(float(sweep.named[p]) for sweep, p in zip(sweeps, positions, strict=True))
    # F-beta from counts, as in metrics.multilabel.f_beta; the denominator is never 0 for labels with positives.
    tops = {g: (1.0 + square) * sweeps[g].smooth for g in active}
    own = {g: weight / len(active) * tops[g] / (square * sweeps[g].smooth[-1] + sweeps[g].named) for g in active}
    moved = True
    while moved:
        moved = False
        for g in active:
            sweep, here = sweeps[g], positions[g]
            others = hits - sweep.smooth[here], named - sweep.named[here]
            value = (tops[g] + (1.0 + square) * others[0]) / (sweep.named + (bottom + others[1])) + own[g]
            highest = value.max()
            if highest <= value[here] + _NOTHING:
                continue
            best = np.flatnonzero(value >= highest - _NOTHING)
            there = best[np.argmin(np.abs(best - here))]
            positions[g], moved = there, True
            hits, named = others[0] + sweep.smooth[there], others[1] + sweep.named[there]
    return positions


def _toward_common(sweeps: Sequence[Sweep], positions: IntArray, single: float) -> FloatArray:
    """Return (G,) thresholds of the positions; the fewer positives a label has, the nearer to the single threshold."""
    own = np.array([s.threshold(int(p), single) for s, p in zip(sweeps, positions, strict=True)])
    support = np.array([sweep.support for sweep in sweeps])
    keep = support / (support + COMMON_EVIDENCE)
    drawn = sigmoid(keep * log_odds(own) + (1.0 - keep) * log_odds(single))
    return np.where((own == single) | (support == 0), single, drawn)


def _micro(sweeps: Sequence[Sweep], positions: IntArray, beta: float, smooth: bool) -> float:
    """Return micro-F at these positions, from the observed or the smoothed counts."""
    counts = [s.smooth if smooth else s.hits for s in sweeps]
    hits = sum(float(c[p]) for c, p in zip(counts, positions, strict=True))
    named = sum(float(s.named[p]) for s, p in zip(sweeps, positions, strict=True))
    return float(f_beta(hits, named, sum(float(c[-1]) for c in counts), beta))
