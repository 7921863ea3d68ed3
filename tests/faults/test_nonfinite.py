"""Losses and gradients that are not finite: the run stops or leaves the update out, and names the samples."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from fault_tools import assert_same_run, ended, last_tensors, train_options
from toolkit_helpers import parse_train

from toolkit.data.sources.shard_reader import ShardReader
from toolkit.training.batches import train_plan

pytest_plugins = ("fault_fixtures",)

#: Neither BatchNorm nor dropout: one sample's NaN stays its own.
APART = ["--model.name=test_vit", "--model.head=linear", "--model.dropout=0", "--model.weights=null"]
SKIP = "--train.on_nonfinite=skip"
#: The update, counted from 0, in which the spoilt sample comes in the first epoch.
STEP = 4


@pytest.fixture(scope="module")
def spoilt(drawn_set: Path) -> str:
    """The id of a sample of update STEP of the first epoch."""
    reader = ShardReader.of_split(drawn_set, "train")
    plan = train_plan(parse_train(train_options(drawn_set, Path("R"))[1:]).config, reader)
    assert plan.steps_per_epoch == 7
    return reader.sample_id(int(plan.keys(0, STEP)[3]))


def rows(run: Path, name: str = "epochs.csv") -> list[dict[str, str]]:
    with open(run / name) as stream:
        return list(csv.DictReader(stream))


def updates_saved(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted((run / "checkpoints").glob("step-*"))]


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (["--train.log_steps=1", "--train.checkpoint_steps=1"], [3, 4]),
        (["--train.log_steps=99", "--train.checkpoint_steps=1"], [3, 4]),  # looked at when a checkpoint is due
        (["--train.log_steps=99", "--train.checkpoint_steps=3"], [3]),  # due after update 6: none with broken weights
        (["--train.log_steps=99"], []),  # at the end of the epoch, and still the right step
    ],
)
def test_it_stops_and_names_the_sample(
    options: list[str], saved: list[int], drawn_set: Path, spoilt: str, tmp_path: Path
):
    run = ended(train_options(drawn_set, tmp_path / "run", *APART, *options), tmp_path, 1, f"nan {spoilt}")
    assert run.statuses == [2]
    (line,) = run.errors
    assert f"the loss is not finite at epoch 1, step {STEP + 1} for 1 of 8 samples ({spoilt}): " in line
    for words in ("lower --optim.lr", "--train.on_nonfinite skip", "the last checkpoint is kept"):
        assert words in line
    assert updates_saved(tmp_path / "run") == saved and not (tmp_path / "run" / "model").exists()
    if saved:
        state = last_tensors(tmp_path / "run")["model"]
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
        assert state  # and what was saved goes on
        options = train_options(drawn_set, tmp_path / "run", *APART, SKIP, "--resume")
        assert ended(options, tmp_path / "again", 1, f"nan {spoilt}").statuses == [0]


def test_two_ranks_stop_with_the_sample_of_one(drawn_set: Path, spoilt: str, tmp_path: Path):
    options = train_options(drawn_set, tmp_path / "run", *APART, "--train.log_steps=99")
    run = ended(options, tmp_path, 2, f"nan {spoilt}")
    assert run.statuses == [2, 2]
    first, second = run.errors
    assert f"epoch 1, step {STEP + 1} for 1 of 8 samples ({spoilt}): " in first
    assert second == first.replace("error: ", "error: [rank 1] ")


@pytest.mark.parametrize(
    ("ranks", "options", "besides"),
    [
        (1, ["--train.ema=0.9"], ""),  # BatchNorm: its statistics, and the average's, are as before
        (2, ["--train.ema=0.9"], ""),
        (2, [*APART, "--train.accumulation=2", "--optim.clip_norm=0.5"], ";blind"),  # only one rank sees it
    ],
    ids=["one, BatchNorm learns", "two, it is held", "two, in parts"],
)
def test_a_skipped_update_is_as_if_it_had_been_left_out(
    ranks: int, options: list[str], besides: str, drawn_set: Path, spoilt: str, tmp_path: Path
):
    """To the bit: weights, buffers, optimiser, moving average, logs, and the model of the best epoch."""
    options = [*options, "--train.epochs=2", "--optim.schedule=cosine", "--train.checkpoint_steps=3", SKIP]
    for name, fault in (("skipped", "nan"), ("left-out", "leave-out")):
        run = ended(
            train_options(drawn_set, tmp_path / name, *options),
            tmp_path / f"{name}-said",
            ranks,
            f"{fault} {spoilt}{besides}",
        )
        assert run.statuses == [0] * ranks and run.errors == []
        told = [line for line in run.said[0].splitlines() if "update skipped: " in line]
        if fault == "nan":
            assert len(told) == 2 and all(spoilt in line for line in told)
            assert f"at epoch 1, step {STEP + 1} " in told[0] and "at epoch 2, step " in told[1]
    assert_same_run(tmp_path / "skipped", tmp_path / "left-out")
    log, epochs = rows(tmp_path / "skipped", "log.csv"), rows(tmp_path / "skipped")
    assert [row["skipped_updates"] for row in epochs] == ["1", "1"]
    first = [row["loss"] for row in log if row["epoch"] == "0"]
    assert [row["update"] for row in log] == [str(number) for number in range(1, 15)]  # the plan goes on as ever
    assert [not loss for loss in first] == [step == STEP for step in range(7)]
    counted = [(float(loss), 8 if step < 6 else 56 - 48) for step, loss in enumerate(first) if loss]
    mean = sum(loss * count for loss, count in counted) / sum(count for _, count in counted)
    assert float(epochs[0]["train_loss"]) == pytest.approx(mean, rel=1e-4)


def test_the_count_survives_a_kill(drawn_set: Path, spoilt: str, tmp_path: Path):
    options = [*APART, SKIP, "--train.checkpoint_steps=1"]
    whole = train_options(drawn_set, tmp_path / "whole", *options)
    assert ended(whole, tmp_path / "whole-said", 1, f"nan {spoilt}").statuses == [0]
    parts = train_options(drawn_set, tmp_path / "parts", *options)
    assert ended(parts, tmp_path / "first", 1, f"nan {spoilt};kill 0 {STEP + 2}").statuses == [-9]
    assert ended([*parts, "--resume"], tmp_path / "second", 1, f"nan {spoilt}").statuses == [0]
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    assert rows(tmp_path / "parts")[0]["skipped_updates"] == "1"


@pytest.mark.parametrize(
    ("sample", "most", "count"), [("one", 0, 1), ("all", 2, 3), ("all", 99, 7)], ids=["none borne", "too many", "all"]
)
def test_too_many_stop_the_run_with_the_list(
    sample: str, most: int, count: int, drawn_set: Path, spoilt: str, tmp_path: Path
):
    options = train_options(drawn_set, tmp_path / "run", *APART, SKIP)
    run = ended(options, tmp_path, 1, f"nan {spoilt if sample == 'one' else 'all'};most-skipped {most}")
    assert run.statuses == [2]
    (line,) = run.errors
    assert f"{count} of the epoch's 7" + " updates were skipped as not finite (limit " + f"{most}): " in line
    assert line.count("at epoch 1, step ") == count and (sample == "all" or spoilt in line)
    assert not list((tmp_path / "run").glob("checkpoints/*")) and not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("skip", [False, True], ids=["stop", "skip"])
def test_a_gradient_that_is_not_finite(skip: bool, ranks: int, drawn_set: Path, tmp_path: Path):
    options = train_options(drawn_set, tmp_path / "run", *APART, *([SKIP] if skip else []))
    run = ended(options, tmp_path, ranks, f"nan-gradient {STEP} {ranks - 1}")
    words = f"the gradient is not finite at epoch 1, step {STEP + 1}, but the loss of every sample is finite"
    assert run.statuses == [0 if skip else 2] * ranks
    assert f"update skipped: {words}" in run.said[0] if skip else words in run.errors[0]
    if skip:
        assert rows(tmp_path / "run")[0]["skipped_updates"] == "1"


def test_weights_that_burst(drawn_set: Path, tmp_path: Path):
    """Nothing is wrong with the samples, and nobody is told to look at them alone."""
    options = train_options(drawn_set, tmp_path / "run", *APART, "--optim.name=momentum", "--optim.lr=1e30")
    (line,) = ended(options, tmp_path / "said").errors
    assert "step 2 for all 8 samples (" in line and "so the cause is the weights, the learning rate, or one" in line
    options = train_options(
        drawn_set, tmp_path / "second", *APART, "--optim.name=momentum", "--optim.lr=3e38",
        "--loss.name=weighted", "--train.checkpoint_steps=1",
    )  # fmt: skip
    (line,) = ended(options, tmp_path / "said-2").errors
    assert "the last update made weights that are not finite: lower --optim.lr" in line
    assert not list((tmp_path / "second").glob("checkpoints/*"))
