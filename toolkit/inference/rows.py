"""Rows of predictions and the genres that they name: what files, the Python interface and the app are made from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.dataset.labels import LabelSet
from shards.errors import printable_line
from shards.options import option
from shards.values import Checked, FromZeroToOne
from toolkit.metrics.multilabel import BoolArray, FloatArray

if TYPE_CHECKING:
    from toolkit.inference.scoring import Scored
    from toolkit.model_folder.folder import ModelFolder

#: Our own columns. Databases do not tell Error from error.
OWN = ("id", "genres", "error", "embedding")


@dataclass(frozen=True, kw_only=True)
class NamingOptions(Checked):
    """Which genres are named. An option is a field here, with its part of ``named``."""

    threshold: FromZeroToOne | None = option(None, "-t")
    """Calibrated probability from which a genre is named (default: the model's own per genre)."""

    def thresholds(self, own: FloatArray) -> FloatArray:
        """(G,) thresholds that count, of a model with its ``own``."""
        return own if self.threshold is None else np.full(len(own), self.threshold)

    def named(self, probabilities: FloatArray, thresholds: FloatArray) -> BoolArray:
        """(..., G): which genres are named, from calibrated probabilities (..., G) and the (G,) thresholds."""
        return probabilities >= thresholds  # not where it is NaN

    def facts(self) -> dict[str, Any]:
        """The options beside the thresholds that are not at their default: files of predictions state them."""
        mine = {name: (value, getattr(self, name)) for name, value in asdict(NamingOptions()).items()}
        return {name: now for name, (plain, now) in mine.items() if name != "threshold" and now != plain}


#: What the app and the demo have.
PLAIN = NamingOptions()


@dataclass(frozen=True)
class Line:
    """One genre of one picture."""

    genre: str
    probability: float
    """Calibrated, 0 to 1."""
    threshold: float
    """Calibrated probability from which the genre is named."""
    named: bool

    @property
    def ratio(self) -> float:
        """Probability over threshold; a threshold of 0 counts as a millionth."""
        return self.probability / max(self.threshold, 1e-6)


def ranked(
    probabilities: FloatArray, labels: LabelSet, thresholds: FloatArray, naming: NamingOptions = PLAIN
) -> list[Line]:
    """All genres of one picture, most probable first; probabilities and thresholds (G,)."""
    order, named = np.argsort(-probabilities, kind="stable"), naming.named(probabilities, thresholds)
    return [Line(labels.genres[k], float(probabilities[k]), float(thresholds[k]), bool(named[k])) for k in order]


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
    naming: NamingOptions = PLAIN
    key: str = "id"
    """Column of ``ids``: ``image`` of files and pictures that a user gave one by one."""

    @classmethod
    def of(cls, ids: list[str], scored: Scored, folder: ModelFolder, naming: NamingOptions, key: str = "id") -> Rows:
        """The outcome for all of ``ids``, whose samples are numbered as they stand there."""

        def spread(values: np.ndarray) -> np.ndarray:
            full = np.full((len(ids), values.shape[1]), np.nan, values.dtype)
            full[scored.indices] = values
            return full

        errors = [scored.errors.get(row) for row in range(len(ids))]
        return cls(
            ids,
            spread(folder.decisions.probabilities(scored.logits)),
            # One line that any file can hold: it may name a file.
            [None if error is None else printable_line(error) for error in errors],
            folder.labels,
            naming.thresholds(folder.thresholds),
            None if scored.embeddings is None else spread(scored.embeddings),
            naming,
            key,
        )

    @property
    def columns(self) -> list[str]:
        """Of the genres' probabilities, in the model's order."""
        return list(genre_columns(self.labels.genres, (*OWN, self.key)).values())

    def names(self) -> list[list[str]]:
        """The genres that are named, in the model's order."""
        named = self.naming.named(self.probabilities, self.thresholds)
        return [[self.labels.genres[column] for column in np.flatnonzero(row)] for row in named]

    def ranked(self) -> list[list[Line]]:
        """All genres of each row, most probable first; none of a row with an error."""
        return [
            [] if error is not None else ranked(row, self.labels, self.thresholds, self.naming)
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
