"""The index that keeps the byte ranges of a tar's samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_tools import contents, write_tar

from shards.errors import UserError
from shards.index import (
    build_table,
    index_path,
    list_tars,
    member_checksum,
    read_index,
    tar_path,
    write_index,
)
from shards.manifest import Manifest
from shards.tarsamples import read_members

pytest_plugins = ("shard_fixtures",)

SAMPLES = {"a.jpg": b"image a", "a.json": b"{}", "a.txt": b"text", "b.json": b"[]", "b.PNG": b"image b" * 200}


def test_the_index_gives_exactly_the_members_bytes(shard_set: Path) -> None:
    for tar in list_tars(shard_set):
        by_name, data = contents(tar), tar.read_bytes()
        table, _ = read_index(tar)
        assert 2 * table.num_rows == len(by_name)
        for row in table.to_pylist():
            image = data[row["image_offset"] : row["image_offset"] + row["image_size"]]
            record = data[row["json_offset"] : row["json_offset"] + row["json_size"]]
            assert image == by_name[f"{row['key']}.jpg"] and record == by_name[f"{row['key']}.json"]


def test_tables_come_back_as_written(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", SAMPLES)
    members = read_members(tar)
    columns: dict[str, list[Any]] = {
        "id": ["ä", "b.1"],
        "height": [3, 4],
        "width": [5, 6],
        "labels": [[], [0, 32_766]],
    }
    table = build_table(tar, members, columns)
    write_index(tar, table, {"plan": "x", "bytes": 1})
    again, facts = read_index(tar)
    assert again.to_pylist() == table.to_pylist() and facts == {"plan": "x", "bytes": 1}
    with open(tar, "rb") as stream:
        assert again["crc32"].to_pylist() == [member_checksum(stream, member) for member in members]


def test_foreign_and_absent_indexes_are_user_errors(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", SAMPLES)
    with pytest.raises(UserError, match="no index beside"):
        read_index(tar)
    index_path(tar).write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        read_index(tar)
    pq.write_table(pa.table({"key": ["a"]}), index_path(tar))
    with pytest.raises(UserError, match="no index of this toolkit"):
        read_index(tar)


def test_names(tmp_path: Path) -> None:
    assert index_path(tmp_path / "train-00000.tar").name == "train-00000.index.parquet"
    assert tar_path(index_path(tmp_path / "a.b.tar")) == tmp_path / "a.b.tar"
    for name in ("b.tar", "a.tar", "c.tar.7.partial", "a.parquet"):
        (tmp_path / name).touch()
    assert [tar.name for tar in list_tars(tmp_path)] == ["a.tar", "b.tar"]


def test_indexes_hold_the_manifests_counts(shard_set: Path) -> None:
    for shard in Manifest.read(shard_set).shards:
        table, facts = read_index(shard_set / shard.name)
        assert (table.num_rows, facts["bytes"], facts["sha256"]) == (shard.samples, shard.bytes, shard.sha256)
