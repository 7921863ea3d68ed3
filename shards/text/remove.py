"""One poster: find text, paint it over, look again, until no look finds anything or the passes are spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from shards.text.detector import Region, TextDetector
from shards.text.inpaint import Fill
from shards.text.masks import MaskOptions, Skipped, believed, paint_mask, text_mask


@dataclass
class Removal:
    """What was done to a poster."""

    image: np.ndarray
    """(h, w, 3) uint8 RGB; pixels outside of ``mask`` are the original's."""
    mask: np.ndarray
    """(h, w) bool: everything that was painted over. It has no holes."""
    before: int = 0  # pieces of text that the looks before the first painting found
    after: int = 0  # pieces that the last look of each kind still found
    text_before: float = 0.0  # share of the picture inside of the former
    text_after: float = 0.0  # share of the picture inside of the latter
    passes: int = 0  # how often something was painted over
    skipped: list[Skipped] = field(default_factory=list)
    """Regions that the last looks found and that were not painted over, and why: not taken for text, or no room."""

    @property
    def altered(self) -> float:
        """Share of the pixels that were painted over."""
        return float(self.mask.mean())


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
        regions, doubted = believed(detector.detect(result.image, look), shape, options)
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
