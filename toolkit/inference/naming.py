"""Decide which genres a prediction names: the options and the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.dataset.labels import LabelSet
from shards.errors import UserError, did_you_mean, some
from shards.options import option
from shards.values import Checked, Count
from toolkit.metrics.helpers import BoolArray, FloatArray

#: Key of the threshold of all genres that have no key of their own. No genre has an empty name.
EVERY = ""


def parse_thresholds(texts: Sequence[str], flag: str = "--threshold", *, common: bool = True) -> dict[str, float]:
    """Convert texts such as ``Drama=0.9`` to a mapping from genre to threshold. The last value of a genre is used.

    A text is split at its last ``=``, since the name of a genre may contain this character. If ``common`` is true, a
    number alone is the threshold of all other genres (key EVERY). Raises UserError for other texts and for numbers
    outside [0, 1]. ``flag`` is the option in messages.
    """
    found = {}
    for text in texts:
        genre, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = None
        if value is None or (not genre if equals else not common):
            wanted = "a number from 0 to 1, or GENRE=NUMBER" if common else "GENRE=NUMBER"
            raise UserError("option-value", f"{flag} takes {wanted} such as Drama=0.9, not {text!r}")
        found[genre] = value
    require_thresholds(found, flag)
    return found


def require_thresholds(thresholds: Mapping[str, float], flag: str) -> None:
    """Raise UserError if a threshold is not from 0 to 1. ``thresholds`` has the key EVERY or names of genres."""
    for genre, value in thresholds.items():
        if not 0.0 <= value <= 1.0:  # also NaN
            raise UserError(
                "option-value", f"{flag}{f' of {genre!r}' if genre else ''} must be from 0 to 1, not {value}"
            )


def require_genres(genres: Sequence[str], labels: LabelSet, flag: str) -> None:
    """Raise UserError if the model has no genre of a given name. The message names a similar genre, or all genres."""
    for genre in genres:
        if genre not in labels.index:
            known = did_you_mean(str(genre), labels.genres) or f"; its genres are {some(labels.genres, 30)}"
            if flag.startswith("--") and "=" in str(genre):
                known = f"; give {flag} once for each genre"
            raise UserError("option-value", f"{flag}: the model has no genre {genre!r}{known}")


@dataclass(frozen=True, kw_only=True)
class NamingOptions(Checked):
    """Options that decide which genres a prediction names. A new option needs a field and a rule in ``named()``."""

    threshold: float | Mapping[str, float] | None = option(
        None, "-t", metavar="NUMBER", several="times", parse=parse_thresholds
    )
    """Name genres with at least this calibrated probability (default: the model's own threshold per genre). Write
    GENRE=NUMBER, such as Drama=0.9, for the threshold of one genre. You can give this option several times."""
    top_k: Count | None = option(None, metavar="K")
    """Name the K most probable genres of each image, whatever their thresholds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_thresholds(self.given, "--threshold")
        if self.top_k is not None and self.threshold is not None:
            raise UserError("option-conflict", "--top-k does not use thresholds; remove --threshold or --top-k")

    @property
    def given(self) -> Mapping[str, float]:
        """The thresholds that the user gives, by genre. The key EVERY has the threshold of all other genres."""
        if self.threshold is None:
            return {}
        return self.threshold if isinstance(self.threshold, Mapping) else {EVERY: self.threshold}

    def require_fit(self, labels: LabelSet) -> None:
        """Raise UserError if a genre of ``threshold`` is not in ``labels``, or if ``top_k`` is too large."""
        require_genres([genre for genre in self.given if genre != EVERY], labels, "--threshold")
        if self.top_k is not None and self.top_k > len(labels):
            raise UserError(
                "option-value", f"--top-k must be from 1 to {len(labels)}, the number of genres, not {self.top_k}"
            )

    def thresholds(self, own: FloatArray, labels: LabelSet) -> FloatArray:
        """Return (G,) thresholds: the given threshold of a genre, or else the model's ``own`` threshold.

        Raises UserError if the options do not fit ``labels``.
        """
        self.require_fit(labels)
        values = np.full(len(own), self.given[EVERY]) if EVERY in self.given else np.array(own)
        for genre, value in self.given.items():
            if genre != EVERY:
                values[labels.index[genre]] = value
        return values

    def named(self, probabilities: FloatArray, thresholds: FloatArray) -> BoolArray:
        """Return (..., G) bool: which genres are named. Takes (..., G) calibrated probabilities and (G,) thresholds.

        With ``top_k``, the first of equally probable genres in the model's order are named.
        """
        if self.top_k is None:
            return probabilities >= thresholds  # False for NaN
        found = np.zeros(np.shape(probabilities), dtype=bool)
        order = np.argsort(-np.asarray(probabilities), axis=-1, kind="stable")
        np.put_along_axis(found, order[..., : self.top_k], True, axis=-1)
        return found & ~np.isnan(probabilities)

    @property
    def rule(self) -> str:
        """Which genres are named, in words. Empty if the thresholds decide."""
        if self.top_k is None:
            return ""
        return "the most probable genre" if self.top_k == 1 else f"the {self.top_k} most probable genres"

    def facts(self) -> dict[str, Any]:
        """Return the changed options, which prediction files record. ``threshold`` is never included."""
        pairs = {name: (value, getattr(self, name)) for name, value in asdict(NamingOptions()).items()}
        return {name: now for name, (plain, now) in pairs.items() if name != "threshold" and now != plain}


#: The default options. The app and the demo use them.
PLAIN = NamingOptions()
