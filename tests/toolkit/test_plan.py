"""The plan's promises, over sample counts, batch sizes, world sizes, accumulation and resume steps."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.order import GlobalOrder, WindowOrder
from toolkit.data.plan import MIN_ROWS, EvalPlan, TrainPlan

samples = st.integers(1, 300)
batches = st.integers(1, 70)
worlds = st.integers(1, 16)
accumulations = st.integers(1, 4)
kinds = st.sampled_from(["global", "window"])


def make_plan(n: int, batch: int, seed: int, kind: str = "global") -> TrainPlan:
    if kind == "global":
        return TrainPlan(GlobalOrder(n, seed), batch)
    shards = [min(23, n - start) for start in range(0, n, 23)]
    return TrainPlan(WindowOrder(shards, 3, seed), batch)


@settings(max_examples=150, deadline=None)
@given(samples, batches, worlds, accumulations, st.integers(0, 2**31), st.integers(0, 50), kinds)
def test_an_epoch_visits_each_sample_once_over_all_ranks(n, batch, world, accumulation, seed, epoch, kind):
    plan = make_plan(n, batch, seed, kind)
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
@given(samples, batches, worlds, accumulations, st.integers(0, 2**31), kinds)
def test_the_samples_of_an_update_do_not_depend_on_the_processes(n, batch, world, accumulation, seed, kind):
    plan = make_plan(n, batch, seed, kind)
    for step in range(plan.steps_per_epoch):
        assert len(plan.global_indices(1, step)) == plan.count(step)
        together: list[int] = []
        for rank in range(world):
            for share in plan.micro_batches(1, step, rank, world, accumulation):
                together += share.indices[share.valid].tolist()
        assert sorted(together) == sorted(plan.global_indices(1, step).tolist())


@settings(max_examples=60, deadline=None)
@given(samples, batches, worlds, st.integers(0, 100), kinds)
def test_resuming_at_a_step_gives_the_rest_of_the_epoch(n, batch, world, step, kind):
    plan = make_plan(n, batch, 7, kind)
    step = min(step, plan.steps_per_epoch)
    whole = list(plan.shares(3, world - 1, world))
    rest = list(plan.shares(3, world - 1, world, first_step=step))
    assert len(rest) == len(whole) - step
    for a, b in zip(whole[step:], rest, strict=True):
        assert (a.indices == b.indices).all() and (a.valid == b.valid).all()


def test_micro_batches_of_accumulation_are_those_of_ranks():
    plan = make_plan(100, 32, 0)
    ranks = [plan.micro_batches(0, 1, rank, 4)[0].indices.tolist() for rank in range(4)]
    parts = [share.indices.tolist() for share in plan.micro_batches(0, 1, 0, 1, accumulation=4)]
    assert ranks == parts


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
