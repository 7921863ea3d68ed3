"""A transform of the user: a function of one decoded image, called in the decoding threads.

The function gets a random generator that depends only on seed, epoch and sample. Its results are therefore the same for
any world size, number of threads and resume.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from shards.errors import UserError
from toolkit.config.extensions import explained
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.sampling.rng import Stream, uniforms
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.sources.thread_buffer import scratch
from toolkit.data.transforms.jpeg import SwappedSize, decode_rows
from toolkit.device.transfer import to_device

#: Function of an upright (H, W, 3) uint8 RGB image and a random generator. Returns an array or a tensor.
OwnFunction: TypeAlias = Callable[[np.ndarray, np.random.Generator], Any]


class OwnTransforms:
    """The transforms of micro-batches that call ``function``. ``epoch`` selects the random numbers."""

    def __init__(self, function: OwnFunction, reader: ShardReader, seed: int) -> None:
        self.function, self.reader, self.seed = function, reader, seed
        self.results = Results()

    def of_epoch(self, epoch: int) -> Callable[[MicroBatch], OwnTransform]:
        """Return the function that makes the transform of a micro-batch of this epoch."""
        return lambda micro_batch: OwnTransform(self, micro_batch, epoch)

    def example(self) -> np.ndarray:
        """Return the result for the first sample that can be decoded. Raises UserError if there is none."""
        for index in range(len(self.reader)):
            one = OwnTransform(self, MicroBatch(np.array([index]), np.array([True])), 0)
            try:
                return one.square(0, self.reader.read(index))
            except Undecodable:
                continue
        raise UserError("too-many-bad", f"no image of {self.reader.store} can be decoded: run `posters shards verify`")


class Results:
    """Check that all results of a function have the same shape and type. Many threads can use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: tuple[tuple[int, ...], np.dtype[Any], str] | None = None

    def checked(self, result: Any, where: str) -> np.ndarray:
        """Return a result as a new array. Raises UserError if it has another shape or type than the first result."""
        is_tensor = isinstance(result, torch.Tensor)
        found = explained(
            f"the result of the transform for {where}", lambda: np.array(result.numpy() if is_tensor else result)
        )
        if found.dtype.kind not in "biuf" or found.dtype.itemsize > 8:  # torch has no longdouble
            returned = f"an array of {found.dtype}" if isinstance(result, np.ndarray) else type(result).__name__
            what = f"the transform returned {returned} for {where}"
            raise UserError("option-value", f"{what}: it must return an array or a tensor of numbers, such as float32")
        with self._lock:
            if self._first is None:
                self._first = found.shape, found.dtype, where
            shape, kind, first = self._first
        if (found.shape, found.dtype) != (shape, kind):
            what = f"the transform returned {found.dtype} {found.shape} for {where}, but {kind} {shape} for {first}"
            raise UserError("option-value", f"{what}: it must return the same shape and type for all samples")
        return found


class OwnTransform:
    """Call the function for each row of one micro-batch."""

    size = 0

    def __init__(self, owner: OwnTransforms, micro_batch: MicroBatch, epoch: int) -> None:
        self.owner, self.indices = owner, micro_batch.indices
        self.widths, self.heights = owner.reader.sizes(micro_batch.indices)
        drawn = uniforms(owner.seed, epoch, micro_batch.keys, 2, Stream.GENERATOR)
        self.random_keys = (drawn * 2.0**53).astype(np.uint64)
        self.done: dict[int, np.ndarray] = {}

    def start(self, row: int) -> int:
        return 0

    def row(self, row: int, data: memoryview, buffer: np.ndarray) -> None:
        self.done[row] = self.square(row, data)

    def square(self, row: int, data: memoryview) -> np.ndarray:
        """Return the function's result for the image ``data``, in new memory."""
        width, height = int(self.widths[row]), int(self.heights[row])
        memory = scratch("decoded", width * height * 3)
        try:
            image = decode_rows(data, width, height, height, 1, memory)
        except SwappedSize:
            image = decode_rows(data, height, width, width, 1, memory)
        where = self.owner.reader.where(int(self.indices[row]))
        generator = np.random.Generator(np.random.Philox(key=self.random_keys[row]))
        result = explained(f"the transform of {where}", lambda: self.owner.function(image, generator))
        return self.owner.results.checked(result, where)

    def images(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the results of all rows, stacked on the device of ``buffer``. Rows without an image are zeros."""
        blank = np.zeros_like(next(iter(self.done.values())) if self.done else self.owner.example())
        return to_device(np.stack([self.done.get(row, blank) for row in range(len(self.indices))]), buffer.device)
