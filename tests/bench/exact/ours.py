"""poster-toolkit: the plan that the trainer follows."""

from __future__ import annotations

from collections.abc import Iterator

from exact.stack import GLOBAL_BATCH, SEED, Epoch, Ids, Saved, Setup, Stack


def train(setup: Setup, saved: Saved | None) -> Epoch:
    from toolkit.data.sampling.plan import TrainPlan
    from toolkit.data.sampling.shuffle import GlobalOrder

    plan = TrainPlan(GlobalOrder(setup.num_samples, SEED), GLOBAL_BATCH)
    steps = saved.of(setup.rank) if saved else 0

    def rest() -> Iterator[Ids]:
        nonlocal steps
        for micro_batch in plan.rest_of_epoch(0, setup.rank, setup.world, first_step=steps):
            steps += 1
            yield micro_batch.indices[micro_batch.valid].tolist()  # sample ids are positions in the split

    return Epoch(rest(), lambda: steps)


def evaluate(setup: Setup) -> Iterator[Ids]:
    from toolkit.data.sampling.plan import EvalPlan

    for micro_batch in EvalPlan(setup.num_samples, setup.rank_batch).micro_batches(setup.rank, setup.world):
        yield micro_batch.indices[micro_batch.valid].tolist()


STACKS = {"poster-toolkit": Stack(train, evaluate, ("poster-toolkit",))}
