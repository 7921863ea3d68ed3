"""Read a user's table of posters and genres. A row becomes a sample, is joined to another row, or is rejected.

file or folder ─ readers.open_table ─→ texts of each row ─ genre_columns.find_genres ─→ the columns in use
    ─ sample_ids.sample_ids, genre_cells.parse_genres ─→ rows with an id and genres, rejected rows
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from shards.dataset.labels import merge_spellings, tidy
from shards.errors import UserError, one_line, some
from shards.inputs.rejections import UNREADABLE, UNUSABLE, Rejection, first_reasons, id_problem
from shards.options import option
from shards.storage.paths import StoragePath
from shards.tables.genre_cells import is_list, parse_genres
from shards.tables.genre_checks import doubt_about, found_separator, warn_of_words, words_left_out
from shards.tables.genre_columns import refuse_missing_header, refuse_unless_lists
from shards.tables.readers import open_table
from shards.tables.row_cells import Cell, Columns, find_columns, read_cells
from shards.tables.sample_ids import SampleIds, sample_ids
from shards.tables.table import SampleColumns, Table, TableOptions, is_genre_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """A row of the table with genres, or the joined rows of one poster."""

    id: str
    genres: tuple[str, ...]
    line: int = field(default=0, compare=False)
    """Number of the row in the table."""
    path: str = field(default="", compare=False)
    """Path of the image in the table, below the image folder. It can differ from ``id``."""
    split: str = ""
    """Split that the table gives the poster: train, val or test. Empty if the table has no column of splits."""
    group: str = ""
    """Value of the column of groups. Posters with the same value stay in one split. Empty for no group."""
    weight: float | None = None
    """Sample weight. None if the table has no column of weights."""


@dataclass
class Metadata:
    """Contents of a table. ``rows`` are the usable posters in the order of the file."""

    path: StoragePath
    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    id_column: str = ""
    genre_column: str = ""
    joined: int = 0  # rows that were joined to an earlier row with the same id
    reading: str = ""
    """What was read, for a message: the format, and the columns of ids and genres."""

    @property
    def posters(self) -> int:
        """Number of rows of the table. Rows that are joined count as one row."""
        return len(self.rows) + len(self.rejected)

    @property
    def paths(self) -> dict[str, str]:
        """Sample id → path of its image in the table. Ids that are equal to their path are left out."""
        return {row.id: row.path for row in self.rows if row.path not in ("", row.id)}


@dataclass(frozen=True, kw_only=True)
class GenreOptions(TableOptions):
    """Columns of ids and genres of a table, and the form of the genres."""

    genre_column: str | None = None
    """Column of genres, by name or by number from 0. The default is the column named genre, label, tag or category (or
    a plural), or else column 3 if it has lists. A column of numbers, years or a single genre needs this option."""
    label_columns: tuple[str, ...] | None = None
    """Columns of 0 and 1, one for each genre, by name or by number from 0. The name of a column is its genre. By
    default, all columns of 0 and 1 are used if the table has no column of genres."""
    genre_separator: str | None = None
    """Separator between the genres of a cell that is not a list, such as | or a comma. By default, it is detected."""
    spellings: str = option("merge", choices=("merge", "refuse"))
    """What to do with genres that differ only in case, spaces, invisible characters or Unicode form. ``merge`` combines
    them and logs the change (default). ``refuse`` rejects the table."""


def read_metadata(
    path: StoragePath,
    options: GenreOptions = GenreOptions(),
    *,
    known: Sequence[str] = (),
    strict: bool = True,
    images: StoragePath | None = None,
    others: SampleColumns = SampleColumns(),
) -> Metadata:
    """Read ids and genres from a table or folder, and log a summary.

    known: labels that are always accepted, such as the labels of a model. A known label replaces its other spellings.
    strict: whether doubtful genres (see genre_checks.doubt_about) raise UserError. If false, a warning is logged.
    images: the image folder, for tables with absolute paths. others: columns of split, group and weight.

    Raises UserError if the file or a column is missing, or if several columns can contain the genres. A bad row raises
    no error, but becomes a Rejection.
    """
    if options.genre_separator == "":
        raise UserError("option-value", "--genre-separator must not be empty")
    with open_table(path, options) as table:
        columns = find_columns(table, options, others)
        cells = read_cells(table, columns)
        separator = options.genre_separator or table.separator or found_separator([c.text for c in cells], known)
        ids = _ids(table, columns, cells, images)
    kept = frozenset(tidy(genre).lower() for genre in (*known, *table.genres))
    words = words_left_out([cell.text for cell in cells], separator, kept)
    remedy = "rename it, or list all genres in a JSON file for --labels"
    warn_of_words(f"{path}: {columns.genres.text(table)}", words, remedy)
    entries, rejected, lists = _parsed(table, columns, cells, ids, separator, kept)
    read = [row.genres for row in entries]
    _refuse_doubtful(table, columns, cells, read, lists, separator)
    merged, lines = merge_spellings(read, known)
    if lines and options.spellings == "refuse":
        spellings = "; ".join(lines[:3]).replace(": merged", "")
        remedy = f"repair the {columns.genres.text(table)}, or pass --spellings merge"
        raise UserError("table-row", f"{path} has several spellings of a genre: {spellings}; {remedy}")
    metadata = Metadata(path, id_column=table.header[columns.id], genre_column=table.header[columns.genres.at[0]])
    how = f"ids in column {table.name(columns.id)}, genres in {columns.genres.text(table)}"
    how += f", separated by {separator!r}" if any(separator in c.text and not is_list(c.text) for c in cells) else ""
    how += f", weights in column {table.name(columns.weight)}" if columns.weight is not None else ""
    metadata.reading = "; ".join(filter(None, (table.form, how, columns.genres.unused)))
    _join([replace(row, genres=genres) for row, genres in zip(entries, merged, strict=True)], rejected, metadata)
    if not columns.genres.multi_hot:
        samples = [row.genres for row in metadata.rows]
        doubt = doubt_about(table, columns.genres.at[0], samples, columns.genres.chosen, known)
        _raise_or_warn(doubt, [r for _, r in rejected if r.reason in UNREADABLE], len(cells), strict)
    _log_rows(path, metadata, len(cells), lines, ids.changes)
    return metadata


def _ids(table: Table, columns: Columns, cells: Sequence[Cell], images: StoragePath | None) -> SampleIds:
    written = [cell.id for cell in cells]
    if table.options.id_column is None and cells:
        table.refuse_row_numbers(columns.id, written)
    return sample_ids(written, images, by_file=table.by_file)


def _parsed(
    table: Table, columns: Columns, cells: Sequence[Cell], ids: SampleIds, separator: str, kept: frozenset[str]
) -> tuple[list[Row], list[tuple[int, Rejection]], int]:
    """Return the rows with genres, (number, rejection) of each other row, and the number of cells with lists.

    kept: words that are genres, see parse_genres.
    """
    rows, rejected, lists = [], [], 0
    parse = lru_cache(1 << 16)(parse_genres)  # few texts repeat in many rows
    for cell, sample_id, path in zip(cells, ids.ids, ids.paths, strict=True):
        lists += is_list(cell.text) or separator in cell.text
        problem = ("bad id", why) if (why := id_problem(sample_id)) else cell.problem
        if problem is None:
            try:
                genres = cell.flags if columns.genres.multi_hot else parse(cell.text, separator, kept)
                problem = None if genres else ("no genres", "")
            except ValueError as error:
                problem = "unparsable genres", one_line(error)
        if problem is None:
            rows.append(Row(sample_id, genres, cell.line, path, cell.split, cell.group, cell.weight))
            continue
        where = f"{table.unit} {cell.line}"
        shown = sample_id if sample_id else cell.id
        rejected.append((cell.line, Rejection(shown, problem[0], f"{where}: {problem[1]}" if problem[1] else where)))
    return rows, rejected, lists


def _refuse_doubtful(
    table: Table, columns: Columns, cells: Sequence[Cell], read: Sequence[tuple[str, ...]], lists: int, separator: str
) -> None:
    """Raise UserError if the table has no header line, or if its default column of genres has no lists."""
    at = None if columns.genres.multi_hot else columns.genres.at[0]
    if not (columns.genres.chosen and table.options.genre_column in map(str.strip, table.header)):  # type: ignore[attr-defined]
        refuse_missing_header(table, at, {genre for genres in read for genre in genres}, separator)
    if at is not None and not columns.genres.chosen and not is_genre_name(table.header[at]):
        refuse_unless_lists(table, sum(bool(cell.text) for cell in cells), lists, read)


def _raise_or_warn(doubt: str, unreadable: Sequence[Rejection], rows: int, strict: bool) -> None:
    if not doubt:
        return
    if unreadable:
        doubt += f" ({len(unreadable)} of {rows} rows are unreadable: {first_reasons(unreadable)})"
    if strict:
        raise UserError("table-column", doubt)
    log.warning("%s", doubt)


def _join(entries: Sequence[Row], rejected: list[tuple[int, Rejection]], out: Metadata) -> None:
    """Write one row per id, and all rejections, to ``out``.

    Rows with the same id are joined if every row of the table has one genre, and at least a tenth of the ids have rows
    with different genres. If not, only the first row of an id is used, because a repeated id can be a mistake. If one
    row of an id is unusable, all rows of this id are rejected, because its genres are incomplete.
    """
    by_id: dict[str, list[Row]] = {}
    for entry in entries:
        by_id.setdefault(entry.id, []).append(entry)
    several = sum(len({frozenset(entry.genres) for entry in rows}) > 1 for rows in by_id.values())
    one_each = 10 * several >= len(by_id) and all(len(entry.genres) == 1 for entry in entries)
    unusable = {r.id: r for _, r in rejected if r.reason in UNUSABLE}
    rejected = list(rejected)
    for sample_id, rows in by_id.items():
        if sample_id in unusable:
            why = f"another row with this id is unusable ({unusable[sample_id].detail})"
            rejected += [(e.line, Rejection(sample_id, "conflicting rows", f"line {e.line}: {why}")) for e in rows]
            continue
        first, genres = rows[0], list(rows[0].genres)
        if len({(entry.split, entry.group, entry.weight) for entry in rows}) > 1:
            why = "the rows with this id have different splits, groups or weights"
            rejected += [(e.line, Rejection(sample_id, "conflicting rows", f"line {e.line}: {why}")) for e in rows]
            continue
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


def _log_rows(path: StoragePath, metadata: Metadata, rows: int, lines: Sequence[str], changes: Sequence[str]) -> None:
    first = "none is usable"
    if metadata.rows:
        first = f"of which the first is {metadata.rows[0].id!r}: {', '.join(metadata.rows[0].genres)}"
    log.info("%s: %s; %d rows, %s", path, metadata.reading, rows, first)
    for change in changes:
        log.info("%s", change)
    if metadata.joined:
        text = "ids appear on several rows with one genre each: %d rows were joined to the first row with the same id"
        log.info(text, metadata.joined)
    for line in lines:
        log.warning("%s", line)
    counts = Counter(genre for row in metadata.rows for genre in row.genres)
    if counts:
        log.info("%d labels: %s", len(counts), some([f"{genre} ({n})" for genre, n in counts.most_common()], 20))
