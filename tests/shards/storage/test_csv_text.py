"""CSV cells: no formula in what people open, every character in what programs read."""

from __future__ import annotations

import csv
import io

import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shards.storage.csv_text import FORMULA, escaped, unescaped, write_exact, write_for_people

NUL = "\uffff"  # stands for NUL, which the csv module of Python 3.10 cannot read
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=NUL), max_size=8)
TEXT = ANY | st.text("=+-@\t\r\n',\"x ", max_size=6)
SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)


def cells_of(text: str) -> list[tuple[str, ...]]:
    read = csv.reader(io.StringIO(text.replace("\0", NUL), newline=""))
    return [tuple(cell.replace(NUL, "\0") for cell in row) for row in read]


@SETTINGS
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
@example([("=1+1", "'=1+1"), ("'", "''"), ("'plain'", "-0.5")])
def test_text_for_people_is_no_formula_and_comes_back(rows: list[tuple[str, str]]) -> None:
    out = io.StringIO()
    write_for_people(out, rows)
    read = cells_of(out.getvalue())
    assert not any(cell.startswith(tuple(set(FORMULA) - {"'"})) for row in read for cell in row)
    assert [tuple(unescaped(cell) for cell in row) for row in read] == rows


def test_numbers_stay_numbers_and_old_cells_stay_as_they_are() -> None:
    out = io.StringIO()
    write_for_people(out, [(-0.5, "-0.5", None, 7)])
    assert out.getvalue() == "-0.5,'-0.5,,7\n"
    assert unescaped("'Action'") == "'Action'" and unescaped("plain") == "plain" and unescaped("") == ""
    assert escaped("caf\udce9") == r"caf\udce9"


@SETTINGS
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
@example([("007", "1e5"), ("66773.0", "=1+1"), ('a,"b\n', "a\rb"), ("\x00", "\r\n")])
def test_exact_rows_come_back_to_the_character(rows: list[tuple[str, str]]) -> None:
    out = io.StringIO()
    write_exact(out, rows)
    assert cells_of(out.getvalue()) == rows


def test_pandas_reads_exact_ids() -> None:
    ids = ["007", "1e5", "66773.0", "=1+1", "'x", 'a,"b', "a\nb", "a\rb", "NA", "später", "-1"]
    out = io.StringIO()
    write_exact(out, [["id", "p"], *([name, "0.1"] for name in ids)])
    frame = pd.read_csv(io.StringIO(out.getvalue(), newline=""), dtype={"id": str}, keep_default_na=False)
    assert frame["id"].tolist() == ids
