"""The encoding and the separator of a CSV are found from its content, or refused in one line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.tables.csv_tables import decoded, text_table
from shards.tables.table import TableOptions

TEXTS = {
    "latin-1": "id,genre\n1,Comédie|Drame\n2,Été\n3,Señor\n",
    "cp1252": "id,title,genre\n1,It\u2019s \u201cLife\u201d,Drama\n2,Léon,War\n",
    "cp1251": "id,genre\n1,Драма|Комедия\n2,Ужасы\n3,Боевик\n",
    "cp1253": "id,genre\n1,Δράμα|Κωμωδία\n2,Τρόμου\n",
    "shift_jis": "id,genre\n1,ドラマ\n2,コメディ\n3,アニメ\n",
    "gb18030": "id,title,genre\n1,霸王别姬,剧情|爱情\n2,阿甘正传,剧情|爱情\n3,千与千寻,动画|奇幻\n",
    "big5": "id,title,genre\n1,霸王別姬,劇情|愛情\n2,阿甘正傳,劇情|愛情\n3,神隱少女,動畫|奇幻\n",
    "euc_kr": "id,genre\n1,드라마|로맨스\n2,코미디\n3,공포\n",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_an_encoding_is_found_and_said(encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    text, name = decoded(Path("m.csv"), TEXTS[encoding].encode(encoding))
    assert text == TEXTS[encoding] and name == encoding
    (line,) = caplog.messages
    assert f"m.csv is not UTF-8; it is read as {encoding} (for example" in line and "--encoding" in line


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_needs_no_line(encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    text, name = decoded(Path("m.csv"), TEXTS["latin-1"].encode(encoding))
    assert text == TEXTS["latin-1"] and name == encoding.removesuffix("-sig") and not caplog.messages


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(",;\t|"),
    st.lists(st.lists(st.text("ab1 ,;|'é", max_size=6), min_size=3, max_size=3), min_size=1, max_size=8),
)
def test_rows_of_any_separator_are_read_as_the_csv_module_wrote_them(delimiter: str, rows: list[list[str]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows([["id", "title", "genre"], *rows])
    table = text_table(Path("m.csv"), stream.getvalue().encode(), TableOptions())
    assert table.header == ["id", "title", "genre"] and table.delimiter == delimiter
    assert [row for _, row in table.rows] == rows


def test_a_first_line_with_the_separator_is_skipped() -> None:
    for first in (b"sep=;", b'"SEP=;"'):
        table = text_table(Path("m.csv"), first + b"\r\nid;genre\np1;Drama\n", TableOptions())
    assert table.header == ["id", "genre"] and list(table.rows) == [(3, ["p1", "Drama"])]


@pytest.mark.parametrize("start", ["\n\n", "\r\n \r\n", "\ufeff\n\n", ";;\n;\n"])
def test_empty_lines_before_the_header_are_skipped(start: str) -> None:
    table = text_table(Path("m.csv"), f"{start}id;genre\n\np1;Drama\n".encode(), TableOptions())
    assert table.header == ["id", "genre"] and list(table.rows) == [(5, ["p1", "Drama"])]


def test_tabs_without_quotes_keep_a_lone_quote() -> None:
    lines = ["tconst\ttitle\tgenres", *(f't{n}\t"Title {n}\tDrama' for n in range(30))]
    table = text_table(Path("m.tsv"), "\n".join(lines).encode(), TableOptions())
    assert [len(row) for _, row in table.rows] == [3] * 30


def test_the_separator_that_was_chosen_is_used() -> None:
    table = text_table(Path("m.csv"), b"id^a,b\n1^2\n", TableOptions(delimiter="^"))
    assert table.header == ["id", "a,b"] and "'^' separated" in table.form
    with fails("option-value", "--delimiter", "'ab'"):
        text_table(Path("m.csv"), b"id,a\n", TableOptions(delimiter="ab"))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"PK\x03\x04rest", ["a spreadsheet", "save it as CSV"]),
        (b"\xd0\xcf\x11\xe0rest", ["an Excel file"]),
        (b"SQLite format 3\x00", ["SQLite", "export"]),
        (b"\x28\xb5\x2f\xfdrest", ["Zstandard", "decompress"]),
        (b"\xff\xd8\xff\xe0", ["a JPEG image"]),
        (bytes(range(256)) * 4, ["not text in a known encoding"]),
        ("id,genre\n1,Comédie\n2,Policière\n".encode() + b"3,Dram\xe9\n", ["UTF-8 text except for 1 bytes", "line 4"]),
    ],
)
def test_other_files_are_refused_with_their_own_remedy(data: bytes, parts: list[str]) -> None:
    with fails("table-unreadable", "m.csv", *parts):
        text_table(Path("m.csv"), data, TableOptions())


@pytest.mark.parametrize(
    "lines",
    [
        ['3,"Three Men in a Boat,Comedy'],
        ['3,"Three Men in a Boat,Comedy', "4,Four,War", '5,"Five, six",War'],
        ['3,"Three Men,Comedy', "4,Four,War", '5,End",War'],
    ],
)
def test_a_quote_that_is_not_closed_is_refused(lines: list[str]) -> None:
    text = "\n".join(["id,title,genre", "1,One,War", *lines, "7,Seven,War", "8,Eight,War"])
    with fails("table-unreadable", "m.csv: line 3 has a quote that is not closed"):
        list(text_table(Path("m.csv"), text.encode(), TableOptions()).rows)


def test_texts_of_several_lines_and_lone_quotes_are_read() -> None:
    text = 'id,story,genre\n1,"One, and\ntwo, or three,\nfour",War\n2,5" disc,Drama\n3,"x"y,War\n'
    rows = [row for _, row in text_table(Path("m.csv"), text.encode(), TableOptions()).rows]
    assert [row[0] for row in rows] == ["1", "2", "3"] and rows[0][1].count("\n") == 2 and rows[1][1] == '5" disc'


def test_a_pair_of_quotes_in_two_lines_of_tabs_joins_nothing() -> None:
    lines = ["t\ttitle\tgenre", *(f"t{n}\tTitle {n}\tWar" for n in range(300))]
    lines[250], lines[253], lines[10] = 't249\t"Giliap\tDrama', 't252\tEnd"\tWar', 't9\t"A, ""B"""\tWar'
    for options in (TableOptions(), TableOptions(delimiter="\t")):
        rows = [row for _, row in text_table(Path("m.tsv"), "\n".join(lines).encode(), options).rows]
        assert len(rows) == 300 and rows[249] == ["t249", '"Giliap', "Drama"] and rows[9][1] == 'A, "B"'
