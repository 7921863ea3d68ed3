"""A set that a stranger changed anywhere is read as it was, or refused in one line; no other file is touched."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_tools import tree
from test_manifest import honest

from shards.build.planning import splits_like
from shards.build.verify import verify_shards
from shards.dataset.index import SCHEMA, index_path
from shards.dataset.manifest import Manifest
from shards.dataset.store import open_store
from shards.errors import UserError
from shards.storage.files import sha256_file
from toolkit.data.sources.shard_reader import ShardReader

pytest_plugins = ("shard_fixtures",)

#: Values that a field may be given: wrong types, ends of ranges, names that lead elsewhere.
VALUES = st.sampled_from(
    [
        None, True, -1, 0, 1, 2, 255, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, 10**400, 0.5, "", "x", "train",
        "../victim.tar", "/tmp/victim.tar", "file:///victim.tar", "a\x00b", "0" * 64, "a/" * 32,
        [], [0], [-1], [[1]], {}, {"a": 1},
    ]
)  # fmt: skip
NUMBERS = [-1, 0, 1, 5, 1 << 20, (1 << 31) - 1, 1 << 40, (1 << 63) - 1]
COLUMN_VALUES = [None, *NUMBERS, "", "x" * 20_000, [], [-1], [4], [99]]


@dataclass
class Fuzzed:
    """A folder with a set to change, and what is right."""

    home: Path
    """Holds the folder and a file that is somebody's."""
    original: Path
    ids: dict[str, list[str]]
    records: dict[str, bytes]

    @property
    def folder(self) -> Path:
        return self.home / "set"

    def renew(self) -> None:
        """The set as it was; tars are links, as nothing changes them."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.folder.mkdir(parents=True)
        (self.home / "victim.tar").write_text("mine")
        for path in self.original.iterdir():
            if path.suffix == ".tar":
                os.link(path, self.folder / path.name)
            elif path.is_file() and path.name != ".lock":
                shutil.copy(path, self.folder)

    def raw(self) -> Any:
        return json.loads((self.folder / "manifest.json").read_text())

    def write(self, raw: Any) -> None:
        (self.folder / "manifest.json").write_text(json.dumps(raw))

    def vouch(self) -> None:
        """The manifest names the digests of the files as they are: a stranger's own."""
        raw = self.raw()
        for shard in raw["shards"]:
            path = index_path(self.folder / shard["name"])
            shard["index_bytes"], shard["index_sha256"] = path.stat().st_size, sha256_file(path)
        for table in raw["tables"].values():
            path = self.folder / table["name"]
            table["bytes"], table["sha256"] = path.stat().st_size, sha256_file(path)
        self.write(raw)


@pytest.fixture(scope="module")
def fuzzed(few_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    manifest = Manifest.read(few_shards)
    readers = {split: ShardReader.of_split(few_shards, split, manifest) for split in manifest.split_names}
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("marks"))
    yield Fuzzed(
        tmp_path_factory.mktemp("fuzzed") / "home",
        few_shards,
        {split: reader.sample_ids() for split, reader in readers.items()},
        {split: reader.records.tobytes() for split, reader in readers.items()},
    )
    tempfile.tempdir = before


def in_one_line(read: Callable[[], Any]) -> Any:
    """The result, or None where it was refused as a user is to be."""
    try:
        return read()
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return None


def read_all(fuzzed: Fuzzed, vouched: bool) -> None:
    """Every reader's result is right; where a stranger ``vouched`` for other values, at least possible."""
    folder = fuzzed.folder
    before = tree(fuzzed.home)
    manifest = in_one_line(lambda: open_store(folder).manifest())
    in_one_line(lambda: verify_shards(folder, 1))
    in_one_line(lambda: splits_like(folder, ["p0000"], np.zeros(1, np.int64)))
    for split in manifest.split_names if manifest else ():
        reader = in_one_line(partial(ShardReader.of_split, folder, split, manifest))
        if reader is None:
            continue
        widths, heights = reader.sizes(np.arange(len(reader)))
        assert (widths > 0).all() and (heights > 0).all() and (widths * heights < 1 << 28).all()
        assert set(np.unique(reader.targets)) <= {0, 1} and reader.targets.shape == (len(reader), len(manifest.genres))
        for index in range(len(reader)):
            assert len(reader.read(index)) == reader.records["size"][index]
        ids = in_one_line(reader.sample_ids)
        assert ids is None or (len(ids) == len(reader) and all(isinstance(name, str) for name in ids))
        if not vouched:
            assert reader.records.tobytes() == fuzzed.records[split] and ids in (None, fuzzed.ids[split])
    assert tree(fuzzed.home) == before


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values below a JSON value, itself included."""
    yield path
    if isinstance(value, (dict, list)):
        for step in value if isinstance(value, dict) else range(len(value)):
            yield from places_in(value[step], (*path, step))


def replaced(raw: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    raw = copy.copy(raw)
    raw[path[0]] = replaced(raw[path[0]], path[1:], value)
    return raw


def fuzz(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=slow)


@fuzz(80)
@given(st.data(), st.booleans())
def test_manifests(fuzzed: Fuzzed, data: st.DataObject, fitting: bool) -> None:
    """``fitting``: the fingerprint is made to fit the change."""
    fuzzed.renew()
    raw = fuzzed.raw()
    known = [path for path in places_in(raw) if path[:1] not in (("splits",), ("versions",), ("packing",))]
    path, value = data.draw(st.sampled_from(known)), data.draw(VALUES)
    raw = replaced(raw, path, value)
    with contextlib.suppress(TypeError, AttributeError, KeyError):  # too wrong to have a fingerprint
        raw = honest(raw) if fitting else raw
    fuzzed.write(raw)
    moved = path[-1:] in (("split",), ("genres",)) or path[:1] == ("labels",) or path[-1:] == ("name",)
    read_all(fuzzed, vouched=moved)


@fuzz(40)
@given(
    st.sampled_from(["manifest.json", "train-00000.index.parquet", "table"]),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=3),
    st.one_of(st.none(), st.integers(0, 1 << 20)),
    st.booleans(),
)
def test_bytes(fuzzed: Fuzzed, name: str, flips: list[tuple[int, int]], end: int | None, vouched: bool) -> None:
    fuzzed.renew()
    path = fuzzed.folder / (fuzzed.raw()["tables"]["train"]["name"] if name == "table" else name)
    data = bytearray(path.read_bytes())
    for at, bits in flips:
        data[at % len(data)] ^= bits
    path.write_bytes(data if end is None else data[: end % len(data)])
    if vouched and name != "manifest.json":
        fuzzed.vouch()
    read_all(fuzzed, vouched=vouched or name == "manifest.json")


@fuzz(40)
@given(st.data(), st.sampled_from(SCHEMA.names), st.booleans())
def test_indexes(fuzzed: Fuzzed, data: st.DataObject, column: str, vouched: bool) -> None:
    """Another value of a sample, another type or order of a column; the split without its table, as of old."""
    fuzzed.renew()
    path = fuzzed.folder / "train-00000.index.parquet"
    table = pq.read_table(path)
    at, rows = table.schema.get_field_index(column), table.column(column).to_pylist()
    kind = data.draw(st.sampled_from(["value", "roll", "drop", "type"]))
    if kind == "value":
        rows[data.draw(st.integers(0, len(rows) - 1))] = data.draw(st.sampled_from(COLUMN_VALUES))
        try:
            table = table.set_column(at, table.schema.field(at), pa.array(rows, table.schema.field(at).type))
        except (pa.ArrowException, OverflowError, TypeError):
            return  # the column's type does not hold it
    elif kind == "roll":
        table = table.set_column(at, table.schema.field(at), table[column].take([*range(1, len(rows)), 0]))
    elif kind == "drop":
        table = table.drop_columns([column])
    else:
        table = table.set_column(at, column, pa.array([repr(value) for value in rows]))
    out = io.BytesIO()
    pq.write_table(table, out)
    path.write_bytes(out.getvalue())
    if vouched:
        fuzzed.vouch()
    if data.draw(st.booleans()):
        raw = fuzzed.raw()
        del raw["tables"]["train"]
        fuzzed.write(raw)
    read_all(fuzzed, vouched)


@fuzz(16)
@given(
    st.sampled_from(["offset", "size", "height", "width", "genres"]),
    st.integers(0, 7),
    st.one_of(st.none(), st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1 << 20, 1 << 31, (1 << 64) - 1])),
    st.booleans(),
)
def test_tables(fuzzed: Fuzzed, field: str, row: int, value: int | None, vouched: bool) -> None:
    """Another value of a sample, or all of them given to the sample before."""
    fuzzed.renew()
    path = fuzzed.folder / fuzzed.raw()["tables"]["train"]["name"]
    records = np.load(path)
    unchanged = records.tobytes()
    if value is None:
        records[field] = np.roll(records[field], 1, axis=0)
    else:
        records[field][row] = value & np.iinfo(records[field].dtype).max
    with open(path, "wb") as stream:
        np.save(stream, records)
    if vouched:
        fuzzed.vouch()
    read_all(fuzzed, vouched or records.tobytes() == unchanged)
