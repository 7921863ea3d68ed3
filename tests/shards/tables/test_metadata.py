"""CSVs as people have them: every row becomes a sample or a rejection with its reason."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import read_csv, write_csv

from shards.errors import UserError
from shards.inputs.rejections import Rejection, write_rejected
from shards.storage.csv_text import unescaped
from shards.tables.metadata import GenreOptions, Metadata, Row, read_metadata
from shards.tables.row_checks import read_rejected

HEADER = "id,title,year,genre\n"
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
NUL = pytest.mark.skipif(sys.version_info < (3, 11), reason="csv refuses the file before Python 3.11")


def read(
    tmp_path: Path, text: str | bytes, *, known: Sequence[str] = (), strict: bool = True, **options: Any
) -> Metadata:
    path = tmp_path / "meta.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_metadata(path, GenreOptions(**options), known=known, strict=strict)


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
    assert (metadata.rows, metadata.id_column, metadata.genre_column) == ([Row("7", ("Drama",))], "id", "genre")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"genre_column": "genres"}, ["'genres'", "'genre'?", "--genre-column"]),
        ({"id_column": "ID "}, ["'ID '", "'id'?", "--id-column"]),
        ({"genre_column": "4"}, ["number 4;", "0 'id', 1 'title', 2 'year', 3 'genre'"]),
        ({"genre_column": "xyzzy"}, ["'xyzzy';", "0 'id', 1 'title', 2 'year', 3 'genre'"]),
    ],
)
def test_missing_column_names_the_nearest(tmp_path: Path, options: dict[str, Any], parts: list[str]) -> None:
    with fails("table-column", "meta.csv", *parts):
        read(tmp_path, HEADER + "1,T,1,Drama\n", **options)


def test_bom_and_quoted_newlines(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbfid,title,year,genre\r\n1,\"two\r\nlines\",1999,\"['Drama',\n'War']\"\r\n\r\n2,x,1,War\r\n"
    metadata = read(tmp_path, text, id_column="id")
    assert metadata.rows == [Row("1", ("Drama", "War")), Row("2", ("War",))]
    assert metadata.rejected == []
    assert read(tmp_path, text, id_column="id", encoding="utf-8").rows == metadata.rows


def test_line_numbers_count_quoted_newlines(tmp_path: Path) -> None:
    metadata = read(tmp_path, HEADER + '1,"two\nlines",1,Drama\n2,x,1,[\n')
    assert metadata.rejected[0].detail.startswith("line 4: ")


def test_other_encodings(tmp_path: Path) -> None:
    text = HEADER + "1,Amélie,2001,Comédie\n"
    with fails("table-unreadable", "meta.csv is not utf-8", "--encoding"):
        read(tmp_path, text.encode("latin-1"), encoding="utf-8")
    for name in ("latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32"):
        assert read(tmp_path, text.encode(name)).rows == [Row("1", ("Comédie",))]
    assert read(tmp_path, text.encode("latin-1"), encoding="latin-1").rows == [Row("1", ("Comédie",))]
    assert read(tmp_path, text.encode("utf-16"), encoding="utf-16").rows == [Row("1", ("Comédie",))]
    with fails("table-unreadable", "meta.csv is not ascii", "--encoding"):
        read(tmp_path, text.encode("utf-8"), encoding="ascii")
    with fails("option-value", "encoding", "'klingon'"):
        read(tmp_path, text, encoding="klingon")


@pytest.mark.parametrize("content", [b"", b"\n", b",,,\n"])
def test_file_without_a_header(tmp_path: Path, content: bytes) -> None:
    with fails("table-unreadable", tmp_path / "meta.csv", "header"):
        read(tmp_path, content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with fails("path-missing", tmp_path / "absent.csv"):
        read_metadata(tmp_path / "absent.csv")
    with fails("table-unreadable", tmp_path, "has no genres"):
        read_metadata(tmp_path)
    with fails("option-value", "--genre-separator"):
        read(tmp_path, HEADER, genre_separator="")


@pytest.mark.parametrize(
    ("sample_id", "problem"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("../x", "outside of"),
        ("a/../../x", "outside of"),
        ("..", "outside of"),
        (".", "outside of"),
        ("/etc/passwd", "outside of"),
        ("//x", "outside of"),
        ("a\\b", "outside of"),
        ("C:", "outside of"),
        ("c:/windows/x", "outside of"),
        pytest.param("a\x00b", "control", marks=NUL),
        ("a\x1b[2Jb", "control"),
        ("a\nb", "control"),
        ("x" * 241, "too long"),
        ("映" * 81, "too long"),
    ],
)
def test_bad_ids(tmp_path: Path, sample_id: str, problem: str) -> None:
    rows = [(sample_id, "", "", "Drama"), ("good/x", "", "", "War")]  # so that absolute paths have no common folder
    metadata = read_metadata(write_csv(tmp_path / "meta.csv", rows))
    assert metadata.rows == [Row("good/x", ("War",))]
    assert [r.reason for r in metadata.rejected] == ["bad id"]
    assert problem in metadata.rejected[0].detail


@pytest.mark.parametrize(
    "sample_id", ["1", "tt0324127", "a.b.c", "...", "a..b", "sub/x", "a/b/c.d", "日本", "x" * 240, "__x__", "a b"]
)
def test_good_ids(tmp_path: Path, sample_id: str) -> None:
    metadata = read_metadata(write_csv(tmp_path / "meta.csv", [(sample_id, "", "", "Drama")]))
    assert metadata.rows == [Row(sample_id, ("Drama",))]


# --- several rows of one id


def test_one_row_per_genre_is_joined_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = HEADER + "1,a,1,Drama\n2,b,1,War\n1,a,1,Comedy\n 1 ,a,1,War\n1,a,1,drama\n"
    with caplog.at_level("INFO"):
        metadata = read(tmp_path, text)
    assert metadata.rows == [Row("1", ("Drama", "Comedy", "War")), Row("2", ("War",))]
    assert metadata.rejected == [Rejection("1", "repeated id", "line 6; the same genres as above")]
    assert (metadata.joined, metadata.posters) == (2, 3)
    assert "2 rows were joined" in caplog.text


def test_rows_that_contradict_each_other_are_not_mixed(tmp_path: Path) -> None:
    text = HEADER + "1,a,1,Drama\n2,b,1,War|Comedy\n1,c,1,Comedy\n2,b,1,War\n2,b,1,Comedy|War\n"
    metadata = read(tmp_path, text)
    assert metadata.rows == [Row("1", ("Drama",)), Row("2", ("War", "Comedy"))]
    assert [(r.id, r.reason) for r in metadata.rejected] == [
        ("1", "conflicting rows"),
        ("2", "conflicting rows"),
        ("2", "repeated id"),
    ]
    assert metadata.rejected[0].detail == "line 4: its genres differ from line 2, which is used; use one id per poster"


def test_one_id_twice_among_many_is_no_layout(tmp_path: Path) -> None:
    rows = "".join(f"{number},a,1,{'Drama' if number % 2 else 'War'}\n" for number in range(30))
    metadata = read(tmp_path, HEADER + rows + "3,b,1,War\n")
    assert metadata.joined == 0 and [r.reason for r in metadata.rejected] == ["conflicting rows"]


def test_a_poster_with_an_unreadable_row_is_left_out_whole(tmp_path: Path) -> None:
    metadata = read(tmp_path, HEADER + "1,a,1,Drama\n2,b,1,War\n2,b,1,Drama\n1,a,1,[War\n")
    assert [row.id for row in metadata.rows] == ["2"]
    assert [(r.id, r.reason) for r in metadata.rejected] == [("1", "conflicting rows"), ("1", "unparsable genres")]


def test_rows_of_another_length_and_rows_without_genres(tmp_path: Path) -> None:
    text = HEADER + "1\n2,a,1,\n3,a,1,[]\n4,a,1,Drama,War\n5,Good, Bad,1966,Western\n6,a,1,Drama,,\n7,a,1,War\n"
    metadata = read(tmp_path, text)
    assert metadata.rows == [Row("6", ("Drama",)), Row("7", ("War",))]
    assert [(r.id, r.reason) for r in metadata.rejected] == [
        ("1", "bad row"),
        ("2", "no genres"),
        ("3", "no genres"),
        ("4", "bad row"),
        ("5", "bad row"),
    ]
    assert metadata.rejected[3].detail == "line 5: 5 cells, but 4 columns; texts that contain ',' need quotes"


LAYOUTS = {
    "python": repr,
    "json": json.dumps,
    "numpy": lambda genres: str(np.array(genres, object)),
    "array": lambda genres: repr(np.array(genres)),
    "tuple": lambda genres: repr(tuple(genres)),
    "tmdb": lambda genres: repr([{"id": len(genre), "name": genre} for genre in genres]),
    "bars": "|".join,
    "spelt": lambda genres: " | ".join(genre.upper() + "\u200b" for genre in genres),
}
VOCABULARY = ("Action", "Children's", "Film-Noir", "Sci-Fi", "Comédie", "TV Movie")
genre_sets = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=4, unique=True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(genre_sets, min_size=1, max_size=12))
def test_all_layouts_of_a_table_are_read_as_one(
    tmp_path_factory: pytest.TempPathFactory, posters: list[list[str]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    wanted = [set(genres) for genres in posters]
    for name, write in LAYOUTS.items():
        rows = [(f"p{number}", write(genres)) for number, genres in enumerate(posters)]
        table = write_csv(folder / "layout.csv", rows, ("id", "genre"))
        metadata = read_metadata(table, strict=False, known=VOCABULARY)
        assert [set(row.genres) for row in metadata.rows] == wanted and not metadata.rejected, name
    rows = [(f"p{number}", genre) for number, genres in enumerate(posters) for genre in genres]
    metadata = read_metadata(write_csv(folder / "layout.csv", rows, ("id", "genre")), strict=False)
    if 10 * sum(len(genres) > 1 for genres in posters) >= len(posters):
        assert [set(row.genres) for row in metadata.rows] == wanted
        assert metadata.joined == len(rows) - len(posters)


# --- spellings, and what is said


def test_spellings_are_merged_with_a_line_each_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = HEADER + "1,a,1,Drama\n2,a,1,drama|War\n3,a,1,Drama|Dra\u200bma\n4,a,1,war \n"
    assert {row.genres for row in read(tmp_path, text).rows} == {("Drama",), ("Drama", "War"), ("War",)}
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [
        "genre 'Drama' (2 samples) is also written 'Dra\\u200bma' (1), 'drama' (1): merged",
        "genre 'War' (1 samples) is also written 'war' (1): merged",
    ]
    with pytest.raises(UserError, match=r"has several spellings of a genre: genre 'Drama' .*--spellings merge"):
        read(tmp_path, text, spellings="refuse")
    assert read(tmp_path, HEADER + "1,a,1,Drama\n2,a,1,War\n", spellings="refuse").rows
    assert {row.genres for row in read(tmp_path, text, known=("DRAMA", "war")).rows} == {
        ("DRAMA",),
        ("DRAMA", "war"),
        ("war",),
    }


def test_what_was_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        read(tmp_path, "a;genres;id\nx;War|Drama;7\ny;Drama;8\n", id_column="id")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'meta.csv'}: CSV, ';' separated, utf-8; ids in column 2 'id', genres in column 1 'genres', "
        f"separated by '|'; 2 rows, of which the first is '7': War, Drama",
        "2 labels: Drama (2), War (1)",
    ]


def test_rejected_csv_holds_any_text(tmp_path: Path) -> None:
    rejected = [Rejection('a,"b"', "bad id", "line 1: x\ny"), Rejection("日本", "no genres")]
    rejected += [Rejection("=1+1", "bad id", "@SUM(A1)"), Rejection("'x", "bad id", "a\rb")]
    write_rejected(tmp_path / "rejected.csv", rejected)
    cells = [tuple(row.values()) for row in read_csv(tmp_path / "rejected.csv")]
    assert [tuple(map(unescaped, row)) for row in cells] == [(r.id, r.reason, r.detail) for r in rejected]
    assert cells[2] == ("'=1+1", "bad id", "'@SUM(A1)")
    assert read_rejected(tmp_path / "rejected.csv") == {r.id: r.reason for r in rejected}


def test_only_our_own_lists_of_rejections_are_read(tmp_path: Path) -> None:
    assert read_rejected(tmp_path / "rejected.csv") == {}
    write_csv(tmp_path / "rejected.csv", [("1", "x")], ("id", "why"))
    assert read_rejected(tmp_path / "rejected.csv") == {}
