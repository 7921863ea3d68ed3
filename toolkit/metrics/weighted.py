"""Targets and predictions under weights of the samples, from which every metric is computed.

A bootstrap resample is a vector of weights: the number of times that each of the N samples was drawn. Sorting, counting
and binning are done only once; each resample then needs a few matrix products. Weights of one give the unweighted
values; other weights give the values of scikit-learn with ``sample_weight``.

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
from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray, clipped_cross_entropy, ratio

NOTHING_NAMED, NO_SCORES = np.empty((0, 0), dtype=np.bool_), np.empty((0, 0))


@dataclass(frozen=True, eq=False)
class Outcome:
    """Targets and the predictions of a model or baseline, (N, G) each."""

    truth: BoolArray
    named: BoolArray = field(default_factory=lambda: NOTHING_NAMED)
    """Predicted labels; empty if only probabilities are measured."""
    scores: FloatArray = field(default_factory=lambda: NO_SCORES)
    """Probabilities; empty for a baseline without probabilities."""

    def at(self, thresholds: ArrayLike) -> Outcome:
        """Return the outcome with the decisions ``scores >= thresholds``; thresholds are one number or (G,)."""
        return replace(self, named=self.scores >= np.asarray(thresholds, dtype=np.float64))

    @cached_property
    def ranking(self) -> tuple[FloatArray, FloatArray]:
        """(G,) average precision and (G,) ROC-AUC, by scikit-learn.

        AP is NaN for a label without positives; ROC-AUC is NaN for a label with one class only.
        """
        num_samples, num_labels = self.truth.shape
        ap, roc_auc = np.full(num_labels, np.nan), np.full(num_labels, np.nan)
        for label, support in enumerate(self.truth.sum(axis=0)):
            column = self.truth[:, label], self.scores[:, label]
            if support > 0:
                ap[label] = average_precision_score(*column)
            if 0 < support < num_samples:
                roc_auc[label] = roc_auc_score(*column)
        return ap, roc_auc

    @cached_property
    def numbers(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(hits, predicted labels, targets), (N, G) each with values 0 and 1."""
        truth, named = self.truth.astype(np.float64), self.named.astype(np.float64)
        return truth * named, named, truth

    @cached_property
    def rankings(self) -> list[_Ranking]:
        """The ranking of each label."""
        return [_Ranking(self.truth[:, g], self.scores[:, g]) for g in range(self.truth.shape[1])]

    @cached_property
    def losses(self) -> FloatArray:
        """(N,) mean binary cross-entropy over the labels."""
        return np.asarray(clipped_cross_entropy(self.truth, self.scores).mean(axis=1))

    @cached_property
    def gaps(self) -> sparse.csr_array:
        """(N, G * bins): probability minus target of each element, in the column of its label and bin."""
        num_samples, num_labels = self.truth.shape
        columns = bins_of(self.scores) + np.arange(num_labels) * BINS
        bounds = np.arange(num_samples + 1) * num_labels
        shape = (num_samples, num_labels * BINS)
        return sparse.csr_array(((self.scores - self.truth).ravel(), columns.ravel(), bounds), shape=shape)


class Counts(NamedTuple):
    """Sums of weights of elements: (B, G) per label, or (B,) pooled over the labels."""

    hits: FloatArray
    """True positives."""
    predicted: FloatArray
    """True and false positives."""
    support: FloatArray
    """True positives and false negatives."""


@dataclass(frozen=True, eq=False)
class Weighed:
    """An outcome under B weightings of its samples. Without weights, each sample counts once, and B is 1."""

    outcome: Outcome
    weights: FloatArray | None = None
    """(B, N) weights of at least 0, with a positive sum in each row."""

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
        """(B, G) AP and (B, G) ROC-AUC; NaN where undefined."""
        if self.weights is None:
            ap, roc_auc = self.outcome.ranking
            return ap[None], roc_auc[None]
        columns = np.ascontiguousarray(self.weights.T)
        both = [ranking(columns) for ranking in self.outcome.rankings]
        ap, roc_auc = (np.stack(values, axis=1) for values in zip(*both, strict=True))
        return ap, roc_auc

    @cached_property
    def gaps(self) -> FloatArray:
        """(B, G, bins): weighted sums of probability minus target."""
        weights = np.ones((1, len(self.outcome.truth))) if self.weights is None else self.weights
        return np.asarray(weights @ self.outcome.gaps).reshape(len(weights), -1, BINS)


class _Ranking:
    """Average precision and ROC-AUC of one label under weights.

    Both are sums over the positives and use the weight of all samples with a score at least as high. Samples in falling
    order of scores are therefore divided into segments: samples with the score of a positive, and samples between two
    such scores. A product with a sparse matrix of ones gives the weight of every segment.
    """

    def __init__(self, truth: BoolArray, scores: FloatArray) -> None:
        order = np.argsort(-scores, kind="stable")
        is_positive = truth[order]
        level = np.concatenate([[0], np.cumsum(np.diff(scores[order]) != 0)])  # the same for equal scores
        held = np.unique(level[is_positive])  # levels with a positive
        starts, ends = np.searchsorted(level, held, "left"), np.searchsorted(level, held, "right")
        bounds = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel()])
        last = int(bounds[-1])
        self._segments = _indicator(order[:last], bounds, len(order))
        positive_bounds = np.concatenate([[0], np.searchsorted(np.flatnonzero(is_positive), ends)])
        self._positives = _indicator(order[is_positive], positive_bounds, len(order))

    def __call__(self, columns: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ((B,) AP, (B,) ROC-AUC) under (N, B) weights; NaN where undefined."""
        segments = self._segments @ columns
        between, tied = segments[0::2], segments[1::2]
        positive = self._positives @ columns
        down_to = np.cumsum(between + tied, axis=0)
        hits = np.cumsum(positive, axis=0)
        support = positive.sum(axis=0)
        negatives = columns.sum(axis=0) - support
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
