"""Functions that all metrics use: check of arrays, logistic function, cross-entropy, ratio of counts, and F-beta.

The list of all metrics and most of their formulas are in registry.py. weighted.py computes AP, ROC-AUC and the counts.
calibration_error.py has the ECE, baselines.py the baselines, and bootstrap.py the confidence intervals.

Shapes: N samples, G labels. ``truth`` is (N, G) bool. ``scores`` is (N, G) float64: logits, or probabilities in
[0, 1]. ``thresholds`` is one number or a (G,) array in [0, 1]. A label is predicted if ``probability >= threshold`` in
float64. Most functions do not check their arrays. `check_arrays` does so in training, `infer_split` elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

PROBABILITY_CLIP = 1e-7


def check_arrays(targets: ArrayLike, logits: ArrayLike) -> tuple[BoolArray, FloatArray]:
    """Check two (N, G) arrays. Return the targets as bool and the logits as float64.

    Raises ValueError if an array is empty or not 2-d, if the shapes differ, if a target is neither 0 nor 1, or if a
    logit is not finite.
    """
    truth, scores = np.asarray(targets), np.asarray(logits, dtype=np.float64)
    if truth.ndim != 2 or truth.size == 0:
        raise ValueError(f"targets must be a 2-d (samples, labels) array that is not empty, got shape {truth.shape}")
    if not ((truth == 0) | (truth == 1)).all():
        raise ValueError("targets must contain only 0 and 1")
    if scores.shape != truth.shape:
        raise ValueError(f"logits must have shape {truth.shape}, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"logits must be finite, got {int((~np.isfinite(scores)).sum())} NaN or infinite values")
    return truth.astype(np.bool_, copy=False), scores


def sigmoid(logits: ArrayLike) -> FloatArray:
    """Return the elementwise logistic function in float64, for any shape, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def cross_entropy(logits: FloatArray, truth: BoolArray) -> FloatArray:
    """Return the (N, G) binary cross-entropy of (N, G) logits in nats, like torch.nn.BCEWithLogitsLoss.

    The formula is log(1 + exp(x)) - y * x. logaddexp computes the first term without overflow.
    """
    return np.logaddexp(0.0, logits) - truth * logits


def clipped_cross_entropy(truth: BoolArray, scores: FloatArray) -> FloatArray:
    """Clip probabilities to [1e-7, 1 - 1e-7]. Return their (N, G) binary cross-entropy in nats.

    Clipping limits a loss to 16.1 nats. Use `cross_entropy` if the logits are available.
    """
    clipped = np.clip(scores, PROBABILITY_CLIP, 1.0 - PROBABILITY_CLIP)
    return -np.log(np.where(truth, clipped, 1.0 - clipped))


def mean_element(values: FloatArray, weights: FloatArray | None) -> float:
    """Return the mean of (N, G) values under (N,) sample weights. If ``weights`` is None, all weights are equal.

    >>> mean_element(np.array([[0.0, 2.0], [4.0, 4.0]]), np.array([3.0, 1.0]))
    1.75
    """
    return float(values.mean() if weights is None else np.average(values.mean(axis=1), weights=weights))


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> FloatArray:
    """Divide elementwise. The result is 0 where the denominator is 0 (scikit-learn's zero_division=0)."""
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.asarray(denominator, dtype=np.float64)
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0)


def f_beta(
    hits: FloatArray | float, predicted: FloatArray | float, support: FloatArray | float, beta: float
) -> FloatArray:
    """Return F-beta from counts: hits = TP, predicted = TP + FP, support = TP + FN. An undefined value is 0.

    The F-measure of van Rijsbergen (1979) in counts is (1 + b^2) TP / (b^2 support + predicted). With beta 0.5,
    precision has more weight than recall.
    """
    square = beta * beta
    return ratio((1.0 + square) * hits, square * support + predicted)
