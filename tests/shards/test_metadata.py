"""CSVs as people have them: every row becomes a sample or a rejection with its reason."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import read_csv, write_csv

from shards.errors import UserError
from shards.metadata import Metadata, Rejection, Row, read_metadata, write_rejected

HEADER = "id,title,year,genre\n"
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NUL = pytest.mark.skipif(sys.version_info < (3, 11), reason="csv refuses the file before Python 3.11")


def read(tmp_path: Path, text: str | bytes, **options: Any) -> Metadata:
    path = tmp_path / "meta.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_metadata(path, **options)


cells = st.one_of(st.text(CHARACTERS, max_size=8), st.sampled_from(["a", "b", "Drama", "War|Drama", "[", ""]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(cells, max_size=5), max_size=8))
def test_no_row_is_lost(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["id", "title", "year", "genre"], *rows])
    metadata = read(tmp_path_factory.getbasetemp(), text.getvalue(), strict=False)
    assert metadata.posters + metadata.joined == len([row for row in rows if row])
    assert len(metadata.rows) + len(metadata.rejected) == metadata.posters
    assert len({row.id for row in metadata.rows}) == len(metadata.rows)


def test_columns_by_name_and_number(tmp_path: Path) -> None:
    text = "genre, name ,0\nDrama,a,x\n"
    assert read(tmp_path, text, id_column="name", genre_column="0").rows == [
        Row("a", ("x",))  # the header "0" is a name before it is a number
    ]
    assert read(tmp_path, text, id_column="name", genre_column="genre").rows == [Row("a", ("Drama",))]
    assert read(tmp_path, text, id_column="1", genre_column="genre").rows == [Row("a", ("Drama",))]
    metadata = read(tmp_path, HEADER + "7,T,1999,Drama\n")
    assert (metadata.rows, metadata.id_column, metadata.genre_column) == (
        [Row("7", ("Drama",))],
        "id",
        "genre",
    )


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"genre_column": "genres"}, ["no column 'genres'", "did you mean 'genre'?", "--genre-column"]),
        ({"id_column": "ID "}, ["no column 'ID '", "did you mean 'id'?", "--id-column"]),
        ({"genre_column": "4"}, ["no column number 4", "0 'id', 1 'title', 2 'year', 3 'genre'"]),
        ({"genre_column": "xyzzy"}, ["no column 'xyzzy'", "its columns are 0 'id'"]),
    ],
)
def test_missing_column_names_the_nearest(tmp_path: Path, options: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, HEADER + "1,T,1,Drama\n", **options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_bom_and_quoted_newlines(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbfid,title,year,genre\r\n1,\"two\r\nlines\",1999,\"['Drama',\n'War']\"\r\n\r\n2,x,1,War\r\n"
    metadata = read(tmp_path, text, id_column="id")
    assert metadata.rows == [Row("1", ("Drama", "War")), Row("2", ("War",))]
    assert metadata.rejected == []


def test_line_numbers_count_quoted_newlines(tmp_path: Path) -> None:
    metadata = read(tmp_path, HEADER + '1,"two\nlines",1,Drama\n2,x,1,[\n')
    assert metadata.rejected[0].detail.startswith("line 4: ")


def test_other_encodings(tmp_path: Path) -> None:
    text = HEADER + "1,Amélie,2001,Comédie\n"
    with pytest.raises(UserError, match=r"meta\.csv is not utf-8.* text .*--encoding latin-1"):
        read(tmp_path, text.encode("latin-1"))
    assert read(tmp_path, text.encode("latin-1"), encoding="latin-1").rows == [Row("1", ("Comédie",))]
    assert read(tmp_path, text.encode("utf-16"), encoding="utf-16").rows == [Row("1", ("Comédie",))]
    with pytest.raises(UserError, match="is not utf-16 text"):
        read(tmp_path, text.encode("utf-16-le"), encoding="utf-16")
    with pytest.raises(UserError, match="unknown text encoding 'klingon'"):
        read(tmp_path, text, encoding="klingon")


@pytest.mark.parametrize("content", [b"", b"\n", b",,,\n"])
def test_file_without_a_header(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match="a CSV with a header line is needed"):
        read(tmp_path, content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metadata CSV not found"):
        read_metadata(tmp_path / "absent.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_metadata(tmp_path)
    with pytest.raises(UserError, match="--genre-separator"):
        read(tmp_path, HEADER, separator="")


@pytest.mark.parametrize(
    ("sample_id", "problem"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("../x", "leave"),
        ("a/../../x", "leave"),
        ("..", "leave"),
        (".", "leave"),
        ("/etc/passwd", "leave"),
        ("//x", "leave"),
        ("a\\b", "leave"),
        ("C:", "leave"),
        ("c:/windows/x", "leave"),
        pytest.param("a\x00b", "control", marks=NUL),
        ("a\x1b[2Jb", "control"),
        ("a\nb", "control"),
        ("x" * 241, "too long"),
        ("映" * 81, "too long"),
    ],
)
def test_bad_ids(tmp_path: Path, sample_id: str, problem: str) -> None:
    metadata = read_metadata(write_csv(tmp_path / "meta.csv", [(sample_id, "", "", "Drama")]))
    assert metadata.rows == []
    assert [r.reason for r in metadata.rejected] == ["bad id"]
    assert problem in metadata.rejected[0].detail


@pytest.mark.parametrize(
    "sample_id",
    ["1", "tt0324127", "a.b.c", "...", "a..b", "sub/x", "a/b/c.d", "日本", "x" * 240, "__x__", "a b"],
)
def test_good_ids(tmp_path: Path, sample_id: str) -> None:
    metadata = read_metadata(write_csv(tmp_path / "meta.csv", [(sample_id, "", "", "Drama")]))
    assert metadata.rows == [Row(sample_id, ("Drama",))]


def test_the_first_row_of_a_repeated_id_counts(tmp_path: Path) -> None:
    metadata = read(tmp_path, HEADER + "1,a,1,Drama\n2,b,1,War\n1,c,1,Comedy\n 1 ,d,1,War\n")
    assert metadata.rows == [Row("1", ("Drama",)), Row("2", ("War",))]
    assert [(r.id, r.reason) for r in metadata.rejected] == [("1", "repeated id")] * 2
    assert "line 4" in metadata.rejected[0].detail


def test_short_rows_and_rows_without_genres(tmp_path: Path) -> None:
    metadata = read(tmp_path, HEADER + "1\n2,a,1,\n3,a,1,[]\n4,a,1,Drama,more,cells\n")
    assert metadata.rows == [Row("4", ("Drama",))]
    assert [(r.id, r.reason) for r in metadata.rejected] == [
        ("1", "no genres"),
        ("2", "no genres"),
        ("3", "no genres"),
    ]
    assert "1 columns" in metadata.rejected[0].detail


def test_rejected_csv_holds_any_text(tmp_path: Path) -> None:
    rejected = [Rejection('a,"b"', "bad id", "line 1: x\ny"), Rejection("日本", "no genres")]
    write_rejected(tmp_path / "rejected.csv", rejected)
    assert [tuple(row.values()) for row in read_csv(tmp_path / "rejected.csv")] == [
        (r.id, r.reason, r.detail) for r in rejected
    ]
