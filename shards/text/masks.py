"""From regions of text to the mask that is painted over, and what is too large to be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from shards.text.detector import Region
from shards.text.opencv import cv2
from shards.values import Checked, OverZeroToOne, between

MIN_SCORES = ((0.1, 0.85), (0.02, 0.6))
"""(share of the picture, score): a larger region needs that score to be believed. On 300 real posters titles of those
sizes scored above, figures and patterns that were taken for text mostly below (contact sheets, looked at)."""


@dataclass(frozen=True)
class MaskOptions(Checked):
    """How far a mask reaches beyond the text, and how much of a picture it may take."""

    margin: Annotated[float, between(0, 2, "from 0 to 2 letter heights")] = 0.2
    """Growth of a region on every side, as a share of its letters' height, and one pixel at least: outlines, glows and
    shadows of letters lie there."""
    max_region: OverZeroToOne = 0.4
    """Largest share of the picture that one region may take: larger ones are figures and patterns."""
    max_total: OverZeroToOne = 0.8
    """Largest share of the picture that all regions may take together; the least certain ones are left out first."""


@dataclass(frozen=True)
class Skipped:
    """A region that is not painted over."""

    region: Region
    reason: str


def text_mask(regions: Sequence[Region], shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: the pixels inside of the regions, without any margin. Its mean is the share of text."""
    return mask_of([np.rint(region.outline) for region in regions], shape)


def doubt(region: Region, shape: tuple[int, int], options: MaskOptions) -> str:
    """Why this region is taken for a figure or a pattern instead of text; empty if it is believed."""
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
    """The regions taken for text, and the others."""
    judged = [Skipped(region, doubt(region, shape, options)) for region in regions]
    return [each.region for each in judged if not each.reason], [each for each in judged if each.reason]


def paint_mask(
    regions: Sequence[Region], shape: tuple[int, int], options: MaskOptions, painted: np.ndarray
) -> tuple[np.ndarray, list[Skipped]]:
    """(h, w) bool: ``painted`` and what more to paint over, without holes; and regions for which there is no room."""
    mask, skipped = painted.copy(), []
    for region in sorted(regions, key=lambda region: -region.score):
        # A hole in a ring of text is part of the ring: so that polygons describe the mask, and no island remains.
        more = mask_of(outlines(mask | _grown(region, shape, options.margin)), shape)
        if more.mean() > options.max_total:
            skipped.append(Skipped(region, f"no room: {options.max_total:.0%} of the picture is painted over"))
        else:
            mask = more
    return mask, skipped


def outlines(mask: np.ndarray) -> list[list[int]]:
    """The mask as polygons x0, y0, x1, y1, ...: cv2.fillPoly of each gives the mask again. It has no holes."""
    cv = cv2()
    contours, _ = cv.findContours(mask.astype(np.uint8), cv.RETR_EXTERNAL, cv.CHAIN_APPROX_SIMPLE)
    return [contour.reshape(-1).tolist() for contour in contours]


def mask_of(polygons: Sequence[Sequence[int] | np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The inverse of ``outlines``: (h, w) bool."""
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
