"""Read a user's CSV of posters and genres. A row becomes a sample, is joined to another row, or is rejected."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from shards.dataset.labels import merge_spellings
from shards.errors import UserError, one_line, some
from shards.inputs.csv_table import CsvOptions, Table, open_table
from shards.inputs.genres import is_list, parse_genres
from shards.inputs.table_checks import doubt_about, find_genres, is_named, refuse_missing_header, refuse_unless_lists
from shards.options import option
from shards.storage.csv_text import unescaped, write_for_people
from shards.storage.files import atomic_write
from shards.storage.paths import StoragePath

log = logging.getLogger(__name__)

REJECTED_COLUMNS = ("id", "reason", "detail")
#: Reasons for the rejection of a row whose genres cannot be read.
UNREADABLE = ("unparsable genres", "bad row")


@dataclass(frozen=True)
class Rejection:
    """A row or image that is left out. ``reason`` is one of a few fixed texts, ``detail`` is any text."""

    id: str
    reason: str
    detail: str = ""


class Unusable(Exception):
    """A poster that cannot be used. `Rejection` explains ``reason`` and ``detail``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def rejection(self, sample_id: str) -> Rejection:
        return Rejection(sample_id, self.reason, self.detail)


@dataclass(frozen=True)
class Row:
    """A row of the CSV with genres, or the joined rows of one poster."""

    id: str
    genres: tuple[str, ...]
    line: int = field(default=0, compare=False)  # line number in the CSV


@dataclass
class Metadata:
    """Contents of a CSV. ``rows`` are the usable posters in the order of the file."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    id_column: str = ""
    genre_column: str = ""
    joined: int = 0  # rows that were joined to an earlier row with the same id

    @property
    def posters(self) -> int:
        """Number of rows of the CSV. Rows that are joined count as one row."""
        return len(self.rows) + len(self.rejected)


@dataclass(frozen=True, kw_only=True)
class GenreOptions(CsvOptions):
    """Columns of ids and genres of a CSV, and the form of the genres."""

    genre_column: str | None = None
    """CSV column of genres, by name or by number from 0. The default is the column named genre, label or tag (or a
    plural), or else column 3 if it has lists. A column of numbers, years or a single genre needs this option."""
    genre_separator: str = "|"
    """Separator between the genres of a cell that is not a list."""
    spellings: str = option("merge", choices=("merge", "refuse"))
    """What to do with genres that differ only in case, spaces, invisible characters or Unicode form. ``merge`` combines
    them and logs the change (default). ``refuse`` rejects the CSV."""


def read_metadata(
    path: StoragePath, options: GenreOptions = GenreOptions(), *, known: Sequence[str] = (), strict: bool = True
) -> Metadata:
    """Read ids and genre lists from a CSV with a header line, and log a summary.

    known: labels that are always accepted, such as the labels of a model. A known label replaces its other spellings.
    strict: whether doubtful genres (see table_checks.doubt_about) raise UserError. If false, a warning is logged.

    Raises UserError if the file or a column is missing, or if several columns can contain the genres. A bad row raises
    no error, but becomes a Rejection.
    """
    genre_column, separator = options.genre_column, options.genre_separator
    if not separator:
        raise UserError("option-value", "--genre-separator must not be empty")
    with open_table(path, options.encoding) as table:
        id_at, genres_at = _columns(table, options)
        cells = _read_cells(table, id_at, genres_at, separator)
        read = [row.genres for row in cells.rows]
        if options.id_column is None and cells.rows:
            table.refuse_row_numbers(id_at, [row.id for row in cells.rows])
        if genre_column is None or genre_column not in map(str.strip, table.header):
            refuse_missing_header(table, genres_at, {genre for genres in read for genre in genres}, separator)
    if genre_column is None and not is_named(table, genres_at):
        refuse_unless_lists(table, options.encoding, cells.written, cells.lists, read)
    merged, lines = merge_spellings(read, known)
    if lines and options.spellings == "refuse":
        spellings = "; ".join(lines[:3]).replace(": merged", "")
        remedy = f"repair the column {table.name(genres_at)}, or pass --spellings merge"
        raise UserError("table-row", f"{path} has several spellings of a genre: {spellings}; {remedy}")
    rows = [replace(row, genres=genres) for row, genres in zip(cells.rows, merged, strict=True)]
    metadata = Metadata(id_column=table.header[id_at], genre_column=table.header[genres_at])
    _join(rows, cells.rejected, metadata)
    samples = [row.genres for row in metadata.rows]
    doubt = doubt_about(table, options.encoding, genres_at, samples, genre_column is not None, known)
    if doubt:
        bad = [r for _, r in cells.rejected if r.reason in UNREADABLE]
        doubt += f" ({len(bad)} of {cells.count} rows are unreadable: {first_reasons(bad)})" if bad else ""
        if strict:
            raise UserError("table-column", doubt)
        log.warning("%s", doubt)
    _log_rows(table, id_at, genres_at, metadata, cells.count, lines)
    return metadata


def _columns(table: Table, options: GenreOptions) -> tuple[int, int]:
    id_at = 0 if options.id_column is None else table.column(options.id_column, "--id-column")
    if options.genre_column is None:
        genres_at = find_genres(table, id_at)
    else:
        genres_at = table.column(options.genre_column, "--genre-column")
    if genres_at == id_at:
        problem = f"{table.path}: column {table.name(id_at)} cannot contain both ids and genres"
        remedy = f"choose two columns with --id-column and --genre-column. The columns are {table.listing()}"
        raise UserError("table-column", f"{problem}; {remedy}")
    return id_at, genres_at


@dataclass
class _Cells:
    """Parsed cells of all rows."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[tuple[int, Rejection]] = field(default_factory=list)  # (line number, rejection)
    count: int = 0
    written: int = 0  # rows whose cell of genres is not empty
    lists: int = 0  # rows whose cell of genres is a list or has a separator


def _read_cells(table: Table, id_at: int, genres_at: int, separator: str) -> _Cells:
    out = _Cells()
    for line, row in table.rows:
        out.count += 1
        sample_id = row[id_at].strip() if id_at < len(row) else ""
        cell = row[genres_at].strip() if genres_at < len(row) else ""
        out.written += bool(cell)
        out.lists += is_list(cell) or separator in cell
        reason = detail = ""
        if problem := id_problem(sample_id):
            reason, detail = "bad id", problem
        elif genres_at >= len(row) or any(extra.strip() for extra in row[len(table.header) :]):
            reason, cells = "bad row", f"{len(row)} cells, but {len(table.header)} columns"
            detail = f"{cells}; texts that contain {table.delimiter!r} need quotes"
        else:
            try:
                if genres := parse_genres(cell, separator):
                    out.rows.append(Row(sample_id, genres, line))
                    continue
                reason = "no genres"
            except ValueError as error:
                reason, detail = "unparsable genres", one_line(error)
        detail = f"line {line}: {detail}" if detail else f"line {line}"
        out.rejected.append((line, Rejection(sample_id, reason, detail)))
    return out


def _join(entries: Sequence[Row], rejected: list[tuple[int, Rejection]], out: Metadata) -> None:
    """Write one row per id, and all rejections, to ``out``.

    Rows with the same id are joined if every row of the CSV has one genre, and at least a tenth of the ids have rows
    with different genres. If not, only the first row of an id is used, because a repeated id can be a mistake. If one
    row of an id is unreadable, all rows of this id are rejected, because its genres are incomplete.
    """
    by_id: dict[str, list[Row]] = {}
    for entry in entries:
        by_id.setdefault(entry.id, []).append(entry)
    several = sum(len({frozenset(entry.genres) for entry in rows}) > 1 for rows in by_id.values())
    one_each = 10 * several >= len(by_id) and all(len(entry.genres) == 1 for entry in entries)
    unreadable = {r.id: r for _, r in rejected if r.reason in UNREADABLE}
    rejected = list(rejected)
    for sample_id, rows in by_id.items():
        if sample_id in unreadable:
            why = f"another row with this id is unreadable ({unreadable[sample_id].detail})"
            rejected += [(e.line, Rejection(sample_id, "conflicting rows", f"line {e.line}: {why}")) for e in rows]
            continue
        first, genres = rows[0], list(rows[0].genres)
        for entry in rows[1:]:
            where = f"line {entry.line}"
            if set(entry.genres) <= set(genres) and (one_each or set(entry.genres) == set(genres)):
                rejected.append((entry.line, Rejection(sample_id, "repeated id", f"{where}; the same genres as above")))
            elif one_each:
                genres += entry.genres
                out.joined += 1
            else:
                detail = f"{where}: its genres differ from line {first.line}, which is used; use one id per poster"
                rejected.append((entry.line, Rejection(sample_id, "conflicting rows", detail)))
        out.rows.append(replace(first, genres=tuple(genres)))
    out.rejected = [rejection for _, rejection in sorted(rejected, key=lambda pair: pair[0])]


def _log_rows(table: Table, id_at: int, genres_at: int, metadata: Metadata, rows: int, lines: Sequence[str]) -> None:
    first = metadata.rows[0] if metadata.rows else Row("", ())
    layout = "" if table.delimiter == "," else f" of columns separated by {table.delimiter!r}"
    columns = f"ids in column {table.name(id_at)}, genres in column {table.name(genres_at)}"
    shown = ", ".join(first.genres) or "none"
    log.info("%s: %d rows%s; %s; the first is %r: %s", table.path, rows, layout, columns, first.id, shown)
    if metadata.joined:
        text = "ids appear on several rows with one genre each: %d rows were joined to the first row with the same id"
        log.info(text, metadata.joined)
    for line in lines:
        log.warning("%s", line)
    counts = Counter(genre for row in metadata.rows for genre in row.genres)
    log.info("%d labels: %s", len(counts), some([f"{genre} ({n})" for genre, n in counts.most_common()], 20))


def id_problem(sample_id: str) -> str:
    """Return a message if an id cannot be a path in the image folder. Empty if the id is valid."""
    if not sample_id:
        return "empty id"
    if any(unicodedata.category(character) == "Cc" for character in sample_id):
        return "control characters in the id"
    parts = PurePosixPath(sample_id).parts
    if "\\" in sample_id or sample_id[1:2] == ":" or sample_id.startswith("/") or ".." in parts or not parts:
        return "the id is a path outside of the image folder"
    if len(sample_id.encode()) > 240:
        return "the id is too long for a file name"
    return ""


def write_rejected(path: StoragePath, rejected: Sequence[Rejection]) -> None:
    """Write rejected.csv (id, reason, detail) atomically. Cells that begin like a spreadsheet formula are escaped."""
    rows = [REJECTED_COLUMNS, *((r.id, r.reason, r.detail) for r in rejected)]
    with atomic_write(path, "w") as stream:
        write_for_people(stream, rows, end="\r\n")


def read_rejected(path: StoragePath) -> dict[str, str]:
    """Return id → reason of a rejected.csv. Empty if the file is missing or has unknown columns."""
    if not path.is_file():
        return {}
    with open_table(path, "utf-8") as table:
        if tuple(table.header) != REJECTED_COLUMNS:
            return {}
        return {unescaped(row[0]): row[1] for _, row in table.rows if len(row) == len(REJECTED_COLUMNS)}


def first_reasons(rejected: Sequence[Rejection]) -> str:
    """Return one line: the number of rejections for each reason, and an example of each of the three main reasons."""
    if not rejected:
        return "the file has only a header line"
    first = {rejection.reason: rejection for rejection in reversed(rejected)}
    reasons = Counter(rejection.reason for rejection in rejected).most_common()
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons)
    examples = [f"id {first[reason].id!r}: {reason} ({first[reason].detail})" for reason, _ in reasons[:3]]
    return f"{counts}; for example {', and '.join(examples)}"
