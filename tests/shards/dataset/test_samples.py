"""Tables of samples: what the indexes say, in records that need no reading."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.index import SCHEMA, read_index
from shards.dataset.manifest import Manifest, Shard
from shards.dataset.sample_table import (
    SampleTable,
    check_sample_table,
    map_sample_table,
    multi_hot_of,
    open_sample_table,
    record_type,
    records_of,
    table_name,
    write_sample_table,
)
from shards.errors import Code
from shards.storage.files import sha256_file

pytest_plugins = ("shard_fixtures",)


def mapped(path: Path, table: SampleTable, shards: Sequence[Shard], genres: int) -> np.ndarray:
    """A table's records, checked as stores do."""
    with open_sample_table(path) as stream:
        records = map_sample_table(stream, path, table, sum(s.samples for s in shards), genres)
        check_sample_table(stream, path, records, table, shards)
    return records


def index_table(labels: list[list[int]]) -> pa.Table:
    n = len(labels)
    rng = np.random.default_rng(n)
    numbers = {name: rng.integers(1, 60_000, n) for name in SCHEMA.names if name not in ("key", "id", "labels")}
    names = [f"s{i}" for i in range(n)]
    return pa.table({"key": names, "id": names, **numbers, "labels": labels}, schema=SCHEMA)


@settings(deadline=None, derandomize=True)
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
        records = mapped(shard_set / table.name, table, shards, len(manifest.genres))
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
    shards = [replace(shard, index_sha256=None) for shard in manifest.of_split("train")]
    for changed in (replace(shards[0], sha256="0" * 64), replace(shards[0], samples=shards[0].samples + 1)):
        with fails("set-other", shards[0].name.removesuffix(".tar")):
            write_sample_table(tmp_path / "set", "train", [changed, *shards[1:]], manifest.genres)
    table, digests = write_sample_table(tmp_path / "set", "train", shards, manifest.genres)
    assert table == manifest.tables["train"]
    assert digests == [(s.index_bytes, s.index_sha256) for s in manifest.of_split("train")]
    assert not list((tmp_path / "set").glob("*.partial"))


def rolled(records: np.ndarray) -> None:
    """Every sample has the genres of the one before."""
    records["genres"] = np.roll(records["genres"], 1, axis=0)


def one(field: str, value: int) -> Callable[[np.ndarray], None]:
    def change(records: np.ndarray) -> None:
        records[field][3] = value

    return change


DAMAGE: dict[str, Callable[[np.ndarray], None]] = {
    "rolled": rolled,
    "offset behind the tar": one("offset", 1 << 40),
    "offset of 64 bits": one("offset", (1 << 64) - 1),
    "size of 32 bits": one("size", (1 << 32) - 1),
    "no height": one("height", 0),
    "huge": one("width", (1 << 32) - 1),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("vouched", [False, True])
def test_records_that_are_not_the_manifests_are_one_line(
    shard_set: Path, tmp_path: Path, change: Callable[[np.ndarray], None], vouched: bool
) -> None:
    """Where a stranger's manifest vouches for the bytes, they say of no tar what cannot be."""
    manifest = Manifest.read(shard_set)
    table, shards = manifest.tables["train"], manifest.of_split("train")
    records = np.load(shard_set / table.name)
    change(records)
    path = tmp_path / table.name
    with open(path, "wb") as stream:
        np.save(stream, records)
    if vouched:
        table = replace(table, bytes=path.stat().st_size, sha256=sha256_file(path))
    if vouched and change is rolled:
        assert len(mapped(path, table, shards, len(manifest.genres)))
        return
    with fails("set-damaged", path):
        mapped(path, table, shards, len(manifest.genres))


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    data = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY" + version + len(data).to_bytes(2, "little") + data


@pytest.mark.parametrize(
    "damage", ["missing", "short", "layout", "garbage", "pickle", "code", "syntax", "version", "folder"]
)
def test_a_damaged_table_is_one_line(shard_set: Path, tmp_path: Path, damage: str) -> None:
    manifest = Manifest.read(shard_set)
    table = manifest.tables["val"]
    shards = manifest.of_split("val")
    data = (shard_set / table.name).read_bytes()
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}] * 3, dtype=object), allow_pickle=True)
    bytes_of: dict[str, bytes] = {
        "short": data[:-1], "layout": data, "garbage": bytes(len(data)), "pickle": pickled.getvalue(),
        "code": header("__import__('os').system('false')"), "syntax": header("{(" * 200),
        "version": header("{}", b"\x09\x09"),
    }  # fmt: skip
    path = tmp_path / table.name
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(bytes_of[damage])
        if damage not in ("short", "garbage"):
            table = replace(table, bytes=len(bytes_of[damage]))
    genres = len(manifest.genres) + (9 if damage == "layout" else 0)
    code: dict[str, Code] = {"missing": "set-missing", "folder": "path-unreadable"}
    with fails(code.get(damage, "set-damaged"), path):
        mapped(path, table, shards, genres)


@pytest.mark.parametrize("at_a_time", [1, 3, 1 << 18])
def test_every_record_is_compared_with_its_own_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    """Tars of several sizes, one without samples among them, looked at some at a time."""
    monkeypatch.setattr("shards.dataset.sample_table.CHECKED_AT_A_TIME", at_a_time)
    sizes = [(2, 1000), (0, 99), (4, 5000), (1, 300), (3, 2000)]
    shards = [Shard(f"{k}.tar", "train", n, size, "0" * 64, 1, 1, []) for k, (n, size) in enumerate(sizes)]
    limits = np.repeat([size for _, size in sizes], [n for n, _ in sizes])
    records = np.ones(len(limits), dtype=record_type(0))
    records["size"] = 200
    records["offset"] = limits - 200
    path = tmp_path / "train.samples.npy"

    def check(changed: np.ndarray) -> None:
        with open(path, "wb") as stream:
            np.save(stream, changed)
        mapped(path, SampleTable(path.name, path.stat().st_size, sha256_file(path)), shards, 0)

    check(records)
    for row in range(len(records)):
        changed = records.copy()
        changed["offset"][row] += 1
        with fails("set-damaged", "tar"):
            check(changed)
