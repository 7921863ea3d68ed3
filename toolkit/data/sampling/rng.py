"""Random numbers and crops that depend only on seed, epoch and key, so they are the same on any rank and thread.

A key represents one use of a sample in an epoch (plan.MicroBatch.keys).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

ATTEMPTS = 10  # attempts of torchvision's RandomResizedCrop before its fallback, a central crop
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Stream(IntEnum):
    """Purposes of random numbers. For the same key, each purpose gets different, independent numbers."""

    CROP = 0
    COLOUR = 1
    RANDAUGMENT = 2
    ERASE = 3
    NOISE = 4
    MIX = 5
    OWN = 6
    GENERATOR = 7


def uniforms(seed: int, epoch: int, keys: np.ndarray, count: int, stream: Stream = Stream.CROP) -> np.ndarray:
    """Return (n, count) float64 in [0, 1), hashed from (seed, epoch, stream, key, column). Keys are (n,) integers.

    splitmix64's finaliser hashes a counter (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
    There is no state, so the order of calls has no effect. A larger ``count`` only adds columns at the end.
    """
    with np.errstate(over="ignore"):
        key = mix64(mix64(np.uint64(seed) + _GOLDEN) ^ np.uint64(epoch)) + mix64(np.uint64(stream))
        rows = mix64(key ^ mix64(keys.astype(np.uint64) + _GOLDEN))
        counters = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = mix64(rows[:, None] + counters[None, :])
    return (bits >> np.uint64(11)) * 2.0**-53


def mix64(x: Any) -> Any:
    """Return splitmix64's finaliser, a bijective hash of 64-bit words, for scalars or arrays of uint64."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_crops(
    seed: int,
    epoch: int,
    keys: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw boxes and flips with the distributions of torchvision's RandomResizedCrop and RandomHorizontalFlip.

    Returns (n, 4) int64 boxes inside the images (left, top, right, bottom in pixels), and (n,) bool flips.
    """
    n = len(keys)
    u = uniforms(seed, epoch, keys, 4 * ATTEMPTS + 1)
    draws = u[:, : 4 * ATTEMPTS].reshape(n, ATTEMPTS, 4)
    height, width = heights[:, None].astype(np.float64), widths[:, None].astype(np.float64)
    area = height * width * (scale[0] + draws[..., 0] * (scale[1] - scale[0]))
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + draws[..., 1] * (high - low))
    w = np.rint(np.sqrt(area * aspect))
    h = np.rint(np.sqrt(area / aspect))
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = np.argmax(fits, axis=1)
    row = np.arange(n)
    w, h = w[row, first], h[row, first]
    left = np.floor(draws[row, first, 2] * (widths - w + 1))
    top = np.floor(draws[row, first, 3] * (heights - h + 1))
    boxes = np.stack([left, top, left + w, top + h], axis=1)
    none = ~fits.any(axis=1)
    if none.any():
        boxes[none] = _central(heights[none], widths[none], ratio)
    return boxes.astype(np.int64), u[:, -1] < flip


def _central(heights: np.ndarray, widths: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    """Return torchvision's fallback: the largest central crop with an allowed aspect ratio."""
    w = np.minimum(widths, np.maximum(1, np.rint(heights * ratio[1])))
    h = np.minimum(heights, np.maximum(1, np.rint(widths / ratio[0])))
    left, top = (widths - w) // 2, (heights - h) // 2
    return np.stack([left, top, left + w, top + h], axis=1)
