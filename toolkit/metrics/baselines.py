"""Baselines that do not use the images, to compare with the metrics of a model.

Genres are long-tailed: always predicting the two commonest ones has a micro-F1 near 0.59 on the project's posters. A
model's 0.6 means little without this comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from toolkit.metrics.multilabel import BoolArray, FloatArray, clipped_cross_entropy
from toolkit.metrics.table import values
from toolkit.metrics.weighted import Outcome


@dataclass(frozen=True)
class BaselineRow:
    """Metrics of one baseline.

    kind "prevalence" has a ``threshold`` (one number, or one per label) and a ``ranking`` (keys of group "ranking" in
    `toolkit.metrics.table`, and ``loss``; equal at all thresholds). kind "top_k" has ``genre_indices``, the columns
    that are always predicted, commonest first; it has no probabilities and so no ranking. ``metrics`` has the keys of
    group "decisions".
    """

    label: str
    kind: Literal["prevalence", "top_k"]
    metrics: dict[str, float]
    threshold: float | list[float] | None = None
    ranking: dict[str, Any] | None = None
    genre_indices: list[int] | None = None


def threshold_label(threshold: float) -> str:
    """Format a threshold: "0.30", with two decimals, or two significant digits below 0.1."""
    return f"{threshold:.2g}" if 0.0 < threshold < 0.1 else f"{threshold:.2f}"


def commonest_labels(train_prevalence: FloatArray, k: int) -> list[int]:
    """Return the columns of the k commonest labels, commonest first; ties in the order of the columns."""
    return np.argsort(-train_prevalence, kind="stable")[:k].tolist()


def always_top_k(shape: tuple[int, ...], train_prevalence: FloatArray, k: int) -> BoolArray:
    """Return (N, G) decisions that predict the k commonest labels for every sample."""
    named = np.zeros(shape, dtype=np.bool_)
    named[:, commonest_labels(train_prevalence, k)] = True
    return named


def baselines(
    train_prevalence: FloatArray, truth: BoolArray, thresholds: Sequence[tuple[str, ArrayLike]], k_values: Sequence[int]
) -> list[BaselineRow]:
    """Return rows for the prevalence baseline at each threshold, then for always-top-k at each k.

    train_prevalence (G,) in [0, 1]: each label's share of positives in the TRAINING set. truth (N, G): targets of the
    evaluated split. thresholds: pairs of (name, one number or a (G,) array). k_values: at most G each.

    The prevalence baseline uses the training prevalence as probabilities for every sample. These constant scores have
    an AP equal to the label's prevalence in the evaluated split, and a ROC-AUC of 0.5. Their loss is the lowest of all
    constant probabilities if both splits have the same prevalence. A label without training positives has probability
    1e-7 in the loss.
    """
    constant = Outcome(truth, scores=np.broadcast_to(train_prevalence, truth.shape))
    loss = float(clipped_cross_entropy(truth, constant.scores).mean())
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
            metrics=values(Outcome(truth, always_top_k(truth.shape, train_prevalence, k)), "decisions"),
            genre_indices=commonest_labels(train_prevalence, k),
        )
        for k in k_values
    ]
    return rows
