"""Is this the column of genres? What is refused rather than guessed, and how to say which column or layout is meant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from shards.dataset.labels import tidy
from shards.errors import UserError, some
from shards.inputs.csv_table import Table, open_table
from shards.storage.paths import StoragePath

#: A column of one of these names holds the genres.
GENRE_NAMES = ("genre", "genres", "label", "labels", "tag", "tags")
#: The column that is looked at when none has such a name.
FALLBACK = 3

NUMBER = re.compile(r"[-+]?[\d.,\s/:-]+%?")
YEAR = re.compile(r"(18[89]|19\d|20\d)\d(\.0)?")
FLAGS = frozenset({"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n"})

#: A cell that only a row holds, never the header.
LIST_CELL = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)

#: Separators that names of genres hardly have: one part that is known by itself, or recurs, tells.
PLAIN_SEPARATORS = (",", ";", "|", "\uff0c", "\u3001", "\u060c", "\u00b7", "\u2022")
#: Those that some have (Sci-Fi/Fantasy): all parts must.
OTHER_SEPARATORS = ("/", " & ", "+", ":", " - ")
#: Those that many have (Film-Noir): all parts must be known by themselves.
WORD_SEPARATORS = ("-", "_", "&", " ")

MANY = 20  # posters from which on shares mean something
PEEK = 500  # rows that are looked at to explain what is wrong


def find_genres(table: Table, id_at: int) -> int:
    """Position of the column named genre(s), label(s) or tag(s), else of column 3.

    Raises UserError if several have such a name, or the table has no column 3.
    """
    named = [at for at in range(len(table.header)) if at != id_at and is_named(table, at)]
    if len(named) > 1:
        problem = f"several columns that may hold the genres: {some([table.name(at) for at in named])}"
        raise UserError("table-column", f"{table.path} has {problem}; choose one with --genre-column")
    if named:
        return named[0]
    if len(table.header) <= FALLBACK or id_at == FALLBACK:
        refuse_headless(table, None, ())
        if is_named(table, id_at):
            problem = f"column {table.name(id_at)} is named as genres are, and it would be that of the ids"
            remedy = f"choose the column of ids with --id-column; its columns are {table.listing()}"
            raise UserError("table-column", f"{table.path}: {problem}; {remedy}")
        raise _no_column(table)
    return FALLBACK


def is_named(table: Table, at: int) -> bool:
    """Whether a column's name says that it holds genres."""
    return tidy(table.header[at]).lower() in GENRE_NAMES


def refuse_headless(table: Table, genres_at: int | None, labels: Collection[str], separator: str = "|") -> None:
    """Raise UserError if the header line is a row: it holds a list, or genres where the genres are."""
    header = [name.strip() for name in table.header]
    genres = () if genres_at is None else header[genres_at].split(separator)
    are_labels = labels and genres and {part.strip() for part in genres} <= set(labels)
    if are_labels or any(map(LIST_CELL.fullmatch, header)):
        problem = f"has no header line: the first one is a row ({some([repr(name[:40]) for name in header])})"
        remedy = "add a line with the columns' names, such as id,genre"
        raise UserError("table-unreadable", f"{table.path} {problem}; {remedy}")


def refuse_unless_lists(
    table: Table, encoding: str, written: int, lists: int, samples: Sequence[Sequence[str]]
) -> None:
    """Raise UserError unless column 3, which nobody named, looks like genres: lists, mostly readable, that recur."""
    if 10 * lists >= written > 0 and 2 * len(samples) >= written and not _mostly_own(samples, 0.5):
        return
    rows = _peek(table.path, encoding)
    cells = [row[FALLBACK] for row in rows if len(row) > FALLBACK and row[FALLBACK].strip()]
    shown = some([repr(cell[:30]) for cell in dict.fromkeys(cells)], 3) or "it is empty"
    raise _no_column(table, f", and column {table.name(FALLBACK)} does not look like lists of genres ({shown})", rows)


def _no_column(table: Table, why: str = "", rows: Sequence[Sequence[str]] = ()) -> UserError:
    flags = _flag_columns(table, rows)
    hint = f"; {_multi_hot(table, flags)}" if len(flags) > 1 else ""
    remedy = f"its columns are {table.listing()}; choose one with --genre-column"
    return UserError("table-column", f"{table.path} has no column named genre, label or tag{why}{hint}; {remedy}")


def _peek(path: StoragePath, encoding: str) -> list[list[str]]:
    with open_table(path, encoding) as table:
        return [row for _, row in islice(table.rows, PEEK)]


def _flag_columns(table: Table, rows: Sequence[Sequence[str]]) -> list[int]:
    """Columns of nothing but 0 and 1, true and false, yes and no."""
    columns = ({row[at].strip().lower() for row in rows if at < len(row)} - {""} for at in range(len(table.header)))
    return [at for at, values in enumerate(columns) if values and values <= FLAGS]


def _multi_hot(table: Table, flags: Sequence[int]) -> str:
    names = some([table.name(at) for at in flags])
    remedy = "write the names of those that are set into one column, such as Comedy|Drama"
    return f"the columns {names} hold flags such as 0 and 1: {remedy}"


def doubt_about(
    table: Table, encoding: str, at: int, samples: Sequence[Sequence[str]], chosen: bool, known: Sequence[str] = ()
) -> str:
    """Why these are hardly the genres that were meant, and how to insist; empty if they may be.

    samples: the genres of every usable row; ``chosen``: whether the column was chosen by --genre-column;
    known: labels that are given, which are not doubted.
    """
    labels = Counter(label for genres in samples for label in genres if label not in known)
    if not labels:
        return ""
    column = f"{table.path}: column {table.name(at)}"
    shown = some([repr(label) for label, _ in labels.most_common()], 3)
    if not known and {label.lower() for label in labels} <= FLAGS:
        flags = _flag_columns(table, _peek(table.path, encoding))
        return (
            f"{column} holds no genres but flags ({shown}); {_multi_hot(table, flags or [at])}, or choose another "
            f"column with --genre-column"
        )
    if doubt := _glued_text(column, labels, len(samples), known):
        return f"{doubt}; if these are single genres, name them all in a file for --labels"
    if chosen or known:
        return ""
    insist = f"choose another with --genre-column, or insist with --genre-column {at}; columns are {table.listing()}"
    doubt = doubt_about_classes(column, labels, samples)
    return f"{doubt}; {insist}" if doubt else ""


def doubt_about_classes(where: str, labels: Counter[str], samples: Sequence[Sequence[str]]) -> str:
    """Why these are hardly genres: numbers, years, one for all, one each, several in one; empty if they may be."""
    shown = some([repr(label) for label, _ in labels.most_common()], 3)
    if 2 * sum(n for label, n in labels.items() if NUMBER.fullmatch(label)) > labels.total():
        kind = "years" if all(YEAR.fullmatch(label) for label in labels) else "numbers"
        return f"{where} holds {kind} instead of genres ({shown})"
    if len(samples) > 1 and len({frozenset(genres) for genres in samples}) == 1:
        return f"{where} gives all {len(samples)} posters the same: {shown}"
    if _mostly_own(samples, 0.9):
        return f"{where} gives nearly every poster a label of its own ({shown})"
    return _glued_text(where, labels, len(samples), ())


def _mostly_own(samples: Sequence[Sequence[str]], share: float) -> bool:
    """Whether at least this share of many posters has no label that another one has."""
    labels = Counter(label for genres in samples for label in genres)
    own = sum(all(labels[label] == 1 for label in genres) for genres in samples)
    return len(samples) >= MANY and own >= share * len(samples)


def _glued_text(where: str, labels: Counter[str], samples: int, known: Sequence[str]) -> str:
    """Which separator seems to separate genres in the labels of a tenth of the posters: another, or within lists.

    Empty if there is none. See the tuples of separators for what is asked of the parts.
    """
    for mark in PLAIN_SEPARATORS + OTHER_SEPARATORS + WORD_SEPARATORS:
        parts = {label: found for label in labels if mark in label and len(found := list(_parts(label, mark))) > 1}
        if not parts or 10 * sum(labels[label] for label in parts) < samples:
            continue
        single = {tidy(label).lower() for label in [*labels, *known] if label not in parts}
        uses = Counter(part for found in parts.values() for part in set(found))
        recurs = single if mark in WORD_SEPARATORS else single | {part for part in uses if uses[part] > 1}
        enough = any if mark in PLAIN_SEPARATORS else all
        joined = [label for label, found in parts.items() if enough(part in recurs for part in found)]
        sure = mark in PLAIN_SEPARATORS and all(part in single for label in joined for part in parts[label])
        many = 10 * sum(labels[label] for label in joined) >= samples and 2 * len(joined) >= len(parts)
        if many and len(joined) > (0 if sure else 1):
            return (
                f"{where} seems to hold several genres in one: {some([repr(name) for name in joined], 3)}; if {mark!r} "
                f"separates genres, pass --genre-separator {mark!r} (in a list, write each as an item of its own)"
            )
    return ""


def _parts(label: str, mark: str) -> Iterator[str]:
    return (part for piece in label.split(mark) if (part := tidy(piece).lower()))
