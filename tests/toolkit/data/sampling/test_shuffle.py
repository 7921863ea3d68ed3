"""The keyed bijections: exact, uniform, the same in any slices, and as quick for a billion samples as for any."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from toolkit.data.sampling.shuffle import GlobalOrder, Order, WindowOrder, key_of, permute

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda s: sum(s) > 0)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(1, 14), st.integers(0, 2**40), st.integers(0, 9), st.data())
def test_any_slices_make_up_the_same_epoch(shards, window, seed, epoch, data):
    n = sum(shards)
    for order in (GlobalOrder(n, seed), WindowOrder(shards, window, seed)):
        whole = order.keys(epoch, 0, n)
        assert len(order) == n and sorted(whole) == list(range(n))
        cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
        parts = [order.keys(epoch, a, b) for a, b in itertools.pairwise([0, *cuts, n])]
        assert np.array_equal(np.concatenate(parts), whole)


def test_a_slice_of_a_billion_samples_needs_only_itself():
    order = GlobalOrder(10**9, 1)
    order.keys(0, 0, 10)
    tracemalloc.start()
    found = order.keys(5, 10**9 - 300, 10**9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(found.tolist())) == 300 and found.min() >= 0 and found.max() < 10**9
    assert peak < 200_000  # bytes


def test_all_orders_of_four_samples_are_equally_likely():
    counts = Counter(tuple(GlobalOrder(4, seed).keys(0, 0, 4)) for seed in range(12_000))
    assert len(counts) == 24
    assert chisquare(list(counts.values())).pvalue > 1e-4


@pytest.mark.parametrize("n", [5, 64, 257, 300])
def test_every_sample_lands_everywhere_beside_every_other_equally_often(n: int):
    places, pairs = np.zeros((n, n)), np.zeros((n, n))
    order = GlobalOrder(n, 7)
    for epoch in range(3000):
        found = order.keys(epoch, 0, n)
        places[np.arange(n), found] += 1
        np.add.at(pairs, (found[:-1], found[1:]), 1)
    assert chisquare(places.ravel()).pvalue > 1e-4
    assert chisquare(pairs[~np.eye(n, dtype=bool)]).pvalue > 1e-4


def test_too_few_rounds_would_fail_these_tests(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.data.sampling.shuffle.ROUNDS", 2)
    n, pairs = 300, np.zeros((300, 300))
    for epoch in range(3000):
        found = GlobalOrder(n, 7).keys(epoch, 0, n)
        np.add.at(pairs, (found[:-1], found[1:]), 1)
    assert chisquare(pairs[~np.eye(n, dtype=bool)]).pvalue < 1e-6


def test_neighbouring_seeds_and_epochs_are_unrelated():
    n = 1000
    orders = [GlobalOrder(n, seed).keys(epoch, 0, n) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    for a, b in itertools.combinations(orders, 2):
        assert (a == b).sum() < 10  # one is expected
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.13
    assert key_of(1, 2) != key_of(2, 1) and key_of(0) != key_of(0, 0)


def test_a_window_reads_from_few_shards_and_still_mixes():
    shards, window = [50] * 20, 4
    order = WindowOrder(shards, window, 3)
    groups = []
    for start in range(0, 1000, 200):
        part = order.keys(1, start, start + 200)
        touched = set((part // 50).tolist())
        assert len(touched) == window
        groups.append(touched)
        assert np.corrcoef(np.arange(200), part)[0, 1] < 0.99  # not one shard after the other
        first_half = Counter((part[:100] // 50).tolist())
        assert len(first_half) == window and max(first_half.values()) < 40
    assert set.union(*groups) == set(range(20))
    assert groups != [set((order.keys(2, s, s + 200) // 50).tolist()) for s in range(0, 1000, 200)]


def test_a_window_over_all_shards_is_uniform():
    n, shards = 12, [3, 4, 5]
    places = np.zeros((n, n))
    order: Order = WindowOrder(shards, 3, 0)
    for epoch in range(4000):
        places[np.arange(n), order.keys(epoch, 0, n)] += 1
    assert chisquare(places.ravel()).pvalue > 1e-4
