"""Thresholds per label for the aims f1 and f0.5: maximise micro-F + weight * macro-F.

Thresholds for micro-F alone never predict a rare label. Thresholds for macro-F alone predict a rare label for half of
all samples. The loss of micro-F is therefore limited: compared with the best single threshold, micro-F loses at most a
given share, the slack. The largest weight up to 1 that keeps this limit is used (Lagrange's method). For each
weight, all labels start at the single threshold. Then one threshold after the other moves to its best value, until no
threshold moves (coordinate ascent). docs/concepts/decisions.md has measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.decisions.sweep import Sweep, log_odds
from toolkit.metrics.helpers import FloatArray, IntArray, f_beta, sigmoid

#: Weights of macro-F in the order in which they are tried. The weight of micro-F is 1.
MACRO_WEIGHTS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
#: A label's final threshold is a weighted mean, in log-odds, of its own threshold and the single threshold. For n
#: positives, its own threshold has the weight n / (n + COMMON_EVIDENCE).
COMMON_EVIDENCE = 1.0
#: Weight of macro-F if no weight of MACRO_WEIGHTS keeps the limit when all labels move together.
_FALLBACK_WEIGHT = 0.2
#: Differences of F up to this number are rounding errors.
_ROUNDING = 1e-12


def balanced_thresholds(
    sweeps: Sequence[Sweep], single: float, beta: float, slack: float = 0.0
) -> tuple[FloatArray, float]:
    """Return (G,) thresholds and the weight of macro-F. The weight is 0 if every change lowers micro-F too much.

    Micro-F is at least (1 - ``slack``) times the micro-F of the ``single`` threshold. This holds for the observed
    targets and for the smoothed targets of sweep.py. A label without positives gets the single threshold.
    """
    start = np.array([sweep.position(single) for sweep in sweeps])
    floor = [(1.0 - slack) * _micro(sweeps, start, beta, smooth) for smooth in (False, True)]

    def good(thresholds: FloatArray) -> bool:
        positions = np.array([s.position(float(t)) for s, t in zip(sweeps, thresholds, strict=True)])
        return all(
            _micro(sweeps, positions, beta, smooth) >= least - _ROUNDING
            for smooth, least in zip((False, True), floor, strict=True)
        )

    def wanted(weight: float) -> FloatArray:
        return _shrunk_thresholds(sweeps, ascend(sweeps, start, beta, weight), single)

    for weight in MACRO_WEIGHTS:
        thresholds = wanted(weight)
        if good(thresholds):
            return thresholds, weight
    # No weight keeps the limit. Now the labels move one by one, the commonest first. Each move must keep the limit.
    thresholds, chosen = np.full(len(sweeps), single), wanted(_FALLBACK_WEIGHT)
    for label in np.argsort([-sweep.support for sweep in sweeps], kind="stable"):
        moved = np.where(np.arange(len(sweeps)) == label, chosen, thresholds)
        if good(moved):
            thresholds = moved
    return thresholds, _FALLBACK_WEIGHT if (thresholds != single).any() else 0.0


def ascend(sweeps: Sequence[Sweep], start: IntArray, beta: float, weight: float) -> IntArray:
    """Find a local maximum of micro-F + ``weight`` * macro-F for smoothed targets. Return (G,) indices into the sweeps.

    Labels without positives stay at the index in ``start`` and do not count in macro-F. Of equally good indices, the
    nearest to the current index is used. Of two equally near indices, the one with the higher threshold is used.
    """
    positions = start.copy()
    active = [g for g, sweep in enumerate(sweeps) if sweep.support > 0]
    square = beta * beta
    bottom = square * sum(float(sweep.smooth[-1]) for sweep in sweeps)
    hits = sum(float(sweep.smooth[p]) for sweep, p in zip(sweeps, positions, strict=True))
    named = sum(float(sweep.named[p]) for sweep, p in zip(sweeps, positions, strict=True))
    # The formula is explained in metrics.multilabel.f_beta. Labels with positives have a denominator above 0.
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
            if highest <= value[here] + _ROUNDING:
                continue
            best = np.flatnonzero(value >= highest - _ROUNDING)
            there = best[np.argmin(np.abs(best - here))]
            positions[g], moved = there, True
            hits, named = others[0] + sweep.smooth[there], others[1] + sweep.named[there]
    return positions


def _shrunk_thresholds(sweeps: Sequence[Sweep], positions: IntArray, single: float) -> FloatArray:
    """Convert (G,) indices into the sweeps to thresholds. Move them toward ``single``, as COMMON_EVIDENCE describes."""
    own = np.array([s.threshold(int(p), single) for s, p in zip(sweeps, positions, strict=True)])
    support = np.array([sweep.support for sweep in sweeps])
    keep = support / (support + COMMON_EVIDENCE)
    moved = sigmoid(keep * log_odds(own) + (1.0 - keep) * log_odds(single))
    return np.where((own == single) | (support == 0), single, moved)


def _micro(sweeps: Sequence[Sweep], positions: IntArray, beta: float, smooth: bool) -> float:
    counts = [s.smooth if smooth else s.hits for s in sweeps]
    hits = sum(float(c[p]) for c, p in zip(counts, positions, strict=True))
    named = sum(float(s.named[p]) for s, p in zip(sweeps, positions, strict=True))
    return float(f_beta(hits, named, sum(float(c[-1]) for c in counts), beta))
