"""ShardLoader with wrong arguments, states of other loaders and functions that fail: one clear line each."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failing import fails

import toolkit
from toolkit.data.shard_loader import ShardLoader
from toolkit.data.sources.shard_reader import ShardReader


@pytest.fixture(scope="module")
def reader(shard_set: Path) -> ShardReader:
    return ShardReader.of_split(shard_set, "train")


def jitter(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A crop at a random place, of 24 pixels."""
    top, left = (int(generator.integers(0, side - 24)) for side in image.shape[:2])
    return image[top : top + 24, left : left + 24]


def test_problems_of_members_are_one_line(reader: ShardReader):
    with fails("set-other", "txt", f"{len(reader)} of {len(reader)}", ".tar", "members beside the image are: json"):
        ShardLoader(reader, batch_size=8, fields=("json", "txt"))
    for fields, fact in ((3, "3"), (None, "None"), (["json", 4], "4"), ({"json": "utf-8"}, "json.loads")):
        with fails("option-value", "fields", fact):
            ShardLoader(reader, batch_size=8, fields=fields)  # type: ignore[arg-type]
    with (
        ShardLoader(reader, batch_size=8, transform=jitter, fields={"json": lambda data: int(data)}) as loader,
        fails("option-value", "json", "member", "ValueError", "test_shard_loader_errors.py"),
    ):
        next(iter(loader))


def raises(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    raise KeyError("no such crop")


@pytest.mark.parametrize(
    ("transform", "facts"),
    [
        (raises, ("KeyError", "no such crop", "member", "test_shard_loader_errors.py")),
        (lambda image, generator: image, ("shape", "member")),
        (
            lambda image, generator: image[:9, :9].astype([np.uint8, np.float32][int(generator.integers(2))]),
            ("float32",),
        ),
        (lambda image, generator: "text", ("str", "array")),
        (lambda image, generator: None, ("NoneType", "array")),
        (lambda image, generator: np.zeros(3, complex), ("an array of complex128", "member", "float32")),
        (lambda image, generator: torch.zeros(3, requires_grad=True), ("requires grad", "member")),
        pytest.param(
            lambda image, generator: np.zeros(3, np.longdouble),
            ("an array of float128", "member", "float32"),
            marks=pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="longdouble is float64 here"),
        ),
    ],
    ids=["raises", "another shape", "another type", "text", "nothing", "complex", "gradient", "longdouble"],
)
def test_a_transform_that_fails_is_one_line(reader: ShardReader, transform, facts):
    with ShardLoader(reader, batch_size=8, transform=transform) as loader, fails("option-value", *facts):
        list(loader)


def test_numbers_and_tensors_of_other_libraries_are_taken(reader: ShardReader):
    options: dict[str, Any] = {"batch_size": np.int64(8), "seed": np.uint8(3), "threads": np.int32(1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy deprecates the conversion of tensors that torch does not yet support
        with ShardLoader(
            reader, **options, transform=lambda image, generator: torch.from_numpy(jitter(image, generator))
        ) as loader:
            loader.set_epoch(np.int64(1))
            assert next(iter(loader)).images.shape[1:] == (24, 24, 3)
            state = json.loads(json.dumps(loader.state_dict()))
    assert state["seed"] == 3 and state["epoch"] == 1


def test_states_of_other_loaders_are_refused(shard_set: Path):
    options: dict[str, Any] = {"split": "train", "batch_size": 12, "transform": jitter}
    with ShardLoader(shard_set, **options) as loader:
        next(iter(loader))
        state = loader.state_dict()
        assert all(isinstance(value, (int, str)) for value in state.values())
        for wrong, words in (
            ({}, ("fingerprint",)),
            ({**state, "epoch": -1}, ("epoch",)),
            ({**state, "samples": "all"}, ("samples",)),
        ):
            with fails("option-value", "state", *words):
                loader.load_state_dict(wrong)
        with fails("option-conflict", "sample 10000"):
            loader.load_state_dict({**state, "samples": 10_000})
    others: tuple[tuple[dict[str, Any], Any, tuple[str, ...]], ...] = (
        ({"seed": 1}, "option-conflict", ("seed 0", "seed 1")),
        ({"order": "window"}, "option-conflict", ("'global'", "'window 16'")),
        ({"split": "val"}, "set-other", ("split",)),
        ({"batch_size": 7}, "option-conflict", ("batch_size=12",)),
    )
    for other, code, facts in others:
        with ShardLoader(shard_set, **{**options, **other}) as loader, fails(code, *facts):
            loader.load_state_dict(state)
    whole = {**state, "samples": loader.num_samples}
    with ShardLoader(shard_set, **{**options, "batch_size": 5}) as loader:
        loader.load_state_dict({**whole, "samples": loader.num_samples})  # between epochs, any batch size may follow
        assert loader.epoch == 1


def test_wrong_arguments_are_one_line(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good: dict[str, Any] = {"split": "train", "batch_size": 8}
    for wrong, code, facts in (
        ({"split": None}, "option-missing", ("'train'", "'val'", "'test'")),
        ({"split": "dev"}, "set-split", ("'dev'",)),
        ({"split": ""}, "set-split", ("''", "train")),
        ({"split": ["train"]}, "set-split", ("['train']",)),
        ({"batch_size": True}, "option-value", ("batch_size", "True")),
        ({"batch_size": 1 << 60}, "option-value", ("batch_size", "at most")),
        ({"seed": True}, "option-value", ("seed", "True")),
        ({"threads": "2"}, "option-value", ("threads", "'2'")),
        ({"max_errors": True}, "option-value", ("max_errors", "True")),
        ({"rank": "0", "world_size": "1"}, "option-value", ("rank", "'0'")),
        ({"rank": 0, "world_size": 1.0}, "option-value", ("world_size", "1.0")),
        ({"transform": toolkit.EvalTransform}, "option-value", ("EvalTransform()", "class")),
        ({"transform": toolkit.EvalTransform(mean=(123, 0, 0), std=(1, 1, 1))}, "option-value", ("mean", "255")),
        ({"transform": toolkit.EvalTransform(mean=(0, 0, 0), std=(1, 1, 58))}, "option-value", ("std", "255")),
        ({"batch_size": 0}, "option-value", ("batch_size", "0")),
        ({"batch_size": 2.5}, "option-value", ("batch_size", "2.5")),
        ({"order": "random"}, "option-value", ("order", "'random'")),
        ({"seed": -1}, "option-value", ("seed", "-1")),
        ({"threads": -1}, "option-value", ("threads",)),
        ({"max_errors": 2}, "option-value", ("max_errors", "2")),
        ({"on_error": "skip"}, "option-value", ("on_error", "'skip'")),
        ({"rank": 2}, "option-missing", ("rank", "world_size")),
        ({"rank": 2, "world_size": 2}, "option-value", ("2",)),
        ({"transform": lambda image: image}, "option-value", ("generator",)),
        ({"transform": toolkit.TrainTransform(image_size=0)}, "option-value", ("image_size",)),
        ({"transform": toolkit.TrainTransform(flip=2)}, "option-value", ("flip", "2")),
        ({"transform": toolkit.EvalTransform(image_size="big")}, "option-value", ("image_size",)),  # type: ignore[arg-type]
        ({"transform": toolkit.EvalTransform(mean=(0, 0, 0))}, "option-conflict", ("mean", "std")),
        ({"transform": toolkit.EvalTransform(mean=(0, 0, 0), std=(1, 1, 0))}, "option-value", ("std",)),
    ):
        with fails(code, *facts):  # type: ignore[arg-type]
            ShardLoader(shard_set, **{**good, **wrong})
    with fails("set-missing", "posters shards index"):
        ShardLoader(tmp_path, **good)
    with fails("option-value", "int"):
        ShardLoader(3, **good)  # type: ignore[arg-type]
    with fails("option-conflict", "split"):
        ShardLoader(toolkit.open_shards(shard_set), **good)
    monkeypatch.setenv("RANK", "first")
    with fails("environment", "'first'"):
        ShardLoader(shard_set, **good)


def test_a_set_of_classes_without_exactly_one_class_is_damaged(reader: ShardReader):
    hostile = ShardReader(reader.store, reader.shards, reader.labels, classes=True)
    first = int(np.flatnonzero(hostile.targets.sum(axis=1) != 1)[0])
    with ShardLoader(hostile, batch_size=4, transform=jitter, order="stored") as loader:
        with fails("set-damaged", reader.where(first), "one class"):
            list(loader)
