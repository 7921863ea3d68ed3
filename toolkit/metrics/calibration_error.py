"""Calibration error (ECE) and reliability curves.

helpers.py describes the shapes. An element is a pair of sample and label. The probability of an element determines
its bin. There are 15 bins of equal width. In each bin, the mean probability is compared with the share of positives.
Guo et al. (2017) use only the predicted class of a sample. Here every element is a binary prediction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray

BINS = 15


def reliability(truth: BoolArray, scores: FloatArray, weights: FloatArray | None = None) -> dict[str, Any]:
    """Return a dictionary with ``ece``, ``ece_macro`` and the reliability ``curve``.

    weights: (N,) sample weights, or None if all samples have the same weight.
    ece: the sum over bins of (share of elements) * |mean probability - share of positives|, over all N x G elements.
    Common labels and the many elements near 0 contribute most to ``ece``. ece_macro: the mean of the calibration errors
    of single labels, so that rare labels have the same weight as common labels.

    curve: one dictionary per bin, from 0 to 1, over all elements. ``centre``: the middle of the bin. ``count``: the
    number of elements, not weighted. ``predicted``: the mean probability. ``observed``: the share of positives. The
    last two values are None for an empty bin.
    """
    each = None if weights is None else np.repeat(weights, truth.shape[1])
    total, predicted, positives = _sums(truth.ravel(), scores.ravel(), each)
    count = total if weights is None else np.bincount(bins_of(scores.ravel()), minlength=BINS)
    return {
        "ece": float(np.abs(predicted - positives).sum() / total.sum()),
        "ece_macro": float(label_calibration_errors(truth, scores, weights).mean()),
        "curve": [
            {
                "centre": (number + 0.5) / BINS,
                "count": int(count[number]),
                "predicted": float(predicted[number] / total[number]) if count[number] else None,
                "observed": float(positives[number] / total[number]) if count[number] else None,
            }
            for number in range(BINS)
        ],
    }


def label_calibration_errors(truth: BoolArray, scores: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the (G,) calibration errors of the labels. ``weights``: see `reliability`."""
    sums = [_sums(*columns, weights) for columns in zip(truth.T, scores.T, strict=True)]
    return np.array([np.abs(predicted - positives).sum() / total.sum() for total, predicted, positives in sums])


def calibration_influence(truth: BoolArray, scores: FloatArray) -> tuple[float, FloatArray]:
    """Return the ECE and its (N,) derivatives by the samples' weights, for `decisions.folds.standard_error`."""
    number = bins_of(scores)
    gaps = np.bincount(number.ravel(), weights=(scores - truth).ravel(), minlength=BINS)
    error = float(np.abs(gaps).sum() / truth.size)
    signed = (np.sign(gaps)[number] * (scores - truth)).sum(axis=1)
    return error, signed / truth.size - error / len(truth)


def _sums(
    truth: BoolArray, scores: FloatArray, weights: FloatArray | None
) -> tuple[FloatArray | IntArray, FloatArray, FloatArray]:
    """Return three (bins,) sums over elements with ``weights`` (1 if None): of ones, of probabilities, of targets."""
    number, each = bins_of(scores), 1.0 if weights is None else weights
    total = np.bincount(number, weights=weights, minlength=BINS)
    predicted = np.bincount(number, weights=scores * each, minlength=BINS).astype(np.float64)
    positives = np.bincount(number, weights=truth * each, minlength=BINS).astype(np.float64)
    return total, predicted, positives


def bins_of(scores: FloatArray) -> IntArray:
    """Return the bin of each element. A bin includes its lower edge. The last bin also includes 1."""
    return np.minimum((scores * BINS).astype(np.int64), BINS - 1)
