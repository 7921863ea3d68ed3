"""Find the columns of genres in a table: one column of names or lists, or several columns of 0 and 1 (multi-hot)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from shards.dataset.labels import tidy
from shards.errors import UserError, some
from shards.tables.genre_cells import is_list
from shards.tables.genre_checks import FLAGS, mostly_unique
from shards.tables.readers import open_table
from shards.tables.table import GENRE_NAMES, MORE_NAMES, USES, Table, is_genre_name

#: Position of the column that is tried if no column has one of these names.
FALLBACK = 3
#: Flags that tables of films (TMDB, IMDb) have besides genres, and columns of splits and weights. Names are compared in
#: lower case, without underscores.
OTHER_FLAGS = frozenset(
    {"adult", "isadult", "video", "istrain", "isval", "isvalid", "istest", "weight", "weights", "sampleweight"}
)

#: Cells that mean yes in a column of flags.
YES = frozenset({"1", "1.0", "true", "t", "yes", "y"})
#: Cells of a column in which -1 may mean no, or unknown.
SIGNS = frozenset({"-1", "-1.0"})
#: A cell that is written as a list. A header never has such a cell.
LIST_CELL = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
PEEK = 500  # rows that are examined to find columns, or for a helpful message


@dataclass(frozen=True)
class GenreColumns:
    """Positions of the columns of genres. With ``multi_hot``, each column is a genre, and its cells are 0 or 1."""

    at: tuple[int, ...]
    multi_hot: bool = False
    chosen: bool = False
    """Whether the user chose the columns."""
    unused: str = ""
    """Message about other columns that may contain genres. Empty if there are none, or the user chose the columns."""

    def text(self, table: Table) -> str:
        """Return the numbers and names of the columns, for a message."""
        names = some([table.name(at) for at in self.at], 4)
        return f"{len(self.at)} columns of 0 and 1: {names}" if self.multi_hot else f"column {names}"


def find_genres(
    table: Table, genre_column: str | None, label_columns: Sequence[str] | None, others: Mapping[int, str]
) -> GenreColumns:
    """Return the columns that the options name, or else the columns that have genres.

    genre_column, label_columns: the options --genre-column and --label-columns. others: position of each column
    that is used for something else → its use, such as ids. Without options, the column with a usual name is
    returned, or else the columns that contain only 0 and 1, or else column 3 (FALLBACK). Raises UserError if several
    columns have a usual name, if no column remains, if columns contain -1 and 1, or if columns of 0 and 1 may be other
    flags.
    """
    if genre_column is not None and label_columns:
        raise UserError("option-conflict", "--genre-column and --label-columns exclude each other: choose one of them")
    if label_columns:
        found = GenreColumns(tuple(table.column(name, "--label-columns") for name in label_columns), True, True)
        _refuse_names(table, found.at)
        _refuse_signs(table, found.at, _peek(table))
    elif genre_column is not None:
        found = GenreColumns((table.column(genre_column, "--genre-column"),), chosen=True)
    else:
        found = _found(table, others)
    if both := [table.name(at) for at in found.at if at in others]:
        use = next(others[at] for at in found.at if at in others)
        remedy = f"choose others with {USES[use]}, --genre-column or --label-columns"
        problem = f"{table.path}: column {both[0]} cannot contain both {use} and genres"
        raise UserError("table-column", f"{problem}; {remedy}. The columns are {table.listing()}")
    return found


def _found(table: Table, others: Mapping[int, str]) -> GenreColumns:
    for names in (GENRE_NAMES, MORE_NAMES):
        named = [at for at in range(len(table.header)) if at not in others and is_genre_name(table.header[at], names)]
        if len(named) > 1:
            problem = f"several columns that may hold the genres: {some([table.name(at) for at in named])}"
            raise UserError("table-column", f"{table.path} has {problem}; choose one with --genre-column")
        if unread := [name for name in table.unread if is_genre_name(name, names)]:
            raise table.not_text(unread[0])
        if named:
            free = [at for at in _all(table) if at not in (*others, named[0])]
            return GenreColumns((named[0],), unused=_unused_flags(table, free, _peek(table) if len(free) > 1 else []))
    free = [at for at in _all(table) if at not in others]
    rows = _peek(table, None)  # all rows: a rare genre can be blank in the first ones
    cells = [row[FALLBACK] for row in rows[:PEEK] if len(row) > FALLBACK]
    if not any(is_list(cell.strip()) or "|" in cell for cell in cells):
        _refuse_signs(table, free, rows)
        flags = [at for at in _flag_columns(table, rows) if at in free]
        if len(flags) > 1:
            _refuse_names(table, flags)
            _refuse_other_flags(table, flags)
            lists = [table.name(at) for at in free if at not in flags and _has_lists(rows[:PEEK], at)]
            unused = f"not used: lists in column {lists[0]}, which --genre-column chooses" if lists else ""
            return GenreColumns(tuple(flags), multi_hot=True, unused=unused)
    if len(table.header) <= FALLBACK or FALLBACK in others:
        refuse_missing_header(table, None, ())
        for at, use in others.items():
            if is_genre_name(table.header[at], GENRE_NAMES):
                problem = f"column {table.name(at)} has a name for genres, but it is the column of {use}"
                remedy = f"choose the column of {use} with {USES[use]}"
                remedy += ", or write the ids too (in pandas: reset_index())" if use == "ids" else ""
                remedy += "".join(f"; column {name!r} {why}, so it is not read" for name, why in table.unread.items())
                message = f"{table.path}: {problem}; {remedy}. The columns are {table.listing()}"
                raise UserError("table-column", message)
        raise _no_column(table)
    return GenreColumns((FALLBACK,), unused=_unused_flags(table, [at for at in free if at != FALLBACK], rows))


def refuse_missing_header(table: Table, genres_at: int | None, labels: Collection[str], separator: str = "|") -> None:
    """Raise UserError if the first line contains a list, or if its genre cell contains only known ``labels``."""
    header = [name.strip() for name in table.header]
    genres = () if genres_at is None else header[genres_at].split(separator)
    are_labels = labels and genres and {part.strip() for part in genres} <= set(labels)
    if are_labels or any(map(LIST_CELL.fullmatch, header)):
        problem = f"has no header line: its first line has values ({some([repr(name[:40]) for name in header])})"
        remedy = "add a first line with the names of the columns, such as id,genre"
        raise UserError("table-unreadable", f"{table.path} {problem}; {remedy}")


def refuse_unless_lists(table: Table, written: int, lists: int, samples: Sequence[Sequence[str]]) -> None:
    """Raise UserError if column 3 (FALLBACK) does not look like lists of genres.

    written: number of cells that are not empty. lists: number of cells with lists. samples: genres of readable rows.
    """
    if 10 * lists >= written > 0 and 2 * len(samples) >= written and not mostly_unique(samples, 0.5):
        return
    cells = [row[FALLBACK] for row in _peek(table) if len(row) > FALLBACK and row[FALLBACK].strip()]
    shown = some([repr(cell[:30]) for cell in dict.fromkeys(cells)], 3) or "it is empty"
    raise _no_column(table, f", and column {table.name(FALLBACK)} does not look like lists of genres ({shown})")


def genres_of_flags(table: Table, columns: Sequence[int], row: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the columns that have a 1 in the row. Raises ValueError if a cell is not 0 or 1."""
    genres = []
    for at in columns:
        cell = row[at].strip().lower()
        if cell not in FLAGS:
            raise ValueError(f"column {table.name(at)} has {row[at].strip()[:30]!r}, which is not 0 or 1")
        if cell in YES:
            genres.append(table.header[at].strip())
    return tuple(genres)


def _no_column(table: Table, why: str = "") -> UserError:
    remedy = "choose a column with --genre-column, or columns of 0 and 1 with --label-columns"
    numbered = [at for at in _all(table) if is_genre_name(re.sub(r"[\s_-]*\d+$", "", table.header[at].strip()))]
    if len(numbered) > 1:
        names = some([table.name(at) for at in numbered], 4)
        remedy = f"join the columns {names} into one column genre, with cells such as Drama|War"
    message = f"{table.path} has no column named genre, label or tag{why}; {remedy}. The columns are {table.listing()}"
    return UserError("table-column", message)


def _peek(table: Table, count: int | None = PEEK) -> list[list[str]]:
    with open_table(table.path, table.options) as again:
        return [row for _, row in islice(again.rows, count)]


def _values(table: Table, at: int, rows: Sequence[Sequence[str]]) -> set[str]:
    return {row[at].strip().lower() for row in rows if at < len(row)} - {""}


def _flag_columns(table: Table, rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the positions of the columns that contain flags such as 0 and 1.

    If a column has only flags, other columns may have a few other cells, whose rows are rejected later.
    """
    filled = [[cell for row in rows if at < len(row) and (cell := row[at].strip().lower())] for at in _all(table)]
    shares = [sum(cell in FLAGS for cell in cells) / len(cells) if cells else 0.0 for cells in filled]
    return [at for at, share in enumerate(shares) if share == 1 or (share > 0.5 and 1.0 in shares)]


def _has_lists(rows: Sequence[Sequence[str]], at: int) -> bool:
    cells = [cell for row in rows if at < len(row) and (cell := row[at].strip())]
    return 2 * sum(is_list(cell) or "|" in cell for cell in cells) > len(cells)


def _unused_flags(table: Table, free: Sequence[int], rows: Sequence[Sequence[str]]) -> str:
    """Return a message if two or more of the columns ``free`` are columns of 0 and 1 that may be genres."""
    flags = [at for at in _flag_columns(table, rows) if at in free and not _is_other_flag(table, at)]
    names = some([table.name(at) for at in flags], 4)
    what = f"not used: {len(flags)} columns of 0 and 1 ({names}), which --label-columns chooses"
    return what if len(flags) > 1 else ""


def _is_other_flag(table: Table, at: int) -> bool:
    return tidy(table.header[at]).lower().replace("_", "") in OTHER_FLAGS


def _refuse_other_flags(table: Table, flags: Sequence[int]) -> None:
    """Raise UserError if columns of 0 and 1 have names of OTHER_FLAGS. Beside two other columns, Adult is a genre."""
    others = [at for at in flags if _is_other_flag(table, at)]
    names = {tidy(table.header[at]).lower() for at in others}
    if not others or (names == {"adult"} and len(flags) > 2):
        return
    found = f"the columns of 0 and 1 are {some([table.name(at) for at in flags], 8)}"
    doubt = f"{some([table.name(at) for at in others])} may be no genres"
    remedy = "choose the columns that are genres with --label-columns, or a column of names with --genre-column"
    message = f"{table.path} has no column named genre, label or tag; {found}, but {doubt}; {remedy}"
    raise UserError("table-column", f"{message}. The columns are {table.listing()}")


def _all(table: Table) -> range:
    return range(len(table.header))


def _refuse_names(table: Table, columns: Sequence[int]) -> None:
    """Raise UserError if two columns of genres have the same name, or if their names are flags."""
    names = [tidy(table.header[at]) for at in columns]
    if sum(name.lower() in FLAGS for name in names) > 1:
        problem = f"has no header line: its first line has values ({some([repr(name) for name in names])})"
        raise UserError("table-unreadable", f"{table.path} {problem}; add a first line with the names of the genres")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        problem = f"{table.path} has several columns of the genre {twice[0]!r}"
        raise UserError("table-column", f"{problem}; rename one of them")


def _refuse_signs(table: Table, columns: Sequence[int], rows: Sequence[Sequence[str]]) -> None:
    """Raise UserError if columns contain -1 and 1. Their meaning is not known."""
    signed = [at for at in columns if (v := _values(table, at, rows)) & SIGNS and v <= SIGNS | {"0", "1", "0.0", "1.0"}]
    if signed:
        readings = "-1 can mean that a poster does not have the genre, or that the genre is not known"
        remedy = "write 0 for `does not have`, and leave posters with unknown genres out"
        names = some([table.name(at) for at in signed])
        raise UserError("table-column", f"{table.path}: the columns {names} contain -1 and 1, and {readings}; {remedy}")
