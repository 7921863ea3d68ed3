"""Checkpoints are whole or absent, and a damaged newest one gives way to the one before."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from shards.errors import UserError
from toolkit.checkpoint import (
    Progress,
    check_resumable,
    checkpoints,
    newest_checkpoint,
    remove_partial_checkpoints,
    save_checkpoint,
)
from toolkit.config import Config
from toolkit.config_cli import config_dict


def save(folder: Path, updates: int, keep: int = 3) -> Path:
    progress = Progress(epoch=1, step=2, updates=updates, best_loss=0.1 + 0.2)
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
def test_a_damaged_newest_one_is_passed_over_and_named(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
):
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
    assert "step-00000006" in caplog.text and "passed over" in caplog.text


def test_half_written_ones_are_no_checkpoints(tmp_path: Path):
    (tmp_path / "step-00000009.77.partial").mkdir()
    assert newest_checkpoint(tmp_path) is None
    remove_partial_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_may_change_on_resume(tmp_path: Path):
    save(tmp_path, 5)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    config = Config()
    assert check_resumable(found, config_dict(config), "set") == []
    config.train.epochs = 50
    assert check_resumable(found, config_dict(config), "set") == ["train.epochs 30 -> 50"]
    with pytest.raises(UserError, match="shard set"):
        check_resumable(found, config_dict(config), "another")
    config.train.batch_size = 128
    with pytest.raises(UserError, match=r"train\.batch_size 128: it was trained with 64"):
        check_resumable(found, config_dict(config), "set")
