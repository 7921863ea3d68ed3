"""Choice of one decision threshold on validation data, never on the split that is reported.

Predictions change only at the scores themselves, so one sort gives the aim's exact value at every
distinct score (the sweep behind a precision-recall curve); no grid, nothing between grid points missed.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from toolkit.metrics.multilabel import (
    BoolArray,
    FloatArray,
    IntArray,
    check_probabilities,
    check_targets,
    f_beta,
)

Aim = Literal["micro_f1", "macro_f1"]

DEFAULT_THRESHOLD = 0.5


def choose_global_threshold(
    targets: ArrayLike, probabilities: ArrayLike, aim: Aim = "micro_f1", beta: float = 1.0
) -> float:
    """The one threshold, for all genres, at which ``probability >= threshold`` has the highest ``aim``.

    targets (N, G) of 0 and 1; probabilities (N, G) in [0, 1]. ``macro_f1`` is the mean over genres with
    support, as in `toolkit.metrics.multilabel.threshold_metrics`. Another ``beta`` makes both F-beta.

    Every threshold in (next lower score, score] makes the same predictions. Such a stretch is
    represented by 0.5 where it contains 0.5, and otherwise by its upper end, the score itself. Among
    equally good stretches the one whose representative lies nearest to 0.5 wins, and of two equally near
    the higher.

    The result never exceeds the highest score, so something is always predicted, save when ``targets``
    has no positive at all: no threshold is then better than another and the answer is 0.5.

    Raises ValueError on an unknown aim or on broken input (see `toolkit.metrics.multilabel`).
    """
    if aim not in get_args(Aim):
        raise ValueError(f"aim must be one of {', '.join(get_args(Aim))}, got {aim!r}")
    truth = check_targets(targets)
    scores = check_probabilities(probabilities, truth.shape)
    if not truth.any():
        return DEFAULT_THRESHOLD
    if aim == "micro_f1":
        uppers, values = _micro_f_curve(truth, scores, beta)
    else:
        uppers, values = _macro_f_curve(truth, scores, beta)
    return _best_threshold(uppers, values)


def _descending(scores: FloatArray) -> tuple[IntArray, IntArray]:
    """For flat scores: the order from high to low, and the last position of each run of equal scores."""
    order = np.argsort(scores)[::-1]
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    return order, ends


def _micro_f_curve(truth: BoolArray, scores: FloatArray, beta: float) -> tuple[FloatArray, FloatArray]:
    """Distinct scores from high to low, and the micro-F with each as the threshold."""
    flat = scores.ravel()
    order, ends = _descending(flat)
    hits = np.cumsum(truth.ravel()[order])[ends]
    # The predicted are all the elements down to this score.
    return flat[order[ends]], f_beta(hits, ends + 1, truth.sum(), beta)


def _macro_f_curve(truth: BoolArray, scores: FloatArray, beta: float) -> tuple[FloatArray, FloatArray]:
    """Distinct scores from high to low, and the macro-F with each as the threshold.

    A genre's F changes only at its own scores. Each element is given the change that it makes to its
    genre's F; a running sum of these changes over all elements, high scores first, is the sum of the
    genres' F at every score.
    """
    supported = truth.any(axis=0)
    truth, scores = truth[:, supported], scores[:, supported]
    num_samples, num_genres = truth.shape
    rank = np.arange(1, num_samples + 1)
    change = np.empty(scores.shape)
    for genre in range(num_genres):
        order = np.argsort(scores[:, genre])[::-1]
        hits = np.cumsum(truth[order, genre])
        change[order, genre] = np.diff(f_beta(hits, rank, hits[-1], beta), prepend=0.0)
    flat = scores.ravel()
    order, ends = _descending(flat)
    macro = np.cumsum(change.ravel()[order])[ends] / num_genres
    # The running sum is off in its last digits; rounding keeps equal values equal for the tie rule.
    return flat[order[ends]], np.round(macro, 10)


def _best_threshold(uppers: FloatArray, values: FloatArray) -> float:
    """Apply the tie rule of `choose_global_threshold`; ``uppers`` falls strictly."""
    lowers = np.append(uppers[1:], -np.inf)
    has_default = (lowers < DEFAULT_THRESHOLD) & (uppers >= DEFAULT_THRESHOLD)
    stand_ins = np.where(has_default, DEFAULT_THRESHOLD, uppers)[values == values.max()]
    nearest_then_highest = np.lexsort((-stand_ins, np.abs(stand_ins - DEFAULT_THRESHOLD)))
    return float(stand_ins[nearest_then_highest[0]])
