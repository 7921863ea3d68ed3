"""Choose the checkpoint from which a run resumes, and check the run's best model.

The main process chooses the checkpoint, and sends its name and sha256 to the other ranks. All ranks start from this
checkpoint, or all from the beginning. Ranks exchange only gradients, so different weights on one rank would cause no
error.
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
    """Return the newest valid checkpoint of ``out``, or None if there is none. Called by every rank.

    Raises UserError, on every rank, if one rank cannot read this checkpoint, or if the checkpoint does not fit the
    config or the shard set.
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
        if accelerator.is_main_process and (out / "log.csv").exists():  # else this is the first start of the run
            log.info("no checkpoint in %s: starting from the beginning", out)
        return None
    for change in check_resumable(own[0], config_dict(config), manifest.fingerprint):
        log.info("resuming with %s", change)
    before = own[0].progress
    progress, line = by_main(
        accelerator, lambda: reconcile_best(out / "model", before, config_dict(config), manifest.fingerprint)
    )
    if line and accelerator.is_main_process:
        log.warning("%s", line)
    if progress.best_epoch < 0 <= before.best_epoch and progress.epoch >= config.train.epochs:
        raise UserError(
            "nothing-to-train", f"{line}; but no epoch is left: set --train.epochs to more than {progress.epoch}"
        )
    own[0].progress = progress
    return own[0]


def reconcile_best(folder: Path, progress: Progress, config: dict[str, Any], shard_set: str) -> tuple[Progress, str]:
    """Return ``progress`` with the best epoch of RUN/model (``folder``), and a message ("" if nothing differed).

    RUN/model is written before its checkpoint. The two best epochs differ if the run ended between these writes, if an
    older checkpoint replaces a damaged one, or if another program changed RUN/model. RUN/model is the result of the
    run, so a later epoch replaces it only if it is better. If the run repeats the best epoch, an equal score is enough.
    """
    if progress.best_epoch < 0 and not (folder.is_dir() and any(folder.iterdir())):
        return progress, ""
    try:
        model, training_config = read_best(folder)
    except UserError as error:
        lost = replace(progress, best_score=None, best_epoch=-1, best_sha256="", bad_epochs=0)
        return (lost, f"the run's best model is lost ({error}): the best of the later epochs will replace it")
    epoch, monitor = model.epoch - 1, config["train"]["monitor"]
    if model.weights_sha256 == progress.best_sha256 or (not progress.best_sha256 and epoch == progress.best_epoch):
        return replace(progress, best_sha256=model.weights_sha256), ""
    what = f"{folder} has the model of epoch {model.epoch}"
    known = f"but the checkpoint's best epoch is {progress.best_epoch + 1}"
    if progress.best_epoch < 0:
        known = "but the checkpoint has no best epoch"
    comparable = model.monitor == monitor and model.shard_set == shard_set
    if model.score is None or not comparable or not same_run(training_config, config):
        what += f" without a {monitor} that this run can compare"
        return progress, f"{what}, {known}: the model stays until an epoch is better than the checkpoint's best"
    what += f" with {monitor} {model.score:.6g}"
    theirs = replace(progress, best_score=model.score, best_epoch=epoch, best_sha256=model.weights_sha256, scored="")
    if epoch >= progress.epoch:
        theirs.bad_epochs = 0
    return theirs, f"{what}, {known}; a later epoch replaces this model only if it is better"


def _require_everywhere(
    accelerator: Accelerator, folder: Path, chosen: tuple[str, str] | None, own: list[Checkpoint]
) -> None:
    """On ranks above 0, append checkpoint ``chosen`` to ``own``. If one rank fails, all ranks raise UserError."""
    problem = ""
    if not accelerator.is_main_process:
        try:
            own += _read(folder, chosen)
        except UserError as error:
            problem = str(error)
    gathered = enumerate(gather_object([(socket.gethostname(), problem)]))
    lacking = [(rank, host, text) for rank, (host, text) in gathered if text]
    if not lacking:
        return
    _, host, text = lacking[0]
    ranks = ", ".join(str(rank) for rank, _, _ in lacking)
    what = f"does not have the checkpoint that the first process resumes from, {chosen[0]}" if chosen else (
        "finds checkpoints, but the first process finds none"
    )  # fmt: skip
    raise UserError(
        "ranks-differ",
        f"rank {ranks} {what} (on {host}: {text}): put --out on a file system that all nodes share, "
        f"under the same path",
    )


def _read(folder: Path, chosen: tuple[str, str] | None) -> list[Checkpoint]:
    """Return [checkpoint ``chosen``], or [] for None. Raises UserError if ``folder`` has another checkpoint or none.
    The file is opened by its name, because NFS may list an old state of the folder.
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
