"""Co-occurrence of genres, and substitutions: wrongly named genres on posters where another genre was missed.

A genre is named if the model predicts it, and missed if it is true but not named. A multi-label model has no confusion
matrix, since a wrong genre does not replace exactly one true genre. Instead, this module computes the rate at which
genre h is wrongly named on posters where genre g was missed. This rate is divided by the rate on all posters without h,
since a genre that is often named is often wrong everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.metrics.helpers import BoolArray, FloatArray, ratio

#: Minimum number of posters for a rate.
MIN_POSTERS = 5
#: Maximum number of rows of a table.
MAX_ROWS = 12


def cooccurrence(targets: BoolArray) -> FloatArray:
    """Return (G, G) shares of genre h (column) among the posters with genre g (row). NaN if no poster has g."""
    truth = targets.astype(np.float64)
    support = truth.sum(axis=0)
    shares = ratio(truth.T @ truth, support[:, None])
    shares[support == 0] = np.nan
    return shares


def pairs(targets: BoolArray, named: BoolArray, genres: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row for each of the most common pairs of genres. ``targets`` and ``named`` are (N, G) bool.

    A row has three counts of posters: both genres are true, both are named, and both are true and named. Lift is the
    number of posters with both genres, divided by the number expected for independent genres.
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
    """Counts of posters where genre g (the row) was missed and genre h (the column) was wrongly named."""

    def __init__(self, targets: BoolArray, named: BoolArray) -> None:
        missed = (targets & ~named).astype(np.float64)
        absent, wrong = (~targets).astype(np.float64), (named & ~targets).astype(np.float64)
        self.could = missed.T @ absent
        """Number of posters where g was missed and h is not true. h can be wrongly named only on these posters."""
        self.count = missed.T @ wrong
        """Number of posters where g was missed and h was wrongly named."""
        self.usual = ratio(wrong.sum(axis=0), absent.sum(axis=0))
        """(G,) rate at which h is wrongly named on all posters without h."""
        self.missed = missed.sum(axis=0)

    @property
    def share(self) -> FloatArray:
        """Rate at which genre h (column) is named on posters where genre g (row) was missed and h is not true."""
        return ratio(self.count, self.could)

    @property
    def times_usual(self) -> FloatArray:
        """``share`` divided by ``usual``, the rate at which genre h is wrongly named on all posters without h.

        NaN on the diagonal and for few posters: ``could`` < `MIN_POSTERS`, or ``count`` and ``could * usual`` both < 2.
        """
        times = ratio(self.share, np.broadcast_to(self.usual, self.share.shape))
        expected = self.could * self.usual
        times[(self.could < MIN_POSTERS) | (np.maximum(self.count, expected) < 2.0)] = np.nan
        np.fill_diagonal(times, np.nan)
        return times

    def rows(self, genres: Sequence[str]) -> list[dict[str, Any]]:
        """Return the substitutions that are more frequent than usual, the largest difference of counts first."""
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
