"""Weighted sums of targets and predictions. Every metric of registry.py is computed from these sums.

A bootstrap resample is a weighting of the N samples: the weight of a sample is how often it was drawn. Sorting and
binning are done only once for all weightings. Each weighting then needs a few matrix products. scikit-learn returns the
same values with ``sample_weight``.

Shapes: N samples, G labels, B weightings.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.metrics import average_precision_score, roc_auc_score

from toolkit.metrics.calibration_error import BINS, bins_of
from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray, clipped_cross_entropy, ratio

NOTHING_NAMED, NO_SCORES = np.empty((0, 0), dtype=np.bool_), np.empty((0, 0))


@dataclass(frozen=True, eq=False)
class Outcome:
    """(N, G) targets and (N, G) predictions of a model or a baseline."""

    truth: BoolArray
    named: BoolArray = field(default_factory=lambda: NOTHING_NAMED)
    """Predicted labels. Empty if only probabilities are measured."""
    scores: FloatArray = field(default_factory=lambda: NO_SCORES)
    """Probabilities. Empty for a baseline without probabilities."""
    weights: FloatArray | None = None
    """(N,) sample weights above 0. None if all samples have the same weight."""

    def at(self, thresholds: ArrayLike) -> Outcome:
        """Return a copy that predicts the labels with ``scores >= thresholds`` (one number or one per label)."""
        return replace(self, named=self.scores >= np.asarray(thresholds, dtype=np.float64))

    def rows(self, rows: IntArray) -> Outcome:
        """Return an outcome of the samples with these numbers. A number can occur several times."""
        weights = None if self.weights is None else self.weights[rows]
        return Outcome(self.truth[rows], self.named[rows], self.scores[rows], weights)

    @cached_property
    def ranking(self) -> tuple[FloatArray, FloatArray]:
        """(G,) average precision and (G,) ROC-AUC, by scikit-learn.

        AP is NaN for a label without positives. ROC-AUC is NaN if all samples have the same target.
        """
        num_samples, num_labels = self.truth.shape
        ap, roc_auc = np.full(num_labels, np.nan), np.full(num_labels, np.nan)
        for label, support in enumerate(self.truth.sum(axis=0)):
            column = self.truth[:, label], self.scores[:, label]
            if support > 0:
                ap[label] = average_precision_score(*column, sample_weight=self.weights)
            if 0 < support < num_samples:
                roc_auc[label] = roc_auc_score(*column, sample_weight=self.weights)
        return ap, roc_auc

    @cached_property
    def numbers(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Three (N, G) arrays of 0 and 1: the hits, the predicted labels and the targets."""
        truth, named = self.truth.astype(np.float64), self.named.astype(np.float64)
        return truth * named, named, truth

    @cached_property
    def rankings(self) -> list[_Ranking]:
        """Functions that compute AP and ROC-AUC under weights, one function for each label."""
        return [_Ranking(self.truth[:, g], self.scores[:, g]) for g in range(self.truth.shape[1])]

    @cached_property
    def losses(self) -> FloatArray:
        """(N,) binary cross-entropy of each sample: the mean over its labels."""
        return np.asarray(clipped_cross_entropy(self.truth, self.scores).mean(axis=1))

    @cached_property
    def gaps(self) -> sparse.csr_array:
        """(N, G * bins) matrix of probability minus target. Each pair of label and bin has a column."""
        num_samples, num_labels = self.truth.shape
        columns = bins_of(self.scores) + np.arange(num_labels) * BINS
        bounds = np.arange(num_samples + 1) * num_labels
        shape = (num_samples, num_labels * BINS)
        return sparse.csr_array(((self.scores - self.truth).ravel(), columns.ravel(), bounds), shape=shape)


class Counts(NamedTuple):
    """Weighted counts: (B, G) arrays with one value per label, or (B,) arrays of sums over the labels."""

    hits: FloatArray
    """True positives."""
    predicted: FloatArray
    """Sum of true positives and false positives."""
    support: FloatArray
    """Sum of true positives and false negatives."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """An outcome under B weightings of its samples. Without weightings, B is 1.

    The weight of a sample is the product of its weight in the weighting and its own weight in the outcome.
    """

    outcome: Outcome
    weightings: FloatArray | None = None
    """(B, N) weights of at least 0. Each row is one weighting and has a positive sum."""

    @cached_property
    def weights(self) -> FloatArray | None:
        """(B, N) weights of the samples. None if all weights are 1."""
        own = self.outcome.weights
        if own is None or self.weightings is None:
            return self.weightings if own is None else own[None]
        return self.weightings * own

    @cached_property
    def total(self) -> FloatArray:
        """(B,) sums of the weights."""
        return np.array([len(self.outcome.truth)]) if self.weights is None else self.weights.sum(axis=1)

    def mean(self, values: FloatArray | BoolArray) -> FloatArray:
        """Return the (B,) weighted means of (N,) values of the samples."""
        if self.weights is None:
            return np.array([values.mean()])
        return np.asarray(self.weights @ values / self.total)

    @cached_property
    def each(self) -> Counts:
        """Counts per label."""
        truth, named = self.outcome.truth, self.outcome.named
        if self.weights is None:
            hits, predicted, support = (np.sum(of, axis=0, keepdims=True) for of in (truth & named, named, truth))
        else:
            hits, predicted, support = (self.weights @ of for of in self.outcome.numbers)
        return Counts(hits, predicted, support)

    @cached_property
    def pooled(self) -> Counts:
        """Counts over all labels."""
        return Counts(*(counts.sum(axis=1) for counts in self.each))

    @cached_property
    def ranking(self) -> tuple[FloatArray, FloatArray]:
        """(B, G) AP and (B, G) ROC-AUC. Undefined values are NaN."""
        if self.weights is None:
            ap, roc_auc = self.outcome.ranking
            return ap[None], roc_auc[None]
        columns = np.ascontiguousarray(self.weights.T)
        both = [ranking(columns) for ranking in self.outcome.rankings]
        ap, roc_auc = (np.stack(values, axis=1) for values in zip(*both, strict=True))
        return ap, roc_auc

    @cached_property
    def gaps(self) -> FloatArray:
        """(B, G, bins) weighted sums of probability minus target."""
        weights = np.ones((1, len(self.outcome.truth))) if self.weights is None else self.weights
        return np.asarray(weights @ self.outcome.gaps).reshape(len(weights), -1, BINS)


class _Ranking:
    """Average precision and ROC-AUC of one label under weights.

    Both metrics are sums over the positives. The term of a positive needs the total weight of all samples with an equal
    or higher score. For these totals, the samples are sorted by falling score and divided into segments. All samples
    with the same score as a positive form one segment. All samples between two such segments form another segment.
    """

    def __init__(self, truth: BoolArray, scores: FloatArray) -> None:
        order = np.argsort(-scores, kind="stable")
        is_positive = truth[order]
        level = np.concatenate([[0], np.cumsum(np.diff(scores[order]) != 0)])  # equal scores have the same level
        held = np.unique(level[is_positive])  # levels with a positive
        starts, ends = np.searchsorted(level, held, "left"), np.searchsorted(level, held, "right")
        bounds = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel()])
        last = int(bounds[-1])
        self._segments = _indicator(order[:last], bounds, len(order))
        positive_bounds = np.concatenate([[0], np.searchsorted(np.flatnonzero(is_positive), ends)])
        self._positives = _indicator(order[is_positive], positive_bounds, len(order))
        self._negatives = ~truth

    def __call__(self, columns: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the (B,) AP and the (B,) ROC-AUC under (N, B) weights. Undefined values are NaN."""
        segments = self._segments @ columns
        between, tied = segments[0::2], segments[1::2]
        positive = self._positives @ columns
        down_to = np.cumsum(between + tied, axis=0)
        hits = np.cumsum(positive, axis=0)
        support = positive.sum(axis=0)
        negatives = self._negatives @ columns  # a difference of two sums could be 1e-17 in place of 0
        ap = (positive * ratio(hits, down_to)).sum(axis=0)
        above = (down_to - hits) - (tied - positive)  # weight of negatives with a higher score
        below = negatives - above - (tied - positive) / 2  # negatives with the same score count half
        roc_auc = (positive * below).sum(axis=0)
        return (
            np.where(support > 0, ratio(ap, support), np.nan),
            np.where((support > 0) & (negatives > 0), ratio(roc_auc, support * negatives), np.nan),
        )


def _indicator(members: IntArray, bounds: IntArray, width: int) -> sparse.csr_array:
    """Return a matrix whose row k has ones in the columns ``members[bounds[k]:bounds[k + 1]]``."""
    return sparse.csr_array((np.ones(len(members)), members, bounds), shape=(len(bounds) - 1, width))
