"""One training run: epochs of updates, validation after each epoch, and checkpoints.

plan ─→ feed: decoded batches on the device ─→ update: augment, normalise, model, loss, step, moving average
every epoch: unfreeze ─→ updates ─→ validation ─→ RUN/model if it is the best so far ─→ checkpoint
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from shards.errors import UserError
from shards.progress import progress
from toolkit.config.io import config_dict
from toolkit.data.loader.loader import Batch
from toolkit.device.defaults import no_room
from toolkit.device.out_of_memory import explain_out_of_memory
from toolkit.distributed.collectives import LostData, broadcast_buffers, by_main, sum_over_ranks
from toolkit.distributed.fsdp import full_state
from toolkit.distributed.votes import Stopped, StopSignal, Vote
from toolkit.evaluation.results import own_metrics
from toolkit.models.wrapping import rewrap
from toolkit.training.batches import Stopwatch
from toolkit.training.checkpoints.checkpoint import Checkpoint, Progress, save_checkpoint
from toolkit.training.epoch_lines import EpochLines
from toolkit.training.nonfinite import Guard
from toolkit.training.optim import lr_factor
from toolkit.training.run_log import RunLog
from toolkit.training.setup import TrainingSetup
from toolkit.training.train_step import TrainStep
from toolkit.training.validation import ValidationResult, better, export_model, monitored, remeasure_best, validate

log = logging.getLogger(__name__)


class Trainer:
    """Trains from the epoch and step in ``state`` to the end. Every rank makes the same calls in the same order."""

    def __init__(self, setup: TrainingSetup, resumed: Checkpoint | None = None) -> None:
        accelerator = setup.accelerator
        self.accelerator, self.setup, self.config, self.plan = accelerator, setup, setup.config, setup.plan
        self.guard = Guard(accelerator, self.config.train.on_nonfinite, setup.train.sample_id)
        self.train_step = TrainStep(setup, self.guard, Vote(accelerator))
        self.state = resumed.progress if resumed else Progress(sizes=self.plan.sizes)
        if self.state.loss_rows is None:
            self.state.loss_rows = self.plan.start(self.state.step) - self.state.skipped_samples
        self.lines = EpochLines(self.config.train.epochs, self.plan.steps_per_epoch)
        self.own_metrics = own_metrics(self.config.metric.name, self.config.metric.options)
        columns = [f"val_{metric.key}" for metric in self.own_metrics]
        self.run_log = RunLog(accelerator, setup.out, self.state.updates, self.state.epoch, columns)
        self.lr_factor = lr_factor(self.config.optim, self.plan.steps_per_epoch * self.config.train.epochs)
        self.feed = setup.inputs.feed(setup)  # after all that can fail, because only `run` ends its threads
        self.stop = StopSignal(accelerator)
        self.best: ValidationResult | None = None
        """Validation of the best epoch of this process. None before it."""

    @property
    def validated_model(self) -> nn.Module:
        """The model to validate and save: the moving average if there is one, else the trained model."""
        ema = self.setup.ema
        return self.train_step.plain_model if ema is None else ema.module

    def run(self) -> bool:
        """Train to the end of the run, or until a signal stops it. Return False if a signal stopped it.

        Raises LostData, on every rank, if one rank cannot read its samples. After a stop or this error, the newest
        checkpoint contains all updates.
        """
        began = self.state.updates
        try:
            if not self._over():
                remeasure_best(self.setup, self.state, self.own_metrics)
            while not self._over():
                if not self._epoch():
                    self._save()
                    return False
            if self.state.epoch < self.config.train.epochs and self.accelerator.is_main_process:
                log.info(
                    "early stopping: %d epochs without a better %s", self.state.bad_epochs, self.config.train.monitor
                )
            if not self.state.made:  # too few updates to find a scale, or a broken model
                raise UserError(
                    "not-finite",
                    f"none of the {self.state.updates} updates of this run was made, because all gradients overflowed "
                    f"in fp16: use --train.precision bf16 or no",
                )
            return True
        except LostData as lost:
            if self.state.updates > began:
                self._save()
                lost.args = (f"{lost}; checkpoint saved: the same command with --resume continues",)
            raise
        finally:
            self.feed.close()
            self.stop.restore()

    def _over(self) -> bool:
        patience = self.config.train.patience
        return self.state.epoch >= self.config.train.epochs or 0 < patience <= self.state.bad_epochs

    def _epoch(self) -> bool:
        """Run the rest of the current epoch and its validation. Return False if a signal stopped the epoch."""
        state, config, accelerator = self.state, self.config, self.accelerator
        images, watch = 0, Stopwatch(self.feed)
        own_loss = torch.zeros(2, device=accelerator.device)  # sums of this rank since the last call of _add_loss
        self.lines.start(state.updates)
        self._unfreeze()
        self.setup.freezing.training_mode(self.setup.model, state.epoch)
        recent = Stopwatch(self.feed)
        with self._bar() as bar, contextlib.closing(self.feed.batches(state.epoch, state.step)) as batches:
            while state.step < self.plan.steps_per_epoch:
                count = self.plan.count(state.step)
                try:
                    loss, _ = self._update(batches)
                except LostData:
                    self._add_loss(own_loss)
                    raise
                own_loss += loss
                images += count
                bar.update(count)
                if state.updates % config.train.log_steps == 0 or state.step == self.plan.steps_per_epoch:
                    recent = self._log_step(recent, bar, sum_over_ranks(accelerator, loss), images)
                every = config.train.checkpoint_steps
                due = every and state.updates % every == 0 and state.step < self.plan.steps_per_epoch
                stop = self.stop.agreed()
                if stop or due:
                    self._add_loss(own_loss)
                if stop:
                    return False
                if due:
                    self._save()
        self._add_loss(own_loss)
        self.guard.check()
        if state.skipped and accelerator.is_main_process:
            self._warn_of_skipped()
        if not state.loss_rows and state.skipped < self.plan.steps_per_epoch:
            raise UserError(
                "too-many-bad",
                f"none of the training samples of epoch {state.epoch + 1} could be decoded: check the shards' "
                f"images, and lower --data.max_errors",
            )
        seconds, account = watch.seconds, watch.account(images)
        self.lines.bottleneck = watch.bottleneck()
        row = {
            "train_loss": state.loss_sum / state.loss_rows if state.loss_rows else None,
            "skipped_updates": state.skipped,
            **account,
            "seconds": seconds,
        }
        try:
            self._validate(row)
        except Stopped:  # the checkpoint is from before the validation, so a resumed run validates again
            return False
        return True

    def _warn_of_skipped(self) -> None:
        state, scaler = self.state, self.accelerator.scaler
        line = f"{state.skipped} of {self.plan.steps_per_epoch} updates were skipped"
        if scaler is not None:
            line += (
                f", {state.overflowed} of them because gradients overflowed in fp16: some overflows are normal while "
                f"the gradient scale is searched (now {scaler.get_scale():g})"
            )
        log.warning("epoch %d: %s", state.epoch + 1, line)

    def _add_loss(self, own: torch.Tensor) -> None:
        """Add all ranks' sums (2,) to the epoch's sums. Set this rank's sums, ``own``, to 0. A collective call."""
        loss, rows = sum_over_ranks(self.accelerator, own).tolist()
        self.state.loss_sum += loss
        self.state.loss_rows = (self.state.loss_rows or 0) + round(rows)
        own.zero_()

    def _unfreeze(self) -> None:
        """Unfreeze the parts of the model that this epoch trains. The optimiser contains their weights already."""
        epoch, setup = self.state.epoch, self.setup
        if not setup.freezing.apply(epoch):
            return
        setup.model = rewrap(self.accelerator, setup.model, self.config.train)
        if self.accelerator.is_main_process:
            trainable = sum(p.numel() for p in setup.model.parameters() if p.requires_grad)
            names = ", ".join(setup.freezing.thawing(epoch))
            log.info("epoch %d: %s unfrozen, %.1f M trainable weights", epoch + 1, names, trainable / 1e6)

    def _update(self, batches: Iterator[Batch]) -> tuple[torch.Tensor, int]:
        """Make one update. Return the result of TrainStep, or only zeros if the update was skipped."""
        state = self.state
        lr = self.config.optim.lr * self.lr_factor(state.made)
        loss, counted = self.train_step(batches, state.epoch, state.step, state.made + 1, lr)
        if not counted:
            loss = torch.zeros_like(loss)
            state.skipped += 1
            state.left_out += 1
            if self.train_step.overflows:
                state.overflowed += 1
            else:
                self.guard.check_skipped(state.skipped - state.overflowed, self.plan.steps_per_epoch)
        state.step += 1
        state.updates += 1
        return loss, counted

    def _rate(self) -> float:
        return self.config.optim.lr * self.lr_factor(max(self.state.made - 1, 0))

    def _bar(self) -> Any:
        title = f"epoch {self.state.epoch + 1}/{self.config.train.epochs}"
        start, quiet = self.plan.start(self.state.step), not self.accelerator.is_main_process
        return progress(self.plan.num_samples, title, lasting=False, initial=start, disable=quiet)

    def _log_step(self, recent: Stopwatch, bar: Any, sums: torch.Tensor, images: int) -> Stopwatch:
        """Start a stopwatch for the next row. Write a row of log.csv, and return the stopwatch.

        ``sums`` (2,) are the sum and the number of losses over all ranks. Both are 0 for a skipped update.
        """
        state = self.state
        self.guard.check()
        total, rows = sums.tolist()
        loss = total / rows if rows else None
        account, following = recent.account(images), Stopwatch(self.feed, images)
        lr, scaler = self._rate(), self.accelerator.scaler
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
                "skipped_updates": state.skipped,
                "loss_scale": None if scaler is None else scaler.get_scale(),
            }
        )
        return following

    def _validate(self, row: dict[str, Any]) -> None:
        """Validate, write RUN/model if the model is the best so far, and save the epoch's checkpoint."""
        state, accelerator, setup = self.state, self.accelerator, self.setup
        model = self.validated_model
        broadcast_buffers(accelerator, self.train_step.plain_model)
        if setup.ema is not None:
            broadcast_buffers(accelerator, model)
        model.eval()
        rows = self.config.train.eval_batch_size
        with explain_out_of_memory(lambda: no_room(rows, accelerator.device, "--train.eval_batch_size")):
            logits, decoded = self.feed.validate(model, lambda _: self.stop.check())
        row["data_errors"] = self.feed.errors()
        whole = full_state(model.state_dict(), accelerator.is_main_process) if setup.fsdp else None
        summary, score, model_sha256 = by_main(accelerator, lambda: self._measure(logits, decoded, row, whole))
        if accelerator.is_main_process:
            self.lines.epoch(summary, best=bool(model_sha256))
        if model_sha256:
            state.best_score, state.best_epoch, state.bad_epochs = score, state.epoch, 0
            state.best_sha256 = model_sha256
        elif state.epoch > state.best_epoch:  # false if an epoch is repeated and RUN/model is of a later epoch
            state.bad_epochs += 1
        self.run_log.epoch(summary)
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        state.loss_rows = state.skipped = state.overflowed = 0
        self._save()

    def _measure(
        self, logits: np.ndarray, decoded: np.ndarray, row: dict[str, Any], whole: dict[str, Any] | None
    ) -> tuple[dict[str, Any], float, str]:
        """Return a row of epochs.csv, the metric train.monitor, and the sha256 of RUN/model ("" if it was not written).

        Called on the main process. ``whole`` is the model's whole state dict if the model is sharded, else None.
        """
        state, setup = self.state, self.setup
        groups, weights = (
            None if values is None else values[decoded]
            for values in (setup.manifest.units_of("val"), setup.val.weights)
        )
        targets, decide = setup.val.targets[decoded], self.config.decide
        result = validate(targets, logits[decoded], setup.manifest, decide, groups, self.own_metrics, weights)
        loss = result.evaluation.loss
        if not np.isfinite(loss):
            raise UserError("not-finite", f"the validation loss of epoch {state.epoch + 1} is {loss}: lower --optim.lr")
        score = monitored(result.row(), self.config.train.monitor)
        improved = better(score, state.best_score, self.config.train.monitor, self.own_metrics)
        # If this epoch is repeated, RUN/model may be of this epoch. It is then written again for an equal score.
        improved |= score == state.best_score and state.epoch == state.best_epoch
        sha256 = ""
        if improved:
            self.best = result
            sha256 = export_model(setup, self.validated_model, result, epoch=state.epoch + 1, score=score, state=whole)
        at = {"epoch": state.epoch, "update": state.updates}
        return {**at, **row, **result.row(), "lr": self._rate()}, score, sha256

    def _save(self) -> None:
        accelerator, setup = self.accelerator, self.setup
        self.guard.check_weights(self.train_step.plain_model)  # bad weights must not replace good checkpoints
        scaler = accelerator.scaler
        tensors = {
            "model": self.train_step.plain_model.state_dict(),
            "optimizer": setup.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "ema": setup.ema.module.state_dict() if setup.ema is not None else {},
        }
        if setup.fsdp:
            tensors = full_state(tensors, accelerator.is_main_process)
        folder, keep = setup.out / "checkpoints", self.config.train.keep_checkpoints
        facts = config_dict(self.config), setup.manifest.fingerprint, setup.manifest.labels.fingerprint
        by_main(accelerator, lambda: save_checkpoint(folder, self.state, *facts, tensors, keep))
