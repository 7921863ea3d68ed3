"""Parquet: columns of bytes are text, or are named. Other binary tables have a remedy, which is followed."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from failing import fails
from shard_tools import draw, encoded

from shards.tables.metadata import GenreOptions, Metadata, read_metadata

IMAGES = [encoded(draw("a", 400, 400)), encoded(draw("b", 400, 400))]
UUIDS = [uuid.UUID(int=(255 << 120) + number).bytes for number in (1, 2)]


def read(folder: Path, columns: dict[str, object], **options: Any) -> Metadata:
    pq.write_table(pa.table(columns), folder / "m.parquet")
    return read_metadata(folder / "m.parquet", GenreOptions(**options))


#: Columns of ids and genres as bytes.
BYTES: dict[str, dict[str, object]] = {
    "bytes": {"id": [b"p1", b"p2"], "genre": [b"War|Drama", "Com\u00e9die".encode()]},
    "large": {"id": pa.array([b"p1", b"p2"], pa.large_binary()), "genre": ["War|Drama", "Com\u00e9die"]},
    "fixed": {"id": pa.array([b"p1", b"p2"], pa.binary(2)), "genre": ["War|Drama", "Com\u00e9die"]},
    "categories": {"id": ["p1", "p2"], "genre": pa.array([b"War|Drama", "Com\u00e9die".encode()]).dictionary_encode()},
    "lists": {"id": ["p1", "p2"], "genre": [[b"War", b"Drama"], ["Com\u00e9die".encode()]]},
}


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_that_are_utf8_are_text(tmp_path: Path, kind: str) -> None:
    metadata = read(tmp_path, BYTES[kind])
    assert [(row.id, row.genres) for row in metadata.rows] == [("p1", ("War", "Drama")), ("p2", ("Com\u00e9die",))]
    assert metadata.reading.startswith("Parquet; ids in column 0 'id'")


def test_images_are_left_out_and_said(tmp_path: Path) -> None:
    for images in (IMAGES, [{"bytes": data, "path": "x"} for data in IMAGES], [[data, data] for data in IMAGES]):
        metadata = read(tmp_path, {"image": images, "file": ["p1", "p2"], "genre": ["War", "Drama"]})
        assert [row.id for row in metadata.rows] == ["p1", "p2"]
        assert metadata.reading.startswith("Parquet, without the bytes in column 'image'; ids in column 0 'file'")


@pytest.mark.parametrize("column", ["id", "genre"])
def test_other_bytes_are_named(tmp_path: Path, column: str) -> None:
    columns: dict[str, object] = {"id": ["p1", "p2"], "genre": ["War", "Drama"], "name": ["n1", "n2"]}
    bad = UUIDS if column == "id" else ["Com\u00e9die".encode("latin-1"), b"War"]
    with fails("table-column", f"m.parquet: column {column!r} has bytes that are not UTF-8 text; write it as text"):
        read(tmp_path, {**columns, column: bad})
    with fails("table-column", f"column {column!r} has bytes"):
        read(tmp_path, {**columns, "other": columns[column], column: bad}, **{f"{column}_column": column})
    # Both remedies.
    assert len(read(tmp_path, columns).rows) == 2
    other = "name" if column == "id" else "other"
    columns |= {"other": ["War", "Drama"], column: bad}
    assert len(read(tmp_path, columns, **{f"{column}_column": other}).rows) == 2


def test_a_column_of_images_is_no_column_of_ids(tmp_path: Path) -> None:
    columns: dict[str, object] = {"image": IMAGES, "key": ["p1", "p2"], "genre": ["War", "Drama"]}
    with fails("table-column", "column 'image' has bytes; write it as text, or choose another column with --id-column"):
        read(tmp_path, columns, id_column="image")
    assert [row.id for row in read(tmp_path, columns, id_column="key").rows] == ["p1", "p2"]


def test_nothing_but_bytes(tmp_path: Path) -> None:
    with fails("table-unreadable", "m.parquet has only columns of bytes that are not text"):
        read(tmp_path, {"id": UUIDS, "genre": UUIDS})


def arrow_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def read_stream(path: Path) -> pd.DataFrame:
    with pa.ipc.open_stream(path) as reader:
        return reader.read_pandas()


#: Function that writes another format, function of the remedy that reads it, and what the line says.
OTHERS: dict[str, tuple[Callable[[pa.Table, Path], object], Callable[[Path], pd.DataFrame], str]] = {
    "Feather": (
        feather.write_feather,
        pd.read_feather,
        "a Feather file: write it as Parquet, in pandas with read_feather",
    ),
    "Arrow": (arrow_stream, read_stream, "an Arrow stream: write its table as Parquet"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_become_parquet(tmp_path: Path, kind: str) -> None:
    write, reader, said = OTHERS[kind]
    path = tmp_path / "m.data"
    write(pa.table({"id": ["p1", "p2"], "genre": [["War", "Drama"], ["Comedy"]]}), path)
    for options in (GenreOptions(), GenreOptions(encoding="latin-1")):
        with fails("table-unreadable", "m.data is not a table: it is", said, "to_parquet(NEW_FILE)"):
            read_metadata(path, options)
    reader(path).to_parquet(tmp_path / "m.parquet")
    assert [row.genres for row in read_metadata(tmp_path / "m.parquet").rows] == [("War", "Drama"), ("Comedy",)]


def test_a_table_of_images_without_ids_names_the_column_of_images(tmp_path: Path) -> None:
    with fails("table-column", "'genre' has a name for genres", "write the ids too", "column 'image' has bytes"):
        read(tmp_path, {"image": IMAGES, "genre": ["War", "Drama"]})
