"""The order of samples in an epoch, computed by a pseudorandom bijection. No list of samples is shuffled or stored.

A Feistel network (Luby, Rackoff 1988) maps each position in the order to one of n samples. Its domain is the smallest
square grid with at least n cells (Black, Rogaway 2002, "Ciphers with arbitrary finite domains"). The network is applied
again while the result is outside of 0..n-1. It has eight rounds of a 64-bit mixer.
tests/toolkit/data/sampling/test_shuffle.py checks the uniformity of the order.

Order ``global`` is one permutation of all samples, so samples are read from all shards at any time. Order ``window``
permutes the shards, then the samples within groups of a few shards. A node then reads only a few files at a time, which
suits sets that do not fit in memory (docs/results/loader.md). repeat_factor.py adds repeats to both orders.

Each use of a sample in an epoch has the key sample + draw * DRAW_STRIDE. ``draw`` is 0 at the first use in the epoch, 1
at the second, and so on. Without repeats, the key is the number of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from toolkit.data.sampling.rng import mix64

ROUNDS = 8
_SMALL = 256  # up to this size samples are sorted by hash, because a Feistel network is not uniform on a small grid
#: Difference between the keys of two successive uses of a sample. It is larger than the number of samples of any split.
DRAW_STRIDE = 1 << 40
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Order(Protocol):
    """The sample at each position of each epoch."""

    def __len__(self) -> int:
        """Number of positions of an epoch, equal in all epochs."""

    def keys(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Return the (stop - start,) int64 keys of samples start..stop-1 in the order of the epoch."""

    def shard_order(self, epoch: int, start: int) -> np.ndarray | None:
        """Return the (m,) shards to read after the first ``start`` samples of the epoch. None for order global."""


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
    """Every epoch permutes the shards, then the samples within groups of ``window`` shards. Memory is O(shards)."""

    def __init__(self, shard_sizes: Sequence[int], window: int, seed: int) -> None:
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.firsts = np.cumsum(self.sizes) - self.sizes
        self.window, self.seed = window, seed
        self._shards = lru_cache(maxsize=1)(self._layout)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def keys(self, epoch: int, start: int, stop: int) -> np.ndarray:
        shards, ends = self._shards(epoch)
        found = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:  # one iteration per group of shards
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
        """Return, in order, the shards of all groups that are not finished after ``start`` samples of the epoch."""
        shards, ends = self._shards(epoch)
        group = int(np.searchsorted(ends[self.window - 1 :: self.window], start, side="right"))
        return shards[group * self.window :]

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards in the order of this epoch, and the cumulative sum of their sizes."""
        count = len(self.sizes)
        shards = permute(np.arange(count), count, key_of(self.seed, epoch, -1))
        return shards, np.cumsum(self.sizes[shards])


class StoredOrder:
    """Every epoch has the samples in the order of the shards, for evaluation."""

    def __init__(self, shard_sizes: Sequence[int]) -> None:
        self.ends = np.cumsum(np.asarray(shard_sizes, dtype=np.int64))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def keys(self, epoch: int, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop, dtype=np.int64)

    def shard_order(self, epoch: int, start: int) -> np.ndarray:
        return np.arange(np.searchsorted(self.ends, start, side="right"), len(self.ends))


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """Map (n,) positions to (n,) int64 samples by a bijection of 0..size-1. The ``key`` selects the bijection."""
    if size <= _SMALL:
        numbers = np.arange(size, dtype=np.uint64) * np.uint64(_GOLDEN)
        return np.argsort(mix64(numbers + np.uint64(key)))[positions]
    side = np.uint64(math.isqrt(size - 1) + 1)
    keys = [mix64(np.uint64((key + _GOLDEN * (r + 1)) & _MASK)) for r in range(ROUNDS)]
    values = _feistel(positions.astype(np.uint64), side, keys)
    while (outside := values >= size).any():  # cycle walking: repeated steps come back to 0..size-1
        values[outside] = _feistel(values[outside], side, keys)
    return values.astype(np.int64)


def key_of(*numbers: int) -> int:
    """Hash seed, epoch and further numbers to one 64-bit key."""
    key = np.uint64(0)
    for number in numbers:
        key = mix64(key ^ mix64(np.uint64((number + _GOLDEN) & _MASK)))
    return int(key)


def _feistel(values: np.ndarray, side: np.uint64, keys: Sequence[np.ndarray | np.uint64]) -> np.ndarray:
    left, right = values // side, values % side
    for key in keys:
        left, right = right, (left + mix64(right ^ key) % side) % side
    return left * side + right
