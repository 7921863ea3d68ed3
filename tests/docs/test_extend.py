"""docs/guides/extend.md: its files are written and its commands run as they stand, on drawn posters."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from forked import ROOT, run_forked
from toolkit_helpers import clean_env

import toolkit

PAGE = (ROOT / "docs" / "guides" / "extend.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
#: Name of a file → its content.
FILES = {text.partition("\n")[0].removeprefix("# "): text for kind, text in BLOCKS if text.startswith("# my_")}
COMMANDS = [
    line
    for kind, text in BLOCKS
    if not kind
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("posters ") and "--trust-code" not in line
]
#: A training of seconds. Options of the page come after these, so they count.
SMALL = [
    "--model.name=test_resnet", "--model.pretrained=false", "--model.freeze=[]", "--data.workers=1",
    "--train.batch_size=20", "--train.epochs=1", "--decide.thresholds=global",
    "--decide.calibration=none",
]  # fmt: skip
#: Trackers must not look for a network.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data"}
#: Folder of the run → extra needed by its code.
EXTRAS = {"LORA": "peft", "TRACKED": "mlflow", "MLFLOW": "mlflow", "WANDB": "wandb"}


@pytest.fixture(scope="module")
def folder(drawn_posters: Path, drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extend")
    (folder / "SHARDS").symlink_to(drawn_set)
    (folder / "posters").mkdir()
    for image in sorted((drawn_posters / "images").glob("p*"))[:3]:
        (folder / "posters" / image.name).symlink_to(image)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(command: str, folder: Path) -> CompletedProcess[str]:
    words = shlex.split(command)[1:]
    small, size = ([*SMALL], ["--data.image_size=32"]) if words[0] == "train" else ([], [])
    if "trackers" not in command and small:
        small.append("--train.trackers={}")
    return run_forked(["-m", "toolkit", words[0], *small, *words[1:], *size], [clean_env() | QUIET], 240, folder)


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, CompletedProcess[str]]:
    """All commands of the page, run once, in their order."""
    return {command: run(command, folder) for command in COMMANDS if not lacking(command)}


def lacking(command: str) -> str:
    """The package that a command needs and that is not installed."""
    from importlib.util import find_spec

    return next((extra for run, extra in EXTRAS.items() if run in command and not find_spec(extra)), "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(command: str, runs: dict[str, CompletedProcess[str]]):
    if extra := lacking(command):
        pytest.skip(f"{extra} is not installed")
    assert runs[command].returncode == 0, runs[command].stderr


def test_the_page_has_its_examples():
    assert set(FILES) == {"my_loss.py", "my_augmentation.py", "my_metric.py", "my_lora.py"}
    assert len([command for command in COMMANDS if command.startswith("posters train")]) >= 6


def test_the_metric_is_where_the_page_says(folder: Path, runs: dict[str, CompletedProcess[str]]):
    assert runs
    with open(folder / "METRIC/epochs.csv") as stream:
        (row,) = csv.DictReader(stream)
    one = float(row["val_AtLeastOne"])
    two = json.loads((folder / "METRIC/model/metrics-test.json").read_text())["own"]["AtLeastOne"]
    assert 0 <= two <= 1 and 0 <= one <= 1
    assert toolkit.Run(folder / "METRIC").monitor == "my_metric:AtLeastOne"
    (row,) = [
        row
        for row in json.loads((folder / "REPORT/metrics.json").read_text())["headline"]
        if row["metric"] == "AtLeastOne"
    ]
    assert row["value"] == pytest.approx(two) and row["low"] <= two <= row["high"]
    assert "AtLeastOne: metric of your own" in (folder / "REPORT/index.html").read_text()


def test_a_tracker_has_the_run(folder: Path, runs: dict[str, CompletedProcess[str]]):
    pytest.importorskip("mlflow")
    assert runs and (folder / "mlflow.db").exists() and list(folder.glob("mlruns/*/*/artifacts/model/labels.json"))
    said = next(done.stderr for command, done in runs.items() if "--out MLFLOW" in command)
    assert "is off" not in said


def test_lora_is_merged(folder: Path, runs: dict[str, CompletedProcess[str]]):
    """The saved model is plain timm's, of which little was trained."""
    pytest.importorskip("peft")
    trained = next(done.stderr for command, done in runs.items() if "--out LORA" in command)
    (weights,) = re.findall(r"([\d.]+) M trainable weights", trained)
    assert float(weights) < 0.2  # of 5.4 million
    assert not any("lora" in name for name in toolkit.load_model(folder / "LORA/model").model.state_dict())
    again = run("posters evaluate -m LORA/model --shards SHARDS --split val --out again.json", folder)
    assert again.returncode == 0, again.stderr
    before, merged = (json.loads((folder / path).read_text()) for path in ("LORA/model/metrics-val.json", "again.json"))
    assert merged["loss"] == pytest.approx(before["loss"], rel=1e-4)


def test_parts_are_unfrozen_when_the_page_says(runs: dict[str, CompletedProcess[str]]):
    said = next(done.stderr for command, done in runs.items() if "--out BLOCKS" in command)
    assert "epoch 2: blocks.1 unfrozen" in said and "epoch 3: blocks.0 unfrozen" in said


def test_a_class_of_a_notebook_is_registered():
    (text,) = [text for kind, text in BLOCKS if "toolkit.register" in text and kind == "python"]
    found: dict[str, object] = {"__name__": "__main__"}
    exec(compile(text, "extend.md", "exec"), found)
    from toolkit.config.extensions import use

    assert use("head", "__main__:Head", "model.head") is found["Head"]
