"""Automatic batch size: divide an update into so many micro-batches that each micro-batch fits in memory.

The number of micro-batches per update and process is called accumulation. Before training, every rank tries a forward
and a backward pass of its largest micro-batch, with random images and the run's precision. During this test, all
weights that some epoch trains are unfrozen, and the memory that the run needs later is reserved. If memory runs out,
the rank doubles accumulation and repeats the test. All ranks use the largest result. The global batch stays the same.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from shards.errors import UserError
from toolkit.data.loader.buffers import GROWTH
from toolkit.data.loader.loader import Batch
from toolkit.data.sampling.plan import MicroBatch
from toolkit.data.transforms.batch_transform import train_transforms
from toolkit.models.wrapping import plain
from toolkit.training.optim import state_per_weight
from toolkit.training.setup import TrainingSetup
from toolkit.training.train_step import TrainStep

log = logging.getLogger(__name__)


def fit_accumulation(setup: TrainingSetup) -> int:
    """Return the accumulation (micro-batches per update) at which every rank has enough memory for an update.

    It is at least train.accumulation. Called by every rank. Weights, BatchNorm statistics and random generators do not
    change. Raises UserError, on every rank, if the smallest micro-batch of a rank does not fit.
    """
    accelerator, configured = setup.accelerator, setup.config.train.accumulation
    # _own_accumulation makes no collective calls, because ranks need different numbers of tries.
    wanted = [_own_accumulation(setup, configured)]
    if accelerator.num_processes > 1:
        wanted = gather_object(wanted)
    fitting = [number for number in wanted if number is not None]
    if len(fitting) < len(wanted):
        raise UserError(
            "out-of-memory",
            f"{setup.config.model.name} with {setup.config.data.image_size} pixels does not fit in memory even with "
            f"the smallest micro-batch: lower --data.image_size, set --model.checkpointing true or freeze more modules",
        )
    agreed = max(fitting)
    if accelerator.is_main_process:
        rows = len(_largest(setup, agreed).indices)
        text = "automatic batch size: accumulation %d (%d configured), at most %d samples in a forward pass"
        log.info(text, agreed, configured, rows)
    return agreed


def _largest(setup: TrainingSetup, accumulation: int) -> MicroBatch:
    accelerator, plan = setup.accelerator, setup.plan
    rank, world_size = accelerator.process_index, accelerator.num_processes
    micro_batches = plan.micro_batches(0, plan.largest_step, rank, world_size, accumulation)
    return max(micro_batches, key=lambda micro_batch: len(micro_batch.indices))


def _own_accumulation(setup: TrainingSetup, configured: int) -> int | None:
    """Return ``configured``, doubled until an update fits in memory. None if the smallest micro-batch does not fit."""
    accumulation, rows = configured, len(_largest(setup, configured).indices)
    with _all_unfrozen(setup):
        while True:
            clear_device_cache(garbage_collection=True)
            try:
                _try(replace(setup, accumulation=accumulation))
                return accumulation
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            before, accumulation = rows, 2 * accumulation
            rows = len(_largest(setup, accumulation).indices)
            if rows == before:  # the micro-batch cannot become smaller
                return None


def _try(setup: TrainingSetup) -> None:
    """Run forward and backward passes of this rank's largest micro-batch. Raises torch's error if memory runs out."""
    train_step, accelerator = TrainStep(setup), setup.accelerator
    model, micro_batch, device = train_step.plain_model, _largest(setup, setup.accumulation), accelerator.device
    side = setup.config.data.image_size
    model.zero_grad()
    reserve = torch.empty(_later_bytes(setup, micro_batch), dtype=torch.uint8, device=device)
    for _ in range(2):  # the second pass also needs memory for the gradients of the first pass
        images = torch.randint(0, 256, (len(micro_batch.indices), side, side, 3), dtype=torch.uint8, device=device)
        losses, valid = train_step.losses(model, Batch(images, micro_batch, {}), 0)
        accelerator.backward((losses * valid).sum())
    del reserve


def _later_bytes(setup: TrainingSetup, micro_batch: MicroBatch) -> int:
    """Return the number of bytes that the run allocates later, in addition to the forward and backward passes.

    This memory holds the optimiser's state (if it does not exist yet) and on a GPU the loader's buffers. If weights are
    unfrozen later, it also holds DDP's buckets, which are as large as all weights.
    """
    accelerator = setup.accelerator
    weights = sum(p.numel() for group in setup.optimizer.param_groups for p in group["params"])
    total = 0.0 if setup.optimizer.state else weights * state_per_weight(setup.config.optim)
    if accelerator.num_processes > 1 and any(part.epochs is not None for part in setup.freezing.parts):
        total += 4 * weights
    if accelerator.device.type == "cuda":
        config = setup.config
        transforms = train_transforms(setup.train, config.data, config.train.seed, 0, accelerator.device)
        total += (config.data.prefetch + 1) * GROWTH * transforms(micro_batch).size
    return int(total)


@contextlib.contextmanager
def _all_unfrozen(setup: TrainingSetup) -> Iterator[None]:
    """Unfreeze all weights that some epoch trains. On exit, restore buffers, requires_grad and random generators."""
    model = plain(setup.model)
    kept = [buffer.clone() for buffer in model.buffers()]
    required = [p.requires_grad for p in model.parameters()]
    devices = [setup.accelerator.device] if setup.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        setup.freezing.apply(None)
        setup.freezing.training_mode(model, None)
        try:
            yield
        finally:
            model.zero_grad()
            for parameter, requires_grad in zip(model.parameters(), required, strict=True):
                parameter.requires_grad_(requires_grad)
            for buffer, value in zip(model.buffers(), kept, strict=True):
                buffer.copy_(value)
