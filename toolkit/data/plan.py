"""Who sees which sample when. Pure arithmetic: no files, no process group, no state.

Training rule. An epoch is a permutation of all samples (order.py), some of them repeated if asked for (repeats.py): a
function of (seed, epoch) of which any slice can be asked for. Update t takes the slice [t*B, (t+1)*B) of it, B being
the global batch; the last slice may be shorter and is used as it is, so every position is visited once. Each slice is
dealt out like cards over the world_size x accumulation micro-batches of the update. The samples of an update
therefore do not depend on the number of processes, and every rank makes the same number of updates. Where a short last
slice would leave a micro-batch with fewer than MIN_ROWS samples, it is filled with samples of the same slice marked
valid=False: they weigh nothing in the loss and in every count (only BatchNorm's batch statistics see them, which need
two rows).

Dealing. Cards are dealt ``deal`` at a time: positions k*deal..(k+1)*deal-1 of an update lie side by side in one
micro-batch, whatever the world size and the accumulation. Mixing (mix.py) deals pairs: positions 2k and 2k+1 are
partners and are rows 2j and 2j+1 of their Share; of an odd number the last has no partner. All but the last group of an
update are whole and a short one is its micro-batch's last, so groups start at multiples of ``deal`` in every Share.

Evaluation rule. Samples in index order are cut into fixed batches, and batch j goes to rank j mod world_size. The
batches, and so the logits, are the same for any number of processes. Ranks that run out get a batch of valid=False.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from toolkit.data.order import DRAW_STRIDE, Order

#: BatchNorm over a 1x1 feature map cannot normalise a single row.
MIN_ROWS = 2
#: Samples whose order is computed at a time.
BLOCK = 4096


@dataclass(frozen=True)
class Share:
    """The samples of one forward pass on one rank."""

    indices: np.ndarray
    """(n,) int64 positions in the split."""
    valid: np.ndarray
    """(n,) bool; False rows are padding and count for nothing."""
    draws: np.ndarray = None  # type: ignore[assignment] # zeros where not given: most callers know of no repeats
    """(n,) int64: 0 for the first time that a sample comes in an epoch, 1 for the second, ..."""

    def __post_init__(self) -> None:
        if self.draws is None:
            object.__setattr__(self, "draws", np.zeros(len(self.indices), dtype=np.int64))

    @property
    def keys(self) -> np.ndarray:
        """(n,) int64: what random crops and augmentation are hashed from, another for every draw of a sample."""
        return self.indices + self.draws * DRAW_STRIDE


@dataclass(frozen=True)
class TrainPlan:
    """The order of training samples for any epoch, step, rank and world size."""

    order: Order
    global_batch: int
    deal: int = 1
    """Neighbours of an update that stay in one micro-batch."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.global_batch < 1 or self.deal < 1:
            raise ValueError(
                f"a plan needs samples, a batch and a deal, not {self.num_samples}, {self.global_batch} and {self.deal}"
            )

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, a repeated one as often as it comes."""
        return len(self.order)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch, on every rank."""
        return -(-self.num_samples // self.global_batch)

    def global_indices(self, epoch: int, step: int) -> np.ndarray:
        """(m,) int64 sample positions of one update over all ranks; m = global_batch but for the last update."""
        return self._keys(epoch, step) % DRAW_STRIDE

    def count(self, step: int) -> int:
        """Samples of one update over all ranks."""
        return self._end(step) - step * self.global_batch

    def _keys(self, epoch: int, step: int) -> np.ndarray:
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch}")
        return self.order.keys(epoch, step * self.global_batch, self._end(step))

    def _end(self, step: int) -> int:
        return min((step + 1) * self.global_batch, self.num_samples)

    def micro_batches(
        self, epoch: int, step: int, rank: int, world_size: int, accumulation: int = 1
    ) -> list[Share]:
        """The ``accumulation`` shares of ``rank`` in one update."""
        return _dealt(self._keys(epoch, step), rank, world_size, accumulation, self.deal)

    def shares(
        self, epoch: int, rank: int, world_size: int, accumulation: int = 1, first_step: int = 0
    ) -> Iterator[Share]:
        """All micro-batches of ``rank`` from ``first_step`` to the end of the epoch, in order."""
        size = self.global_batch
        block = max(1, BLOCK // size)  # a slice costs little more for many samples than for few
        for begin in range(first_step, self.steps_per_epoch, block):
            end = min(begin + block, self.steps_per_epoch)
            keys = self.order.keys(epoch, begin * size, self._end(end - 1))
            for start in range(0, len(keys), size):
                yield from _dealt(keys[start : start + size], rank, world_size, accumulation, self.deal)


@dataclass(frozen=True)
class EvalPlan:
    """Every sample once, in batches that do not depend on the world size."""

    num_samples: int
    batch: int

    def steps(self, world_size: int) -> int:
        """Forward passes of every rank."""
        return -(-self.num_batches // world_size)

    @property
    def num_batches(self) -> int:
        return -(-self.num_samples // self.batch)

    def shares(self, rank: int, world_size: int) -> Iterator[Share]:
        """The batches of ``rank``; the same number on every rank."""
        for step in range(self.steps(world_size)):
            start = (step * world_size + rank) * self.batch
            indices = np.arange(start, min(start + self.batch, self.num_samples), dtype=np.int64)
            if len(indices):
                yield Share(indices, np.ones(len(indices), dtype=bool))
            else:
                yield Share(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool))


def _dealt(keys: np.ndarray, rank: int, world_size: int, accumulation: int, deal: int) -> list[Share]:
    """The shares of ``rank`` in an update of these keys, which are dealt out like cards."""
    holders = np.arange(len(keys)) // deal % (world_size * accumulation)
    return [
        _padded(keys[holders == part], keys) for part in range(rank * accumulation, (rank + 1) * accumulation)
    ]


def _padded(own: np.ndarray, pool: np.ndarray) -> Share:
    missing = max(0, MIN_ROWS - len(own))
    valid = np.concatenate([np.ones(len(own), dtype=bool), np.zeros(missing, dtype=bool)])
    keys = np.concatenate([own, np.resize(pool, missing)])
    return Share(keys % DRAW_STRIDE, valid, keys // DRAW_STRIDE)
