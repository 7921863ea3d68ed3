"""Processes that are to do different things: one line on each of them that names what and both values, and status 2."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.manifest import Manifest
from shards.errors import Code, UserError, printable
from toolkit.config.schema import Config, OptimConfig
from toolkit.distributed import launch
from toolkit.distributed.agreement import (
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
    shortened_pair,
)
from toolkit.distributed.collectives import require_no_gpus_wanted
from toolkit.evaluation.options import EvaluateOptions

REMEDY = ": start all processes with the same command, files and configuration"


# --- two values, two texts --------------------------------------------------------------------------------------------

texts = st.none() | st.text(max_size=8) | st.text(st.sampled_from('a\x1b\\"…n'), max_size=3 * WIDTH)


@given(texts, texts)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_two_values_are_told_apart_in_a_few_printable_characters(one: str | None, other: str | None):
    ours, theirs = shortened_pair(one, other)
    assert (ours == theirs) == (one == other)
    for text in (ours, theirs):
        assert len(text.splitlines()) == 1 and printable(text) == text and len(text) <= 8 * WIDTH


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        ("0.1", "0.001", ("0.1", "0.001")),
        ("flip", None, ("flip", "no value")),
        ("no value", None, ('"no value"', "no value")),
        ('["stem"]', '["backbone"]', ('["stem"]', '["backbone"]')),
        ("a\nb", "a\x1b[2J", ('"a\\nb"', '"a\\u001b[2J"')),
        ("x" * 100 + "y", "x" * 100, ("…" + "x" * 30 + "y", "…" + "x" * 30)),
    ],
)
def test_how_values_are_shown(one: str, other: str | None, shown: tuple[str, str]):
    assert shortened_pair(one, other) == shown


# --- records ----------------------------------------------------------------------------------------------------------

facts = st.dictionaries(
    st.text(min_size=1, max_size=6), st.tuples(st.none() | st.text(max_size=6), st.text(max_size=6)), max_size=6
)


@given(facts, facts, st.integers(1, 9))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_whatever_differs_is_named(ours: Facts, theirs: Facts, rank: int):
    """Where it lies is no difference; the record survives its way through the store."""
    first, other = (parse_record(msgspec.json.encode(Record(facts)), 0) for facts in (ours, theirs))
    before = [first] * rank
    line = disagreement(before, other)
    differing = [k for k in {**ours, **theirs} if ours.get(k, (None,))[0] != theirs.get(k, (None,))[0]]
    assert bool(line) == bool(differing) and len(line.splitlines()) == len(differing[:1])
    if differing:
        key = differing[0]
        here, there = shortened_pair(theirs.get(key, (None, ""))[0], ours.get(key, (None, ""))[0])
        assert (
            line.startswith(f"rank {rank} has ") and f" {here}" in line and f"but the first process has {there}" in line
        )
        assert printable(line) == line


def test_a_line():
    first = Record({"a": ("1", ""), "b": ("x", "here"), "c": ("1", ""), "d": ("1", "")}, host="one")
    other = Record({"a": ("2", ""), "b": ("x", "there"), "d": ("2", "")}, host="two")
    assert disagreement([first, first], other) == (
        f"rank 2 (on two) has a 2, but the first process has 1 (other differences: c, d){REMEDY}"
    )
    assert disagreement([first, first], dataclasses_replace(first, host="two")) == ""


def dataclasses_replace(record: Record, **changes: Any) -> Record:
    """msgspec's structs are no dataclasses."""
    return Record(**({name: getattr(record, name) for name in record.__struct_fields__} | changes))


def test_another_command_is_all_that_is_said():
    first, other = Record(command_facts("train", {"resume": True})), Record(command_facts("predict", {}))
    assert disagreement([first], other) == f"rank 1 has command predict, but the first process has train{REMEDY}"


def test_two_ranks_on_one_gpu():
    ours, theirs = Record(device="GPU-1"), Record(device="GPU-2")
    assert disagreement([ours, theirs], Record(device="GPU-3")) == ""
    assert disagreement([ours, Record()], Record()) == ""
    line = disagreement([ours, theirs], theirs)
    assert line.startswith("rank 2 uses the same GPU as rank 1: ") and "--num_processes" in line


@pytest.mark.parametrize("sent", [b"", b"[]", b'{"facts": {"a": 1}}', b'{"facts": {"a": ["b"]}}', b"[" * 10**6])
def test_what_another_version_may_send_is_one_line(sent: bytes):
    with pytest.raises(UserError, match=r"the record of rank 3 .* same version of this toolkit") as caught:
        parse_record(sent, 3)
    assert len(str(caught.value).splitlines()) == 1


def test_versions_are_named_but_are_no_disagreement():
    first, other = (Record(versions={"torch": "2.8.0", "timm": "1"}), Record(versions={"torch": "2.7.1", "timm": "2"}))
    assert disagreement([first], other) == "" and other_versions(first, first, 1) == ""
    line = other_versions(first, other, 1)
    assert line.startswith(
        "rank 1 has torch 2.7.1, but the first process has 2.8.0 (other differences: timm): results may differ"
    )


def test_what_an_environment_decides():
    usual = record_of({}, {"WORLD_SIZE": "2"})
    for harmless in (
        {"OMP_NUM_THREADS": "7", "POSTERS_TIMEOUT": "9", "RANK": "1", "CUDA_VISIBLE_DEVICES": "3"},
        {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_DYNAMO_MODE": "default"},
    ):
        assert disagreement([usual], record_of({}, {"WORLD_SIZE": "2"} | harmless)) == ""
    for name, value, key in (
        ("ACCELERATE_MIXED_PRECISION", "bf16", "precision bf16, but the first process has no"),
        ("WORLD_SIZE", "3", "processes 3, but the first process has 2"),
        ("NVIDIA_TF32_OVERRIDE", "0", "NVIDIA_TF32_OVERRIDE 0, but the first process has"),
    ):
        line = disagreement([usual], record_of({}, {"WORLD_SIZE": "2", name: value}))
        assert line.startswith(f"rank 1 has {key}"), line
    # An option wins over the launcher's word.
    told = record_of({}, {"WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "bf16"}, precision="no")
    assert disagreement([usual], told) == ""


def test_every_key_of_the_configuration_counts_but_two():
    usual = config_facts(Config())
    sections = {section.name: getattr(Config(), section.name) for section in dataclasses.fields(Config)}
    keys = {f"{name}.{field.name}" for name, section in sections.items() for field in dataclasses.fields(section)}
    assert keys - set(usual) == {"data.workers", "data.prefetch"}
    line = disagreement([Record(usual)], Record(config_facts(Config(optim=OptimConfig(lr=0.1)))))
    assert line == f"rank 1 has optim.lr 0.1, but the first process has 0.0015{REMEDY}"


def test_of_files_content_counts(tmp_path: Path):
    config = Config()
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    same, copy, other, absent = (
        Record(config_facts(dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(path)))))
        for path in (tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "d")
    )
    assert disagreement([same], copy) == ""
    assert disagreement([same], other).startswith("rank 1 has model.weights d4735e3a265e16ee (")
    assert disagreement([same], absent).startswith("rank 1 has model.weights no such file (")


def test_options_that_name_places_count_as_given():
    one = command_facts("evaluate", EvaluateOptions(model=Path("a"), out=Path("x"), threads=1, shards=Path("s")))
    two = command_facts("evaluate", EvaluateOptions(model=Path("b"), out=Path("y"), threads=2, shards=Path("s")))
    assert one == two
    without = command_facts("evaluate", EvaluateOptions(model=Path("b"), out=None, threads=2, shards=Path("s")))
    assert "has --out no value, but the first process has a path" in disagreement([Record(one)], Record(without))


def test_the_processes_of_one_machine_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    one, same, other = (
        Record(command_facts("predict", {"out": out}), host="a") for out in (Path("x"), tmp_path / "x", Path("y"))
    )
    assert disagreement([one], same) == ""
    assert disagreement([one], other).startswith(
        f"rank 1 has --out {tmp_path}/y, but the first process has {tmp_path}/x: start all processes"
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
    assert parse_record(msgspec.json.encode(record), 1) == record
    (tmp_path / "a.jpg").write_bytes(b"12")
    assert "folder of images" in disagreement([record], record_of(images_facts(tmp_path, paths), {}))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("set-missing", "no set"), "set-missing", "no set"),
        (OSError(28, "No space left on device"), "disk-full", "No space left"),
        (OSError(13, "Permission denied"), "path-unwritable", "Permission denied"),
        (ValueError("oh"), "rank-lost", "a bug (ValueError: oh); the traceback is in the output of that process"),
    ],
)
def test_others_hear_why_one_cannot_begin(error: Exception, code: Code, words: str, monkeypatch: pytest.MonkeyPatch):
    told: list[Record] = []
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "open_store", lambda *_: None)
    monkeypatch.setattr(launch, "compare", lambda *arguments: told.append(arguments[-1]))
    launch.report_failure(error)
    (record,) = told
    assert record.code == code and words in record.problem


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
    with fails("device", "GPU", "cpu_2.yaml", "ACCELERATE_USE_CPU=true"):
        require_no_gpus_wanted(BY_ACCELERATE | more)
