"""The plan's promises, over sample counts, batch sizes, world sizes, accumulation and resume steps."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.plan import MIN_ROWS, EvalPlan, TrainPlan

samples = st.integers(1, 300)
batches = st.integers(1, 70)
worlds = st.integers(1, 16)
accumulations = st.integers(1, 4)


@settings(max_examples=150, deadline=None)
@given(samples, batches, worlds, accumulations, st.integers(0, 2**31), st.integers(0, 50))
def test_an_epoch_visits_each_sample_once_over_all_ranks(n, batch, world, accumulation, seed, epoch):
    plan = TrainPlan(n, batch, seed)
    visited: list[int] = []
    counts = set()
    for rank in range(world):
        shares = list(plan.shares(epoch, rank, world, accumulation))
        counts.add(len(shares))
        for share in shares:
            assert len(share.indices) == len(share.valid) >= MIN_ROWS
            visited += share.indices[share.valid].tolist()
    assert counts == {plan.steps_per_epoch * accumulation}  # no rank waits for another for ever
    assert sorted(visited) == list(range(n))


@settings(max_examples=100, deadline=None)
@given(samples, batches, worlds, accumulations, st.integers(0, 2**31))
def test_the_samples_of_an_update_do_not_depend_on_the_processes(n, batch, world, accumulation, seed):
    plan = TrainPlan(n, batch, seed)
    for step in range(plan.steps_per_epoch):
        together: list[int] = []
        for rank in range(world):
            for share in plan.micro_batches(1, step, rank, world, accumulation):
                together += share.indices[share.valid].tolist()
        assert sorted(together) == sorted(plan.global_indices(1, step).tolist())


@settings(max_examples=60, deadline=None)
@given(samples, batches, worlds, st.integers(0, 100))
def test_resuming_at_a_step_gives_the_rest_of_the_epoch(n, batch, world, step):
    plan = TrainPlan(n, batch, 7)
    step = min(step, plan.steps_per_epoch)
    whole = list(plan.shares(3, world - 1, world))
    rest = list(plan.shares(3, world - 1, world, first_step=step))
    assert len(rest) == len(whole) - step
    for a, b in zip(whole[step:], rest, strict=True):
        assert (a.indices == b.indices).all() and (a.valid == b.valid).all()


def test_micro_batches_of_accumulation_are_those_of_ranks():
    plan = TrainPlan(100, 32, 0)
    ranks = [plan.micro_batches(0, 1, rank, 4)[0].indices.tolist() for rank in range(4)]
    parts = [share.indices.tolist() for share in plan.micro_batches(0, 1, 0, 1, accumulation=4)]
    assert ranks == parts


def test_orders_differ_by_epoch_and_seed_and_are_uniform():
    first = [TrainPlan(1000, 1000, seed).global_indices(epoch, 0) for seed in (0, 1) for epoch in (0, 1)]
    for a in range(4):
        for b in range(a):
            assert (first[a] == first[b]).mean() < 0.02
    # where sample 0 lands over many epochs: every position about equally often (chi-squared, 9 degrees)
    places = [int(np.flatnonzero(TrainPlan(10, 10, 0).global_indices(e, 0) == 0)[0]) for e in range(2000)]
    observed = np.bincount(places, minlength=10)
    assert ((observed - 200) ** 2 / 200).sum() < 33.7  # p = 0.0001


@settings(max_examples=150, deadline=None)
@given(samples, batches, worlds)
def test_evaluation_yields_each_sample_valid_once_in_batches_of_its_own(n, batch, world):
    plan = EvalPlan(n, batch)
    alone = {tuple(s.indices.tolist()) for s in plan.shares(0, 1)}
    seen: list[int] = []
    for rank in range(world):
        shares = list(plan.shares(rank, world))
        assert len(shares) == plan.steps(world)
        for share in shares:
            if share.valid.any():
                assert share.valid.all()
                assert tuple(share.indices.tolist()) in alone  # the very batch that one process would run
            seen += share.indices[share.valid].tolist()
    assert sorted(seen) == list(range(n))
