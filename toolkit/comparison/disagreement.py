"""Find the posters on which several models disagree most.

The disagreement of two models on a poster is the number of genres that exactly one of them names. This is the
disagreement measure of Kuncheva and Whitaker (2003, "Measures of diversity in classifier ensembles"), summed over the
genres of a poster. With several models, it is the mean over all pairs of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray


def disagreement(named: Sequence[BoolArray]) -> FloatArray:
    """Return the (N,) mean number of genres that exactly one model of a pair names.

    named: for each model, the (N, G) named genres.

    >>> disagreement([np.array([[True, True]]), np.array([[True, False]]), np.array([[True, False]])]).tolist()
    [0.6666666666666666]
    """
    models = len(named)
    naming = np.sum(named, axis=0, dtype=np.int64)
    found: FloatArray = (naming * (models - naming)).sum(axis=1) / (models * (models - 1) / 2)
    return found


def most_disputed(
    named: Sequence[BoolArray], probabilities: Sequence[FloatArray], units: IntArray | None, limit: int
) -> list[tuple[int, float]]:
    """Return (number of the sample, disagreement) of at most ``limit`` posters, the largest disagreement first.

    Posters on which all models name the same genres are left out. Of posters with equal disagreement, the ones with the
    largest differences between probabilities are first. Of near-duplicates, only one poster is returned.
    """
    values = disagreement(named)
    spread = (np.max(probabilities, axis=0) - np.min(probabilities, axis=0)).sum(axis=1)
    found: dict[int, tuple[int, float]] = {}
    for row in np.lexsort((-spread, -values)).tolist():
        if values[row] == 0 or len(found) == limit:
            break
        found.setdefault(row if units is None else int(units[row]), (row, float(values[row])))
    return list(found.values())
