"""What all metrics rest on: checks of arrays, the logistic function, losses, and ratios of counts.

Shapes used throughout: N samples, G genres. ``targets`` is (N, G) with values 0 or 1 (bool, integer or
float), ``probabilities`` is (N, G) in [0, 1], ``thresholds`` is one number or a (G,) array in [0, 1].
A genre is predicted where ``probability >= threshold``; the comparison is made in float64.

Arrays are checked once, where they come in: by `toolkit.metrics.weighted.Outcome.of` and the functions that take
``targets``. What is called ``truth`` and ``scores`` has been checked. The checks raise ``ValueError`` on a wrong shape,
an empty matrix, or a value that is not finite or out of range: a metric of broken input must not look like a metric.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

PROBABILITY_CLIP = 1e-7


# --- input checks -----------------------------------------------------------------------------------


def check_targets(targets: ArrayLike) -> BoolArray:
    """Return ``targets`` as an (N, G) bool array; ValueError unless 2-d, non-empty and only 0 and 1."""
    array = np.asarray(targets)
    if array.ndim != 2:
        raise ValueError(f"targets must be a 2-d (samples, genres) array, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"cannot compute metrics of an empty targets array, got shape {array.shape}")
    if array.dtype != np.bool_ and not ((array == 0) | (array == 1)).all():
        raise ValueError("targets must hold only 0 and 1")
    return array.astype(np.bool_, copy=False)


def check_scores(scores: ArrayLike, shape: tuple[int, ...], name: str) -> FloatArray:
    """Return ``scores`` as float64; ValueError unless it has exactly ``shape`` and is finite."""
    array = np.asarray(scores, dtype=np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} NaN or infinite values")
    return array


def check_probabilities(probabilities: ArrayLike, shape: tuple[int, ...], name: str = "probabilities") -> FloatArray:
    """Like `check_scores`, and ValueError outside [0, 1]: catches logits passed by mistake."""
    array = check_scores(probabilities, shape, name)
    if array.min() < 0.0 or array.max() > 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got [{array.min():g}, {array.max():g}]")
    return array


def check_thresholds(thresholds: ArrayLike, num_genres: int) -> FloatArray:
    """Return one threshold per genre, (G,), from one number or a (G,) array in [0, 1]."""
    array = np.asarray(thresholds, dtype=np.float64)
    if array.ndim == 0:
        array = np.full(num_genres, float(array))
    return check_probabilities(array, (num_genres,), "thresholds")


def check_genres(genres: Sequence[str], num_genres: int) -> list[str]:
    """Return the G genre names as a list; ValueError on a wrong number of names or a repeated name."""
    names = [str(genre) for genre in genres]
    if len(names) != num_genres:
        raise ValueError(f"got {len(names)} genre names for {num_genres} columns")
    if len(set(names)) != num_genres:
        raise ValueError("genre names must be distinct")
    return names


# --- loss -------------------------------------------------------------------------------------------


def sigmoid(logits: ArrayLike) -> FloatArray:
    """Elementwise logistic function in float64, any shape, without overflow at either end."""
    array = np.asarray(logits, dtype=np.float64)
    result: FloatArray = np.exp(-np.logaddexp(0.0, -array))
    return result


def cross_entropy(logits: FloatArray, truth: BoolArray) -> FloatArray:
    """(N, G) binary cross-entropy in nats of (N, G) logits, in float64.

    log(1 + exp(x)) - y * x, with logaddexp for the first term: the stable form of
    torch.nn.BCEWithLogitsLoss (unweighted).
    """
    losses: FloatArray = np.logaddexp(0.0, logits) - truth * logits
    return losses


def clipped_cross_entropy(truth: BoolArray, scores: FloatArray) -> FloatArray:
    """(N, G) binary cross-entropy in nats of probabilities, clipped to [1e-7, 1 - 1e-7].

    Prefer `cross_entropy` where there are logits: clipping caps a loss at 16.1 nats.
    """
    clipped = np.clip(scores, PROBABILITY_CLIP, 1.0 - PROBABILITY_CLIP)
    losses: FloatArray = -np.log(np.where(truth, clipped, 1.0 - clipped))
    return losses


# --- counts -----------------------------------------------------------------------------------------


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> FloatArray:
    """Elementwise division that gives 0 where the denominator is 0 (scikit-learn's zero_division=0)."""
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.asarray(denominator, dtype=np.float64)
    result: FloatArray = np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0)
    return result


def f_beta(hits: ArrayLike, predicted: ArrayLike, support: ArrayLike, beta: float) -> FloatArray:
    """F-beta from counts: hits = true positives, predicted = TP + FP, support = TP + FN; 0 where undefined.

    (1 + b^2) TP / (b^2 support + predicted), which is the F-measure of van Rijsbergen (1979) in counts;
    beta 0.5 weighs precision above recall.
    """
    square = beta * beta
    return ratio(
        (1.0 + square) * np.asarray(hits, dtype=np.float64),
        square * np.asarray(support, dtype=np.float64) + np.asarray(predicted, dtype=np.float64),
    )
