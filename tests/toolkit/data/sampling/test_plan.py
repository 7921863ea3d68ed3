"""The plan's promises, over sample counts, batch sizes, world sizes, accumulation and resume steps."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.sampling.plan import MIN_ROWS, EvalPlan, MicroBatch, Sizes, TrainPlan
from toolkit.data.sampling.shuffle import DRAW_STRIDE, GlobalOrder, WindowOrder

samples = st.integers(1, 300)
batches = st.integers(1, 70)
worlds = st.integers(1, 16)
accumulations = st.integers(1, 4)
kinds = st.sampled_from(["global", "window"])
deals = st.integers(1, 3)
rules = st.sampled_from(["even", "tail"])


def make_plan(n: int, batch: int, seed: int, kind: str = "global", deal: int = 1, sizes: Sizes = "even") -> TrainPlan:
    if kind == "global":
        return TrainPlan(GlobalOrder(n, seed), batch, deal, sizes)
    shards = [min(23, n - start) for start in range(0, n, 23)]
    return TrainPlan(WindowOrder(shards, 3, seed), batch, deal, sizes)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(samples, batches, st.integers(1, 2))
def test_updates_are_of_one_size(n, batch, deal):
    plan = make_plan(n, batch, 0, deal=deal)
    sizes = [plan.count(step) for step in range(plan.steps_per_epoch)]
    assert sum(sizes) == n and len(sizes) == -(-n // batch)
    assert max(sizes) <= batch == plan.global_batch and plan.count(plan.largest_step) == max(sizes)
    assert 2 * min(sizes) >= batch or sizes == [n]
    paired = deal == 2 and batch % 2 == 0
    assert max(sizes[:-1], default=0) - min(sizes[:-1], default=0) <= (2 if paired else 1)
    assert max(sizes) - min(sizes) <= (3 if paired else 1)
    assert not paired or all(size % 2 == 0 for size in sizes[:-1])  # one sample of an epoch stays alone at most


@pytest.mark.parametrize(("n", "batch", "least"), [(3203, 64, 62), (71_976, 256, 255), (65, 64, 32), (5, 64, 5)])
def test_no_epoch_ends_on_what_is_left(n, batch, least):
    plan = make_plan(n, batch, 0)
    assert min(plan.count(step) for step in range(plan.steps_per_epoch)) == least
    # Which was the rule before.
    tail = make_plan(n, batch, 0, sizes="tail")
    assert tail.count(tail.steps_per_epoch - 1) == n % batch and tail.steps_per_epoch == plan.steps_per_epoch


def test_the_rule_of_before_gives_the_orders_of_before():
    """Taken from the version before: runs that it began go on with them."""
    plan = TrainPlan(GlobalOrder(11, 3), 4, 2, "tail")
    updates = [plan.keys(2, step).tolist() for step in range(3)]
    assert updates == [[9, 4, 0, 3], [6, 1, 5, 10], [2, 8, 7]]
    dealt = [[(s.indices.tolist(), s.valid.tolist()) for s in plan.rest_of_epoch(2, rank, 2, 2)] for rank in (0, 1)]
    whole, half, none = [True, True], [True, False], [False, False]
    assert dealt == [
        [([9, 4], whole), ([0, 3], whole), ([6, 1], whole), ([5, 10], whole), ([2, 8], whole), ([7, 2], half)],
        [([9, 4], none), ([9, 4], none), ([6, 1], none), ([6, 1], none), ([2, 8], none), ([2, 8], none)],
    ]
    micro_batches = list(TrainPlan(WindowOrder([400, 5000, 3000], 2, 5), 1000, 1, "tail").rest_of_epoch(7, 1, 3))
    assert [len(micro_batch.indices) for micro_batch in micro_batches] == [333] * 8 + [133]
    digest = hashlib.sha256(
        np.concatenate([micro_batch.indices for micro_batch in micro_batches]).tobytes()
    ).hexdigest()
    assert digest == "bc64541ed62f448d9cef7e2453c93bd4dd1bbf7f3160c2a26b3de7706cbc6830"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(samples, batches, worlds, accumulations, st.integers(0, 2**31), st.integers(0, 50), kinds, deals, rules)
def test_an_epoch_visits_each_sample_once_over_all_ranks(n, batch, world, accumulation, seed, epoch, kind, deal, rule):
    plan = make_plan(n, batch, seed, kind, deal, rule)
    visited: list[int] = []
    counts = set()
    for rank in range(world):
        micro_batches = list(plan.rest_of_epoch(epoch, rank, world, accumulation))
        counts.add(len(micro_batches))
        for micro_batch in micro_batches:
            assert len(micro_batch.indices) == len(micro_batch.valid) >= MIN_ROWS
            visited += micro_batch.indices[micro_batch.valid].tolist()
    assert counts == {plan.steps_per_epoch * accumulation}  # no rank waits for another for ever
    assert sorted(visited) == list(range(n))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(samples, batches, worlds, accumulations, st.integers(0, 2**31), kinds, deals, rules)
def test_the_samples_of_an_update_do_not_depend_on_the_processes(n, batch, world, accumulation, seed, kind, deal, rule):
    plan = make_plan(n, batch, seed, kind, deal, rule)
    for step in range(plan.steps_per_epoch):
        assert len(plan.keys(1, step)) == plan.count(step)
        together: list[int] = []
        for rank in range(world):
            rows = plan.rows(step, world, accumulation)[rank].tolist()
            for micro_batch in plan.micro_batches(1, step, rank, world, accumulation):
                together += micro_batch.indices[micro_batch.valid].tolist()
                assert micro_batch.valid.sum() == rows.pop(0)
        assert sorted(together) == sorted(plan.keys(1, step).tolist())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(samples, batches, worlds, accumulations, st.integers(0, 100), kinds, deals, rules)
def test_resuming_at_a_step_gives_the_rest_of_the_epoch(n, batch, world, accumulation, step, kind, deal, rule):
    plan = make_plan(n, batch, 7, kind, deal, rule)
    step = min(step, plan.steps_per_epoch)
    whole = list(plan.rest_of_epoch(3, world - 1, world, accumulation))
    rest = list(plan.rest_of_epoch(3, world - 1, world, accumulation, first_step=step))
    assert len(rest) == len(whole) - step * accumulation
    for a, b in zip(whole[step * accumulation :], rest, strict=True):
        assert (a.indices == b.indices).all() and (a.valid == b.valid).all()
    for at in range(step, plan.steps_per_epoch):  # which is what each update asks for by itself
        own = plan.micro_batches(3, at, world - 1, world, accumulation)
        assert [s.indices.tolist() for s in own] == [s.indices.tolist() for s in rest[:accumulation]]
        del rest[:accumulation]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(samples, batches, worlds, accumulations, deals, kinds)
def test_what_is_dealt_together_lies_together(n, batch, world, accumulation, deal, kind):
    plan = make_plan(n, batch, 3, kind, deal)
    for step in range(plan.steps_per_epoch):
        update = plan.keys(0, step)
        groups = [update[k : k + deal].tolist() for k in range(0, len(update), deal)]
        found = []
        for rank in range(world):
            for micro_batch in plan.micro_batches(0, step, rank, world, accumulation):
                own = micro_batch.indices[micro_batch.valid]
                assert micro_batch.valid[: len(own)].all()  # padding comes last
                found += [own[k : k + deal].tolist() for k in range(0, len(own), deal)]
        assert sorted(found) == sorted(groups)


def test_a_share_of_few_samples_is_padded_with_rows_that_do_not_count():
    micro_batches = [make_plan(5, 5, 0, deal=2).micro_batches(0, 0, rank, 4)[0] for rank in range(4)]
    assert [micro_batch.valid.tolist() for micro_batch in micro_batches] == [
        [True] * 2,
        [True] * 2,
        [True, False],
        [False] * 2,
    ]


def test_keys_are_samples_and_their_draws():
    micro_batch = MicroBatch(np.array([4, 7]), np.ones(2, dtype=bool))
    assert micro_batch.repeat.tolist() == [0, 0] and micro_batch.keys.tolist() == [4, 7]
    again = replace(micro_batch, indices=np.array([3, 7]), repeat=np.array([0, 2]))
    assert again.keys.tolist() == [3, 7 + 2 * DRAW_STRIDE]
    assert replace(again, indices=np.array([5, 5])).repeat.tolist() == [0, 2]


@pytest.mark.parametrize("n, batch, deal", [(0, 4, 1), (4, 0, 1), (4, 4, 0)])
def test_empty_plans_are_refused(n, batch, deal):
    with pytest.raises(ValueError, match="must be at least 1"):
        TrainPlan(GlobalOrder(n, 0), batch, deal)


def test_micro_batches_of_accumulation_are_those_of_ranks():
    plan = make_plan(100, 32, 0)
    ranks = [plan.micro_batches(0, 1, rank, 4)[0].indices.tolist() for rank in range(4)]
    parts = [micro_batch.indices.tolist() for micro_batch in plan.micro_batches(0, 1, 0, 1, accumulation=4)]
    assert ranks == parts


@settings(max_examples=150, deadline=None, derandomize=True)
@given(samples, batches, worlds)
def test_evaluation_yields_each_sample_valid_once_in_batches_of_its_own(n, batch, world):
    plan = EvalPlan(n, batch)
    alone = {tuple(s.indices.tolist()) for s in plan.micro_batches(0, 1)}
    seen: list[int] = []
    for rank in range(world):
        micro_batches = list(plan.micro_batches(rank, world))
        assert len(micro_batches) == plan.steps(world)
        for micro_batch in micro_batches:
            if micro_batch.valid.any():
                assert micro_batch.valid.all()
                assert tuple(micro_batch.indices.tolist()) in alone  # the very batch that one process would run
            seen += micro_batch.indices[micro_batch.valid].tolist()
    assert sorted(seen) == list(range(n))
