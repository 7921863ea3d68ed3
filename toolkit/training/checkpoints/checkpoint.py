"""Checkpoints of a run. Each checkpoint is complete or absent. A resumed run continues from the newest valid one.

    RUN/checkpoints/step-00000123/state.pt     tensors of model, optimiser, gradient scaler and moving average
                                  state.json   progress of the run, its config, and the sha256 of state.pt

States of random generators are not saved: order, augmentation and dropout are functions of (seed, epoch, step).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from shards.errors import UserError, one_line
from shards.schema import Count, Sha256, check_as
from shards.storage.files import PARTIAL, atomic_write, read_json, sha256_file, write_json
from toolkit.config.augmentation_registry import AugmentConfig
from toolkit.config.files import CONSTANTS, as_today
from toolkit.config.io import config_dict
from toolkit.config.model_files import Number
from toolkit.config.schema import Config, DecideConfig
from toolkit.data.sampling.plan import Sizes
from toolkit.model_folder.folder import replacing
from toolkit.models.safe_unpickle import safe_load
from toolkit.models.tensor_files import plain_names

log = logging.getLogger(__name__)

TENSORS, STATE = "state.pt", "state.json"
#: Suffix of the name of an old checkpoint while a new one replaces it.
OLDER = f".old{PARTIAL}"
#: Keys of state.pt whose values are state dicts of the unwrapped model.
MODELS = ("model", "ema")


@dataclass
class Progress:
    """Progress of a run. A run can be resumed from these values and the saved tensors."""

    epoch: Count = 0
    """Current epoch, counted from 0. After the end of an epoch this is the next epoch."""
    step: Count = 0
    """Number of updates done in the current epoch."""
    updates: Count = 0
    """Number of updates done in the whole run, including skipped updates. Logs and checkpoints use this number."""
    best_score: Number | None = None
    """Best value so far of the metric train.monitor. RUN/model is the model with this value."""
    scored: str = ""
    """Rule by which best_score was measured (scoring_rule in validation.py)."""
    best_epoch: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)] = -1
    best_sha256: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    """SHA-256 of the best model's weights. Empty in checkpoints of earlier versions."""
    bad_epochs: Count = 0
    """Number of epochs since the best epoch."""
    loss_sum: Number = 0.0
    """Sum of the losses of all samples used so far in this epoch, over all ranks. Each loss is a mean over genres."""
    loss_rows: Count | None = None
    """Number of samples in loss_sum. None in checkpoints of earlier versions."""
    skipped: Count = 0
    """Number of skipped updates of the current epoch (train.on_nonfinite skip, or an overflow in fp16)."""
    skipped_samples: Count = 0
    """Number of samples in skipped updates of the current epoch. Only set in checkpoints of earlier versions."""
    overflowed: Count = 0
    """Number of skipped updates of the current epoch that overflowed in fp16."""
    left_out: Count = 0
    """Number of skipped updates of the whole run."""
    sizes: Sizes = "tail"
    """How the plan divides an epoch into updates (plan.py). Absent in checkpoints of earlier versions."""

    @property
    def made(self) -> int:
        """Number of updates of the run that were not skipped. Learning rate and moving average depend on this number.

        Checkpoints of earlier versions do not contain left_out. left_out is then 0, and `made` counts all updates.
        """
        return self.updates - self.left_out


class StateFile(msgspec.Struct):
    """Content of state.json."""

    progress: Progress
    config: dict[str, dict[str, Any]]
    shard_set: str
    labels: str
    """Fingerprint of the genres."""
    sha256: Sha256
    """SHA-256 of state.pt."""


class Checkpoint(StateFile):
    """A complete checkpoint that was read from its folder."""

    tensors: dict[str, Any]
    path: Path


def save_checkpoint(
    folder: Path,
    progress: Progress,
    config: dict[str, Any],
    shard_set: str,
    labels: str,
    tensors: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint, and then remove all checkpoints except the newest ``keep``.

    The folder gets its final name when it is complete. If writing fails, raises OSError and removes incomplete files.
    """
    path = folder / f"step-{progress.updates:08d}"
    # A checkpoint of this update may exist from before validation. It is kept until the new one is complete.
    with replacing(path, path.with_name(f"{path.name}{OLDER}")) as fresh:
        with atomic_write(fresh / TENSORS) as stream:
            torch.save(tensors, stream)
        state = StateFile(progress, config, shard_set, labels, sha256_file(fresh / TENSORS))
        write_json(fresh / STATE, msgspec.to_builtins(state))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the folders of the complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if PARTIAL not in p.name)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint, or None if there are no checkpoints. Log a warning for damaged checkpoints.

    Raises UserError if all checkpoints are damaged, because a new start overwrites the run's other files.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except UserError as error:
            log.warning("checkpoint %s is damaged and skipped: %s", path, error)
    if count := len(checkpoints(folder)):
        raise UserError(
            "checkpoint-damaged",
            f"none of the {count} checkpoints in {folder} is valid: put a valid copy of one there, start a new run in "
            f"another --out, or remove {folder} to start from the beginning",
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint. Raises UserError, with the reason, if it is incomplete or damaged."""
    try:
        facts = read_state(path)
        if sha256_file(path / TENSORS) != facts.sha256:
            raise UserError("checkpoint-damaged", f"the sha256 of {path / TENSORS} differs from the saved sha256")
    except OSError as error:
        raise UserError("path-unreadable", one_line(error)) from error
    tensors = safe_load(path / TENSORS, "checkpoint")
    if (
        not isinstance(tensors, dict)
        or not all(isinstance(part, dict) for part in tensors.values())
        or not all(isinstance(name, str) for part in MODELS for name in tensors.get(part, {}))
    ):
        raise UserError(
            "checkpoint-damaged", f"{path / TENSORS} is not the state.pt of a checkpoint: it has other content"
        )
    # Earlier versions saved a model inside DDP and torch.compile with the prefixes of both wrappers.
    tensors = {part: plain_names(state) if part in MODELS else state for part, state in tensors.items()}
    return Checkpoint(**msgspec.structs.asdict(facts), tensors=tensors, path=path)


def read_state(path: Path) -> StateFile:
    """Read state.json of a checkpoint. Raises UserError if it is missing or not valid."""
    where, what, remedy = path / STATE, "checkpoint's state", "use another checkpoint"
    raw = read_json(where, what)
    if isinstance(raw, dict) and isinstance(raw.get("progress"), dict) and "best_loss" in raw["progress"]:
        # earlier versions could only monitor the loss
        raw["progress"]["best_score"] = raw["progress"].pop("best_loss")
    return check_as(raw, StateFile, where, what, remedy)


@contextlib.contextmanager
def restoring(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise UserError, in place of torch's errors, if the tensors of ``checkpoint`` do not fit the run."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if type(error) is RuntimeError and not str(error).startswith("Error(s) in loading state_dict"):
            raise
        raise UserError(
            "run-differs",
            f"{checkpoint.path / TENSORS} does not fit this run ({one_line(error)[:300]}): start a new run in another "
            f"--out",
        ) from None


def remove_partial_checkpoints(folder: Path) -> None:
    """Restore each checkpoint whose replacement was interrupted. Remove other incomplete files of a killed run."""
    for older in folder.glob(f"*{OLDER}"):
        path = older.with_name(older.name.removesuffix(OLDER))
        if not path.exists():
            os.replace(older, path)
    for leftover in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


#: Options that a resumed run may change. Options that are not listed must stay the same. Most of the others
#: change the samples of an update, weights, loss, optimiser groups, or the comparison with the best score.
MAY_CHANGE = frozenset(
    {
        # length of the run
        "train.epochs", "train.patience",
        # machine, speed and memory: updates change only by rounding
        "data.workers", "data.prefetch", "data.geometry", "model.checkpointing", "train.accumulation",
        "train.auto_batch", "train.eval_batch_size", "train.precision", "train.fsdp",
        "train.compile", "train.feature_cache",
        # BatchNorm's rows, which also change with the number of processes
        "train.sync_batchnorm",
        # handling of damaged samples, and output
        "data.on_error", "data.max_errors", "train.on_nonfinite", "train.checkpoint_steps",
        "train.keep_checkpoints", "train.log_steps", "train.trackers",
        # source of the initial weights: a resume loads the checkpoint's weights instead
        "model.pretrained", "model.weights",
        # values that users adjust during a training: rates and regularisation
        "optim.lr", "optim.schedule", "optim.warmup_steps", "optim.min_lr", "optim.weight_decay", "optim.momentum",
        "optim.clip_norm", "model.dropout", "model.drop_path",
        "data.train_crop", "data.crop_scale", "data.crop_ratio", "data.flip",
        *(f"augment.{name}" for name in vars(AugmentConfig())),
        # thresholds and calibration of every epoch (remeasure_best() measures the best model again)
        *(f"decide.{name}" for name in vars(DecideConfig())),
    }
)  # fmt: skip


#: Augmentation options that mix two samples. Both must be in one micro-batch (TrainPlan.group_size in plan.py).
MIXING = ("mixup", "cutmix")


def _may_change(config: dict[str, Any]) -> frozenset[str]:
    """Return the dotted keys of the options that may change when a run with this config is resumed."""
    if not config["train"]["feature_views"]:
        return MAY_CHANGE
    # With cached features, checkpoints contain only the head, and model.pretrained or model.weights gives the backbone.
    return MAY_CHANGE - {"model.pretrained", "model.weights"}


def check_resumable(checkpoint: Checkpoint, config: dict[str, Any], shard_set: str) -> list[str]:
    """Return one line for each option that has changed since the checkpoint.

    Raises UserError if the shard set or an option that must stay the same has changed. An option that is
    missing in the checkpoint counts as its default value.
    """
    free = _may_change(config)
    if checkpoint.shard_set != shard_set:
        raise UserError(
            "run-differs",
            f"{checkpoint.path} was trained on shard set {checkpoint.shard_set}, but --shards is {shard_set}: "
            f"give the same shards, or start a new run in another --out",
        )
    changes = []
    if "loss" not in checkpoint.config:  # earlier versions had only one loss
        changes.append("a loss that is the sum over genres instead of the mean (the first updates are larger)")
    for key, before, value in _changes(checkpoint.config, config):
        if key not in free and key not in CONSTANTS:
            raise UserError(
                "run-differs",
                f"cannot resume {checkpoint.path} with {key} {value!r}: it was trained with {before!r}; "
                f"use {before!r}, or start a new run in another --out",
            )
        changes.append(f"{key} {before!r} -> {value!r}")
    mixed, mixes = (any(c.get("augment", {}).get(name) for name in MIXING) for c in (checkpoint.config, config))
    if checkpoint.progress.step and checkpoint.progress.sizes == "even" and mixed != mixes:
        raise UserError(
            "run-differs",
            f"{checkpoint.path} was saved within an epoch, and mixing (augment.{', augment.'.join(MIXING)}) cannot be "
            f"switched {'on' if mixes else 'off'} within an epoch: resume with the earlier values, and change them "
            f"after the end of the epoch",
        )
    return changes


def same_run(before: Any, config: dict[str, Any]) -> bool:
    """Return whether a run with the config ``before``, read from a file, can be resumed with ``config``."""
    if not isinstance(before, dict) or not all(isinstance(section, dict) for section in before.values()):
        return False
    free = _may_change(config)
    return all(key in free or key in CONSTANTS for key, _, _ in _changes(before, config))


def _changes(before: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, earlier value, new value) of the options that differ. A missing option counts as its default."""
    before, defaults = copy.deepcopy(before), config_dict(Config())
    for key, old in as_today(before).items():
        yield key, old, CONSTANTS[key]
    for section, values in config.items():
        for name, value in values.items():
            old = before.get(section, {}).get(name, defaults[section][name])
            if value != old:
                yield f"{section}.{name}", old, value
