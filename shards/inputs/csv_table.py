"""Open a user's CSV: read the header, find columns, and yield the rows with line numbers."""

from __future__ import annotations

import codecs
import contextlib
import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shards.dataset.labels import tidy
from shards.errors import Code, UserError, did_you_mean, one_line
from shards.storage.files import opened_text
from shards.storage.kinds import TABLE, other_kind
from shards.storage.paths import StoragePath

#: The names, in lower case, of the column of row numbers that pandas writes by default.
ROW_NUMBERS = ("", "unnamed: 0")
#: Separators of columns besides the comma. A separator is used if it is the only one in the header line.
DELIMITERS = ";\t|"
#: First bytes of ZIP and Excel files, of Parquet files and of gzip files, which are not text.
OTHER_FILES = (b"PK\x03\x04", b"PAR1", b"\x1f\x8b")


@dataclass(frozen=True, kw_only=True)
class CsvOptions:
    """Column of ids and text encoding of a CSV."""

    id_column: str | None = None
    """CSV column of ids, by name or by number from 0 (default 0). Required if column 0 contains row numbers."""
    encoding: str = "utf-8-sig"
    """Text encoding of the CSV (default UTF-8)."""


@dataclass(frozen=True)
class Table:
    """An open CSV."""

    path: StoragePath
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    """(line number, cells) of every row that is not empty. A row can have fewer or more cells than the header."""
    delimiter: str = ","

    def column(self, wanted: str, option: str) -> int:
        """Return the position of the only column with name or number ``wanted``. Raises UserError if there is none."""
        names = [name.strip() for name in self.header]
        if names.count(wanted) == 1:
            return names.index(wanted)
        by = ""
        if wanted in names:
            problem, by = f"several columns {wanted!r};", " by its number"
        elif not wanted.isdecimal():
            problem = f"no column {wanted!r}{did_you_mean(wanted, names) or ';'}"
        elif int(wanted) < len(names):
            return int(wanted)
        else:
            problem = f"no column number {wanted};"
        remedy = f"the columns are {self.listing()}; choose one{by} with {option}"
        raise UserError("table-column", f"{self.path} has {problem} {remedy}")

    def listing(self) -> str:
        """Return the numbers and names of all columns, for a message."""
        return ", ".join(self.name(position) for position in range(len(self.header)))

    def name(self, position: int) -> str:
        """Return the number and name of a column, for a message: ``3 'genre'``."""
        return f"{position} {self.header[position].strip()[:60]!r}"

    def refuse_row_numbers(self, position: int, ids: Sequence[str]) -> None:
        """Raise UserError if the default column of ids contains the row numbers that pandas writes."""
        if tidy(self.header[position]).lower() in ROW_NUMBERS and all(re.fullmatch(r"\d+(\.0)?", i) for i in ids):
            what = "has no name and contains numbers, like the row numbers that pandas writes"
            remedy = f"choose the column of ids with --id-column (--id-column {position} if these are the ids)"
            message = f"column {self.name(position)} {what}; {remedy}. The columns are {self.listing()}"
            raise UserError("table-column", f"{self.path}: {message}")


@contextlib.contextmanager
def open_table(path: StoragePath, encoding: str) -> Iterator[Table]:
    """Open a CSV with a header line. Columns are separated by commas, or else by one of DELIMITERS.

    Raises UserError if the file is missing or is not a CSV in this encoding. Reading a row can also raise UserError.
    """
    csv.field_size_limit(1 << 24)
    try:
        if codecs.lookup(encoding).name == "utf-8":
            encoding = "utf-8-sig"  # also skips a byte order mark
    except LookupError:
        raise UserError("option-value", f"unknown text encoding {encoding!r}; try utf-8 or latin-1") from None
    try:
        with opened_text(path, encoding) as stream:
            first = stream.readline()
            found = [delimiter for delimiter in DELIMITERS if delimiter in first]
            delimiter = found[0] if len(found) == 1 and "," not in first else ","
            reader = csv.reader(itertools.chain([first], stream), delimiter=delimiter)
            header = next(reader, None)
            if not header or not any(cell.strip() for cell in header):
                what = "begins with an empty line" if first else "is empty"
                raise UserError("table-unreadable", f"{path} {what}: a CSV with a header line is needed")
            yield Table(path, header, ((reader.line_num, row) for row in reader if row), delimiter)
    except FileNotFoundError:
        raise UserError("path-missing", f"metadata CSV not found: {path}") from None
    except UnicodeError as error:  # UTF-16 without a byte order mark raises this base class of UnicodeDecodeError
        start = error.object[:4] if isinstance(error, UnicodeDecodeError) else b""
        utf16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
        remedy = f"pass the encoding of the file, e.g. --encoding {'utf-16' if utf16 else 'latin-1'}"
        if start.startswith(OTHER_FILES):
            remedy = "it is a spreadsheet, Parquet or compressed file: save it as plain CSV"
        if wrong := other_kind(path, TABLE):
            raise UserError("table-unreadable", wrong) from None
        message = f"{path} is not {encoding} text ({one_line(error)}); {remedy}"
        raise UserError("table-unreadable", message) from None
    except (OSError, csv.Error) as error:
        code: Code = "path-unreadable" if isinstance(error, OSError) else "table-unreadable"
        problem = other_kind(path, TABLE) or f"{path} cannot be read as CSV: {one_line(error)}"
        raise UserError(code, problem) from None
