"""Text removal as a step of other work: a poster's bytes in, pixels without text out. Cleaning and packing share it."""

from __future__ import annotations

import socket
import time
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
from shards.text.detector import DetectorOptions, TextDetector
from shards.text.inpaint import FILLS, Fill
from shards.text.masks import MaskOptions, outlines
from shards.text.opencv import cv2
from shards.text.registry import make_detector, make_fill, own_options
from shards.text.remove import remove_text

TEXT_LIBRARIES = ("opencv-python-headless", "onnxruntime", "rapidocr")
"""Whose versions decide the pixels."""

REPORT = "clean_report.parquet"
"""Lies with cleaned posters, and with shards that were cleaned on the way."""

NOT_CLEANED = "cannot be cleaned"
"""Why a poster is rejected that detector or fill cannot work on."""

HOPELESS = 20
"""So many posters that cannot be cleaned, one after the other and none before, and the cause is not theirs."""


@dataclass(frozen=True)
class TextRemoval:
    """How text is found and painted over."""

    detector: DetectorOptions = field(default_factory=DetectorOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    fill: str = option("surround", choices=FILLS)
    """How text is painted over."""
    fill_model: Path | None = None
    """ONNX in-painting network instead: image and mask in, image out."""
    passes: int = 4
    """How often a poster is painted over at most."""

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise UserError(f"--passes must be at least 1, not {self.passes}")

    def facts(self) -> dict[str, Any]:
        """Everything that decides the pixels, for reports and fingerprints: files by their content, not their place."""
        return {
            "detector": _tools(self)[0].name,
            "looks": [list(look) for look in self.detector.looks],
            "pixel_threshold": self.detector.pixel_threshold,
            "region_threshold": self.detector.region_threshold,
            "anchor": self.detector.anchor,
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
    row: dict[str, Any]
    """Columns of report.SCHEMA."""
    painted: bool
    """False: no pixel changed."""


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
            "altered": removal.altered,
            "seconds": seconds,
            "polygons": outlines(removal.mask),
            "skipped": [skip.reason for skip in removal.skipped],
            "skipped_polygons": [np.rint(s.region.outline).astype(int).reshape(-1).tolist() for s in removal.skipped],
        }
    return Cleaned(Image.fromarray(removal.image), row, removal.passes > 0)


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
        raise UserError(
            f"text removal on {socket.gethostname()} is not what it was when the work began: another detector, or a "
            f"model file with other content; give all workers the same files, and run it again"
        )
