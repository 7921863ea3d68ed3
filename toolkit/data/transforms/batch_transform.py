"""Transforms of batches. Threads decode the image of each row into the buffer of the batch.

``DecodedTransform`` also crops and resizes in the threads. ``DeviceTransform`` writes decoded images of any size,
and the device crops and resizes them. ``FileTransform`` is for files whose image size is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from toolkit.config.schema import CropConfig, Geometry
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.sources.thread_buffer import scratch
from toolkit.data.transforms.crops import Views, eval_views, train_views
from toolkit.data.transforms.geometry import DeviceGeometry, cut_on_cpu
from toolkit.data.transforms.jpeg import SwappedSize, copy_rows, decode_any, decode_rows, plain_jpeg, scaled
from toolkit.data.transforms.preprocessing import Preprocessing


class BatchTransform(Protocol):
    """Decode, crop and resize the images of one batch."""

    size: int
    """Bytes that the batch needs in its buffer."""

    def start(self, row: int) -> int:
        """Return the position of a row's first byte in the buffer. A transform of the rows from there on fits there."""

    def row(self, row: int, data: memoryview, buffer: np.ndarray) -> None:
        """Decode the image of ``row`` from the writable bytes ``data`` into the buffer. Raises Undecodable.

        Raises SwappedSize if the image's width and height are exchanged in the index. Then call ``square`` instead.
        """

    def square(self, row: int, data: memoryview) -> np.ndarray:
        """Return the (S, S, 3) uint8 sample of ``row`` in new memory. The buffer does not change."""

    def images(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return (n, S, S, 3) whole numbers from 0 to 255, as uint8 or float, on the device of the buffer."""


#: (rows of a batch, widths of their images, heights of their images) → crops and flips of these rows.
MakeViews = Callable[[slice, np.ndarray, np.ndarray], Views]


class DecodedTransform:
    """Crop and resize in the decoding threads.

    ``swapped_views`` computes the crop of an image whose width and height are exchanged in the index. If
    ``swapped_views`` is None, such an image raises SwappedSize.
    """

    def __init__(self, views: Views, swapped_views: MakeViews | None = None) -> None:
        self.views, self.count, self.side, self.swapped_views = views, len(views), views.side, swapped_views
        self.size = self.count * self.side**2 * 4
        self.denominators = views.denominators()
        # If the sample is a part of the resized box (crops.Views), the CPU resizes the whole box and needs all rows.
        whole = (views.resized != views.side).any(axis=1)
        self.rows = np.where(whole, views.heights, views.decoded_rows(self.denominators))

    def start(self, row: int) -> int:
        return row * self.side**2 * 4

    def row(self, row: int, data: memoryview, buffer: np.ndarray) -> None:
        self._cut(row, data, buffer.reshape(self.count, self.side, self.side, 4)[row])

    def square(self, row: int, data: memoryview) -> np.ndarray:
        out = np.empty((self.side, self.side, 4), dtype=np.uint8)
        self._cut(row, data, out)
        return out[..., :3]

    def images(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer.view(self.count, self.side, self.side, 4)[..., :3]

    def picture(self, row: int, image: Image.Image) -> np.ndarray:
        """Return the (S, S, 3) uint8 sample of ``row``, made from its decoded ``image``."""
        out = np.empty((self.side, self.side, 4), dtype=np.uint8)
        denominator = int(self.denominators[row])
        memory, shape = self._memory(row)
        cut_on_cpu(copy_rows(image, denominator, memory.reshape(shape)), self.views, row, denominator, out)
        return out[..., :3]

    def _memory(self, row: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        denominator = int(self.denominators[row])
        rows = int(scaled(int(self.rows[row]), denominator))
        width = int(scaled(int(self.views.widths[row]), denominator))
        return scratch("decoded", rows * width * 4), (rows, width, 4)

    def _cut(self, row: int, data: memoryview, out: np.ndarray) -> None:
        views, denominator, rows = self.views, int(self.denominators[row]), int(self.rows[row])
        width, height = int(views.widths[row]), int(views.heights[row])
        try:
            image = decode_rows(data, width, height, rows, denominator, self._memory(row)[0], channels=4)
        except SwappedSize:
            if self.swapped_views is None:
                raise
            one = self.swapped_views(slice(row, row + 1), views.heights[row : row + 1], views.widths[row : row + 1])
            DecodedTransform(one)._cut(0, data, out)
            return
        cut_on_cpu(image, views, row, denominator, out)


class DeviceTransform:
    """Decode in the threads, and crop and resize on the device."""

    def __init__(self, views: Views, swapped_views: MakeViews | None = None) -> None:
        self.views, self.side, self.swapped_views = views, views.side, swapped_views
        self.denominators = views.denominators()
        self.rows = views.decoded_rows(self.denominators)
        widths = scaled(views.widths, self.denominators)
        pixels = widths * scaled(self.rows, self.denominators)
        ends = np.cumsum(pixels)
        self.starts = ends - pixels
        self.size = int(ends[-1]) * 3
        self.parts = (self.starts, views.widths, views.heights, self.rows, self.denominators)
        self.geometry = DeviceGeometry(views, self.starts, widths, self.denominators)

    def start(self, row: int) -> int:
        return int(self.starts[row]) * 3

    def row(self, row: int, data: memoryview, buffer: np.ndarray) -> None:
        start, width, height, rows, denominator = (int(part[row]) for part in self.parts)
        decode_rows(data, width, height, rows, denominator, buffer[start * 3 :])

    def square(self, row: int, data: memoryview) -> np.ndarray:
        return DecodedTransform(self.views, self.swapped_views).square(row, data)

    def images(self, buffer: torch.Tensor) -> torch.Tensor:
        # float16 holds 0 to 255 exactly, and a sum is wrong by less than one level. bfloat16 is not precise enough.
        return self.geometry(buffer, torch.float16 if buffer.is_cuda else torch.float32)


class FileTransform:
    """Make the (S, S, 3) sample of each row with ``transform``, a function of the row and the file's bytes."""

    def __init__(self, count: int, side: int, transform: Callable[[int, memoryview], np.ndarray]) -> None:
        self.count, self.side, self.transform = count, side, transform
        self.size = count * side**2 * 3

    def start(self, row: int) -> int:
        return row * self.side**2 * 3

    def row(self, row: int, data: memoryview, buffer: np.ndarray) -> None:
        buffer.reshape(self.count, self.side, self.side, 3)[row] = self.square(row, data)

    def square(self, row: int, data: memoryview) -> np.ndarray:
        try:
            return self.transform(row, data)
        except (OSError, ValueError) as error:
            raise Undecodable(str(error)) from error

    def images(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer.view(self.count, self.side, self.side, 3)


@dataclass(frozen=True)
class RawTransform:
    """The preprocessing of a model, applied to the bytes of any image file."""

    preprocessing: Preprocessing

    def __call__(self, data: bytes) -> np.ndarray:
        """Return the (S, S, 3) uint8 square of an image file. Raises ValueError with the reason in one line."""
        try:
            header = plain_jpeg(data)
            if header is not None:
                return self._cut((header.width, header.height)).square(0, memoryview(bytearray(data)))
            return self.square(decode_any(data))
        except Undecodable as bad:
            raise ValueError(str(bad)) from None

    def square(self, image: Image.Image) -> np.ndarray:
        """Return the (S, S, 3) uint8 square of a decoded RGB image. ``__call__`` can give slightly different pixels."""
        return self._cut(image.size).picture(0, image)

    def _cut(self, size: tuple[int, int]) -> DecodedTransform:
        ours, widths, heights = self.preprocessing, *(np.array([side]) for side in size)
        cut = DecodedTransform(eval_views(ours.image_size, ours.crop_pct, widths, heights, ours.fit))
        # Decode all rows, so that a truncated file raises an error even if the crop is complete.
        cut.rows = heights
        return cut


#: Function that makes the transform of a micro-batch.
Transforms = Callable[[MicroBatch], BatchTransform]


@dataclass(frozen=True)
class ShardTransforms:
    """The transforms of shard samples. ``views_of`` computes crops and flips from a micro-batch and image sizes."""

    reader: ShardReader
    on_device: bool
    views_of: Callable[[MicroBatch, slice, np.ndarray, np.ndarray], Views]

    def __call__(self, micro_batch: MicroBatch) -> BatchTransform:
        views: MakeViews = partial(self.views_of, micro_batch)
        kind = DeviceTransform if self.on_device else DecodedTransform
        return kind(views(slice(None), *self.reader.sizes(micro_batch.indices)), views)


@dataclass(frozen=True)
class FileTransforms:
    """The transforms of files whose image size is unknown. ``transform`` makes pixels from the bytes of a file."""

    side: int
    transform: Callable[[bytes], np.ndarray]

    def __call__(self, micro_batch: MicroBatch) -> BatchTransform:
        return FileTransform(len(micro_batch.indices), self.side, lambda _, data: self.transform(bytes(data)))


def train_transforms(
    reader: ShardReader, config: CropConfig, seed: int, epoch: int, device: torch.device
) -> Transforms:
    """Return the transforms for random crops and flips of shard samples."""
    views = partial(_train_views, config, seed, epoch)
    return ShardTransforms(reader, _on_device(config.geometry, device), views)


def _train_views(
    config: CropConfig,
    seed: int,
    epoch: int,
    micro_batch: MicroBatch,
    rows: slice,
    widths: np.ndarray,
    heights: np.ndarray,
) -> Views:
    return train_views(config, seed, epoch, micro_batch.keys[rows], widths, heights)


def eval_transforms(
    reader: ShardReader, preprocessing: Preprocessing, geometry: Geometry, device: torch.device
) -> Transforms:
    """Return the transforms for evaluation of shard samples, without random numbers."""
    return ShardTransforms(reader, _on_device(geometry, device), partial(_eval_views, preprocessing))


def _eval_views(
    preprocessing: Preprocessing, micro_batch: MicroBatch, rows: slice, widths: np.ndarray, heights: np.ndarray
) -> Views:
    return eval_views(preprocessing.image_size, preprocessing.crop_pct, widths, heights, preprocessing.fit)


def file_transforms(side: int, transform: Callable[[bytes], np.ndarray]) -> Transforms:
    """Return transforms that apply ``transform`` to the bytes of files whose image size is unknown."""
    return FileTransforms(side, transform)


def _on_device(geometry: Geometry, device: torch.device) -> bool:
    return device.type == "cuda" if geometry == "auto" else geometry == "device"
