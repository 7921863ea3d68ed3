"""Genres that come together, and what a model says instead of a genre that it misses.

A multi-label model has no confusion matrix: a wrong genre is not *the* answer in place of a right one. What can be
counted: among the posters of a genre g that the model does not call g, how often does it wrongly name h? That alone
would blame whatever is named often, so it is set beside h's usual rate: how often h is wrongly named where it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toolkit.metrics.multilabel import BoolArray, FloatArray, ratio

#: Rates of fewer posters are left blank.
MIN_POSTERS = 5
#: Rows of a table.
MAX_ROWS = 12


def cooccurrence(targets: BoolArray) -> FloatArray:
    """(G, G): of the posters with the row's genre, the share that has the column's too; NaN without support."""
    truth = targets.astype(np.float64)
    support = truth.sum(axis=0)
    shares = ratio(truth.T @ truth, support[:, None])
    shares[support == 0] = np.nan
    return shares


def pairs(targets: BoolArray, named: BoolArray, genres: Sequence[str]) -> list[dict[str, Any]]:
    """The commonest pairs of genres: how many posters have both, the lift, and how many of them are given both.

    Lift is the count over what independent genres of the same support would give.
    """
    truth, said = targets.astype(np.float64), named.astype(np.float64)
    counts, support = truth.T @ truth, truth.sum(axis=0)
    expected = np.outer(support, support) / len(truth)
    both_said = said.T @ said
    right = (truth * said).T @ (truth * said)
    rows: list[dict[str, Any]] = [
        {
            "first": genres[first],
            "second": genres[second],
            "count": int(counts[first, second]),
            "lift": float(counts[first, second] / expected[first, second]),
            "named": int(both_said[first, second]),
            "right": int(right[first, second]),
        }
        for first, second in np.argwhere(np.triu(counts, k=1)).tolist()
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["first"], row["second"]))[:MAX_ROWS]


class Substitutions:
    """Counts of wrong genres on posters whose genre was missed; all matrices are (G missed, G named instead)."""

    def __init__(self, targets: BoolArray, named: BoolArray) -> None:
        missed = (targets & ~named).astype(np.float64)
        absent, wrong = (~targets).astype(np.float64), (named & ~targets).astype(np.float64)
        self.could = missed.T @ absent
        """Posters with g, not called g, that are not h: those on which h could be said wrongly."""
        self.count = missed.T @ wrong
        """Those on which it was."""
        self.usual = ratio(wrong.sum(axis=0), absent.sum(axis=0))
        """(G,) how often h is named where it is wrong, over the whole split."""
        self.missed = missed.sum(axis=0)

    @property
    def share(self) -> FloatArray:
        """How often h is wrongly named where g was missed."""
        return ratio(self.count, self.could)

    @property
    def times_usual(self) -> FloatArray:
        """That share over the usual one; NaN on the diagonal and where there is too little to say.

        One poster where a tenth of one was expected is no finding, and neither is none.
        """
        times = ratio(self.share, np.broadcast_to(self.usual, self.share.shape))
        expected = self.could * self.usual
        times[(self.could < MIN_POSTERS) | (np.maximum(self.count, expected) < 2.0)] = np.nan
        np.fill_diagonal(times, np.nan)
        return times

    def rows(self, genres: Sequence[str]) -> list[dict[str, Any]]:
        """Where the count exceeds what the usual rate explains by most, that first."""
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
