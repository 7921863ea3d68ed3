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
from toolkit.data.augment.color_jitter import WHITE, brightness, contrast, on_device_of, saturation, sharpness
from toolkit.data.sampling.rng import Stream, uniforms
from toolkit.device.transfer import to_device

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
    rows = to_device(order, images.device)
    device_signs = on_device_of(signs, images)
    out = images.clone()
    for first, last in ((_FIRST, _LAST), *((one, one) for one in range(_LAST + 1, len(OPERATIONS)))):
        start, stop = np.searchsorted(chosen, [first, last + 1]).tolist()
        if start == stop:
            continue
        part = images.index_select(0, rows[start:stop])
        if last == _LAST:
            changed = _warp(part, _matrices(chosen[start:stop], signs[start:stop], level, part.shape[3]))
        else:
            changed = _COLOURS[OPERATIONS[first]](part, level, device_signs[start:stop])
        out.index_copy_(0, rows[start:stop], changed)
    return out


def _matrices(chosen: np.ndarray, signs: np.ndarray, level: float, side: int) -> np.ndarray:
    """Return 2 x 3 matrices as (k, 6) float64. They map output to input coordinates, in pixels from the centre."""
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
    return table[chosen - _FIRST, :, np.arange(len(chosen))]


def _warp(images: torch.Tensor, matrices: np.ndarray) -> torch.Tensor:
    """Sample the images bilinearly. There is no matrix product, because a GPU can round its inputs to TF32."""
    side = images.shape[3]
    a, b, c, d, e, f = on_device_of(matrices, images)[:, :, None, None].unbind(dim=1)
    places = torch.arange(side, device=images.device, dtype=torch.float32) - (side - 1) / 2.0
    x, y = places[None, None, :], places[None, :, None]
    grid = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=3) / (side / 2.0)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _posterize(images: torch.Tensor, level: float, signs: torch.Tensor) -> torch.Tensor:
    step = float(2 ** round(4.0 * level))  # keeps 8 bits (level 0) to 4 bits (level 1)
    return torch.floor(images / step) * step


def _solarize(images: torch.Tensor, level: float, signs: torch.Tensor) -> torch.Tensor:
    return torch.where(images >= WHITE * (1.0 - level), WHITE - images, images)


def _auto_contrast(images: torch.Tensor, level: float, signs: torch.Tensor) -> torch.Tensor:
    return TF.autocontrast(images / WHITE) * WHITE


def _equalize(images: torch.Tensor, level: float, signs: torch.Tensor) -> torch.Tensor:
    return TF.equalize(images.round().to(torch.uint8)).float()  # a histogram needs integers


_COLOURS: dict[str, Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]] = {
    "Brightness": lambda images, level, signs: brightness(images, 1.0 + _COLOUR * level * signs),
    "Color": lambda images, level, signs: saturation(images, 1.0 + _COLOUR * level * signs),
    "Contrast": lambda images, level, signs: contrast(images, 1.0 + _COLOUR * level * signs),
    "Sharpness": lambda images, level, signs: sharpness(images, 1.0 + _COLOUR * level * signs),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
#: The operations, by torchvision's names. apply_operations needs the geometric operations to be neighbours.
OPERATIONS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_COLOURS)
_FIRST, _LAST = OPERATIONS.index("ShearX"), OPERATIONS.index("Rotate")
