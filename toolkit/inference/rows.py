"""Rows of predictions: what files of every format, the Python interface and the app's page are made from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shards.dataset.labels import LabelSet
from shards.errors import printable_line

if TYPE_CHECKING:
    from toolkit.decisions.choose import Decisions
    from toolkit.inference.scoring import Scored

#: Our own columns. Databases do not tell Error from error.
OWN = ("id", "genres", "error", "embedding")


@dataclass(frozen=True)
class Line:
    """One genre of one picture."""

    genre: str
    probability: float
    """Calibrated, 0 to 1."""
    threshold: float
    """Calibrated probability from which the genre is named."""

    @property
    def named(self) -> bool:
        return self.probability >= self.threshold

    @property
    def ratio(self) -> float:
        """Probability over threshold; a threshold of 0 counts as a millionth."""
        return self.probability / max(self.threshold, 1e-6)


def ranked(probabilities: np.ndarray, labels: LabelSet, thresholds: np.ndarray) -> list[Line]:
    """All genres of one picture, most probable first; probabilities and thresholds (G,)."""
    order = np.argsort(-probabilities, kind="stable")
    return [Line(labels.genres[k], float(probabilities[k]), float(thresholds[k])) for k in order]


@dataclass
class Rows:
    """The rows of some images; those with an error hold no numbers."""

    ids: list[str]
    probabilities: np.ndarray
    """(n, G) calibrated, NaN in rows with an error."""
    errors: list[str | None]
    labels: LabelSet
    thresholds: np.ndarray
    """(G,) calibrated probabilities from which a genre is named."""
    embeddings: np.ndarray | None = None
    """(n, F) float32, NaN in rows with an error."""
    key: str = "id"
    """Column of ``ids``: ``image`` of files and pictures that a user gave one by one."""

    @classmethod
    def of(cls, ids: list[str], scored: Scored, labels: LabelSet, decisions: Decisions, key: str = "id") -> Rows:
        """The outcome for all of ``ids``, whose samples are numbered as they stand there."""

        def spread(values: np.ndarray) -> np.ndarray:
            full = np.full((len(ids), values.shape[1]), np.nan, values.dtype)
            full[scored.indices] = values
            return full

        errors = [scored.errors.get(row) for row in range(len(ids))]
        return cls(
            ids,
            spread(decisions.probabilities(scored.logits)),
            # One line that any file can hold: it may name a file.
            [None if error is None else printable_line(error) for error in errors],
            labels,
            decisions.thresholds,
            None if scored.embeddings is None else spread(scored.embeddings),
            key,
        )

    @property
    def columns(self) -> list[str]:
        """Of the genres' probabilities, in the model's order."""
        return list(genre_columns(self.labels.genres, (*OWN, self.key)).values())

    def names(self) -> list[list[str]]:
        """The genres that are named, in the model's order."""
        named = self.probabilities >= self.thresholds  # not where it is NaN
        return [[self.labels.genres[column] for column in np.flatnonzero(row)] for row in named]

    def ranked(self) -> list[list[Line]]:
        """All genres of each row, most probable first; none of a row with an error."""
        return [
            [] if error is not None else ranked(row, self.labels, self.thresholds)
            for row, error in zip(self.probabilities, self.errors, strict=True)
        ]


def genre_columns(genres: Sequence[str], reserved: Collection[str] = OWN) -> dict[str, str]:
    """Genre → its column, all different: its own name, or ``genre:NAME`` where that is a ``reserved`` one.

    Where a genre has that very name, the prefix is repeated. Reserved names are compared without regard to case.

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
