"""The state of one visitor of `posters app`: uploads, the displayed poster, thresholds and corrections.

uploads → `add` → posters → thresholds of the visitor → named genres     (no new inference)
ticked genres → `correct` → corrections by id → corrections.csv          (downloads.py)

The state is in memory. It is deleted an hour after the last step of a visitor who has closed the page, and when newer
visitors need its place.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UserError
from shards.tables.corrections import SEPARATOR
from toolkit.app.decoder import Refused
from toolkit.app.service import Poster
from toolkit.metrics.helpers import FloatArray
from toolkit.model_folder.folder import ModelFolder

#: Maximum number of posters in the table of uploads. Each needs up to some hundred kilobytes of memory.
MAX_POSTERS = 100


class Board:
    """The state of one visitor."""

    def __init__(self) -> None:
        self.posters: list[Poster] = []
        """The uploads in the table, oldest first."""
        self.refused: list[Refused] = []
        """All files that could not be used."""
        self.chosen: Poster | None = None
        """The displayed poster: an upload, or a poster of the shard set."""
        self.changed: dict[int, float] = {}
        """Column of a genre → threshold of the visitor. Other genres keep the threshold of the model."""
        self.corrections: dict[str, tuple[str, ...]] = {}
        """Id → all genres that the poster really has."""
        self.page = 0
        """Page of the gallery, from 0."""
        self._folder: Path | None = None
        self.close: Callable[[], object] = lambda: None
        """Deletes the downloads. Python also calls it when it deletes the state."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Board:
        return Board()  # gradio copies the initial state for every visitor

    def add(self, found: Sequence[Poster | Refused]) -> list[Refused]:
        """Add uploads to the table, and display the first new one. Return the files that were refused."""
        refused = [item for item in found if isinstance(item, Refused)]
        posters = [item for item in found if isinstance(item, Poster)]
        room = MAX_POSTERS - len(self.posters)
        what = f"not added: the table holds {MAX_POSTERS} files; press “Empty the table” first"
        refused += [Refused(poster.name, what) for poster in posters[room:]]
        self.posters += posters[:room]
        self.refused += refused
        self.chosen = posters[0] if posters[:room] else self.chosen
        return refused

    def empty(self) -> None:
        """Remove all uploads from the table. Thresholds and corrections stay."""
        self.posters, self.refused, self.chosen = [], [], None

    def thresholds(self, folder: ModelFolder) -> FloatArray:
        """Return the (G,) thresholds: those of the visitor, and those of the model for all other genres."""
        values = folder.thresholds.copy()
        values[list(self.changed)] = list(self.changed.values())
        return values

    def set_threshold(self, column: Any, value: Any, folder: ModelFolder) -> None:
        """Set the threshold of a genre. Column -1 sets all genres, and column -2 restores the model's thresholds.

        The values come from a browser. Raises UserError if they are not valid.
        """
        genres = len(folder.labels)
        if type(column) is not int or not -2 <= column < genres or not isinstance(value, (int, float)):
            raise UserError("option-value", "a threshold needs the number of a label, and a number from 0 to 1")
        if not 0.0 <= value <= 1.0:  # also NaN
            raise UserError("option-value", f"a threshold must be from 0 to 1, not {value}")
        if column == -2:
            self.changed = {}
        else:
            self.changed |= dict.fromkeys(range(genres) if column == -1 else [column], float(value))

    def named(self, poster: Poster, folder: ModelFolder) -> list[str]:
        """Return the genres that reach the thresholds, most probable first."""
        reached = poster.probabilities >= self.thresholds(folder)
        order = np.argsort(-poster.probabilities, kind="stable")
        return [folder.labels.genres[column] for column in order if reached[column]]

    def correct(self, genres: Sequence[str], folder: ModelFolder) -> str:
        """Keep the genres that the displayed poster really has. Return its id. Raises UserError if it is not clear."""
        poster = self.chosen
        if poster is None:
            raise UserError("option-missing", "choose a picture first")
        known = [genre for genre in folder.labels.genres if genre in set(genres)]
        if not known:
            raise UserError("option-missing", "tick at least one label; a shard set has no pictures without labels")
        if any(SEPARATOR in genre for genre in known):
            raise UserError("labels-invalid", f"a table of corrections cannot hold a label that contains {SEPARATOR!r}")
        if any(other.id == poster.id and other.square is not poster.square for other in self.posters):
            what = f"another upload is called {poster.id!r}, so it would not be clear which one is corrected"
            raise UserError("option-value", f"{what}; empty the table, and upload one of them")
        self.corrections[poster.id] = tuple(known)
        return poster.id

    @property
    def folder(self) -> Path:
        """A folder for the downloads of this visitor, in the folder of uploads."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="downloads-", dir=upload_folder()))
            self.close = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


def upload_folder() -> Path:
    """Return the folder of uploads, which is deleted at the end (server.py)."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
