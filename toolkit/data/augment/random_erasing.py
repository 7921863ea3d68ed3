"""Random erasing (Zhong, Zheng, Kang, Li, Yang 2020) on batches: noise replaces a rectangle of some samples.

Areas, aspect ratios and positions have the distributions of torchvision's and timm's RandomErasing. Pixels are uniform
from 0 to 255, as in the paper. The noise is an integer hash of key and pixel, computed on the device. The noise is
therefore equal on any device, on any rank and in any row of a batch.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.sampling.rng import ATTEMPTS, Stream, uniforms
from toolkit.device.constants import whole_numbers
from toolkit.device.transfer import to_device_together

#: Smallest and largest share of an image's area that a rectangle covers, as in torchvision and timm.
AREA = (0.02, 0.33)
#: Smallest and largest height / width of a rectangle, as in timm and in the paper.
ASPECTS = (0.3, 1.0 / 0.3)


def erase(images: torch.Tensor, config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> torch.Tensor:
    """Fill a rectangle with noise in each of the (n, 3, S, S) images, with probability ``config.erase``."""
    boxes = erased_boxes(images.shape[3], config.erase, seed, epoch, keys)
    hit = np.flatnonzero(boxes[:, 2] > boxes[:, 0])
    if len(hit) == 0:
        return images
    side, words = images.shape[3], noise_words(seed, epoch, keys[hit])
    rows, device_boxes, device_words = to_device_together(images.device, hit, boxes[hit], words)
    inside, pixels = box_masks(device_boxes, side), noise(device_words, side)
    out = images.clone()
    out.index_copy_(0, rows, torch.where(inside, pixels, images.index_select(0, rows)))
    return out


def erased_boxes(side: int, probability: float, seed: int, epoch: int, keys: np.ndarray) -> np.ndarray:
    """Return (n, 4) int64 boxes: left, top, right, bottom. All four are 0 for an image in which nothing is erased.

    As in torchvision, the share of the area is uniform in AREA, and the aspect ratio is log-uniform. Both are drawn
    again until width and height are less than ``side``. After ATTEMPTS draws without success, nothing is erased.
    """
    n = len(keys)
    u = uniforms(seed, epoch, keys, 1 + 4 * ATTEMPTS, Stream.ERASE)
    draws = u[:, 1:].reshape(n, ATTEMPTS, 4)
    areas = side * side * (AREA[0] + draws[..., 0] * (AREA[1] - AREA[0]))
    low, high = math.log(ASPECTS[0]), math.log(ASPECTS[1])
    aspects = np.exp(low + draws[..., 1] * (high - low))
    h = np.maximum(1, np.rint(np.sqrt(areas * aspects)))
    w = np.maximum(1, np.rint(np.sqrt(areas / aspects)))
    fits = (w < side) & (h < side)
    row, first = np.arange(n), np.argmax(fits, axis=1)
    w, h = w[row, first], h[row, first]
    left = np.floor(draws[row, first, 2] * (side - w + 1))
    top = np.floor(draws[row, first, 3] * (side - h + 1))
    boxes = np.stack([left, top, left + w, top + h], axis=1)
    boxes[~fits.any(axis=1) | (u[:, 0] >= probability)] = 0
    return boxes.astype(np.int64)


def box_masks(boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Return (n, 1, S, S) bool, True inside the (n, 4) boxes of left, top, right, bottom."""
    places, edges = whole_numbers(side, boxes.device), boxes.view(-1, 2, 2, 1)
    inside = (places >= edges[:, 0]) & (places < edges[:, 1])  # (n, 2, S): horizontal and vertical
    return (inside[:, 0, None, :] & inside[:, 1, :, None])[:, None]


def noise_words(seed: int, epoch: int, keys: np.ndarray) -> np.ndarray:
    """Return (n,) int64 from 0 to 2^32 - 1, hashed from (seed, epoch, key)."""
    return (uniforms(seed, epoch, keys, 1, Stream.NOISE)[:, 0] * 2.0**32).astype(np.int64)


def noise(words: torch.Tensor, side: int) -> torch.Tensor:
    """Return (n, 3, S, S) whole numbers from 0 to 255 as uint8, hashed from (word, pixel, channel)."""
    pixels = whole_numbers(side * side, words.device).view(side, side) * 0x9E3779B9
    # Each pixel has one 32-bit word, held in an int64. Each channel uses one byte of the word, from the lowest on.
    bits = _mix32((words[:, None, None] + pixels) & 0xFFFFFFFF)
    return bits[..., None].view(torch.uint8)[..., :3].permute(0, 3, 1, 2)


def _mix32(x: torch.Tensor) -> torch.Tensor:
    """Return the hash lowbias32, a bijection of 32-bit words (C. Wellons 2018, "Prospecting for hash functions")."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)
