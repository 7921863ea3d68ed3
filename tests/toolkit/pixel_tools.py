"""Posters as bytes, and the slow reference: Pillow's full decode, crop, antialiased resize and flip."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from toolkit.data.transforms.batch_transform import DecodedTransform, DeviceTransform
from toolkit.data.transforms.crops import Views
from toolkit.data.transforms.preprocessing import center_crop


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes, sharp edges and some grain: what posters are made of."""
    rng = np.random.default_rng([width, height, seed])
    coarse = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        pixels[y : y + height // 4, x : x + width // 5] = rng.integers(0, 256, 3)
    grain = rng.integers(-12, 13, pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


def sizes(files: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(widths, heights), each (n,) int64."""
    found = np.array([Image.open(io.BytesIO(data)).size for data in files], dtype=np.int64)
    return found[:, 0], found[:, 1]


def decode_rgb(data: bytes) -> Image.Image:
    """By Pillow alone."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def reference_crop(data: bytes, side: int, box: Sequence[int], flip: bool) -> np.ndarray:
    """A training crop by Pillow: (S, S, 3) uint8."""
    cropped = decode_rgb(data).crop(tuple(box))  # type: ignore[arg-type]
    pixels = np.asarray(cropped.resize((side, side), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if flip else pixels


def reference_crops(files: Sequence[bytes], views: Views) -> np.ndarray:
    """(n, S, S, 3) uint8 of training views."""
    boxes = zip(files, views.boxes.tolist(), views.flips.tolist(), strict=True)
    return np.stack([reference_crop(data, views.side, box, flip) for data, box, flip in boxes])


def reference_evals(files: Sequence[bytes], side: int, crop_pct: float) -> np.ndarray:
    """(n, S, S, 3) uint8 of the evaluation transform."""
    return np.stack([center_crop(decode_rgb(data), side, crop_pct) for data in files])


def fast(files: Sequence[bytes], cut: DecodedTransform | DeviceTransform) -> np.ndarray:
    """(n, S, S, 3) float32 of a cut, as the loader would run it."""
    import torch

    slot = np.full(cut.size, 77, dtype=np.uint8)
    for row, data in enumerate(files):
        cut.row(row, memoryview(bytearray(data)), slot)
    return cut.images(torch.from_numpy(slot)).float().numpy()


def worst(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(n,) mean absolute difference of each image, in grey levels."""
    return np.abs(found.astype(np.float64) - expected).mean(axis=(1, 2, 3))
