"""What `posters app` answers about uploaded files: genres, heat maps, and what is left without the text.

No page in here (app/html.py, server.py): a file's bytes go in, numbers and pictures come out.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shards.errors import UserError
from shards.extras import absent, install
from shards.inputs.images import BadImage
from shards.text.pipeline import TextRemoval, clean_image
from toolkit.app.decoder import Decoder, Opened, Refused, jpeg_of
from toolkit.app.grad_cam import GradCam, NoHeatMap
from toolkit.device.defaults import best_device, rows_for
from toolkit.inference.forward import Forward, require_finite_outputs
from toolkit.inference.rows import Line, ranked
from toolkit.metrics.multilabel import FloatArray
from toolkit.model_folder.folder import ModelFolder

#: Files that are looked at of one upload.
MAX_FILES = 50
#: Text is looked for in copies of at most this many pixels: larger ones cost time, and no look sees more of them.
TEXT_PIXELS = 4_000_000
#: What text removal imports, from the extra ``clean`` (``app`` has it too).
TEXT_MODULES = ("cv2", "onnxruntime", "rapidocr")


@dataclass(frozen=True)
class Painted:
    """A poster and what is left of it without its text."""

    jpeg: bytes
    """A small copy, as all pictures here: they stay in memory for as long as their page."""
    polygons: list[np.ndarray]
    """(k, 2) x, y of what was painted over, as shares of width and height, from 0 to 1."""
    doubted: list[np.ndarray]
    """The same of what the detector found and was not believed: too large, or no room."""
    reasons: list[str]
    """Why, one for each of those."""
    share: float
    """Of the picture that was painted over."""
    probabilities: FloatArray
    """(G,) calibrated, without the text."""


@dataclass(kw_only=True)
class Poster(Opened):
    """An uploaded picture and the model's answer."""

    name: str
    path: Path
    """Of the uploaded file, for a second look at all of its pixels."""
    probabilities: FloatArray
    """(G,) calibrated."""
    painted: Painted | None = None
    """When its text has been looked for."""

    @property
    def image(self) -> Image.Image:
        """The small copy, RGB."""
        image = Image.open(io.BytesIO(self.jpeg), formats=("JPEG",))
        image.load()
        return image


@dataclass
class PredictionService:
    """A model folder that answers. Sessions may ask at the same time: each network serves one of them at a time."""

    folder: ModelFolder
    removal: TextRemoval | None = None
    """None: text is not looked for."""
    no_text: str = ""
    """Why not, for the page."""
    device: torch.device = field(default_factory=best_device)

    def __post_init__(self) -> None:
        self._forward = Forward(self.folder.model.to(self.device), self.folder.preprocessing)
        self._model, self._text = threading.Lock(), threading.Lock()
        self._decoder = Decoder(self.folder.preprocessing)
        self.no_heat = ""
        self._cam: GradCam | None = None
        try:
            self._cam = GradCam(self.folder.model, self.folder.preprocessing.image_size)
        except NoHeatMap as reason:
            self.no_heat = f"No heat map for this architecture ({reason})."

    def read(self, paths: Sequence[Path]) -> list[Poster | Refused]:
        """One answer per file, in order; what cannot be read, or is one too many, says why."""
        taken = paths[:MAX_FILES]
        found = self._decoder.open(taken)
        rows = iter(self.probabilities([item.square for item in found if isinstance(item, Opened)]))
        answers = [
            item
            if isinstance(item, Refused)
            else Poster(**vars(item), name=path.name, path=path, probabilities=next(rows))
            for path, item in zip(taken, found, strict=True)
        ]
        if len(paths) > MAX_FILES:
            more = f"and {len(paths) - MAX_FILES} more files"
            answers.append(Refused(more, f"not looked at: {MAX_FILES} at a time, please"))
        return answers

    def probabilities(self, squares: Sequence[np.ndarray]) -> FloatArray:
        """(n, G) calibrated probabilities of n (S, S, 3) uint8 pictures. Raises UserError if some are not finite."""
        if not squares:
            return np.empty((0, len(self.folder.labels)))
        with self._model:
            found = self._forward.logits(np.stack(squares), rows_for(0, self.device), self.device)
        require_finite_outputs((found,), lambda row: f"picture {row + 1}")
        return self.folder.decisions.probabilities(found)

    def lines(self, probabilities: FloatArray) -> list[Line]:
        """All genres, most probable first."""
        return ranked(probabilities, self.folder.labels, self.folder.thresholds)

    def heat(self, poster: Poster, genre: str) -> FloatArray | None:
        """(S, S) float64, 0 or more: where the model sees ``genre``; None if it cannot be told (``no_heat``)."""
        if self._cam is None:
            return None
        pixels = torch.from_numpy(poster.square[None].copy()).to(self.device)
        normalized = self.folder.preprocessing.normalize(pixels)
        with self._model:  # a calibrated logit rises with the logit: the map is the same
            return self._cam(normalized, self.folder.labels.index[genre])

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the map that heat is computed on; (0, 0) without heat maps."""
        return self._cam.grid if self._cam else (0, 0)

    def paint(self, poster: Poster) -> Painted:
        """Look for text and paint it over; remembered in ``poster.painted``. Raises UserError if the file is gone."""
        if self.removal is None:
            raise ValueError(self.no_text)
        image = None if poster.painted else self._decoder.pixels(poster.path, TEXT_PIXELS)
        with self._text:  # the detector serves one at a time
            if poster.painted is None and image is not None:
                try:
                    poster.painted = self._paint(poster, image, self.removal)
                except BadImage as bad:
                    raise UserError("image-unreadable", f"{poster.name} {bad.reason} ({bad.detail})") from None
            assert poster.painted is not None
            return poster.painted

    def _paint(self, poster: Poster, image: Image.Image, removal: TextRemoval) -> Painted:
        cleaned = clean_image(poster.name, image, removal)
        row, size = cleaned.row, np.array(image.size, np.float64)
        outlines, doubted = (
            [np.reshape(polygon, (-1, 2)) / size for polygon in row[key]] for key in ("polygons", "skipped_polygons")
        )
        rows = poster.probabilities
        if cleaned.painted:
            rows = self.probabilities([self.folder.preprocessing.square(cleaned.image)])[0]
        return Painted(jpeg_of(cleaned.image), outlines, doubted, row["skipped"], row["altered"], rows)


def first_genre(lines: Sequence[Line]) -> str:
    """The genre that is most probable relative to its threshold."""
    return max(lines, key=lambda line: line.ratio).genre


def text_removal(wanted: bool, fill: str, fill_model: Path | None) -> tuple[TextRemoval | None, str]:
    """How text is painted over, or None and a sentence for the page that says why it is not looked for.

    Raises UserError for a network that cannot be loaded.
    """
    if not wanted:
        return None, "Text is not looked for: this page was started with --no-text."
    if missing := absent(*TEXT_MODULES):
        return None, f"Text is not looked for: {', '.join(missing)} not installed ({install('app')})."
    removal = TextRemoval(fill=fill, fill_model=fill_model)
    removal.facts()  # loads detector and fill: what is wrong with them is said at the start
    return removal, ""
