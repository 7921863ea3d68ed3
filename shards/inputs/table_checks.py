"""Find the column of genres in a CSV. If the column is doubtful, an error says how to choose another column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from shards.dataset.labels import tidy
from shards.errors import UserError, some
from shards.inputs.csv_table import Table, open_table
from shards.storage.paths import StoragePath

#: Names of a column of genres, in lower case.
GENRE_NAMES = ("genre", "genres", "label", "labels", "tag", "tags")
#: Position of the column that is tried if no column has one of GENRE_NAMES.
FALLBACK = 3

NUMBER = re.compile(r"[-+]?[\d.,\s/:-]+%?")
YEAR = re.compile(r"(18[89]|19\d|20\d)\d(\.0)?")
FLAGS = frozenset({"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n"})

#: A cell that is written as a list. A header never has such a cell.
LIST_CELL = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)

# A label with one of these separators counts as several genres if the parts between the separators fulfil a condition.
#: These are rare in names of genres. Condition: one part is also a label of its own, or a part of another label.
PLAIN_SEPARATORS = (",", ";", "|", "\uff0c", "\u3001", "\u060c", "\u00b7", "\u2022")
#: These are in some names (Sci-Fi/Fantasy). Condition: each part is also a label of its own or a part of another label.
OTHER_SEPARATORS = ("/", " & ", "+", ":", " - ")
#: These are in many names (Film-Noir). Condition: each part is also a label of its own.
WORD_SEPARATORS = ("-", "_", "&", " ")

MANY = 20  # smallest number of posters for which the share of unique labels is checked
PEEK = 500  # rows or file names that are examined for a helpful message


def find_genres(table: Table, id_at: int) -> int:
    """Return the position of the column whose name is in GENRE_NAMES, or 3 (FALLBACK) if there is none.

    Raises UserError if several columns have such a name, or if column 3 is needed but is missing or contains the ids.
    """
    named = [at for at in range(len(table.header)) if at != id_at and is_named(table, at)]
    if len(named) > 1:
        problem = f"several columns that may hold the genres: {some([table.name(at) for at in named])}"
        raise UserError("table-column", f"{table.path} has {problem}; choose one with --genre-column")
    if named:
        return named[0]
    if len(table.header) <= FALLBACK or id_at == FALLBACK:
        refuse_missing_header(table, None, ())
        if is_named(table, id_at):
            problem = f"column {table.name(id_at)} has a name for genres, but it is the column of ids"
            remedy = f"choose the column of ids with --id-column. The columns are {table.listing()}"
            raise UserError("table-column", f"{table.path}: {problem}; {remedy}")
        raise _no_column(table)
    return FALLBACK


def is_named(table: Table, at: int) -> bool:
    """Return whether the name of a column is in GENRE_NAMES."""
    return tidy(table.header[at]).lower() in GENRE_NAMES


def refuse_missing_header(table: Table, genres_at: int | None, labels: Collection[str], separator: str = "|") -> None:
    """Raise UserError if the first line contains a list, or if its genre cell contains only known ``labels``."""
    header = [name.strip() for name in table.header]
    genres = () if genres_at is None else header[genres_at].split(separator)
    are_labels = labels and genres and {part.strip() for part in genres} <= set(labels)
    if are_labels or any(map(LIST_CELL.fullmatch, header)):
        problem = f"has no header line: its first line has values ({some([repr(name[:40]) for name in header])})"
        remedy = "add a first line with the names of the columns, such as id,genre"
        raise UserError("table-unreadable", f"{table.path} {problem}; {remedy}")


def refuse_unless_lists(
    table: Table, encoding: str, written: int, lists: int, samples: Sequence[Sequence[str]]
) -> None:
    """Raise UserError if column 3 (FALLBACK) does not look like lists of genres.

    written: number of cells that are not empty. lists: number of cells with lists. samples: genres of readable rows.
    """
    if 10 * lists >= written > 0 and 2 * len(samples) >= written and not _mostly_unique(samples, 0.5):
        return
    rows = _peek(table.path, encoding)
    cells = [row[FALLBACK] for row in rows if len(row) > FALLBACK and row[FALLBACK].strip()]
    shown = some([repr(cell[:30]) for cell in dict.fromkeys(cells)], 3) or "it is empty"
    raise _no_column(table, f", and column {table.name(FALLBACK)} does not look like lists of genres ({shown})", rows)


def _no_column(table: Table, why: str = "", rows: Sequence[Sequence[str]] = ()) -> UserError:
    flags = _flag_columns(table, rows)
    hint = f"; {_multi_hot(table, flags)}" if len(flags) > 1 else ""
    remedy = f"choose a column with --genre-column. The columns are {table.listing()}"
    return UserError("table-column", f"{table.path} has no column named genre, label or tag{why}{hint}; {remedy}")


def _peek(path: StoragePath, encoding: str) -> list[list[str]]:
    with open_table(path, encoding) as table:
        return [row for _, row in islice(table.rows, PEEK)]


def _flag_columns(table: Table, rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the positions of the columns that contain only flags such as 0 and 1."""
    columns = ({row[at].strip().lower() for row in rows if at < len(row)} - {""} for at in range(len(table.header)))
    return [at for at, values in enumerate(columns) if values and values <= FLAGS]


def _multi_hot(table: Table, flags: Sequence[int]) -> str:
    names = some([table.name(at) for at in flags])
    remedy = "write the genres of each poster into one column, such as Comedy|Drama"
    return f"the columns {names} contain flags such as 0 and 1: {remedy}"


def doubt_about(
    table: Table, encoding: str, at: int, samples: Sequence[Sequence[str]], chosen: bool, known: Sequence[str] = ()
) -> str:
    """Return a message if column ``at`` probably does not contain genres, else an empty string.

    samples: the genres of every usable row. chosen: whether the user chose the column with --genre-column.
    known: labels that are always accepted, such as the labels of a model.
    """
    labels = Counter(label for genres in samples for label in genres if label not in known)
    if not labels:
        return ""
    column = f"{table.path}: column {table.name(at)}"
    shown = some([repr(label) for label, _ in labels.most_common()], 3)
    if not known and {label.lower() for label in labels} <= FLAGS:
        flags = _flag_columns(table, _peek(table.path, encoding))
        return (
            f"{column} contains flags instead of genres ({shown}); {_multi_hot(table, flags or [at])}, or choose "
            f"another column with --genre-column"
        )
    if doubt := _several_in_one(column, labels, len(samples), known):
        return f"{doubt}; if each of these is one genre, list all genres in a file for --labels"
    if chosen or known:
        return ""
    remedy = f"choose another column with --genre-column, or accept this column with --genre-column {at}"
    doubt = doubt_about_classes(column, labels, samples)
    return f"{doubt}; {remedy}. The columns are {table.listing()}" if doubt else ""


def doubt_about_classes(where: str, labels: Counter[str], samples: Sequence[Sequence[str]]) -> str:
    """Return a message if the labels are probably not genres, else an empty text. ``where`` is the file and column."""
    shown = some([repr(label) for label, _ in labels.most_common()], 3)
    if 2 * sum(n for label, n in labels.items() if NUMBER.fullmatch(label)) > labels.total():
        kind = "years" if all(YEAR.fullmatch(label) for label in labels) else "numbers"
        return f"{where} contains {kind} instead of genres ({shown})"
    if len(samples) > 1 and len({frozenset(genres) for genres in samples}) == 1:
        return f"{where} gives all {len(samples)} posters the same genres: {shown}"
    if _mostly_unique(samples, 0.9):
        return f"{where} gives nearly every poster a different label ({shown})"
    return _several_in_one(where, labels, len(samples), ())


def _mostly_unique(samples: Sequence[Sequence[str]], share: float) -> bool:
    """Return whether ``share`` or more of the posters have only unique labels. False for fewer than MANY posters."""
    labels = Counter(label for genres in samples for label in genres)
    unique = sum(all(labels[label] == 1 for label in genres) for genres in samples)
    return len(samples) >= MANY and unique >= share * len(samples)


def _several_in_one(where: str, labels: Counter[str], samples: int, known: Sequence[str]) -> str:
    """Return a message if at least a tenth of the posters have several genres in one label, else an empty string."""
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
                f"{where} seems to contain several genres in one label: {some([repr(name) for name in joined], 3)}; "
                f"if {mark!r} separates genres, pass --genre-separator {mark!r}. In a list, write one item for each "
                f"genre"
            )
    return ""


def _parts(label: str, mark: str) -> Iterator[str]:
    return (part for piece in label.split(mark) if (part := tidy(piece).lower()))
