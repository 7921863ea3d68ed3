"""Trackers of the registry: started with their own options, they get the rows of the logs."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from failing import fails
from train_tools import tiny_config

from toolkit.config.tracker_registry import TRACKERS, Tracker
from toolkit.training.run import train
from toolkit.training.trackers import start_trackers


@dataclass
class MemoryOptions:
    """Rows in a list."""

    project: str = "posters"


class Memory(GeneralTracker):
    """Remembers what it is given."""

    name, requires_logging_directory, tracker = "memory", False, None

    def __init__(self, out: Path, options: MemoryOptions) -> None:
        super().__init__()
        self.options, self.started, self.ended = options, False, False
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        made.append(self)

    def start(self) -> None:
        self.started = True

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.ended = True


made: list[Memory] = []


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    monkeypatch.setitem(TRACKERS, "memory", Tracker(MemoryOptions, "pytest", f"{__name__}:Memory"))


def test_a_tracker_gets_every_row(memory: None, shard_set: Path, tmp_path: Path):
    config = tiny_config("--train.epochs=2", "--train.log_steps=1", "--train.trackers.memory.project=films")
    assert train(config, shard_set, tmp_path / "run") == 0
    (tracker,) = made
    assert tracker.options == MemoryOptions("films") and tracker.started and tracker.ended
    with open(tmp_path / "run" / "log.csv") as steps, open(tmp_path / "run" / "epochs.csv") as epochs:
        rows = {"train/loss": list(csv.DictReader(steps)), "epoch/val_loss": list(csv.DictReader(epochs))}
    for name, written in rows.items():
        tracked = [(step, values[name]) for step, values in tracker.rows if name in values]
        column = name.rpartition("/")[2]
        assert [step for step, _ in tracked] == [int(row["update"]) for row in written]
        assert [value for _, value in tracked] == pytest.approx([float(row[column]) for row in written], rel=1e-5)


def test_what_is_not_installed_is_idle(memory: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(TRACKERS, "memory", TRACKERS["memory"]._replace(package="no_such_package"))
    start_trackers(accelerator := Accelerator(cpu=True), {"memory": {}}, tmp_path)
    assert accelerator.trackers == made == []


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ("{wandbb: {}}", ["train.trackers", "memory", "wandbb"]),
        ("{memory: {projct: x}}", ["train.trackers.memory.projct", "'project'"]),
        ("{memory: {project: 5}}", ["train.trackers.memory", "project"]),
    ],
)
def test_what_cannot_be_meant(memory: None, options: str, facts: list[str]):
    with fails("option-unknown" if "projct" in options else "option-value", *facts):
        tiny_config(f"--train.trackers={options}")


def test_the_switch_of_earlier_versions():
    assert tiny_config("--train.trackers={tensorboard: {}}", "--train.tensorboard=false").train.trackers == {}
    assert tiny_config("--train.trackers={tensorboard: {}}", "--train.tensorboard=true").train.trackers == {
        "tensorboard": {}
    }
