"""Who sees which sample when. Pure arithmetic: no files, no process group, no state.

Training rule. An epoch is a permutation of all samples (shuffle.py), some of them repeated if asked for
(repeat_factor.py): a function of (seed, epoch) of which any slice can be asked for. With N positions and a global batch
of B it has k = ceil(N / B) updates, and update t takes the positions from floor(t * N / k) on: the sizes of updates
differ by one at most, none is over B, and none is under half of B unless the set is. (Full updates and then what is
left would be the obvious rule; but what is left may be one sample, whose gradient moves the weights as far as that of B
samples, and over which BatchNorm takes its statistics, just before the epoch is validated. Runs of earlier versions go
on so: ``sizes`` "tail".) Every position is visited once.

Each update is dealt out like cards over its world_size x accumulation micro-batches. The samples of an update therefore
do not depend on the number of processes, and every rank makes the same number of updates. A micro-batch of fewer than
MIN_ROWS samples is filled with samples of the same update marked valid=False: they weigh nothing in loss and counts.

Dealing. Cards are dealt ``deal`` at a time: positions k*deal..(k+1)*deal-1 of an update lie side by side in one
micro-batch, whatever the world size and the accumulation. Mixing (mixup.py) deals pairs: positions 2k and 2k+1 are
partners and are rows 2j and 2j+1 of their Share; of an odd number the last has no partner. All but the last group of an
update are whole and a short one is its micro-batch's last, so groups start at multiples of ``deal`` in every Share.
Where B is a multiple of ``deal``, so is every update but the last: sizes then differ by ``deal``.

Evaluation rule. Samples in index order are cut into fixed batches, and batch j goes to rank j mod world_size. The
batches, and so the logits, are the same for any number of processes. Ranks that run out get a batch of valid=False.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from toolkit.data.sampling.shuffle import DRAW_STRIDE, Order

#: even: the updates of an epoch are of one size, give or take one; tail: full ones, then what is left.
Sizes = Literal["even", "tail"]
#: A BatchNorm that has no statistics but the batch's cannot normalise a single row of a 1x1 feature map.
MIN_ROWS = 2
#: Samples whose order is computed at a time.
BLOCK = 4096


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward pass on one rank."""

    indices: np.ndarray
    """(n,) int64 positions in the split."""
    valid: np.ndarray
    """(n,) bool; False rows are padding and count for nothing."""
    repeat: np.ndarray = None  # type: ignore[assignment] # zeros where not given: most callers know of no repeats
    """(n,) int64: 0 for the first time that a sample comes in an epoch, 1 for the second, ..."""

    def __post_init__(self) -> None:
        if self.repeat is None:
            object.__setattr__(self, "repeat", np.zeros(len(self.indices), dtype=np.int64))

    @property
    def keys(self) -> np.ndarray:
        """(n,) int64: what random crops and augmentation are hashed from, another for every draw of a sample."""
        return self.indices + self.repeat * DRAW_STRIDE


@dataclass(frozen=True)
class TrainPlan:
    """The order of training samples for any epoch, step, rank and world size."""

    order: Order
    global_batch: int
    group_size: int = 1
    """Neighbours of an update that stay in one micro-batch."""
    sizes: Sizes = "even"
    """How the epoch is cut into updates."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.global_batch < 1 or self.group_size < 1:
            raise ValueError(
                f"num_samples, global_batch and group_size must be at least 1, not {self.num_samples}, "
                f"{self.global_batch} and {self.group_size}"
            )

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, a repeated one as often as it comes."""
        return len(self.order)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch, on every rank."""
        return -(-self.num_samples // self.global_batch)

    @property
    def largest_step(self) -> int:
        """An update of which none has more samples."""
        return max(range(self.steps_per_epoch), key=self.count)

    def start(self, step: int) -> int:
        """Position in the epoch at which update ``step`` starts; for steps_per_epoch, where the epoch ends."""
        if self.sizes == "tail":
            return min(step * self.global_batch, self.num_samples)
        unit = math.gcd(self.group_size, self.global_batch)  # of another one, updates could not be full
        units = -(-self.num_samples // unit)
        return min(step * units // self.steps_per_epoch * unit, self.num_samples)

    def count(self, step: int) -> int:
        """Samples of one update over all ranks."""
        return self.start(step + 1) - self.start(step)

    def rows(self, step: int, world_size: int, accumulation: int = 1) -> np.ndarray:
        """(world_size, accumulation) int64: samples of each micro-batch of one update."""
        count, parts = self.count(step), world_size * accumulation
        groups = -(-count // self.group_size)
        rows = (groups // parts + (np.arange(parts) < groups % parts)) * self.group_size
        rows[(groups - 1) % parts] -= groups * self.group_size - count  # the last group may be short
        return rows.reshape(world_size, accumulation)

    def keys(self, epoch: int, step: int) -> np.ndarray:
        """(count(step),) int64 keys of one update over all ranks."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch}")
        return self.order.keys(epoch, self.start(step), self.start(step + 1))

    def micro_batches(
        self, epoch: int, step: int, rank: int, world_size: int, accumulation: int = 1
    ) -> list[MicroBatch]:
        """The ``accumulation`` shares of ``rank`` in one update."""
        return _split_update(self.keys(epoch, step), rank, world_size, accumulation, self.group_size)

    def rest_of_epoch(
        self, epoch: int, rank: int, world_size: int, accumulation: int = 1, first_step: int = 0
    ) -> Iterator[MicroBatch]:
        """All micro-batches of ``rank`` from ``first_step`` to the end of the epoch, in order."""
        block = max(1, BLOCK // self.global_batch)  # a slice costs little more for many samples than for few
        for begin in range(first_step, self.steps_per_epoch, block):
            edges = [self.start(t) for t in range(begin, min(begin + block, self.steps_per_epoch) + 1)]
            keys = self.order.keys(epoch, edges[0], edges[-1])
            for update in np.split(keys, np.subtract(edges[1:-1], edges[0])):
                yield from _split_update(update, rank, world_size, accumulation, self.group_size)


@dataclass(frozen=True)
class EvalPlan:
    """Every sample once, in batches that do not depend on the world size."""

    num_samples: int
    batch: int

    def steps(self, world_size: int) -> int:
        """Forward passes of every rank."""
        return -(-self.num_samples // (self.batch * world_size))

    def micro_batches(self, rank: int, world_size: int) -> Iterator[MicroBatch]:
        """The batches of ``rank``; the same number on every rank."""
        for step in range(self.steps(world_size)):
            start = (step * world_size + rank) * self.batch
            indices = np.arange(start, min(start + self.batch, self.num_samples), dtype=np.int64)
            if len(indices):
                yield MicroBatch(indices, np.ones(len(indices), dtype=bool))
            else:
                yield MicroBatch(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool))


def _split_update(keys: np.ndarray, rank: int, world_size: int, accumulation: int, deal: int) -> list[MicroBatch]:
    """The shares of ``rank`` in an update of these keys, which are dealt out like cards."""
    holders = np.arange(len(keys)) // deal % (world_size * accumulation)
    micro_batches = []
    for part in range(rank * accumulation, (rank + 1) * accumulation):
        own = keys[holders == part]
        rows = np.concatenate([own, np.resize(keys, max(0, MIN_ROWS - len(own)))])
        micro_batches.append(MicroBatch(rows % DRAW_STRIDE, np.arange(len(rows)) < len(own), rows // DRAW_STRIDE))
    return micro_batches
