"""Cells of CSV files: exact text for programs, and escaped text for people who open the file in a spreadsheet.

Predictions are written exactly. rejected.csv, duplicates.csv and the CSVs of reports and audits are written for people.
A spreadsheet treats a cell that begins with ``=`` as a formula, so ``escaped`` puts an apostrophe before such text.
``unescaped`` removes the apostrophe. Numbers are not changed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import IO, Any

#: Text is escaped if it begins with one of these characters: the ones that begin formulas (OWASP, "CSV injection"),
#: their full-width forms, and MARK.
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20'")
MARK = "'"


def escaped(cell: Any) -> Any:
    """Return a cell that is safe in a spreadsheet. Text that could be a formula gets an apostrophe in front.

    A lone surrogate (from a name that is not UTF-8) becomes an escape sequence, because UTF-8 cannot encode it.
    Everything else stays unchanged. ``unescaped`` restores all text that had no lone surrogate.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.encode("utf-8", "backslashreplace").decode()
    return MARK + text if text.startswith(FORMULA) else text


def unescaped(cell: str) -> str:
    """Remove the apostrophe that ``escaped`` has put in front of a cell. Other text is not changed.

    >>> [unescaped(escaped(text)) for text in ("=1+1", "'", "'quoted'", "plain")]
    ['=1+1', "'", "'quoted'", 'plain']
    """
    return cell[1:] if cell.startswith(MARK) and cell[1:].startswith(FORMULA) else cell


def write_for_people(stream: IO[str], rows: Iterable[Sequence[Any]], end: str = "\n") -> None:
    """Write rows of a CSV that people open in a spreadsheet. ``escaped`` is applied to each cell."""
    write_exact(stream, ([escaped(cell) for cell in row] for row in rows), end)


def write_exact(stream: IO[str], rows: Iterable[Sequence[Any]], end: str = "\n") -> None:
    """Write rows that csv.reader and pandas (``dtype=str``) read back exactly.

    The csv module of Python 3.10 cannot read a NUL character. Newer versions can.
    """
    plain = csv.writer(stream, lineterminator=end)
    for row in rows:
        # The csv module can leave \r without quotes, but readers end a line there. Python 3.10 refuses to write NUL.
        if any(isinstance(cell, str) and ("\r" in cell or "\0" in cell) for cell in row):
            texts = ["" if cell is None else str(cell).replace('"', '""') for cell in row]
            stream.write(",".join(f'"{text}"' for text in texts) + end)
        else:
            plain.writerow(row)
