"""RandAugment (Cubuk, Zoph, Shlens, Le 2020) on batches, with torchvision's operations and strengths.

There are fourteen operations, all equally likely. Each sample gets ``config.randaugment`` operations, one after
another. A hash of the sample's key selects each operation and its sign. Samples with the same operation are processed
together, without a loop over samples. The geometric operations share one bilinear sampling with a matrix per sample.
Pixels outside of the image are black, which is torchvision's default.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.data.augment.color_jitter import WHITE, brightness, contrast, saturation, sharpness
from toolkit.data.sampling.rng import Stream, uniforms
from toolkit.device.constants import pixel_centres
from toolkit.device.transfer import to_device_together

STRONGEST = 30.0  # the last of torchvision's 31 strengths
_SHEAR, _TRANSLATE, _ROTATE, _COLOUR = 0.3, 150.0 / 331.0, math.radians(30.0), 0.9


def rand_augment(images: torch.Tensor, config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> torch.Tensor:
    """Apply ``config.randaugment`` operations to each image, chosen by seed, epoch and image key."""
    layers = config.randaugment
    draws = uniforms(seed, epoch, keys, 2 * layers, Stream.RANDAUGMENT)
    for layer in range(layers):
        chosen = (draws[:, 2 * layer] * len(OPERATIONS)).astype(np.int64)
        signs = np.where(draws[:, 2 * layer + 1] < 0.5, -1.0, 1.0)
        images = apply_operations(images, chosen, signs, config.magnitude)
    return images


def apply_operations(images: torch.Tensor, chosen: np.ndarray, signs: np.ndarray, magnitude: float) -> torch.Tensor:
    """Apply OPERATIONS[chosen[i]] to image i. Images are (n, 3, S, S) float32 from 0 to 255.

    signs: (n,) of -1 or 1, for operations with two directions, such as a rotation. magnitude: strength, from 0 to 30.
    """
    level = magnitude / STRONGEST
    order = np.argsort(chosen, kind="stable")
    chosen, signs = chosen[order], signs[order]
    first, last = np.searchsorted(chosen, [_FIRST, _LAST + 1]).tolist()
    matrices = _matrices(chosen[first:last], signs[first:last], level, images.shape[3]).astype(np.float32)
    factors = np.float32(1.0) + np.float32(_COLOUR * level) * signs.astype(np.float32)
    rows, device_factors, device_matrices = to_device_together(images.device, order, factors, matrices)
    by_operation = images.index_select(0, rows)
    parts = [by_operation[:first]]  # not changed
    if first < last:
        parts.append(_warp(by_operation[first:last], device_matrices))
    starts = np.searchsorted(chosen, np.arange(_LAST + 1, len(OPERATIONS) + 1)).tolist()
    for change, start, stop in zip(_COLOURS.values(), starts, starts[1:], strict=False):
        if start < stop:
            parts.append(change(by_operation[start:stop], level, device_factors[start:stop]))
    return by_operation.index_copy_(0, rows, torch.cat(parts))  # its own values are not needed any more


def _matrices(chosen: np.ndarray, signs: np.ndarray, level: float, side: int) -> np.ndarray:
    """Return (k, 2, 3) float64 matrices. They map output to input coordinates, in pixels from the centre."""
    half = side / 2.0  # torchvision shears about the upper left corner
    shear, angle = signs * _SHEAR * level, signs * _ROTATE * level
    shift = np.trunc(signs * _TRANSLATE * level * side)  # a shift by whole pixels does not blur the image
    one, zero = np.ones(len(chosen)), np.zeros(len(chosen))
    table = np.stack(
        [
            np.stack([one, shear, shear * half, zero, one, zero]),
            np.stack([one, zero, zero, shear, one, shear * half]),
            np.stack([one, zero, -shift, zero, one, zero]),
            np.stack([one, zero, zero, zero, one, -shift]),
            np.stack([np.cos(angle), -np.sin(angle), zero, np.sin(angle), np.cos(angle), zero]),
        ]
    )  # (5, 6, k)
    return table[chosen - _FIRST, :, np.arange(len(chosen))].reshape(-1, 2, 3)


def _warp(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Sample the images bilinearly. There is no matrix product, because a GPU can round its inputs to TF32."""
    side = images.shape[3]
    places = pixel_centres(side, images.device) - side / 2.0
    across, down, shift = matrices[..., None, None].unbind(dim=2)  # each (k, 2, 1, 1), for x and y of the input
    grid = (across * places + down * places[:, None] + shift).div_(side / 2.0).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _posterize(images: torch.Tensor, level: float, factors: torch.Tensor) -> torch.Tensor:
    step = float(2 ** round(4.0 * level))  # keeps 8 bits (level 0) to 4 bits (level 1)
    return torch.floor(images / step) * step


def _solarize(images: torch.Tensor, level: float, factors: torch.Tensor) -> torch.Tensor:
    return torch.where(images >= WHITE * (1.0 - level), WHITE - images, images)


def _auto_contrast(images: torch.Tensor, level: float, factors: torch.Tensor) -> torch.Tensor:
    return TF.autocontrast(images / WHITE) * WHITE


def _equalize(images: torch.Tensor, level: float, factors: torch.Tensor) -> torch.Tensor:
    return TF.equalize(images.round().to(torch.uint8)).float()  # a histogram needs integers


_COLOURS: dict[str, Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]] = {
    "Brightness": lambda images, level, factors: brightness(images, factors),
    "Color": lambda images, level, factors: saturation(images, factors),
    "Contrast": lambda images, level, factors: contrast(images, factors),
    "Sharpness": lambda images, level, factors: sharpness(images, factors),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
#: The operations, by torchvision's names. apply_operations needs the geometric operations to be neighbours.
OPERATIONS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_COLOURS)
_FIRST, _LAST = OPERATIONS.index("ShearX"), OPERATIONS.index("Rotate")
