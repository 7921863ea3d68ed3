"""CSVs of links: every row is a link or has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing import fails
from shard_tools import write_csv, write_file

from shards.errors import UserError
from shards.fetch.links import BadLink, parse_link, read_links
from shards.inputs.rejections import Rejection
from shards.tables.table import TableOptions


def test_every_row_becomes_a_link_or_a_rejection(tmp_path: Path) -> None:
    rows = [
        ("a", " http://posters.example/a.jpg "),
        ("b", ""),
        ("../c", "http://posters.example/c.jpg"),
        ("a", "http://posters.example/again.jpg"),
        ("d",),
        ("e", "HTTPS://Posters.Example:8443/ü b.jpg?x=1#frag"),
        (),
        ("", "http://posters.example/"),
    ]
    links, rejected = read_links(write_csv(tmp_path / "m.csv", rows, ("id", "link")), "link")
    assert [(link.line, link.id, link.url, link.host) for link in links] == [
        (2, "a", "http://posters.example/a.jpg", "posters.example"),
        (7, "e", "HTTPS://Posters.Example:8443/ü b.jpg?x=1#frag", "posters.example"),
    ]
    assert rejected == {
        3: Rejection("b", "bad link", "line 3: empty"),
        4: Rejection("../c", "bad id", "line 4: the id is a path outside of the image folder"),
        5: Rejection("a", "repeated id", "line 5: the first row with this id is used"),
        6: Rejection("d", "bad link", "line 6: empty"),
        9: Rejection("", "bad id", "line 9: empty id"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "/poster.jpg",
        "www.example.com/poster.jpg",
        "//example.com/poster.jpg",
        "ftp://example.com/poster.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://",
        "http:///poster.jpg",
        "http://[::1",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://exam ple.com/",
        "http://exa\nmple.com/",
        "http://example.com/\0",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://:secret@example.com/",
        "http://example.com\\@evil.example/",
        "http://example.com/" + "x" * 9000,
    ],
)
def test_what_is_no_link(text: str) -> None:
    with pytest.raises(BadLink) as caught:
        parse_link(text)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_bad_csvs_are_one_line(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "m.csv", [("a", "http://x/")], ("id", "poster_link"))
    with pytest.raises(UserError, match=r"no column 'poster_lnk'; did you mean 'poster_link'\?.*--url-column"):
        read_links(table, "poster_lnk")
    with fails("table-column", "number 7", "0 'id', 1 'poster_link'", "--id-column"):
        read_links(table, "poster_link", TableOptions(id_column="7"))
    with fails("path-missing", tmp_path / "absent.csv"):
        read_links(tmp_path / "absent.csv", "1")
    with fails("table-unreadable", tmp_path / "empty.csv", "empty"):
        read_links(write_file(tmp_path / "empty.csv", b""), "1")
    with fails("table-unreadable", tmp_path / "latin.csv", "utf-8"):
        read_links(
            write_file(tmp_path / "latin.csv", b"id,link\n\xe9,http://x/\n"), "1", TableOptions(encoding="utf-8")
        )
    with fails("option-value", "'klingon'"):
        read_links(table, "1", TableOptions(encoding="klingon"))
    assert read_links(
        write_file(tmp_path / "bom.csv", b"\xef\xbb\xbfid,link\na,http://x/\n"), "link", TableOptions(id_column="id")
    )[0]


def test_row_numbers_are_no_ids(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "m.csv", [(0, "a", "http://x/a"), (1, "b", "http://x/b")], ("", "key", "link"))
    with fails("table-column", "column 0 ''", "row numbers", "--id-column 0"):
        read_links(table, "link")
    assert [link.id for link in read_links(table, "link", TableOptions(id_column="0"))[0]] == ["0", "1"]
    assert [link.id for link in read_links(table, "link", TableOptions(id_column="key"))[0]] == ["a", "b"]
