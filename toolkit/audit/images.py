"""Pictures to compare for one poster: raw, re-encoded, cleaned (text painted over), and the controls.

`posters clean` writes JPEGs, so a cleaned poster was encoded once more than the original. The controls are encoded in
the same way. The re-encoded picture is the raw poster after this encoding, to measure the effect of the encoding.
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
from shards.inputs.rejections import id_problem
from shards.text.inpaint import Fill
from shards.text.masks import mask_of
from toolkit.audit.control import Control, Places, generator, visible
from toolkit.audit.options import AuditOptions
from toolkit.data.transforms.preprocessing import Box, Preprocessing

#: JPEG settings of `posters clean`.
QUALITY, SUBSAMPLING = 95, 0
#: Minimum area of the control, as a share of the text's area. A poster with a smaller control is not compared.
MIN_AREA = 0.5
#: Minimum ratio of the control's area to the text's area, both inside the model's input. The maximum is the inverse.
MIN_VIEW_RATIO = 0.5
#: Maximum mean difference in grey levels, outside the text, between the re-encoded and the cleaned poster.
MAX_GREY_DIFFERENCE = 5.0

NO_ROOM, OUT_OF_VIEW, UNEQUAL_VIEW = ("no room for a control", "text out of the model's view", "control not as visible")


@dataclass(frozen=True)
class Poster:
    """A row of the report of `posters clean`."""

    id: str
    width: int
    height: int
    altered: float
    fill: str
    polygons: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Pictures:
    """The pictures to compare, at full size, and the masks of the painted areas."""

    images: list[Image.Image]
    """RGB pictures: raw, re-encoded, cleaned, then the controls."""
    text: np.ndarray
    controls: list[Control]
    view: Box

    def squares(self, preprocessing: Preprocessing) -> np.ndarray:
        """Return (3 + K, S, S, 3) uint8: the inputs of the model before normalisation."""
        return np.stack([preprocessing.square(image) for image in self.images])

    def areas(self) -> Areas:
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
    """Areas of one poster. ``text`` is a share of the poster. The other areas are shares of the text's area."""

    text: float
    text_in_view: float
    control: float
    """Mean over the controls. ``control_in_view`` is the mean for the part of the poster that the model uses."""
    control_in_view: float
    crowded: int
    """Number of controls in which at least one moved region overlaps the text or another region."""

    def problem(self) -> str:
        """Return the reason why the poster cannot be compared, or an empty string."""
        if self.control < MIN_AREA:
            return NO_ROOM
        if not self.text_in_view:
            return OUT_OF_VIEW
        if not MIN_VIEW_RATIO <= self.control_in_view / self.text_in_view <= 1.0 / MIN_VIEW_RATIO:
            return UNEQUAL_VIEW
        return ""


@blamed_on_the_picture("cannot be compared")
def make_pictures(poster: Poster, options: AuditOptions, preprocessing: Preprocessing, fill: Fill) -> Pictures:
    """Read the raw and the cleaned poster, and paint the controls. Raises BadImage if the poster cannot be audited."""
    if problem := id_problem(poster.id):
        raise BadImage("bad id", problem)
    raw = _read(options.images, poster.id, "the posters")
    cleaned = _read(options.cleaned, poster.id, "the cleaned posters")
    if raw.size != (poster.width, poster.height) or cleaned.size != raw.size:
        raise BadImage(
            "another size",
            f"{poster.width}x{poster.height} in the report, but the poster is {raw.width}x{raw.height} "
            f"and the cleaned poster is {cleaned.width}x{cleaned.height}",
        )
    text = mask_of(poster.polygons, (raw.height, raw.width))
    if abs(float(text.mean()) - poster.altered) > 0.01 or not text.any():
        raise BadImage("outlines do not fit", f"area {text.mean():.1%}, but {poster.altered:.1%} in the report")
    pixels, again = np.array(raw), reencode(np.asarray(raw))
    kept = ~text
    if kept.any() and np.abs(np.asarray(cleaned, np.int16) - np.asarray(again))[kept].mean() > MAX_GREY_DIFFERENCE:
        raise BadImage("another picture", "the cleaned poster also differs outside the text")
    view = preprocessing.view(raw.width, raw.height)
    places = Places(text, view)
    drawn = [places.draw(generator(options.seed, poster.id, draw)) for draw in range(options.controls)]
    painted = [reencode(fill(pixels, control.mask)) for control in drawn]
    return Pictures([raw, again, cleaned, *painted], text, drawn, view)


def reencode(pixels: np.ndarray) -> Image.Image:
    """Encode and decode pixels as `posters clean` does."""
    stored = jpeg(Image.fromarray(pixels), QUALITY, subsampling=SUBSAMPLING)
    with Image.open(io.BytesIO(stored)) as image:
        return image.convert("RGB")


def _read(folder: Path, sample_id: str, what: str) -> Image.Image:
    try:
        return decode(read_image_file(folder, sample_id), ANY)
    except BadImage as bad:
        raise BadImage(bad.reason, f"among {what}: {bad.detail}" if bad.detail else f"among {what}") from None
