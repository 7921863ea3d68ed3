"""Multi-label classification metrics over a whole split, on numpy arrays.

Shapes used throughout: N samples, G genres. ``targets`` is (N, G) with values 0 or 1 (bool, integer or
float), ``probabilities`` is (N, G) in [0, 1], ``thresholds`` is one number or a (G,) array in [0, 1].
A genre is predicted where ``probability >= threshold``; the comparison is made in float64.

Ranking metrics come from scikit-learn. The threshold metrics are counted here because scikit-learn
takes an (N, 1) matrix for a binary problem and is some forty times slower per threshold; the tests hold
them against scikit-learn as a referee.

Every function raises ``ValueError`` on a wrong shape, an empty matrix, or a value that is not finite or
out of range: a metric of broken input must not look like a metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

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
        raise ValueError(
            f"{name} must be finite, got {int((~np.isfinite(array)).sum())} NaN or infinite values"
        )
    return array


def check_probabilities(
    probabilities: ArrayLike, shape: tuple[int, ...], name: str = "probabilities"
) -> FloatArray:
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


def bce_from_logits(logits: ArrayLike, targets: ArrayLike) -> float:
    """Mean binary cross-entropy in nats over all N x G elements, from (N, G) logits.

    log(1 + exp(x)) - y * x, with logaddexp for the first term: the stable form of
    torch.nn.BCEWithLogitsLoss (unweighted), in float64.
    """
    truth = check_targets(targets)
    scores = check_scores(logits, truth.shape, "logits")
    return float((np.logaddexp(0.0, scores) - truth * scores).mean())


def bce_from_probabilities(targets: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean binary cross-entropy in nats over all N x G elements, probabilities clipped to [1e-7, 1 - 1e-7].

    Prefer `bce_from_logits` where there are logits: clipping caps an element's loss at 16.1 nats.
    """
    truth = check_targets(targets)
    clipped = np.clip(
        check_probabilities(probabilities, truth.shape), PROBABILITY_CLIP, 1.0 - PROBABILITY_CLIP
    )
    return float(-np.log(np.where(truth, clipped, 1.0 - clipped)).mean())


# --- ranking metrics (no threshold) -----------------------------------------------------------------


def genre_ranking(targets: ArrayLike, probabilities: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Average precision and ROC-AUC of each genre, two (G,) arrays.

    AP is NaN for a genre without positives; ROC-AUC is NaN for a genre that has only one class.
    """
    truth = check_targets(targets)
    scores = check_probabilities(probabilities, truth.shape)
    num_samples, num_genres = truth.shape
    ap = np.full(num_genres, np.nan)
    roc_auc = np.full(num_genres, np.nan)
    for genre, support in enumerate(truth.sum(axis=0)):
        if support > 0:
            ap[genre] = average_precision_score(truth[:, genre], scores[:, genre])
        if 0 < support < num_samples:
            roc_auc[genre] = roc_auc_score(truth[:, genre], scores[:, genre])
    return ap, roc_auc


def mean_or_none(values: ArrayLike) -> float | None:
    """Mean of the values that are not NaN; None when there is none."""
    array = np.asarray(values, dtype=np.float64)
    defined = array[~np.isnan(array)]
    return float(defined.mean()) if defined.size else None


def ranking_summary(ap: ArrayLike, roc_auc: ArrayLike) -> dict[str, Any]:
    """The means of `genre_ranking`'s two arrays, and over how many genres each mean was taken."""
    return {
        "mAP": mean_or_none(ap),
        "roc_auc": mean_or_none(roc_auc),
        "num_genres_ap": int(np.count_nonzero(~np.isnan(np.asarray(ap, dtype=np.float64)))),
        "num_genres_roc_auc": int(np.count_nonzero(~np.isnan(np.asarray(roc_auc, dtype=np.float64)))),
    }


def ranking_metrics(targets: ArrayLike, probabilities: ArrayLike, genres: Sequence[str]) -> dict[str, Any]:
    """Metrics that need no threshold.

    ``mAP`` is the mean AP over the genres with positives (``num_genres_ap`` of them), ``roc_auc`` the mean
    over the genres with both classes (``num_genres_roc_auc``); each is None when there is no such genre.
    ``loss`` is `bce_from_probabilities`. ``ap_per_genre`` and ``roc_auc_per_genre`` map every genre to its
    value, or to None where undefined.
    """
    truth = check_targets(targets)
    names = check_genres(genres, truth.shape[1])
    ap, roc_auc = genre_ranking(truth, probabilities)
    return {
        **ranking_summary(ap, roc_auc),
        "loss": bce_from_probabilities(truth, probabilities),
        "ap_per_genre": {name: mean_or_none([value]) for name, value in zip(names, ap, strict=True)},
        "roc_auc_per_genre": {
            name: mean_or_none([value]) for name, value in zip(names, roc_auc, strict=True)
        },
    }


# --- metrics of yes/no predictions ------------------------------------------------------------------


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> FloatArray:
    """Elementwise division that gives 0 where the denominator is 0 (scikit-learn's zero_division=0)."""
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.asarray(denominator, dtype=np.float64)
    result: FloatArray = np.divide(
        top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0
    )
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


def genre_counts(truth: BoolArray, predicted: BoolArray) -> tuple[IntArray, IntArray, IntArray]:
    """Per genre, three (G,) arrays: true positives, predicted positives, support."""
    return (truth & predicted).sum(axis=0), predicted.sum(axis=0), truth.sum(axis=0)


def _rates(hits: ArrayLike, predicted: ArrayLike, support: ArrayLike) -> dict[str, FloatArray]:
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": f_beta(hits, predicted, support, 1.0),
        "f0.5": f_beta(hits, predicted, support, 0.5),
    }


def prediction_metrics(targets: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Metrics of an (N, G) matrix of yes/no predictions; see `threshold_metrics` for the keys."""
    truth = check_targets(targets)
    named = check_targets(predicted)
    if named.shape != truth.shape:
        raise ValueError(f"predictions must have shape {truth.shape}, got {named.shape}")
    hits, positives, support = genre_counts(truth, named)
    result = {
        "subset_accuracy": float((truth == named).all(axis=1).mean()),
        "predicted_per_sample": float(positives.sum() / truth.shape[0]),
        "macro_genres": int(np.count_nonzero(support)),
    }
    pooled = _rates(hits.sum(), positives.sum(), support.sum())
    each = _rates(hits, positives, support)
    # Only genres with support: one without positives can score nothing but 0.
    supported = support > 0
    for name in pooled:
        result[f"micro_{name}"] = float(pooled[name])
        result[f"macro_{name}"] = float(each[name][supported].mean()) if supported.any() else 0.0
    return result


def threshold_metrics(
    targets: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike
) -> dict[str, float]:
    """Metrics of ``probability >= threshold``; every ratio with a zero denominator counts as 0.

    Keys: ``subset_accuracy`` (the share of samples whose whole genre set is right);
    ``micro_precision``, ``micro_recall``, ``micro_f1``, ``micro_f0.5`` (from counts pooled over all
    genres); ``macro_precision``, ``macro_recall``, ``macro_f1``, ``macro_f0.5`` (mean over the genres
    with support > 0 in ``targets``, ``macro_genres`` of them; 0.0 when there is none);
    ``predicted_per_sample`` (mean number of genres named per sample).

    Pooled precision counts false positives of genres without support too; the macro means do not.
    """
    truth = check_targets(targets)
    scores = check_probabilities(probabilities, truth.shape)
    return prediction_metrics(truth, scores >= check_thresholds(thresholds, truth.shape[1]))


def per_genre_table(
    targets: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike, genres: Sequence[str]
) -> pd.DataFrame:
    """One row per genre, in the given order, with its support and metrics.

    Columns: genre, support (positives), prevalence (support / N), ap, roc_auc, threshold, precision,
    recall, f1. NaN where undefined: ap, recall and f1 without positives, precision where the genre was
    never predicted, roc_auc with one class only.
    """
    truth = check_targets(targets)
    scores = check_probabilities(probabilities, truth.shape)
    limits = check_thresholds(thresholds, truth.shape[1])
    names = check_genres(genres, truth.shape[1])
    hits, positives, support = genre_counts(truth, scores >= limits)
    ap, roc_auc = genre_ranking(truth, scores)
    return pd.DataFrame(
        {
            "genre": names,
            "support": support.astype(np.int64),
            "prevalence": support / truth.shape[0],
            "ap": ap,
            "roc_auc": roc_auc,
            "threshold": limits,
            "precision": np.where(positives > 0, ratio(hits, positives), np.nan),
            "recall": np.where(support > 0, ratio(hits, support), np.nan),
            "f1": np.where(support > 0, f_beta(hits, positives, support, 1.0), np.nan),
        }
    )
