"""Where text is: the interface that detectors have, and how one is named on the command line.

--detector rapidocr              the detection network in RapidOCR's wheel (the default)
--detector FILE.onnx             another network of the same kind (PaddleOCR's detectors, exported to ONNX)
--detector NAME:a=1,b=2          another one of registry.py, with its own options
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

    outline: np.ndarray  # (k, 2) float32 x, y in pixels of the image, k >= 3, clockwise or not
    height: float  # of the letters in pixels: the shorter side of the smallest rectangle around the region
    score: float  # how sure the detector is, 0 to 1


class TextDetector(Protocol):
    """Finds text. The same image must give the same regions, in any process."""

    name: str  # what it is and from which file, for reports
    looks: int  # how many ways of looking it has, at least 1

    def detect(self, image: np.ndarray, look: int = 0) -> list[Region]:
        """Regions of text in (h, w, 3) uint8 RGB pixels; ``look`` counts from 0 to ``looks`` - 1."""


def parse_scales(text: str) -> tuple[tuple[int, ...], ...]:
    """``256,608/416,1024`` → ((256, 608), (416, 1024)). Raises UserError."""
    try:
        return tuple(tuple(int(side) for side in look.split(",")) for look in text.split("/"))
    except ValueError:
        raise UserError("option-value", f"--scales takes short sides such as 256,608/416,1024, not {text!r}") from None


@dataclass(frozen=True)
class DetectorOptions(Checked):
    """Which detector, and how it looks. Values were chosen on real posters (docs/results/text-removal.md)."""

    detector: str = "rapidocr"
    """The name rapidocr, FILE.onnx of a detector of its kind, or package.module:make."""
    scales: tuple[tuple[int, ...], ...] = option(
        ((256, 608), (416, 1024)), old=("--looks",), parse=parse_scales, text="256,608/416,1024"
    )
    """Looks that take turns. Each is the short sides, in pixels, of the copies that are searched: small ones find large
    letters, large ones small print. A poster is clean when every look in turn finds nothing."""
    pixel_threshold: BetweenZeroAndOne = 0.2
    """Probability from which a pixel belongs to text."""
    region_threshold: BetweenZeroAndOne = 0.3
    """Mean probability from which a region counts as text."""
    device: str = option("cpu", choices=("cpu", "cuda"))
    """``cpu`` or ``cuda`` (with onnxruntime-gpu)."""
    reference_strip: bool = option(True, hidden=True)
    """Show the network a line of known text below the picture (reference_strip.py says why)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales or not all(look and all(32 <= side <= 2048 for side in look) for look in self.scales):
            raise UserError(
                "option-value", "--scales takes short sides from 32 to 2048 pixels such as 256,608/416,1024"
            )
        if self.device not in ("cpu", "cuda"):
            raise UserError("option-value", f"--device must be cpu or cuda, not {self.device!r}")
