"""BatchNorm over few rows: which updates keep its statistics fixed, and the warning at the start of a run.

In training, a BatchNorm normalises by mean and deviation over the rows of a forward pass, and moves its running
statistics toward them. The rows are those of a process's micro-batch; for SyncBatchNorm those of all processes. Over a
few rows both values are mostly noise (tests/bench/last_update.py measures the effect on a trained network). So if a
micro-batch of an update has fewer than LEAST_ROWS rows, that update normalises by the running statistics and does not
change them, like parts in model.freeze. The plan decides which updates these are: they are the same on all ranks and
after a resume.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from torch import nn

from shards.errors import UserError
from toolkit.data.sampling.plan import TrainPlan
from toolkit.device.compat import BatchNorm

#: Statistics over fewer rows stay fixed.
LEAST_ROWS = 8
#: Statistics over fewer rows cause a warning. On ImageNet a ResNet50's error is 23.6% with 32 images per GPU, 24.8%
#: with 8 and 34.7% with 2 (Wu, He 2018, "Group normalization", table 2).
FEW_ROWS = 32


@contextlib.contextmanager
def held_over_few_rows(
    model: nn.Module, plan: TrainPlan, step: int, world_size: int, accumulation: int
) -> Iterator[None]:
    """Keep BatchNorm statistics of ``model`` fixed in this context if a micro-batch of update ``step`` has few rows.

    ``model`` is in training mode and may be wrapped.
    """
    held = []
    if plan.sizes == "even":  # runs of earlier versions ("tail") continue unchanged
        rows = plan.rows(step, world_size, accumulation)
        if rows.min() < LEAST_ROWS:
            held = [module for module in _learning(model) if _least(rows, module) < LEAST_ROWS]
    for module in held:
        module.training = False  # eval() would also change inner modules, where timm has activation and dropout
    try:
        yield
    finally:
        for module in held:
            module.training = True


def check_rows(model: nn.Module, plan: TrainPlan, world_size: int, accumulation: int, *, trained: bool) -> str | None:
    """Return a log line if BatchNorm of ``model`` (in training mode) computes statistics over few rows; else None.

    ``trained``: the weights, and so the statistics, are already trained. Raises UserError if initial statistics would
    stay fixed in every update, because nothing would be normalised.
    """
    learning = _learning(model)
    if not learning:
        return None
    counts = [plan.count(step) for step in range(plan.steps_per_epoch)]
    # Updates of the same size are divided in the same way.
    rows = {count: plan.rows(counts.index(count), world_size, accumulation) for count in set(counts)}
    least = {count: min(_least(part, module) for module in learning) for count, part in rows.items()}
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
                f"{LEAST_ROWS}), and random weights have none: {remedy}, or start from trained weights with "
                f"--model.weights FILE",
            )
        return (
            f"micro-batches have {min(least.values())} rows, fewer than {LEAST_ROWS}: BatchNorm keeps the "
            f"statistics of the loaded weights; to update them, {remedy}"
        )
    unsynced = any(not isinstance(module, nn.SyncBatchNorm) for module in learning)
    asked = -(-min(plan.global_batch, plan.num_samples) // (world_size * accumulation))
    if not short and (asked >= FEW_ROWS or not unsynced):  # one row fewer from even sizes needs no warning
        return None
    held = f", and keeps them in {short} of {plan.steps_per_epoch} updates an epoch, which have fewer than {LEAST_ROWS}"
    return (
        f"BatchNorm computes its statistics over up to {most} rows per process{held * bool(short)}: under {FEW_ROWS} "
        f"rows they are noisy; {remedy}"
    )


def _learning(model: nn.Module) -> list[nn.Module]:
    """Return the BatchNorms of ``model`` that update running statistics in a forward pass."""
    return [
        module
        for module in model.modules()
        if isinstance(module, BatchNorm) and module.training and module.running_mean is not None
    ]


def _least(rows: np.ndarray, module: nn.Module) -> int:
    """Return how many rows ``module`` uses in its smallest pass, from ``rows`` (world_size, accumulation)."""
    return int((rows.sum(axis=0) if isinstance(module, nn.SyncBatchNorm) else rows).min())
