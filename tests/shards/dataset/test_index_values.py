"""The column of other members in an index: written and read alike, and refused in one line if a value is wrong."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing import fails
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_tools import draw, encoded, write_tar

from shards.build.index.tars import IndexOptions, index_folder
from shards.build.tar_samples import read_members
from shards.dataset.index import (
    FIELDS,
    SCHEMA,
    WEIGHTED_SCHEMA,
    Field,
    Member,
    build_table,
    field_ranges,
    index_of,
    index_path,
    members_of,
    parse_index,
    read_index,
    write_index,
)
from shards.dataset.index_values import FIELD_BYTES, MAX_FIELDS, MAX_MEMBER, is_field_name
from shards.dataset.manifest import Manifest, Shard

bounded = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

NAMES = st.sampled_from(["txt", "cls", "npy", "seg.png", "é", "n" * FIELD_BYTES])
NUMBERS = st.one_of(st.integers(0, 5), st.integers(0, MAX_MEMBER))
ROWS = st.lists(st.dictionaries(NAMES, st.tuples(NUMBERS, NUMBERS), max_size=4), max_size=12)


def table_of(rows: list[dict[str, tuple[int, int]]]) -> pa.Table:
    """An index table whose samples have these fields: name → offset and size."""
    columns: dict[str, Any] = {name: list(map(str, range(len(rows)))) for name in ("key", "id")}
    columns |= {name: [7] * len(rows) for name in SCHEMA.names[2:-1]}
    fields = [[{"name": name, "offset": at, "size": size} for name, (at, size) in row.items()] for row in rows]
    return pa.table({**columns, "labels": [[]] * len(rows), "fields": fields}, schema=SCHEMA.append(FIELDS))


def file_of(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"poster_toolkit": "{}"}), out, compression="zstd", **options)
    return out.getvalue()


def expected(rows: list[dict[str, tuple[int, int]]], name: str) -> list[tuple[int, int]]:
    return [row.get(name, (-1, -1)) for row in rows]


def ranges(table: pa.Table, name: str) -> list[tuple[int, int]]:
    offsets, sizes = field_ranges(table, name)
    assert offsets.dtype == sizes.dtype == np.int64 and offsets.shape == sizes.shape == (table.num_rows,)
    return list(zip(offsets.tolist(), sizes.tolist(), strict=True))


@settings(bounded, max_examples=100)
@given(ROWS, NAMES, st.integers(1, 5), st.booleans())
def test_ranges_come_back_as_written(
    rows: list[dict[str, tuple[int, int]]], name: str, group: int, dictionary: bool
) -> None:
    """With any row groups and encodings that another writer may choose."""
    table = table_of(rows)
    read, _ = parse_index(file_of(table, row_group_size=group, use_dictionary=dictionary), Path("x.index.parquet"))
    assert read.schema.equals(table.schema) and read.to_pylist() == table.to_pylist()
    assert ranges(read, name) == expected(rows, name)


@settings(bounded, max_examples=60)
@given(ROWS, ROWS, NAMES, st.data())
def test_ranges_of_parts_of_a_table(
    first: list[dict[str, tuple[int, int]]], second: list[dict[str, tuple[int, int]]], name: str, data: st.DataObject
) -> None:
    rows = first + second
    table = pa.concat_tables([table_of(first), table_of(second)])
    start = data.draw(st.integers(0, len(rows)))
    length = data.draw(st.integers(0, len(rows)))
    assert ranges(table.slice(start, length), name) == expected(rows[start : start + length], name)
    order = data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else []
    assert ranges(table.take(pa.array(order, pa.int64())), name) == [expected(rows, name)[at] for at in order]


def test_the_ranges_are_the_members_bytes(tmp_path: Path) -> None:
    members = {"a.jpg": b"image", "a.txt": b"a text", "b.jpg": b"other", "b.json": b"{}", "b.TXT": b"", "a.npy": b"n"}
    tar = write_tar(tmp_path / "x.tar", members)
    write_index(tar, build_table(tar, read_members(tar), ["a", "b"], [(1, 1)] * 2, [[], []]), {})
    table, data = read_index(tar)[0], tar.read_bytes()

    def bytes_of(name: str) -> list[bytes | None]:
        return [data[at : at + size] if at >= 0 else None for at, size in ranges(table, name)]

    assert bytes_of("txt") == [b"a text", b""] and bytes_of("npy") == [b"n", None]
    assert bytes_of("json") == [None, b"{}"] and bytes_of("cls") == [None, None]
    assert members_of(table) == read_members(tar)


def test_a_tar_of_images_and_jsons_has_no_column(tmp_path: Path) -> None:
    """So the indexes of such sets keep their bytes, and earlier versions can read them."""
    tar = write_tar(tmp_path / "x.tar", {"a.jpg": b"image", "a.json": b"{}"})
    for weights, schema in ((None, SCHEMA), ([0.5], WEIGHTED_SCHEMA)):
        table = build_table(tar, read_members(tar), ["a"], [(1, 1)], [[]], weights)
        write_index(tar, table, {})
        assert read_index(tar)[0].schema == schema == table.schema
        assert ranges(table, "txt") == [(-1, -1)] and members_of(table) == read_members(tar)
    tar = write_tar(tmp_path / "y.tar", {"a.jpg": b"image", "a.cls": b"1"})
    assert build_table(tar, read_members(tar), ["a"], [(1, 1)], [[]], [1.0]).schema == WEIGHTED_SCHEMA.append(FIELDS)


def test_the_column_goes_with_the_last_sample_that_has_a_member(tmp_path: Path) -> None:
    good = {"a.jpg": encoded(draw("a")), "a.json": b'{"genres": ["War"]}'}
    write_tar(tmp_path / "x.tar", {**good, "b.jpg": encoded(draw("b")), "b.txt": b"has no genres"})
    manifest = index_folder(IndexOptions(tmp_path, workers=1))
    assert read_index(tmp_path / "x.tar")[0].schema == SCHEMA
    assert manifest.source["other_members"] == "1 txt"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        *[(name, True) for name in ("txt", "seg.png", "a b", "%0A", "映" * 42)],
        *[(name, False) for name in ("", "a/b", "a\\b", "a\nb", "\x1b", "\u202e", "n" * 129, "映" * 43, "\ud800")],
    ],
)
def test_names(name: str, plain: bool) -> None:
    assert is_field_name(name) == plain


GOOD = {"name": "txt", "offset": 512, "size": 5}
BAD: dict[str, tuple[Any, str]] = {
    "no list": (None, "'fields' has empty values"),
    "no field": ([None], "'fields' has empty values"),
    "no name": ([{**GOOD, "name": None}], "'fields' has empty values"),
    "no size": ([{**GOOD, "size": None}], "'fields' has empty values"),
    "empty name": ([{**GOOD, "name": ""}], "'' is not a name of a field"),
    "path": ([{**GOOD, "name": "../x"}], "'../x' is not a name of a field"),
    "control character": ([{**GOOD, "name": "a\x1b"}], r"'a\x1b' is not a name of a field"),
    "long name": ([{**GOOD, "name": "n" * (FIELD_BYTES + 1)}], "the name of a field has 129 bytes"),
    "twice": ([GOOD, {**GOOD, "offset": 9}], "two fields with the same name"),
    "before the tar": ([{**GOOD, "offset": -1}], "a value 'offset' that is not from 0"),
    "size below 0": ([{**GOOD, "size": -1}], "a value 'size' that is not from 0"),
    "far behind the tar": ([{**GOOD, "offset": (1 << 63) - 1}], "a value 'offset' that is not from 0"),
    "behind the tar": ([{**GOOD, "offset": 1 << 40}], "a sample's field is outside of its tar"),
    "larger than the tar": ([{**GOOD, "size": 1 << 40}], "a sample's field is outside of its tar"),
    "many": ([{**GOOD, "name": str(n)} for n in range(MAX_FIELDS + 1)], "257 fields, over the limit of 256"),
}  # fmt: skip


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shard, pa.Table, bytes]:
    """An index of three samples with a text each: its path, shard, table and metadata."""
    folder = tmp_path_factory.mktemp("indexed")
    members = {f"{key}.jpg": encoded(draw(key, 9, 9)) for key in "abc"} | {f"{key}.txt": b"words" for key in "abc"}
    write_tar(folder / "x.tar", members)
    manifest = index_folder(IndexOptions(folder, workers=1))
    table = pq.read_table(index_path(folder / "x.tar"))
    return index_path(folder / "x.tar"), replace(manifest.shards[0], index_sha256=None), table, table.schema.metadata


def with_fields(table: pa.Table, values: list[Any], kind: pa.DataType = FIELDS.type) -> pa.Table:
    return table.set_column(table.schema.get_field_index("fields"), "fields", pa.array(values, kind))


@pytest.mark.parametrize("kind", BAD)
def test_values_that_no_index_holds(indexed: tuple[Path, Shard, pa.Table, Any], kind: str) -> None:
    path, shard, table, metadata = indexed
    value, message = BAD[kind]
    others = [[{**GOOD, "name": str(n)} for n in range(200)] if kind == "many" else [GOOD]] * 2
    changed = with_fields(table, [others[0], value, others[1]])
    out = io.BytesIO()
    pq.write_table(changed.replace_schema_metadata(metadata), out)
    with fails("set-damaged", path, message):
        index_of(out.getvalue(), path, shard)


TYPES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "texts": lambda t: t.set_column(t.schema.get_field_index("fields"), "fields", t["id"]),
    "names": lambda t: with_fields(t, [["txt"]] * 3, pa.list_(pa.string())),
    "other order": lambda t: with_fields(
        t, [[GOOD]] * 3, pa.list_(pa.struct({"size": pa.int64(), "name": pa.string(), "offset": pa.int64()}))
    ),
    "int32": lambda t: with_fields(
        t, [[GOOD]] * 3, pa.list_(pa.struct({"name": pa.string(), "offset": pa.int32(), "size": pa.int64()}))
    ),
    "large strings": lambda t: with_fields(
        t, [[GOOD]] * 3, pa.list_(pa.struct({"name": pa.large_string(), "offset": pa.int64(), "size": pa.int64()}))
    ),
    "one more": lambda t: t.append_column("more", t["id"]),
}


@pytest.mark.parametrize("kind", TYPES)
def test_types_that_no_index_holds(indexed: tuple[Path, Shard, pa.Table, Any], kind: str) -> None:
    path, shard, table, metadata = indexed
    out = io.BytesIO()
    pq.write_table(TYPES[kind](table).replace_schema_metadata(metadata), out)
    with fails("set-format", path, "`posters shards index`"):
        index_of(out.getvalue(), path, shard)


def test_other_names_of_the_same_lists_are_read(indexed: tuple[Path, Shard, pa.Table, Any]) -> None:
    """Parquet writers name the items of a list differently."""
    path, shard, table, metadata = indexed
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), out, use_compliant_nested_type=False)
    assert index_of(out.getvalue(), path, shard).to_pylist() == table.to_pylist()


def test_some_bytes_do_not_become_gigabytes(indexed: tuple[Path, Shard, pa.Table, Any]) -> None:
    path, shard, table, metadata = indexed
    long = [[{**GOOD, "name": "x" * (1 << 17)}]] * 3
    many = [[GOOD] * (1 << 18)] * 3
    for values, words in ((long, "the name of a field has 131072 bytes"), (many, "too large for its number")):
        out = io.BytesIO()
        pq.write_table(with_fields(table, values).replace_schema_metadata(metadata), out, compression="zstd")
        assert len(out.getvalue()) < 1 << 18
        with fails("set-damaged", path, words):
            index_of(out.getvalue(), path, shard)


def test_members_and_tables_are_the_same_facts(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", {"a.jpg": b"1", "b.jpg": b"2"})
    members = [Member("a", 512, 1, fields=(Field("txt", 3, 4), Field("cls", 0, 0))), Member("b", 512, 1, 512, 1)]
    assert members_of(build_table(tar, members, ["a", "b"], [(1, 1)] * 2, [[], []])) == members


def test_the_manifest_counts_other_members_as_before(indexed: tuple[Path, Shard, pa.Table, Any]) -> None:
    manifest = Manifest.read(indexed[0].parent)
    assert manifest.source["other_members"] == "3 txt"
