"""Cells of CSVs: exact ones for programs; for people, such that no spreadsheet takes text for a formula.

Which file is which: predictions are for programs. rejected.csv, duplicates.csv and the CSVs of reports and audits are
opened in spreadsheets, which run a cell that begins with ``=``. Their text gets an apostrophe in front, as people write
it there; ``unescaped`` takes it off again. Numbers stay numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import IO, Any

#: What makes a cell a formula (OWASP, "CSV injection"; the wide ones count in some languages), and our own mark.
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20'")
MARK = "'"


def escaped(cell: Any) -> Any:
    """A cell for people. Text that a spreadsheet would run is marked; what is no text stays as it is.

    Half a character (a lone surrogate, from a name that is not UTF-8) is written as an escape, because no file can
    hold it. Everything else comes back by ``unescaped``.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.encode("utf-8", "backslashreplace").decode()
    return MARK + text if text.startswith(FORMULA) else text


def unescaped(cell: str) -> str:
    """The text behind a cell for people. Cells of older versions, which were not marked, stay as they are.

    >>> [unescaped(escaped(text)) for text in ("=1+1", "'", "'quoted'", "plain")]
    ['=1+1', "'", "'quoted'", 'plain']
    """
    return cell[1:] if cell.startswith(MARK) and cell[1:].startswith(FORMULA) else cell


def write_for_people(stream: IO[str], rows: Iterable[Sequence[Any]], end: str = "\n") -> None:
    """Write rows whose text is ``escaped``."""
    write_exact(stream, ([escaped(cell) for cell in row] for row in rows), end)


def write_exact(stream: IO[str], rows: Iterable[Sequence[Any]], end: str = "\n") -> None:
    """Write rows that csv.reader and pandas (``dtype=str``) read back to the character."""
    plain = csv.writer(stream, lineterminator=end)
    quoted = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL)
    for row in rows:
        # csv quotes the line end that it writes, but readers end a line at any.
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in row) else plain).writerow(row)
