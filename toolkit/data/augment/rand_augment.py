"""RandAugment (Cubuk, Zoph, Shlens, Le 2020) on batches: torchvision's operations and strengths, grouped by operation.

Each layer gives each sample one of the fourteen operations, all equally likely, and a sign, hashed from its key.
Samples with the same operation are processed together, so a layer needs at most nine small groups of kernels and no
loop over samples. All geometric operations are one bilinear sampling with a matrix per sample. Pixels outside of the
image are black, as by default in torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from toolkit.config.augmentations import AugmentConfig
from toolkit.data.augment.color_jitter import WHITE, beside, brightness, contrast, saturation, sharpness
from toolkit.data.sampling.rng import Stream, uniforms
from toolkit.device.transfer import to_device

STRONGEST = 30.0  # torchvision's last of 31 bins
_SHEAR, _TRANSLATE, _ROTATE, _COLOUR = 0.3, 150.0 / 331.0, math.radians(30.0), 0.9


def rand_augment(images: torch.Tensor, config: AugmentConfig, seed: int, epoch: int, keys: np.ndarray) -> torch.Tensor:
    """Apply ``config.randaugment`` random operations to each image, a pure function of (seed, epoch, keys)."""
    layers = config.randaugment
    draws = uniforms(seed, epoch, keys, 2 * layers, Stream.RANDAUGMENT)
    for layer in range(layers):
        chosen = (draws[:, 2 * layer] * len(OPERATIONS)).astype(np.int64)
        signs = np.where(draws[:, 2 * layer + 1] < 0.5, -1.0, 1.0)
        images = apply_operations(images, chosen, signs, config.magnitude)
    return images


def apply_operations(images: torch.Tensor, chosen: np.ndarray, signs: np.ndarray, magnitude: float) -> torch.Tensor:
    """Apply OPERATIONS[chosen[i]] to image i of (n, 3, S, S) float32 from 0 to 255.

    ``signs`` (n,): -1 or 1, the direction of operations that have two; ``magnitude``: 0 to 30, also fractions.
    """
    level = magnitude / STRONGEST
    order = np.argsort(chosen, kind="stable")
    chosen, signs = chosen[order], signs[order]
    rows = to_device(order, images.device)
    signs_there = beside(signs, images)
    out = images.clone()
    for first, last in ((_FIRST, _LAST), *((one, one) for one in range(_LAST + 1, len(OPERATIONS)))):
        start, stop = np.searchsorted(chosen, [first, last + 1]).tolist()
        if start == stop:
            continue
        part = images.index_select(0, rows[start:stop])
        if last == _LAST:
            changed = _warp(part, _matrices(chosen[start:stop], signs[start:stop], level, part.shape[3]))
        else:
            changed = _COLOURS[OPERATIONS[first]](part, level, signs_there[start:stop])
        out.index_copy_(0, rows[start:stop], changed)
    return out


def _matrices(chosen: np.ndarray, signs: np.ndarray, level: float, side: int) -> np.ndarray:
    """(k, 6) float64: place in the input of a place in the output, in pixels from the centre, by row (x; y)."""
    half = side / 2.0  # torchvision shears about the upper left corner
    shear, angle = signs * _SHEAR * level, signs * _ROTATE * level
    shift = np.trunc(signs * _TRANSLATE * level * side)  # whole pixels blur nothing
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
    """Bilinear, black outside. The grid is sums and products, not a matrix product: those may be less exact on GPUs."""
    side = images.shape[3]
    a, b, c, d, e, f = beside(matrices, images)[:, :, None, None].unbind(dim=1)
    places = torch.arange(side, device=images.device, dtype=torch.float32) - (side - 1) / 2.0
    x, y = places[None, None, :], places[None, :, None]
    grid = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=3) / (side / 2.0)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _posterize(images: torch.Tensor, level: float, signs: torch.Tensor) -> torch.Tensor:
    step = float(2 ** round(4.0 * level))  # 8 bits down to 4
    return torch.floor(images / step) * step


def _solarize(images: torch.Tensor, level: float, signs: torch.Tensor) -> torch.Tensor:
    return torch.where(images >= WHITE * (1.0 - level), WHITE - images, images)


def _auto_contrast(images: torch.Tensor, level: float, signs: torch.Tensor) -> torch.Tensor:
    return TF.autocontrast(images / WHITE) * WHITE


def _equalize(images: torch.Tensor, level: float, signs: torch.Tensor) -> torch.Tensor:
    return TF.equalize(images.round().to(torch.uint8)).float()  # a histogram needs whole levels


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
#: torchvision's names; geometric ones side by side, so that samples sorted by operation have them in one slice.
OPERATIONS = ("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_COLOURS)
_FIRST, _LAST = OPERATIONS.index("ShearX"), OPERATIONS.index("Rotate")
