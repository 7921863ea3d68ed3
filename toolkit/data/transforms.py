"""Encoded image in, square uint8 RGB pixels out. Normalisation is the device's work.

``Preprocessing`` is what a model folder remembers: predict and evaluate see the pixels that validation saw.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from toolkit.config import DataConfig
from toolkit.data.augment import random_crops
from toolkit.data.plan import Share
from toolkit.data.reader import ShardReader

BILINEAR = (
    Image.Resampling.BILINEAR
)  # Pillow's is antialiased when it shrinks, as torchvision's with antialias=True

#: One sample's work, ready to run in a thread: encoded bytes → (S, S, 3) uint8.
Transform = Callable[[bytes], np.ndarray]


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform and the normalisation of a model."""

    image_size: int
    crop_pct: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, data: bytes) -> np.ndarray:
        """(S, S, 3) uint8: torchvision's Resize(S / crop_pct) and CenterCrop(S) on Pillow pixels, to the byte."""
        return center_crop(decode_rgb(data), self.image_size, self.crop_pct)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """(n, S, S, 3) uint8 → (n, 3, S, S) float32 on the same device, channels_last in memory."""
        mean = torch.tensor(self.mean, device=images.device) * 255.0
        std = torch.tensor(self.std, device=images.device) * 255.0
        return ((images.float() - mean) / std).permute(0, 3, 1, 2)


def decode_rgb(data: bytes) -> Image.Image:
    """Decode to RGB. Raises whatever Pillow raises for damaged bytes (OSError, ValueError, ...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def center_crop(image: Image.Image, size: int, crop_pct: float) -> np.ndarray:
    """Resize the short side to ``size / crop_pct`` and take the central square of ``size``; torchvision's rounding."""
    short = max(size, round(size / crop_pct))
    width, height = image.size
    if width <= height:
        width, height = short, max(short, int(short * height / width))
    else:
        width, height = max(short, int(short * width / height)), short
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    resized = image if image.size == (width, height) else image.resize((width, height), BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def crop_resize(data: bytes, size: int, box: tuple[int, int, int, int], flip: bool) -> np.ndarray:
    """Decode, crop ``box`` (left, top, right, bottom), resize to a square of ``size``, maybe flip."""
    image = decode_rgb(data)
    if image.size[0] < box[2] or image.size[1] < box[3]:
        raise ValueError(f"the image is {image.size[0]}x{image.size[1]}, smaller than its index says")
    pixels = np.asarray(image.crop(box).resize((size, size), BILINEAR))
    return pixels[:, ::-1] if flip else pixels


class TrainTransforms:
    """Random crops and flips of a share of samples: parameters are drawn for the whole share at once."""

    def __init__(self, reader: ShardReader, config: DataConfig, seed: int, epoch: int) -> None:
        self.reader, self.config, self.seed, self.epoch = reader, config, seed, epoch

    def __call__(self, share: Share) -> list[Transform]:
        """One transform per sample of the share."""
        rows = share.indices
        boxes, flips = random_crops(
            self.seed,
            self.epoch,
            rows,
            self.reader.heights[rows],
            self.reader.widths[rows],
            self.config.crop_scale,
            self.config.crop_ratio,
            self.config.flip,
        )
        size = self.config.image_size
        return [_bind(size, tuple(box), bool(flip)) for box, flip in zip(boxes.tolist(), flips, strict=True)]


def _bind(size: int, box: tuple[int, int, int, int], flip: bool) -> Transform:
    return lambda data: crop_resize(data, size, box, flip)
