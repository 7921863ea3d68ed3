"""Baselines that look at no image, to stand beside every number of the model.

Genres are long-tailed, so always naming the two commonest ones already gives a micro-F1 near 0.59 on the
project's posters; a model's 0.6 means little until that is on the same page.
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
    """One baseline at one setting.

    kind "prevalence" has a ``threshold`` (one number, or one per genre) and a ``ranking`` (keys ``mAP``,
    ``roc_auc`` and others of `toolkit.metrics.table`, and ``loss``; the same at every threshold).
    kind "top_k" has ``genre_indices``, the columns it always names, commonest first; it gives no
    probabilities, so it has no ranking. ``metrics`` has the decisions' of the table.
    """

    label: str
    kind: Literal["prevalence", "top_k"]
    metrics: dict[str, float]
    threshold: float | list[float] | None = None
    ranking: dict[str, Any] | None = None
    genre_indices: list[int] | None = None


def threshold_label(threshold: float) -> str:
    """ "0.30": two digits, or two significant ones below 0.1."""
    return f"{threshold:.2g}" if 0.0 < threshold < 0.1 else f"{threshold:.2f}"


def commonest_genres(train_prevalence: FloatArray, k: int) -> list[int]:
    """Columns of the k genres commonest in training, commonest first; of equals the lower column first."""
    return np.argsort(-train_prevalence, kind="stable")[:k].tolist()


def always_top_k(shape: tuple[int, ...], train_prevalence: FloatArray, k: int) -> BoolArray:
    """(N, G) decisions that name the k commonest genres for every sample."""
    named = np.zeros(shape, dtype=np.bool_)
    named[:, commonest_genres(train_prevalence, k)] = True
    return named


def baselines(
    train_prevalence: FloatArray, truth: BoolArray, thresholds: Sequence[tuple[str, ArrayLike]], k_values: Sequence[int]
) -> list[BaselineRow]:
    """Rows for the prevalence baseline at each threshold, then for always-top-k at each k.

    train_prevalence (G,) in [0, 1] is each genre's share of positives in the TRAINING set; truth
    (N, G) is the evaluated split; each threshold, after its label, is one number or a (G,) array; k up to G.

    The prevalence baseline gives every sample the training prevalence as its probabilities. Scores that
    do not vary rank nothing, so its AP is each genre's prevalence in the evaluated split and its ROC-AUC
    0.5. Its loss is the least that constant probabilities can reach if both splits have the same
    prevalence; a genre never seen in training counts as probability 1e-7.
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
            genre_indices=commonest_genres(train_prevalence, k),
        )
        for k in k_values
    ]
    return rows
