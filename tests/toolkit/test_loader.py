"""The thread-pool loader: order, errors with their place, and no thread left behind."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from shards.errors import UserError
from shards.index import read_index
from toolkit.config import DataConfig
from toolkit.data.loader import Loader, decode_threads
from toolkit.data.plan import EvalPlan, TrainPlan
from toolkit.data.reader import ShardReader
from toolkit.data.transforms import Preprocessing, TrainTransforms

PLAIN = Preprocessing(32, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_batches_come_in_plan_order_whatever_the_threads(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "train")
    plan = TrainPlan(len(reader), 16, 0)
    seen = []
    for workers, prefetch in ((1, 1), (4, 3)):
        transforms = TrainTransforms(reader, DataConfig(image_size=32), 0, 0)
        with Loader(reader, 32, workers, prefetch) as loader:
            seen.append(list(loader.batches(plan.shares(0, 0, 1), transforms)))
    for a, b in zip(*seen, strict=True):
        assert (a.share.indices == b.share.indices).all()
        assert (a.images == b.images).all()
        assert a.images.shape[1:] == (32, 32, 3)


def test_a_sample_has_the_same_pixels_at_any_world_size(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "train")
    plan = TrainPlan(len(reader), 16, 0)
    pictures: list[dict[int, bytes]] = []
    for world in (1, 2, 3):
        found = {}
        for rank in range(world):
            with Loader(reader, 32, 2, 2) as loader:
                transforms = TrainTransforms(reader, DataConfig(image_size=32), 0, 4)
                for batch in loader.batches(plan.shares(4, rank, world), transforms):
                    for row in np.flatnonzero(batch.share.valid):
                        found[int(batch.share.indices[row])] = batch.images[row].numpy().tobytes()
        pictures.append(found)
    assert len(pictures[0]) == len(reader)
    assert pictures[0] == pictures[1] == pictures[2]


@pytest.fixture
def damaged(shard_set: Path, tmp_path: Path) -> tuple[Path, str]:
    """A shard set with one image overwritten by zeros, its size unchanged; and that sample's key."""
    folder = shutil.copytree(shard_set, tmp_path / "set")
    tar = folder / "test-00000.tar"
    table, _ = read_index(tar)
    row = table.to_pylist()[2]
    content = bytearray(tar.read_bytes())
    content[row["image_offset"] : row["image_offset"] + row["image_size"]] = bytes(row["image_size"])
    tar.write_bytes(content)
    return folder, row["key"]


def test_a_damaged_image_stops_with_its_place(damaged: tuple[Path, str]):
    folder, key = damaged
    reader = ShardReader.of_split(folder, "test")
    with Loader(reader, 32, 2, 2) as loader, pytest.raises(UserError) as caught:
        list(
            loader.batches(EvalPlan(len(reader), 4).shares(0, 1), lambda share: [PLAIN] * len(share.indices))
        )
    assert (
        "test-00000.tar" in str(caught.value) and key in str(caught.value) and "offset" in str(caught.value)
    )


def test_or_is_told_in_the_batch(damaged: tuple[Path, str]):
    folder, _ = damaged
    reader = ShardReader.of_split(folder, "test")
    with Loader(reader, 32, 2, 2, keep_errors=True) as loader:
        batches = list(
            loader.batches(EvalPlan(len(reader), 4).shares(0, 1), lambda share: [PLAIN] * len(share.indices))
        )
    assert list(batches[0].errors) == [2] and sum(len(b.errors) for b in batches) == 1
    assert "identify image" in batches[0].errors[2]
    assert not batches[0].images[2].any() and batches[0].images[1].any()


def test_threads_end_with_the_loader(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "train")
    before = threading.active_count()
    with Loader(reader, 32, 3, 2) as loader:
        stream = loader.batches(EvalPlan(len(reader), 4).shares(0, 1), lambda s: [PLAIN] * len(s.indices))
        next(stream)
        stream.close()  # an epoch left half-way
    assert threading.active_count() == before


def test_threads_are_shared_among_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.data.loader.available_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decode_threads(0) == 4 and decode_threads(3) == 3
