"""Tables of samples: what the indexes say, in records that need no reading."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import UserError
from shards.index import SCHEMA, read_index
from shards.manifest import Manifest
from shards.samples import (
    SampleTable,
    multi_hot_of,
    open_sample_table,
    record_type,
    records_of,
    table_name,
    write_sample_table,
)

pytest_plugins = ("shard_fixtures",)


def index_table(labels: list[list[int]]) -> pa.Table:
    n = len(labels)
    rng = np.random.default_rng(n)
    numbers = {
        name: rng.integers(1, 60_000, n) for name in SCHEMA.names if name not in ("key", "id", "labels")
    }
    names = [f"s{i}" for i in range(n)]
    return pa.table({"key": names, "id": names, **numbers, "labels": labels}, schema=SCHEMA)


@given(st.data(), st.integers(0, 40))
def test_genres_survive_as_bits(data: st.DataObject, genres: int) -> None:
    column = st.integers(0, max(genres - 1, 0))
    labels = data.draw(st.lists(st.lists(column, unique=True, max_size=genres), min_size=1, max_size=9))
    table = index_table(labels)
    records = records_of(table, genres)
    expected = np.zeros((len(labels), genres), dtype=np.uint8)
    for row, columns in enumerate(labels):
        expected[row, columns] = 1
    assert (multi_hot_of(records, genres) == expected).all()
    assert multi_hot_of(records, genres).dtype == np.uint8
    for ours, theirs in (("offset", "image_offset"), ("size", "image_size"), ("height",) * 2, ("width",) * 2):
        assert records[ours].tolist() == table[theirs].to_pylist()


def test_a_sample_costs_few_bytes() -> None:
    assert record_type(28).itemsize == 24 and record_type(0).itemsize == 21


def test_a_split_is_its_shards_one_after_the_other(shard_set: Path) -> None:
    manifest = Manifest.read(shard_set)
    assert set(manifest.tables) == set(manifest.split_names)
    for split, table in manifest.tables.items():
        shards = manifest.of_split(split)
        records = open_sample_table(
            shard_set / table.name, table, sum(s.samples for s in shards), len(manifest.genres)
        )
        assert isinstance(records, np.memmap) and not records.flags.writeable
        parts = [records_of(read_index(shard_set / s.name)[0], len(manifest.genres)) for s in shards]
        assert records.tobytes() == np.concatenate(parts).tobytes()
        assert multi_hot_of(records, len(manifest.genres)).sum(axis=0).tolist() == list(
            manifest.split_summary()[split]["genre_counts"].values()
        )


def test_the_name_is_the_content() -> None:
    name = table_name("train", ["a", "b"], ["Drama"])
    others = [
        table_name("train", ["b", "a"], ["Drama"]),
        table_name("train", ["a"], ["Drama"]),
        table_name("train", ["a", "b"], ["Comedy"]),
        table_name("val", ["a", "b"], ["Drama"]),
    ]
    assert name.startswith("train-") and name not in others


def test_indexes_of_another_build_make_no_table(shard_set: Path, tmp_path: Path) -> None:
    shutil.copytree(shard_set, tmp_path / "set")
    manifest = Manifest.read(shard_set)
    shards = [(s.name, s.sha256, s.samples) for s in manifest.of_split("train")]
    for changed in ((shards[0][0], "0" * 64, shards[0][2]), (*shards[0][:2], shards[0][2] + 1)):
        with pytest.raises(UserError, match=rf"index of .*{shards[0][0]} belongs to another build"):
            write_sample_table(tmp_path / "set", "train", [changed, *shards[1:]], manifest.genres)
    assert write_sample_table(tmp_path / "set", "train", shards, manifest.genres) == manifest.tables["train"]
    assert not list((tmp_path / "set").glob("*.partial"))


@pytest.mark.parametrize("damage", ["missing", "short", "layout", "garbage"])
def test_a_damaged_table_is_one_line(shard_set: Path, tmp_path: Path, damage: str) -> None:
    manifest = Manifest.read(shard_set)
    table = manifest.tables["val"]
    samples = sum(s.samples for s in manifest.of_split("val"))
    data = (shard_set / table.name).read_bytes()
    path = tmp_path / table.name
    if damage != "missing":
        path.write_bytes({"short": data[:-1], "layout": data, "garbage": bytes(len(data))}[damage])
    genres = len(manifest.genres) + (9 if damage == "layout" else 0)
    with pytest.raises(UserError) as caught:
        open_sample_table(path, table, samples, genres)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(TypeError):
        SampleTable("../elsewhere", 3, "x")
