"""Predictions of `posters app` for uploaded files: genres, heat maps, and predictions without the text.

The results are numbers and pictures. html.py and page.py make the page from these results.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shards.errors import UserError
from shards.extras import absent, install
from shards.inputs.images import BadImage, jpeg
from shards.storage.endings import is_image_name
from shards.text.pipeline import TextRemoval, clean_image
from toolkit.app.decoder import Decoder, Opened, Refused, jpeg_of
from toolkit.app.grad_cam import GradCam, NoHeatMap
from toolkit.app.wording import wording_of
from toolkit.device.defaults import best_device, rows_for
from toolkit.inference.forward import Forward, require_finite_outputs
from toolkit.inference.rows import Line, ranked
from toolkit.metrics.helpers import FloatArray
from toolkit.model_folder.folder import ModelFolder

#: Maximum number of files of one upload.
MAX_FILES = 50
#: Maximum number of pixels for text detection. Larger pictures are reduced, since detection would take longer.
TEXT_PIXELS = 4_000_000
#: Maximum width and height of the thumbnails in pixels.
THUMBNAIL = (96, 144)
#: Modules that text removal imports. The extra ``app`` installs these modules.
TEXT_MODULES = ("cv2", "onnxruntime", "rapidocr")


@dataclass(frozen=True)
class Painted:
    """A poster with its text painted over, and its prediction."""

    jpeg: bytes
    """A small copy of the painted poster. It stays in memory during the session."""
    polygons: list[np.ndarray]
    """Outlines of painted regions, each with (k, 2) points (x, y). Both coordinates go from 0 to 1."""
    rejected: list[np.ndarray]
    """Outlines of detected regions that were not painted, in the form of ``polygons``."""
    reasons: list[str]
    """One reason per region in ``rejected``."""
    share: float
    """Share of the picture that was painted over, from 0 to 1."""
    probabilities: FloatArray
    """(G,) calibrated probabilities of the poster without text."""


@dataclass(kw_only=True)
class Poster(Opened):
    """An uploaded picture and its prediction."""

    name: str
    """Name for the page: the name of the uploaded file, or the id in the shard set."""
    path: Path
    """Path of the uploaded file. Text detection reads the file again at full size."""
    probabilities: FloatArray
    """(G,) calibrated probabilities."""
    true: tuple[str, ...] | None = None
    """The labels in the shard set. None for an upload."""
    painted: Painted | None = None
    """None until text detection has run."""

    @cached_property
    def thumbnail(self) -> bytes:
        """A JPEG for the table of uploads."""
        image = self.image
        image.thumbnail(THUMBNAIL)
        return jpeg(image, 80)

    @property
    def id(self) -> str:
        """The id in a table of labels: the id in the shard set, or the file name without the ending of an image."""
        return self.name if self.true is not None or not is_image_name(self.name) else os.path.splitext(self.name)[0]

    @property
    def image(self) -> Image.Image:
        """Return the small copy of the poster as an RGB picture."""
        image = Image.open(io.BytesIO(self.jpeg), formats=("JPEG",))
        image.load()
        return image


@dataclass
class PredictionService:
    """Predictions of one model folder. Thread-safe: each network runs one request at a time."""

    folder: ModelFolder
    removal: TextRemoval | None = None
    """None if text detection is off."""
    no_text: str = ""
    """Reason why text detection is off, as shown on the page. Empty if text detection is on."""
    device: torch.device = field(default_factory=best_device)

    def __post_init__(self) -> None:
        self._forward = Forward(self.folder.model.to(self.device), self.folder.preprocessing)
        self._model, self._text = threading.Lock(), threading.Lock()
        self._decoder = Decoder(self.folder.preprocessing)
        self.words = wording_of(self.folder)
        self.no_heat = ""
        self._cam: GradCam | None = None
        try:
            self._cam = GradCam(self.folder.model, self.folder.preprocessing.image_size)
        except NoHeatMap as reason:
            self.no_heat = f"This architecture has no heat map ({reason})."

    def read(self, paths: Sequence[Path], names: Sequence[str] = ()) -> list[Poster | Refused]:
        """Return one result per file, in order. One `Refused` stands for all files after the first MAX_FILES.

        ``names``: one name per file, if the names for the page are not the names of the files.
        """
        taken, names = paths[:MAX_FILES], names or [path.name for path in paths]
        found = self._decoder.open(taken)
        rows = iter(self.probabilities([item.square for item in found if isinstance(item, Opened)]))
        results = [
            Refused(name, item.message)
            if isinstance(item, Refused)
            else Poster(**vars(item), name=name, path=path, probabilities=next(rows))
            for path, name, item in zip(taken, names, found, strict=False)
        ]
        if len(paths) > MAX_FILES:
            more = f"and {'1 more file' if len(paths) == MAX_FILES + 1 else f'{len(paths) - MAX_FILES} more files'}"
            results.append(Refused(more, f"not decoded: the limit is {MAX_FILES} files at a time"))
        return results

    def probabilities(self, squares: Sequence[np.ndarray]) -> FloatArray:
        """Return (n, G) calibrated probabilities of n (S, S, 3) uint8 pictures. Raises UserError for NaN and inf."""
        if not squares:
            return np.empty((0, len(self.folder.labels)))
        with self._model:
            found = self._forward.logits(np.stack(squares), rows_for(0, self.device), self.device)
        require_finite_outputs((found,), lambda row: f"picture {row + 1}")
        return self.folder.decisions.probabilities(found)

    def lines(self, probabilities: FloatArray, thresholds: FloatArray | None = None) -> list[Line]:
        """Return all labels of a picture, most probable first. The default thresholds are those of the model."""
        own = self.folder.thresholds
        return ranked(probabilities, self.folder.labels, own if thresholds is None else thresholds)

    def heat(self, poster: Poster, genre: str) -> FloatArray | None:
        """Return the (S, S) float64 heat map of a genre, at least 0 everywhere. None if the model has no heat maps."""
        if self._cam is None:
            return None
        pixels = torch.from_numpy(poster.square[None].copy()).to(self.device)
        normalized = self.folder.preprocessing.normalize(pixels)
        with self._model:  # calibration is monotonic, so it only scales the map
            return self._cam(normalized, self.folder.labels.index[genre])

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of a heat map before resizing, or (0, 0) if there are no heat maps."""
        return self._cam.grid if self._cam else (0, 0)

    def paint(self, poster: Poster) -> Painted:
        """Detect text and paint over it. Cache the result in ``poster.painted``. Raises UserError for a bad file."""
        if self.removal is None:
            raise ValueError(self.no_text)
        image = None if poster.painted else self._decoder.pixels(poster.path, TEXT_PIXELS)
        with self._text:  # the detector is not thread-safe
            if poster.painted is None and image is not None:
                try:
                    poster.painted = self._paint(poster, image, self.removal)
                except BadImage as bad:
                    what = f"{poster.name} cannot be cleaned: {bad.reason} ({bad.detail})"
                    raise UserError("image-unreadable", what) from None
            assert poster.painted is not None
            return poster.painted

    def _paint(self, poster: Poster, image: Image.Image, removal: TextRemoval) -> Painted:
        cleaned = clean_image(poster.name, image, removal)
        row, size = cleaned.row, np.array(image.size, np.float64)
        outlines, rejected = (
            [np.reshape(polygon, (-1, 2)) / size for polygon in row[key]] for key in ("polygons", "skipped_polygons")
        )
        rows = poster.probabilities
        if cleaned.painted:
            rows = self.probabilities([self.folder.preprocessing.square(cleaned.image)])[0]
        return Painted(jpeg_of(cleaned.image), outlines, rejected, row["skipped"], row["altered"], rows)


def first_genre(lines: Sequence[Line]) -> str:
    """Return the genre with the highest ratio of probability to threshold."""
    return max(lines, key=lambda line: line.ratio).genre


def text_removal(wanted: bool, fill: str, fill_model: Path | None) -> tuple[TextRemoval | None, str]:
    """Return (text removal, ""), or (None, reason) if text detection is off.

    Raises UserError if a network cannot be loaded.
    """
    if not wanted:
        return None, "Text detection is off: this page was started with --no-text."
    if missing := absent(*TEXT_MODULES):
        return None, f"Text detection is off: {', '.join(missing)} not installed; run {install('app')}."
    removal = TextRemoval(fill=fill, fill_model=fill_model)
    removal.facts()  # load detector and fill now, to report errors at the start
    return removal, ""
