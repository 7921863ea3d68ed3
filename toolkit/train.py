"""Train a multi-label classifier on a shard set.

    posters train --config configs/poster_resnet50.yaml --shards SHARDS --out RUN
    accelerate launch --config_file launch/accelerate/gpus.yaml launch/train.py --config ... --shards SHARDS --out RUN

Leaves RUN/model (best epoch by validation loss), RUN/checkpoints, RUN/config.yaml, RUN/log.csv, RUN/epochs.csv.
Exit status: 0 trained, 2 bad input (one line says what), 75 stopped by SIGTERM or SIGINT after saving a checkpoint:
the same command with --resume goes on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from filelock import FileLock, Timeout

from shards.errors import UserError
from shards.labels import require_same
from shards.manifest import Manifest
from toolkit.checkpoint import (
    Checkpoint,
    check_resumable,
    checkpoints,
    newest_checkpoint,
    remove_partial_checkpoints,
)
from toolkit.config import Config
from toolkit.config_cli import config_dict, save_config
from toolkit.data.loader import decode_threads
from toolkit.data.reader import ShardReader
from toolkit.data.transforms import Preprocessing
from toolkit.distributed import STOPPED, make_accelerator
from toolkit.feed import train_plan
from toolkit.model_folder import load_labels, mean_std, recover_model_folder
from toolkit.models import HeadSpec, build_model, frozen_modules, load_weights
from toolkit.optim import build_optimizer
from toolkit.trainer import Parts, Trainer

log = logging.getLogger(__name__)


def train(config: Config, shards: Path, out: Path, *, resume: bool = False) -> int:
    """Train on ``shards`` into ``out``. Called by every process of a launch. Returns the exit status."""
    config.validate()
    manifest = Manifest.read(shards)
    if not manifest.genres:
        raise UserError(f"{shards} has no labels to train on; index it with --genre-field or --metadata")
    readers = [ShardReader.of_split(shards, split, manifest) for split in ("train", "val")]
    accelerator = _accelerator(config, out)
    lock = _prepare_out(accelerator, out, resume)
    try:
        checkpoint = _checkpoint(out, config, manifest) if resume else None
        if checkpoint is None and resume and accelerator.is_main_process:
            log.info("no checkpoint in %s yet: starting from the beginning", out)
        if accelerator.is_main_process:
            save_config(config, out / "config.yaml")
        parts = _parts(accelerator, config, manifest, readers, out, checkpoint)
        _say_what_runs(accelerator, parts, checkpoint)
        done = Trainer(accelerator, parts, checkpoint).run()
        accelerator.wait_for_everyone()
        accelerator.end_training()
    finally:
        if lock is not None:
            lock.release()
    if accelerator.is_main_process:
        if done:
            log.info("trained: model in %s, course in %s", out / "model", out / "epochs.csv")
        else:
            log.warning("stopped by a signal; checkpoint saved: the same command with --resume goes on")
    return 0 if done else STOPPED


def _accelerator(config: Config, out: Path) -> Accelerator:
    precision = config.train.precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--train.precision fp16 needs a GPU; use bf16 or no on a CPU")
    accelerator = make_accelerator(
        None if precision == "auto" else precision,
        log_with="tensorboard" if config.train.tensorboard else None,
        project_dir=str(out),
    )
    supported = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in supported:
        raise UserError(
            f"accelerate was told to use {accelerator.distributed_type.value}; this version trains with data "
            f"parallelism only (see launch/accelerate/)"
        )
    return accelerator


def _prepare_out(accelerator: Accelerator, out: Path, resume: bool) -> FileLock | None:
    """Make the run folder and hold it; refuse to overwrite a run. The lock lives on the main process."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return None
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"another process trains in {out}; wait for it or choose another --out") from None
    if not resume and (checkpoints(out / "checkpoints") or (out / "model").exists()):
        raise UserError(f"{out} already holds a run: pass --resume to go on with it, or choose another --out")
    remove_partial_checkpoints(out / "checkpoints")
    recover_model_folder(out / "model")
    accelerator.wait_for_everyone()
    return lock


def _checkpoint(out: Path, config: Config, manifest: Manifest) -> Checkpoint | None:
    if (out / "model" / "labels.json").exists():
        require_same("the run's model", load_labels(out / "model")[0], "the shards", manifest.labels)
    found = newest_checkpoint(out / "checkpoints")
    if found is not None:
        for change in check_resumable(found, config_dict(config), manifest.fingerprint):
            log.info("resuming with %s", change)
    return found


def _parts(
    accelerator: Accelerator,
    config: Config,
    manifest: Manifest,
    readers: list[ShardReader],
    out: Path,
    checkpoint: Checkpoint | None,
) -> Parts:
    set_seed(config.train.seed)  # the head's initial weights; everything later is seeded by its step
    hub = config.model.pretrained and config.model.weights is None and checkpoint is None
    with accelerator.main_process_first():  # one download, then the cache
        model: Any = build_model(
            config.model.name,
            len(manifest.genres),
            HeadSpec.of(config.model),
            config.data.image_size,
            pretrained=hub,
        )
    if checkpoint is not None:
        model.load_state_dict(checkpoint.tensors["model"])
    elif config.model.weights is not None:
        said = load_weights(model, Path(config.model.weights))
        if accelerator.is_main_process:
            log.info("%s", said)
    frozen = frozen_modules(model, config.model.freeze)
    mean, std = mean_std(model)
    if config.train.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.optim)
    if config.train.compile:
        model = torch.compile(model)
    # The loader is not prepared: it shards by rank itself. Nor is a scheduler: the rate is a function of the step.
    model, optimizer = accelerator.prepare(model, optimizer)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint.tensors["optimizer"])
        if accelerator.scaler is not None and checkpoint.tensors["scaler"]:
            accelerator.scaler.load_state_dict(checkpoint.tensors["scaler"])
    if config.train.tensorboard:
        accelerator.init_trackers("tensorboard")
    train, val = readers
    return Parts(
        config,
        manifest,
        train,
        val,
        model,
        optimizer,
        frozen,
        Preprocessing(config.data.image_size, config.data.crop_pct, mean, std),
        out,
    )


def _say_what_runs(accelerator: Accelerator, parts: Parts, checkpoint: Checkpoint | None) -> None:
    if not accelerator.is_main_process:
        return
    config = parts.config
    plan = train_plan(config, parts.train)
    trainable = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    log.info(
        "%s, %s head, %.1f M trainable weights; %d genres",
        config.model.name,
        config.model.head,
        trainable / 1e6,
        len(parts.manifest.genres),
    )
    log.info(
        "%d process(es) on %s, precision %s, %d decoding threads each",
        accelerator.num_processes,
        accelerator.device.type,
        accelerator.mixed_precision,
        decode_threads(config.data.workers),
    )
    log.info(
        "%d training and %d validation samples; global batch %d = %d process(es) x %d accumulation x up to %d; "
        "%d steps per epoch",
        len(parts.train),
        len(parts.val),
        config.train.batch_size,
        accelerator.num_processes,
        config.train.accumulation,
        -(-config.train.batch_size // (accelerator.num_processes * config.train.accumulation)),
        plan.steps_per_epoch,
    )
    if checkpoint is not None:
        state = checkpoint.progress
        log.info("resumed from %s: epoch %d, step %d", checkpoint.path, state.epoch + 1, state.step)
