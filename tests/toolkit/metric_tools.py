"""Metrics of arrays as tests write them: lists, whole numbers, floats of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from toolkit.metrics.calibration_error import reliability
from toolkit.metrics.registry import values
from toolkit.metrics.weighted import Outcome


def outcome_of(targets: ArrayLike, named: ArrayLike | None = None, probabilities: ArrayLike | None = None) -> Outcome:
    """Targets beside what is named, and probabilities, as far as they are given."""
    given: dict[str, Any] = {} if named is None else {"named": np.asarray(named, dtype=np.bool_)}
    if probabilities is not None:
        given["scores"] = np.asarray(probabilities, dtype=np.float64)
    return Outcome(np.asarray(targets, dtype=np.bool_), **given)


def prediction_metrics(targets: ArrayLike, named: ArrayLike) -> dict[str, Any]:
    """The decisions' metrics of an (N, G) matrix of yes and no."""
    return values(outcome_of(targets, named), "decisions")


def threshold_metrics(targets: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike) -> dict[str, Any]:
    """The decisions' metrics of ``probability >= threshold``."""
    return values(outcome_of(targets, probabilities=probabilities).at(thresholds), "decisions")


def calibration_summary(targets: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Calibration errors and the reliability curve."""
    return reliability(np.asarray(targets, dtype=np.bool_), np.asarray(probabilities, dtype=np.float64))
