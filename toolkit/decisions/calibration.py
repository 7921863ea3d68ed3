"""Calibration per label, fitted on validation logits: calibrated logit = scale * logit + bias, with scale > 0.

A weighted loss, mixup or long training makes the probabilities of a model differ from the real frequencies. Method
"temperature" scales the logits of a label (Guo et al., "On Calibration of Modern Neural Networks", 2017). Method
"platt" scales them and adds a bias (Platt, "Probabilistic Outputs for Support Vector Machines", 1999). The scale is
positive, so calibration does not change the ranking of the samples. Cross-validation on the split shows whether a
method helps.

A rare label has too few positives to fit two parameters. Each label therefore has a normal prior on log(scale) and
bias. All labels share the means of the priors. The means are fitted together with the parameters (mode of a
hierarchical model). Because of the priors, the parameters are finite even for a label without positives.
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
from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray, cross_entropy, sigmoid

#: Precision (1 / variance) of the priors on each label's log(scale) and bias. Values from 0.3 to 100 were tried on 400
#: real, simulated and shifted posters. These two values had nearly the lowest held-out loss.
SCALE_PRIOR, BIAS_PRIOR = 10.0, 1.0
#: Precision of the prior on the shared means, centred on scale 1 and bias 0. This prior is needed only if the logits
#: separate the classes without error. It then keeps the scale finite.
SHARED_PRIOR = 0.1
_ITERATIONS, _CONVERGED = 100, 1e-10
_LONGEST_STEP = 2.0  # largest change of log(scale) and bias per iteration, so that exp does not overflow


@dataclass(frozen=True, eq=False)
class Calibration:
    """A calibration method and its (G,) parameters."""

    method: Method
    scale: FloatArray
    bias: FloatArray

    def __call__(self, logits: ArrayLike) -> FloatArray:
        """Return (N, G) calibrated logits in float64."""
        return self.scale * np.asarray(logits, dtype=np.float64) + self.bias


def fit_calibration(truth: BoolArray, scores: FloatArray, method: Method) -> Calibration:
    """Fit a method on (N, G) logits ``scores`` and (N, G) targets. Equal inputs give bit-identical parameters."""
    num_labels = truth.shape[1]
    if method == "none":
        return Calibration("none", np.ones(num_labels), np.zeros(num_labels))
    # Platt's line is fitted around the mean logit of a label. The logits of a rare label are far from 0, so slope and
    # bias are strongly correlated if the line is fitted around 0.
    pivot = scores.mean(axis=0) if method == "platt" else np.zeros(num_labels)
    centred = scores - pivot
    spread = float(np.sqrt(np.mean(centred**2))) or 1.0
    slope, shift = _fit_lines(truth, centred / spread, pivot, spread, with_bias=method == "platt")
    scale = slope / spread
    return Calibration(method, scale, pivot + shift - scale * pivot)


def _fit_lines(
    truth: BoolArray, scores: FloatArray, offset: FloatArray, spread: float, *, with_bias: bool
) -> tuple[FloatArray, FloatArray]:
    """Fit sigmoid(slope * scores + offset + shift) with priors. Return the (G,) slopes and the (G,) shifts.

    Newton's method uses the Fisher information, so each step is a descent direction. A step that raises the cost is
    halved. All labels share the means of the priors. A Schur complement gives the step of these means.
    """
    num_labels = truth.shape[1]
    size = 2 if with_bias else 1
    prior = np.array([SCALE_PRIOR, BIAS_PRIOR])[:size]
    # Row 0 is log(slope), row 1 is shift. The start is scale 1 and bias 0.
    identity = np.array([np.log(spread), 0.0])[:size]
    own, shared = np.repeat(identity[:, None], num_labels, axis=1), identity

    def line(own: FloatArray) -> FloatArray:
        return np.exp(own[0]) * scores + offset + (own[1] if with_bias else 0.0)

    def cost(own: FloatArray, shared: FloatArray) -> tuple[float, FloatArray]:
        logits = line(own)
        small = np.exp(-np.abs(logits))
        loss = (np.maximum(logits, 0.0) + np.log1p(small) - truth * logits).sum()
        penalty = (prior @ (own - shared[:, None]) ** 2).sum() + SHARED_PRIOR * ((shared - identity) ** 2).sum()
        return float(loss + 0.5 * penalty), np.where(logits >= 0.0, 1.0, small) / (1.0 + small)

    now, probabilities = cost(own, shared)
    for _ in range(_ITERATIONS):
        residual, weight = probabilities - truth, probabilities * (1.0 - probabilities)
        tangents = [np.exp(own[0]) * scores, np.ones_like(scores)][:size]
        prior_gradient = prior[:, None] * (own - shared[:, None])
        gradient = np.stack([(residual * t).sum(axis=0) for t in tangents]) + prior_gradient
        fisher = np.array([[(weight * s * t).sum(axis=0) for t in tangents] for s in tangents])
        solved = np.linalg.inv(np.moveaxis(fisher, 2, 0) + np.diag(prior))  # (G, size, size)
        own_step = np.einsum("gij,jg->ig", solved, gradient)
        # The Schur complement is the curvature of the shared means without the parameters of the labels.
        schur = np.diag(num_labels * prior + SHARED_PRIOR) - np.outer(prior, prior) * solved.sum(axis=0)
        shared_gradient = prior * own_step.sum(axis=1) - prior_gradient.sum(axis=1) + SHARED_PRIOR * (shared - identity)
        step_shared = np.linalg.solve(schur, shared_gradient)
        step = own_step + np.einsum("gij,j->ig", solved, prior * step_shared)
        length = min(1.0, _LONGEST_STEP / max(np.abs(step).max(), np.abs(step_shared).max(), 1e-12))
        while True:
            then, probabilities = cost(own - length * step, shared - length * step_shared)
            if then <= now or length <= 1e-9:
                break
            length /= 2.0
        if then > now:
            break  # only rounding errors remain
        own, shared, gain, now = own - length * step, shared - length * step_shared, now - then, then
        if gain <= _CONVERGED * (1.0 + abs(now)):
            break
    return np.exp(own[0]), own[1] if with_bias else np.zeros(num_labels)


def choose_calibration(
    truth: BoolArray,
    scores: FloatArray,
    wanted: Literal["auto"] | Method,
    fold: IntArray,
    units: IntArray,
    fit: Callable[[int | None, Method], Calibration],
) -> tuple[Calibration, dict[str, Any]]:
    """Return the chosen calibration, fitted on all samples, and a dictionary: method → its held-out "loss" and "ece".

    "auto" cross-validates each method: the method is fitted without one fold and measured on that fold. A method helps
    if cross-entropy and ECE both fall by more than `CLEAR_STANDARD_ERRORS` standard errors of the difference. Of the
    methods that help, the one with the lowest cross-entropy is chosen. If no method helps, "none" is chosen.

    fold, units: (N,) from `toolkit.decisions.folds`. fit(k, method) returns the calibration fitted without fold k.
    If k is None, all samples are used. The dictionary is empty if no methods were compared.
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
