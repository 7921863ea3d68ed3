"""One poster → the pictures that are compared: itself, re-encoded, cleaned, and its controls.

`posters clean` writes JPEGs: a cleaned poster has been encoded once more than the original. So the controls are
encoded in the same way, and one picture differs from the poster by that alone: the noise floor.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.inputs.image_files import read_image_file
from shards.inputs.images import ANY, BadImage, blamed_on_the_picture, decode, jpeg
from shards.inputs.metadata import id_problem
from shards.text.inpaint import Fill
from shards.text.masks import mask_of
from toolkit.audit.control import Control, Places, generator, visible
from toolkit.audit.options import AuditOptions
from toolkit.data.transforms.preprocessing import Box, Preprocessing, center_crop, view_box

#: How `posters clean` encodes.
QUALITY, SUBSAMPLING = 95, 0
#: A poster counts in the comparison if its control has at least this share of the text's area ...
LEAST_AREA = 0.5
#: ... and, of the area that the model sees, between this share and its inverse.
LEAST_VIEW = 0.5
#: Mean difference in grey levels beside the text from which a cleaned poster was made of another picture.
MAX_GREY_DIFFERENCE = 5.0

NO_ROOM, OUT_OF_VIEW, UNEQUAL_VIEW = ("no room for a control", "text out of the model's view", "control not as visible")


@dataclass(frozen=True)
class Poster:
    """A row of the cleaning's report."""

    id: str
    width: int
    height: int
    altered: float
    fill: str
    polygons: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Pictures:
    """What is compared, at full size, and where it was painted."""

    images: list[Image.Image]
    """Raw, re-encoded, cleaned, then the controls; RGB."""
    text: np.ndarray
    controls: list[Control]
    view: Box

    def squares(self, preprocessing: Preprocessing) -> np.ndarray:
        """(3 + K, S, S, 3) uint8: what the model is shown."""
        size, crop = preprocessing.image_size, preprocessing.crop_pct
        return np.stack([center_crop(image, size, crop) for image in self.images])

    def areas(self) -> Areas:
        """How comparable text and controls are."""
        area, seen = int(self.text.sum()), visible(self.text, self.view)
        controls = [(int(c.mask.sum()), visible(c.mask, self.view)) for c in self.controls]
        mean_area, mean_seen = np.mean(controls, axis=0)
        return Areas(
            text=area / self.text.size,
            text_in_view=seen / area,
            control=float(mean_area) / area,
            control_in_view=float(mean_seen) / area,
            crowded=sum(not control.clear for control in self.controls),
        )


@dataclass(frozen=True)
class Areas:
    """Areas of one poster. ``text`` is a share of the poster, the others are shares of the text's area."""

    text: float
    text_in_view: float
    control: float
    """Mean over the draws, as ``control_in_view``."""
    control_in_view: float
    crowded: int
    """Draws in which a region found no place of its own off the text."""

    def problem(self) -> str:
        """Why the poster cannot be compared; empty if it can."""
        if self.control < LEAST_AREA:
            return NO_ROOM
        if not self.text_in_view:
            return OUT_OF_VIEW
        if not LEAST_VIEW <= self.control_in_view / self.text_in_view <= 1.0 / LEAST_VIEW:
            return UNEQUAL_VIEW
        return ""


@blamed_on_the_picture("cannot be compared")
def make_pictures(poster: Poster, options: AuditOptions, preprocessing: Preprocessing, fill: Fill) -> Pictures:
    """Read and paint, the same each time. Raises BadImage for whatever keeps the poster out of the audit."""
    if problem := id_problem(poster.id):
        raise BadImage("bad id", problem)
    raw = _read(options.images, poster.id, "the posters")
    cleaned = _read(options.cleaned, poster.id, "the cleaned posters")
    if raw.size != (poster.width, poster.height) or cleaned.size != raw.size:
        raise BadImage(
            "another size",
            f"the report says {poster.width}x{poster.height}, the poster is {raw.width}x{raw.height}, "
            f"cleaned {cleaned.width}x{cleaned.height}",
        )
    text = mask_of(poster.polygons, (raw.height, raw.width))
    if abs(float(text.mean()) - poster.altered) > 0.01 or not text.any():
        raise BadImage("outlines do not fit", f"they cover {text.mean():.1%}, the report says {poster.altered:.1%}")
    pixels, again = np.array(raw), reencode(np.asarray(raw))
    kept = ~text
    if kept.any() and np.abs(np.asarray(cleaned, np.int16) - np.asarray(again))[kept].mean() > MAX_GREY_DIFFERENCE:
        raise BadImage("another picture", "the cleaned poster differs from this one beside the text too")
    view = view_box(raw.width, raw.height, preprocessing.image_size, preprocessing.crop_pct)
    places = Places(text, view)
    drawn = [places.draw(generator(options.seed, poster.id, draw)) for draw in range(options.controls)]
    painted = [reencode(fill(pixels, control.mask)) for control in drawn]
    return Pictures([raw, again, cleaned, *painted], text, drawn, view)


def reencode(pixels: np.ndarray) -> Image.Image:
    """What remains of pixels that are stored as `posters clean` stores them."""
    stored = jpeg(Image.fromarray(pixels), QUALITY, subsampling=SUBSAMPLING)
    with Image.open(io.BytesIO(stored)) as image:
        return image.convert("RGB")


def _read(folder: Path, sample_id: str, what: str) -> Image.Image:
    try:
        return decode(read_image_file(folder, sample_id), ANY)
    except BadImage as bad:
        raise BadImage(bad.reason, f"among {what}: {bad.detail}" if bad.detail else f"among {what}") from None
