"""One update: this rank's micro-batches, their loss and gradient, the optimiser's step, the moving average.

grey levels → augment → normalise → model → loss, summed over genres → gradient of the mean over samples → step
(cached features go straight into the model)              └──── nonfinite.py looks at both ────┘
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from shards.errors import UserError
from toolkit.data.loader.loader import Batch, targets_of
from toolkit.device.out_of_memory import explain_out_of_memory
from toolkit.device.transfer import to_device
from toolkit.distributed.collectives import require_read, seed_step
from toolkit.distributed.votes import Vote
from toolkit.models.wrapping import plain
from toolkit.training.batch_norm import held_over_few_rows
from toolkit.training.nonfinite import Guard, check_scale
from toolkit.training.optim import set_lr
from toolkit.training.setup import TrainingSetup


class TrainStep:
    """Makes updates, each a function of the weights and (epoch, step); but for ``overflows`` nothing is remembered."""

    def __init__(self, setup: TrainingSetup, guard: Guard | None = None, lost: Vote | None = None) -> None:
        """``guard`` looks for losses and gradients that are not finite; without one they are made like any other.

        ``lost`` has all ranks know if one of them cannot read its samples; without it that rank ends alone.
        """
        self.accelerator, self.setup = setup.accelerator, setup
        self.plan, self.accumulation = setup.plan, setup.accumulation
        self.guard, self.lost = guard, lost
        self.overflows = 0
        """Updates that the gradient scaler (fp16) left out, the last ones in a row: 0 after any other."""

    def __call__(
        self, batches: Iterator[Batch], epoch: int, step: int, updates: int, lr: float
    ) -> tuple[torch.Tensor, int]:
        """Update number ``updates`` (from 1), which is ``step`` (from 0) of ``epoch``, at rate ``lr``.

        Returns ((2,) float32 of this rank: the sum over its rows that count of their loss, mean over genres, and how
        many rows those are; samples of the update over all ranks, masked ones included). The second is 0 for an update
        that was not made, because the guard did not allow it or its gradient overflowed in fp16: it leaves weights,
        buffers, optimiser and moving average as they were. The gradient, and with it optim.clip_norm, is of the sum
        over genres and the mean over samples. Raises UserError where the memory does not hold a micro-batch, or where
        every gradient overflows; LostData, on every rank, where one of them cannot read its samples: the update is not
        made, and all is as it was before.
        """
        hold = held_over_few_rows(self.setup.model, self.plan, step, self.accelerator.num_processes, self.accumulation)
        with explain_out_of_memory(self._memory_line), hold:
            return self._update(batches, epoch, step, updates, lr)

    def _update(
        self, batches: Iterator[Batch], epoch: int, step: int, updates: int, lr: float
    ) -> tuple[torch.Tensor, int]:
        accelerator, setup, config = self.accelerator, self.setup, self.setup.config
        model, optimizer = setup.model, setup.optimizer
        seed_step(config.train.seed, epoch, step, accelerator.process_index)
        set_lr(optimizer, lr)
        count = self.plan.count(step)
        if self.guard is not None:
            self.guard.begin(epoch, step)
        total = torch.zeros(2, device=accelerator.device)
        restore = _kept_buffers(self.plain_model)
        failure: UserError | None = None
        for part in range(self.accumulation):
            batch, failure = self._next(batches, failure, epoch, step, part)
            last = part == self.accumulation - 1
            if last and self.lost is not None:  # answered while this rank computes, and looked at before the step
                self.lost.ask(failure is not None)
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                losses, valid = self.losses(model, batch, epoch)
                loss = (losses * valid).sum()
                if self.guard is not None:
                    self.guard.note(losses, batch.micro_batch)
                # DDP averages gradients over ranks; the mean over the update's samples is wanted. Masked ones are among
                # them: how many there are on other ranks is not known here, and asking would cost a wait.
                accelerator.backward(loss * (accelerator.num_processes / count))
            total[0] += loss.detach() / len(setup.manifest.genres)
            total[1] += int(batch.micro_batch.valid.sum())  # known on the host: nothing is copied
        if self.lost is not None and self.lost.answer():
            optimizer.zero_grad()
            restore()
            if self.guard is not None:
                self.guard.withdraw()
            require_read(accelerator, failure)
        if self.guard is not None and not self.guard.allow(self.plain_model):
            optimizer.zero_grad()
            restore()
            self.overflows = 0
            return torch.zeros_like(total), 0
        if config.optim.clip_norm:
            if accelerator.scaler is not None:  # the norm is that of the gradient, not of the scaled one
                accelerator.scaler.unscale_(optimizer.optimizer)
            clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        self.overflows = self.overflows + 1 if optimizer.step_was_skipped else 0
        if self.overflows:
            restore()
            check_scale(accelerator.scaler, self.overflows, self.guard, epoch, step)
            return total, 0
        if setup.ema is not None:
            setup.ema.update(self.plain_model, step=updates)
        return total, count

    def _next(
        self, batches: Iterator[Batch], failure: UserError | None, epoch: int, step: int, part: int
    ) -> tuple[Batch, UserError | None]:
        """The next micro-batch; one that weighs nothing, with the reason, if this rank cannot have its samples.

        The others are in the middle of an update that ends only if this rank takes part in it.
        """
        try:
            if failure is None:
                return next(batches), None
        except UserError as error:
            if self.lost is None:
                raise
            failure = error
        accelerator, side = self.accelerator, self.setup.config.data.image_size
        rank, world = accelerator.process_index, accelerator.num_processes
        micro_batch = self.plan.micro_batches(epoch, step, rank, world, self.accumulation)[part]
        micro_batch.valid[:] = False
        images = torch.zeros((len(micro_batch.indices), side, side, 3), dtype=torch.uint8, device=accelerator.device)
        return Batch(images, micro_batch, {}), failure

    def _memory_line(self) -> str:
        """What did not fit, and the ways out."""
        config, processes, accumulation = self.setup.config, self.accelerator.num_processes, self.accumulation
        rows = -(-config.train.batch_size // (processes * accumulation))
        ways = [] if config.train.auto_batch else ["--train.auto_batch true"]
        if rows > 1:
            ways.append(f"--train.accumulation {2 * accumulation}")
        if not config.model.checkpointing:
            ways.append("--model.checkpointing true")
        said = f"set {', '.join(ways)} or" if ways else "set"
        return (
            f"a micro-batch of {rows} at {config.data.image_size} pixels does not fit (global batch "
            f"{config.train.batch_size} = {processes} process(es) x {accumulation} accumulation x up to {rows}): "
            f"{said} a smaller --data.image_size; with --resume the run continues from its newest checkpoint"
        )

    @property
    def plain_model(self) -> nn.Module:
        """The model without DDP and compile wrappers, sharing their weights."""
        return plain(self.setup.model)

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """((n,) float32 losses of a micro-batch's rows, summed over genres; (n,) bool which of them count)."""
        device = self.accelerator.device
        targets = to_device(targets_of(batch.micro_batch, self.setup.train), device)
        valid = to_device(batch.micro_batch.valid, device)
        inputs, targets = self.setup.inputs.prepare(batch, targets, epoch)
        with self.accelerator.autocast():
            logits = model(inputs)
        losses: torch.Tensor = self.setup.criterion(logits, targets)
        return losses, valid


def _kept_buffers(model: nn.Module) -> Callable[[], None]:
    """Copy a model's buffers (BatchNorm's statistics), all of a type at once; call the result to have them back."""
    buffers: dict[torch.dtype, list[torch.Tensor]] = {}
    for buffer in model.buffers():
        buffers.setdefault(buffer.dtype, []).append(buffer)
    kept = {dtype: torch.cat([buffer.reshape(-1) for buffer in own]) for dtype, own in buffers.items()}

    def restore() -> None:
        for dtype, own in buffers.items():
            setup = kept[dtype].split([buffer.numel() for buffer in own])
            for buffer, before in zip(own, setup, strict=True):
                buffer.copy_(before.view_as(buffer))

    return restore
