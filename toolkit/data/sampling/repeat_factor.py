"""Rare genres more often: repeat factor sampling, made exact.

A sample's repeat factor (Gupta, Dollár, Girshick 2019, "LVIS") is the largest max(1, sqrt(t / f)) of its genres, f
being a genre's prevalence in training and t the prevalence from which on nothing is repeated. LVIS rounds each factor
up or down by a coin of its own, so that epochs differ in length. Here they do not (systematic sampling, Madow 1949, in
whole numbers):

- every epoch has M = N + round(sum of (factor - 1)) positions; what factors exceed 1 by is scaled to add up to M - N;
- a sample with the scaled factor r comes floor(r) or ceil(r) times: each at least once, one with factor 1 exactly once;
- counts are a pure function of (seed, epoch). The start of the sampling moves on by the golden ratio from epoch to
  epoch, so that others make up for what an epoch rounds down: over a run of epochs a sample's mean count is close to r.

Factors lie end to end on a line of length M, in units of 2^-32; pointers one apart pick samples. The line is one table
of 8 bytes per sample for all epochs; any slice of an epoch costs its own length times log N, to find its pointers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from toolkit.data.sampling.shuffle import DRAW_STRIDE, GlobalOrder, Order, WindowOrder, key_of

_ONE = 1 << 32  # one in the fixed-point numbers of the table
_STEP = 0x9E3779B9  # golden ratio of that: the Weyl sequence of lowest discrepancy


def repeat_factors(targets: np.ndarray, below: float, prevalence: np.ndarray | None = None) -> np.ndarray:
    """(N,) float64 repeat factors, at least 1, of samples with ``targets`` (N, G) of 0 and 1; ``below`` is LVIS's t.

    ``prevalence`` (G,): that of the whole split where ``targets`` are a part of it.
    """
    factors = np.ones(len(targets))
    for genre in range(targets.shape[1]):
        member = targets[:, genre] > 0
        if member.any():
            share = member.mean() if prevalence is None else prevalence[genre]
            np.maximum(factors, np.sqrt(below / share), out=factors, where=member)
    return factors


class RepeatOrder:
    """Every epoch is a permutation of samples repeated by their factors: of all, or within groups of shards."""

    def __init__(
        self, factors: np.ndarray, seed: int, shard_sizes: Sequence[int] | None = None, window: int = 1
    ) -> None:
        """factors (N,), each at least 1. With ``shard_sizes`` (sum N) the order is WindowOrder's, else GlobalOrder's.

        A group of shards holds the repeats of its own samples, so it differs in length from epoch to epoch.
        """
        if len(factors) == 0 or not factors.min() >= 1.0:
            raise ValueError("repeat factors must be at least 1")
        excess = np.cumsum(factors - 1.0)
        extra = round(float(excess[-1]))
        if len(factors) + extra >= 1 << 31:
            raise ValueError(f"{len(factors) + extra} positions are more than an epoch can have")
        scaled = np.rint(excess / max(excess[-1], 1e-300) * extra * _ONE).astype(np.int64)
        self._line = np.arange(len(factors) + 1, dtype=np.int64) * _ONE
        self._line[1:] += scaled
        self.seed, self.window = seed, window
        self._bounds = None if shard_sizes is None else np.cumsum([0, *shard_sizes])
        self._shuffle = lru_cache(maxsize=1)(self._order)
        """Of the epoch under way."""

    def __len__(self) -> int:
        return int(self._line[-1] // _ONE)

    def keys(self, epoch: int, start: int, stop: int) -> np.ndarray:
        places = self._shuffle(epoch).keys(epoch, start, stop)
        offset = self._start(epoch)
        samples = np.searchsorted(self._line[1:], (places + 1) * _ONE - offset)
        draws = places - (self._line[samples] + offset) // _ONE
        return samples + draws * DRAW_STRIDE

    def shard_order(self, epoch: int, start: int) -> np.ndarray | None:
        return self._shuffle(epoch).shard_order(epoch, start)

    def counts(self, epoch: int) -> np.ndarray:
        """(N,) int64: how often each sample comes in ``epoch``."""
        return np.diff((self._line + self._start(epoch)) // _ONE)

    def _start(self, epoch: int) -> int:
        return (key_of(self.seed) + epoch * _STEP) % _ONE

    def _order(self, epoch: int) -> Order:
        """Permutes the places of the epoch's table, in which a sample's draws lie side by side."""
        if self._bounds is None:
            return GlobalOrder(len(self), self.seed)
        sizes = np.diff((self._line[self._bounds] + self._start(epoch)) // _ONE)
        return WindowOrder(sizes.tolist(), self.window, self.seed)
