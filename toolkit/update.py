"""One update: this rank's micro-batches, their loss and gradient, the optimiser's step, the moving average.

grey levels → augment → normalise → model → loss, summed over genres → gradient of the mean over samples → step
(cached features go straight into the model)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import nn

from toolkit.data.loader import Batch, targets_of
from toolkit.data.pixels import Augmenter
from toolkit.data.plan import TrainPlan
from toolkit.distributed import autocast_dtype, seed_step
from toolkit.optim import set_lr
from toolkit.parts import Parts


class Updater:
    """Makes updates, each a function of the weights and (epoch, step): nothing is remembered between them."""

    def __init__(self, accelerator: Accelerator, parts: Parts, plan: TrainPlan, accumulation: int) -> None:
        self.accelerator, self.parts, self.plan, self.accumulation = accelerator, parts, plan, accumulation
        config = parts.config
        self.augment = Augmenter(config.augment, config.train.seed)
        self.dtype = autocast_dtype(accelerator)
        self.memory_format = torch.channels_last if config.train.channels_last else torch.contiguous_format

    def __call__(
        self, batches: Iterator[Batch], epoch: int, step: int, updates: int, lr: float
    ) -> tuple[torch.Tensor, int]:
        """Update number ``updates`` (from 1), which is ``step`` (from 0) of ``epoch``, at rate ``lr``.

        Returns (this rank's sum over its samples of their loss, mean over genres; samples of the update over all
        ranks). The gradient, and with it optim.clip_norm, is of the sum over genres.
        """
        accelerator, parts, config = self.accelerator, self.parts, self.parts.config
        model, optimizer = parts.model, parts.optimizer
        seed_step(config.train.seed, epoch, step, accelerator.process_index)
        set_lr(optimizer, lr)
        count = self.plan.count(step)
        total = torch.zeros((), device=accelerator.device)
        for part in range(self.accumulation):
            batch = next(batches)
            last = part == self.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                loss = self.loss(model, batch, epoch)
                # DDP averages gradients over ranks; the mean over the update's samples is wanted.
                accelerator.backward(loss * (accelerator.num_processes / count))
            total += loss.detach()
        if config.optim.clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if parts.ema is not None:
            parts.ema.update(self.plain_model, step=updates)
        return total / len(parts.manifest.genres), count

    @property
    def plain_model(self) -> nn.Module:
        """The model without DDP and compile wrappers, sharing their weights."""
        model: nn.Module = self.accelerator.unwrap_model(self.parts.model, keep_torch_compile=False)
        return model

    def loss(self, model: nn.Module, batch: Batch, epoch: int) -> torch.Tensor:
        """The sum of the losses of a micro-batch's valid samples, summed over genres; a float32 scalar."""
        device = self.accelerator.device
        targets = targets_of(batch.share, self.parts.train.targets).to(device, non_blocking=True)
        valid = torch.from_numpy(batch.share.valid).to(device, non_blocking=True)
        inputs = batch.images
        if self.parts.probe is None:  # cached features are the head's inputs as they are
            inputs, targets = self.augment(batch.images, targets, batch.share, epoch)
            inputs = self.parts.preprocessing.normalize(inputs, self.dtype).contiguous(
                memory_format=self.memory_format
            )
        with self.accelerator.autocast():
            logits = model(inputs)
        losses: torch.Tensor = self.parts.criterion(logits, targets)
        return (losses * valid).sum()
