"""What all metrics rest on: the check of arrays, the logistic function, losses, and ratios of counts.

Shapes used throughout: N samples, G genres. ``truth`` is (N, G) bool, ``scores`` is (N, G) float64 (logits, or
probabilities in [0, 1]), ``thresholds`` is one number or a (G,) array in [0, 1]. A genre is predicted where
``probability >= threshold``; the comparison is made in float64.

Arrays are checked once, where they come in: by `check_arrays` in training, by `infer_split` elsewhere. Nothing behind
them checks again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

PROBABILITY_CLIP = 1e-7


def check_arrays(targets: ArrayLike, logits: ArrayLike) -> tuple[BoolArray, FloatArray]:
    """(targets as bool, logits as float64), (N, G) each: a metric of broken input must not look like a metric.

    Raises ValueError unless they are 2-d, not empty and of one shape, targets are 0 or 1, and logits are finite.
    """
    truth, scores = np.asarray(targets), np.asarray(logits, dtype=np.float64)
    if truth.ndim != 2 or truth.size == 0:
        raise ValueError(f"targets must be a 2-d (samples, genres) array that is not empty, got shape {truth.shape}")
    if not ((truth == 0) | (truth == 1)).all():
        raise ValueError("targets must hold only 0 and 1")
    if scores.shape != truth.shape:
        raise ValueError(f"logits must have shape {truth.shape}, got {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"logits must be finite, got {int((~np.isfinite(scores)).sum())} NaN or infinite values")
    return truth.astype(np.bool_, copy=False), scores


def sigmoid(logits: ArrayLike) -> FloatArray:
    """Elementwise logistic function in float64, any shape, without overflow at either end."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def cross_entropy(logits: FloatArray, truth: BoolArray) -> FloatArray:
    """(N, G) binary cross-entropy in nats of (N, G) logits, in float64.

    log(1 + exp(x)) - y * x, with logaddexp for the first term: the stable form of
    torch.nn.BCEWithLogitsLoss (unweighted).
    """
    return np.logaddexp(0.0, logits) - truth * logits


def clipped_cross_entropy(truth: BoolArray, scores: FloatArray) -> FloatArray:
    """(N, G) binary cross-entropy in nats of probabilities, clipped to [1e-7, 1 - 1e-7].

    Prefer `cross_entropy` where there are logits: clipping caps a loss at 16.1 nats.
    """
    clipped = np.clip(scores, PROBABILITY_CLIP, 1.0 - PROBABILITY_CLIP)
    return -np.log(np.where(truth, clipped, 1.0 - clipped))


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> FloatArray:
    """Elementwise division that gives 0 where the denominator is 0 (scikit-learn's zero_division=0)."""
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.asarray(denominator, dtype=np.float64)
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0)


def f_beta(
    hits: FloatArray | float, predicted: FloatArray | float, support: FloatArray | float, beta: float
) -> FloatArray:
    """F-beta from counts: hits = true positives, predicted = TP + FP, support = TP + FN; 0 where undefined.

    (1 + b^2) TP / (b^2 support + predicted), which is the F-measure of van Rijsbergen (1979) in counts;
    beta 0.5 weighs precision above recall.
    """
    square = beta * beta
    return ratio((1.0 + square) * hits, square * support + predicted)
