"""Half precision with a gradient scaler: overflows at the start are passed over, endless ones stop the run.

The runs compute in fp16 on the CPU, with the scaler put where accelerate has it on a GPU. The tests' network overflows
at scales of 2^17 and more.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from fault_tools import assert_same, assert_same_run, course, ended, last_tensors, train_options

from toolkit.training.nonfinite import MOST_OVERFLOWS, restore_scaler

pytest_plugins = ("fault_fixtures",)

#: At which the network overflows several times.
HIGH = "fp16 1048576"
MORE = ["--train.epochs=2", "--train.ema=0.9", "--optim.schedule=cosine", "--optim.warmup_steps=3"]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path) as stream:
        return list(csv.DictReader(stream))


def progress_of(checkpoint: Path) -> dict[str, int]:
    return json.loads((checkpoint / "state.json").read_text())["progress"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_overflows_at_the_start_are_as_if_those_updates_had_been_left_out(ranks: int, drawn_set: Path, tmp_path: Path):
    """To the bit: weights, BatchNorm, optimiser, moving average and its step, rates; and no error is made of it."""
    ours, theirs = tmp_path / "skipped", tmp_path / "left-out"
    keep = ["--train.checkpoint_steps=1", "--train.keep_checkpoints=99"]
    options = train_options(drawn_set, ours, *MORE, *keep)
    run = ended(options, tmp_path / "said", ranks, f"{HIGH};most-skipped 0")
    assert run.statuses == [0] * ranks and run.errors == [], run.said

    log, epochs = rows(ours / "log.csv"), rows(ours / "epochs.csv")
    missed = [row["loss"] == "" for row in log]
    first = missed.index(False)
    scale = float(log[first]["loss_scale"])
    assert first >= 3 and scale == 2.0 ** (20 - first)
    # Which the scaler knows anyway: it is looked for near the highest that fits, so one more may come later.
    options = train_options(drawn_set, theirs, *MORE, *keep)
    other = ended(options, tmp_path / "other", ranks, f"fp16 {scale};leave-out-first {first}")
    assert other.statuses == [0] * ranks, other.said
    assert_same(last_tensors(ours), last_tensors(theirs))
    weights = [(run / "model/model.safetensors").read_bytes() for run in (ours, theirs)]
    assert weights[0] == weights[1]
    shown = [[[c for c in row if "loss_scale" not in c] for row in course(run)] for run in (ours, theirs)]
    assert shown[0] == shown[1]

    assert [row["update"] for row in log] == [str(number) for number in range(1, 15)]
    assert [int(row["skipped_updates"]) for row in epochs] == [sum(missed[:7]), sum(missed[7:])]
    made = [sum(not gone for gone in missed[:number]) for number in range(15)]
    wanted = [0.0015 * min(1.0, (max(1, count)) / 3) for count in made[1:]]  # the warm-up waits
    assert [float(row["lr"]) for row in log[:7]] == pytest.approx(wanted[:7], rel=1e-4)
    losses = [float(row["loss"]) for row in log[:7] if row["loss"]]
    assert float(epochs[0]["train_loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    (line,) = re.findall("epoch 1: .* were skipped.*", run.said[0])
    assert f"{sum(missed[:7])} of 7 updates were skipped, {sum(missed[:7])} of them because gradients" in line
    assert "were skipped" not in "".join(run.said[1:])

    saved = sorted((ours / "checkpoints").iterdir())
    assert [path.name for path in saved] == [f"step-{number:08d}" for number in range(1, 15)]
    found = progress_of(saved[5])
    assert (found["updates"], found["step"], found["updates"] - found["left_out"]) == (6, 6, made[6])


def test_a_run_killed_while_it_looks_for_its_scale_comes_to_the_same_end(drawn_set: Path, tmp_path: Path):
    options = [*MORE, "--train.checkpoint_steps=1"]
    whole = train_options(drawn_set, tmp_path / "whole", *options)
    assert ended(whole, tmp_path / "whole-said", 1, HIGH).statuses == [0]
    parts = train_options(drawn_set, tmp_path / "parts", *options)
    assert ended(parts, tmp_path / "first", 1, f"{HIGH};kill 0 2").statuses == [-9]
    # The scaler of the new process begins elsewhere: what counts is the checkpoint's.
    assert ended([*parts, "--resume"], tmp_path / "second", 1, "fp16 1024").statuses == [0]
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_that_never_fit_stop_the_run_on_all_ranks(ranks: int, drawn_set: Path, tmp_path: Path):
    options = train_options(
        drawn_set, tmp_path / "run", "--train.epochs=4", "--train.checkpoint_steps=1",
    )  # fmt: skip
    fault = f"fp16 16;nan-gradient all {ranks - 1}"
    run = ended(options, tmp_path / "said", ranks, fault)
    assert run.statuses == [2] * ranks, run.said
    for line in run.errors:
        assert "the gradients are not finite in fp16 at epoch 1, step 5 at any scale" in line
        assert "5 updates in a row were skipped, and the gradient scaler is down to 0.5" in line
        assert "--train.precision bf16" in line and "the last checkpoint is kept" in line
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["step-00000003", "step-00000004"]
    assert last_tensors(tmp_path / "run")["scaler"]["scale"] == 1.0
    again = ended([*options, "--resume"], tmp_path / "again", ranks, "fp16 16")  # whose cause was found
    assert again.statuses == [0] * ranks, again.said


def test_so_many_overflows_in_a_row_are_none_of_a_scale(drawn_set: Path, tmp_path: Path):
    options = train_options(drawn_set, tmp_path / "run", "--train.epochs=9", "--train.log_steps=99")
    run = ended(options, tmp_path / "said", 1, "fp16 1e30;nan-gradient all 0")
    assert run.statuses == [2]
    assert f"{MOST_OVERFLOWS} updates in a row were skipped" in run.errors[0]
    assert f"at epoch 6, step {MOST_OVERFLOWS - 35}" in run.errors[0]


def test_a_run_that_made_no_update_says_so(drawn_set: Path, tmp_path: Path):
    options = train_options(drawn_set, tmp_path / "run")
    run = ended(options, tmp_path / "said", 1, "fp16 65536;nan-gradient all 0")
    assert run.statuses == [2]
    assert "none of the 7 updates of this run was made" in run.errors[0]
    assert rows(tmp_path / "run" / "epochs.csv")[0]["train_loss"] == ""


def test_a_loss_that_is_not_finite_is_named_whatever_the_scaler_does(drawn_set: Path, tmp_path: Path):
    """It leaves out updates with such a loss like others, and would otherwise have the last word."""
    options = train_options(drawn_set, tmp_path / "run", "--train.log_steps=99")
    run = ended(options, tmp_path / "said", 1, "fp16 1;nan all")
    assert run.statuses == [2]
    assert "the loss is not finite at epoch 1, step 1 for all 8 samples" in run.errors[0]


def test_the_range_test_tries_a_rate_until_an_update_is_made(drawn_set: Path, tmp_path: Path):
    curves = []
    for name, fault in (("searching", HIGH), ("found", "fp16 1024")):
        options = train_options(drawn_set, tmp_path / name, "--find-lr")
        run = ended(options, tmp_path / f"{name}-said", 1, fault)
        assert run.statuses == [0], run.said
        tried = rows(tmp_path / name / "find-lr.csv")
        assert [int(row["update"]) for row in tried] == list(range(1, len(tried) + 1)) and len(tried) > 20
        assert float(tried[0]["lr"]) == 1e-6
        curves.append([float(row["loss"]) for row in tried])
    searching, found = curves
    assert abs(searching[0] - found[0]) > 1e-3  # its first update was made with later samples
    assert min(abs(searching[0] - loss) for loss in found[3:6]) < 1e-3


def test_a_scale_that_an_earlier_version_let_vanish_is_not_gone_on_with(caplog: pytest.LogCaptureFixture):
    broken = torch.amp.GradScaler("cpu", init_scale=5.7e-14).state_dict()
    scaler = torch.amp.GradScaler("cpu")
    with caplog.at_level("WARNING"):
        restore_scaler(scaler, broken)
    assert scaler.get_scale() == 65536 and "gradient scale is 5.7e-14" in caplog.text
    restore_scaler(scaler, broken | {"scale": 8.0})
    assert scaler.get_scale() == 8
