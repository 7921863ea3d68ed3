"""Check whether texts are genres. A message explains each doubt and says how to choose another column or separator."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from shards.dataset.labels import tidy
from shards.errors import some
from shards.tables.genre_cells import is_list
from shards.tables.table import Table

NUMBER = re.compile(r"[-+]?[\d.,\s/:-]+%?")
YEAR = re.compile(r"(18[89]|19\d|20\d)\d(\.0)?")
FLAGS = frozenset({"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n"})

# A label with one of these separators counts as several genres if the parts between the separators fulfil a condition.
#: These are rare in names of genres. Condition: one part is also a label of its own, or a part of another label.
PLAIN_SEPARATORS = (",", ";", "|", "\uff0c", "\u3001", "\u060c", "\u00b7", "\u2022")
#: These are in some names (Sci-Fi/Fantasy). Condition: each part is also a label of its own or a part of another label.
OTHER_SEPARATORS = ("/", " & ", "+", ":", " - ")
#: These are in many names (Film-Noir). Condition: each part is also a label of its own.
WORD_SEPARATORS = ("-", "_", "&", " ")

MANY = 20  # smallest number of posters for which the share of unique labels is checked


def doubt_about(
    table: Table, at: int, samples: Sequence[Sequence[str]], chosen: bool, known: Sequence[str] = ()
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
        remedy = "if each genre has such a column, name these columns with --label-columns"
        return f"{column} contains flags instead of genres ({shown}); {remedy}, or choose another with --genre-column"
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
    if mostly_unique(samples, 0.9):
        return f"{where} gives nearly every poster a different label ({shown})"
    return _several_in_one(where, labels, len(samples), ())


def mostly_unique(samples: Sequence[Sequence[str]], share: float) -> bool:
    """Return whether ``share`` or more of the posters have only unique labels. False for fewer than MANY posters."""
    labels = Counter(label for genres in samples for label in genres)
    unique = sum(all(labels[label] == 1 for label in genres) for genres in samples)
    return len(samples) >= MANY and unique >= share * len(samples)


def _several_in_one(where: str, labels: Counter[str], samples: int, known: Sequence[str]) -> str:
    """Return a message if at least a tenth of the posters have several genres in one label, else an empty string."""
    mark, joined = separating_mark(labels, samples, known)
    if not mark:
        return ""
    return (
        f"{where} seems to contain several genres in one label: {some([repr(name) for name in joined], 3)}; "
        f"if {mark!r} separates genres, pass --genre-separator {mark!r}. In a list, write one item for each genre"
    )


def found_separator(cells: Sequence[str], known: Sequence[str] = ()) -> str:
    """Return the separator of genres in the cells that are not lists: ``|``, or a mark that joins names of genres.

    >>> found_separator(["Drama", "Comedy", "Comedy; Drama", "['War']"])
    ';'
    """
    labels = Counter(cell for cell in cells if cell and not is_list(cell))
    if not labels or any("|" in cell for cell in labels):
        return "|"
    mark, _ = separating_mark(labels, labels.total(), known)
    return mark if mark in (*PLAIN_SEPARATORS, "/") else "|"


def separating_mark(labels: Counter[str], samples: int, known: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Return the mark that separates several genres in one label, and these labels. Empty if there is no such mark.

    labels: count of each label. samples: number of samples, of which at least a tenth must have such labels.
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
            return mark, joined
    return "", []


def _parts(label: str, mark: str) -> Iterator[str]:
    return (part for piece in label.split(mark) if (part := tidy(piece).lower()))
