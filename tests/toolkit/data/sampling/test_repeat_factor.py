"""Repeat factors are LVIS's; epochs repeat samples exactly by them, in any slices, over all or within windows."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from toolkit.data.sampling.plan import TrainPlan
from toolkit.data.sampling.repeat_factor import RepeatOrder, repeat_factors
from toolkit.data.sampling.shuffle import DRAW_STRIDE, GlobalOrder, WindowOrder

factor_lists = st.lists(st.one_of(st.just(1.0), st.floats(1.0, 9.0)), min_size=1, max_size=120)


def shards_of(n: int, size: int = 17) -> list[int]:
    return [min(size, n - start) for start in range(0, n, size)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.floats(0.001, 1.0), st.integers(0, 99), st.floats(0.01, 0.9))
def test_factors_are_the_papers(n, genres, below, seed, density):
    targets = (np.random.default_rng(seed).random((n, genres)) < density).astype(np.uint8)
    prevalence = targets.mean(axis=0)
    expected = [
        max([1.0, *(max(1.0, (below / prevalence[g]) ** 0.5) for g in range(genres) if row[g])]) for row in targets
    ]
    np.testing.assert_allclose(repeat_factors(targets, below), expected, rtol=1e-12)


def test_a_rare_genre_is_repeated_and_common_ones_are_not():
    targets = np.zeros((1000, 3), dtype=np.uint8)
    targets[:10, 0] = targets[:500, 1] = 1  # prevalences 0.01, 0.5 and none
    factors = repeat_factors(targets, 0.1)
    np.testing.assert_allclose(factors[:10], 10**0.5)
    assert (factors[10:] == 1).all()


@settings(max_examples=150, deadline=None)
@given(factor_lists, st.integers(0, 2**40), st.integers(0, 60), st.booleans(), st.integers(1, 4))
def test_epochs_are_exact(factors, seed, epoch, by_window, window):
    r = np.array(factors)
    n = len(r)
    order = RepeatOrder(r, seed, shards_of(n) if by_window else None, window)
    m = n + round(float(np.cumsum(r - 1)[-1]))
    assert len(order) == m
    keys = order.keys(epoch, 0, m)
    assert len(set(keys.tolist())) == m  # each draw once
    samples, draws = keys % DRAW_STRIDE, keys // DRAW_STRIDE
    counts = np.bincount(samples, minlength=n)
    assert np.array_equal(counts, order.counts(epoch)) and counts.sum() == m
    for sample in range(n):
        assert sorted(draws[samples == sample]) == list(range(counts[sample]))
    scale = (m - n) / (r - 1).sum() if r.max() > 1 else 0.0
    scaled = 1 + (r - 1) * scale
    assert (counts >= 1).all() and (counts[r == 1] == 1).all()
    assert (counts >= np.floor(scaled - 1e-6)).all() and (counts <= np.ceil(scaled + 1e-6)).all()


@settings(max_examples=80, deadline=None)
@given(factor_lists, st.booleans(), st.integers(0, 9), st.data())
def test_any_slices_make_up_the_same_epoch(factors, by_window, epoch, data):
    order = RepeatOrder(np.array(factors), 5, shards_of(len(factors)) if by_window else None, 2)
    m = len(order)
    whole = order.keys(epoch, 0, m)
    cuts = sorted(data.draw(st.lists(st.integers(0, m), max_size=4)))
    parts = [order.keys(epoch, a, b) for a, b in itertools.pairwise([0, *cuts, m])]
    assert np.array_equal(np.concatenate(parts), whole)


@settings(max_examples=40, deadline=None)
@given(factor_lists, st.integers(0, 2**40))
def test_mean_counts_over_epochs_are_the_factors(factors, seed):
    order = RepeatOrder(np.array(factors), seed)
    scaled = np.diff(order._line) / 2**32
    total = sum(order.counts(epoch) for epoch in range(40))
    # a share of pointers on an interval, by the golden ratio: within about log(40), not sqrt(40), of what is due
    assert np.abs(total - 40 * scaled).max() < 4.0


def test_without_factors_above_one_it_is_the_plain_order():
    ones, sizes = np.ones(500), [200, 200, 100]
    plain = GlobalOrder(500, 3).keys(2, 0, 500), WindowOrder(sizes, 2, 3).keys(2, 0, 500)
    assert np.array_equal(RepeatOrder(ones, 3).keys(2, 0, 500), plain[0])
    assert np.array_equal(RepeatOrder(ones, 3, sizes, 2).keys(2, 0, 500), plain[1])


def test_epochs_differ_in_order_and_in_who_is_rounded_up():
    order = RepeatOrder(1 + np.random.default_rng(0).random(300), 0)
    m = len(order)
    assert not np.array_equal(order.counts(0), order.counts(1))
    assert not np.array_equal(order.keys(0, 0, m), order.keys(1, 0, m))


def test_who_is_rounded_up_is_chance():
    """Over seeds every sample is rounded up equally often, and its draws land everywhere equally often."""
    ups, places = np.zeros(20), np.zeros(30)
    for seed in range(3000):
        order = RepeatOrder(np.full(20, 1.5), seed)
        ups += order.counts(0) == 2
        places += order.keys(0, 0, 30) % DRAW_STRIDE == 7
    assert ups.sum() == 30_000 and places.sum() == pytest.approx(4500, rel=0.05)
    # neighbours on the line share a start, so the counts are not independent: a chi-squared bound with much room
    assert np.abs(ups / 3000 - 0.5).max() < 0.04
    assert chisquare(places).pvalue > 1e-4


def test_repeats_stay_in_their_group_of_shards():
    factors = np.where(np.arange(400) % 10 == 0, 3.3, 1.0)
    order = RepeatOrder(factors, 1, [40] * 10, 2)
    for epoch in (0, 1):
        shards = order.keys(epoch, 0, len(order)) % DRAW_STRIDE // 40
        counts = np.bincount(np.arange(400) // 40, weights=order.counts(epoch)).astype(int)
        start = 0
        seen: set[int] = set()
        while start < len(shards):
            here = set(shards[start : start + 20].tolist())
            assert len(here) == 2 and not here & seen  # 20 of some 98 samples meet both shards
            size = sum(counts[shard] for shard in here)
            assert set(shards[start : start + size].tolist()) == here
            seen |= here
            start += size
        assert seen == set(range(10))


@settings(max_examples=60, deadline=None)
@given(factor_lists, st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.integers(0, 5), st.booleans())
def test_a_plan_of_repeats_resumes_at_another_world_size(factors, batch, world, accumulation, step, window):
    n = len(factors)
    order = RepeatOrder(np.array(factors), 9, shards_of(n) if window else None, 2)
    plan = TrainPlan(order, batch, group_size=2)
    step %= plan.steps_per_epoch
    rest = order.keys(4, plan.start(step), len(order))
    seen: list[int] = []
    for rank in range(world):
        for micro_batch in plan.rest_of_epoch(4, rank, world, accumulation, first_step=step):
            seen += micro_batch.keys[micro_batch.valid].tolist()
    assert sorted(seen) == sorted(rest.tolist())


def test_a_slice_of_many_samples_costs_only_itself():
    order = RepeatOrder(1 + np.random.default_rng(0).random(1_000_000), 1)
    order.keys(0, 0, 10)
    tracemalloc.start()
    found = order.keys(5, len(order) - 300, len(order))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(found.tolist())) == 300
    assert peak < 200_000  # bytes


@pytest.mark.parametrize("factors", [[], [1.0, 0.5], [1.0, float("nan")]])
def test_broken_factors_are_refused(factors: list[float]):
    with pytest.raises(ValueError, match="at least 1"):
        RepeatOrder(np.array(factors), 0)
