"""Rows of predictions: an image, its probabilities and its named genres. Files, the Python API and the app use them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shards.dataset.labels import LabelSet
from shards.errors import printable_line
from toolkit.inference.naming import PLAIN, NamingOptions
from toolkit.metrics.helpers import FloatArray

if TYPE_CHECKING:
    from toolkit.inference.scoring import Scored
    from toolkit.model_folder.folder import ModelFolder

#: Columns of a prediction file that are not genres. Case is ignored, because databases ignore the case of columns.
OWN = ("id", "genres", "error", "embedding")


@dataclass(frozen=True)
class Line:
    """The prediction of one genre for one image."""

    genre: str
    probability: float
    """Calibrated probability from 0 to 1."""
    threshold: float
    """Smallest calibrated probability at which the genre is named."""
    named: bool

    @property
    def ratio(self) -> float:
        """Return the probability divided by the threshold. A threshold of 0 counts as 1e-6."""
        return self.probability / max(self.threshold, 1e-6)


def ranked(
    probabilities: FloatArray, labels: LabelSet, thresholds: FloatArray, naming: NamingOptions = PLAIN
) -> list[Line]:
    """Return all genres of one image, the most probable first. Probabilities and thresholds are (G,)."""
    order, named = np.argsort(-probabilities, kind="stable"), naming.named(probabilities, thresholds)
    return [Line(labels.genres[k], float(probabilities[k]), float(thresholds[k]), bool(named[k])) for k in order]


@dataclass
class Rows:
    """Predictions of some images, one row per image."""

    ids: list[str]
    probabilities: np.ndarray
    """(n, G) calibrated probabilities. Rows with an error contain NaN."""
    errors: list[str | None]
    labels: LabelSet
    thresholds: np.ndarray
    """(G,). A genre is named if its calibrated probability is at least its threshold."""
    embeddings: np.ndarray | None = None
    """(n, F) float32 inputs of the classifier. Rows with an error contain NaN."""
    naming: NamingOptions = PLAIN
    key: str = "id"
    """Name of the column with ``ids``. It is ``image`` if the images are single files."""

    @classmethod
    def of(cls, ids: list[str], scored: Scored, folder: ModelFolder, naming: NamingOptions, key: str = "id") -> Rows:
        """Return one row for each of ``ids``. Sample i in ``scored.indices`` has the id ``ids[i]``."""

        def spread(values: np.ndarray) -> np.ndarray:
            full = np.full((len(ids), values.shape[1]), np.nan, values.dtype)
            full[scored.indices] = values
            return full

        errors: list[str | None] = [None] * len(ids)
        for row, error in scored.errors.items():
            errors[row] = printable_line(error)  # it may contain a file name with line breaks or control characters
        return cls(
            ids,
            spread(folder.decisions.probabilities(scored.logits)),
            errors,
            folder.labels,
            naming.thresholds(folder.thresholds, folder.labels),
            None if scored.embeddings is None else spread(scored.embeddings),
            naming,
            key,
        )

    @property
    def columns(self) -> list[str]:
        """Return the names of the genres' probability columns, in the model's order."""
        return list(genre_columns(self.labels.genres, (*OWN, self.key)).values())

    def named(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns of the named genres of all rows, one row after another, and (n + 1,) int64 offsets.

        The columns of row i are from offset i to offset i + 1.
        """
        named = self.naming.named(self.probabilities, self.thresholds)
        return np.nonzero(named)[1], np.concatenate([[0], np.cumsum(np.count_nonzero(named, axis=1))])

    def names(self) -> list[list[str]]:
        """Return the named genres of each row, in the model's order."""
        columns, offsets = self.named()
        genres = [self.labels.genres[column] for column in columns.tolist()]
        return [genres[start:end] for start, end in itertools.pairwise(offsets.tolist())]

    def ranked(self) -> list[list[Line]]:
        """Return all genres of each row, the most probable first. A row with an error has an empty list."""
        return [
            [] if error is not None else ranked(row, self.labels, self.thresholds, self.naming)
            for row, error in zip(self.probabilities, self.errors, strict=True)
        ]


def genre_columns(genres: Sequence[str], reserved: Collection[str] = OWN) -> dict[str, str]:
    """Return genre → column. Each column is unique: the genre's name, or ``genre:NAME`` if this name is ``reserved``.

    If another genre is called ``genre:NAME``, the prefix is repeated. Reserved names are compared case-insensitively.

    >>> genre_columns(["Drama", "ID", "id", "genre:id"], ["id"])
    {'Drama': 'Drama', 'ID': 'genre:ID', 'id': 'genre:genre:id', 'genre:id': 'genre:id'}
    """
    own = {name.casefold() for name in reserved}
    taken = set(genres)
    columns = {}
    for genre in genres:
        column = genre
        if genre.casefold() in own:
            while column in taken or column.casefold() in own:
                column = f"genre:{column}"
            taken.add(column)
        columns[genre] = column
    return columns
