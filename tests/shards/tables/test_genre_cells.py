"""Cells of genres: every layout that libraries write, and nothing glued, guessed or executed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shard_tools import write_csv

from shards.dataset.labels import tidy
from shards.tables.genre_cells import NO_GENRE_WORDS, parse_genres
from shards.tables.metadata import Row, read_metadata

NUL = pytest.mark.skipif(sys.version_info < (3, 11), reason="csv refuses the file before Python 3.11")


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("['Action', 'Drama']", "|", ("Action", "Drama")),
        ("('Action', 'Drama')", "|", ("Action", "Drama")),
        ('["Action", "Sci-Fi"]', "|", ("Action", "Sci-Fi")),
        ('["Com\\u00e9die"]', "|", ("Comédie",)),
        ("[u'Action', u'Drama']", "|", ("Action", "Drama")),
        ("Action|Drama", "|", ("Action", "Drama")),
        ("Drama", "|", ("Drama",)),
        ("Action, Drama", ",", ("Action", "Drama")),
        ("Action / Drama", "/", ("Action", "Drama")),
        ("Action\nDrama", "\n", ("Action", "Drama")),
        ("Action :: Drama::War", "::", ("Action", "Drama", "War")),
        ("['Children, family']", ",", ("Children, family",)),
        ("  [ 'Drama' , ]  ", "|", ("Drama",)),
        ("Drama||Drama| War ", "|", ("Drama", "War")),
        ("(no genres listed)", "|", ()),
        ("[]", "|", ()),
        ("()", "|", ()),
        ("set()", "|", ()),
        ("array([], dtype=object)", "|", ()),
        ("['', 'None', '\u200b']", "|", ()),
        ("\u200b|Drama", "|", ("Drama",)),
        ("NaN", "|", ()),
        ("", "|", ()),
        # NumPy has no commas; newer versions name their strings
        ("['Action' 'Drama']", "|", ("Action", "Drama")),
        ("['Action'\n 'Drama'\n 'War']", "|", ("Action", "Drama", "War")),
        ("['Drama']", "|", ("Drama",)),
        ("[\"Children's\" 'Drama']", "|", ("Children's", "Drama")),
        ("array(['Action', 'Drama'], dtype=object)", "|", ("Action", "Drama")),
        ("array(['Action', 'Drama'], dtype='<U6')", "|", ("Action", "Drama")),
        ("np.array(['Action' 'Drama'])", "|", ("Action", "Drama")),
        ("[np.str_('Action'), np.str_('Drama')]", "|", ("Action", "Drama")),
        ("list(['Action', 'Drama'])", "|", ("Action", "Drama")),
        ("{'Drama', 'Action'}", "|", ("Drama", "Action")),
        ("frozenset({'Drama'})", "|", ("Drama",)),
        ("[{'id': 18, 'name': 'Drama'}, {'id': 10752, 'name': 'War'}]", "|", ("Drama", "War")),
        ('[{"id": 18, "name": "Drama"}]', "|", ("Drama",)),
    ],
)
def test_genres_in_every_layout(text: str, separator: str, expected: tuple[str, ...]) -> None:
    assert parse_genres(text, separator) == expected


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("['Children''s']", 'two quotes side by side: write "Children\'s"'),
        ("['Action''Drama']", "two quotes side by side"),
        ("['Action' 'Drama', 'War']", "lacks a comma between two names"),
        ("('Action' 'Drama')", "lacks a comma"),
        ("{'Action' 'Drama'}", "lacks a comma"),
        ("[['Action' 'Drama']]", "lacks a comma"),
        ("['Action' ... 'War']", "was shortened when it was printed"),
        ("['Action', ...]", "was shortened"),
        ("['Action', '...']", "was shortened"),
        ("[Action, Drama]", "write ['Action', 'Drama'] or Action|Drama"),
        ("[Action Drama]", "write ['Action', 'Drama']"),
        ("{Action,Drama}", "write ['Action', 'Drama']"),
        ("[['Action', 'Drama']]", "write names"),
        ("[28, 12]", "write names, such as"),
        ("['Action', 28]", "write names"),
        ("['Action', None]", "write names"),
        ("['Action', nan]", "write ['Action', 'Drama']"),
        ("[{'id': 18}]", "write names"),
        ("{'id': 18, 'name': 'Drama'}", "write names"),
        ('{"Action": true, "Drama": false}', "write names"),
        ("'Action', 'Drama'", "has commas but is not a list"),
        ("'Action'|'Drama'", "has quotes like a list"),
        ("'Action|Drama'", "has quotes like a list"),
        ("\u201cAction|Drama\u201d", "has quotes like a list"),
        ("\u00abAction|Drama\u00bb", "has quotes like a list"),
        ("\"['Action']\"", "has quotes like a list"),
        ("Action|['Drama']", "has quotes like a list"),
        ("Action|Drama']", "has quotes like a list"),
        ("deque(['Drama'])", "has quotes like a list"),
        ("dict_keys(['Drama'])", "has quotes like a list"),
        ("Counter({'Drama': 1})", "has quotes like a list"),
        ("np.str_('Drama')", "has quotes like a list"),
        ("['Action', 'Drama", "a quote is not closed"),
        ("Action\nDrama", "contains a line break"),
        ("Children\x92s", "--encoding cp1252"),
        ("Action, Drama", "--genre-separator ','"),
    ],
)
def test_what_can_be_read_in_two_ways_is_rejected_with_its_remedy(text: str, remedy: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_genres(text)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 99_999,
        "[[" * 20 + "'a'" + "]]" * 20,
        "[" + "-" * 90_000 + "1]",
        "['a'" + "+'a'" * 20_000 + "]",
        "[" + "9" * 90_000 + "]",
        "['" + "\\'" * 49_000,
        "[np.str_('" + "\\'np.str_(" * 9000,
        "array(" + ", dtype=" * 12_000,
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
    started = time.monotonic()
    with pytest.raises(ValueError):
        parse_genres(text)
    assert time.monotonic() - started < 5
    table = write_csv(tmp_path / "meta.csv", [("1", "", "", text), ("2", "", "", "Drama")])
    metadata = read_metadata(table)
    assert metadata.rows == [Row("2", ("Drama",))]
    assert [(r.id, r.reason) for r in metadata.rejected] == [("1", "unparsable genres")]
    assert len(metadata.rejected[0].detail) < 250 and metadata.rejected[0].detail.startswith("line 2: ")
    assert not marker.exists()


def test_code_without_brackets_is_an_odd_name_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    text = f"__import__('pathlib').Path('{marker}').touch()"
    assert parse_genres(text) == (text,)
    assert not marker.exists()


CHARACTERS = st.characters(exclude_categories=["Cs", "Cc"])
names = st.text(CHARACTERS, max_size=12).filter(lambda name: name.strip() not in ("...", "\u2026"))
genre_lists = st.lists(names, max_size=6)


def cleaned(values: list[str]) -> tuple[str, ...]:
    names = [value.strip(" ") for value in values]
    return tuple(dict.fromkeys(name for name in names if tidy(name).lower() not in NO_GENRE_WORDS))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(genre_lists)
@example(["it's", "both \" and '", "back\\slash"])
def test_lists_survive_every_writer(values: list[str]) -> None:
    assert parse_genres(repr(values)) == cleaned(values)
    assert parse_genres(repr(tuple(values))) == cleaned(values)
    assert parse_genres(json.dumps(values)) == cleaned(values)
    assert parse_genres(json.dumps(values, ensure_ascii=False)) == cleaned(values)
    array = np.array(values, dtype=object)
    assert parse_genres(str(array)) == parse_genres(repr(array)) == cleaned(values)
    strings = [value.rstrip("\0") for value in values]
    assert parse_genres(repr(list(np.array(strings, dtype=str)))) == cleaned(strings)
    if len(set(values)) == 1:
        assert parse_genres(repr(set(values))) == cleaned(values[:1])


def test_what_pandas_writes_is_read(tmp_path: Path) -> None:
    wanted = [("Action", "Drama"), ("Children's",), ("Film-Noir", "Sci-Fi", "War")]
    kinds: dict[str, Callable[..., Any]] = {
        "list": list,
        "tuple": tuple,
        "object": lambda g: np.array(g, object),
        "text": np.array,
        "set": set,
    }
    for name, kind in kinds.items():
        frame = pd.DataFrame({"id": ["a", "b", "c"], "genre": [kind(genres) for genres in wanted]})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
        rows = read_metadata(tmp_path / f"{name}.csv").rows
        assert [set(row.genres) for row in rows] == [set(genres) for genres in wanted], name


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.one_of(st.text(max_size=60), st.text("[](){}'\",|\\ ab.:n", max_size=30)))
def test_any_text_is_genres_or_a_value_error(text: str) -> None:
    try:
        genres = parse_genres(text)
    except ValueError:
        return
    assert len(set(genres)) == len(genres) and all(genre == genre.strip(" \t\n") and tidy(genre) for genre in genres)


def test_words_for_a_missing_value_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = ["None", "Drama|none", "['N/A', 'War']", "nan", "", r"\N", "(no genres listed)", "Drama", "NA"]
    path = write_csv(tmp_path / "m.csv", [(f"p{n}", cell) for n, cell in enumerate(cells)], ("id", "genre"))
    metadata = read_metadata(path)
    assert {row.id: row.genres for row in metadata.rows} == {
        "p1": ("Drama",), "p2": ("War",), "p7": ("Drama",), "p8": ("NA",)
    }  # fmt: skip
    words = "'None' (1), 'none' (1), 'N/A' (1), 'nan' (1)"
    remedy = "if one is a genre, rename it, or list all genres in a JSON file for --labels"
    said = f"{path}: column 1 'genre': these texts are read as a missing genre: {words}; {remedy}"
    assert said in [record.getMessage() for record in caplog.records]


def test_both_remedies_for_a_genre_called_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("p1", "None"), ("p2", "Drama|None"), ("p3", "Drama"), ("p4", "nan")]
    path = write_csv(tmp_path / "m.csv", rows, ("id", "genre"))
    named = read_metadata(path, known=("Drama", "None"))
    assert {row.id: row.genres for row in named.rows} == {"p1": ("None",), "p2": ("Drama", "None"), "p3": ("Drama",)}
    assert "'nan' (1)" in caplog.text and "'None'" not in caplog.text
    caplog.clear()
    renamed = [(key, cell.replace("None", "No genre")) for key, cell in rows[:3]]
    read_metadata(write_csv(tmp_path / "m.csv", renamed, ("id", "genre")))
    assert "a missing genre" not in caplog.text
