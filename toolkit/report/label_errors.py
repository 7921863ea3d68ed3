"""Labels that are probably wrong, by confident learning (Northcutt et al. 2021, Thyagarajan et al. 2023): cleanlab.

A label is suspected when the model is surer of the opposite than it usually is of posters so labelled. That needs
probabilities of samples that the model was not trained on: a test or validation split. cleanlab is optional.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.extras import absent, install, require_extra
from toolkit.metrics.multilabel import BoolArray, FloatArray

INSTALL = install("report")


@dataclass(frozen=True)
class Flag:
    """One suspected label."""

    genre: str
    given: bool
    """Whether the poster is labelled with the genre; the model thinks the opposite."""
    probability: float
    """What the model gives the genre."""


@dataclass(frozen=True)
class LabelError:
    """A sample with suspected labels."""

    sample: int
    score: float
    """cleanlab's quality of its labels, 0 to 1; low is suspect."""
    flags: list[Flag]


def have_cleanlab() -> bool:
    """Whether cleanlab is installed; it is not imported, which takes seconds."""
    return not absent("cleanlab")


def find_label_errors(truth: BoolArray, scores: FloatArray, genres: Sequence[str]) -> list[LabelError]:
    """Samples with labels that are probably wrong, the likeliest first.

    truth (N, G), and scores (N, G), the probabilities of a model that has not seen these samples. Genres that
    all samples have, or none, are left out: there is nothing to compare with. Raises UserError without cleanlab.
    """
    require_extra("report", "finding label errors", "cleanlab", load=False)
    known = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    if not known.size:
        return []
    suspected, quality = _ask_cleanlab(truth[:, known], scores[:, known])
    found = []
    for sample in np.argsort(quality, kind="stable"):
        columns = known[suspected[sample]]
        if columns.size:
            flags = [Flag(genres[c], bool(truth[sample, c]), float(scores[sample, c])) for c in columns]
            found.append(LabelError(int(sample), float(quality[sample]), flags))
    return found


def _ask_cleanlab(truth: BoolArray, scores: FloatArray) -> tuple[BoolArray, FloatArray]:
    """((n, g) suspected labels, (n,) quality of each sample's labels)."""
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
    from cleanlab.multilabel_classification.rank import get_label_quality_scores

    lists = [np.flatnonzero(row).tolist() for row in truth]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes with few members, which the report says itself
        suspected = find_multilabel_issues_per_class(lists, scores, n_jobs=1)
        quality = get_label_quality_scores(lists, scores, adjust_pred_probs=True)
    return np.asarray(suspected, dtype=np.bool_), np.asarray(quality, dtype=np.float64)
