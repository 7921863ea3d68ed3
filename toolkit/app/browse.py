"""The gallery of `posters app --shards SHARDS`: the posters of a split, filtered by genres, errors and probability.

shard set + model → `Split.of` (logits, read from predictions-SPLIT.npz or computed) → `Split.rows` (filter) → `page`

A poster is read from its tar when a page shows it. Filters are operations on arrays, so they take milliseconds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image

from shards.dataset.labels import require_same
from shards.dataset.store import open_store
from shards.errors import UserError
from shards.inputs.images import ANY, BadImage, decode, jpeg
from shards.storage.files import atomic_write
from toolkit.app.board import upload_folder
from toolkit.app.decoder import Refused
from toolkit.app.options import AppOptions
from toolkit.app.service import Poster, PredictionService
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.distributed.collectives import make_accelerator
from toolkit.inference.split_outputs import infer_split, read_outputs
from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray
from toolkit.model_folder.folder import ModelFolder

log = logging.getLogger(__name__)

#: Number of posters on a page, and the maximum width and height of a thumbnail in pixels.
PER_PAGE, THUMBNAIL = 60, (200, 300)
#: Number of thumbnails that stay in memory, about 15 kB each.
KEPT = 2000
#: Choices of the filter by error, and of the order.
ERRORS = ("all", "with any error", "with a wrong label", "with a missed label", "without errors")
ORDERS = ("as stored", "most probable first", "least probable first")


@dataclass(frozen=True)
class Wanted:
    """The filter of a visitor. Empty texts and the default values exclude nothing."""

    true: str = ""
    """Label that the posters must have."""
    named: str = ""
    """Label that the model must name."""
    errors: str = ERRORS[0]
    """A value of ERRORS. If ``true`` or ``named`` is given, only errors in these labels count."""
    low: float = 0.0
    """Smallest probability: of ``named``, else of ``true``, else of the most probable label."""
    high: float = 1.0
    """Largest probability."""
    order: str = ORDERS[0]
    """A value of ORDERS. The probability is that of ``low``."""


@dataclass(frozen=True, eq=False)
class Split:
    """The N posters of a split with G labels, and the probabilities of the model."""

    name: str
    ids: list[str]
    targets: BoolArray
    """(N, G) true labels."""
    probabilities: FloatArray
    """(N, G) calibrated probabilities."""
    reader: ShardReader
    genres: tuple[str, ...]

    @classmethod
    def of(cls, options: AppOptions, folder: ModelFolder) -> Split:
        """Open the split and get the logits of the model. Raises UserError if the set does not fit the model."""
        assert options.shards is not None
        split = options.split or "test"
        store = open_store(options.shards, options.cache)
        manifest = store.manifest()
        require_same("the model", folder.labels, "the shard set", manifest.labels)
        reader = ShardReader.of_split(store, split, manifest)
        path = folder.path / f"predictions-{split}.npz"
        logits = read_outputs(path, folder, manifest.fingerprint, reader, split)
        if logits is None:
            command = f"posters evaluate --model {folder.path} --shards {store} --split {split}"
            log.info("predicting %d posters; after `%s` this page starts without this step", len(reader), command)
            accelerator = make_accelerator(None)
            logits = infer_split(accelerator, folder, store, manifest, split).logits
        probabilities = folder.decisions.probabilities(logits)
        targets = reader.targets.astype(np.bool_)
        return cls(split, reader.sample_ids(), targets, probabilities, reader, folder.labels.genres)

    def rows(self, wanted: Wanted, thresholds: FloatArray) -> IntArray:
        """Return the numbers of the posters that the filter keeps, in the order of the page.

        thresholds: (G,) thresholds of the visitor. Raises UserError if a value of the filter is not valid.
        """
        self._check(wanted)
        named = self.probabilities >= thresholds
        columns = [self.genres.index(genre) for genre in dict.fromkeys((wanted.true, wanted.named)) if genre]
        kept = np.ones(len(self.ids), np.bool_)
        if wanted.true:
            kept &= self.targets[:, self.genres.index(wanted.true)]
        if wanted.named:
            kept &= named[:, self.genres.index(wanted.named)]
        here = columns or slice(None)
        wrong = (named & ~self.targets)[:, here].any(axis=1)
        missed = (self.targets & ~named)[:, here].any(axis=1)
        kept &= dict(zip(ERRORS, (True, wrong | missed, wrong, missed, ~(wrong | missed)), strict=True))[wanted.errors]
        values = self._values(wanted)
        kept &= (wanted.low <= values) & (values <= wanted.high)
        found = np.flatnonzero(kept)
        if wanted.order != ORDERS[0]:
            sign = -1.0 if wanted.order == ORDERS[1] else 1.0
            found = found[np.argsort(sign * values[found], kind="stable")]
        return found

    def _check(self, wanted: Wanted) -> None:
        """Raise UserError for a value that the page does not offer. The values come from a browser."""
        genres = ("", *self.genres)
        known = {"true": genres, "named": genres, "errors": ERRORS, "order": ORDERS}
        for name, values in known.items():
            if getattr(wanted, name) not in values:
                raise UserError(
                    "option-value", f"the filter “{name}” has no choice {str(getattr(wanted, name))[:40]!r}"
                )
        for limit in (wanted.low, wanted.high):
            if type(limit) not in (int, float) or not 0.0 <= limit <= 1.0:  # also NaN
                raise UserError("option-value", f"a probability must be from 0 to 1, not {str(limit)[:40]}")

    def _values(self, wanted: Wanted) -> FloatArray:
        """Return the (N,) probabilities for the limits and the order."""
        genre = wanted.named or wanted.true
        if genre:
            return self.probabilities[:, self.genres.index(genre)]
        highest: FloatArray = self.probabilities.max(axis=1)
        return highest

    def genres_of(self, row: int) -> tuple[str, ...]:
        """Return the true labels of a poster."""
        return tuple(self.genres[column] for column in np.flatnonzero(self.targets[row]))

    def thumbnail(self, row: int) -> bytes | None:
        """Return a small JPEG of a poster, or None if its image cannot be decoded."""
        return _thumbnail(self.reader, row)

    def open(self, row: int, service: PredictionService) -> Poster:
        """Return a poster like an upload, with its true labels. The image is decoded in another process.

        Raises UserError if the image cannot be decoded.
        """
        path = upload_folder() / f"set-{row}"
        with atomic_write(path) as stream:  # another visitor may read the file now
            stream.write(self.reader.image_bytes(row))
        (found,) = service.read([path], [self.ids[row]])
        if isinstance(found, Refused):
            raise UserError("image-unreadable", f"{found.name}: {found.message}")
        return replace(found, true=self.genres_of(row))

    def require_row(self, row: object) -> int:
        """Return the number of a poster that a browser sent. Raises UserError if the number is not valid."""
        if type(row) is not int or not 0 <= row < len(self.ids):
            raise UserError("option-value", f"the split has no poster with the number {str(row)[:20]}")
        return row


@lru_cache(KEPT)
def _thumbnail(reader: ShardReader, row: int) -> bytes | None:
    try:
        small = decode(reader.image_bytes(row), ANY, (2 * THUMBNAIL[0], 2 * THUMBNAIL[1]))
    except (OSError, BadImage):
        return None
    small.thumbnail(THUMBNAIL, Image.Resampling.BILINEAR)
    return jpeg(small, 75)
