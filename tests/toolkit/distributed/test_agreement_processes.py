"""Two real processes that are to do different things end at once, with one line on each that names what differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from shared_tools import build_small_set
from toolkit_helpers import TINY, free_port, launch_2

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.storage.files import sha256_file
from toolkit.decisions.decisions import Decisions
from toolkit.model_folder.folder import write_labels

PROBE = Path(__file__).resolve().parents[1] / "probe_agree.py"
#: Seconds within which two processes of a case must end, on a machine that does much else beside.
SOON = 20.0
REMEDY = ": start all processes with the same command, files and configuration"


@dataclass(frozen=True)
class Case:
    """Two commands, and what their line must hold."""

    words: list[str]
    first: list[object]
    other: list[object]
    env: tuple[dict[str, str], dict[str, str]] = ({}, {})
    versions: tuple[dict[str, str], dict[str, str]] = ({}, {})
    own: tuple[str, str] = ("", "")
    """What a rank says in other words than the other one."""
    status: int = 2
    bug: bool = False
    """Of rank 1: its traceback comes through."""


def edit_json(path: Path, **changes: Any) -> None:
    raw = json.loads(path.read_text())
    for keys, value in changes.items():
        *parents, last = keys.split("__")
        target = raw
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(raw))


@pytest.fixture(scope="module")
def models(model_folder: Path, labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model at two places, and others that differ in one thing each. Read-only."""
    root = tmp_path_factory.mktemp("models")
    found = {
        name: shutil.copytree(model_folder, root / name)
        for name in ("one", "copy", "weights", "thresholds", "crop", "damaged")
    }
    file = found["weights"] / "model.safetensors"
    state = load_file(file)
    state[next(iter(state))] += 1
    save_file(state, file)
    edit_json(found["weights"] / "config.json", poster_toolkit__weights_sha256=sha256_file(file))
    write_labels(found["thresholds"], labels, Decisions.plain(np.full(len(labels), 0.25)))
    edit_json(found["crop"] / "config.json", pretrained_cfg__crop_pct=0.875)
    (found["damaged"] / "labels.json").unlink()
    return found


@pytest.fixture(scope="module")
def other_set(drawn_posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small_set(drawn_posters, tmp_path_factory.mktemp("other-set"), seed=1)


@pytest.fixture(scope="module")
def other_tables(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shards; the validation split's table of samples has other labels, and its own digest."""
    folder = shutil.copytree(shard_set, tmp_path_factory.mktemp("other-tables") / "set")
    manifest = Manifest.read(folder)
    path = folder / manifest.tables["val"].name
    records = np.load(path)
    records["genres"] = np.roll(records["genres"], 1, axis=0)
    np.save(path, records)
    edit_json(folder / "manifest.json", tables__val__sha256=sha256_file(path))
    return folder


@pytest.mark.long
def test_two_processes_that_differ(
    shard_set: Path, other_set: Path, other_tables: Path, models: dict[str, Path], posters: Path, tmp_path: Path
):
    one = models["one"]
    (tmp_path / "weights-0.safetensors").write_bytes((one / "model.safetensors").read_bytes())
    (tmp_path / "weights-1.safetensors").write_bytes((models["weights"] / "model.safetensors").read_bytes())
    shutil.copytree(posters / "images", tmp_path / "images")
    next(iter((tmp_path / "images").iterdir())).unlink()

    train = ["train", "--shards", shard_set, "--out", tmp_path / "run", *TINY, "--train.epochs=1"]
    evaluate = ["evaluate", "--shards", shard_set, "--out", tmp_path / "metrics.json", "--workers=1", "--model", one]
    predict = ["predict", "--out", tmp_path / "predictions", "--workers=1", "--model", one]
    on_set = [*predict, "--shards", shard_set]
    tune = ["tune", "--shards", shard_set, "--workers=1", "--model", one]

    def pair(base: list[object], words: list[str], first: list[object], other: list[object], **more: Any) -> Case:
        return Case(words, [*base, *first], [*base, *other], **more)

    def own(key: str, value: str, usual: str) -> list[str]:
        return [f"rank 1 has {key} {value}", f", but the first process has {usual}"]

    def one_of(base: list[object], option: str, key: str, value: str, usual: str) -> Case:
        return pair(base, own(key, value, usual), [], [option])

    cases = [
        # Configuration.
        *(
            one_of(train, f"--{key}={value}", key, value, usual)
            for key, value, usual in (
                ("optim.lr", "0.1", "0.0015"),
                ("optim.name", "sgd", "adam"),
                ("train.seed", "7", "0"),
                ("train.batch_size", "8", "20"),
                ("train.epochs", "2", "1"),
                ("train.precision", "bf16", "auto"),
                ("data.crop_pct", "0.875", "1.0"),
                ("data.image_size", "64", "32"),
                ("loss.smoothing", "0.5", "0.0"),
                ("decide.aim", "f0.5", "f1"),
                ("model.name", "test_vit", "test_resnet"),
            )
        ),
        one_of(train, "--find-lr", "--find-lr", "true", "false"),
        one_of(train, "--resume", "--resume", "true", "false"),
        pair(
            train,
            [
                "rank 1 has model.weights ",
                "weights-1.safetensors",
                "but the first process has ",
                "weights-0.safetensors",
            ],
            ["--model.weights", tmp_path / "weights-0.safetensors"],
            ["--model.weights", tmp_path / "weights-1.safetensors"],
        ),
        pair(train, own("train.feature_cache", "a path", "no value"), [], ["--train.feature_cache=cache"]),
        # Data.
        pair(
            train,
            ["rank 1 has shard set ", f"({other_set}), but the first process has", "different shard sets"],
            [],
            ["--shards", other_set],
        ),
        pair(train, ["rank 1 has table of samples of val "], [], ["--shards", other_tables]),
        pair(evaluate, ["rank 1 has shard set "], [], ["--shards", other_set]),
        pair(
            predict,
            ["rank 1 has folder of images 97 files, ", "but the first process has 98 files, "],
            ["--directory", posters / "images"],
            ["--directory", tmp_path / "images"],
        ),
        # Models.
        *(
            pair(base, [f"rank 1 has model {key}", f"({models[name]})", f"({one})"], [], ["--model", models[name]])
            for base in (evaluate, on_set, tune)
            for name, key in (("weights", "weights "), ("thresholds", "threshold of "), ("crop", "crop_pct 0.875 "))
        ),
        # Options.
        *(
            one_of(evaluate, f"{option}={value}", option, value, usual)
            for option, value, usual in (("--split", "val", "test"), ("--batch-size", "3", "0"))
        ),
        one_of(evaluate, "--thresholds=0.2", "--thresholds", "[0.2]", "[0.3, 0.5, 0.7]"),
        one_of(evaluate, "--precision=bf16", "--precision", "bf16", "no value"),
        pair(evaluate, own("--report", "a path", "no value"), [], ["--report", tmp_path / "page"]),
        *(
            one_of(on_set, option, option.partition("=")[0], option.partition("=")[2] or "true", usual)
            for option, usual in (
                ("--tta=flip", "none"),
                ("--threshold=0.75", "no value"),
                ("--format=csv", "no value"),
                ("--embeddings", "false"),
                ("--split=val", "no value"),
                ("--ignore-labels", "false"),
            )
        ),
        pair(on_set, own("--out", "given (", "given ("), [], ["--out", tmp_path / "elsewhere"]),
        one_of(tune, "--aim=f0.5", "--aim", "f0.5", "f1"),
        one_of(tune, "--max-micro-f-loss=0.5", "--max-micro-f-loss", "0.5", "0.01"),
        one_of(tune, "--calibration=none", "--calibration", "none", "auto"),
        # Commands and environments.
        Case([*own("command", "evaluate", "train")], train, evaluate),
        Case([*own("command", "predict", "evaluate")], evaluate, on_set),
        pair(train, own("precision", "bf16", "no"), [], [], env=({}, {"ACCELERATE_MIXED_PRECISION": "bf16"})),
        pair(train, own("processes", "3", "2"), [], [], env=({}, {"WORLD_SIZE": "3"})),
        pair(train, own("processes", "2", "3"), [], [], env=({"WORLD_SIZE": "3"}, {})),
        # One that cannot begin: it says why itself.
        pair(
            evaluate,
            ["labels.json"],
            [],
            ["--model", models["damaged"]],
            own=("error: rank 1 cannot start: ", "error: [rank 1] the model folder "),
        ),
        pair(
            evaluate,
            ["labels.json"],
            ["--model", models["damaged"]],
            [],
            own=("error: the model folder ", "error: [rank 1] the first process cannot start: the model folder "),
        ),
        one_cannot_parse := pair(
            train,
            ["unknown key 'optim.lrate'"],
            ["--optim.lrate=1"],
            [],
            own=("error: unknown key", "error: [rank 1] the first process cannot start: unknown key"),
        ),
        replace(
            one_cannot_parse,
            first=one_cannot_parse.other,
            other=one_cannot_parse.first,
            own=("error: rank 1 cannot start: unknown key", "error: [rank 1] unknown key"),
        ),
        pair(
            evaluate,
            [],
            [],
            ["--split=BUG"],
            bug=True,
            own=("error: rank 1 cannot start: a bug (ZeroDivisionError", ""),
        ),
        # What may differ: this one ends well, and says of another version.
        pair(
            on_set,
            [],
            [],
            ["--model", models["copy"], "--workers=2"],
            versions=({}, {"torch": "1.0"}),
            own=("rank 1 has torch 1.0, but the first process has ", ""),
            status=0,
        ),
    ]
    ports: set[int] = set()
    while len(ports) < len(cases):
        ports.add(free_port())
    file = tmp_path / "cases.json"
    file.write_text(
        json.dumps(
            [
                {
                    "port": port,
                    "argv": [[str(word) for word in argv] for argv in (case.first, case.other)],
                    "env": case.env,
                    "versions": case.versions,
                }
                for port, case in zip(sorted(ports), cases, strict=True)
            ]
        )
    )
    before = {path: path.stat().st_mtime_ns for path in sorted(one.rglob("*"))}
    run = launch_2(PROBE, file)
    assert run.returncode == 0, run.stderr
    lines = [line.split(" ", 2) for line in run.stdout.splitlines() if line.startswith("SAW ")]
    for rank in (0, 1):
        saw = [json.loads(text) for _, number, text in lines if int(number) == rank]
        assert len(saw) == len(cases)
        for case, end in zip(cases, saw, strict=True):
            said = end["said"]
            if case.bug and rank:
                assert end["status"] == "ZeroDivisionError" and not said
                continue
            assert end["status"] == case.status and "Traceback" not in said, (rank, case, said)
            assert end["seconds"] < SOON, (rank, case, end)
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            assert len(errors) == (case.status != 0), said
            for word in case.words:
                assert word in errors[0], (rank, word, said)
            assert case.own[rank] in said, (rank, said)
    assert len(list((tmp_path / "predictions").glob("*.parquet"))) == 5
    assert {path: path.stat().st_mtime_ns for path in sorted(one.rglob("*"))} == before
    assert not (tmp_path / "run").exists() and not (tmp_path / "metrics.json").exists()
