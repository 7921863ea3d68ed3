"""The order of an epoch as a keyed bijection: any slice of it costs its own length, however many samples there are.

No list of samples is shuffled or kept. Position p of an epoch maps to a sample by a Feistel network (Luby, Rackoff
1988) over the smallest square grid that holds all samples (Black, Rogaway 2002, "Ciphers with arbitrary finite
domains": halves added modulo the side), walking on while the result lies outside of 0..n-1. Eight rounds of a 64-bit
mixer; tests/toolkit/data/sampling/test_order.py checks its uniformity.

``global``: one permutation of everything; every read is random. ``window``: shards are permuted, then samples within
groups of a few shards, so that a node reads from only a few files at a time: for sets that do not fit in memory.
docs/results/loader.md has what this costs in shuffle quality. repeat_factor.py does either with repeated samples.

A position holds a key: sample + draw * DRAW_STRIDE, where draw is 0 for a sample's first place in the epoch's table, 1
for its second, ... Where each sample comes once, keys are samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from toolkit.data.sampling.rng import mix64

ROUNDS = 8
_SMALL = 256  # fewer samples are sorted by their hash: on small grids a Feistel network is visibly non-uniform
#: Keys of a sample's draws are this far apart: no split has as many samples.
DRAW_STRIDE = 1 << 40
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Order(Protocol):
    """Which sample stands at which position of which epoch."""

    def __len__(self) -> int:
        """Positions of an epoch, the same in all."""

    def keys(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64 at positions start..stop-1 of the epoch: samples and which of their draws."""

    def shard_order(self, epoch: int, start: int) -> np.ndarray | None:
        """(m,) int64 shards in the order in which the epoch needs them from ``start`` on; None if all are, always."""


class GlobalOrder:
    """Every epoch is a permutation of all samples."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed

    def __len__(self) -> int:
        return self.num_samples

    def keys(self, epoch: int, start: int, stop: int) -> np.ndarray:
        return permute(np.arange(start, stop), self.num_samples, key_of(self.seed, epoch))

    def shard_order(self, epoch: int, start: int) -> None:
        return None


class WindowOrder:
    """Every epoch permutes the shards, then the samples within groups of ``window`` shards. Memory O(shards)."""

    def __init__(self, shard_sizes: Sequence[int], window: int, seed: int) -> None:
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.firsts = np.cumsum(self.sizes) - self.sizes
        self.window, self.seed = window, seed
        self._shards = lru_cache(maxsize=1)(self._layout)
        """Of the epoch under way."""

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def keys(self, epoch: int, start: int, stop: int) -> np.ndarray:
        shards, ends = self._shards(epoch)
        found = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:  # one turn per group that the slice touches
            group = int(np.searchsorted(ends[self.window - 1 :: self.window], position, side="right"))
            lo, hi = group * self.window, min((group + 1) * self.window, len(shards))
            first = int(ends[lo - 1]) if lo else 0
            size, upto = int(ends[hi - 1]) - first, min(stop, int(ends[hi - 1]))
            local = permute(np.arange(position - first, upto - first), size, key_of(self.seed, epoch, group))
            which = np.searchsorted(ends[lo:hi] - first, local, side="right")
            members = shards[lo:hi]
            starts = ends[lo:hi] - first - self.sizes[members]
            found[position - start : upto - start] = self.firsts[members[which]] + local - starts[which]
            position = upto
        return found

    def shard_order(self, epoch: int, start: int) -> np.ndarray:
        """From the group on that holds position ``start``."""
        shards, ends = self._shards(epoch)
        group = int(np.searchsorted(ends[self.window - 1 :: self.window], start, side="right"))
        return shards[group * self.window :]

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(shards in this epoch's order, end of each in the epoch's positions)."""
        count = len(self.sizes)
        shards = permute(np.arange(count), count, key_of(self.seed, epoch, -1))
        return shards, np.cumsum(self.sizes[shards])


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """(n,) int64 images of ``positions`` (each in 0..size-1) under the bijection of 0..size-1 that ``key`` picks."""
    if size <= _SMALL:
        numbers = np.arange(size, dtype=np.uint64) * np.uint64(_GOLDEN)
        return np.argsort(mix64(numbers + np.uint64(key)))[positions]
    side = np.uint64(math.isqrt(size - 1) + 1)
    keys = [mix64(np.uint64((key + _GOLDEN * (r + 1)) & _MASK)) for r in range(ROUNDS)]
    values = _feistel(positions.astype(np.uint64), side, keys)
    while (outside := values >= size).any():  # cycle walking: the orbit of a point comes back into the domain
        values[outside] = _feistel(values[outside], side, keys)
    return values.astype(np.int64)


def key_of(*numbers: int) -> int:
    """64-bit key from (seed, epoch, ...)."""
    key = np.uint64(0)
    for number in numbers:
        key = mix64(key ^ mix64(np.uint64((number + _GOLDEN) & _MASK)))
    return int(key)


def _feistel(values: np.ndarray, side: np.uint64, keys: Sequence[np.ndarray | np.uint64]) -> np.ndarray:
    left, right = values // side, values % side
    for key in keys:
        left, right = right, (left + mix64(right ^ key) % side) % side
    return left * side + right
