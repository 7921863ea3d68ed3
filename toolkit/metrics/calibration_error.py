"""Calibration error (ECE) and reliability curves.

Shapes as in multilabel.py. Each element (a pair of sample and label) belongs to one of 15 bins of equal width by its
probability. In each bin, the mean probability is compared with the share of positives (Guo et al., 2017; their
definition uses the predicted class only, here every element is a binary prediction).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray

BINS = 15


def reliability(truth: BoolArray, scores: FloatArray) -> dict[str, Any]:
    """Return a dictionary with ``ece``, ``ece_macro`` and the reliability ``curve``.

    ece: the sum over bins of (share of elements) * |mean probability - share of positives|, over all N x G elements. It
    depends mostly on common labels and on the many elements near 0. ece_macro: the mean of the labels' errors, in which
    rare labels have equal weight.

    curve: one row per bin, from 0 to 1, over all elements: ``centre``; ``count`` (elements); ``predicted`` (mean
    probability) and ``observed`` (share of positives), None in an empty bin. For perfect calibration, predicted and
    observed differ only by noise.
    """
    count, predicted, positives = _sums(truth.ravel(), scores.ravel())
    return {
        "ece": float(np.abs(predicted - positives).sum() / scores.size),
        "ece_macro": float(label_calibration_errors(truth, scores).mean()),
        "curve": [
            {
                "centre": (number + 0.5) / BINS,
                "count": int(count[number]),
                "predicted": float(predicted[number] / count[number]) if count[number] else None,
                "observed": float(positives[number] / count[number]) if count[number] else None,
            }
            for number in range(BINS)
        ],
    }


def label_calibration_errors(truth: BoolArray, scores: FloatArray) -> FloatArray:
    """Return the (G,) calibration errors of the labels."""
    sums = [_sums(*columns) for columns in zip(truth.T, scores.T, strict=True)]
    return np.array([np.abs(predicted - positives).sum() / len(truth) for _, predicted, positives in sums])


def calibration_influence(truth: BoolArray, scores: FloatArray) -> tuple[float, FloatArray]:
    """Return (ECE, its (N,) derivatives by the samples' weights, in sum 0), for `decisions.folds.standard_error`."""
    number = bins_of(scores)
    gaps = np.bincount(number.ravel(), weights=(scores - truth).ravel(), minlength=BINS)
    error = float(np.abs(gaps).sum() / truth.size)
    signed = (np.sign(gaps)[number] * (scores - truth)).sum(axis=1)
    return error, signed / truth.size - error / len(truth)


def _sums(truth: BoolArray, scores: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return per bin, (bins,) each: number of elements, sum of probabilities, number of positives."""
    number = bins_of(scores)
    count = np.bincount(number, minlength=BINS).astype(np.int64)
    predicted = np.bincount(number, weights=scores, minlength=BINS).astype(np.float64)
    positives = np.bincount(number, weights=truth, minlength=BINS).astype(np.float64)
    return count, predicted, positives


def bins_of(scores: FloatArray) -> IntArray:
    """Return the bin of each element. A bin includes its lower edge; the last bin also includes 1."""
    return np.minimum((scores * BINS).astype(np.int64), BINS - 1)
