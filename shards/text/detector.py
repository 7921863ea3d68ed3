"""Interface and options of text detectors, and how a detector is chosen on the command line.

--detector rapidocr              the detection network in RapidOCR's wheel (the default)
--detector FILE.onnx             another network of the same kind (PaddleOCR's detectors, exported to ONNX)
--detector NAME:a=1,b=2          another detector of registry.py, with its own options
--detector package.module:make   any callable of yours that returns a TextDetector
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

    outline: np.ndarray  # (k, 2) float32 x, y in pixels of the image, k >= 3, in either direction
    height: float  # of the letters in pixels: the shorter side of the smallest rectangle around the region
    score: float  # confidence, 0 to 1


class TextDetector(Protocol):
    """Interface of a detector. The same image must give the same regions in every process."""

    name: str  # name and file of the detector, for reports
    looks: int  # number of searches that differ in scale or otherwise, at least 1

    def detect(self, image: np.ndarray, look: int = 0) -> list[Region]:
        """Return the regions of text in (h, w, 3) uint8 RGB pixels; ``look`` is the search, 0 to ``looks`` - 1."""


def parse_scales(text: str) -> tuple[tuple[int, ...], ...]:
    """Parse ``256,608/416,1024`` → ((256, 608), (416, 1024)). Raises UserError if a side is not a number."""
    try:
        return tuple(tuple(int(side) for side in look.split(",")) for look in text.split("/"))
    except ValueError:
        raise UserError("option-value", f"--scales takes short sides such as 256,608/416,1024, not {text!r}") from None


@dataclass(frozen=True)
class DetectorOptions(Checked):
    """Choice and settings of the detector. The defaults were chosen on real posters (docs/results/text-removal.md)."""

    detector: str = "rapidocr"
    """Text detector: rapidocr, FILE.onnx of a network of the same kind, or package.module:make."""
    scales: tuple[tuple[int, ...], ...] = option(
        ((256, 608), (416, 1024)), old=("--looks",), parse=parse_scales, text="256,608/416,1024"
    )
    """Searches, separated by /, that alternate. Each lists the short sides, in pixels, of the searched copies: small
    copies find large letters, large copies small print. A poster is clean if no search finds text."""
    pixel_threshold: BetweenZeroAndOne = 0.2
    """A pixel is text if its probability is larger."""
    region_threshold: BetweenZeroAndOne = 0.3
    """A region is text if its mean probability is at least this."""
    device: str = option("cpu", choices=("cpu", "cuda"))
    """``cpu`` or ``cuda`` (with onnxruntime-gpu)."""
    reference_strip: bool = option(True, hidden=True)
    """Add a line of known text below the picture, which reduces false regions (see reference_strip.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales or not all(look and all(32 <= side <= 2048 for side in look) for look in self.scales):
            raise UserError(
                "option-value", "--scales takes short sides from 32 to 2048 pixels such as 256,608/416,1024"
            )
        if self.device not in ("cpu", "cuda"):
            raise UserError("option-value", f"--device must be cpu or cuda, not {self.device!r}")
