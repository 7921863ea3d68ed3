"""Repeat factor sampling: samples with rare genres are repeated, in epochs of equal length.

The repeat factor of a sample (Gupta, Dollár, Girshick 2019, "LVIS") is sqrt(t / f), but at least 1. Here f is the
prevalence of the sample's rarest genre in the split, and t is data.repeat_below. LVIS rounds each factor at random, so
its epochs differ in length. This module uses systematic sampling (Madow 1949) with integers instead:

- For N samples, an epoch has M = N + round(sum of (factor - 1)) positions. The terms factor - 1 are scaled so that
  their sum is exactly M - N.
- A sample with the scaled factor r is used floor(r) or ceil(r) times per epoch.
- The number of uses depends only on seed and epoch. Its mean over several epochs is close to r.

Each sample has an interval on a line of length M. The interval's length is the scaled factor. M pointers lie on the
line at a distance of 1. A pointer selects the sample in whose interval it lies. In each epoch, all pointers move by the
golden ratio. A table with 8 bytes per sample holds the line, in units of 2^-32. Finding n samples takes O(n log N).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from toolkit.data.sampling.shuffle import DRAW_STRIDE, GlobalOrder, Order, WindowOrder, key_of

_ONE = 1 << 32  # 1 as a fixed-point number of the table
_STEP = 0x9E3779B9  # (golden ratio - 1) * _ONE, the step of the Weyl sequence with the lowest discrepancy


def repeat_factors(targets: np.ndarray, below: float, prevalence: np.ndarray | None = None) -> np.ndarray:
    """Return (N,) float64 repeat factors: sqrt(below / prevalence of the sample's rarest genre), but at least 1.

    targets: (N, G) of 0 and 1. prevalence: (G,) in the whole split. If None, it is computed from ``targets``.
    """
    factors = np.ones(len(targets))
    for genre in range(targets.shape[1]):
        member = targets[:, genre] > 0
        if member.any():
            share = member.mean() if prevalence is None else prevalence[genre]
            np.maximum(factors, np.sqrt(below / share), out=factors, where=member)
    return factors


class RepeatOrder:
    """Order in which some samples occur several times per epoch. The repeats are shuffled among all samples."""

    def __init__(
        self, factors: np.ndarray, seed: int, shard_sizes: Sequence[int] | None = None, window: int = 1
    ) -> None:
        """``factors``: (N,), at least 1. Shuffle like WindowOrder if ``shard_sizes`` is given, else like GlobalOrder.

        WindowOrder shuffles within groups of shards. All uses of a sample are in the same group.
        """
        if len(factors) == 0 or not factors.min() >= 1.0:
            raise ValueError("repeat factors must be at least 1")
        excess = np.cumsum(factors - 1.0)
        extra = round(float(excess[-1]))
        if len(factors) + extra >= 1 << 31:
            raise ValueError(f"an epoch cannot have {len(factors) + extra} positions: the limit is 2147483647")
        scaled = np.rint(excess / max(excess[-1], 1e-300) * extra * _ONE).astype(np.int64)
        self._line = np.arange(len(factors) + 1, dtype=np.int64) * _ONE
        self._line[1:] += scaled
        self.seed, self.window = seed, window
        self._bounds = None if shard_sizes is None else np.cumsum([0, *shard_sizes])
        self._shuffle = lru_cache(maxsize=1)(self._order)

    def __len__(self) -> int:
        return int(self._line[-1] // _ONE)

    def keys(self, epoch: int, start: int, stop: int) -> np.ndarray:
        pointers = self._shuffle(epoch).keys(epoch, start, stop)
        offset = self._start(epoch)
        samples = np.searchsorted(self._line[1:], (pointers + 1) * _ONE - offset)
        draws = pointers - (self._line[samples] + offset) // _ONE
        return samples + draws * DRAW_STRIDE

    def shard_order(self, epoch: int, start: int) -> np.ndarray | None:
        return self._shuffle(epoch).shard_order(epoch, start)

    def counts(self, epoch: int) -> np.ndarray:
        """Return (N,) int64: the number of uses of each sample in ``epoch``."""
        return np.diff((self._line + self._start(epoch)) // _ONE)

    def _start(self, epoch: int) -> int:
        return (key_of(self.seed) + epoch * _STEP) % _ONE

    def _order(self, epoch: int) -> Order:
        """Return the order that shuffles the uses of all samples. The uses are numbered sample by sample."""
        if self._bounds is None:
            return GlobalOrder(len(self), self.seed)
        sizes = np.diff((self._line[self._bounds] + self._start(epoch)) // _ONE)
        return WindowOrder(sizes.tolist(), self.window, self.seed)
