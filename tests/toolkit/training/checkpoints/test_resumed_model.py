"""RUN/model against what the checkpoint knows, case by case; and in which order both come to the disk."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toolkit_helpers import make_model_folder

from shards.dataset.labels import LabelSet
from shards.storage.files import PARTIAL, flush
from toolkit.config.io import config_dict
from toolkit.config.schema import Config
from toolkit.model_folder import folder as model_module
from toolkit.model_folder.folder import read_best, recover_model_folder
from toolkit.models.heads import HeadSpec
from toolkit.training.checkpoints import checkpoint as checkpoint_module
from toolkit.training.checkpoints.checkpoint import Progress, save_checkpoint
from toolkit.training.checkpoints.resume import reconcile_best

#: In the second half of the third epoch, the second one was the best.
KNOWN = Progress(epoch=2, step=5, updates=19, best_score=0.5, best_epoch=1, best_sha256="a" * 64, bad_epochs=0)
CONFIG = config_dict(Config())
#: Of a start of which no checkpoint came.
OTHER = {**CONFIG, "model": {**CONFIG["model"], "name": "resnet18"}}


@pytest.fixture
def run_model(model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "model"
    shutil.copytree(model_folder, folder)
    return folder


def says(folder: Path, **facts: Any) -> str:
    """Have the folder say this of itself; its digest."""
    config = json.loads((folder / "config.json").read_text())
    config["poster_toolkit"].update({"training_config": CONFIG, **facts})
    (folder / "config.json").write_text(json.dumps(config))
    digest: str = config["poster_toolkit"]["weights_sha256"]
    return digest


def test_what_the_checkpoint_knows_is_left_as_it_is(run_model: Path):
    digest = says(run_model, epoch=2, monitor="loss", score=0.5, shard_set="set")
    known = replace(KNOWN, best_sha256=digest)
    assert reconcile_best(run_model, known, CONFIG, "set") == (known, "")


def test_a_checkpoint_of_an_earlier_version_learns_the_digest(run_model: Path):
    digest = says(run_model, epoch=2)  # nor does the model of that version say its score
    before = replace(KNOWN, best_sha256="")
    assert reconcile_best(run_model, before, CONFIG, "set") == (replace(KNOWN, best_sha256=digest), "")


@pytest.mark.parametrize(
    ("epoch", "score", "bad_epochs"),
    [
        (3, 0.4, 0),  # killed between model and checkpoint
        (7, 0.3, 0),  # an older checkpoint in the place of several
        (2, 0.6, 2),  # an older model was put there
        (2, 0.5, 2),  # the same epoch, on another machine
    ],
)
def test_the_model_that_is_there_counts(run_model: Path, epoch: int, score: float, bad_epochs: int):
    digest = says(run_model, epoch=epoch, monitor="loss", score=score, shard_set="set")
    before = replace(KNOWN, bad_epochs=2)
    after, line = reconcile_best(run_model, before, CONFIG, "set")
    assert after == replace(before, best_epoch=epoch - 1, best_score=score, best_sha256=digest, bad_epochs=bad_epochs)
    assert f"has the model of epoch {epoch} with loss {score:g}, but the checkpoint's best epoch is 2; " in line
    assert before == replace(KNOWN, bad_epochs=2) and "\n" not in line


@pytest.mark.parametrize(
    "facts",
    [
        {"epoch": 3, "monitor": "mAP", "score": 0.4, "shard_set": "set"},
        {"epoch": 3, "monitor": "loss", "score": 0.4, "shard_set": "another"},
        {"epoch": 3, "shard_set": "set"},
        {"epoch": 3, "monitor": "loss", "score": 0.4, "shard_set": "set", "training_config": OTHER},
        {"epoch": 3, "monitor": "loss", "score": 0.4, "shard_set": "set", "training_config": None},
        {"epoch": 3, "monitor": "loss", "score": 0.4, "shard_set": "set", "training_config": {"model": 3}},
    ],
)
def test_a_figure_that_does_not_compare_is_left_out_of_it(run_model: Path, facts: dict[str, Any]):
    says(run_model, **facts)
    after, line = reconcile_best(run_model, KNOWN, CONFIG, "set")
    assert after == KNOWN and "the model stays until an epoch is better than the checkpoint's best" in line


@pytest.mark.parametrize("damage", ["gone", "no weights", "other weights", "no json", "cut json", "wrong score"])
def test_a_lost_model_is_replaced_by_the_best_that_follows(run_model: Path, damage: str):
    config = run_model / "config.json"
    if damage == "gone":
        shutil.rmtree(run_model)
    elif damage == "no weights":
        (run_model / "model.safetensors").unlink()
    elif damage == "other weights":
        (run_model / "model.safetensors").write_bytes(b"x")
    elif damage == "no json":
        config.unlink()
    elif damage == "cut json":
        config.write_text(config.read_text()[:-20])
    else:
        says(run_model, score="much")
    after, line = reconcile_best(run_model, KNOWN, CONFIG, "set")
    assert after == replace(KNOWN, best_epoch=-1, best_score=None, best_sha256="")
    assert line.startswith("the run's best model is lost (") and "\n" not in line


def test_a_run_without_a_best_epoch_lacks_no_model(tmp_path: Path):
    assert reconcile_best(tmp_path / "model", Progress(updates=3), CONFIG, "set") == (Progress(updates=3), "")


def test_a_model_says_its_score_to_the_last_digit(run_model: Path):
    score = 0.1 + 0.2
    digest = says(run_model, epoch=3, monitor="loss", score=score, shard_set="set")
    found, _ = read_best(run_model)
    assert found.score == score and found.weights_sha256 == digest


def test_what_is_left_of_the_older_model_is_swept(run_model: Path):
    """Killed when the new model had its name and the older one was yet to go."""
    old = run_model.with_name("model.old")
    shutil.copytree(run_model, old)
    recover_model_folder(run_model)
    assert run_model.exists() and not old.exists()


# --- to the disk ------------------------------------------------------------------------------------------------------


class Disk:
    """What was brought to the disk, renamed and removed, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        fsync, rename, rmtree = os.fsync, os.replace, shutil.rmtree

        def flushing(descriptor: int) -> None:
            self.events.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))
            fsync(descriptor)

        def renaming(source: Any, target: Any) -> None:
            self.events.append(("rename", str(target)))
            rename(source, target)

        def removing(path: Any, ignore_errors: bool = False) -> None:
            if Path(path).exists():
                self.events.append(("remove", str(path)))
            rmtree(path, ignore_errors=ignore_errors)

        monkeypatch.setattr(os, "fsync", flushing)
        for module in (checkpoint_module, model_module):
            monkeypatch.setattr(module.os, "replace", renaming)
            monkeypatch.setattr(module.shutil, "rmtree", removing)

    def at(self, kind: str, path: Path) -> int:
        return self.events.index((kind, str(path)))


def test_a_model_is_on_the_disk_before_the_older_one_goes(
    run_model: Path, labels: LabelSet, monkeypatch: pytest.MonkeyPatch
):
    names, disk = {path.name for path in run_model.iterdir()}, Disk(monkeypatch)
    make_model_folder(run_model, labels, HeadSpec("linear", (), 0.0))
    renamed = disk.at("rename", run_model)
    before = [Path(path).name for kind, path in disk.events[:renamed] if kind == "flush"]
    assert names <= set(before) and before[-1].startswith("model.") and before[-1].endswith(PARTIAL)
    assert renamed < disk.at("flush", run_model.parent) < disk.at("remove", run_model.with_name("model.old"))


def test_a_checkpoint_is_on_the_disk_before_older_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "checkpoints"
    tensors = {"model": {"w": torch.zeros(3)}, "optimizer": {}, "scaler": {}}
    save_checkpoint(folder, Progress(updates=1), {}, "set", "labels", tensors, 1)
    disk = Disk(monkeypatch)
    path = save_checkpoint(folder, Progress(updates=2), {}, "set", "labels", tensors, 1)
    renamed = disk.at("rename", path)
    before = [Path(name).name for kind, name in disk.events[:renamed] if kind == "flush"]
    assert any(name.startswith("state.pt") for name in before)
    assert any(name.startswith("state.json") for name in before)
    assert before[-1].startswith("step-00000002.")
    assert renamed < disk.at("flush", folder) < disk.at("remove", folder / "step-00000001")


def test_a_file_system_that_cannot_flush_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As some network file systems; a file that cannot be flushed is not on the disk."""
    (tmp_path / "file").touch()

    def refuse(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    flush(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        flush(tmp_path / "file")
