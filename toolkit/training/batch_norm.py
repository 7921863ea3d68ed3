"""BatchNorm over few rows: when its statistics are held, and what a run says of it at its start.

In training a BatchNorm normalises by the mean and deviation over the rows of a forward pass (a process's micro-batch;
of a SyncBatchNorm all processes' together), and moves its running statistics toward them. Over a few rows both are
mostly noise (tests/bench/last_update.py measures what that does to a settled network). So where a micro-batch of an
update has under LEAST_ROWS rows, that update normalises by the running statistics and leaves them as they are, as parts
do that model.freeze holds. Which updates do is the plan's arithmetic: all ranks hold the same ones, and a resumed run
does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from torch import nn

from shards.errors import UserError
from toolkit.data.sampling.plan import TrainPlan
from toolkit.device.compat import BatchNorm

#: Statistics over fewer rows are held.
LEAST_ROWS = 8
#: Statistics over fewer rows are warned of. On ImageNet a ResNet50's error is 23.6% with 32 images a GPU, 24.8 with 8
#: and 34.7 with 2 (Wu, He 2018, "Group normalization", table 2).
FEW_ROWS = 32


@contextlib.contextmanager
def held_over_few_rows(
    model: nn.Module, plan: TrainPlan, step: int, world_size: int, accumulation: int
) -> Iterator[None]:
    """Within it, statistics of ``model`` are held if a micro-batch of update ``step`` has too few rows for them.

    ``model`` is in training mode and may be wrapped.
    """
    held = []
    if plan.sizes == "even":  # a run of before goes on as it began
        rows = plan.rows(step, world_size, accumulation)
        if rows.min() < LEAST_ROWS:
            held = [module for module in _learning(model) if _least(rows, module) < LEAST_ROWS]
    for module in held:
        module.training = False  # not eval(), which would reach modules within: timm puts activation and dropout there
    try:
        yield
    finally:
        for module in held:
            module.training = True


def check_rows(model: nn.Module, plan: TrainPlan, world_size: int, accumulation: int, *, trained: bool) -> str | None:
    """One line for the log if BatchNorm of ``model`` (in training mode) would have few rows to learn from; else None.

    ``trained``: its weights, and so its statistics, were learnt before. Raises UserError where random ones would be
    held in every update: nothing would be normalised.
    """
    learning = _learning(model)
    if not learning:
        return None
    counts = [plan.count(step) for step in range(plan.steps_per_epoch)]
    # Updates of one size are dealt alike.
    rows = {count: plan.rows(counts.index(count), world_size, accumulation) for count in set(counts)}
    least = {count: min(_least(part, module) for module in learning) for count, part in rows.items()}
    short = sum(least[count] < LEAST_ROWS for count in counts) if plan.sizes == "even" else 0
    most = max(int(part.max()) for part in rows.values())
    ways = ["raise --train.batch_size"]
    if accumulation > 1:
        ways.append("lower --train.accumulation")
    if world_size > 1:
        ways += ["take fewer processes", "set --train.sync_batchnorm true"]
    remedy = f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[0]
    if short == plan.steps_per_epoch:
        if not trained:
            raise UserError(
                "option-value",
                f"BatchNorm cannot learn its statistics from micro-batches of {min(least.values())} rows (it wants "
                f"{LEAST_ROWS}), and random weights bring none: {remedy}, or start from trained weights with "
                f"--model.weights FILE",
            )
        return (
            f"micro-batches have {min(least.values())} rows, under {LEAST_ROWS}: BatchNorm keeps the statistics that "
            f"came with the weights; to have it learn, {remedy}"
        )
    unsynced = any(not isinstance(module, nn.SyncBatchNorm) for module in learning)
    asked = -(-min(plan.global_batch, plan.num_samples) // (world_size * accumulation))
    if not short and (asked >= FEW_ROWS or not unsynced):  # a row less by even sizes is no news
        return None
    held = f", and keeps them in {short} of {plan.steps_per_epoch} updates an epoch, where it has under {LEAST_ROWS}"
    return (
        f"BatchNorm learns its statistics from up to {most} rows a process{held * bool(short)}: under {FEW_ROWS} they "
        f"are noisy; {remedy}"
    )


def _learning(model: nn.Module) -> list[nn.Module]:
    """BatchNorms of ``model`` that would learn running statistics in a forward pass."""
    return [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.training and module.running_mean is not None
    ]


def _least(rows: np.ndarray, module: nn.Module) -> int:
    """Rows from which ``module`` takes its statistics, in the smallest pass of (world_size, accumulation) ``rows``."""
    return int((rows.sum(axis=0) if isinstance(module, nn.SyncBatchNorm) else rows).min())
