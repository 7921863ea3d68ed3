"""Processes that are to do different things: one line on each of them that names what and both values, and status 2."""

from __future__ import annotations

import dataclasses
import json
import shutil
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from shared_tools import build_small_set
from toolkit_helpers import TINY, free_port, launch_2

from shards.errors import UserError, printable
from shards.files import sha256_file
from shards.labels import LabelSet
from shards.manifest import Manifest
from toolkit.agreement import (
    WIDTH,
    Facts,
    Record,
    command_facts,
    config_facts,
    disagreement,
    images_facts,
    other_versions,
    parse_record,
    record_of,
    set_facts,
    told_apart,
)
from toolkit.config import Config, OptimConfig
from toolkit.decisions import Decisions
from toolkit.distributed import require_no_gpus_wanted
from toolkit.model_folder import write_labels

PROBE = Path(__file__).with_name("probe_agree.py")
#: Seconds within which two processes of a case must end, on a machine that does much else beside.
SOON = 20.0
REMEDY = ": start all processes with the same command, files and configuration"


# --- two values, two texts --------------------------------------------------------------------------------------------

texts = st.none() | st.text(max_size=8) | st.text(st.sampled_from('a\x1b\\"…n'), max_size=3 * WIDTH)


@given(texts, texts)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_two_values_are_told_apart_in_a_few_printable_characters(one: str | None, other: str | None):
    ours, theirs = told_apart(one, other)
    assert (ours == theirs) == (one == other)
    for text in (ours, theirs):
        assert len(text.splitlines()) == 1 and printable(text) == text and len(text) <= 8 * WIDTH


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("0.1", "0.001", ("0.1", "0.001")),
        ("flip", None, ("flip", "nothing")),
        ("nothing", None, ('"nothing"', "nothing")),
        ('["stem"]', '["backbone"]', ('["stem"]', '["backbone"]')),
        ("a\nb", "a\x1b[2J", ('"a\\nb"', '"a\\u001b[2J"')),
        ("x" * 100 + "y", "x" * 100, ("…" + "x" * 30 + "y", "…" + "x" * 30)),
    ],
)
def test_how_values_are_shown(one: str, other: str | None, shown: tuple[str, str]):
    assert told_apart(one, other) == shown


# --- records ----------------------------------------------------------------------------------------------------------

facts = st.dictionaries(
    st.text(min_size=1, max_size=6),
    st.tuples(st.none() | st.text(max_size=6), st.text(max_size=6)),
    max_size=6,
)


@given(facts, facts, st.integers(1, 9))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_whatever_differs_is_named(ours: Facts, theirs: Facts, rank: int):
    """Where it lies is no difference; the record survives its way through the store."""
    first, other = (parse_record(Record(facts).to_json(), 0) for facts in (ours, theirs))
    before = [first] * rank
    line = disagreement(before, other)
    differing = [k for k in {**ours, **theirs} if ours.get(k, (None,))[0] != theirs.get(k, (None,))[0]]
    assert bool(line) == bool(differing) and len(line.splitlines()) == len(differing[:1])
    if differing:
        key = differing[0]
        here, there = told_apart(theirs.get(key, (None, ""))[0], ours.get(key, (None, ""))[0])
        assert (
            line.startswith(f"rank {rank} has ")
            and f" {here}" in line
            and f"the first process {there}" in line
        )
        assert printable(line) == line


def test_a_line():
    first = Record({"a": ("1", ""), "b": ("x", "here"), "c": ("1", ""), "d": ("1", "")}, host="one")
    other = Record({"a": ("2", ""), "b": ("x", "there"), "d": ("2", "")}, host="two")
    assert disagreement([first, first], other) == (
        f"rank 2 (on two) has a 2, the first process 1 (and others in c, d){REMEDY}"
    )
    assert disagreement([first, first], dataclasses_replace(first, host="two")) == ""


def dataclasses_replace(record: Record, **changes: Any) -> Record:
    """msgspec's structs are no dataclasses."""
    return Record(**({name: getattr(record, name) for name in record.__struct_fields__} | changes))


def test_another_command_is_all_that_is_said():
    first, other = Record(command_facts("train", {"resume": True})), Record(command_facts("predict", {}))
    assert disagreement([first], other) == f"rank 1 has command predict, the first process train{REMEDY}"


def test_two_ranks_on_one_gpu():
    ours, theirs = Record(device="GPU-1"), Record(device="GPU-2")
    assert disagreement([ours, theirs], Record(device="GPU-3")) == ""
    assert disagreement([ours, Record()], Record()) == ""
    line = disagreement([ours, theirs], theirs)
    assert line.startswith("rank 2 would share a GPU with rank 1: ") and "--num_processes" in line


@pytest.mark.parametrize(
    "sent", [b"", b"[]", b'{"facts": {"a": 1}}', b'{"facts": {"a": ["b"]}}', b"[" * 10**6]
)
def test_what_another_version_may_send_is_one_line(sent: bytes):
    with pytest.raises(
        UserError, match=r"what rank 3 says of itself .* same version of this toolkit"
    ) as caught:
        parse_record(sent, 3)
    assert len(str(caught.value).splitlines()) == 1


def test_versions_are_named_but_are_no_disagreement():
    first, other = (
        Record(versions={"torch": "2.8.0", "timm": "1"}),
        Record(versions={"torch": "2.7.1", "timm": "2"}),
    )
    assert disagreement([first], other) == "" and other_versions(first, first, 1) == ""
    line = other_versions(first, other, 1)
    assert line.startswith(
        "rank 1 has torch 2.7.1, the first process 2.8.0 (and others in timm): results may differ"
    )


def test_what_an_environment_decides():
    usual = record_of({}, {"WORLD_SIZE": "2"})
    for harmless in (
        {"OMP_NUM_THREADS": "7", "POSTERS_TIMEOUT": "9", "RANK": "1", "CUDA_VISIBLE_DEVICES": "3"},
        {
            "ACCELERATE_MIXED_PRECISION": "no",
            "ACCELERATE_DYNAMO_BACKEND": "NO",
            "ACCELERATE_DYNAMO_MODE": "default",
        },
    ):
        assert disagreement([usual], record_of({}, {"WORLD_SIZE": "2"} | harmless)) == ""
    for name, value, key in (
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision bf16, the first process no"),
        ("WORLD_SIZE", "3", "processes 3, the first process 2"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "ACCELERATE_DYNAMO_BACKEND inductor, the first process no"),
        ("NVIDIA_TF32_OVERRIDE", "0", "NVIDIA_TF32_OVERRIDE 0, the first process"),
    ):
        line = disagreement([usual], record_of({}, {"WORLD_SIZE": "2", name: value}))
        assert line.startswith(f"rank 1 has {key}"), line
    # An option wins over the launcher's word.
    told = record_of({}, {"WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}, precision="no")
    assert disagreement([usual], told) == ""


def test_every_key_of_the_configuration_counts_but_two():
    usual = config_facts(Config())
    sections = {section.name: getattr(Config(), section.name) for section in dataclasses.fields(Config)}
    keys = {
        f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)
    }
    assert keys - set(usual) == {"data.workers", "data.prefetch"}
    line = disagreement([Record(usual)], Record(config_facts(Config(optim=OptimConfig(lr=0.1)))))
    assert line == f"rank 1 has optim.lr 0.1, the first process 0.0015{REMEDY}"


def test_of_files_content_counts(tmp_path: Path):
    config = Config()
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    same, copy, other, absent = (
        Record(
            config_facts(
                dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(path)))
            )
        )
        for path in (tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "d")
    )
    assert disagreement([same], copy) == ""
    assert disagreement([same], other).startswith("rank 1 has model.weights d4735e3a265e16ee (")
    assert disagreement([same], absent).startswith("rank 1 has model.weights no such file (")


def test_options_that_name_places_count_as_given():
    one = command_facts(
        "evaluate", Namespace(model=Path("a"), out=Path("x"), workers=1, split="test", run=print)
    )
    two = command_facts(
        "evaluate", Namespace(model=Path("b"), out=Path("y"), workers=2, split="test", run=len)
    )
    assert one == two
    without = command_facts(
        "evaluate", Namespace(model=Path("b"), out=None, workers=2, split="test", run=len)
    )
    assert "has --out nothing, the first process given" in disagreement([Record(one)], Record(without))


def test_the_processes_of_one_machine_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    one, same, other = (
        Record(command_facts("predict", Namespace(output=out)), host="a")
        for out in (Path("x"), tmp_path / "x", Path("y"))
    )
    assert disagreement([one], same) == ""
    assert disagreement([one], other).startswith(
        f"rank 1 has --output given ({tmp_path}/y), the first process given ({tmp_path}/x): start all processes"
    )
    assert disagreement([one], dataclasses_replace(other, host="b")) == ""  # where paths may lead elsewhere


def test_a_url_is_shown_without_its_credentials():
    manifest = Manifest(["a"], [])
    ((_, place),) = {fact for key, fact in set_facts(manifest, "s3://user:secret@host/set?token=secret").items()
                     if key == "shard set"}  # fmt: skip
    assert place == "s3://host/set"


def test_names_that_are_no_text_can_be_sent(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    paths = [tmp_path / "a.jpg", tmp_path / "\udcff.jpg"]
    record = record_of(images_facts(tmp_path, paths) | {"--split": ("\udcff", "\udcff")}, {})
    assert parse_record(record.to_json(), 1) == record
    (tmp_path / "a.jpg").write_bytes(b"12")
    assert "folder of images" in disagreement([record], record_of(images_facts(tmp_path, paths), {}))


# --- GPUs that are not there ------------------------------------------------------------------------------------------

BY_ACCELERATE = {"TORCHELASTIC_RUN_ID": "none", "ACCELERATE_MIXED_PRECISION": "bf16"}


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"TORCHELASTIC_RUN_ID": "none"},  # torchrun has no word for devices
        {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "False"},  # one process
        BY_ACCELERATE | {"ACCELERATE_USE_CPU": "True"},
        BY_ACCELERATE | {"CUDA_VISIBLE_DEVICES": "-1,-1"},  # launch/accelerate/cpu_2.yaml
    ],
)
def test_launches_that_ask_for_no_gpus(env: dict[str, str]):
    require_no_gpus_wanted(env)


@pytest.mark.parametrize("more", [{}, {"ACCELERATE_USE_CPU": "false"}, {"CUDA_VISIBLE_DEVICES": "0,1"}])
def test_launches_that_ask_for_gpus(more: dict[str, str]):
    with pytest.raises(UserError, match=r"per GPU .* torch finds no GPU on .*cpu_2\.yaml"):
        require_no_gpus_wanted(BY_ACCELERATE | more)


# --- two real processes -----------------------------------------------------------------------------------------------


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


def test_two_processes_that_differ(
    shard_set: Path,
    other_set: Path,
    other_tables: Path,
    models: dict[str, Path],
    posters: Path,
    tmp_path: Path,
):
    one = models["one"]
    (tmp_path / "weights-0.safetensors").write_bytes((one / "model.safetensors").read_bytes())
    (tmp_path / "weights-1.safetensors").write_bytes((models["weights"] / "model.safetensors").read_bytes())
    shutil.copytree(posters / "images", tmp_path / "images")
    next(iter((tmp_path / "images").iterdir())).unlink()

    train = ["train", "--shards", shard_set, "--out", tmp_path / "run", *TINY, "--train.epochs=1"]
    evaluate = [
        "evaluate",
        "--shards",
        shard_set,
        "--out",
        tmp_path / "metrics.json",
        "--workers=1",
        "--model",
        one,
    ]
    predict = ["predict", "--out", tmp_path / "predictions", "--workers=1", "--model", one]
    on_set = [*predict, "--shards", shard_set]
    tune = ["tune", "--shards", shard_set, "--workers=1", "--model", one]

    def pair(
        base: list[object], words: list[str], first: list[object], other: list[object], **more: Any
    ) -> Case:
        return Case(words, [*base, *first], [*base, *other], **more)

    def own(key: str, value: str, usual: str) -> list[str]:
        return [f"rank 1 has {key} {value}", f", the first process {usual}"]

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
                ("train.batch_size", "8", "16"),
                ("train.epochs", "2", "1"),
                ("train.precision", "bf16", "auto"),
                ("data.crop_pct", "0.875", "1.0"),
                ("data.image_size", "64", "32"),
                ("loss.focal_gamma", "1.5", "2.0"),
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
                "the first process ",
                "weights-0.safetensors",
            ],
            ["--model.weights", tmp_path / "weights-0.safetensors"],
            ["--model.weights", tmp_path / "weights-1.safetensors"],
        ),
        pair(train, own("train.feature_cache", "given", "nothing"), [], ["--train.feature_cache=cache"]),
        # Data.
        pair(
            train,
            ["rank 1 has shard set ", f"({other_set}), the first process", "different shard sets"],
            [],
            ["--shards", other_set],
        ),
        pair(train, ["rank 1 has table of samples of val "], [], ["--shards", other_tables]),
        pair(evaluate, ["rank 1 has shard set "], [], ["--shards", other_set]),
        pair(
            predict,
            ["rank 1 has folder of images 97 files, ", "the first process 98 files, "],
            ["--directory", posters / "images"],
            ["--directory", tmp_path / "images"],
        ),
        # Models.
        *(
            pair(
                base,
                [f"rank 1 has model {key}", f"({models[name]})", f"({one})"],
                [],
                ["--model", models[name]],
            )
            for base in (evaluate, on_set, tune)
            for name, key in (
                ("weights", "weights "),
                ("thresholds", "threshold of "),
                ("crop", "crop_pct 0.875 "),
            )
        ),
        # Options.
        *(
            one_of(evaluate, f"{option}={value}", option, value, usual)
            for option, value, usual in (
                ("--split", "val", "test"),
                ("--thresholds", "0.2", "0.3,0.5,0.7"),
                ("--batch-size", "3", "0"),
            )
        ),
        one_of(evaluate, "--precision=bf16", "--precision", "bf16", "nothing"),
        pair(evaluate, own("--report", "given", "nothing"), [], ["--report", tmp_path / "page"]),
        *(
            one_of(on_set, option, option.partition("=")[0], option.partition("=")[2] or "true", usual)
            for option, usual in (
                ("--tta=flip", "none"),
                ("--threshold=0.75", "nothing"),
                ("--format=csv", "nothing"),
                ("--embeddings", "false"),
                ("--split=val", "nothing"),
                ("--ignore-labels", "false"),
            )
        ),
        pair(on_set, own("--output", "given (", "given ("), [], ["--out", tmp_path / "elsewhere"]),
        one_of(tune, "--aim=f0.5", "--aim", "f0.5", "f1"),
        one_of(tune, "--slack=0.5", "--slack", "0.5", "0.01"),
        one_of(tune, "--calibration=none", "--calibration", "none", "auto"),
        # Commands and environments.
        Case([*own("command", "evaluate", "train")], train, evaluate),
        Case([*own("command", "predict", "evaluate")], evaluate, on_set),
        pair(
            train,
            own("precision", "bf16", "no"),
            [],
            [],
            env=({}, {"ACCELERATE_MIXED_PRECISION": "bf16"}),
        ),
        pair(train, own("processes", "3", "2"), [], [], env=({}, {"WORLD_SIZE": "3"})),
        pair(train, own("processes", "2", "3"), [], [], env=({"WORLD_SIZE": "3"}, {})),
        # One that cannot begin: it says why itself.
        pair(
            evaluate,
            ["labels.json"],
            [],
            ["--model", models["damaged"]],
            own=("error: rank 1 cannot begin: ", "error: [rank 1] the model folder "),
        ),
        pair(
            evaluate,
            ["labels.json"],
            ["--model", models["damaged"]],
            [],
            own=(
                "error: the model folder ",
                "error: [rank 1] the first process cannot begin: the model folder ",
            ),
        ),
        one_cannot_parse := pair(
            train,
            ["unknown key 'optim.lrate'"],
            ["--optim.lrate=1"],
            [],
            own=("error: unknown key", "error: [rank 1] the first process cannot begin: unknown key"),
        ),
        dataclasses.replace(
            one_cannot_parse,
            first=one_cannot_parse.other,
            other=one_cannot_parse.first,
            own=("error: rank 1 cannot begin: unknown key", "error: [rank 1] unknown key"),
        ),
        pair(
            evaluate,
            [],
            [],
            ["--split=BUG"],
            bug=True,
            own=(
                "error: rank 1 cannot begin: a bug, whose traceback is in what it said (ZeroDivisionError",
                "",
            ),
        ),
        # What may differ: this one ends well, and says of another version.
        pair(
            on_set,
            [],
            [],
            ["--model", models["copy"], "--workers=2"],
            versions=({}, {"torch": "1.0"}),
            own=("rank 1 has torch 1.0, the first process ", ""),
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
