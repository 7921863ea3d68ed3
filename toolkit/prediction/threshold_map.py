"""The thresholds of a loaded model as a mapping that can be changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from numbers import Real

from shards.errors import UserError, did_you_mean, some
from toolkit.model_folder.folder import ModelFolder


class UnknownGenre(UserError, KeyError):
    """A genre that the model does not have."""

    __str__ = UserError.__str__  # KeyError would print quotes around the message


class Thresholds(Mapping[str, float]):
    """Genre → threshold. ``thresholds["Drama"] = 0.9`` changes the loaded model, but not its folder.

    A genre is named if its calibrated probability reaches its threshold.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder

    def __getitem__(self, genre: str) -> float:
        return float(self._folder.thresholds[self._column(genre)])

    def __setitem__(self, genre: str, threshold: float) -> None:
        """Set a threshold from 0 to 1. Raises UserError for another value or an unknown genre."""
        self.update({genre: threshold})

    def update(self, thresholds: Mapping[str, float]) -> None:
        """Set several thresholds. If one value or genre is not valid, no threshold changes, and UserError is raised."""
        values = self._folder.thresholds.copy()
        for genre, threshold in thresholds.items():
            column = self._column(genre)
            if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
                raise UserError(
                    "option-value", f"the threshold of {genre!r} must be a number from 0 to 1, not {threshold!r}"
                )
            values[column] = threshold
        self._folder.decisions = dataclasses.replace(self._folder.decisions, thresholds=values)

    def _column(self, genre: str) -> int:
        labels = self._folder.labels
        if genre not in labels.index:
            hint = did_you_mean(str(genre), labels.genres) or f"; it has {some(labels.genres, 10)}"
            raise UnknownGenre("option-value", f"the model has no genre {genre!r}{hint}")
        return labels.index[genre]

    def __iter__(self) -> Iterator[str]:
        return iter(self._folder.labels.genres)

    def __len__(self) -> int:
        return len(self._folder.labels)

    def __repr__(self) -> str:
        return repr(dict(self))
