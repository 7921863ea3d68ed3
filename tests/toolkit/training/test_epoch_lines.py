"""What a training prints: a line per epoch, the limit where it changes, and the result with the next command."""

from __future__ import annotations

import csv
import json
import logging
import re
import shlex
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from toolkit_helpers import ROOT, TINY, launch_2, posters_command

from shards.cli.commands import choose
from shards.cli.options import Parser
from shards.dataset.manifest import Manifest
from shards.dataset.store import open_store
from toolkit.cli.commands import COMMANDS, POSTERS
from toolkit.data.loader.timing import Bottleneck
from toolkit.training.epoch_lines import EpochLines, duration, next_command

#: With seconds and images/s as #.
GOLDEN = """\
epoch  train loss  val loss     mAP  micro-F1  macro-F1  images/s  time left
  1/3      0.####    0.####   0.###     0.###     0.###        ##        # s  *
  2/3      0.####    0.####   0.###     0.###     0.###        ##        # s  *
  3/3      0.####    0.####   0.###     0.###     0.###        ##          -  *
kept epoch 3 of 3: val loss 0.####, mAP 0.###, micro-F1 0.###, macro-F1 0.###
model in {run}/model, figures of all epochs in {run}/epochs.csv
next: posters evaluate --model '{run}/model' --shards {shards} --report '{run}/report'
"""
ROW = {"train_loss": 0.5, "val_loss": 0.4, "val_mAP": 0.1, "val_micro_f1": 0.2, "val_macro_f1": None}
FAST, SLOW = Bottleneck("device", "the GPU is the limit"), Bottleneck("reading", "reading is the limit")


@pytest.fixture(scope="module")
def run(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedProcess[str]]:
    """A training of three epochs that gets better in each, into a folder with a space in its name."""
    out = tmp_path_factory.mktemp("training") / "my run"
    return out, posters_command(
        "train", "--shards", shard_set, "--out", out, *TINY, "--train.epochs=3", "--optim.lr=0.005"
    )


def masked(text: str) -> str:
    """Text with a # for each digit of a number with decimals, and without the width of speeds and times."""
    text = re.sub(r"(?<=\d\.)\d+", lambda found: "#" * len(found.group()), text)
    text = re.sub(r"^(\s*\d+/\d+(?:\s+0\.#+){5})( +\d+)( +\d+ s)?", _masked_end, text, flags=re.M)
    return text


def _masked_end(found: re.Match[str]) -> str:
    speed, left = "##".rjust(len(found[2])), "# s".rjust(len(found[3] or ""))
    return found[1] + speed + (left if found[3] else "")


def epochs_of(out: Path) -> list[dict[str, str]]:
    with (out / "epochs.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_text_of_a_training(run: tuple[Path, CompletedProcess[str]], shard_set: Path):
    out, done = run
    said = done.stderr[done.stderr.index("epoch  train loss") :]
    assert done.returncode == 0 and "\x1b" not in done.stderr and "\r" not in done.stderr
    limits = [line for line in said.splitlines() if "waiting for data takes" in line]
    assert limits and limits[0].startswith("epoch 1: ")
    plain = "".join(f"{line}\n" for line in said.splitlines() if line not in limits)
    assert masked(plain) == GOLDEN.format(run=out, shards=shard_set)
    figures = [line.split()[1:6] for line in plain.splitlines()[1:4]]
    keys = ("train_loss", "val_loss", "val_mAP", "val_micro_f1", "val_macro_f1")
    wanted = [[f"{float(row[key]):.{4 if 'loss' in key else 3}f}" for key in keys] for row in epochs_of(out)]
    assert figures == wanted


def test_the_next_command_is_one(run: tuple[Path, CompletedProcess[str]]):
    """As a shell reads it."""
    line = run[1].stderr.splitlines()[-1].removeprefix("next: ")
    name, words = choose(COMMANDS, shlex.split(line)[1:], POSTERS)
    parser = Parser(name, COMMANDS)
    assert parser.make(parser.parse(words)).model == run[0] / "model"


def test_json_of_two_processes_and_of_their_resume(shard_set: Path, tmp_path: Path):
    """Each epoch is there once, with its figures in full."""
    out, found = tmp_path / "run", list[dict[str, Any]]()
    for epochs, more in ((1, []), (2, ["--resume"])):
        words = ["--shards", shard_set, "--out", out, *TINY, f"--train.epochs={epochs}", *more, "--log", "json"]
        done = launch_2(ROOT / "launch" / "train.py", *words)
        assert done.returncode == 0, done.stderr
        found += [json.loads(line) for line in done.stderr.splitlines() if not line.startswith("[W")]  # torch's C++
    assert all(record.keys() >= {"time", "level", "rank", "logger", "message"} for record in found)
    epochs_found = [record for record in found if record.get("event") == "epoch"]
    assert [(record["epoch"], record["epochs"], record["rank"]) for record in epochs_found] == [(1, 1, 0), (2, 2, 0)]
    for record, row in zip(epochs_found, epochs_of(out), strict=True):
        assert record["val_loss"] == pytest.approx(float(row["val_loss"]), rel=1e-5)
        assert isinstance(record["best"], bool) and record["seconds_left"] == 0
    ends = [record for record in found if record.get("event") == "end"]
    assert len(ends) == 2 and ends[1]["model"] == str(out / "model") and ends[1]["next"].startswith("posters evaluate")
    kept = max(record["epoch"] for record in epochs_found if record["best"])
    assert ends[1]["epoch"] == kept and ends[1]["val_loss"] == float(epochs_of(out)[kept - 1]["val_loss"])


def test_a_first_start_with_resume_says_nothing_of_checkpoints_and_quiet_is_quiet(shard_set: Path, tmp_path: Path):
    out = tmp_path / "run"
    done = posters_command(
        "train", "--shards", shard_set, "--out", out, *TINY, "--train.epochs=1", "--resume", "--log=quiet"
    )
    last = done.stderr.splitlines()[-3:]
    assert done.returncode == 0 and "checkpoint" not in done.stderr and "0 s" not in done.stderr
    assert [line.split()[0] for line in last] == ["kept", "model", "next:"]
    assert "epoch  train loss" not in done.stderr and "1/1" not in done.stderr


def test_the_limit_is_said_where_it_changes(caplog: pytest.LogCaptureFixture):
    """For two epochs in a row: where two limits are close, each epoch could have the other one."""
    lines = EpochLines(epochs=120, steps=10)
    with caplog.at_level(logging.INFO, "toolkit"):
        for epoch, bottleneck in enumerate((FAST, SLOW, FAST, SLOW, SLOW, FAST, FAST)):
            lines.start(epoch * 10)
            lines.bottleneck = bottleneck
            row = {**ROW, "epoch": epoch, "update": epoch * 10 + 10, "images_per_s": 1000.0}
            lines.epoch(row, best=epoch == 1)
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "limit" in line] == [
        "epoch 1: the GPU is the limit", "epoch 5: reading is the limit", "epoch 7: the GPU is the limit"
    ]  # fmt: skip
    assert sum("train loss" in line for line in said) == 1  # the header once
    rows = [line for line in said if "/120" in line]
    assert [row.endswith("*") for row in rows] == [False, True, False, False, False, False, False]
    assert len({row.rstrip(" *").index("0.5000") for row in rows}) == 1 and "     -" in rows[0]


def test_a_metric_of_the_user_has_a_column(caplog: pytest.LogCaptureFixture):
    lines = EpochLines(epochs=2, steps=10)
    with caplog.at_level(logging.INFO, "toolkit"):
        lines.epoch({**ROW, "val_mine": 0.123, "epoch": 0, "update": 10, "images_per_s": 1.0}, best=False)
    header, row = (record.getMessage() for record in caplog.records)
    assert header.index("  mine  images/s") + len("  mine") == row.index("0.123") + len("0.123")


def test_the_next_command_has_no_password(shard_set: Path):
    store = open_store(shard_set)
    store.root = "https://me:secret@host/set"  # type: ignore[assignment]
    assert "--shards https://host/set" in next_command(Path("RUN"), store, Manifest.read(shard_set))


def test_time_left_is_that_of_the_last_epoch(monkeypatch: pytest.MonkeyPatch):
    """Also of a resumed run, whose first epoch is a part of one."""
    clock = [100.0]
    monkeypatch.setattr("toolkit.training.epoch_lines.time.perf_counter", lambda: clock[0])
    lines = EpochLines(epochs=4, steps=10)
    lines.start(15)
    clock[0] = 110.0
    assert lines._seconds_left(done=2, updates=20) == 2.0 * 10 * 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "-"), (0.2, "1 s"), (90, "90 s"), (91, "2 min"), (5400, "90 min"), (5401, "1 h 31 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_set_without_test_posters_is_evaluated_on_validation(shard_set: Path, monkeypatch: pytest.MonkeyPatch):
    manifest, store = Manifest.read(shard_set), open_store(shard_set)
    assert "--split" not in next_command(Path("RUN"), store, manifest)
    shards = [shard for shard in manifest.shards if shard.split != "test"]
    monkeypatch.setattr(manifest, "shards", shards)
    assert "--split val --report RUN/report" in next_command(Path("RUN"), store, manifest)
