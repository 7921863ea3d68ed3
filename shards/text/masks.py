"""Make a mask of the regions of text, which is then painted over. Leave out regions that are probably not text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from shards.text.detector import Region
from shards.text.opencv import cv2
from shards.values import Checked, OverZeroToOne, between

MIN_SCORES = ((0.1, 0.85), (0.02, 0.6))
"""Pairs of an area (share of the picture) and a score. A region larger than the area needs at least this score. On 300
real posters, titles larger than these areas had higher scores, and most figures and patterns had lower scores."""


@dataclass(frozen=True)
class MaskOptions(Checked):
    """Margin around text, and limits of the painted area."""

    margin: Annotated[float, between(0, 2, "from 0 to 2 letter heights")] = 0.2
    """Margin around a region, as a share of its letter height, but at least one pixel. The margin covers outlines,
    glows and shadows of letters."""
    max_region: OverZeroToOne = 0.4
    """Largest share of the picture that one region may cover. Larger regions are probably not text and are ignored."""
    max_total: OverZeroToOne = 0.8
    """Largest share of the picture that is painted over. Regions with the lowest scores are left out first."""


@dataclass(frozen=True)
class Skipped:
    """A region that is not painted over."""

    region: Region
    reason: str


def text_mask(regions: Sequence[Region], shape: tuple[int, int]) -> np.ndarray:
    """Return an (h, w) bool mask of the regions. No margin is added. The mean of the mask is the share of text."""
    return mask_of([np.rint(region.outline) for region in regions], shape)


def doubt(region: Region, shape: tuple[int, int], options: MaskOptions) -> str:
    """Return why a region is probably not text, or an empty string if it is accepted."""
    share = float(text_mask([region], shape).mean())
    if share > options.max_region:
        return f"larger than {options.max_region:.0%} of the picture"
    for size, score in MIN_SCORES:
        if share > size and region.score < score:
            return f"larger than {size:.0%} of the picture and uncertain"
    return ""


def accepted(
    regions: Sequence[Region], shape: tuple[int, int], options: MaskOptions
) -> tuple[list[Region], list[Skipped]]:
    """Return the accepted regions, and the rejected regions with reasons."""
    checked = [Skipped(region, doubt(region, shape, options)) for region in regions]
    return [each.region for each in checked if not each.reason], [each for each in checked if each.reason]


def paint_mask(
    regions: Sequence[Region], shape: tuple[int, int], options: MaskOptions, painted: np.ndarray
) -> tuple[np.ndarray, list[Skipped]]:
    """Add regions to a copy of ``painted`` and fill holes. Return the new mask and the regions left out."""
    mask, skipped = painted.copy(), []
    for region in sorted(regions, key=lambda region: -region.score):
        # Holes, such as in a ring of text, are filled. Polygons can then describe the mask.
        more = mask_of(outlines(mask | _grown(region, shape, options.margin)), shape)
        if more.mean() > options.max_total:
            skipped.append(Skipped(region, f"over the limit of {options.max_total:.0%} of the picture"))
        else:
            mask = more
    return mask, skipped


def outlines(mask: np.ndarray) -> list[list[int]]:
    """Return the outer polygons [x0, y0, x1, y1, ...] of a mask. ``mask_of`` restores the mask, but fills its holes."""
    cv = cv2()
    contours, _ = cv.findContours(mask.astype(np.uint8), cv.RETR_EXTERNAL, cv.CHAIN_APPROX_SIMPLE)
    return [contour.reshape(-1).tolist() for contour in contours]


def mask_of(polygons: Sequence[Sequence[int] | np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the (h, w) bool mask of filled polygons. For masks without holes, this is the inverse of ``outlines``."""
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        cv2().fillPoly(mask, [np.asarray(polygon, np.int32).reshape(-1, 2)], 1)
    return mask.astype(bool)


def _grown(region: Region, shape: tuple[int, int], margin: float) -> np.ndarray:
    cv = cv2()
    mask = text_mask([region], shape).astype(np.uint8)
    grow = max(1, round(margin * region.height))
    disc = cv.getStructuringElement(cv.MORPH_ELLIPSE, (2 * grow + 1, 2 * grow + 1))
    return cv.dilate(mask, disc).astype(bool)
