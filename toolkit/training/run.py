"""Train a multi-label classifier on a shard set.

    posters train --config configs/poster_resnet50.yaml --shards SHARDS --out RUN
    accelerate launch --config_file launch/accelerate/gpus.yaml launch/train.py --config ... --shards SHARDS --out RUN

Writes RUN/model (the best epoch by train.monitor), RUN/checkpoints, RUN/config.yaml, RUN/log.csv and RUN/epochs.csv.
With --find-lr it only writes RUN/find-lr.png and RUN/find-lr.csv. docs/reference/exit-codes.md lists the exit codes.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from pathlib import Path

import timm
import torch
from accelerate import Accelerator

from shards.dataset.manifest import Manifest
from shards.dataset.store import ShardsAt, open_store
from shards.errors import UserError, did_you_mean
from shards.storage.kinds import SHARD_SET, kind_of
from shards.storage.lock import folder_lock
from toolkit.config.io import save_config
from toolkit.config.schema import Config
from toolkit.config.validation import check_config
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.device.defaults import decode_threads
from toolkit.distributed.agreement import Facts, command_facts, config_facts, set_facts
from toolkit.distributed.collectives import by_main, make_accelerator
from toolkit.distributed.votes import STOPPED, Stopped
from toolkit.model_folder.folder import recover_model_folder
from toolkit.training.auto_batch import fit_accumulation
from toolkit.training.batch_norm import check_rows
from toolkit.training.checkpoints.checkpoint import Checkpoint, checkpoints, remove_partial_checkpoints
from toolkit.training.checkpoints.resume import resumed_checkpoint
from toolkit.training.epoch_lines import log_result
from toolkit.training.setup import TrainingSetup, build_setup
from toolkit.training.trackers import send_model, send_picture, start_trackers
from toolkit.training.trainer import Trainer
from toolkit.training.validation import draw_thresholds

log = logging.getLogger(__name__)


def train(config: Config, shards: ShardsAt, out: Path, *, resume: bool = False, search_lr: bool = False) -> int:
    """Train on ``shards`` and write to ``out``. Called by every process of a launch. Return the exit status.

    ``search_lr`` runs a learning-rate range test instead (lr_finder.py).
    """
    check_config(config)
    config = with_own_size(config)
    store = open_store(shards)
    manifest = store.manifest()
    if not manifest.genres:
        raise UserError(
            "nothing-to-train", f"{shards} has no labels to train on; index it with --genre-field or --metadata"
        )
    readers = [ShardReader.of_split(store, split, manifest) for split in ("train", "val")]
    options = command_facts("train", {"find_lr": search_lr, "resume": resume})
    accelerator = _accelerator(config, options | config_facts(config) | set_facts(manifest, store))
    with contextlib.ExitStack() as locks:
        by_main(accelerator, lambda: _lock_run_folder(locks, out, allow_existing=resume or search_lr))
        status = 0
        try:
            if search_lr:
                from toolkit.training.lr_finder import find_lr  # imports matplotlib, which a training does not need

                config = replace(config, train=replace(config.train, ema=0.0))  # the test needs no moving average
                find_lr(_prepared(accelerator, config, manifest, readers, out, None))
                by_main(accelerator, lambda: start_trackers(accelerator, config, out))
                send_picture(accelerator, "find-lr", out / "find-lr.png")
            else:
                checkpoint = resumed_checkpoint(accelerator, out, config, manifest) if resume else None
                by_main(accelerator, lambda: save_config(config, out / "config.yaml"))
                _train(_prepared(accelerator, config, manifest, readers, out, checkpoint), checkpoint)
        except Stopped as stop:
            if accelerator.is_main_process:
                log.warning("stopped by a signal; %s: the same command with --resume continues", stop)
            status = STOPPED
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return status


def with_own_size(config: Config) -> Config:
    """Return ``config`` with the backbone's image size if data.image_size is 0. Called at the start of a run."""
    if config.data.image_size:
        return config
    size = own_size(config.model.name)
    log.info("data.image_size is %d, the size at which %s was trained", size, config.model.name)
    return replace(config, data=replace(config.data, image_size=size))


def own_size(name: str) -> int:
    """Return the image side in pixels at which timm's model ``name`` (architecture, optionally .TAG) was trained.

    Images are square in this toolkit. If the model was trained on rectangles, return their longer side.
    Raises UserError if timm has no size for ``name``.
    """
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # a tag that the architecture does not have
        cfg = None
    if cfg is None or not cfg.input_size:
        known = [*timm.list_models(), *timm.list_pretrained()]
        hint = "" if name in known else did_you_mean(name, known, str, 3)
        raise UserError(
            "option-value",
            f"data.image_size 0 means the backbone's own size, but timm has no size for {name!r}: "
            f"give the size in pixels, e.g. --data.image_size 224{hint}",
        )
    return max(cfg.input_size[1:])


def _train(setup: TrainingSetup, checkpoint: Checkpoint | None) -> None:
    """Train to the end of the run. If a signal stops the run, every rank raises Stopped."""
    accelerator, out = setup.accelerator, setup.out
    by_main(accelerator, lambda: start_trackers(accelerator, setup.config, out))
    trainer = Trainer(setup, checkpoint)
    if not trainer.run():
        raise Stopped("checkpoint saved")
    if accelerator.is_main_process:
        if accelerator.trackers:
            if trainer.best is not None and draw_thresholds(trainer.best, out / "thresholds.png"):
                send_picture(accelerator, "thresholds", out / "thresholds.png")
            send_model(accelerator, out / "model")
        log_result(setup, trainer.state)


def _prepared(
    accelerator: Accelerator,
    config: Config,
    manifest: Manifest,
    readers: list[ShardReader],
    out: Path,
    checkpoint: Checkpoint | None,
) -> TrainingSetup:
    """Build and log the parts of a run. With train.auto_batch, choose an accumulation that fits in memory.

    Raises UserError, on every rank, if micro-batches are too small to train BatchNorm (see check_rows).
    """
    setup = build_setup(accelerator, config, manifest, readers, out, checkpoint)
    if config.train.auto_batch:
        setup.accumulation = fit_accumulation(setup)
    if accelerator.is_main_process:
        _log_setup(setup, checkpoint)
    trained = checkpoint is not None or config.model.pretrained or config.model.weights is not None
    setup.freezing.training_mode(setup.model, None)  # check with all parts unfrozen; each epoch sets its own mode
    warning = check_rows(setup.model, setup.plan, accelerator.num_processes, setup.accumulation, trained=trained)
    if warning and accelerator.is_main_process:
        log.warning("%s", warning)
    return setup


def _accelerator(config: Config, facts: Facts) -> Accelerator:
    precision = config.train.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("device", "--train.precision fp16 needs a GPU; on a CPU, set it to 'bf16' or 'no'")
    return make_accelerator(None if precision == "auto" else precision, facts)


def _lock_run_folder(locks: contextlib.ExitStack, out: Path, *, allow_existing: bool) -> None:
    """Create the run folder, and lock it until ``locks`` is closed.

    Raises UserError if the folder cannot be created or locked, or if it contains a run and ``allow_existing`` is false.
    """
    if kind_of(out) == SHARD_SET:
        raise UserError("path-exists", f"{out} is a shard set, so no run is written there: choose another --out")
    locks.enter_context(folder_lock(out))
    folder = out / "checkpoints"
    if folder.exists() and not folder.is_dir():
        raise UserError(
            "path-exists", f"{folder} is a file, so checkpoints cannot be saved: move it, or choose another --out"
        )
    if not allow_existing and (checkpoints(folder) or (out / "model").exists()):
        raise UserError(
            "run-exists", f"{out} already contains a run: pass --resume to continue it, or choose another --out"
        )
    remove_partial_checkpoints(folder)
    recover_model_folder(out / "model")


def _log_setup(setup: TrainingSetup, checkpoint: Checkpoint | None) -> None:
    config, plan, accelerator, device = setup.config, setup.plan, setup.accelerator, setup.accelerator.device
    trainable = sum(p.numel() for p in setup.model.parameters() if p.requires_grad) / 1e6
    name, head, genres = config.model.name, config.model.head, len(setup.manifest.genres)
    world, precision = accelerator.num_processes, accelerator.mixed_precision
    threads = decode_threads(config.data.workers, device)
    log.info("%s, %s head, %.1f M trainable weights; %d genres", name, head, trainable, genres)
    log.info("%d process(es) on %s, precision %s, %d decoding threads each", world, device.type, precision, threads)
    samples = len(setup.train), len(setup.val), plan.num_samples
    rows = int(plan.rows(plan.largest_step, world, setup.accumulation).max())
    batch = config.train.batch_size, world, setup.accumulation, rows
    log.info(
        "%d training and %d validation samples, %d per epoch; "
        "global batch %d = %d process(es) x %d accumulation x up to %d; %d steps per epoch",
        *(*samples, *batch, plan.steps_per_epoch),
    )
    if (weights := setup.train.weights) is not None:
        span = weights.min(), weights.max(), weights.mean()
        log.info("sample weights from %g to %g, mean %.3g: a loss is multiplied by weight / mean", *span)
    if checkpoint is not None:
        state = checkpoint.progress
        log.info("resumed from %s: epoch %d, step %d", checkpoint.path, state.epoch + 1, state.step)
        if plan.sizes == "tail":
            log.info(
                "the run was started by an earlier toolkit version: the last update of an epoch has only %d samples",
                plan.count(plan.steps_per_epoch - 1),
            )
