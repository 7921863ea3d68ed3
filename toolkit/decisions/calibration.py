"""Calibration per genre, fitted on validation logits: calibrated logit = scale * logit + bias, scale over 0.

Losses that weigh positives up, mixing and long training all leave probabilities that are not frequencies. Two
remedies: "temperature" scales a genre's logits (Guo et al., "On Calibration of Modern Neural Networks", 2017),
"platt" moves them too (Platt, "Probabilistic Outputs for Support Vector Machines", 1999). A scale over 0 keeps
every genre's ranking.

A rare genre has a handful of positives to fit two numbers to. Each genre is therefore fitted with a normal prior
on log(scale) and bias whose means, shared by all genres, are fitted along (a hierarchical model at its mode). That
is also what keeps a genre without positives finite, so Platt's smoothed targets are not needed. Whether to
calibrate at all is decided by cross-validation inside the split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from toolkit.config.model_files import Method
from toolkit.decisions.folds import CLEAR_STANDARD_ERRORS, enough, standard_error
from toolkit.metrics.calibration_error import calibration_influence
from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray, cross_entropy, sigmoid

#: Precision of the priors: how many observations' worth each genre is drawn toward the shared log(scale) and bias.
#: Of 0.3 to 100 these had nearly the lowest held-out loss on 400 real and simulated posters, shifted ones too.
SCALE_PRIOR, BIAS_PRIOR = 10.0, 1.0
#: Precision with which the shared two are drawn to the identity; it only tells where a split could be told apart
#: without error, and any scale would do.
SHARED_PRIOR = 0.1
_ITERATIONS, _SETTLED = 100, 1e-10
_LONGEST_STEP = 2.0  # in log(scale) and bias: exp must not overflow on the way


@dataclass(frozen=True, eq=False)
class Calibration:
    """A method and its numbers, (G,) each."""

    method: Method
    scale: FloatArray
    bias: FloatArray

    def __call__(self, logits: ArrayLike) -> FloatArray:
        """(N, G) calibrated logits, float64."""
        return self.scale * np.asarray(logits, dtype=np.float64) + self.bias


def fit_calibration(truth: BoolArray, scores: FloatArray, method: Method) -> Calibration:
    """Fit on (N, G) logits against (N, G) targets; the same input gives the same bits."""
    num_genres = truth.shape[1]
    if method == "none":
        return Calibration("none", np.ones(num_genres), np.zeros(num_genres))
    # Platt's line turns about a genre's mean logit, where its probabilities lie: about 0, which the logits of a rare
    # genre never reach, each change of its slope would have to be made good by the bias.
    pivot = scores.mean(axis=0) if method == "platt" else np.zeros(num_genres)
    centred = scores - pivot
    spread = float(np.sqrt(np.mean(centred**2))) or 1.0
    slope, shift = _fit_lines(truth, centred / spread, pivot, spread, with_bias=method == "platt")
    scale = slope / spread
    return Calibration(method, scale, pivot + shift - scale * pivot)


def _fit_lines(
    truth: BoolArray, scores: FloatArray, offset: FloatArray, spread: float, *, with_bias: bool
) -> tuple[FloatArray, FloatArray]:
    """(slope, shift), (G,) each, of the mode of sigmoid(slope * scores + offset + shift) under the priors.

    Newton's method with Fisher's information (so that each step descends) and halved steps. The shared means couple
    the genres only through two numbers, which a Schur complement takes out of the system.
    """
    num_genres = truth.shape[1]
    size = 2 if with_bias else 1
    prior = np.array([SCALE_PRIOR, BIAS_PRIOR])[:size]
    # Row 0: log(slope), row 1: shift. The start is the identity.
    identity = np.array([np.log(spread), 0.0])[:size]
    own, shared = np.repeat(identity[:, None], num_genres, axis=1), identity

    def line(own: FloatArray) -> FloatArray:
        return np.exp(own[0]) * scores + offset + (own[1] if with_bias else 0.0)

    def cost(own: FloatArray, shared: FloatArray) -> tuple[float, FloatArray]:
        """(cost, probabilities): one exponential gives both."""
        logits = line(own)
        small = np.exp(-np.abs(logits))
        loss = (np.maximum(logits, 0.0) + np.log1p(small) - truth * logits).sum()
        away = (prior @ (own - shared[:, None]) ** 2).sum() + SHARED_PRIOR * ((shared - identity) ** 2).sum()
        return float(loss + 0.5 * away), np.where(logits >= 0.0, 1.0, small) / (1.0 + small)

    now, probabilities = cost(own, shared)
    for _ in range(_ITERATIONS):
        rest, weight = probabilities - truth, probabilities * (1.0 - probabilities)
        tangents = [np.exp(own[0]) * scores, np.ones_like(scores)][:size]
        away = prior[:, None] * (own - shared[:, None])
        slope = np.stack([(rest * t).sum(axis=0) for t in tangents]) + away
        bend = np.array([[(weight * s * t).sum(axis=0) for t in tangents] for s in tangents])
        solved = np.linalg.inv(np.moveaxis(bend, 2, 0) + np.diag(prior))  # (G, size, size)
        ahead = np.einsum("gij,jg->ig", solved, slope)
        # Only now the shared means: what is left of their curvature once every genre follows them.
        left = np.diag(num_genres * prior + SHARED_PRIOR) - np.outer(prior, prior) * solved.sum(axis=0)
        pull = prior * ahead.sum(axis=1) - away.sum(axis=1) + SHARED_PRIOR * (shared - identity)
        step_shared = np.linalg.solve(left, pull)
        step = ahead + np.einsum("gij,j->ig", solved, prior * step_shared)
        length = min(1.0, _LONGEST_STEP / max(np.abs(step).max(), np.abs(step_shared).max(), 1e-12))
        while True:
            then, probabilities = cost(own - length * step, shared - length * step_shared)
            if then <= now or length <= 1e-9:
                break
            length /= 2.0
        if then > now:
            break  # no descent left within rounding
        own, shared, gain, now = own - length * step, shared - length * step_shared, now - then, then
        if gain <= _SETTLED * (1.0 + abs(now)):
            break
    return np.exp(own[0]), own[1] if with_bias else np.zeros(num_genres)


def choose_calibration(
    truth: BoolArray,
    scores: FloatArray,
    wanted: Literal["auto"] | Method,
    fold: IntArray,
    units: IntArray,
    fit: Callable[[int | None, Method], Calibration],
) -> tuple[Calibration, dict[str, Any]]:
    """(the calibration fitted on all samples, what was found on held-out ones).

    "auto" fits each method on all folds but one and measures it on that one. A method is chosen if both the mean
    cross-entropy per sample and the ECE fall by more than `CLEARLY` standard errors of that difference, so that noise
    in a small split chooses nothing; of several the one with the lowest cross-entropy.

    fold, units: (N,) of `toolkit.decisions.folds`. fit(k, method) gives the calibration fitted on all but fold k, or on
    all (None).

    The second result maps every method to its held-out {"loss", "ece"}; it is empty where nothing was compared.
    """
    if wanted != "auto":
        return fit(None, wanted), {}
    if not enough(units):
        return fit(None, "none"), {}
    found: dict[str, Any] = {}
    best: Method = "none"
    losses: dict[str, FloatArray] = {}
    gaps: dict[str, FloatArray] = {}
    for method in get_args(Method):
        held_out = np.empty_like(scores)
        for k in np.unique(fold).tolist():
            held_out[fold == k] = fit(k, method)(scores[fold == k])
        losses[method] = cross_entropy(held_out, truth).mean(axis=1)
        ece, gaps[method] = calibration_influence(truth, sigmoid(held_out))
        found[method] = {"loss": float(losses[method].mean()), "ece": ece}
        gain = losses["none"] - losses[method]
        surely = gain.mean() > CLEAR_STANDARD_ERRORS * standard_error((gain - gain.mean()) / len(gain), units)
        truer = found["none"]["ece"] - ece > CLEAR_STANDARD_ERRORS * standard_error(gaps["none"] - gaps[method], units)
        if surely and truer and found[method]["loss"] < found[best]["loss"]:
            best = method
    return fit(None, best), found
