"""The one rule that says whether a difference between two models was seen, and in which direction.

A difference is seen if two conditions hold: its 95% interval does not contain 0, and its p-value is below 5% after the
correction of Holm (1979, "A simple sequentially rejective multiple test procedure") for all differences of the same
table. Without the correction, about one of 20 rows would show a difference by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from toolkit.metrics.bootstrap import COVERAGE, Difference
from toolkit.metrics.registry import Better

#: A corrected p-value below this level counts.
LEVEL = 0.05
BETTER, WORSE, DIFFERENT, UNSEEN = "better", "worse", "different", "no difference seen"
#: Results that say that a difference was seen. "different" is for metrics that are not better in one direction.
SEEN = (BETTER, WORSE, DIFFERENT)
RULE = (
    f"A row says better or worse only if two conditions hold: the {COVERAGE:.0%} interval of the difference does not "
    f"contain 0, and p is below {LEVEL} after the correction of Holm for all rows of the table. All other rows "
    f"say {UNSEEN!r}."
)


class Judgement(NamedTuple):
    """The result of one comparison."""

    words: str
    """One of BETTER, WORSE, DIFFERENT and UNSEEN."""
    p: float | None
    """p-value after the correction of Holm. None if the difference is not defined."""


def judged(differences: Sequence[Difference], better: Sequence[Better]) -> list[Judgement]:
    """Judge all differences of one table. ``better``: for each difference, which sign of it is better."""
    corrected = holm([difference.p for difference in differences])
    return [
        Judgement(_words(difference, p, direction), p)
        for difference, p, direction in zip(differences, corrected, better, strict=True)
    ]


def _words(difference: Difference, p: float | None, better: Better) -> str:
    if p is None or difference.value is None or not difference.excludes_zero or p >= LEVEL:
        return UNSEEN
    if better is None:
        return DIFFERENT
    return BETTER if (difference.value > 0.0) == (better == "higher") else WORSE


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values after the step-down correction of Holm. None stays None, and is not counted."""
    known = [place for place, value in enumerate(values) if value is not None]
    plain = np.array([values[place] for place in known], dtype=np.float64)
    order = np.argsort(plain, kind="stable")
    stepped = np.maximum.accumulate(plain[order] * np.arange(len(plain), 0, -1)).clip(max=1.0)
    found: list[float | None] = [None] * len(values)
    for place, value in zip(order, stepped, strict=True):
        found[known[place]] = float(value)
    return found
