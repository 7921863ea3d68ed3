"""Brightness, contrast, saturation and sharpness of batches with one factor per sample, and random jitter of them.

The formulas are those of torchvision (transforms.v2.functional, float images). Images are (n, 3, S, S) float32 from 0
to 255, factors (n,). Factor 1 changes nothing; factor 0 gives black, mean grey, grey or blurred pixels. A sample's
result does not depend on the rest of the batch: sums have a fixed order, or use integers.
"""

from __future__ import annotations

import numpy as np
import torch

from toolkit.config.augmentations import AugmentConfig
from toolkit.data.sampling.rng import Stream, uniforms
from toolkit.device.transfer import to_device

WHITE = 255.0
#: Steps of a grey level in which the mean is counted: whole numbers add up the same in any order.
_FINE = 1 << 16


def jitter(images: torch.Tensor, config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> torch.Tensor:
    """torchvision's ColorJitter without hue: brightness, then contrast, then saturation.

    Each factor is uniform from 1 - x to 1 + x. torchvision draws the order too; a fixed one needs no grouping of
    samples by order, and the three nearly commute.
    """
    draws = uniforms(seed, epoch, keys, 3, Stream.COLOUR)
    changes = ((config.brightness, brightness), (config.contrast, contrast), (config.saturation, saturation))
    for column, (spread, change) in enumerate(changes):
        if spread > 0:
            factors = 1.0 - spread + 2.0 * spread * draws[:, column]
            images = change(images, beside(factors, images))
    return images


def brightness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply pixels by the factor."""
    return (images * factors[:, None, None, None]).clamp_(0.0, WHITE)


def contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend each image with its mean grey."""
    counted = (_grey(images) * _FINE).round_().to(torch.int64).sum(dim=(2, 3), keepdim=True)
    mean = (counted.double() / (_FINE * images.shape[2] * images.shape[3])).float()
    return _blend(images, mean, factors)


def saturation(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend each pixel with its grey value."""
    return _blend(images, _grey(images), factors)


def sharpness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend each image with a 3 x 3 blur of it (centre 5, others 1); border pixels do not change."""
    if min(images.shape[2:]) <= 2:
        return images.clone()
    across = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    nine = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = (nine + 4.0 * images[..., 1:-1, 1:-1]) / 13.0
    return _blend(images, blurred, factors)


def beside(values: np.ndarray, images: torch.Tensor) -> torch.Tensor:
    """Copy a small float array as float32 to the device of ``images``."""
    return to_device(values.astype(np.float32), images.device)


def _grey(images: torch.Tensor) -> torch.Tensor:
    """(n, 1, S, S): ITU-R 601 luma, as Pillow and torchvision weigh it."""
    return 0.2989 * images[:, 0:1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:3]


def _blend(images: torch.Tensor, other: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    weights = factors[:, None, None, None]
    return (images * weights + other * (1.0 - weights)).clamp_(0.0, WHITE)
