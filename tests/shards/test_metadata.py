"""CSVs as people have them: every row becomes a sample or a rejection with its reason."""

from __future__ import annotations

import csv
import io
import json
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import read_csv, write_csv

from shards.csv_text import unescaped
from shards.errors import UserError
from shards.metadata import (
    NO_GENRE_WORDS,
    Metadata,
    Rejection,
    Row,
    parse_genres,
    read_metadata,
    write_rejected,
)

HEADER = "id,title,year,genre\n"
NUL = pytest.mark.skipif(sys.version_info < (3, 11), reason="csv refuses the file before Python 3.11")


def read(tmp_path: Path, text: str | bytes, **options: str) -> Metadata:
    path = tmp_path / "meta.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_metadata(path, **options)


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("['Action', 'Drama']", "|", ("Action", "Drama")),
        ("('Action', 'Drama')", "|", ("Action", "Drama")),
        ('["Action", "Sci-Fi"]', "|", ("Action", "Sci-Fi")),
        ('["Com\\u00e9die"]', "|", ("Comédie",)),
        ("Action|Drama", "|", ("Action", "Drama")),
        ("Drama", "|", ("Drama",)),
        ("Action, Drama", ",", ("Action", "Drama")),
        ("Action / Drama", "/", ("Action", "Drama")),
        ("Action :: Drama::War", "::", ("Action", "Drama", "War")),
        ("['Children, family']", ",", ("Children, family",)),
        ("  [ 'Drama' , ]  ", "|", ("Drama",)),
        ("Drama||Drama| War ", "|", ("Drama", "War")),
        ("Come\u0301die|Comédie", "|", ("Comédie",)),
        ("(no genres listed)", "|", ()),
        ("[]", "|", ()),
        ("['', 'None']", "|", ()),
        ("NaN", "|", ()),
        ("", "|", ()),
    ],
)
def test_genres_in_every_layout(text: str, separator: str, expected: tuple[str, ...]) -> None:
    assert parse_genres(text, separator) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 99_999,
        "[[" * 20 + "'a'" + "]]" * 20,
        "[" + "-" * 90_000 + "1]",
        "['a'" + "+'a'" * 20_000 + "]",
        "[" + "9" * 90_000 + "]",
        '{"a":' * 20_000,
        "{'Action': 1}",
        "[__import__('os').system('touch {marker}')]",
        "(lambda: open('{marker}', 'w'))()",
        "['a'] * 9",
        "['a', 1]",
        "[None]",
        "[b'a']",
        "['Action', 'Dra",
        pytest.param("[\x00]", marks=NUL),
        '["\\ud800"]',
        "['\\udc00']",
        "A, B",
        "x" * 100_001,
        "|".join(f"genre {number}" for number in range(40_000)),
    ],
    ids=lambda text: text[:12],
)
def test_hostile_genres_are_rejected_and_never_executed(text: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    text = text.replace("{marker}", str(marker))
    with pytest.raises(ValueError):
        parse_genres(text)
    table = write_csv(tmp_path / "meta.csv", [("1", "", "", text), ("2", "", "", "Drama")])
    metadata = read_metadata(table)
    assert metadata.rows == [Row("2", ("Drama",))]
    assert [(r.id, r.reason) for r in metadata.rejected] == [("1", "unparsable genres")]
    assert len(metadata.rejected[0].detail) < 200 and metadata.rejected[0].detail.startswith("line 2: ")
    assert not marker.exists()


def test_code_without_brackets_is_an_odd_name_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    text = f"__import__('pathlib').Path('{marker}').touch()"
    assert parse_genres(text) == (text,)
    assert not marker.exists()


CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
genre_lists = st.lists(st.text(CHARACTERS, max_size=12), max_size=6)


def cleaned(values: list[str]) -> tuple[str, ...]:
    names = [unicodedata.normalize("NFC", value).strip() for value in values]
    return tuple(dict.fromkeys(name for name in names if name.lower() not in NO_GENRE_WORDS))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(genre_lists)
def test_lists_survive_repr_and_json(values: list[str]) -> None:
    assert parse_genres(repr(values)) == cleaned(values)
    assert parse_genres(json.dumps(values)) == cleaned(values)
    assert parse_genres(json.dumps(values, ensure_ascii=False)) == cleaned(values)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_any_text_is_genres_or_a_value_error(text: str) -> None:
    try:
        genres = parse_genres(text)
    except ValueError:
        return
    assert len(set(genres)) == len(genres) and all(genre == genre.strip() and genre for genre in genres)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.text(CHARACTERS, max_size=8), max_size=5), max_size=8))
def test_no_row_is_lost(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["id", "title", "year", "genre"], *rows])
    metadata = read(tmp_path_factory.getbasetemp(), text.getvalue())
    assert len(metadata.rows) + len(metadata.rejected) == len([row for row in rows if row])
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
    rejected += [Rejection("=1+1", "bad id", "@SUM(A1)"), Rejection("'x", "bad id", "a\rb")]
    write_rejected(tmp_path / "rejected.csv", rejected)
    cells = [tuple(row.values()) for row in read_csv(tmp_path / "rejected.csv")]
    assert [tuple(map(unescaped, row)) for row in cells] == [(r.id, r.reason, r.detail) for r in rejected]
    assert cells[2] == ("'=1+1", "bad id", "'@SUM(A1)")
