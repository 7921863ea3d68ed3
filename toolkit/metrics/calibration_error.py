"""Do probabilities mean what they say? Calibration error and reliability curves of yes/no elements.

Shapes as in multilabel.py. Elements (a sample and a genre) are put into bins of equal width by their probability;
in each, the mean probability is compared with the share of positives (Guo et al., 2017, whose definition is for
the winning class; here every element is a binary prediction of its own).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray

BINS = 15


def reliability(truth: BoolArray, scores: FloatArray) -> dict[str, Any]:
    """``ece``, ``ece_macro`` and the reliability ``curve`` in one dictionary.

    ece: the error pooled over all N x G elements, the sum over bins of (share of elements) * |mean probability -
    frequency|. Common genres, and the many elements near 0, decide it; ``ece_macro``, the mean of the genres' errors,
    gives rare genres a voice.

    curve: one row per bin, from 0 to 1, over all elements: ``centre``; ``count`` (elements); ``predicted`` (mean
    probability) and ``observed`` (share of positives), None in an empty bin. A perfectly calibrated model has predicted
    equal to observed but for noise.
    """
    count, predicted, positives = _sums(truth.ravel(), scores.ravel())
    return {
        "ece": float(np.abs(predicted - positives).sum() / scores.size),
        "ece_macro": float(genre_calibration_errors(truth, scores).mean()),
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


def genre_calibration_errors(truth: BoolArray, scores: FloatArray) -> FloatArray:
    """(G,) the same error of each genre alone."""
    sums = [_sums(*columns) for columns in zip(truth.T, scores.T, strict=True)]
    return np.array([np.abs(predicted - positives).sum() / len(truth) for _, predicted, positives in sums])


def calibration_influence(truth: BoolArray, scores: FloatArray) -> tuple[float, FloatArray]:
    """(ECE, (N,) its derivatives by the samples' weights, in sum 0) for `toolkit.decisions.folds.standard_error`."""
    number = bins_of(scores)
    gaps = np.bincount(number.ravel(), weights=(scores - truth).ravel(), minlength=BINS)
    error = float(np.abs(gaps).sum() / truth.size)
    signed = (np.sign(gaps)[number] * (scores - truth)).sum(axis=1)
    return error, signed / truth.size - error / len(truth)


def _sums(truth: BoolArray, scores: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
    """Per bin, (bins,) each: elements, sum of probabilities, positives."""
    number = bins_of(scores)
    count = np.bincount(number, minlength=BINS).astype(np.int64)
    predicted = np.bincount(number, weights=scores, minlength=BINS).astype(np.float64)
    positives = np.bincount(number, weights=truth, minlength=BINS).astype(np.float64)
    return count, predicted, positives


def bins_of(scores: FloatArray) -> IntArray:
    """The bin of each element. A bin holds its lower end; the last, also 1."""
    return np.minimum((scores * BINS).astype(np.int64), BINS - 1)
