"""Moving average, gradual unfreezing, losses, mixing and the rest at once: whole runs in one and two processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toolkit_helpers import CHOSEN, TINY, error_lines, launch_2, posters_command, run_script
from train_tools import TINY_VIT, tiny_config

from toolkit.data.sources.shard_reader import ShardReader
from toolkit.model_folder.folder import load_model_folder
from toolkit.training.batches import train_plan
from toolkit.training.optim import lr_factor

PROBE = Path(__file__).resolve().parents[1] / "probe_train.py"

#: All at once; the transformer has neither BatchNorm nor dropout, so one and two processes compute the same.
RECIPE = [
    *TINY, *TINY_VIT, "--model.freeze=[stem@1, blocks.0@1]", "--loss.name=asl", "--augment.mixup=0.4",
    "--train.ema=0.9", "--optim.name=sgd", "--optim.lr=0.05", "--optim.layer_decay=0.8", "--optim.head_lr=2",
    "--train.epochs=2", "--train.keep_checkpoints=9", "--train.monitor=mAP", "--data.sampling=genre",
    "--train.log_steps=1", "--decide.thresholds=genre",
]  # fmt: skip
#: The same with BatchNorm, dropout, stochastic depth and recomputation: to be resumed to the bit.
NOISY = [
    *TINY, "--model.freeze=[stem@1, layer1@1]", "--loss.name=asl", "--augment.mixup=0.4", "--train.ema=0.9",
    "--model.drop_path=0.2", "--model.checkpointing=true", "--optim.name=adamw", "--optim.weight_decay=0.05",
    "--train.epochs=2", "--train.keep_checkpoints=9", "--train.checkpoint_steps=1", "--data.fit=stretch",
    "--decide.thresholds=global", "--decide.calibration=temperature", "--optim.schedule=cosine",
    "--optim.warmup_steps=2", "--optim.min_lr=0.1", "--train.log_steps=1",
]  # fmt: skip


def tensors(run: Path, number: int) -> dict[str, Any]:
    """The tensors of a run's checkpoint; ``number`` counts them, from 0 or, negative, from the last."""
    path = sorted((run / "checkpoints").iterdir())[number]
    return torch.load(path / "state.pt", weights_only=True)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as stream:
        return list(csv.DictReader(stream))


def epochs_of(run: Path) -> list[dict[str, str]]:
    """The rows of a run's epochs.csv."""
    return rows_of(run / "epochs.csv")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(shard_set: Path, runs: Path) -> Path:
    run = posters_command("train", "--shards", shard_set, "--out", runs / "one", *RECIPE, *CHOSEN)
    assert run.returncode == 0, run.stderr
    assert "epoch 2: stem, blocks.0 unfrozen" in run.stderr
    return runs / "one"


@pytest.fixture(scope="module")
def two(shard_set: Path, runs: Path) -> Path:
    run = launch_2("launch/train.py", "--shards", shard_set, "--out", runs / "two", *RECIPE, *CHOSEN)
    assert run.returncode == 0, run.stderr
    return runs / "two"


@pytest.fixture(scope="module")
def noisy(shard_set: Path, runs: Path) -> Path:
    run = posters_command("train", "--shards", shard_set, "--out", runs / "noisy", *NOISY)
    assert run.returncode == 0, run.stderr
    return runs / "noisy"


@pytest.mark.parametrize("number", [0, -1], ids=["while frozen", "thawed"])
def test_two_processes_train_the_model_of_one(one: Path, two: Path, number: int):
    alone, together = tensors(one, number), tensors(two, number)
    for part in ("model", "ema"):
        assert alone[part].keys() == together[part].keys()
        for name, tensor in alone[part].items():
            torch.testing.assert_close(together[part][name], tensor, rtol=1e-3, atol=1e-5)
    for a, b in zip(epochs_of(one), epochs_of(two), strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-3)
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), rel=1e-3)


def test_two_processes_decide_what_one_does(one: Path, two: Path):
    """With the calibration that is chosen for them: method, parameters, thresholds and what they rest on."""
    alone, together = (json.loads((run / "model" / "labels.json").read_text()) for run in (one, two))
    for labels in (alone, together):
        del labels["decisions"]  # a fingerprint of every bit
    assert alone["calibration"]["method"] != "none" and len(set(alone["thresholds"])) > 1  # else it says nothing
    assert {"none", "temperature", "platt"} == set(alone["chosen_on"]["held_out"])
    assert_alike(together, alone)


def assert_alike(a: Any, b: Any) -> None:
    """Whether two JSON values are the same but for the last digits of their numbers."""
    if isinstance(a, dict):
        assert list(a) == list(b)
        assert_alike(list(a.values()), list(b.values()))
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_alike(x, y)
    else:
        assert a == (pytest.approx(b, rel=1e-4, abs=1e-6) if isinstance(b, float) else b)


def test_frozen_in_the_first_epoch_to_the_bit_and_not_in_the_second(two: Path):
    first, last = tensors(two, 0)["model"], tensors(two, -1)["model"]
    held = [n for n in first if n.startswith(("blocks.0.", "patch_embed.", "pos_embed", "cls_token", "reg_token"))]
    # The moving average of what never moved is what never moved.
    average = tensors(two, 0)["ema"]
    assert held and all(torch.equal(first[n], average[n]) for n in held)
    assert not any(torch.equal(first[n], last[n]) for n in held)
    free = [n for n in first if n not in held]
    assert not all(torch.equal(first[n], average[n]) for n in free)


def test_one_optimiser_step_per_update_and_none_while_frozen(noisy: Path):
    state = tensors(noisy, -1)["optimizer"]["state"]
    epochs = epochs_of(noisy)
    steps = {int(kept["step"]) for kept in state.values()}
    # What thawed for the second epoch made the second epoch's steps, all else every one.
    assert steps == {int(epochs[1]["update"]), int(epochs[1]["update"]) - int(epochs[0]["update"])}


def test_rates_of_groups_and_of_updates(one: Path, noisy: Path):
    groups = tensors(one, -1)["optimizer"]["param_groups"]
    assert all(group["lr"] == pytest.approx(0.05 * group["lr_scale"]) for group in groups)
    depths = [2.0, *(0.8**depth for depth in range(1, 8))]  # head, six blocks, stem
    assert sorted({group["lr_scale"] for group in groups}, reverse=True) == pytest.approx(depths)
    config = tiny_config(*NOISY)
    log = rows_of(noisy / "log.csv")
    factor = lr_factor(config.optim, len(log))
    assert [float(row["lr"]) for row in log] == pytest.approx(
        [config.optim.lr * factor(step) for step in range(len(log))], rel=1e-5
    )
    assert len({row["lr"] for row in log}) > 3


def test_the_training_loss_is_the_mean_over_the_epochs_samples_repeats_included(one: Path, shard_set: Path):
    plan = train_plan(tiny_config(*RECIPE), ShardReader.of_split(shard_set, "train"))
    assert plan.num_samples > len(ShardReader.of_split(shard_set, "train"))
    log = rows_of(one / "log.csv")
    for epoch, row in enumerate(epochs_of(one)):
        losses = [float(update["loss"]) for update in log if int(update["epoch"]) == epoch]
        total = sum(loss * plan.count(step) for step, loss in enumerate(losses))
        assert float(row["train_loss"]) == pytest.approx(total / plan.num_samples, rel=1e-4)


def test_what_is_saved_and_judged_is_the_average(noisy: Path):
    config = json.loads((noisy / "model" / "config.json").read_text())["poster_toolkit"]
    assert config["weights"] == "ema"
    saved = load_file(noisy / "model" / "model.safetensors")
    epochs = epochs_of(noisy)
    number = [p.name for p in sorted((noisy / "checkpoints").iterdir())].index(
        f"step-{int(epochs[config['epoch'] - 1]['update']):08d}"
    )
    kept = tensors(noisy, number)
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept["ema"].items())
    assert not all(torch.equal(saved[name], tensor) for name, tensor in kept["model"].items())


def test_the_monitored_figure_picks_the_epoch(shard_set: Path, tmp_path: Path):
    picked = {}
    for monitor, best in (("loss", min), ("mAP", max), ("macro_f1", max)):
        out = tmp_path / monitor
        run = posters_command(
            "train", "--shards", shard_set, "--out", out, *TINY, "--train.epochs=4", f"--train.monitor={monitor}",
            "--train.patience=0", "--decide.max_micro_f_loss=0", "--decide.thresholds=genre", "--train.batch_size=14",
            "--train.seed=1", "--optim.lr=0.01",
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        figures = [float(row[f"val_{monitor}"]) for row in epochs_of(out)]
        config = json.loads((out / "model" / "config.json").read_text())["poster_toolkit"]
        assert config["weights"] == "raw"
        assert config["epoch"] == figures.index(best(figures)) + 1
        picked[monitor] = config["epoch"]
    assert len(set(picked.values())) > 1, picked  # else this says nothing


@pytest.mark.parametrize("update", [2, 3, 5], ids=["while frozen", "before thawing", "thawed"])
def test_killed_and_resumed_to_the_bit(noisy: Path, shard_set: Path, tmp_path: Path, update: int):
    options = ["--shards", shard_set, "--out", tmp_path / "run", *NOISY]
    assert run_script(PROBE, tmp_path / "spy", f"kill {update}", *options).returncode == -9
    resumed = posters_command("train", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert ("unfrozen" in resumed.stderr) == (update <= 3)
    assert same(tensors(tmp_path / "run", -1), tensors(noisy, -1))
    ours, theirs = tmp_path / "run/model/model.safetensors", noisy / "model/model.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()


def test_two_processes_killed_and_resumed(shard_set: Path, two: Path, tmp_path: Path):
    options = ["--shards", shard_set, "--out", tmp_path / "run", *RECIPE, "--train.checkpoint_steps=1"]
    assert launch_2(PROBE, tmp_path / "spy", "kill 3", *options).returncode != 0
    resumed = launch_2("launch/train.py", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert same(tensors(tmp_path / "run", -1), tensors(two, -1))


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints' tensors are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_the_evaluation_view_and_the_decisions_asked_for_are_saved(noisy: Path):
    folder = load_model_folder(noisy / "model")
    assert folder.preprocessing.fit == "stretch"
    assert len(set(folder.decisions.thresholds)) == 1 and folder.decisions.calibration == "temperature"


def test_a_trained_folder_loads_without_what_was_only_for_training(noisy: Path):
    folder = load_model_folder(noisy / "model")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(folder.model(images), folder.model(images))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optim.name=adahessian"], ["adahessian", "second derivatives"]),
        (["--model.name=vgg11", "--model.drop_path=0.1"], ["model.drop_path", "vgg11"]),
        (["--model.freeze=[backbone, fc]"], ["nothing to train"]),
        (["--model.freeze=[layer9@2]"], ["layer9"]),
        # Between two rows of the log; a checkpoint of a loss that is no number would take a good one's place.
        (
            ["--optim.name=sgd", "--optim.lr=1e30", "--train.checkpoint_steps=1"],
            ["weights that are not finite", "lower --optim.lr"],
        ),
    ],
)
def test_what_cannot_be_is_one_line(shard_set: Path, tmp_path: Path, options: list[str], words: list[str]):
    run = posters_command("train", "--shards", shard_set, "--out", tmp_path / "run", *TINY, *options)
    (line,) = error_lines(run)
    assert run.returncode == 2 and all(word in line for word in words), line
