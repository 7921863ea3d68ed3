"""The metrics of an evaluation as functions of sample weights, for hundreds of weightings at once.

A bootstrap resample is a vector of weights: how often each of the N samples was drawn. What a metric needs of the
samples is prepared once (sorting, counting, binning); each resample is then a few matrix products. With weights of
one the values are those of `toolkit.metrics.multilabel`, with any others scikit-learn's with ``sample_weight``.

Shapes: N samples, G genres, B weightings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from toolkit.metrics.calibration_error import BINS
from toolkit.metrics.multilabel import (
    PROBABILITY_CLIP,
    BoolArray,
    FloatArray,
    IntArray,
    check_probabilities,
    check_targets,
    f_beta,
    ratio,
)

#: Metrics of which less is better.
LOWER_IS_BETTER = frozenset({"loss", "ece", "ece_macro"})


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model, or a baseline, says of N samples."""

    named: BoolArray
    """(N, G): the genres it names."""
    probabilities: FloatArray | None = None
    """(N, G) in [0, 1]; None for a baseline that only names."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Values under B weightings; NaN where undefined."""

    metrics: dict[str, FloatArray]
    """Metric -> (B,)."""
    per_genre: dict[str, FloatArray]
    """``precision``, ``recall``, ``f1``, and with probabilities ``ap`` -> (B, G)."""


class WeightedMetrics:
    """Metrics of ``answers`` against ``targets``, (N, G) of 0 and 1; call it with (B, N) weights.

    Keys and conventions are those of `toolkit.metrics.multilabel`: macro means and mAP leave out genres without
    weighted positives, a ratio with a zero denominator counts as 0; ``ece`` and ``ece_macro`` are
    `toolkit.metrics.calibration_error`'s.
    """

    def __init__(self, targets: ArrayLike, answers: Answers) -> None:
        truth = check_targets(targets)
        named = check_targets(answers.named)
        if named.shape != truth.shape:
            raise ValueError(f"named must have shape {truth.shape}, got {named.shape}")
        self.shape = truth.shape
        self._truth = truth.astype(np.float64)
        self._named = named.astype(np.float64)
        self._hits = (truth & named).astype(np.float64)
        self._right = (truth == named).all(axis=1).astype(np.float64)
        self._parts: list[Callable[[FloatArray], Measured]] = [self._decisions]
        if answers.probabilities is not None:
            scores = check_probabilities(answers.probabilities, truth.shape)
            self._rankings = [_Ranking(truth[:, g], scores[:, g]) for g in range(truth.shape[1])]
            self._loss = _sample_losses(truth, scores)
            self._gaps = _calibration_gaps(truth, scores)
            self._parts += [self._ranked, self._calibrated]

    def __call__(self, weights: ArrayLike) -> Measured:
        """Every metric under (B, N) weights, none negative, each row with a positive sum."""
        matrix = np.asarray(weights, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != self.shape[0]:
            raise ValueError(f"weights must have shape (B, {self.shape[0]}), got {matrix.shape}")
        if (matrix < 0).any() or not (matrix.sum(axis=1) > 0).all():
            raise ValueError("weights must not be negative, and no row may be all zero")
        parts = [part(matrix) for part in self._parts]
        return Measured(
            {name: values for part in parts for name, values in part.metrics.items()},
            {name: values for part in parts for name, values in part.per_genre.items()},
        )

    def _decisions(self, weights: FloatArray) -> Measured:
        hits, predicted, support = weights @ self._hits, weights @ self._named, weights @ self._truth
        total = weights.sum(axis=1)
        metrics = {
            "subset_accuracy": weights @ self._right / total,
            "predicted_per_sample": predicted.sum(axis=1) / total,
        }
        each = _rates(hits, predicted, support)
        pooled = _rates(hits.sum(axis=1), predicted.sum(axis=1), support.sum(axis=1))
        supported = support > 0
        for name, values in each.items():
            metrics[f"micro_{name}"] = pooled[name]
            metrics[f"macro_{name}"] = ratio((values * supported).sum(axis=1), supported.sum(axis=1))
        per_genre = {
            "precision": np.where(predicted > 0, each["precision"], np.nan),
            "recall": np.where(supported, each["recall"], np.nan),
            "f1": np.where(supported, each["f1"], np.nan),
        }
        return Measured(metrics, per_genre)

    def _ranked(self, weights: FloatArray) -> Measured:
        columns = np.ascontiguousarray(weights.T)
        both = [ranking(columns) for ranking in self._rankings]
        ap, roc_auc = (np.stack(values, axis=1) for values in zip(*both, strict=True))
        return Measured({"mAP": _defined_mean(ap), "roc_auc": _defined_mean(roc_auc)}, {"ap": ap})

    def _calibrated(self, weights: FloatArray) -> Measured:
        num_genres, total = self.shape[1], weights.sum(axis=1)
        gaps = np.asarray(weights @ self._gaps).reshape(len(weights), num_genres, BINS)
        each = np.abs(gaps).sum(axis=2) / total[:, None]
        pooled = np.abs(gaps.sum(axis=1)).sum(axis=1)
        metrics = {
            "loss": weights @ self._loss / total,
            "ece": pooled / (total * num_genres),
            "ece_macro": each.mean(axis=1),
        }
        return Measured(metrics, {"ece": each})


class _Ranking:
    """Average precision and ROC-AUC of one genre under weights.

    Both are sums over the positives, from high scores to low, of what stands at or above them. So the samples fall
    into segments: those between two scores that positives have, and those of such a score. A product with a sparse
    matrix of ones gives every segment's weight.
    """

    def __init__(self, truth: BoolArray, scores: FloatArray) -> None:
        order = np.argsort(-scores, kind="stable")
        is_positive = truth[order]
        level = np.concatenate([[0], np.cumsum(np.diff(scores[order]) != 0)])  # equal scores share a level
        held = np.unique(level[is_positive])  # levels with a positive
        starts, ends = np.searchsorted(level, held, "left"), np.searchsorted(level, held, "right")
        bounds = np.concatenate([[0], np.stack([starts, ends], axis=1).ravel()])
        last = int(bounds[-1])
        self._segments = _indicator(order[:last], bounds, len(order))
        positive_bounds = np.concatenate([[0], np.searchsorted(np.flatnonzero(is_positive), ends)])
        self._positives = _indicator(order[is_positive], positive_bounds, len(order))

    def __call__(self, columns: FloatArray) -> tuple[FloatArray, FloatArray]:
        """((B,) AP, (B,) ROC-AUC) under (N, B) weights; NaN where undefined."""
        segments = self._segments @ columns
        between, tied = segments[0::2], segments[1::2]
        positive = self._positives @ columns
        down_to = np.cumsum(between + tied, axis=0)
        hits = np.cumsum(positive, axis=0)
        support = positive.sum(axis=0)
        negatives = columns.sum(axis=0) - support
        ap = (positive * ratio(hits, down_to)).sum(axis=0)
        above = (down_to - hits) - (tied - positive)  # weight of negatives with a higher score
        below = negatives - above - (tied - positive) / 2  # those tied count half
        roc_auc = (positive * below).sum(axis=0)
        return (
            np.where(support > 0, ratio(ap, support), np.nan),
            np.where((support > 0) & (negatives > 0), ratio(roc_auc, support * negatives), np.nan),
        )


def _indicator(members: IntArray, bounds: IntArray, width: int) -> sparse.csr_array:
    """Row k has ones in the columns ``members[bounds[k]:bounds[k + 1]]``."""
    return sparse.csr_array((np.ones(len(members)), members, bounds), shape=(len(bounds) - 1, width))


def _rates(hits: FloatArray, predicted: FloatArray, support: FloatArray) -> dict[str, FloatArray]:
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": f_beta(hits, predicted, support, 1.0),
        "f0.5": f_beta(hits, predicted, support, 0.5),
    }


def _sample_losses(truth: BoolArray, scores: FloatArray) -> FloatArray:
    """(N,) mean binary cross-entropy over the genres, as in `toolkit.metrics.multilabel.bce_from_probabilities`."""
    clipped = np.clip(scores, PROBABILITY_CLIP, 1.0 - PROBABILITY_CLIP)
    losses: FloatArray = -np.log(np.where(truth, clipped, 1.0 - clipped)).mean(axis=1)
    return losses


def _calibration_gaps(truth: BoolArray, scores: FloatArray) -> sparse.csr_array:
    """(N, G * bins): an element's probability minus its target, in the column of its genre and bin."""
    num_samples, num_genres = truth.shape
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    columns = bins + np.arange(num_genres) * BINS
    bounds = np.arange(num_samples + 1) * num_genres
    shape = (num_samples, num_genres * BINS)
    return sparse.csr_array(((scores - truth).ravel(), columns.ravel(), bounds), shape=shape)


def _defined_mean(values: FloatArray) -> FloatArray:
    """(B,) means of (B, G) over what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis=1)
    return np.where(counts > 0, ratio(np.where(defined, values, 0.0).sum(axis=1), counts), np.nan)
