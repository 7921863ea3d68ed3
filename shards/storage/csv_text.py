"""Cells of CSV files: exact text for programs, and escaped text for people who open the file in a spreadsheet.

Predictions are for programs. rejected.csv, duplicates.csv and the CSVs of reports and audits are opened in
spreadsheets, which run a cell that begins with ``=``. Such text gets an apostrophe in front, as in spreadsheets.
``unescaped`` removes the apostrophe. Numbers stay numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import IO, Any

#: First characters of a formula (OWASP, "CSV injection"; some languages use the wide ones), and our own mark.
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20'")
MARK = "'"


def escaped(cell: Any) -> Any:
    """Return a cell for people: text that a spreadsheet would run is marked, other values are unchanged.

    A lone surrogate (from a name that is not UTF-8) becomes an escape sequence, because UTF-8 cannot encode it.
    ``unescaped`` restores all other text.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.encode("utf-8", "backslashreplace").decode()
    return MARK + text if text.startswith(FORMULA) else text


def unescaped(cell: str) -> str:
    """Return the original text of a cell for people. Cells of older versions have no mark and are unchanged.

    >>> [unescaped(escaped(text)) for text in ("=1+1", "'", "'quoted'", "plain")]
    ['=1+1', "'", "'quoted'", 'plain']
    """
    return cell[1:] if cell.startswith(MARK) and cell[1:].startswith(FORMULA) else cell


def write_for_people(stream: IO[str], rows: Iterable[Sequence[Any]], end: str = "\n") -> None:
    """Write rows with ``escaped`` text."""
    write_exact(stream, ([escaped(cell) for cell in row] for row in rows), end)


def write_exact(stream: IO[str], rows: Iterable[Sequence[Any]], end: str = "\n") -> None:
    """Write rows that csv.reader and pandas (``dtype=str``) read back exactly."""
    plain = csv.writer(stream, lineterminator=end)
    quoted = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL)
    for row in rows:
        # csv quotes only its own line end, but readers end a line at any line end.
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in row) else plain).writerow(row)
