"""One training run: epochs of updates, a validation after each, checkpoints between.

plan → feed: decoded, cut, on the device → normalise → model → loss → update
                                                         ↘ every epoch: validation → best? → RUN/model
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from shards.errors import UserError
from shards.manifest import Manifest
from shards.progress import progress
from toolkit.checkpoint import Checkpoint, Progress, save_checkpoint
from toolkit.config import Config
from toolkit.config_cli import config_dict
from toolkit.data.loader import Batch, targets_of
from toolkit.data.reader import ShardReader
from toolkit.data.transforms import Preprocessing
from toolkit.distributed import StopSignal, broadcast_buffers, from_main, seed_step, sum_over_ranks
from toolkit.feed import Feed, Stopwatch
from toolkit.inference import infer_all
from toolkit.models import training_mode
from toolkit.optim import lr_factor, sample_losses, set_lr
from toolkit.run_log import RunLog
from toolkit.validation import export_model, judge

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """What a run is made of, ready to go."""

    config: Config
    manifest: Manifest
    train: ShardReader
    val: ShardReader
    model: nn.Module
    """Prepared: wrapped for several processes, on its device."""
    optimizer: Any
    frozen: list[nn.Module]
    preprocessing: Preprocessing
    out: Path


class Trainer:
    """Runs epochs from ``state`` on. Every rank makes the same calls in the same order."""

    def __init__(self, accelerator: Accelerator, parts: Parts, resumed: Checkpoint | None = None) -> None:
        self.accelerator, self.parts, self.config = accelerator, parts, parts.config
        self.feed = Feed(parts.config, parts.train, parts.val, parts.preprocessing, accelerator)
        self.plan = self.feed.plan
        self.state = resumed.progress if resumed else Progress()
        self.run_log = RunLog(accelerator, parts.out, self.state.updates)
        self.lr_factor = lr_factor(self.config.optim, self.plan.steps_per_epoch * self.config.train.epochs)
        self.memory_format = (
            torch.channels_last if self.config.train.channels_last else torch.contiguous_format
        )
        self.stop = StopSignal(accelerator)

    @property
    def plain_model(self) -> nn.Module:
        """The model without DDP and compile wrappers, sharing their weights."""
        return self.accelerator.unwrap_model(self.parts.model, keep_torch_compile=False)

    def run(self) -> bool:
        """Train to the end. True if it got there, False if a signal asked for a stop (a checkpoint was saved)."""
        try:
            while not self._over():
                if not self._epoch():
                    self._save()
                    return False
            return True
        finally:
            self.feed.close()
            self.stop.restore()

    def _over(self) -> bool:
        patience = self.config.train.patience
        return self.state.epoch >= self.config.train.epochs or 0 < patience <= self.state.bad_epochs

    def _epoch(self) -> bool:
        """The rest of the current epoch and its validation. False if stopped between two updates."""
        state, config, accelerator = self.state, self.config, self.accelerator
        images, watch = 0, Stopwatch(self.feed)
        own_loss = torch.zeros((), device=accelerator.device)  # this rank's, since the start or a checkpoint
        training_mode(self.parts.model, self.parts.frozen)
        recent = _Window(self.feed)
        with self._bar() as bar, contextlib.closing(self.feed.batches(state.epoch, state.step)) as batches:
            while state.step < self.plan.steps_per_epoch:
                loss, count = self._update(batches)
                own_loss += loss
                images += count
                bar.update(count)
                if state.updates % config.train.log_steps == 0 or state.step == self.plan.steps_per_epoch:
                    self._log_step(recent, bar, sum_over_ranks(accelerator, loss), count, images)
                due = config.train.checkpoint_steps and state.updates % config.train.checkpoint_steps == 0
                stop = self.stop.agreed()
                if stop or (due and state.step < self.plan.steps_per_epoch):
                    state.loss_sum += float(sum_over_ranks(accelerator, own_loss))
                    own_loss.zero_()
                if stop:
                    return False
                if due and state.step < self.plan.steps_per_epoch:
                    self._save()
        state.loss_sum += float(sum_over_ranks(accelerator, own_loss))
        seconds, account = watch.seconds, watch.account()
        if accelerator.is_main_process:
            log.info("epoch %d: %s", state.epoch + 1, watch.verdict())
        self._validate(
            {
                "train_loss": state.loss_sum / len(self.parts.train),
                "images_per_s": images / seconds,
                **account,
                "seconds": seconds,
            }
        )
        return True

    def _update(self, batches: Iterator[Batch]) -> tuple[torch.Tensor, int]:
        """One update. Returns (this rank's sum of sample losses, samples of the update over all ranks)."""
        state, config, accelerator = self.state, self.config, self.accelerator
        model, optimizer = self.parts.model, self.parts.optimizer
        seed_step(config.train.seed, state.epoch, state.step, accelerator.process_index)
        set_lr(optimizer, config.optim.lr * self.lr_factor(state.updates))
        count = self.plan.count(state.step)
        total = torch.zeros((), device=accelerator.device)
        for part in range(config.train.accumulation):
            batch = next(batches)
            images = self.parts.preprocessing.normalize(batch.images, self.feed.dtype)
            targets = targets_of(batch.share, self.parts.train.targets).to(
                accelerator.device, non_blocking=True
            )
            valid = torch.from_numpy(batch.share.valid).to(accelerator.device, non_blocking=True)
            last = part == config.train.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                with accelerator.autocast():
                    logits = model(images.contiguous(memory_format=self.memory_format))
                loss = (sample_losses(logits, targets) * valid).sum()
                # DDP averages gradients over ranks; the mean over the update's samples is wanted.
                accelerator.backward(loss * (accelerator.num_processes / count))
            total += loss.detach()
        if config.optim.clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        state.step += 1
        state.updates += 1
        return total, count

    def _bar(self) -> Any:
        state = self.state
        done = min(state.step * self.plan.global_batch, self.plan.num_samples)
        return progress(
            self.plan.num_samples,
            f"epoch {state.epoch + 1}/{self.config.train.epochs}",
            initial=done,
            disable=not self.accelerator.is_main_process,
        )

    def _log_step(self, recent: _Window, bar: Any, loss_sum: torch.Tensor, count: int, images: int) -> None:
        state = self.state
        loss = float(loss_sum) / count
        if not np.isfinite(loss):
            raise UserError(
                f"the training loss is {loss} at epoch {state.epoch + 1}, step {state.step}: lower --optim.lr, set "
                f"--optim.clip_norm 1, or use --train.precision bf16 or no; the last checkpoint is kept"
            )
        account = recent.measure(images)
        lr = self.config.optim.lr * self.lr_factor(state.updates - 1)
        bar.set_postfix_str(
            f"loss {loss:.4f}, lr {lr:.2g}, waiting for data {account['data_wait']:.0%}", refresh=False
        )
        self.run_log.step(
            {
                "update": state.updates,
                "epoch": state.epoch,
                "step": state.step,
                "loss": loss,
                "lr": lr,
                **account,
            }
        )

    def _validate(self, row: dict[str, Any]) -> None:
        """Validation metrics; the best model so far goes to RUN/model. Then the epoch's checkpoint."""
        state, accelerator, parts = self.state, self.accelerator, self.parts
        model = self.plain_model
        broadcast_buffers(accelerator, model)
        model.eval()
        logits, decoded = infer_all(
            model,
            self.feed.val_loader,
            self.feed.val_cutter,
            self.config.train.eval_batch_size,
            parts.preprocessing,
            accelerator,
            channels_last=self.config.train.channels_last,
        )
        row["data_errors"] = self.feed.errors()
        summary = None
        if accelerator.is_main_process:
            summary = self._judge(logits, decoded, row)
        summary = from_main(accelerator, summary)
        improved = state.best_loss is None or summary["val_loss"] < state.best_loss
        if improved:
            state.best_loss, state.best_epoch, state.bad_epochs = summary["val_loss"], state.epoch, 0
        else:
            state.bad_epochs += 1
        self.run_log.epoch({"epoch": state.epoch, "update": state.updates, **summary})
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        self._save()

    def _judge(self, logits: np.ndarray, decoded: np.ndarray, row: dict[str, Any]) -> dict[str, Any]:
        """On the main process: metrics of this epoch, a threshold, and the model folder if it is the best."""
        state, parts = self.state, self.parts
        verdict = judge(parts.val.targets[decoded], logits[decoded], parts.manifest)
        if not np.isfinite(verdict.loss):
            raise UserError(
                f"the validation loss of epoch {state.epoch + 1} is {verdict.loss}: lower --optim.lr"
            )
        if state.best_loss is None or verdict.loss < state.best_loss:
            export_model(
                parts.out / "model",
                self.plain_model,
                self.config,
                parts.manifest,
                parts.preprocessing,
                verdict,
                epoch=state.epoch + 1,
            )
        log.info(
            "epoch %d: train loss %.4f, %s; %.0f images/s, %.1f%% waiting for data",
            state.epoch + 1,
            row["train_loss"],
            verdict,
            row["images_per_s"],
            100 * row["data_wait"],
        )
        lr = self.config.optim.lr * self.lr_factor(state.updates - 1)
        return {**row, **verdict.row(), "lr": lr}

    def _save(self) -> None:
        accelerator, parts = self.accelerator, self.parts
        if accelerator.is_main_process:
            scaler = accelerator.scaler
            save_checkpoint(
                parts.out / "checkpoints",
                replace(self.state),
                config_dict(self.config),
                parts.manifest.fingerprint,
                parts.manifest.labels.fingerprint,
                {
                    "model": self.plain_model.state_dict(),
                    "optimizer": parts.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else {},
                },
                self.config.train.keep_checkpoints,
            )
        accelerator.wait_for_everyone()


class _Window:
    """Speed and account since the last measurement."""

    def __init__(self, feed: Feed) -> None:
        self.watch, self.images = Stopwatch(feed), 0

    def measure(self, images: int) -> dict[str, float]:
        """images_per_s and the stopwatch's account; ``images`` counts from the start of the epoch."""
        result = {"images_per_s": (images - self.images) / self.watch.seconds, **self.watch.account()}
        self.watch, self.images = Stopwatch(self.watch.feed), images
        return result
