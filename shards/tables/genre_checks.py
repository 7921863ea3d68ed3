"""Check whether texts are genres. A message explains each doubt and says how to choose another column or separator."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from shards.dataset.labels import tidy
from shards.errors import some
from shards.tables.genre_cells import DOUBTFUL_WORDS, is_list, parse_genres
from shards.tables.table import Table

log = logging.getLogger(__name__)

NUMBER = re.compile(r"[-+]?[\d.,\s/:-]+%?")
YEAR = re.compile(r"(18[89]|19\d|20\d)\d(\.0)?")
DOUBTFUL = re.compile("|".join(sorted(DOUBTFUL_WORDS)), re.IGNORECASE)
FLAGS = frozenset({"0", "1", "0.0", "1.0", "true", "false", "t", "f", "yes", "no", "y", "n"})

# A label with one of these separators counts as several genres if the parts between the separators fulfil a condition.
#: These are rare in names of genres. Condition: one part is also a label of its own, or a part of another label.
PLAIN_SEPARATORS = (",", ";", "|", "\uff0c", "\u3001", "\u060c", "\u00b7", "\u2022")
#: These are in some names (Sci-Fi/Fantasy). Condition: each part is also a label of its own or a part of another label.
OTHER_SEPARATORS = ("/", "<br>", "<br/>", " & ", " and ", "+", ":", " - ", " > ", "~", "^", "*")
#: These are in many names (Film-Noir). Condition: each part is also a label of its own, or the labels are lists.
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
        return f"{doubt}; if each of these is one genre, list all genres in a JSON file for --labels"
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


def words_left_out(cells: Sequence[str], separator: str, known: Collection[str] = ()) -> Counter[str]:
    """Return the number of cells of each word such as None that is read as "no genre".

    known: words that are genres, in lower case (see genre_cells.parse_genres).
    """
    counts: Counter[str] = Counter()
    for text, count in Counter(filter(DOUBTFUL.search, cells)).items():
        try:
            words = parse_genres(text, separator, DOUBTFUL_WORDS)
        except ValueError:
            continue  # the row is rejected with this error
        out = {word for word in words if (lower := tidy(word).lower()) in DOUBTFUL_WORDS and lower not in known}
        counts.update(dict.fromkeys(out, count))
    return counts


def warn_of_words(where: str, counts: Counter[str], remedy: str) -> None:
    """Log a warning about the words of ``words_left_out``. Nothing is logged if there are none."""
    if counts:
        shown = some([f"{word!r} ({count})" for word, count in counts.most_common()])
        log.warning("%s: these texts are read as a missing genre: %s; if one is a genre, %s", where, shown, remedy)


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
        recurs = single | {part for part in uses if uses[part] > 1}
        if mark in WORD_SEPARATORS and not _are_lists(parts, recurs, labels, samples):
            recurs = single
        enough = any if mark in PLAIN_SEPARATORS else all
        joined = [label for label, found in parts.items() if enough(part in recurs for part in found)]
        sure = mark in PLAIN_SEPARATORS and all(part in single for label in joined for part in parts[label])
        many = 10 * sum(labels[label] for label in joined) >= samples and 2 * len(joined) >= len(parts)
        if many and len(joined) > (0 if sure else 1):
            return mark, joined
    return "", []


def _are_lists(parts: Mapping[str, Sequence[str]], recurs: Collection[str], labels: Counter[str], samples: int) -> bool:
    """Return whether labels of several words are lists of genres, even if no label is a single genre.

    parts: words of each label. recurs: words that are in several labels. Most samples must have such a label, and most
    of these labels must have only words of ``recurs``. There must be more labels than words. A third of the words must
    begin a label and end another label. This distinguishes lists from names such as Romantic Comedy and Action Comedy.
    """
    lists = {label: words for label, words in parts.items() if all(word in recurs for word in words)}
    words = {word for found in lists.values() for word in found}
    both = {found[0] for found in lists.values()} & {found[-1] for found in lists.values()}
    most = 2 * sum(labels[label] for label in lists) > samples and 10 * len(lists) >= 8 * len(parts)
    return most and len(lists) > len(words) and 3 * len(both) >= len(words)


def _parts(label: str, mark: str) -> Iterator[str]:
    return (part for piece in label.split(mark) if (part := tidy(piece).lower()))
