"""Remove the text of one poster: find text and paint over it, until no text is found or a limit is reached.

``posters clean`` and ``posters shards build --text-removal`` use this module.
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
from shards.text.registry import make_detector, make_fill, own_options, passes_of
from shards.values import Checked, Count

TEXT_LIBRARIES = ("opencv-python-headless", "onnxruntime", "rapidocr")  # their versions may change the pixels
REPORT = "clean_report.parquet"  # file in folders of cleaned posters, and of shards built with text removal

NOT_CLEANED = "cannot be cleaned"  # reason in rejected.csv if the detector or the fill fails
#: Cleaning stops if this number of posters fails before any succeeds. The cause is then not a single poster.
MAX_FAILURES_IN_A_ROW = 20


@dataclass(frozen=True)
class TextRemoval(Checked):
    """Options of text removal."""

    detector: DetectorOptions = field(default_factory=DetectorOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    fill: str = option("surround", choices=FILLS)
    """Method of painting over text."""
    fill_model: Path | None = None
    """ONNX file of an in-painting network, used instead of --fill."""
    passes: Count = 4
    """Largest number of times that a poster is painted over."""

    def facts(self) -> dict[str, Any]:
        """Return all settings that determine the pixels, for reports and fingerprints. Files are given as SHA-256."""
        return {
            "detector": _tools(self)[0].name,
            "looks": [list(sides) for sides in self.detector.scales],
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
    """A poster without its text, and its row of clean_report.parquet."""

    image: Image.Image
    row: dict[str, Any]  # columns of report.SCHEMA
    painted: bool  # False if no pixel changed


def clean_image(sample_id: str, image: Image.Image, options: TextRemoval) -> Cleaned:
    """Remove the text of an upright RGB image. Raises BadImage if the detector or the fill fails."""
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
    """Result of text removal for one poster."""

    image: np.ndarray  # (h, w, 3) uint8 RGB; pixels outside of ``mask`` are unchanged
    mask: np.ndarray  # (h, w) bool: all pixels that were painted over; it has no holes
    before: int = 0  # number of regions found before the first painting
    after: int = 0  # number of regions found by the last search of each detection pass
    text_before: float = 0.0  # share of the picture inside the regions that ``before`` counts
    text_after: float = 0.0  # share of the picture inside the regions that ``after`` counts
    passes: int = 0  # number of times that the poster was painted over
    skipped: list[Skipped] = field(default_factory=list)
    """Regions that the last search of each detection pass found, but that were not painted over. Each has a reason."""


def remove_text(
    image: np.ndarray, detector: TextDetector, fill: Fill, options: MaskOptions, passes: int = 4
) -> Removal:
    """Paint over the text of an (h, w, 3) uint8 RGB image, at most ``passes`` times.

    The detector's own passes search in turn until no pass finds more to paint. Each painting fills the union of all
    masks in the original image, because an earlier painting may have spread the colour of a half-covered letter.
    """
    shape = image.shape[:2]
    result = Removal(image, np.zeros(shape, bool))
    found: dict[int, list[Region]] = {}
    skipped: dict[int, list[Skipped]] = {}
    index, quiet, count = 0, 0, passes_of(detector)
    while quiet < count:
        regions, doubted = accepted(detector.detect(result.image, index), shape, options)
        mask, too_much = paint_mask(regions, shape, options, result.mask)
        found[index], skipped[index] = regions, doubted + too_much
        if result.passes == 0:
            result.before, result.text_before = _extent(found.values(), shape)
        if (mask & ~result.mask).any() and result.passes < passes:
            result.mask = mask
            result.image = fill(image, mask)
            result.passes += 1
            quiet = 0
        else:  # no new text, or a limit is reached
            quiet += 1
        index = (index + 1) % count
    result.after, result.text_after = _extent(found.values(), shape)
    result.skipped = [skip for skips in skipped.values() for skip in skips]
    return result


def _extent(found: Iterable[list[Region]], shape: tuple[int, int]) -> tuple[int, float]:
    regions = [region for of_pass in found for region in of_pass]
    return len(regions), float(text_mask(regions, shape).mean())


@lru_cache(maxsize=2)
def _tools(options: TextRemoval) -> tuple[TextDetector, Fill]:
    cv2()  # fail at the start if OpenCV is missing
    return make_detector(options.detector), make_fill(options.fill, options.fill_model)


def removal_fingerprint(options: TextRemoval) -> str:
    """Return a fingerprint of all settings that determine the pixels."""
    return fingerprint(options.facts())


@lru_cache(maxsize=2)
def require_same_removal(options: TextRemoval, facts: str) -> None:
    """Raise UserError if this worker's fingerprint differs from ``facts``, the fingerprint of the main process."""
    if removal_fingerprint(options) != facts:
        problem = "differs from the main process (another detector, or a model file with other content)"
        remedy = "give all workers the same files and run the same command again"
        raise UserError("ranks-differ", f"text removal on {socket.gethostname()} {problem}; {remedy}")
