"""Compute which samples each rank gets in each update, without files and without communication between ranks.

Training. An epoch is a permutation of all samples (shuffle.py), optionally with repeats (repeat_factor.py). It depends
only on seed and epoch, and any slice can be computed. An epoch has N positions, one for each use of a sample. With the
global batch B, an epoch has k = ceil(N / B) updates. Update t starts at position floor(t * N / k). The positions of an
update are assigned in turn to its world_size x accumulation micro-batches. A micro-batch of fewer than MIN_ROWS samples
is padded with samples of the same update, without weight (valid=False). docs/concepts/exact-epochs.md has the reasons.

Groups. ``group_size`` neighbouring positions of an update go to the same micro-batch, for any world size and
accumulation. Mixing of pairs (mixup.py) needs groups of two. Positions 2k and 2k+1 of an update are then neighbouring
rows of one MicroBatch. Only the last group of an update can be shorter, and it is at the end of a micro-batch.

Evaluation. Samples in the order of the index form fixed batches, and batch j goes to rank j mod world_size. The batches
are the same for any number of processes, and so are the logits. A rank without a batch gets one row with valid=False.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from toolkit.data.sampling.shuffle import DRAW_STRIDE, Order

#: even: all updates of an epoch have about the same size. tail: all updates except the last are full. Only runs of
#: earlier versions use tail.
Sizes = Literal["even", "tail"]
#: Smallest micro-batch. In training, BatchNorm cannot normalise one row whose feature map is 1 x 1.
MIN_ROWS = 2
#: Number of positions whose samples are computed at a time.
BLOCK = 4096


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward pass on one rank."""

    indices: np.ndarray
    """(n,) int64 numbers of samples in the split."""
    valid: np.ndarray
    """(n,) bool. A row with False has no weight: it is padding, or its image could not be decoded."""
    repeat: np.ndarray = None  # type: ignore[assignment] # None means zeros
    """(n,) int64: number of earlier uses of the sample in this epoch, 0 at the first use."""

    def __post_init__(self) -> None:
        if self.repeat is None:
            object.__setattr__(self, "repeat", np.zeros(len(self.indices), dtype=np.int64))

    @property
    def keys(self) -> np.ndarray:
        """Return (n,) int64 keys of the random numbers for crop and augmentation, one for each use of a sample."""
        return self.indices + self.repeat * DRAW_STRIDE


@dataclass(frozen=True)
class TrainPlan:
    """The training samples of each update, for any rank and world size. A step is an update's number in its epoch."""

    order: Order
    global_batch: int
    group_size: int = 1
    """Number of successive samples of an update that go to the same micro-batch."""
    sizes: Sizes = "even"
    """How an epoch is divided into updates: ``even`` or ``tail``."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.global_batch < 1 or self.group_size < 1:
            raise ValueError(
                f"num_samples, global_batch and group_size must be at least 1, not {self.num_samples}, "
                f"{self.global_batch} and {self.group_size}"
            )

    @property
    def num_samples(self) -> int:
        """Number of samples in an epoch. A repeated sample counts several times."""
        return len(self.order)

    @property
    def steps_per_epoch(self) -> int:
        """Number of updates in an epoch, equal on every rank."""
        return -(-self.num_samples // self.global_batch)

    @property
    def largest_step(self) -> int:
        """Step of the first update that has the largest number of samples."""
        return max(range(self.steps_per_epoch), key=self.count)

    def start(self, step: int) -> int:
        """Return how many samples of an epoch precede update ``step``. ``step`` is at most steps_per_epoch."""
        if self.sizes == "tail":
            return min(step * self.global_batch, self.num_samples)
        unit = math.gcd(self.group_size, self.global_batch)  # updates start at its multiples
        units = -(-self.num_samples // unit)
        return min(step * units // self.steps_per_epoch * unit, self.num_samples)

    def count(self, step: int) -> int:
        """Return the number of samples of one update over all ranks."""
        return self.start(step + 1) - self.start(step)

    def rows(self, step: int, world_size: int, accumulation: int = 1) -> np.ndarray:
        """Return the number of samples of each micro-batch of one update, as (world_size, accumulation) int64."""
        count, parts = self.count(step), world_size * accumulation
        groups = -(-count // self.group_size)
        rows = (groups // parts + (np.arange(parts) < groups % parts)) * self.group_size
        rows[(groups - 1) % parts] -= groups * self.group_size - count  # the last group may be shorter
        return rows.reshape(world_size, accumulation)

    def keys(self, epoch: int, step: int) -> np.ndarray:
        """Return the int64 keys of all samples of one update, over all ranks (shuffle.py explains keys)."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} is not in an epoch of {self.steps_per_epoch} steps")
        return self.order.keys(epoch, self.start(step), self.start(step + 1))

    def micro_batches(
        self, epoch: int, step: int, rank: int, world_size: int, accumulation: int = 1
    ) -> list[MicroBatch]:
        """Return the ``accumulation`` micro-batches of ``rank`` in one update."""
        return _split_update(self.keys(epoch, step), rank, world_size, accumulation, self.group_size)

    def rest_of_epoch(
        self, epoch: int, rank: int, world_size: int, accumulation: int = 1, first_step: int = 0
    ) -> Iterator[MicroBatch]:
        """Yield all micro-batches of ``rank`` from ``first_step`` to the end of the epoch, in order."""
        block = max(1, BLOCK // self.global_batch)  # one large slice is faster than many small ones
        for begin in range(first_step, self.steps_per_epoch, block):
            edges = [self.start(t) for t in range(begin, min(begin + block, self.steps_per_epoch) + 1)]
            keys = self.order.keys(epoch, edges[0], edges[-1])
            for update in np.split(keys, np.subtract(edges[1:-1], edges[0])):
                yield from _split_update(update, rank, world_size, accumulation, self.group_size)


@dataclass(frozen=True)
class EvalPlan:
    """The order of evaluation: every sample once, in batches that do not depend on the world size."""

    num_samples: int
    batch: int

    def steps(self, world_size: int) -> int:
        """Return the number of forward passes of every rank."""
        return -(-self.num_samples // (self.batch * world_size))

    def micro_batches(self, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """Yield the batches of ``rank``. All ranks get the same number of batches."""
        for step in range(self.steps(world_size)):
            start = (step * world_size + rank) * self.batch
            indices = np.arange(start, min(start + self.batch, self.num_samples), dtype=np.int64)
            if len(indices):
                yield MicroBatch(indices, np.ones(len(indices), dtype=bool))
            else:
                yield MicroBatch(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool))


def _split_update(keys: np.ndarray, rank: int, world_size: int, accumulation: int, group_size: int) -> list[MicroBatch]:
    """Return the micro-batches of ``rank``. Groups of ``group_size`` keys are assigned to all micro-batches in turn."""
    owners = np.arange(len(keys)) // group_size % (world_size * accumulation)
    micro_batches = []
    for part in range(rank * accumulation, (rank + 1) * accumulation):
        own = keys[owners == part]
        rows = np.concatenate([own, np.resize(keys, max(0, MIN_ROWS - len(own)))])
        micro_batches.append(MicroBatch(rows % DRAW_STRIDE, np.arange(len(rows)) < len(own), rows // DRAW_STRIDE))
    return micro_batches
