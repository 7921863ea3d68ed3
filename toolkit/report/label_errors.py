"""Find probably wrong labels with cleanlab: confident learning (Northcutt et al. 2021, Thyagarajan et al. 2023).

For a genre, the label of a poster is yes or no. A label is suspected if the model gives the opposite label a high
probability. A probability is high if it is above the mean probability of the opposite label over all posters that have
the opposite label. The model must not have been trained on the samples, so use a test or validation split.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.extras import absent, install, require_extra
from toolkit.metrics.helpers import BoolArray, FloatArray

INSTALL = install("report")


@dataclass(frozen=True)
class Flag:
    """One suspected label."""

    genre: str
    given: bool
    """True if the poster has this label, which is probably wrong. False if this label is probably missing."""
    probability: float
    """The calibrated probability of the genre, from 0 to 1."""


@dataclass(frozen=True)
class LabelError:
    """A sample with suspected labels."""

    sample: int
    score: float
    """Quality of the sample's labels according to cleanlab, from 0 (probably wrong) to 1."""
    flags: list[Flag]


def have_cleanlab() -> bool:
    """Return whether cleanlab is installed, without the slow import of cleanlab."""
    return not absent("cleanlab")


def find_label_errors(truth: BoolArray, scores: FloatArray, genres: Sequence[str]) -> list[LabelError]:
    """Return the samples with labels that are probably wrong, the most probable errors first.

    ``truth`` is (N, G) bool. ``scores`` is (N, G): probabilities of a model that was not trained on these samples.
    Genres that are true for all samples, or for no sample, are left out. Raises UserError if cleanlab is not installed.
    """
    require_extra("report", "finding label errors", "cleanlab", load=False)
    known = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    if not known.size:
        return []
    suspected, quality = _run_cleanlab(truth[:, known], scores[:, known])
    found = []
    for sample in np.argsort(quality, kind="stable"):
        columns = known[suspected[sample]]
        if columns.size:
            flags = [Flag(genres[c], bool(truth[sample, c]), float(scores[sample, c])) for c in columns]
            found.append(LabelError(int(sample), float(quality[sample]), flags))
    return found


def _run_cleanlab(truth: BoolArray, scores: FloatArray) -> tuple[BoolArray, FloatArray]:
    """Return the suspected labels as (n, g) bool, and the quality of each sample's labels as (n,) float."""
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class
    from cleanlab.multilabel_classification.rank import get_label_quality_scores

    lists = [np.flatnonzero(row).tolist() for row in truth]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cleanlab warns of rare genres, but the report has its own note on rare genres
        suspected = find_multilabel_issues_per_class(lists, scores, n_jobs=1)
        quality = get_label_quality_scores(lists, scores, adjust_pred_probs=True)
    return np.asarray(suspected, dtype=np.bool_), np.asarray(quality, dtype=np.float64)
