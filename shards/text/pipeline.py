"""One poster: find text, paint it over, look again, until no look finds anything or the passes are spent.

A step of other work: pixels in, pixels without text out. Cleaning and packing share it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.errors import UserError
from shards.inputs.images import blamed_on_the_picture
from shards.options import option
from shards.storage.files import fingerprint, sha256_file
from shards.text.detector import DetectorOptions, Region, TextDetector
from shards.text.inpaint import FILLS, Fill
from shards.text.masks import MaskOptions, Skipped, accepted, outlines, paint_mask, text_mask
from shards.text.opencv import cv2
from shards.text.registry import make_detector, make_fill, own_options
from shards.values import Checked, Count

TEXT_LIBRARIES = ("opencv-python-headless", "onnxruntime", "rapidocr")  # whose versions decide the pixels
REPORT = "clean_report.parquet"  # lies with cleaned posters, and with shards that were cleaned on the way

NOT_CLEANED = "cannot be cleaned"  # why a poster is rejected that detector or fill cannot work on
#: So many posters that cannot be cleaned, one after the other and none before, and the cause is not theirs.
MAX_FAILURES_IN_A_ROW = 20


@dataclass(frozen=True)
class TextRemoval(Checked):
    """How text is found and painted over."""

    detector: DetectorOptions = field(default_factory=DetectorOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    fill: str = option("surround", choices=FILLS)
    """How text is painted over."""
    fill_model: Path | None = None
    """ONNX in-painting network instead: image and mask in, image out."""
    passes: Count = 4
    """How often a poster is painted over at most."""

    def facts(self) -> dict[str, Any]:
        """Everything that decides the pixels, for reports and fingerprints: files by their content, not their place."""
        return {
            "detector": _tools(self)[0].name,
            "looks": [list(look) for look in self.detector.scales],
            "pixel_threshold": self.detector.pixel_threshold,
            "region_threshold": self.detector.region_threshold,
            "anchor": self.detector.reference_strip,
            **asdict(self.mask),
            "fill": self.fill_name,
            "fill_model_sha256": sha256_file(self.fill_model) if self.fill_model else None,
            "passes": self.passes,
            **own_options(self.detector),
        }

    @property
    def fill_name(self) -> str:
        return "model" if self.fill_model else self.fill


@dataclass(frozen=True)
class Cleaned:
    """A poster without its text, and its row of the report."""

    image: Image.Image
    row: dict[str, Any]  # columns of report.SCHEMA
    painted: bool  # False: no pixel changed


def clean_image(sample_id: str, image: Image.Image, options: TextRemoval) -> Cleaned:
    """Remove the text of an upright RGB image. Raises BadImage for one that detector or fill cannot work on."""
    detector, fill = _tools(options)
    started = time.perf_counter()
    with blamed_on_the_picture(NOT_CLEANED):
        removal = remove_text(np.asarray(image), detector, fill, options.mask, options.passes)
        seconds = time.perf_counter() - started
        row = {
            "id": sample_id,
            "width": image.width,
            "height": image.height,
            "fill": options.fill_name,
            "passes": removal.passes,
            "boxes_before": removal.before,
            "boxes_after": removal.after,
            "text_before": removal.text_before,
            "text_after": removal.text_after,
            "altered": float(removal.mask.mean()),
            "seconds": seconds,
            "polygons": outlines(removal.mask),
            "skipped": [skip.reason for skip in removal.skipped],
            "skipped_polygons": [np.rint(s.region.outline).astype(int).reshape(-1).tolist() for s in removal.skipped],
        }
    return Cleaned(Image.fromarray(removal.image), row, removal.passes > 0)


@dataclass
class Removal:
    """What was done to a poster."""

    image: np.ndarray  # (h, w, 3) uint8 RGB; pixels outside of ``mask`` are the original's
    mask: np.ndarray  # (h, w) bool: everything that was painted over; it has no holes
    before: int = 0  # pieces of text that the looks before the first painting found
    after: int = 0  # pieces that the last look of each kind still found
    text_before: float = 0.0  # share of the picture inside of the former
    text_after: float = 0.0  # share of the picture inside of the latter
    passes: int = 0  # how often something was painted over
    skipped: list[Skipped] = field(default_factory=list)
    """Regions that the last looks found and that were not painted over, and why: not taken for text, or no room."""


def remove_text(
    image: np.ndarray, detector: TextDetector, fill: Fill, options: MaskOptions, passes: int = 4
) -> Removal:
    """Paint the text of (h, w, 3) uint8 RGB pixels over, at most ``passes`` times; the last act is a look.

    The detector's looks take turns. Every pass paints the union of all masks anew from the original, so that the
    colour of a half-covered letter that an earlier pass spread does not stay.
    """
    shape = image.shape[:2]
    result = Removal(image, np.zeros(shape, bool))
    found: dict[int, list[Region]] = {}
    skipped: dict[int, list[Skipped]] = {}
    look = quiet = 0
    while quiet < detector.looks:
        regions, doubted = accepted(detector.detect(result.image, look), shape, options)
        mask, no_room = paint_mask(regions, shape, options, result.mask)
        found[look], skipped[look] = regions, doubted + no_room
        if result.passes == 0:
            result.before, result.text_before = _extent(found.values(), shape)
        if (mask & ~result.mask).any() and result.passes < passes:
            result.mask = mask
            result.image = fill(image, mask)
            result.passes += 1
            quiet = 0
        else:  # nothing, or only what is painted already or has no room: the same again, if it were tried
            quiet += 1
        look = (look + 1) % detector.looks
    result.after, result.text_after = _extent(found.values(), shape)
    result.skipped = [skip for skips in skipped.values() for skip in skips]
    return result


def _extent(found: Iterable[list[Region]], shape: tuple[int, int]) -> tuple[int, float]:
    """How many regions, and which share of the picture they cover together."""
    regions = [region for of_look in found for region in of_look]
    return len(regions), float(text_mask(regions, shape).mean())


@lru_cache(maxsize=2)
def _tools(options: TextRemoval) -> tuple[TextDetector, Fill]:
    """Loaded once a process."""
    cv2()  # the message that it is missing belongs to the start
    return make_detector(options.detector), make_fill(options.fill, options.fill_model)


def removal_fingerprint(options: TextRemoval) -> str:
    """Changes whenever the pixels may."""
    return fingerprint(options.facts())


@lru_cache(maxsize=2)
def require_same_removal(options: TextRemoval, facts: str) -> None:
    """Raise UserError if text removal is not what it was, by its fingerprint, where the tasks were made."""
    if removal_fingerprint(options) != facts:
        problem = "is not what it was when the work began: another detector, or a model file with other content"
        remedy = "give all workers the same files, and run it again"
        raise UserError("ranks-differ", f"text removal on {socket.gethostname()} {problem}; {remedy}")
