"""What a resumed run may have otherwise: a list; all else is fixed, in a line, and what is on it runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from toolkit_helpers import CHOSEN, config_keys
from train_tools import tiny_config

from toolkit.config.io import config_dict
from toolkit.config.schema import Config, LossConfig
from toolkit.config.validation import check_config
from toolkit.training.checkpoints.checkpoint import (
    MAY_CHANGE,
    Checkpoint,
    Progress,
    check_resumable,
    newest_checkpoint,
    same_run,
    save_checkpoint,
)
from toolkit.training.run import train


def saved(folder: Path, config: Config, **progress: Any) -> Checkpoint:
    """A checkpoint of a run with this config."""
    save_checkpoint(folder, Progress(updates=5, **progress), config_dict(config), "set", "labels", {}, 1)
    found = newest_checkpoint(folder)
    assert found is not None
    return found


def test_what_may_change_on_resume(tmp_path: Path):
    config = Config()
    found = saved(tmp_path, config)
    assert check_resumable(found, config_dict(config), "set") == []
    config.train.epochs = 50
    assert check_resumable(found, config_dict(config), "set") == ["train.epochs 30 -> 50"]
    with fails("run-differs", "another", "--shards"):
        check_resumable(found, config_dict(config), "another")
    config.train.batch_size = 128
    with fails("run-differs", "train.batch_size 128", 64):
        check_resumable(found, config_dict(config), "set")


def test_mixing_starts_and_stops_between_epochs_only(tmp_path: Path):
    """Within an epoch, another size of groups would move the edges of updates: samples would be skipped or repeated."""
    plain, mixing = Config(), Config()
    mixing.augment.mixup = 0.2
    for before, now in ((plain, mixing), (mixing, plain)):
        change = [f"augment.mixup {before.augment.mixup} -> {now.augment.mixup}"]
        assert check_resumable(saved(tmp_path, before), config_dict(now), "set") == change
        within = saved(tmp_path, before, step=3, sizes="even")
        with fails("run-differs", within.path, "augment.mixup", "augment.cutmix", "epoch"):
            check_resumable(within, config_dict(now), "set")
        # epochs of full updates, as runs of earlier versions have them, have the same edges either way
        assert check_resumable(saved(tmp_path, before, step=3, sizes="tail"), config_dict(now), "set") == change
    stronger = Config()
    stronger.augment.mixup = 0.4
    assert check_resumable(saved(tmp_path, mixing, step=3, sizes="even"), config_dict(stronger), "set") == [
        "augment.mixup 0.2 -> 0.4"
    ]


def test_a_checkpoint_of_before_losses_had_options_of_their_own(tmp_path: Path):
    config = config_dict(Config(loss=LossConfig("asl", options={"gamma_neg": 3.0})))
    found = saved(tmp_path, Config())
    found.config["loss"] = {
        "name": "asl", "smoothing": 0.0, "pos_weight_cap": 20.0, "focal_gamma": 2.0, "gamma_pos": 0.0,
        "gamma_neg": 3.0, "clip": 0.05,
    }  # fmt: skip
    assert check_resumable(found, config, "set") == []
    found.config["loss"]["gamma_neg"] = 4.0
    with fails("run-differs", "loss.options", "3.0", "4.0"):
        check_resumable(found, config, "set")


@pytest.mark.parametrize("loss", [{"gamma_neg": 3.0}, {"options": {"gamma_neg": 3.0}}], ids=["flat", "options"])
def test_an_option_of_a_loss_that_an_earlier_version_did_not_know_had_its_default(tmp_path: Path, loss: dict[str, Any]):
    found = saved(tmp_path, Config())
    found.config["loss"] = {"name": "asl", "smoothing": 0.0, **loss}
    config = Config(loss=LossConfig("asl", options={"gamma_neg": 3.0}))
    assert check_resumable(found, config_dict(config), "set") == []
    config.loss.options["clip"] = 0.1
    with fails("run-differs", "loss.options"):
        check_resumable(found, config_dict(config), "set")


def test_a_head_on_cached_features_keeps_its_backbone(tmp_path: Path):
    config = Config()
    config.train.feature_views = 2
    found = saved(tmp_path, config)
    assert check_resumable(found, config_dict(config), "set") == []
    config.model.weights = "other.safetensors"
    with fails("run-differs", "model.weights 'other.safetensors'", None):
        check_resumable(found, config_dict(config), "set")


#: Another value of what is no switch, or of what not every other value goes with.
OTHERWISE: dict[str, Any] = {
    "data.image_size": 48, "data.crop_scale": (0.5, 1.0), "data.crop_ratio": (1.0, 1.2), "data.flip": 0.25,
    "data.crop_pct": 0.9, "data.fit": "stretch", "data.sampling": "genre", "data.repeat_below": 0.2,
    "data.geometry": "cpu", "data.order": "window", "data.on_error": "mask", "data.max_errors": 0.5,
    "model.name": "test_vit", "model.weights": "other.safetensors", "model.head": "levels", "model.hidden": (8, 8),
    "model.dropout": 0.25, "model.drop_path": 0.1, "model.freeze": (), "augment.brightness": 0.1,
    "augment.contrast": 0.1, "augment.saturation": 0.1, "augment.magnitude": 5.0, "augment.erase": 0.2,
    "augment.mixup": 0.2, "augment.cutmix": 0.5, "data.train_crop": "none",
    "loss.name": "focal", "loss.smoothing": 0.1, "loss.options": {"focal_gamma": 3.0},
    "optim.name": "adamw", "optim.lr": 0.0001,
    "optim.weight_decay": 0.1, "optim.momentum": 0.5, "optim.layer_decay": 0.7, "optim.schedule": "cosine",
    "optim.min_lr": 0.1, "train.precision": "bf16", "train.monitor": "mAP", "train.ema": 0.5,
    "train.feature_cache": "elsewhere", "augment.name": "code_of_users:Invert",
    "augment.options": {"probability": 0.25}, "metric.name": "code_of_users:FBeta", "metric.options": {"beta": 1.0},
    "model.adapter": "code_of_users:Nothing", "model.adapter_options": {"rank": 2},
    "model.head_options": {"width": 4}, "optim.options": {"eps": 1e-6},
    "train.on_nonfinite": "skip", "decide.thresholds": "global",
    "decide.aim": "f0.5", "decide.calibration": "platt", "decide.max_micro_f_loss": 0.0,
}  # fmt: skip


HEAD = "code_of_users:Head"
#: Options of a class → the key that names the class.
NEEDS = {
    "augment.options": "augment.name", "metric.options": "metric.name", "model.adapter_options": "model.adapter",
    "model.head_options": "model.head",
}  # fmt: skip


def otherwise(config: Config, *keys: str) -> Config:
    """``config`` with other values of these keys. A new option that is no bool and no number belongs into OTHERWISE."""
    config = copy.deepcopy(config)
    for key in keys:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        opposite: Any = {} if value else {"tensorboard": {}} if isinstance(value, dict) else not value
        other = OTHERWISE[key] if key in OTHERWISE else opposite if isinstance(value, (bool, dict)) else value + 1
        assert other != value
        setattr(getattr(config, section), name, other)
    return config


def test_keys_that_may_change_exist():
    assert set(config_keys()) >= MAY_CHANGE


def test_what_people_change_and_what_makes_another_run():
    assert {
        "train.epochs", "train.patience", "optim.lr", "optim.weight_decay", "augment.mixup", "model.drop_path",
        "model.checkpointing", "train.accumulation", "train.auto_batch", "train.compile", "train.precision",
        "data.workers", "data.on_error", "decide.aim",
    } <= MAY_CHANGE  # fmt: skip
    assert not MAY_CHANGE & {
        "data.image_size", "data.sampling", "data.fit", "model.head", "model.hidden", "model.members", "model.freeze",
        "loss.name", "loss.smoothing", "optim.name", "optim.layer_decay", "optim.head_lr", "train.batch_size",
        "train.seed", "train.monitor", "train.ema", "train.feature_views", "train.standardize",
    }  # fmt: skip


@pytest.mark.parametrize("key", config_keys())
def test_every_option_is_fixed_or_may_change(tmp_path: Path, key: str):
    usual = Config()
    if key == "loss.options":
        usual.loss = LossConfig("focal")
    elif key == "train.feature_views":
        usual.model.freeze = ("backbone",)
    elif key in NEEDS:
        setattr(
            getattr(usual, key.split(".")[0]),
            NEEDS[key].split(".")[1],
            HEAD if key == "model.head_options" else OTHERWISE[NEEDS[key]],
        )
    found, config = saved(tmp_path, usual), otherwise(usual, key)
    check_config(config)
    if key in MAY_CHANGE:
        (change,) = check_resumable(found, config_dict(config), "set")
        assert change.startswith(f"{key} ")
    else:
        with fails("run-differs", f" {key} ") as e:
            check_resumable(found, config_dict(config), "set")
        assert "\n" not in str(e.value) and "start a new run in another --out" in str(e.value)


def test_what_became_a_constant_is_a_change_that_is_shown(tmp_path: Path):
    found = saved(tmp_path, Config())
    found.config["train"] |= {"channels_last": False, "max_skipped": 10}
    found.config["augment"] |= {"mix_prob": 0.5}
    lines = ["train.channels_last False -> True", "augment.mix_prob 0.5 -> 1.0"]
    assert check_resumable(found, config_dict(Config()), "set") == lines
    assert same_run(found.config, config_dict(Config()))


def test_an_option_of_a_later_version_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, later = saved(tmp_path, Config()), config_dict(Config())
    later["model"]["depth"] = 3
    monkeypatch.setattr(
        "toolkit.training.checkpoints.checkpoint.config_dict",
        lambda config: {**later, "model": {**later["model"], "depth": 2}},
    )
    with fails("run-differs", "model.depth 3", 2):
        check_resumable(found, later, "set")


@pytest.mark.parametrize("head", ["ensemble", "mlp"])
def test_a_resume_with_all_that_may_change_runs(shard_set: Path, tmp_path: Path, one_thread: None, head: str):
    """All at once but compiling, which takes a minute, what a process keeps, and what does not go with the rest."""
    config = tiny_config(f"--model.head={head}", "--train.epochs=1", "--train.ema=0.9", "--optim.name=sgd", *CHOSEN)
    assert train(config, shard_set, tmp_path) == 0
    left_out = {"train.compile", "model.weights", "model.pretrained", "train.precision", "train.fsdp"}
    changed = otherwise(config, *(MAY_CHANGE - left_out))
    assert train(changed, shard_set, tmp_path, resume=True) == 0
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and found.progress.epoch == 2 and found.config == config_dict(changed)


def test_another_number_of_members_is_one_line(shard_set: Path, tmp_path: Path, one_thread: None):
    config = tiny_config("--model.head=ensemble", "--model.members=2", "--train.epochs=1")
    assert train(config, shard_set, tmp_path) == 0
    before = (tmp_path / "config.yaml").read_bytes()
    with fails("run-differs", "model.members 3", 2):
        train(otherwise(config, "model.members"), shard_set, tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_bytes() == before
