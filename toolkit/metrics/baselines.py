"""Baselines that do not use the images, for comparison with the metrics of a model.

A few genres are very common. On the project's posters, always predicting the two commonest genres has a micro-F1 near
0.59. So a model with a micro-F1 of 0.6 has learnt little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from toolkit.metrics.helpers import BoolArray, FloatArray, clipped_cross_entropy, mean_element
from toolkit.metrics.registry import values
from toolkit.metrics.weighted import Outcome


@dataclass(frozen=True)
class BaselineRow:
    """Metrics of one baseline. `toolkit.metrics.registry` defines the groups of metrics."""

    label: str
    kind: Literal["prevalence", "top_k"]
    metrics: dict[str, float]
    """The metrics of group "decisions"."""
    threshold: float | list[float] | None = None
    """One threshold, or one per label. None for kind "top_k", which has no probabilities."""
    ranking: dict[str, Any] | None = None
    """``loss`` and the metrics of group "ranking". None for kind "top_k"."""
    genre_indices: list[int] | None = None
    """Columns of the labels that kind "top_k" always predicts, commonest first. None for kind "prevalence"."""


def threshold_label(threshold: float) -> str:
    """Format a threshold with two decimals, such as "0.30", or with two significant digits if it is below 0.1."""
    return f"{threshold:.2g}" if 0.0 < threshold < 0.1 else f"{threshold:.2f}"


def commonest_labels(train_prevalence: FloatArray, k: int) -> list[int]:
    """Return the columns of the k commonest labels, commonest first. Equally common labels keep their order."""
    return np.argsort(-train_prevalence, kind="stable")[:k].tolist()


def always_top_k(shape: tuple[int, ...], train_prevalence: FloatArray, k: int) -> BoolArray:
    """Return (N, G) predicted labels: the k commonest labels for every sample."""
    named = np.zeros(shape, dtype=np.bool_)
    named[:, commonest_labels(train_prevalence, k)] = True
    return named


def baselines(
    train_prevalence: FloatArray,
    truth: BoolArray,
    thresholds: Sequence[tuple[str, ArrayLike]],
    k_values: Sequence[int],
    weights: FloatArray | None = None,
) -> list[BaselineRow]:
    """Return rows for the prevalence baseline at each threshold, then for always-top-k at each k.

    train_prevalence (G,) in [0, 1]: each label's share of positives in the TRAINING set. truth (N, G): targets of the
    evaluated split. thresholds: pairs of (name, one number or a (G,) array). k_values: numbers of labels up to G.
    weights: (N,) sample weights, or None if all samples have the same weight.

    The prevalence baseline uses the training prevalence as the probability of every sample. Its AP is the label's
    prevalence in the evaluated split, and its ROC-AUC is 0.5. If both splits have the same prevalence, no other
    constant probability has a lower loss. In the loss, a label without training positives has the probability 1e-7.
    """
    constant = Outcome(truth, scores=np.broadcast_to(train_prevalence, truth.shape), weights=weights)
    loss = mean_element(clipped_cross_entropy(truth, constant.scores), weights)
    ranking = {**values(constant, "ranking"), "loss": loss}
    rows = [
        BaselineRow(
            label=f"prevalence @ {label}",
            kind="prevalence",
            metrics=values(constant.at(threshold), "decisions"),
            threshold=np.asarray(threshold).tolist(),
            ranking=ranking,
        )
        for label, threshold in thresholds
    ]
    rows += [
        BaselineRow(
            label=f"always top-{k}",
            kind="top_k",
            metrics=values(
                Outcome(truth, always_top_k(truth.shape, train_prevalence, k), weights=weights), "decisions"
            ),
            genre_indices=commonest_labels(train_prevalence, k),
        )
        for k in k_values
    ]
    return rows
