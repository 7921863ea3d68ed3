"""Checkpoints are whole or absent, and a damaged newest one gives way to the one before."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from failing import fails
from train_tools import tiny_config

from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.storage.files import sha256_file
from toolkit.config.io import config_dict
from toolkit.config.schema import Config
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.training.checkpoints.checkpoint import (
    Progress,
    check_resumable,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    remove_partial_checkpoints,
    save_checkpoint,
)
from toolkit.training.setup import build_setup


def save(folder: Path, updates: int, keep: int = 3) -> Path:
    progress = Progress(epoch=1, step=2, updates=updates, best_score=0.1 + 0.2)
    tensors = {"model": {"w": torch.arange(updates)}, "optimizer": {}, "scaler": {}}
    return save_checkpoint(folder, progress, config_dict(Config()), "set", "labels", tensors, keep)


def test_round_trip_and_last_few_kept(tmp_path: Path):
    for updates in (5, 10, 100, 1000):
        save(tmp_path, updates)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000010", "step-00000100", "step-00001000"]
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.progress == Progress(1, 2, 1000, 0.1 + 0.2)
    assert found.tensors["model"]["w"].tolist() == list(range(1000))
    assert found.config == config_dict(Config())


@pytest.mark.parametrize("damage", ["flip", "cut", "no json", "bad json", "no tensors"])
def test_a_damaged_newest_one_is_passed_over_and_named(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture):
    save(tmp_path, 5)
    newest = save(tmp_path, 6)
    content = bytearray((newest / "state.pt").read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        (newest / "state.pt").write_bytes(content)
    elif damage == "cut":
        (newest / "state.pt").write_bytes(content[:-10])
    elif damage == "no json":
        (newest / "state.json").unlink()
    elif damage == "bad json":
        (newest / "state.json").write_text('{"progress": 3}')
    else:
        (newest / "state.pt").unlink()
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(tmp_path)
    assert found is not None and found.progress.updates == 5
    assert "step-00000006" in caplog.text and "damaged and skipped" in caplog.text


def test_half_written_ones_are_no_checkpoints(tmp_path: Path):
    (tmp_path / "step-00000009.77.partial").mkdir()
    assert newest_checkpoint(tmp_path) is None
    remove_partial_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_from_when_only_the_loss_was_monitored(tmp_path: Path):
    path = save(tmp_path, 5)
    facts = json.loads((path / "state.json").read_text())
    facts["progress"]["best_loss"] = facts["progress"].pop("best_score")
    for section, name in (("train", "ema"), ("train", "monitor"), ("optim", "layer_decay"), ("data", "fit")):
        del facts["config"][section][name]
    del facts["config"]["loss"], facts["config"]["augment"]
    (path / "state.json").write_text(json.dumps(facts))
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.progress.best_score == 0.1 + 0.2
    config = Config()
    (change,) = check_resumable(found, config_dict(config), "set")  # what it did not know had its default
    assert "sum over genres" in change
    config.train.ema = 0.99
    with fails("run-differs", "train.ema 0.99", "0.0"):
        check_resumable(found, config_dict(config), "set")


def test_where_all_are_damaged_nothing_starts_from_the_beginning(tmp_path: Path):
    for updates in (5, 6):
        (save(tmp_path, updates) / "state.json").unlink()
    with fails("checkpoint-damaged", 2, tmp_path):
        newest_checkpoint(tmp_path)


def test_a_step_that_is_saved_again_is_in_reach_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 5, keep=1)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "step-00000005":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("toolkit.training.checkpoints.checkpoint.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 5, keep=1)
    assert newest_checkpoint(tmp_path) is None
    remove_partial_checkpoints(tmp_path)
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.progress.updates == 5
    save(tmp_path, 5, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_checkpoint_from_before_updates_could_be_skipped(tmp_path: Path):
    path = save(tmp_path, 5)
    facts = json.loads((path / "state.json").read_text())
    for later in ("skipped", "skipped_samples", "loss_rows", "sizes"):
        del facts["progress"][later]
    del facts["config"]["train"]["on_nonfinite"]
    (path / "state.json").write_text(json.dumps(facts))
    found = newest_checkpoint(tmp_path)
    assert found is not None and found.progress.skipped == found.progress.skipped_samples == 0
    assert found.progress.loss_rows is None and found.progress.sizes == "tail"
    assert check_resumable(found, config_dict(Config()), "set") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"progress": {"epoch": -1}}, "progress.epoch: expected int >= 0"),
        ({"progress": {"epoch": 1.5}}, "progress.epoch: expected int, got float"),
        ({"progress": {"updates": 10**30}}, "progress.updates"),
        ({"progress": {"loss_sum": "much"}}, "progress.loss_sum: expected float, got str"),
        ({"progress": []}, "progress: expected object, got array"),
        ({"config": {"train": 3}}, "config[...]: expected object, got int"),
        ({"config": []}, "config: expected object, got array"),
        ({"labels": ["a"]}, "labels: expected str, got array"),
        ({"sha256": "../../x"}, "sha256: expected str matching"),
        ({"sha256": None}, "sha256: expected str, got null"),
    ],
)
def test_a_state_of_other_values_is_named(tmp_path: Path, change: dict[str, Any], words: str):
    path = save(tmp_path, 5)
    facts = json.loads((path / "state.json").read_text())
    facts["progress"]["of_a_later_version"] = facts["of_a_later_version"] = {"a": [1]}
    (path / "state.json").write_text(json.dumps(facts))
    assert load_checkpoint(path).progress.updates == 5
    (path / "state.json").write_text(json.dumps({**facts, **change}))
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert words in str(caught.value) and "state.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"progress": ' * 100_000])
def test_a_state_that_is_none_is_one_line(tmp_path: Path, text: str):
    path = save(tmp_path, 5)
    (path / "state.json").write_text(text)
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    assert "state.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("tensors", [[1], {"model": 3}, "text", {"model": {}, "optimizer": None}])
def test_tensors_of_another_make_are_one_line(tmp_path: Path, tensors: Any):
    path = save(tmp_path, 5)
    torch.save(tensors, path / "state.pt")
    facts = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**facts, "sha256": sha256_file(path / "state.pt")}))
    with fails("checkpoint-damaged", path):
        load_checkpoint(path)


def test_tensors_that_do_not_fit_the_run_are_one_line(shard_set: Path, tmp_path: Path):
    manifest, config = Manifest.read(shard_set), tiny_config()
    readers = [ShardReader.of_split(shard_set, split, manifest) for split in ("train", "val")]
    for tensors in ({}, {"model": {"fc.weight": torch.zeros(1)}}, {"model": {"fc.weight": 3}}):
        path = save_checkpoint(tmp_path, Progress(), config_dict(config), "set", "labels", tensors, 1)
        with pytest.raises(
            UserError, match=r"state\.pt does not fit this run \(.*start a new run in another --out"
        ) as caught:
            build_setup(Accelerator(cpu=True), config, manifest, readers, tmp_path, load_checkpoint(path))
        assert "\n" not in str(caught.value)
