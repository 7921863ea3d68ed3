"""Co-occurrence of genres, and substitutions: genres that are wrongly named on posters whose genre was missed.

A multi-label model has no confusion matrix, since a wrong genre does not replace exactly one right genre. Instead, the
posters where genre g was missed are counted: how often is h wrongly named on them? This rate is
compared with the usual rate of h on all posters without h, because a genre that is often named is also often wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.metrics.multilabel import BoolArray, FloatArray, ratio

#: Rates from fewer posters are left blank.
MIN_POSTERS = 5
#: Maximum number of rows of a table.
MAX_ROWS = 12


def cooccurrence(targets: BoolArray) -> FloatArray:
    """Return (G, G) shares of posters with the row's genre that also have the column's genre; NaN without support."""
    truth = targets.astype(np.float64)
    support = truth.sum(axis=0)
    shares = ratio(truth.T @ truth, support[:, None])
    shares[support == 0] = np.nan
    return shares


def pairs(targets: BoolArray, named: BoolArray, genres: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most common pairs of genres: posters with both, lift, and posters for which both are named.

    ``targets`` and ``named`` are (N, G). Lift is the count divided by the count expected for independent genres.
    """
    truth, predicted = targets.astype(np.float64), named.astype(np.float64)
    counts, support = truth.T @ truth, truth.sum(axis=0)
    expected = np.outer(support, support) / len(truth)
    both_named = predicted.T @ predicted
    right = (truth * predicted).T @ (truth * predicted)
    rows: list[dict[str, Any]] = [
        {
            "first": genres[first],
            "second": genres[second],
            "count": int(counts[first, second]),
            "lift": float(counts[first, second] / expected[first, second]),
            "named": int(both_named[first, second]),
            "right": int(right[first, second]),
        }
        for first, second in np.argwhere(np.triu(counts, k=1)).tolist()
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["first"], row["second"]))[:MAX_ROWS]


class Substitutions:
    """Counts of wrong genres on posters whose genre was missed. All matrices are (G missed, G wrongly named)."""

    def __init__(self, targets: BoolArray, named: BoolArray) -> None:
        missed = (targets & ~named).astype(np.float64)
        absent, wrong = (~targets).astype(np.float64), (named & ~targets).astype(np.float64)
        self.could = missed.T @ absent
        """Number of posters where g was missed and h is not true: h can be wrongly named on them."""
        self.count = missed.T @ wrong
        """Number of these posters where h was wrongly named."""
        self.usual = ratio(wrong.sum(axis=0), absent.sum(axis=0))
        """(G,) rate at which h is named on posters without h, over the whole split."""
        self.missed = missed.sum(axis=0)

    @property
    def share(self) -> FloatArray:
        """Rate at which h is wrongly named on posters where g was missed."""
        return ratio(self.count, self.could)

    @property
    def times_usual(self) -> FloatArray:
        """``share`` divided by ``usual``; NaN on the diagonal and for too few posters.

        At least 2 posters must be counted or expected: smaller differences are chance.
        """
        times = ratio(self.share, np.broadcast_to(self.usual, self.share.shape))
        expected = self.could * self.usual
        times[(self.could < MIN_POSTERS) | (np.maximum(self.count, expected) < 2.0)] = np.nan
        np.fill_diagonal(times, np.nan)
        return times

    def rows(self, genres: Sequence[str]) -> list[dict[str, Any]]:
        """Return the substitutions whose count exceeds the expected count, the largest excess first."""
        excess = self.count - self.could * self.usual
        np.fill_diagonal(excess, 0.0)
        order = np.argsort(-excess, axis=None, kind="stable")[:MAX_ROWS]
        return [
            {
                "missed": genres[g],
                "instead": genres[h],
                "missed_count": int(self.missed[g]),
                "could": int(self.could[g, h]),
                "count": int(self.count[g, h]),
                "share": float(self.share[g, h]),
                "usual": float(self.usual[h]),
            }
            for g, h in zip(*np.unravel_index(order, excess.shape), strict=True)
            if excess[g, h] > 0 and self.could[g, h] >= MIN_POSTERS
        ]
