"""What a run goes on from: one checkpoint, the same on every rank, or nothing on all of them; and its best model.

The main process chooses, and says its choice by name and sha256. Were every rank to look for the newest one, those that
see another folder, or an older state of it, would go on from other weights and optimiser states than the rest, and
nothing would tell: what ranks exchange are gradients.
"""

from __future__ import annotations

import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from shards.dataset.labels import require_same
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from toolkit.config.io import config_dict
from toolkit.config.schema import Config
from toolkit.distributed.collectives import by_main
from toolkit.model_folder.folder import load_labels, read_best
from toolkit.training.checkpoints.checkpoint import (
    Checkpoint,
    Progress,
    check_resumable,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    same_run,
)

log = logging.getLogger(__name__)


def resumed_checkpoint(accelerator: Accelerator, out: Path, config: Config, manifest: Manifest) -> Checkpoint | None:
    """The newest whole checkpoint of ``out``, or None if there is none. Called by every rank.

    Raises UserError, on every rank, if one of them has not the main process's, or if the run cannot go on from it with
    this config and set.
    """
    own: list[Checkpoint] = []

    def choose() -> tuple[str, str] | None:
        if (out / "model" / "labels.json").exists():
            require_same("the run's model", load_labels(out / "model")[0], "the shards", manifest.labels)
        found = newest_checkpoint(out / "checkpoints")
        if found is None:
            return None
        own.append(found)
        return found.path.name, found.sha256

    chosen = by_main(accelerator, choose)
    if accelerator.num_processes > 1:
        _require_everywhere(accelerator, out / "checkpoints", chosen, own)
    if not own:
        if accelerator.is_main_process:
            log.info("no checkpoint in %s yet: starting from the beginning", out)
        return None
    for change in check_resumable(own[0], config_dict(config), manifest.fingerprint):
        log.info("resuming with %s", change)
    before = own[0].progress
    progress, line = by_main(
        accelerator, lambda: settle(out / "model", before, config_dict(config), manifest.fingerprint)
    )
    if line and accelerator.is_main_process:
        log.warning("%s", line)
    if progress.best_epoch < 0 <= before.best_epoch and progress.epoch >= config.train.epochs:
        raise UserError(
            "nothing-to-train", f"{line}; but none follows: set --train.epochs to more than {progress.epoch}"
        )
    own[0].progress = progress
    return own[0]


def settle(folder: Path, progress: Progress, config: dict[str, Any], shard_set: str) -> tuple[Progress, str]:
    """``progress`` whose best epoch is that of RUN/model (``folder``), and a line if the checkpoint says otherwise.

    The model is written before the checkpoint that knows of it, and both are whole or absent. They differ where a
    process ended between the two, where an older checkpoint took the place of a damaged one, and where somebody else
    had their hand in it. What lies there is what the run would leave: it alone is what later epochs must surpass. A
    model of an epoch that is to be trained again stays unless that epoch, or one that follows, is as good.
    """
    if progress.best_epoch < 0 and not (folder.is_dir() and any(folder.iterdir())):
        return progress, ""
    try:
        model, training_config = read_best(folder)
    except UserError as error:
        lost = replace(progress, best_score=None, best_epoch=-1, best_sha256="", bad_epochs=0)
        return (lost, f"the run's best model is lost ({error}): the best of the epochs that follow takes its place")
    epoch, monitor = model.epoch - 1, config["train"]["monitor"]
    if model.weights_sha256 == progress.best_sha256 or (not progress.best_sha256 and epoch == progress.best_epoch):
        return replace(progress, best_sha256=model.weights_sha256), ""
    what = f"{folder} is of epoch {model.epoch}"
    known = f"the checkpoint's best is epoch {progress.best_epoch + 1}"
    if progress.best_epoch < 0:
        known = "the checkpoint knows of none"
    comparable = model.monitor == monitor and model.shard_set == shard_set
    if model.score is None or not comparable or not same_run(training_config, config):
        what += f" and says no {monitor} that compares with this run's"
        return progress, f"{what}, {known}: it stays until an epoch is better than the checkpoint's best"
    what += f" with {monitor} {model.score:.6g}"
    theirs = replace(progress, best_score=model.score, best_epoch=epoch, best_sha256=model.weights_sha256, scored="")
    if epoch >= progress.epoch:
        theirs.bad_epochs = 0
    return theirs, f"{what}, {known}: the model's figure is the one to surpass"


def _require_everywhere(
    accelerator: Accelerator, folder: Path, chosen: tuple[str, str] | None, own: list[Checkpoint]
) -> None:
    """Read what was ``chosen`` (name, sha256) into ``own``. Raises UserError, on every rank, if one rank cannot."""
    problem = ""
    if not accelerator.is_main_process:
        try:
            own += _read(folder, chosen)
        except UserError as error:
            problem = str(error)
    told = enumerate(gather_object([(socket.gethostname(), problem)]))
    lacking = [(rank, host, text) for rank, (host, text) in told if text]
    if not lacking:
        return
    _, host, text = lacking[0]
    ranks = ", ".join(str(rank) for rank, _, _ in lacking)
    what = f"has not the checkpoint that the first process goes on from, {chosen[0]}" if chosen else (
        "sees checkpoints where the first process sees none"
    )  # fmt: skip
    raise UserError(
        "ranks-differ",
        f"rank {ranks} {what} (on {host}: {text}): put --out on a file system that all nodes see, under one name there",
    )


def _read(folder: Path, chosen: tuple[str, str] | None) -> list[Checkpoint]:
    """That checkpoint, or nothing where none was chosen. Raises UserError if this process sees something else.

    It is opened by its name, without a look into the folder: NFS may show a folder as it was a minute ago.
    """
    if chosen is None:
        if there := checkpoints(folder):
            raise UserError("ranks-differ", f"{there[-1]}")
        return []
    name, sha256 = chosen
    found = load_checkpoint(folder / name)
    if found.sha256 != sha256:
        raise UserError(
            "ranks-differ", f"the sha256 of {found.path / 'state.pt'} is {found.sha256[:12]} instead of {sha256[:12]}"
        )
    return [found]
