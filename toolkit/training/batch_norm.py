"""BatchNorm with few rows: keep statistics fixed in small updates, and warn at the start of a run.

In training, BatchNorm normalises by the mean and the deviation of the rows (samples) of a forward pass. BatchNorm also
moves its running statistics towards these two values. BatchNorm uses only the rows of its own process. SyncBatchNorm
uses the rows of all processes. The mean and deviation of a few rows are mostly noise (tests/bench/last_update.py
measures the effect on a trained network). So in an update with a micro-batch of fewer than LEAST_ROWS rows, BatchNorm
normalises by its running statistics and does not change them. Frozen BatchNorm modules always do this. The sizes of all
micro-batches are known in advance (plan.py), so the decision is the same on all ranks and after a resume.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from torch import nn

from shards.errors import UserError
from toolkit.data.sampling.plan import TrainPlan
from toolkit.device.compat import BatchNorm

#: With fewer rows, BatchNorm normalises by its running statistics and does not change them.
LEAST_ROWS = 8
#: With fewer rows, a warning is logged. On ImageNet a ResNet50's error is 23.6% with 32 images per GPU, 24.8% with 8
#: and 34.7% with 2 (Wu, He 2018, "Group normalization", table 2).
FEW_ROWS = 32


@contextlib.contextmanager
def fixed_batch_norm(model: nn.Module, plan: TrainPlan, step: int, world: int, accumulation: int) -> Iterator[None]:
    """Keep BatchNorm statistics of ``model`` fixed in this context if update ``step`` has a micro-batch with few rows.

    Few rows are fewer than LEAST_ROWS. ``model`` is in training mode and may be wrapped.
    """
    fixed = []
    if plan.sizes == "even":  # "tail" is for runs of earlier versions, which never fixed statistics
        rows = plan.rows(step, world, accumulation)
        if rows.min() < LEAST_ROWS:
            fixed = [module for module in _updating(model) if _least(rows, module) < LEAST_ROWS]
    for module in fixed:
        module.training = False  # not eval(), which also changes the activation and dropout inside timm's modules
    try:
        yield
    finally:
        for module in fixed:
            module.training = True


def check_rows(model: nn.Module, plan: TrainPlan, world_size: int, accumulation: int, *, trained: bool) -> str | None:
    """Return a warning if BatchNorm of ``model`` computes statistics from fewer than FEW_ROWS rows. Else return None.

    ``model`` is in training mode. ``trained``: whether weights and statistics are already trained. Raises UserError if
    untrained statistics stay fixed in every update, because BatchNorm then normalises nothing.
    """
    norms = _updating(model)
    if not norms:
        return None
    counts = [plan.count(step) for step in range(plan.steps_per_epoch)]
    # One update of each size is enough, because updates of one size have the same micro-batches.
    rows = {count: plan.rows(counts.index(count), world_size, accumulation) for count in set(counts)}
    least = {count: min(_least(part, module) for module in norms) for count, part in rows.items()}
    short = sum(least[count] < LEAST_ROWS for count in counts) if plan.sizes == "even" else 0
    most = max(int(part.max()) for part in rows.values())
    ways = ["raise --train.batch_size"]
    if accumulation > 1:
        ways.append("lower --train.accumulation")
    if world_size > 1:
        ways += ["use fewer processes", "set --train.sync_batchnorm true"]
    remedy = f"{', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else ways[0]
    if short == plan.steps_per_epoch:
        if not trained:
            raise UserError(
                "option-value",
                f"BatchNorm cannot compute its statistics from micro-batches of {min(least.values())} rows (it needs "
                f"{LEAST_ROWS}), and random weights have no statistics yet: {remedy}, or start from trained "
                f"weights with --model.weights FILE",
            )
        return (
            f"micro-batches have {min(least.values())} rows, fewer than {LEAST_ROWS}: BatchNorm keeps the "
            f"statistics of the loaded weights; to update them, {remedy}"
        )
    unsynced = any(not isinstance(module, nn.SyncBatchNorm) for module in norms)
    asked = -(-min(plan.global_batch, plan.num_samples) // (world_size * accumulation))
    if not short and (asked >= FEW_ROWS or not unsynced):  # ``asked`` is rounded up, so one row fewer causes no warning
        return None
    fixed = f", and keeps them fixed in {short} of {plan.steps_per_epoch} updates per epoch (under {LEAST_ROWS} rows)"
    return (
        f"BatchNorm computes its statistics over up to {most} rows per process{fixed * bool(short)}: statistics "
        f"of fewer than {FEW_ROWS} rows are noisy; {remedy}"
    )


def _updating(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorm modules of ``model`` that update running statistics in a forward pass."""
    return [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.training and module.running_mean is not None
    ]


def _least(rows: np.ndarray, module: nn.Module) -> int:
    """Return the least number of rows that ``module`` uses. ``rows``: micro-batch sizes (world_size, accumulation)."""
    return int((rows.sum(axis=0) if isinstance(module, nn.SyncBatchNorm) else rows).min())
