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
from toolkit.device.transfer import to_device

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
    device, side = images.device, images.shape[3]
    rows = to_device(hit, device)
    inside = box_masks(boxes[hit], side, device)
    pixels = noise(side, seed, epoch, keys[hit], device)
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


def box_masks(boxes: np.ndarray, side: int, device: torch.device) -> torch.Tensor:
    """Return (n, 1, S, S) bool, True inside the (n, 4) boxes of left, top, right, bottom."""
    left, top, right, bottom = to_device(boxes, device)[:, :, None, None, None].unbind(dim=1)
    x = torch.arange(side, device=device)
    y = x[:, None]
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def noise(side: int, seed: int, epoch: int, keys: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return (n, 3, S, S) whole numbers from 0 to 255 as float32, hashed from (seed, epoch, key, pixel, channel)."""
    words = uniforms(seed, epoch, keys, 1, Stream.NOISE)[:, 0] * 2.0**32
    starts = to_device(words.astype(np.int64), device)[:, None, None]
    pixels = torch.arange(side * side, device=device).view(side, side)
    # Each pixel has one 32-bit word, held in an int64. Each channel uses one byte of the word.
    bits = _mix32((starts + pixels * 0x9E3779B9) & 0xFFFFFFFF)
    return torch.stack([bits & 0xFF, (bits >> 8) & 0xFF, (bits >> 16) & 0xFF], dim=1).float()


def _mix32(x: torch.Tensor) -> torch.Tensor:
    """Return the hash lowbias32, a bijection of 32-bit words (C. Wellons 2018, "Prospecting for hash functions")."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)
