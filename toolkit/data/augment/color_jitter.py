"""Change brightness, contrast, saturation and sharpness of a batch, with one factor per sample.

The formulas are from torchvision (transforms.v2.functional, float images). Images are (n, 3, S, S) float32 from 0 to
255, and factors are (n,). Factor 1 changes nothing. The result of a sample does not depend on the other samples of the
batch, because sums have a fixed order or use integers.
"""

from __future__ import annotations

import numpy as np
import torch

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.sampling.rng import Stream, uniforms
from toolkit.device.transfer import to_device

WHITE = 255.0
#: Grey levels are summed as integer multiples of 1 / _MEAN_STEPS. A sum of integers does not depend on its order, and
#: float64 has all integers up to 2^53.
_MEAN_STEPS = 1 << 16


def jitter(images: torch.Tensor, config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> torch.Tensor:
    """Apply torchvision's ColorJitter without hue: brightness, then contrast, then saturation.

    Each factor is drawn uniformly from 1 - x to 1 + x, where x is an option such as ``config.brightness``. torchvision
    also draws the order of the steps. Here the order is fixed, so that each step processes all samples at once.
    """
    draws = uniforms(seed, epoch, keys, 3, Stream.COLOUR)
    spreads = np.array([config.brightness, config.contrast, config.saturation])
    factors = to_device(np.float32(1.0 - spreads + 2.0 * spreads * draws).T.copy(), images.device)
    for row, change in enumerate((brightness, contrast, saturation)):
        if spreads[row] > 0:
            images = change(images, factors[row])
    return images


def brightness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply pixels by the factor."""
    return (images * factors[:, None, None, None]).clamp_(0.0, WHITE)


def contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend each image with its mean grey."""
    counted = (_grey(images) * _MEAN_STEPS).round_().sum(dim=(2, 3), keepdim=True, dtype=torch.float64)
    mean = (counted / (_MEAN_STEPS * images.shape[2] * images.shape[3])).float()
    return _blend(images, mean, factors)


def saturation(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend each pixel with its grey value."""
    return _blend(images, _grey(images), factors)


def sharpness(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Blend each image with its 3 x 3 blur, which has weight 5 at the centre and 1 elsewhere. Borders do not change."""
    if min(images.shape[2:]) <= 2:
        return images.clone()
    across = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    nine = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    blurred = images.clone()
    blurred[..., 1:-1, 1:-1] = (nine + 4.0 * images[..., 1:-1, 1:-1]) / 13.0
    return _blend(images, blurred, factors)


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Return the (n, 1, S, S) grey levels of RGB images: ITU-R 601 luma with torchvision's weights."""
    return 0.2989 * images[:, 0:1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:3]


def _blend(images: torch.Tensor, other: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    weights = factors[:, None, None, None]
    return (images * weights + other * (1.0 - weights)).clamp_(0.0, WHITE)
