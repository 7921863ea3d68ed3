"""One training run: epochs of updates, a validation after each, checkpoints between.

plan → feed: decoded, cut, on the device → update (augment, normalise, model, loss, step, moving average)
                                             ↘ every epoch: thaw? … validation → best? → RUN/model
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from shards.errors import UserError
from shards.progress import progress
from toolkit.checkpoint import Checkpoint, Progress, save_checkpoint
from toolkit.config_cli import config_dict
from toolkit.data.loader import Batch
from toolkit.distributed import (
    LostData,
    Stopped,
    StopSignal,
    broadcast_buffers,
    by_main,
    rewrap,
    sum_over_ranks,
)
from toolkit.feed import RunFeed, Stopwatch
from toolkit.forward import no_room
from toolkit.fsdp import gathered
from toolkit.nonfinite import Guard
from toolkit.optim import lr_factor
from toolkit.out_of_memory import memory_told
from toolkit.parts import Parts, make_feed
from toolkit.run_log import RunLog
from toolkit.update import Updater
from toolkit.validation import export_model, judge

log = logging.getLogger(__name__)


class Trainer:
    """Runs epochs from ``state`` on. Every rank makes the same calls in the same order."""

    def __init__(
        self, accelerator: Accelerator, parts: Parts, accumulation: int, resumed: Checkpoint | None = None
    ) -> None:
        self.accelerator, self.parts, self.config = accelerator, parts, parts.config
        self.feed = make_feed(accelerator, parts, accumulation)
        self.plan = self.feed.plan
        self.guard = Guard(accelerator, self.config.train.on_nonfinite, parts.train.sample_id)
        self.updater = Updater(accelerator, parts, self.plan, accumulation, self.guard)
        self.state = resumed.progress if resumed else Progress()
        self.run_log = RunLog(accelerator, parts.out, self.state.updates, self.state.epoch)
        self.lr_factor = lr_factor(self.config.optim, self.plan.steps_per_epoch * self.config.train.epochs)
        self.stop = StopSignal(accelerator)

    @property
    def judged_model(self) -> nn.Module:
        """What is validated and saved: the moving average where there is one, else the model itself."""
        ema = self.parts.ema
        return self.updater.plain_model if ema is None else ema.module

    def run(self) -> bool:
        """Train to the end. True if it got there, False if a signal asked for a stop (a checkpoint was saved).

        Raises LostData, on every rank, where one of them cannot read its samples; a checkpoint was saved then, too.
        """
        began = self.state.updates
        try:
            while not self._over():
                if not self._epoch():
                    self._save()
                    return False
            return True
        except LostData as lost:
            if self.state.updates == began:
                raise
            self._save()
            raise LostData(
                f"{lost}; checkpoint saved: the same command with --resume goes on", lost.status
            ) from None
        finally:
            self.feed.close()
            self.stop.restore()

    def _over(self) -> bool:
        patience = self.config.train.patience
        return self.state.epoch >= self.config.train.epochs or 0 < patience <= self.state.bad_epochs

    def _epoch(self) -> bool:
        """The rest of the current epoch and its validation. False if stopped between two updates, or validating."""
        state, config, accelerator = self.state, self.config, self.accelerator
        images, watch = 0, Stopwatch(self.feed)
        own_loss = torch.zeros((), device=accelerator.device)  # this rank's, since the start or a checkpoint
        self._thaw()
        self.parts.freezing.training_mode(self.parts.model, state.epoch)
        recent = _Window(self.feed)
        with self._bar() as bar, contextlib.closing(self.feed.batches(state.epoch, state.step)) as batches:
            while state.step < self.plan.steps_per_epoch:
                count = self.plan.count(state.step)
                try:
                    loss, counted = self._update(batches)
                except LostData:
                    state.loss_sum += float(sum_over_ranks(accelerator, own_loss))
                    raise
                own_loss += loss
                images += count
                bar.update(count)
                if state.updates % config.train.log_steps == 0 or state.step == self.plan.steps_per_epoch:
                    self._log_step(recent, bar, sum_over_ranks(accelerator, loss), counted, images)
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
        self.guard.check()
        counted = self.plan.num_samples - state.skipped_samples  # never none: the guard sees to it
        seconds, account = watch.seconds, watch.account()
        if accelerator.is_main_process:
            log.info("epoch %d: %s", state.epoch + 1, watch.verdict())
        row = {
            "train_loss": state.loss_sum / counted,
            "skipped_updates": state.skipped,
            "images_per_s": images / seconds,
            **account,
            "seconds": seconds,
        }
        try:
            self._validate(row)
        except Stopped:  # the state is still that of the last update: a resumed run validates again
            return False
        return True

    def _thaw(self) -> None:
        """Let gradients flow into what this epoch trains; the optimiser holds it already."""
        epoch, parts = self.state.epoch, self.parts
        if not parts.freezing.apply(epoch):
            return
        parts.model = rewrap(self.accelerator, parts.model)
        if self.accelerator.is_main_process:
            trainable = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
            names = ", ".join(parts.freezing.thawing(epoch))
            log.info("epoch %d: %s thawed, %.1f M trainable weights", epoch + 1, names, trainable / 1e6)

    def _update(self, batches: Iterator[Batch]) -> tuple[torch.Tensor, int]:
        """One update. Returns (this rank's sum of sample losses, samples over all ranks; both 0 if it was skipped)."""
        state = self.state
        lr = self.config.optim.lr * self.lr_factor(state.updates)
        loss, counted = self.updater(batches, state.epoch, state.step, state.updates + 1, lr)
        if not counted:
            state.skipped += 1
            state.skipped_samples += self.plan.count(state.step)
            most = self.config.train.max_skipped
            self.guard.check_skipped(state.skipped, most, self.plan.steps_per_epoch)
        state.step += 1
        state.updates += 1
        return loss, counted

    def _bar(self) -> Any:
        state = self.state
        done = min(state.step * self.plan.global_batch, self.plan.num_samples)
        return progress(
            self.plan.num_samples,
            f"epoch {state.epoch + 1}/{self.config.train.epochs}",
            initial=done,
            disable=not self.accelerator.is_main_process,
        )

    def _log_step(self, recent: _Window, bar: Any, loss_sum: torch.Tensor, counted: int, images: int) -> None:
        state = self.state
        self.guard.check()
        loss = float(loss_sum) / counted if counted else None
        account = recent.measure(images)
        lr = self.config.optim.lr * self.lr_factor(state.updates - 1)
        bar.set_postfix_str(
            f"loss {'skipped' if loss is None else f'{loss:.4f}'}, lr {lr:.2g}, "
            f"waiting for data {account['data_wait']:.0%}",
            refresh=False,
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
        model = self.judged_model
        broadcast_buffers(accelerator, self.updater.plain_model)
        if parts.ema is not None:
            broadcast_buffers(accelerator, model)
        model.eval()
        rows = self.config.train.eval_batch_size
        with memory_told(lambda: no_room(rows, accelerator.device, "--train.eval_batch_size")):
            logits, decoded = self.feed.validate(model, lambda _: self.stop.check())
        row["data_errors"] = self.feed.errors()
        whole = gathered(model.state_dict(), accelerator.is_main_process) if parts.fsdp else None
        summary, score, improved = by_main(accelerator, lambda: self._judge(logits, decoded, row, whole))
        if improved:
            state.best_score, state.best_epoch, state.bad_epochs = score, state.epoch, 0
        else:
            state.bad_epochs += 1
        self.run_log.epoch({"epoch": state.epoch, "update": state.updates, **summary})
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        state.skipped = state.skipped_samples = 0
        self._save()

    def _judge(
        self, logits: np.ndarray, decoded: np.ndarray, row: dict[str, Any], whole: dict[str, Any] | None
    ) -> tuple[dict[str, Any], float, bool]:
        """On the main process: (row of epochs.csv, monitored figure, whether it is the best), and then its folder.

        ``whole`` is the judged model's state where it is spread over processes.
        """
        state, parts = self.state, self.parts
        verdict = judge(parts.val.targets[decoded], logits[decoded], parts.manifest, self.config.decide)
        if not np.isfinite(verdict.loss):
            raise UserError(
                f"the validation loss of epoch {state.epoch + 1} is {verdict.loss}: lower --optim.lr"
            )
        score = monitored(verdict.row(), self.config.train.monitor)
        improved = better(score, state.best_score, self.config.train.monitor)
        if improved:
            export_model(
                parts.out / "model",
                self.judged_model if parts.probe is None else parts.probe.merged(self.judged_model),
                self.config,
                parts.manifest,
                parts.preprocessing,
                verdict,
                epoch=state.epoch + 1,
                weights="raw" if parts.ema is None else "ema",
                state=whole,
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
        return {**row, **verdict.row(), "lr": lr}, score, improved

    def _save(self) -> None:
        accelerator, parts = self.accelerator, self.parts
        self.guard.check_weights(self.updater.plain_model)  # a broken one would drive good ones out
        scaler = accelerator.scaler
        tensors = {
            "model": self.updater.plain_model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "ema": parts.ema.module.state_dict() if parts.ema is not None else {},
        }
        if parts.fsdp:
            tensors = gathered(tensors, accelerator.is_main_process)
        by_main(
            accelerator,
            lambda: save_checkpoint(
                parts.out / "checkpoints",
                replace(self.state),
                config_dict(self.config),
                parts.manifest.fingerprint,
                parts.manifest.labels.fingerprint,
                tensors,
                self.config.train.keep_checkpoints,
            ),
        )


def monitored(row: dict[str, Any], monitor: str) -> float:
    """The figure of an epoch's row that ``train.monitor`` names. Raises UserError if this split does not define it."""
    name = f"val_{monitor}"
    if row[name] is None:
        raise UserError(
            f"train.monitor {monitor} is not defined on this validation split (no genre has positives and negatives): "
            f"use --train.monitor loss"
        )
    return float(row[name])


def better(score: float, best: float | None, monitor: str) -> bool:
    """Whether ``score`` beats the best so far: a lower loss, or a higher figure of any other kind."""
    return best is None or (score < best if monitor == "loss" else score > best)


class _Window:
    """Speed and account since the last measurement."""

    def __init__(self, feed: RunFeed) -> None:
        self.watch, self.images = Stopwatch(feed), 0

    def measure(self, images: int) -> dict[str, float]:
        """images_per_s and the stopwatch's account; ``images`` counts from the start of the epoch."""
        result = {"images_per_s": (images - self.images) / self.watch.seconds, **self.watch.account()}
        self.watch, self.images = Stopwatch(self.watch.feed), images
        return result
