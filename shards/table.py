"""Open a user's CSV: its header, the columns that are asked for, its rows with their line numbers."""

from __future__ import annotations

import codecs
import contextlib
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from shards.errors import UserError, one_line
from shards.files import opened_text
from shards.places import Place


@dataclass(frozen=True)
class Table:
    """An open CSV."""

    names: list[str]
    """Header names of the columns that were asked for, in that order."""
    positions: list[int]
    """Their positions in a row."""
    rows: Iterator[tuple[int, list[str]]]
    """(line number, cells) of every row that is not empty. A row may be shorter than the header."""


@contextlib.contextmanager
def open_table(path: Place, encoding: str, columns: Mapping[str, str]) -> Iterator[Table]:
    """Open a CSV with a header line; ``columns`` maps an option's name to the column it names (by header or number).

    Raises UserError if the file or a column is missing, and for whatever is no CSV in that encoding, while the rows
    are read too.
    """
    csv.field_size_limit(1 << 24)
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise UserError(f"unknown text encoding {encoding!r}; try utf-8 or latin-1") from None
    try:
        with opened_text(path, encoding) as stream:
            reader = csv.reader(stream)
            header = next(reader, None)
            if not header or not any(cell.strip() for cell in header):
                raise UserError(f"{path} is empty: a CSV with a header line is needed")
            positions = [find_column(header, wanted, path, option) for option, wanted in columns.items()]
            rows = ((reader.line_num, row) for row in reader if row)
            yield Table([header[at] for at in positions], positions, rows)
    except FileNotFoundError:
        raise UserError(f"metadata CSV not found: {path}") from None
    except UnicodeError as error:  # not only its subclass: UTF-16 without a byte order mark raises this
        raise UserError(
            f"{path} is not {encoding} text ({one_line(error)}); name its encoding, e.g. --encoding latin-1"
        ) from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {one_line(error)}") from None


def find_column(header: Sequence[str], wanted: str, path: Place, option: str) -> int:
    """Position of a column given by header name or by number. Raises UserError with the nearest name."""
    names = [name.strip() for name in header]
    if wanted in names:
        return names.index(wanted)
    listing = ", ".join(f"{position} {name!r}" for position, name in enumerate(names))
    if wanted.isdecimal():
        if int(wanted) < len(names):
            return int(wanted)
        raise UserError(
            f"{path} has no column number {wanted}; its columns are {listing}; choose one with {option}"
        )
    lowered = {name.lower(): name for name in names}
    near = get_close_matches(wanted.lower(), lowered, n=1, cutoff=0.5)
    hint = f"did you mean {lowered[near[0]]!r}? " if near else ""
    raise UserError(
        f"{path} has no column {wanted!r}; {hint}its columns are {listing}; choose one with {option}"
    )
