"""Do probabilities mean what they say? Calibration error and reliability curves of yes/no elements.

Shapes as in multilabel.py. Elements (a sample and a genre) are put into bins of equal width by their probability;
in each, the mean probability is compared with the share of positives (Guo et al., 2017, whose definition is for
the winning class; here every element is a binary prediction of its own).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray, check_probabilities, check_targets

BINS = 15


def expected_calibration_error(targets: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> float:
    """ECE, pooled over all N x G elements: sum over bins of (share of elements) * |mean probability - frequency|.

    Common genres, and the many elements near 0, decide it; `genre_calibration_errors` gives rare genres a voice.
    """
    truth = check_targets(targets)
    scores = check_probabilities(probabilities, truth.shape)
    return _error(truth.ravel(), scores.ravel(), bins)


def calibration_influence(
    targets: ArrayLike, probabilities: ArrayLike, bins: int = BINS
) -> tuple[float, FloatArray]:
    """(ECE, (N,) its derivatives by the samples' weights, in sum 0) for `toolkit.decisions.folds.standard_error`."""
    truth = check_targets(targets)
    scores = check_probabilities(probabilities, truth.shape)
    number = np.minimum((scores * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(number.ravel(), weights=(scores - truth).ravel(), minlength=bins)
    error = float(np.abs(gaps).sum() / truth.size)
    signed = (np.sign(gaps)[number] * (scores - truth)).sum(axis=1)
    return error, signed / truth.size - error / len(truth)


def genre_calibration_errors(targets: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> FloatArray:
    """(G,) the same error of each genre alone; their mean is reported as ``ece_macro``."""
    truth = check_targets(targets)
    scores = check_probabilities(probabilities, truth.shape)
    return np.array([_error(truth[:, g], scores[:, g], bins) for g in range(truth.shape[1])])


def calibration_error_by_chance(
    probabilities: ArrayLike, bins: int = BINS, rounds: int = 200, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, 2.5th, 97.5th percentile) of the ECE that (N, G) probabilities have where they are exactly right.

    Targets are drawn from the probabilities themselves. An ECE within the two ends tells nothing against a model's
    calibration, and none can be expected below them (Vaicenavicius et al. 2019, "consistency resampling").
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    rng = np.random.default_rng(seed)
    found = [
        expected_calibration_error(rng.random(scores.shape) < scores, scores, bins) for _ in range(rounds)
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(np.mean(found)), float(low), float(high)


def reliability_curve(targets: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> list[dict[str, Any]]:
    """One row per bin, from 0 to 1, over all elements; give one column of each for the curve of a genre.

    Keys: ``centre``; ``count`` (elements); ``predicted`` (mean probability) and ``observed`` (share of positives),
    None in an empty bin. A perfectly calibrated model has predicted equal to observed but for noise.
    """
    truth = check_targets(targets)
    scores = check_probabilities(probabilities, truth.shape)
    count, predicted, positives = _sums(truth.ravel(), scores.ravel(), bins)
    return [
        {
            "centre": (number + 0.5) / bins,
            "count": int(count[number]),
            "predicted": float(predicted[number] / count[number]) if count[number] else None,
            "observed": float(positives[number] / count[number]) if count[number] else None,
        }
        for number in range(bins)
    ]


def calibration_summary(targets: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """``ece``, ``ece_macro`` and the reliability ``curve`` in one dictionary."""
    return {
        "ece": expected_calibration_error(targets, probabilities),
        "ece_macro": float(genre_calibration_errors(targets, probabilities).mean()),
        "curve": reliability_curve(targets, probabilities),
    }


def _error(truth: BoolArray, scores: FloatArray, bins: int) -> float:
    _, predicted, positives = _sums(truth, scores, bins)
    return float(np.abs(predicted - positives).sum() / len(scores))


def _sums(truth: BoolArray, scores: FloatArray, bins: int) -> tuple[IntArray, FloatArray, FloatArray]:
    """Per bin, (bins,) each: elements, sum of probabilities, positives. A bin holds its lower end; the last, also 1."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    number = np.minimum((scores * bins).astype(np.int64), bins - 1)
    count = np.bincount(number, minlength=bins).astype(np.int64)
    predicted = np.bincount(number, weights=scores, minlength=bins).astype(np.float64)
    positives = np.bincount(number, weights=truth, minlength=bins).astype(np.float64)
    return count, predicted, positives
