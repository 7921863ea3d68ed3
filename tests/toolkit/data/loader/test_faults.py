"""Training over damaged images: told, counted, replaced or left out, and at some point refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from failing import fails
from toolkit_helpers import TINY, error_lines, launch_2, posters_command, run_script, weights_option
from torch.nn import functional as F
from train_tools import TINY_VIT, make_parts, tiny_config

from shards.dataset.index import read_index
from shards.dataset.manifest import Manifest
from toolkit.data.loader.faults import FaultPolicy, Faults, check_limit
from toolkit.data.loader.loader import targets_of
from toolkit.training.cached.probe import Probe


def overwrite(tar: Path, row: int) -> str:
    """Zeros in place of an image, its size unchanged; returns its key."""
    table, _ = read_index(tar)
    sample = table.to_pylist()[row]
    with open(tar, "r+b") as stream:
        stream.seek(sample["image_offset"])
        stream.write(bytes(sample["image_size"]))
    return sample["key"]


@pytest.fixture(scope="module")
def damaged(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A shard set with one damaged training and one damaged validation image, and their keys."""
    folder = shutil.copytree(shard_set, tmp_path_factory.mktemp("damaged") / "set")
    return folder, overwrite(folder / "train-00001.tar", 4), overwrite(folder / "val-00000.tar", 0)


def epochs(out: Path) -> list[dict[str, str]]:
    with open(out / "epochs.csv") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("on_error", ["replace", "mask"])
def test_a_run_goes_on_and_tells(damaged: tuple[Path, str, str], tmp_path: Path, on_error: str):
    folder, train_key, val_key = damaged
    run = posters_command(
        "train", "--shards", folder, "--out", tmp_path / "run", *TINY, "--train.epochs=2",
        f"--data.on_error={on_error}", "--data.max_errors=0.1",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = [line for line in run.stderr.splitlines() if "cannot be decoded" in line]
    assert len(said) == 2  # each image once, over both epochs
    assert "train-00001.tar" in said[0] and train_key in said[0] and "offset" in said[0]
    assert said[0].endswith("replaced" if on_error == "replace" else "left out")
    assert "val-00000.tar" in said[1] and val_key in said[1] and said[1].endswith("left out")
    assert [row["data_errors"] for row in epochs(tmp_path / "run")] == ["2", "2"]


#: Weights stay as they are, so that the loss of an epoch is that of the first weights.
STILL = ["--optim.name=momentum", "--optim.momentum=0", "--optim.lr=1e-12", "--model.dropout=0", "--train.epochs=1"]


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (1, TINY_VIT),
        (2, TINY_VIT),
        (2, [*TINY_VIT, "--train.accumulation=3", "--train.checkpoint_steps=1"]),
        (1, ["--model.head=linear", "--model.freeze=[backbone]", "--train.feature_views=1", weights_option()]),
    ],
    ids=["one", "two", "two, in parts", "cached features"],
)
def test_the_training_loss_is_the_mean_over_rows_that_count(
    shard_set: Path, tmp_path: Path, processes: int, options: list[str]
):
    """Of 56 training samples half are damaged: they are neither in the sum nor in its divisor."""
    folder = shutil.copytree(shard_set, tmp_path / "set")
    for row in range(14):
        overwrite(folder / "train-00000.tar", row)
        overwrite(folder / "train-00001.tar", row)
    options = [*options, *STILL, "--data.on_error=mask", "--data.max_errors=0.9", "--train.log_steps=1"]
    launched = run_script if processes == 1 else launch_2
    run = launched("launch/train.py", "--shards", folder, "--out", tmp_path / "run", *TINY, *options)
    assert run.returncode == 0, run.stderr
    parts = make_parts(folder, tiny_config(*options), tmp_path / "again")[1]
    parts.accumulation = 1
    feed = parts.inputs.feed(parts)
    model, losses, updates = parts.model.eval(), [], []
    for batch in feed.batches(0, 0):
        cached = isinstance(parts.inputs, Probe)
        inputs = batch.images if cached else parts.preprocessing.normalize(batch.images)
        with torch.no_grad():
            logits = model(inputs)
        targets = targets_of(batch.micro_batch, parts.train)
        rows = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
        losses += rows[torch.from_numpy(batch.micro_batch.valid)].tolist()
        updates.append(float(rows[torch.from_numpy(batch.micro_batch.valid)].mean()))
    feed.close()
    assert len(losses) == 56 - 28
    (epoch,) = epochs(tmp_path / "run")
    assert float(epoch["train_loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    with open(tmp_path / "run" / "log.csv") as stream:
        assert [float(row["loss"]) for row in csv.DictReader(stream)] == pytest.approx(updates, rel=1e-4)


def test_an_epoch_without_a_sample_is_none(shard_set: Path, tmp_path: Path):
    """Whatever share may be damaged: a mean over no row is not a loss of 0."""
    folder = shutil.copytree(shard_set, tmp_path / "set")
    manifest = Manifest.read(folder)
    for shard in manifest.of_split("train"):
        for row in range(shard.samples):
            overwrite(folder / shard.name, row)
    options = ["--data.on_error=mask", "--data.max_errors=1"]
    run = posters_command("train", "--shards", folder, "--out", tmp_path / "run", *TINY, *options)
    (line,) = error_lines(run)
    assert run.returncode == 2 and "none of the training samples of epoch 1 could be decoded" in line


def test_two_processes_count_together_and_agree(damaged: tuple[Path, str, str], tmp_path: Path):
    folder, *_ = damaged
    run = launch_2(
        "launch/train.py", "--shards", folder, "--out", tmp_path / "run", *TINY, "--train.epochs=1",
        "--data.max_errors=0.1", "--train.eval_batch_size=64",
    )  # fmt: skip
    # One validation batch for two ranks: the second's padding repeats the damaged first sample, which must count once.
    assert run.returncode == 0, run.stderr
    assert [row["data_errors"] for row in epochs(tmp_path / "run")] == ["2"]


@pytest.mark.parametrize("options", [["--data.max_errors=0"], ["--data.on_error=stop"]])
def test_too_many_end_the_run_with_their_places(damaged: tuple[Path, str, str], tmp_path: Path, options: list[str]):
    folder, train_key, _ = damaged
    run = posters_command("train", "--shards", folder, "--out", tmp_path / "run", *TINY, *options)
    (line,) = error_lines(run)
    assert run.returncode == 2
    assert all(word in line for word in ("train-00001.tar", train_key, "offset", "posters shards verify"))


def test_two_processes_end_together(damaged: tuple[Path, str, str], tmp_path: Path):
    folder, train_key, _ = damaged
    run = launch_2(
        "launch/train.py", "--shards", folder, "--out", tmp_path / "run", *TINY, "--data.max_errors=0", timeout=120
    )
    assert run.returncode != 0
    assert f"member '{train_key}'" in run.stderr and "posters shards verify" in run.stderr


def test_the_limit_is_a_share_and_the_list_is_short():
    found = {k: f"set.tar member '{k}' at offset {k} cannot be decoded (cut)" for k in range(30)}
    check_limit(found, FaultPolicy("mask", 0.3), 100)
    with fails("too-many-bad", "30 of 100", "20 more") as caught:
        check_limit(found, FaultPolicy("mask", 0.29), 100)
    assert str(caught.value).count("set.tar") == 10
    check_limit({}, FaultPolicy("stop"), 100)
    with fails("too-many-bad", "30 of 100 samples cannot be decoded; run") as caught:
        check_limit(found, FaultPolicy("stop", 1.0), 100)
    assert "allows" not in str(caught.value)


def test_substitutes_depend_on_seed_epoch_sample_and_attempt_alone():
    faults = [Faults(FaultPolicy(seed=seed), 1000) for seed in (0, 0, 1)]
    chosen = [[f.substitute(e, s, a) for e in (0, 1) for s in (5, 6) for a in (0, 1)] for f in faults]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 8 and all(0 <= sample < 1000 for sample in chosen[0])
