"""Checkpoints. Each is complete or absent; the newest ones are kept, and a resume uses the newest valid one.

    RUN/checkpoints/step-00000123/state.pt     model, optimiser, scaler and moving average, as tensors
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
from toolkit.config.augmentations import AugmentConfig
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
#: Suffix of a checkpoint's name while a new one replaces it.
OLDER = f".old{PARTIAL}"
#: Parts of state.pt that are state dicts of the unwrapped model.
MODELS = ("model", "ema")


@dataclass
class Progress:
    """Progress of a run: everything that a resume needs, except tensors."""

    epoch: Count = 0
    """Current epoch, from 0, or the next one if none has started."""
    step: Count = 0
    """Updates done in that epoch."""
    updates: Count = 0
    """Updates done in the whole run, including skipped ones. It numbers the log's rows and the checkpoints."""
    best_score: Number | None = None
    """Best value so far of the metric train.monitor; its model is RUN/model."""
    scored: str = ""
    """Rule by which best_score was measured (validation.scoring_rule)."""
    best_epoch: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)] = -1
    best_sha256: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    """SHA-256 of the best model's weights; empty in checkpoints of earlier versions."""
    bad_epochs: Count = 0
    """Epochs since the best one."""
    loss_sum: Number = 0.0
    """Sum of the training losses (mean over genres) of this epoch's samples so far, over all ranks."""
    loss_rows: Count | None = None
    """Number of these samples, without masked ones and skipped updates; None in checkpoints of earlier versions."""
    skipped: Count = 0
    """Skipped updates of this epoch (train.on_nonfinite skip, or an overflow in fp16)."""
    skipped_samples: Count = 0
    """Samples of the skipped updates, in checkpoints without loss_rows."""
    overflowed: Count = 0
    """Skipped updates of this epoch that overflowed in fp16."""
    left_out: Count = 0
    """Skipped updates of all epochs."""
    sizes: Sizes = "tail"
    """How the plan divides an epoch into updates; absent in checkpoints of earlier versions."""

    @property
    def made(self) -> int:
        """Updates made in the whole run. The learning rate and the moving average depend on this number.

        In checkpoints of earlier versions left_out is 0, so their runs continue with the same rates.
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
    """A complete checkpoint."""

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
    """Write a checkpoint, which gets its final name when it is complete. Then remove all but the newest ``keep``.

    If writing fails, raises OSError and leaves no partial files.
    """
    path = folder / f"step-{progress.updates:08d}"
    # The same step may have been saved before its epoch was validated. That checkpoint stays until the new one exists.
    with replacing(path, path.with_name(f"{path.name}{OLDER}")) as fresh:
        with atomic_write(fresh / TENSORS) as stream:
            torch.save(tensors, stream)
        state = StateFile(progress, config, shard_set, labels, sha256_file(fresh / TENSORS))
        write_json(fresh / STATE, msgspec.to_builtins(state))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints' folders, oldest first."""
    return sorted(p for p in folder.glob("step-*") if PARTIAL not in p.name)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint; None if the folder has none. Warns of damaged ones and skips them.

    Raises UserError if all are damaged, because a new start would overwrite the rest of the run.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except UserError as error:
            log.warning("checkpoint %s is damaged and skipped: %s", path, error)
    if count := len(checkpoints(folder)):
        raise UserError(
            "checkpoint-damaged",
            f"none of the {count} checkpoints in {folder} is valid: put a copy of one there, start a new run in "
            f"another --out, or remove {folder} to start from the beginning",
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint. Raises UserError with the reason if it is not complete and valid."""
    try:
        facts = read_state(path)
        if sha256_file(path / TENSORS) != facts.sha256:
            raise UserError("checkpoint-damaged", f"the sha256 of {path / TENSORS} is not the one that was saved")
    except OSError as error:
        raise UserError("path-unreadable", one_line(error)) from error
    tensors = safe_load(path / TENSORS, "checkpoint")
    if (
        not isinstance(tensors, dict)
        or not all(isinstance(part, dict) for part in tensors.values())
        or not all(isinstance(name, str) for part in MODELS for name in tensors.get(part, {}))
    ):
        raise UserError(
            "checkpoint-damaged", f"{path / TENSORS} is not a checkpoint: its parts are not those of a run's state"
        )
    # Earlier versions saved a compiled model of several processes with the wrapper's names.
    tensors = {part: plain_names(state) if part in MODELS else state for part, state in tensors.items()}
    return Checkpoint(**msgspec.structs.asdict(facts), tensors=tensors, path=path)


def read_state(path: Path) -> StateFile:
    """Read state.json of a checkpoint. Raises UserError if it is missing or not valid."""
    where, what, remedy = path / STATE, "checkpoint's state", "use another checkpoint"
    raw = read_json(where, what)
    if isinstance(raw, dict) and isinstance(raw.get("progress"), dict) and "best_loss" in raw["progress"]:
        # from versions that could only monitor the loss
        raw["progress"]["best_score"] = raw["progress"].pop("best_loss")
    return check_as(raw, StateFile, where, what, remedy)


@contextlib.contextmanager
def restoring(checkpoint: Checkpoint) -> Iterator[None]:
    """Raise UserError if the tensors of ``checkpoint`` do not fit the run, in place of torch's errors."""
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
    """Remove incomplete files of a killed run, and restore a checkpoint whose replacement was not completed."""
    for older in folder.glob(f"*{OLDER}"):
        path = older.with_name(older.name.removesuffix(OLDER))
        if not path.exists():
            os.replace(older, path)
    for leftover in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


#: Options that a resumed run may change. All others are fixed, including options of later versions. They would change
#: the samples of an update, weights, loss, optimiser groups or the comparison with the best score: that is another run.
MAY_CHANGE = frozenset(
    {
        # length of the run
        "train.epochs", "train.patience",
        # machine, speed and memory: the same updates except for rounding
        "data.workers", "data.prefetch", "data.geometry", "model.checkpointing", "train.accumulation",
        "train.auto_batch", "train.eval_batch_size", "train.precision", "train.fsdp",
        "train.compile", "train.feature_cache",
        # rows for BatchNorm's statistics: they also depend on the number of processes, which may change, too
        "train.sync_batchnorm",
        # handling of damage, and output
        "data.on_error", "data.max_errors", "train.on_nonfinite", "train.checkpoint_steps",
        "train.keep_checkpoints", "train.log_steps", "train.trackers",
        # source of the initial weights: a resume loads the checkpoint's weights instead
        "model.pretrained", "model.weights",
        # values that users adjust during a training: rates and regularisation
        "optim.lr", "optim.schedule", "optim.warmup_steps", "optim.min_lr", "optim.weight_decay", "optim.momentum",
        "optim.clip_norm", "model.dropout", "model.drop_path",
        "data.train_crop", "data.crop_scale", "data.crop_ratio", "data.flip",
        *(f"augment.{name}" for name in vars(AugmentConfig())),
        # decisions, chosen after every epoch (if train.monitor depends on them, the best model is measured again)
        *(f"decide.{name}" for name in vars(DecideConfig())),
    }
)  # fmt: skip


#: Options of augmentation that mix samples: the plan then keeps pairs together (TrainPlan.group_size).
MIXING = ("mixup", "cutmix")


def _may_change(config: dict[str, Any]) -> frozenset[str]:
    """Return the keys that a resume of a run with this config may change."""
    if not config["train"]["feature_views"]:
        return MAY_CHANGE
    # Its checkpoints contain only the head; the backbone comes from these weights.
    return MAY_CHANGE - {"model.pretrained", "model.weights"}


def check_resumable(checkpoint: Checkpoint, config: dict[str, Any], shard_set: str) -> list[str]:
    """Return a line per option changed since the checkpoint. Raises UserError for an option not in MAY_CHANGE.

    An option that did not exist in the checkpoint's version counts as its default.
    """
    free = _may_change(config)
    if checkpoint.shard_set != shard_set:
        raise UserError(
            "run-differs",
            f"{checkpoint.path} was trained on shard set {checkpoint.shard_set}, --shards is {shard_set}: "
            f"give the same shards, or start a new run in another --out",
        )
    changes = []
    if "loss" not in checkpoint.config:  # from versions without a choice of losses
        changes.append("a loss summed over genres instead of their mean: the first updates are larger")
    for key, before, value in _changes(checkpoint.config, config):
        if key not in free and key not in CONSTANTS:
            raise UserError(
                "run-differs",
                f"cannot resume {checkpoint.path} with {key} {value!r}: it was trained with {before!r}; "
                f"use that, or start a new run in another --out",
            )
        changes.append(f"{key} {before!r} -> {value!r}")
    mixed, mixes = (any(c.get("augment", {}).get(name) for name in MIXING) for c in (checkpoint.config, config))
    if checkpoint.progress.step and checkpoint.progress.sizes == "even" and mixed != mixes:
        raise UserError(
            "run-differs",
            f"{checkpoint.path} is within an epoch, where augment.{' and augment.'.join(MIXING)} cannot "
            f"{'start' if mixes else 'stop'} mixing: it changes which samples an update has. Resume with the earlier "
            f"values, and change them after the end of the epoch",
        )
    return changes


def same_run(before: Any, config: dict[str, Any]) -> bool:
    """Return whether ``before``, read from a file, is the config of a run that ``config`` could resume."""
    if not isinstance(before, dict) or not all(isinstance(section, dict) for section in before.values()):
        return False
    free = _may_change(config)
    return all(key in free or key in CONSTANTS for key, _, _ in _changes(before, config))


def _changes(before: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, before, now) of options that differ. A missing option of an earlier version counts as its default."""
    before, defaults = copy.deepcopy(before), config_dict(Config())
    for key, old in as_today(before).items():
        yield key, old, CONSTANTS[key]
    for section, values in config.items():
        for name, value in values.items():
            old = before.get(section, {}).get(name, defaults[section][name])
            if value != old:
                yield f"{section}.{name}", old, value
