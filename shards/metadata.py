"""Users' CSVs: which poster has which genres. Every row becomes a sample or a rejection with its reason."""

from __future__ import annotations

import ast
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from shards.csv_text import write_for_people
from shards.errors import UserError, one_line
from shards.files import atomic_write
from shards.places import Place
from shards.table import open_table

#: MovieLens writes this where a film has no genre.
NO_GENRE_WORDS = {"", "none", "nan", "null", "n/a", "\\n", "(no genres listed)"}

#: Longer cells are no genres; they are not given to a parser.
MAX_GENRE_TEXT = 100_000

REJECTED_COLUMNS = ("id", "reason", "detail")


@dataclass(frozen=True)
class Rejection:
    """A row or image that was left out, and why. ``reason`` is one of few words, ``detail`` is free."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One usable CSV row."""

    id: str
    genres: tuple[str, ...]


@dataclass
class Metadata:
    """A CSV that was read: usable rows in file order, and the rejected ones."""

    rows: list[Row] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    id_column: str = ""
    genre_column: str = ""


def read_metadata(
    path: Place,
    id_column: str = "0",
    genre_column: str = "3",
    separator: str = "|",
    encoding: str = "utf-8-sig",
) -> Metadata:
    """Read ids and genre lists from a CSV with a header line.

    Columns are named by header or by number from 0. Raises UserError if the file or a column is missing;
    a bad row is a Rejection, never an error.
    """
    if not separator:
        raise UserError("--genre-separator must not be empty")
    result = Metadata()
    seen: set[str] = set()
    with open_table(path, encoding, {"--id-column": id_column, "--genre-column": genre_column}) as table:
        result.id_column, result.genre_column = table.names
        id_at, genres_at = table.positions
        for line, row in table.rows:
            _read_row(row, id_at, genres_at, separator, f"line {line}", seen, result)
    return result


def _read_row(
    row: Sequence[str], id_at: int, genres_at: int, separator: str, where: str, seen: set[str], out: Metadata
) -> None:
    sample_id = row[id_at].strip() if id_at < len(row) else ""
    if problem := id_problem(sample_id):
        out.rejected.append(Rejection(sample_id, "bad id", f"{where}: {problem}"))
    elif sample_id in seen:
        out.rejected.append(Rejection(sample_id, "repeated id", f"{where}; the first row with it counts"))
    else:
        seen.add(sample_id)
        if genres_at >= len(row):
            out.rejected.append(Rejection(sample_id, "no genres", f"{where}: the row has {len(row)} columns"))
            return
        try:
            genres = parse_genres(row[genres_at], separator)
        except ValueError as error:
            out.rejected.append(Rejection(sample_id, "unparsable genres", f"{where}: {one_line(error)}"))
            return
        if genres:
            out.rows.append(Row(sample_id, genres))
        else:
            out.rejected.append(Rejection(sample_id, "no genres", where))


def id_problem(sample_id: str) -> str:
    """Why this id cannot name a file inside the image folder; empty if it can."""
    if not sample_id:
        return "empty id"
    if any(unicodedata.category(character) == "Cc" for character in sample_id):
        return "control characters in the id"
    if "\\" in sample_id or sample_id[1:2] == ":":
        return "the id would leave the image folder"
    parts = PurePosixPath(sample_id).parts
    if sample_id.startswith("/") or ".." in parts or not parts:
        return "the id would leave the image folder"
    if len(sample_id.encode()) > 240:
        return "the id is too long for a file name"
    return ""


def parse_genres(text: str, separator: str = "|") -> tuple[str, ...]:
    """Genres from ``"['Action', 'Drama']"``, ``'["Action", "Drama"]'`` or ``Action|Drama``.

    Lists are parsed with json or ``ast.literal_eval``, never eval. Order is kept, doubles are dropped.
    Raises ValueError for what is none of these.
    """
    text = text.strip()
    if len(text) > MAX_GENRE_TEXT:
        raise ValueError(f"{len(text)} characters of genres")
    if text.lower() in NO_GENRE_WORDS:
        return ()
    if text[0] in "[({":
        values = _parse_list(text)
    elif separator in text or "," not in text:
        values = text.split(separator)
    else:
        raise ValueError(
            f"{text[:60]!r} has commas but is no list; if they separate genres, pass --genre-separator ','"
        )
    genres = [unicodedata.normalize("NFC", value).strip() for value in values]
    if any(unicodedata.category(character) == "Cs" for genre in genres for character in genre):
        raise ValueError(f"{text[:60]!r} holds half a character (a lone surrogate)")  # no file could hold it
    return tuple(dict.fromkeys(genre for genre in genres if genre.lower() not in NO_GENRE_WORDS))


def _parse_list(text: str) -> list[str]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        try:
            values = ast.literal_eval(text)
        # literal_eval's documented failures on malformed or hostile text
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"not a list of genres: {text[:60]!r}") from None
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"not a list of strings: {text[:60]!r}")
    return list(values)


def write_rejected(path: Place, rejected: Sequence[Rejection]) -> None:
    """Write rejected.csv (id, reason, detail), atomically; its text is read back by csv_text.unescaped."""
    rows = [REJECTED_COLUMNS, *((r.id, r.reason, r.detail) for r in rejected)]
    with atomic_write(path, "w") as stream:
        write_for_people(stream, rows, end="\r\n")


def first_reasons(rejected: Sequence[Rejection]) -> str:
    """The rejections in one line: counts by reason, and the first one as an example."""
    if not rejected:
        return "the file has a header line and nothing else"
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejected).most_common())
    first = rejected[0]
    return f"{counts}; the first is id {first.id!r}: {first.reason} ({first.detail})"
