"""Checkpoints: whole or absent, newest valid one first, last few kept.

    RUN/checkpoints/step-00000123/state.pt     model, optimiser, scaler and moving average, as tensors
                                  state.json   where the run is, its config, and the sha256 of state.pt

Random generators need no state here: order, augmentation and dropout are functions of (seed, epoch, step).
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
from toolkit.config.files import CONSTANTS, as_today
from toolkit.config.io import config_dict
from toolkit.config.model_files import Number
from toolkit.config.schema import AugmentConfig, Config, DecideConfig
from toolkit.data.sampling.plan import Sizes
from toolkit.model_folder.folder import replacing
from toolkit.models.safe_unpickle import safe_load
from toolkit.models.tensor_files import plain_names

log = logging.getLogger(__name__)

TENSORS, STATE = "state.pt", "state.json"
#: Ending of a checkpoint's name while another takes its place.
OLDER = f".old{PARTIAL}"
#: Parts of state.pt that are state dicts of the plain model.
MODELS = ("model", "ema")


@dataclass
class Progress:
    """Where a run is. Everything needed to go on, besides tensors."""

    epoch: Count = 0
    """Epoch under way, or the next one."""
    step: Count = 0
    """Updates done in that epoch."""
    updates: Count = 0
    """Updates done in all, skipped ones among them: it numbers the log's rows and the checkpoints."""
    best_score: Number | None = None
    """Best figure so far of what train.monitor names; its model is RUN/model."""
    scored: str = ""
    """How it was measured (validation.scoring_rule)."""
    best_epoch: Annotated[int, msgspec.Meta(ge=-1, le=1 << 53)] = -1
    best_sha256: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    """Of that model's weights; empty in checkpoints of earlier versions."""
    bad_epochs: Count = 0
    """Epochs since the best one."""
    loss_sum: Number = 0.0
    """Sum of the training losses (mean over genres) of this epoch's samples so far, over all ranks."""
    loss_rows: Count | None = None
    """How many samples those are: neither masked nor of skipped updates. None: from before they were counted."""
    skipped: Count = 0
    """Updates of this epoch that were not made (train.on_nonfinite skip, or an overflow in fp16)."""
    skipped_samples: Count = 0
    """Samples of those updates, in checkpoints without loss_rows."""
    overflowed: Count = 0
    """Skipped updates of this epoch that the gradient scaler left out."""
    left_out: Count = 0
    """Updates of all epochs that were not made."""
    sizes: Sizes = "tail"
    """How the plan cuts an epoch into updates; checkpoints of earlier versions do not say so."""

    @property
    def made(self) -> int:
        """Updates made in all, which the learning rate and the moving average go by.

        Earlier versions counted no update as left out, so that their runs go on with the rates they began with.
        """
        return self.updates - self.left_out


class StateFile(msgspec.Struct):
    """state.json."""

    progress: Progress
    config: dict[str, dict[str, Any]]
    shard_set: str
    labels: str
    """Fingerprint of the genres."""
    sha256: Sha256
    """Of state.pt."""


class Checkpoint(StateFile):
    """A checkpoint that was found whole."""

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
    """Write a checkpoint under its final name only when it is whole, then drop all but the newest ``keep``.

    Raises OSError where it cannot be written, and leaves nothing of it.
    """
    path = folder / f"step-{progress.updates:08d}"
    # The same step may have been saved before its epoch was validated: in reach until the new one is there.
    with replacing(path, path.with_name(f"{path.name}{OLDER}")) as fresh:
        with atomic_write(fresh / TENSORS) as stream:
            torch.save(tensors, stream)
        state = StateFile(progress, config, shard_set, labels, sha256_file(fresh / TENSORS))
        write_json(fresh / STATE, msgspec.to_builtins(state))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if PARTIAL not in p.name)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are named in a warning and passed over. None if there is none.

    Raises UserError if all are damaged: starting from the beginning would write over what is left of the run.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except UserError as error:
            log.warning("checkpoint %s is damaged and passed over: %s", path, error)
    if count := len(checkpoints(folder)):
        raise UserError(
            "checkpoint-damaged",
            f"none of the {count} checkpoints in {folder} is whole: put a copy of one there, start a new run in "
            f"another --out, or remove {folder} to begin again",
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint, if it is whole. Raises UserError that says what is wrong with it."""
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
            "checkpoint-damaged", f"{path / TENSORS} holds no checkpoint: its parts are not those of a run's state"
        )
    # Earlier versions saved a model that was compiled on several processes under its wrapper's names.
    tensors = {part: plain_names(state) if part in MODELS else state for part, state in tensors.items()}
    return Checkpoint(**msgspec.structs.asdict(facts), tensors=tensors, path=path)


def read_state(path: Path) -> StateFile:
    """state.json of a checkpoint. Raises UserError."""
    where, what, remedy = path / STATE, "checkpoint's state", "use another checkpoint"
    raw = read_json(where, what)
    if isinstance(raw, dict) and isinstance(raw.get("progress"), dict) and "best_loss" in raw["progress"]:
        # from when the loss was all that could be monitored
        raw["progress"]["best_score"] = raw["progress"].pop("best_loss")
    return check_as(raw, StateFile, where, what, remedy)


@contextlib.contextmanager
def restoring(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what is raised where the tensors of ``checkpoint`` do not fit the run into UserError."""
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
    """Sweep what a killed run left half-written, and bring back a checkpoint whose successor did not come."""
    for older in folder.glob(f"*{OLDER}"):
        path = older.with_name(older.name.removesuffix(OLDER))
        if not path.exists():
            os.replace(older, path)
    for leftover in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


#: What a resumed run may have otherwise. All else is fixed, also what later versions add: with other samples in an
#: update, other weights, another loss, other groups in the optimiser or validation figures that do not compare with the
#: best so far, it would be another run, not the rest of this one.
MAY_CHANGE = frozenset(
    {
        # how long it goes on
        "train.epochs", "train.patience",
        # on which machine, how fast and in how much memory: the same updates, but for rounding
        "data.workers", "data.prefetch", "data.geometry", "model.checkpointing", "train.accumulation",
        "train.auto_batch", "train.eval_batch_size", "train.precision", "train.fsdp",
        "train.compile", "train.feature_cache",
        # statistics of a GPU's rows or of all: as with another number of processes, which may change too
        "train.sync_batchnorm",
        # what is done about damage, and what is written
        "data.on_error", "data.max_errors", "train.on_nonfinite", "train.checkpoint_steps",
        "train.keep_checkpoints", "train.log_steps", "train.trackers",
        # where the first weights came from: the checkpoint's are read in their place
        "model.pretrained", "model.weights",
        # what people change in the course of a training: rates, and how strongly it is regularised
        "optim.lr", "optim.schedule", "optim.warmup_steps", "optim.min_lr", "optim.weight_decay", "optim.momentum",
        "optim.clip_norm", "model.dropout", "model.drop_path",
        "data.train_crop", "data.crop_scale", "data.crop_ratio", "data.flip",
        *(f"augment.{name}" for name in vars(AugmentConfig())),
        # what is chosen anew after every epoch (where train.monitor depends on it, the best so far is measured again)
        *(f"decide.{name}" for name in vars(DecideConfig())),
    }
)  # fmt: skip


#: Options of augmentation that mix samples: the plan then keeps pairs together (TrainPlan.group_size).
MIXING = ("mixup", "cutmix")


def _may_change(config: dict[str, Any]) -> frozenset[str]:
    """The keys that a resume of a run with this config may change."""
    if not config["train"]["feature_views"]:
        return MAY_CHANGE
    # Its checkpoints hold the head alone: the backbone is that of the weights.
    return MAY_CHANGE - {"model.pretrained", "model.weights"}


def check_resumable(checkpoint: Checkpoint, config: dict[str, Any], shard_set: str) -> list[str]:
    """Lines that say which options changed since the checkpoint. Raises UserError for one that may not (MAY_CHANGE).

    An option that the checkpoint's version did not know had its default.
    """
    free = _may_change(config)
    if checkpoint.shard_set != shard_set:
        raise UserError(
            "run-differs",
            f"{checkpoint.path} was trained on shard set {checkpoint.shard_set}, --shards is {shard_set}: "
            f"give the same shards, or start a new run in another --out",
        )
    changes = []
    if "loss" not in checkpoint.config:  # from before losses could be chosen
        changes.append("a loss summed over genres, which was their mean before: its first updates are larger")
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
    """Whether ``before``, read from a file, is a config with which a run of ``config`` could be resumed."""
    if not isinstance(before, dict) or not all(isinstance(section, dict) for section in before.values()):
        return False
    free = _may_change(config)
    return all(key in free or key in CONSTANTS for key, _, _ in _changes(before, config))


def _changes(before: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, before, now) of options that differ; one that an earlier version did not know had its default."""
    before, defaults = copy.deepcopy(before), config_dict(Config())
    for key, old in as_today(before).items():
        yield key, old, CONSTANTS[key]
    for section, values in config.items():
        for name, value in values.items():
            old = before.get(section, {}).get(name, defaults[section][name])
            if value != old:
                yield f"{section}.{name}", old, value
