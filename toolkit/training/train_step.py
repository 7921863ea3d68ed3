"""One update: loss and gradient of this rank's micro-batches, step of the optimiser, moving average.

    pixels → augment → normalise → model → loss, summed over genres → gradient of the mean over samples → step

Cached features are not augmented. nonfinite.py checks the loss and the gradient.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_

from shards.errors import UserError
from toolkit.data.loader.loader import Batch, targets_of
from toolkit.device.compat import copy_tensors
from toolkit.device.out_of_memory import explain_out_of_memory
from toolkit.device.transfer import to_device_together
from toolkit.distributed.collectives import require_read, seed_step
from toolkit.distributed.votes import Vote
from toolkit.models.wrapping import plain
from toolkit.training.batch_norm import fixed_batch_norm
from toolkit.training.nonfinite import Guard, check_scale
from toolkit.training.optim import set_lr
from toolkit.training.setup import TrainingSetup


class TrainStep:
    """Makes the updates of a run. An update changes one value of this object, ``overflows``."""

    def __init__(self, setup: TrainingSetup, guard: Guard | None = None, lost: Vote | None = None) -> None:
        """``guard`` checks losses and gradients. Without ``guard``, all updates are made, even if they are not finite.

        ``lost`` is a vote that stops all ranks if one rank cannot read its samples. Without a vote, only this rank
        stops.
        """
        self.accelerator, self.setup = setup.accelerator, setup
        self.plan, self.accumulation = setup.plan, setup.accumulation
        self.guard, self.lost = guard, lost
        weights = setup.train.weights
        self.mean_weight = None if weights is None else float(weights.mean())
        """Mean weight of the training samples. The loss of a sample is multiplied by its weight / this mean. Learning
        rates therefore mean the same with and without weights. None if the shard set has no weights."""
        self.overflows = 0
        """Number of updates in a row that the gradient scaler (fp16) skipped. 0 if it did not skip the last update."""
        # Found in the first update, because walking through all modules in each update takes time.
        self._buffers: KeptBuffers | None = None
        self._weights: list[nn.Parameter] | None = None

    def __call__(
        self, batches: Iterator[Batch], epoch: int, step: int, updates: int, lr: float
    ) -> tuple[torch.Tensor, int]:
        """Make one update. It is update ``updates`` of the run (from 1), and update ``step`` of ``epoch`` (from 0).

        Return (sums, samples). ``sums`` (2,) float32: the sum of the weighted losses (mean over genres) of this rank's
        valid rows, and the number of these rows. A row is valid if its sample could be decoded and it is not padding.
        ``samples``: number of samples of the update over all ranks, or 0 for a skipped update. An update is skipped if
        ``guard.allow`` returns False, or if its gradient overflows in fp16. A skipped update changes no weights,
        buffers, optimiser state or moving average. optim.clip_norm limits the gradient of the loss. This loss is summed
        over genres and averaged over samples.

        Raises UserError if a micro-batch does not fit in memory, or if the gradient scaler finds no usable scale.
        Raises LostData, on every rank, if one rank cannot read its samples. The update then changes nothing.
        """
        fixed = fixed_batch_norm(self.setup.model, self.plan, step, self.accelerator.num_processes, self.accumulation)
        with explain_out_of_memory(self._memory_line), fixed:
            return self._update(batches, epoch, step, updates, lr)

    def _update(
        self, batches: Iterator[Batch], epoch: int, step: int, updates: int, lr: float
    ) -> tuple[torch.Tensor, int]:
        accelerator, setup, config = self.accelerator, self.setup, self.setup.config
        model, optimizer = setup.model, setup.optimizer
        seed_step(config.train.seed, epoch, step, accelerator.process_index, accelerator.device)
        set_lr(optimizer, lr)
        count = self.plan.count(step)
        if self.guard is not None:
            self.guard.begin(epoch, step)
        sums, rows = [], 0
        buffers = self._keep_buffers()
        failure: UserError | None = None
        for part in range(self.accumulation):
            batch, failure = self._next(batches, failure, epoch, step, part)
            last = part == self.accumulation - 1
            if last and self.lost is not None:  # the result is read after the pass, before optimizer.step()
                self.lost.ask(failure is not None)
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                losses, valid = self.losses(model, batch, epoch)
                if self.guard is not None:
                    self.guard.note(losses, batch.micro_batch)
                # DDP averages gradients over ranks, but the mean over the update's samples is needed. ``count``
                # includes samples that could not be decoded, because counting them on all ranks needs a wait.
                accelerator.backward(losses, gradient=valid * (accelerator.num_processes / count))
            sums.append((losses.detach() * valid).sum() / len(setup.manifest.genres))
            rows += int(batch.micro_batch.valid.sum())  # ``valid`` is on the host, so nothing is copied
        if self.lost is not None and self.lost.answer():
            optimizer.zero_grad()
            buffers.restore()
            if self.guard is not None:
                self.guard.withdraw()
            require_read(accelerator, failure)
        if self.guard is not None and not self.guard.allow(self._parameters()):
            optimizer.zero_grad()
            buffers.restore()
            self.overflows = 0
            return torch.zeros(2, device=accelerator.device), 0
        total = torch.full((2,), float(rows), device=accelerator.device)
        total[0] = functools.reduce(torch.add, sums)
        if config.optim.clip_norm:
            self._clip(config.optim.clip_norm)
        self._apply_gradient()
        self.overflows = self.overflows + 1 if optimizer.step_was_skipped else 0
        if self.overflows:
            buffers.restore()
            check_scale(accelerator.scaler, self.overflows, self.guard, epoch, step)
            return total, 0
        if setup.ema is not None:
            setup.ema.update(self.plain_model, step=updates)
        return total, count

    def _keep_buffers(self) -> KeptBuffers:
        if self._buffers is None:
            self._buffers = KeptBuffers(self.plain_model)
        self._buffers.keep()
        return self._buffers

    def _parameters(self) -> list[nn.Parameter]:
        if self._weights is None or self.setup.fsdp:  # FSDP replaces parameters in each pass
            self._weights = list(self.plain_model.parameters())
        return self._weights

    def _apply_gradient(self) -> None:
        """Make the step of the optimiser, or in fp16 skip it, and delete the gradient."""
        optimizer = self.setup.optimizer
        if self.accelerator.scaler is None:
            optimizer.optimizer.step()  # accelerate's own step() searches the disk for a package each time
        else:
            optimizer.step()
        optimizer.optimizer.zero_grad()

    def _clip(self, limit: float) -> None:
        scaler, parameters = self.accelerator.scaler, self._parameters()
        if scaler is not None:  # clip by the norm of the unscaled gradient
            scaler.unscale_(self.setup.optimizer.optimizer)
        if self.guard is not None and self.guard.norm is not None and not self.setup.fsdp:
            clip_grads_with_norm_(parameters, limit, self.guard.norm)  # the guard has computed the norm already
        else:
            clip_grad_norm_(parameters, limit)

    def _next(
        self, batches: Iterator[Batch], failure: UserError | None, epoch: int, step: int, part: int
    ) -> tuple[Batch, UserError | None]:
        """Return the next micro-batch and an error. The error is None if this rank can read its samples.

        Other ranks wait for this rank's gradient. So after an error, return black images, all marked as not valid.
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
        config, processes, accumulation = self.setup.config, self.accelerator.num_processes, self.accumulation
        rows = -(-config.train.batch_size // (processes * accumulation))
        ways = [] if config.train.auto_batch else ["--train.auto_batch true"]
        if rows > 1:
            ways.append(f"--train.accumulation {2 * accumulation}")
        if not config.model.checkpointing:
            ways.append("--model.checkpointing true")
        remedy = f"set {', '.join(ways)} or" if ways else "set"
        return (
            f"a micro-batch of {rows} image(s) of {config.data.image_size} pixels does not fit (global batch "
            f"{config.train.batch_size} = {processes} process(es) x {accumulation} accumulation x up to {rows}): "
            f"{remedy} a smaller --data.image_size; with --resume the run continues from its newest checkpoint"
        )

    @property
    def plain_model(self) -> nn.Module:
        """The model without DDP and compile wrappers, with the same weights."""
        return plain(self.setup.model)

    def losses(self, model: nn.Module, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two (n,) tensors: the float32 loss of each row, summed over genres, and whether the row is valid.

        A loss is multiplied by the weight of its sample, if the shard set has weights.
        """
        device, genres = self.accelerator.device, len(self.setup.manifest.genres)
        rows = targets_of(batch.micro_batch, self.setup.train).numpy()
        if self.mean_weight is not None:
            # The weight is one more column, because mixup and cutmix must mix weights as they mix targets.
            weights = self.setup.train.weights_of(batch.micro_batch.indices) / self.mean_weight
            rows = np.concatenate([rows, weights.astype(np.float32)[:, None]], axis=1)
        targets, valid = to_device_together(device, rows, batch.micro_batch.valid)
        inputs, targets = self.setup.inputs.prepare(batch, targets, epoch)
        with self.accelerator.autocast():
            logits = model(inputs)
        losses: torch.Tensor = self.setup.criterion(logits, targets[:, :genres])
        return losses if self.mean_weight is None else losses * targets[:, genres], valid


class KeptBuffers:
    """Copies of a model's buffers (BatchNorm statistics), to restore them if an update is not made."""

    def __init__(self, model: nn.Module) -> None:
        self.lists: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        """Buffers and their copies, by type, because a GPU copies a list of one type in one operation."""
        for buffer in model.buffers():
            buffers, copies = self.lists.setdefault(buffer.dtype, ([], []))
            buffers.append(buffer)
            copies.append(buffer.clone())

    @torch.no_grad()
    def keep(self) -> None:
        for buffers, copies in self.lists.values():
            copy_tensors(copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        for buffers, copies in self.lists.values():
            copy_tensors(buffers, copies)
