"""Compute which part of each stored image becomes a sample, and which rows must be decoded. No pixels are used here.

First, a rectangle of the image (its box) is resized with Pillow's antialiased bilinear filter. Pixels outside of the
box have no effect. The sample is a square window of side S in the resized box, and is sometimes mirrored. For a random
crop, the window is the whole resized box. For evaluation, the box is the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.config.schema import CropConfig
from toolkit.data.sampling.rng import random_crops
from toolkit.data.transforms.jpeg import rows_to_decode

#: After libjpeg's scaled DCT, the resize must still reduce the image by this factor or more. On real posters at 224
#: pixels, the largest error is then 0.6 grey levels. Factor 1.5 gave 0.9, and factor 1 gave 2.2.
MARGIN = 2.0


@dataclass(frozen=True)
class Views:
    """The crops of n stored images. A rectangle (box) of each image is resized, and a square of the result is used."""

    side: int
    """S, the side of a sample in pixels."""
    widths: np.ndarray
    """(n,) int64 widths of the stored images. ``heights`` are their heights."""
    heights: np.ndarray
    boxes: np.ndarray
    """(n, 4) int64: left, top, right, bottom of the resized rectangle, in pixels of the stored image."""
    resized: np.ndarray
    """(n, 2) int64: width and height of the resized box."""
    corners: np.ndarray
    """(n, 2) int64: left and top of the window in the resized box."""
    flips: np.ndarray
    """(n,) bool: whether the window is mirrored."""

    def __len__(self) -> int:
        return len(self.widths)

    def scales(self) -> np.ndarray:
        """Return the (n, 2) float64 factors by which boxes shrink: size before the resize divided by size after it."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]) / self.resized

    def denominators(self) -> np.ndarray:
        """Return (n,) int64 denominators: 1, 2, 4 or 8. An image can be decoded at 1/denominator of its size."""
        reduction = self.scales().min(axis=1) / MARGIN
        return np.select([reduction >= 8, reduction >= 4, reduction >= 2], [8, 4, 2], 1).astype(np.int64)

    def last_rows(self) -> np.ndarray:
        """Return, for each stored image, how many of its top rows the sample needs, as (n,) int64."""
        scale = self.scales()[:, 1]
        reach = np.maximum(scale, 1.0)  # half the width of the triangle filter
        last = self.boxes[:, 1] + np.ceil((self.corners[:, 1] + self.side - 0.5) * scale + reach)
        return np.minimum(last.astype(np.int64), self.boxes[:, 3])

    def decoded_rows(self, denominators: np.ndarray) -> np.ndarray:
        """Return (n,) int64: how many rows of each image to decode (jpeg.rows_to_decode)."""
        return rows_to_decode(self.last_rows(), denominators, self.heights)


def train_views(
    config: CropConfig, seed: int, epoch: int, keys: np.ndarray, widths: np.ndarray, heights: np.ndarray
) -> Views:
    """Return random crops and flips. They depend only on seed, epoch and the (n,) ``keys`` (plan.MicroBatch.keys)."""
    boxes, flips = random_crops(seed, epoch, keys, heights, widths, config.crop_scale, config.crop_ratio, config.flip)
    n, side = len(keys), config.image_size
    if config.train_crop == "none":
        return replace(eval_views(side, config.crop_pct, widths, heights, config.fit), flips=flips)
    resized = np.full((n, 2), side, dtype=np.int64)
    return Views(side, widths, heights, boxes, resized, np.zeros((n, 2), dtype=np.int64), flips)


def eval_views(side: int, crop_pct: float, widths: np.ndarray, heights: np.ndarray, fit: str = "crop") -> Views:
    """Return the crops of evaluation: the centre of the image, or the whole image.

    fit "crop" is torchvision's Resize(side / crop_pct) and CenterCrop(side), with torchvision's integer rounding.
    "stretch" is Resize((side, side)), which resizes the whole image to a square without ``crop_pct``.
    """
    n = len(widths)
    if fit == "stretch":
        resized = np.full((n, 2), side, dtype=np.int64)
    else:
        resized = np.stack(resized_size(widths, heights, side, crop_pct), axis=1)
    # torchvision rounds half to even, as numpy does
    corners = np.rint((resized - side) / 2.0).astype(np.int64)
    boxes = np.stack([np.zeros(n, np.int64), np.zeros(n, np.int64), widths, heights], axis=1)
    return Views(side, widths, heights, boxes, resized, corners, np.zeros(n, dtype=bool))


def resized_size(width: Any, height: Any, side: int, crop_pct: float) -> tuple[Any, Any]:
    """Return width and height after torchvision's Resize, which rounds the long side down. Takes numbers or arrays.

    >>> tuple(map(int, resized_size(182, 268, 224, 0.875)))
    (256, 376)
    """
    short, shorter = max(side, round(side / crop_pct)), np.minimum(width, height)
    return short * width // shorter, short * height // shorter
