"""Trackers get the config, the rows of the logs, pictures and the model. None of them can end or block a training."""

from __future__ import annotations

import csv
import json
import logging
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from failing import fails
from toolkit_helpers import TINY, clean_env
from train_tools import tiny_config

from toolkit.config.tracker_registry import TRACKERS, Tracker
from toolkit.training import trackers
from toolkit.training.run import train
from toolkit.training.trackers import start_trackers


@dataclass
class MemoryOptions:
    """Rows in a list."""

    project: str = "posters"
    fault: str = ""


class Memory(GeneralTracker):
    """Remembers what it is given."""

    name, requires_logging_directory, tracker = "memory", False, None

    def __init__(self, out: Path, options: MemoryOptions) -> None:
        super().__init__()
        self.options, self.started, self.ended = options, False, False
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        made.append(self)

    def start(self) -> None:
        self.fault("start")
        self.started = True

    def fault(self, place: str) -> None:
        kind, _, where = self.options.fault.partition(" ")
        if where == place:
            time.sleep(60 if kind == "hang" else 0)
            raise SystemExit("no more") if kind == "exit" else OSError("no network.")

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.fault("log")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.fault("finish")
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


def test_what_is_not_installed_is_said_once(
    memory: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(TRACKERS, "memory", TRACKERS["memory"]._replace(package="no_such_package"))
    start_trackers(accelerator := Accelerator(cpu=True), tiny_config("--train.trackers=[memory]"), tmp_path)
    assert accelerator.trackers == made == []
    (line,) = warnings_of(caplog)
    assert "memory is not installed" in line and "pip install no_such_package" in line


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [line for line in found if line.startswith("tracker")]


@pytest.mark.parametrize("fault", [f"{kind} {at}" for kind in ("raise", "hang") for at in ("start", "log", "finish")])
def test_no_fault_of_a_tracker_ends_a_training(
    fault: str, memory: None, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):  # fmt: skip
    monkeypatch.setattr(trackers, "START", 0.5)
    monkeypatch.setattr(trackers, "FINISH", 0.5)
    config = tiny_config("--train.epochs=2", "--train.log_steps=1", f"--train.trackers.memory.fault={fault}")
    assert train(config, shard_set, tmp_path / "run") == 0
    (line,) = warnings_of(caplog)
    assert "tracker memory is off" in line and "the training goes on" in line
    assert ("no network; the" if fault.startswith("raise") else "within 0.5 s") in line
    assert (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.usefixtures("memory")
def test_a_tracker_that_ends_the_process_does_not(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    config = tiny_config("--train.trackers={memory: {fault: exit start}}")
    start_trackers(Accelerator(cpu=True), config, tmp_path)
    assert "SystemExit: no more" in warnings_of(caplog)[0]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("dvclive", {}, {"dir": "R/dvclive", "save_dvc_exp": False, "dvcyaml": False}),
        ("dvclive", {"save_dvc_exp": True, "dir": "D"}, {"dir": "D", "save_dvc_exp": True, "dvcyaml": False}),
        ("swanlab", {}, {"log_dir": "R/swanlab", "experiment_name": "R"}),
        ("clearml", {"task_name": "films"}, {"task_name": "films"}),
        ("aim", {}, {"experiment": "posters"}),
    ],
)
def test_files_lie_in_the_run_folder_and_the_run_has_its_name(
    name: str, options: dict[str, Any], expected: dict[str, Any]
):
    """These trackers need no package until they start. dvclive must not commit to the user's repository."""
    tracker: Any = trackers._made(name, dict(options), Path("R"))
    assert tracker.init_kwargs == expected
    if name == "aim":
        assert (tracker.run_name, tracker.aim_repo_path) == ("R", "R")


@pytest.fixture(scope="module")
def offline(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training RUN and of a range test LR with three real trackers, without a network."""
    for package in ("mlflow", "wandb", "trackio"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("offline")
    wanted = (
        "{mlflow: {tracking_uri: 'sqlite:///ml.db', project: films}, wandb: {mode: offline}, "
        "trackio: {project: films, name: first}, tensorboard: {}}"
    )
    environment = {
        **clean_env(), "TRACKIO_DIR": str(folder / "trackio"), "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_DATA_DIR": str(folder / "data"), "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    common = ["--shards", shard_set, *TINY, "--model.freeze=[]", "--train.epochs=2"]
    # wandb has one temporary folder for all processes that are forked from one, so these are fresh
    for words in (["--out", "RUN", "--optim.lr=0.002"], ["--out", "LR", "--find-lr"]):
        command = [sys.executable, "-m", "toolkit", "train", *map(str, common), *words, f"--train.trackers={wanted}"]
        command += ["--log", "json"]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0 and "is off" not in done.stderr, done.stderr
        assert all(isinstance(json.loads(line), dict) for line in (done.stdout + done.stderr).splitlines())
    return folder


def rows_of(database: Path, query: str) -> list[Any]:
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


def test_mlflow_has_the_run(offline: Path):
    database = offline / "ml.db"
    assert sorted(rows_of(database, "select name, status from runs")) == [("LR", "FINISHED"), ("RUN", "FINISHED")]
    assert ("films",) in rows_of(database, "select name from experiments")
    assert ("0.002",) in rows_of(database, "select value from params where key = 'optim.lr'")
    with open(offline / "RUN/epochs.csv") as stream:
        losses = [float(row["val_loss"]) for row in csv.DictReader(stream)]
    tracked = rows_of(database, "select value from metrics where key = 'epoch/val_loss' order by step")
    assert [value for (value,) in tracked] == pytest.approx(losses, rel=1e-5)
    stored = {path.name for path in offline.glob("mlruns/*/*/artifacts/**/*")}
    assert {"thresholds.png", "find-lr.png", "model.safetensors", "labels.json"} <= stored


def test_wandb_has_the_run(offline: Path):
    (record,) = offline.glob("RUN/wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    assert all(name in content for name in (b"epoch/val_loss", b"optim.lr", b"RUN-model"))
    pictures = {path.name.partition("_")[0] for path in offline.glob("*/wandb/offline-run-*/files/media/images/*")}
    assert pictures == {"thresholds", "find-lr"}


def test_trackio_has_the_run(offline: Path):
    database = offline / "trackio/films.db"
    logged = "\n".join(text for row in rows_of(database, "select * from metrics") for text in map(str, row))
    assert "epoch/val_loss" in logged and "thresholds" in logged and "first" in logged
    assert "optim.lr" in str(rows_of(database, "select * from configs"))
    assert rows_of(database, "select count(*) from artifact_versions")[0][0] == 1
    assert len(list(offline.glob("trackio/media/**/*.png"))) == 2


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
