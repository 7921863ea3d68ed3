"""Folds of a split, and how sure a figure over its samples is: what deciding by held-out samples needs.

Samples that are near-duplicates of one another are a unit: they are in one fold, and count as one where chance is
estimated.
"""

from __future__ import annotations

import numpy as np

from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray

#: Of MANY samples a third is enough to fit on, and fewer folds cost less.
FOLDS, FOLDS_OF_MANY, MANY = 5, 3, 3000

#: Standard errors by which held-out samples must speak for a choice before it is made.
CLEAR_STANDARD_ERRORS = 1.0


def enough(units: IntArray) -> bool:
    """Whether held-out parts of samples of these units can say anything: two a fold."""
    return len(np.unique(units)) >= 2 * FOLDS


def assign_folds(truth: BoolArray, units: IntArray) -> IntArray:
    """(N,) fold of every sample, from 0, for (N, G) targets.

    units (N,): 0 to U - 1. They are dealt in turn after sorting by their rarest genre, so that folds share rare
    positives.
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
    """Standard error of a figure whose derivatives by the samples' weights are ``influence`` (N,), in sum 0.

    The sandwich estimator over units (the "infinitesimal jackknife" of Efron & Tibshirani 1993, chapter 21); of a mean
    over units of one sample it is the standard deviation over the root of their number. Infinite for one unit.
    """
    sums = np.bincount(units, weights=influence)
    found = sums[np.bincount(units) > 0]
    if len(found) < 2:
        return float("inf")
    return float(np.sqrt((found**2).sum() * len(found) / (len(found) - 1)))


def in_order(truth: BoolArray, scores: FloatArray, groups: IntArray | None) -> tuple[IntArray, IntArray]:
    """((N,) an order of the samples, (N,) their units in it): functions of the set of samples and its groups alone.

    groups (N,): equal numbers for near-duplicates; None: each sample is a unit. Sums of floats depend on their order,
    and folds are dealt in it.
    """
    order = np.lexsort((*truth.T, *scores.T))
    if groups is None or len(np.unique(groups)) == len(groups):
        return order, np.arange(len(order))
    rows = np.hstack([truth, scores])[order]
    changed = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
    rank = np.cumsum(changed)  # equal samples have one
    members: dict[int, list[int]] = {}
    for position, group in enumerate(np.asarray(groups)[order].tolist()):
        members.setdefault(group, []).append(position)
    by_content = sorted(members.values(), key=lambda found: [int(rank[position]) for position in found])
    units = np.repeat(np.arange(len(by_content)), [len(found) for found in by_content])
    return order[np.concatenate([np.array(found) for found in by_content])], units
