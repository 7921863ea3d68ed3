"""One batch of a ShardLoader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from toolkit.data.sources.shard_reader import ShardReader


@dataclass
class ShardBatch:
    """Samples of one rank, on the device of the loader. All tensors and lists have n rows."""

    images: torch.Tensor
    """(n, 3, S, S) uint8, or float32 if the transform normalises. With a function of the user: its stacked results.
    The memory of uint8 images is not contiguous: use ``reshape`` and not ``view``."""
    targets: torch.Tensor | None
    """(n, C) float32 from 0 to 1. (n,) int64 if each sample has one class. None if the set has no labels."""
    valid: torch.Tensor
    """(n,) bool. False for padding and for images that could not be decoded: such rows must not count in the loss."""
    indices: np.ndarray
    """(n,) int64 numbers of the samples in the split. A row that was replaced has the number of its substitute."""
    samples: int
    """Number of samples of the update over all ranks, for the mean of the loss."""
    epoch: int
    """The epoch of the samples, from 0."""
    step: int
    """Number of the update in its epoch, from 0."""
    fields: dict[str, list[Any]]
    """Name of each requested member → its values."""
    weights: torch.Tensor | None
    """(n,) float32 sample weights. None if the set has no weights."""
    errors: dict[int, str]
    """Row without a decoded image → the reason. Such a row has valid=False."""
    reader: ShardReader
    """Reader of the shards, which finds the keys."""

    @property
    def keys(self) -> list[str]:
        """The WebDataset keys of the samples."""
        return self.reader.keys_of(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
