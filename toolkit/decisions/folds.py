"""Folds of a split for cross-validation, and standard errors of metrics.

A group of near-duplicates is one unit: the whole group is in one fold, and standard errors count the group once. Every
other sample is a unit of its own.
"""

from __future__ import annotations

import numpy as np

from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray

#: A split has FOLDS folds. With MANY units or more it has FOLDS_OF_MANY folds, which are enough and save time.
FOLDS, FOLDS_OF_MANY, MANY = 5, 3, 3000

#: Smallest gain on held-out samples, in standard errors, for which calibration or thresholds per label are used.
CLEAR_STANDARD_ERRORS = 1.0


def enough(units: IntArray) -> bool:
    """Return whether there are enough units for cross-validation: at least two for each of FOLDS folds."""
    return len(np.unique(units)) >= 2 * FOLDS


def assign_folds(truth: BoolArray, units: IntArray) -> IntArray:
    """Return (N,) fold numbers, from 0. ``truth``: (N, G) targets. ``units``: (N,) numbers from 0 to U - 1.

    The units are sorted by their rarest label and assigned to the folds in turn. So every fold gets rare positives.
    """
    count = int(units.max()) + 1
    support = truth.sum(axis=0)
    rarest = np.full(count, len(truth) + 1)
    np.minimum.at(rarest, units, np.where(truth, support, len(truth) + 1).min(axis=1))
    order = np.lexsort((np.random.default_rng(0).random(count), rarest))
    fold = np.empty(count, dtype=np.int64)
    fold[order] = np.arange(count) % (FOLDS_OF_MANY if count >= MANY else FOLDS)
    return fold[units]


def standard_error(influence: FloatArray, units: IntArray) -> float:
    """Return the standard error of a metric. ``influence``: (N,) derivatives by the samples' weights. Their sum is 0.

    This is the sandwich estimator over units (the "infinitesimal jackknife" of Efron & Tibshirani 1993, chapter 21).
    For the mean of N independent samples, it is the standard deviation / sqrt(N). For a single unit, it is infinite.
    """
    sums = np.bincount(units, weights=influence)
    found = sums[np.bincount(units) > 0]
    if len(found) < 2:
        return float("inf")
    return float(np.sqrt((found**2).sum() * len(found) / (len(found) - 1)))


def in_order(truth: BoolArray, scores: FloatArray, groups: IntArray | None) -> tuple[IntArray, IntArray]:
    """Return the (N,) indices that sort the samples, and the (N,) units of the sorted samples.

    groups (N,): equal numbers for near-duplicates. None if each sample is a unit. The samples are sorted so that folds
    and sums of floats do not depend on the given order.
    """
    order = np.lexsort((*truth.T, *scores.T))
    if groups is None or len(np.unique(groups)) == len(groups):
        return order, np.arange(len(order))
    rows = np.hstack([truth, scores])[order]
    changed = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
    rank = np.cumsum(changed)  # equal samples have the same rank
    members: dict[int, list[int]] = {}
    for position, group in enumerate(np.asarray(groups)[order].tolist()):
        members.setdefault(group, []).append(position)
    by_content = sorted(members.values(), key=lambda found: [int(rank[position]) for position in found])
    units = np.repeat(np.arange(len(by_content)), [len(found) for found in by_content])
    return order[np.concatenate([np.array(found) for found in by_content])], units
