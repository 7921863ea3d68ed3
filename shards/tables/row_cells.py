"""The columns of a table that are in use, and the cells of each row in these columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shards.dataset.index_values import WEIGHTS
from shards.errors import UserError, one_line
from shards.tables.genre_cells import NO_GENRE_WORDS
from shards.tables.genre_columns import GenreColumns, find_genres, genres_of_flags
from shards.tables.split_names import SPLIT_NAMES
from shards.tables.table import USES, SampleColumns, Table

if TYPE_CHECKING:
    from shards.tables.metadata import GenreOptions


@dataclass(frozen=True)
class Columns:
    """Positions of the columns in use."""

    id: int
    genres: GenreColumns
    split: int | None
    group: int | None
    weight: int | None


@dataclass
class Cell:
    """Cells of a row that are in use."""

    line: int
    id: str
    text: str = ""
    """Cell of genres. Empty in a multi-hot table."""
    flags: tuple[str, ...] = ()
    """Genres of the row in a multi-hot table."""
    split: str = ""
    group: str = ""
    weight: float | None = None
    problem: tuple[str, str] | None = None
    """(reason, detail) if the row cannot be used."""


def find_columns(table: Table, options: GenreOptions, others: SampleColumns) -> Columns:
    """Return the positions of the columns in use. Raises UserError for a missing or a doubtful column."""

    def position(wanted: str | None, option: str) -> int | None:
        return None if wanted is None else table.column(wanted, option)

    id_at, split = table.id_column(), position(others.split_column, "--split-column")
    if split is None and table.has_splits:
        split = len(table.header) - 1
    group = position(others.group_column, "--group-column")
    weight = position(others.weight_column, "--weight-column")
    uses = {"ids": id_at, "splits": split, "groups": group, "weights": weight}
    taken = {at: use for use, at in uses.items() if at is not None}
    for use, at in (("splits", split), ("weights", weight)):
        if at is not None and (other := next((name for name in uses if name != use and uses[name] == at), None)):
            two = f"column {table.name(at)} cannot contain both {other} and {use}"
            remedy = f"choose others with {USES[other]} or {USES[use]}. The columns are {table.listing()}"
            raise UserError("table-column", f"{table.path}: {two}; {remedy}")
    genres = find_genres(table, options.genre_column, options.label_columns, taken)
    return Columns(id_at, genres, split, group, weight)


def read_cells(table: Table, columns: Columns) -> list[Cell]:
    """Return the cells of all rows. A row that cannot be used has a ``problem``. Raises UserError for a wrong split."""
    out = []
    last = max(columns.id, *columns.genres.at, columns.split or 0, columns.group or 0, columns.weight or 0)
    for line, row in table.rows:
        cell = Cell(line, row[columns.id].strip() if columns.id < len(row) else "")
        out.append(cell)
        if line in table.problems:
            cell.problem = "bad row", table.problems[line]
        elif last >= len(row) or any(extra.strip() for extra in row[len(table.header) :]):
            counts = f"{len(row)} cells, but {len(table.header)} columns"
            cell.problem = "bad row", f"{counts}; texts that contain {table.delimiter!r} need quotes"
        elif columns.genres.multi_hot:
            try:
                cell.flags = genres_of_flags(table, columns.genres.at, row)
            except ValueError as error:
                cell.problem = "unparsable genres", one_line(error)
        else:
            cell.text = row[columns.genres.at[0]].strip()
        if cell.problem is None:
            cell.group = _or_empty(row[columns.group]) if columns.group is not None else ""
            cell.split, cell.problem = _split(table, row, columns.split)
        if cell.problem is None and columns.weight is not None:
            cell.weight, cell.problem = _weight(row[columns.weight])
    return out


def _or_empty(cell: str) -> str:
    """Return a cell without spaces around it. Words such as nan and None, which mean a missing value, become empty."""
    return "" if cell.strip().lower() in NO_GENRE_WORDS else cell.strip()


def _split(table: Table, row: Sequence[str], at: int | None) -> tuple[str, tuple[str, str] | None]:
    if at is None:
        return "", None
    written = _or_empty(row[at])
    split = SPLIT_NAMES.get(written.lower(), "")
    if written and not split:
        remedy = "the values are train, val (valid, validation, dev) and test"
        raise UserError("table-row", f"{table.path}: column {table.name(at)} has {written[:40]!r}, no split; {remedy}")
    return split, None if split else ("no split", f"column {table.name(at)} is empty")


def _weight(cell: str) -> tuple[float | None, tuple[str, str] | None]:
    """Return the weight in a cell, or the problem of the cell."""
    if not (text := _or_empty(cell)):
        return None, ("no weight", "the cell of the weight is empty")
    try:
        if WEIGHTS[0] <= (weight := float(text)) <= WEIGHTS[1]:
            return weight, None
    except ValueError:
        pass
    return None, ("bad weight", f"{text[:40]!r} is not a number from {WEIGHTS[0]:f} to {WEIGHTS[1]:.0f}, such as 0.5")
