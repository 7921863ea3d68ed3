"""The index that keeps the byte ranges of a tar's samples."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing import fails
from shard_tools import contents, write_tar

from shards.build.tar_samples import read_members
from shards.dataset.index import (
    SCHEMA,
    build_table,
    index_of,
    index_path,
    list_tars,
    member_checksum,
    parse_index,
    read_index,
    read_index_of,
    tar_path,
    write_index,
)
from shards.dataset.index_values import MAX_PIXELS, NAME_BYTES
from shards.dataset.manifest import Manifest
from shards.errors import Code

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
    table = build_table(tar, members, ["ä", "b.1"], [(5, 3), (6, 4)], [[], [0, 32_766]])
    write_index(tar, table, {"plan": "x", "bytes": 1})
    again, facts = read_index(tar)
    assert again["id"].to_pylist() == ["ä", "b.1"] and again["labels"].to_pylist() == [[], [0, 32_766]]
    assert (again["width"].to_pylist(), again["height"].to_pylist()) == ([5, 6], [3, 4])
    assert again.to_pylist() == table.to_pylist() and facts == {"plan": "x", "bytes": 1}
    with open(tar, "rb") as stream:
        assert again["crc32"].to_pylist() == [member_checksum(stream, member) for member in members]


def test_foreign_and_absent_indexes_are_user_errors(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", SAMPLES)
    with fails("set-missing", tar, "`posters shards build`", "`posters shards index`"):
        read_index(tar)
    index_path(tar).write_bytes(b"PAR1 but not really PAR1")
    with fails("set-damaged", index_path(tar)):
        read_index(tar)
    pq.write_table(pa.table({"key": ["a"]}), index_path(tar))
    with fails("set-format", index_path(tar), "`posters shards index`"):
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


def written(table: pa.Table, metadata: dict[bytes, bytes] | None) -> bytes:
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), out, compression="zstd")
    return out.getvalue()


def with_value(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """The third sample says something else in a column."""

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[2][column] = value
        return pa.Table.from_pylist(rows, schema=table.schema)

    return change


def as_type(column: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(column)
        return table.set_column(at, column, table[column].cast(kind))

    return change


def not_utf8(table: pa.Table) -> pa.Table:
    ids = [b"\xff\xfe", *[name.encode() for name in table["id"].to_pylist()[1:]]]
    raw = pa.array(ids, pa.binary())
    return table.set_column(1, "id", pa.Array.from_buffers(pa.string(), len(ids), raw.buffers()))


BAD_TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    **{f"{name} null": with_value(name, None) for name in SCHEMA.names},
    "label null": with_value("labels", [0, None]),
    "label below 0": with_value("labels", [-1]),
    "label of no genre": with_value("labels", [5]),
    "image before the tar": with_value("image_offset", -1),
    "image behind the tar": with_value("image_offset", 1 << 40),
    "image far behind the tar": with_value("image_offset", (1 << 63) - 1),
    "image larger than the tar": with_value("image_size", 1 << 30),
    "image larger than 32 bits": with_value("image_size", 1 << 33),
    "image of less than nothing": with_value("image_size", -1),
    "JSON behind the tar": with_value("json_offset", 1 << 40),
    "JSON before the tar": with_value("json_offset", -2),
    "crc32 of 40 bits": with_value("crc32", 1 << 40),
    "no height": with_value("height", 0),
    "width below 0": with_value("width", -5),
    "huge": with_value("height", (1 << 31) - 1),
    "many pixels": with_value("width", MAX_PIXELS // 20),
    "long id": with_value("id", "x" * (NAME_BYTES + 1)),
    "ids as bytes": as_type("id", pa.binary()),
    "heights as int64": as_type("height", pa.int64()),
    "labels as int32": as_type("labels", pa.list_(pa.int32())),
    "labels as text": lambda table: table.set_column(9, "labels", table["id"]),
    "a column less": lambda table: table.drop_columns(["crc32"]),
    "a column more": lambda table: table.append_column("more", table["id"]),
    "columns in another order": lambda table: table.select(SCHEMA.names[::-1]),
    "a row less": lambda table: table.slice(1),
    "no rows": lambda table: table.slice(0, 0),
    "a row twice": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "ids that are no text": not_utf8,
}  # fmt: skip


@pytest.mark.parametrize("change", BAD_TABLES.values(), ids=BAD_TABLES)
def test_values_that_no_index_holds_are_one_line(few_shards: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    shard = replace(Manifest.read(few_shards).shards[0], index_sha256=None)  # or the digest would be the reason
    path = index_path(few_shards / shard.name)
    good = pq.read_table(path)
    index_of(written(good, good.schema.metadata), path, shard)
    bad = change(good)
    same_columns = bad.schema.remove_metadata().equals(SCHEMA)
    other: Code = "set-other" if same_columns and bad.num_rows != good.num_rows else "set-damaged"
    with fails(other if same_columns else "set-format", path):
        index_of(written(bad, good.schema.metadata), path, shard)


@pytest.mark.parametrize(
    "facts", [b"null", b"[]", b"7", b'"x"', b"{", b"", b"\xff", b"{}", b'{"sha256": 5}', b"[" * 99_999]
)
def test_facts_that_are_not_the_shards_are_one_line(few_shards: Path, facts: bytes) -> None:
    shard = replace(Manifest.read(few_shards).shards[0], index_sha256=None)
    path = index_path(few_shards / shard.name)
    with fails("set-other" if facts in (b"{}", b'{"sha256": 5}') else "set-damaged", path):
        index_of(written(pq.read_table(path), {b"poster_toolkit": facts}), path, shard)
    with fails("set-format", path):
        parse_index(written(pq.read_table(path), {b"else": facts}), path)


def test_some_bytes_do_not_become_gigabytes(few_shards: Path) -> None:
    """A file of some kilobytes may say a long text, or a list of labels, of every sample."""
    path = index_path(few_shards / "train-00000.tar")
    good = pq.read_table(path)
    n = good.num_rows
    texts = [
        pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int8()), pa.array(["x" * size]))
        for size in (1 << 20, 8 << 20)
    ]
    many = pa.array([[0] * (1 << 20)] * n, pa.list_(pa.int16()))
    for column, values, *facts in (
        (1, texts[0].cast(pa.string()), "'id'", 1 << 20),
        (1, texts[1].cast(pa.string()), "too large for its number of samples"),
        (9, many, "too large for its number of samples"),
    ):
        data = written(good.set_column(column, good.schema.field(column), values), good.schema.metadata)
        assert len(data) < 1 << 20
        with fails("set-damaged", path, *facts):
            parse_index(data, path)


def test_an_index_with_a_digest_is_that_one(few_shards: Path, tmp_path: Path) -> None:
    shard = Manifest.read(few_shards).shards[0]
    assert read_index_of(few_shards, shard).num_rows == shard.samples
    path = index_path(tmp_path / shard.name)
    table, facts = read_index(few_shards / shard.name)
    order = list(range(table.num_rows))[::-1]
    write_index(tmp_path / shard.name, table.set_column(1, "id", table["id"].take(order)), facts)
    with fails("set-damaged", "index.parquet", "sha256"):
        read_index_of(tmp_path, shard)
    assert read_index_of(tmp_path, replace(shard, index_sha256=None)).num_rows == shard.samples
    path.unlink()
    os.mkfifo(path)  # waits for a writer without end
    with fails("set-missing", tmp_path):
        read_index_of(tmp_path, shard)
