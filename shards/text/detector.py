"""Interface and options of text detectors. The command line chooses a detector:

--detector rapidocr              the detection network in RapidOCR's wheel (the default)
--detector FILE.onnx             another network of the same kind, such as a detector of PaddleOCR in ONNX
--detector NAME:a=1,b=2          another detector of registry.py, with its own options
--detector package.module:make   your own callable that returns a TextDetector
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shards.errors import UserError
from shards.options import option
from shards.values import BetweenZeroAndOne, Checked


@dataclass(frozen=True)
class Region:
    """A piece of text: a word, a line, sometimes a single large letter."""

    outline: np.ndarray  # (k, 2) float32: x and y in pixels of the k >= 3 corners of a polygon
    height: float  # letter height in pixels: the shorter side of the smallest rectangle around the region
    score: float  # confidence, 0 to 1


class TextDetector(Protocol):
    """Interface of a detector. The same image must give the same regions in every process."""

    name: str  # name and file of the detector, for reports
    passes: int  # number of passes over the image, at least 1; each pass may search at other scales

    def detect(self, image: np.ndarray, index: int = 0) -> list[Region]:
        """Return the regions of text in (h, w, 3) uint8 RGB pixels. ``index`` is the pass, from 0 to ``passes`` - 1."""


def parse_scales(text: str) -> tuple[tuple[int, ...], ...]:
    """Convert ``256,608/416,1024`` to ((256, 608), (416, 1024)). Raises UserError if a side is not a number."""
    try:
        return tuple(tuple(int(side) for side in sides.split(",")) for sides in text.split("/"))
    except ValueError:
        raise UserError("option-value", f"--scales takes short sides such as 256,608/416,1024, not {text!r}") from None


@dataclass(frozen=True)
class DetectorOptions(Checked):
    """Settings of the text detector. The defaults were chosen on real posters (docs/results/text-removal.md)."""

    detector: str = "rapidocr"
    """Text detector: rapidocr, another DB network (FILE.onnx), or your own detector (package.module:make)."""
    scales: tuple[tuple[int, ...], ...] = option(
        ((256, 608), (416, 1024)), old=("--looks",), parse=parse_scales, text="256,608/416,1024"
    )
    """Short sides, in pixels, of the copies in which text is searched. A / separates two searches. Searches take turns.
    Large letters are found in small copies, small print in large copies. A poster is clean if no search finds text."""
    pixel_threshold: BetweenZeroAndOne = 0.2
    """A pixel counts as text if its probability is above this value."""
    region_threshold: BetweenZeroAndOne = 0.3
    """A region counts as text if its mean probability is at least this value."""
    device: str = option("cpu", choices=("cpu", "cuda"))
    """Device of the detector. ``cuda`` needs onnxruntime-gpu."""
    reference_strip: bool = option(True, hidden=True)
    """Add a line of known text below the picture, which reduces false regions (see reference_strip.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales or not all(sides and all(32 <= side <= 2048 for side in sides) for sides in self.scales):
            raise UserError(
                "option-value", "--scales must be short sides from 32 to 2048 pixels, for example 256,608/416,1024"
            )
        if self.device not in ("cpu", "cuda"):
            raise UserError("option-value", f"--device must be cpu or cuda, not {self.device!r}")
