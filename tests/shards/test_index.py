"""Byte ranges of a tar's samples, and the index that keeps them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def ranges(tar: Path) -> dict[str, tuple[bytes, bytes | None]]:
    """Key to the image's and JSON's bytes, as the index would have them read."""
    data = tar.read_bytes()
    return {
        m.key: (
            data[m.image_offset : m.image_offset + m.image_size],
            data[m.json_offset : m.json_offset + m.json_size] if m.json_offset >= 0 else None,
        )
        for m in read_members(tar)
    }


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_tar_layout(tmp_path: Path, layout: int) -> None:
    tar = write_tar(tmp_path / "x.tar", SAMPLES, format=layout)
    assert ranges(tar) == {"a": (b"image a", b"{}"), "b": (b"image b" * 200, b"[]")}


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, layout: int) -> None:
    key = "sub.folder/" + "映" * 300
    members = {
        f"{key}.jpg": b"1",
        f"{key}.json": b"2",
        "./c.seg.png": b"no image of the sample",
        "./c.webp": b"3",
        "only.txt": b"no image",
        "README": b"no extension",
        "__index__.jpg": b"metadata of webdataset",
    }
    tar = write_tar(tmp_path / "x.tar", members, format=layout)
    assert ranges(tar) == {key: (b"1", b"2"), "./c": (b"3", None)}


def test_the_index_gives_exactly_the_members_bytes(shard_set: Path) -> None:
    for tar in list_tars(shard_set):
        by_name, data = contents(tar), tar.read_bytes()
        table, _ = read_index(tar)
        assert 2 * table.num_rows == len(by_name)
        for row in table.to_pylist():
            image = data[row["image_offset"] : row["image_offset"] + row["image_size"]]
            record = data[row["json_offset"] : row["json_offset"] + row["json_size"]]
            assert image == by_name[f"{row['key']}.jpg"] and record == by_name[f"{row['key']}.json"]


def with_data(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_damaged_tars_are_user_errors(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "x.tar", SAMPLES).read_bytes()
    offsets = [m.image_offset for m in read_members(tmp_path / "x.tar")]
    second = read_members(tmp_path / "x.tar")[1].json_offset - 512
    broken_header = bytearray(data)
    broken_header[second + 3] ^= 1
    cases = {
        "empty": b"",
        "zero": b"\0" * 100,
        "text": b"no tar at all" * 100,
        "in the first header": data[:300],
        "in a member": data[: offsets[1] + 100],
        "in a later header": data[: second + 100],
        "between two members": data[:second],
        "before the end": data[: offsets[1] + 1536],
        "flipped bit in a header": bytes(broken_header),
    }
    for name, damaged in cases.items():
        with pytest.raises(UserError) as caught:
            read_members(with_data(tmp_path / "y.tar", damaged))
        message = str(caught.value)
        assert str(tmp_path / "y.tar") in message and "\n" not in message, name


def test_compressed_and_sparse_tars_are_user_errors(tmp_path: Path) -> None:
    for compression in ("gz", "bz2", "xz"):
        tar = tmp_path / f"{compression}.tar"
        with tarfile.open(tar, f"w:{compression}") as archive:  # type: ignore[call-overload]
            archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
        with pytest.raises(UserError, match="no readable uncompressed tar"):
            read_members(tar)
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    sparse = with_data(tmp_path / "sparse.tar", info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 9728)
    with pytest.raises(UserError, match=r"a\.jpg is sparse"):
        read_members(sparse)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 20), st.integers(1, 255), st.booleans())
def test_a_flipped_byte_loses_no_sample_silently(
    tmp_path_factory: pytest.TempPathFactory, at: int, flip: int, long_names: bool
) -> None:
    tar = tmp_path_factory.getbasetemp() / f"flip-{long_names}.tar"
    if not tar.exists():
        members = {**SAMPLES, "映" * 60 + ".jpg" if long_names else "y.jpg": b"long", "z.jpg": b"last"}
        write_tar(tar, members, format=tarfile.PAX_FORMAT if long_names else tarfile.USTAR_FORMAT)
    data = bytearray(tar.read_bytes())
    data[at % len(data)] ^= flip
    try:
        found = read_members(with_data(tar.with_name("flipped.tar"), bytes(data)))
    except UserError:
        return
    if not long_names:  # the names in pax headers have no checksum: those may change
        assert found == read_members(tar)


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
