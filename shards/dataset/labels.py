"""The ordered genres that shards, checkpoints and models share. Different spellings of a genre are merged."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec

from shards.errors import UserError, some
from shards.schema import check_as
from shards.storage.files import fingerprint, read_json
from shards.storage.paths import StoragePath

MAX_GENRES = 32_767  # the index stores the columns of genres as int16

#: Invisible characters that are kept. They join letters in Persian, and they join the parts of an emoji.
JOINERS = "\u200c\u200d"
#: Invisible characters outside Unicode's category of format characters: fillers, blanks, variation selectors.
FILLERS = frozenset(map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10))))
#: The plain character for each typographic form of the hyphen and the apostrophe.
PLAIN_FORMS = {ord(c): "-" for c in "\u2010\u2011\u2012\u2013\u2212"} | {ord(c): "'" for c in "\u2018\u2019\u02bc"}

#: Schema of the genres in a JSON file (shards/schema.py). ``genres_problem`` has further checks.
Genres = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]], msgspec.Meta(max_length=MAX_GENRES)
]


def genres_problem(genres: Sequence[str]) -> str:
    """Return a message if genres are not valid names of columns. Empty if they are valid."""
    if not all(genre.strip() for genre in genres):
        return "a genre has no visible character"
    if len(set(genres)) < len(genres):
        return "it names a genre twice"
    return ""


@dataclass(frozen=True)
class LabelSet:
    """Genres in the order of the columns of a multi-hot vector."""

    genres: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.genres) > MAX_GENRES:
            what = f"{len(self.genres)} different genres are over the limit of {MAX_GENRES}"
            raise UserError("table-column", f"{what}; is --genre-column the right column?")

    @classmethod
    def from_samples(cls, genre_lists: Iterable[Sequence[str]]) -> LabelSet:
        """Return the label set of all genres that occur in the samples, in alphabetical order."""
        return cls(tuple(sorted({genre for genres in genre_lists for genre in genres})))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on the genres and their order."""
        return fingerprint(list(self.genres))[:16]

    @cached_property
    def index(self) -> dict[str, int]:
        """Column of each genre."""
        return {genre: column for column, genre in enumerate(self.genres)}

    def __len__(self) -> int:
        return len(self.genres)

    def columns(self, genres: Iterable[str]) -> list[int]:
        """Return the sorted column numbers of the genres. Genres that are not in this label set are ignored."""
        return sorted(self.index[genre] for genre in genres if genre in self.index)

    def multi_hot(self, columns: Iterable[int]) -> list[int]:
        """Return a list of 0 and 1, one per genre."""
        wanted = set(columns)
        return [int(column in wanted) for column in range(len(self))]


def tidy(genre: str) -> str:
    """Return a genre in Unicode's NFC form, with single spaces and without invisible characters except JOINERS.

    >>> tidy(" Film\\u00a0 Noir\\u200b ")
    'Film Noir'
    """
    seen = "".join(c for c in genre if c in JOINERS or unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFC", seen).split()).strip(JOINERS)


def merge_spellings(
    samples: Sequence[tuple[str, ...]], known: Sequence[str] = ()
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Merge genres that differ only in case, spaces, invisible characters or Unicode form into one spelling.

    samples: the genres of every sample. known: labels whose spelling is kept, such as the labels of a model.
    Returns the samples with merged genres, and a message for each merged genre. If ``known`` has one of the spellings,
    that spelling is kept. If ``known`` has several, these spellings are not merged. If it has none, the most frequent
    spelling after ``tidy`` is kept. Of equally frequent spellings, the first in alphabetical order is kept.
    """
    counts = Counter(genre for genres in samples for genre in set(genres))
    spellings: dict[str, dict[str, int]] = {}
    for genre in sorted(counts):
        spellings.setdefault(_essence(genre), {})[genre] = counts[genre]
    labels: dict[str, list[str]] = {}
    for label in known:
        labels.setdefault(_essence(label), []).append(label)
    kept: dict[str, str] = {}
    lines = []
    for essence, found in spellings.items():
        given = labels.get(essence, [])
        if len(given) > 1:  # ``known`` has several of these spellings, so they are separate genres
            continue
        label = given[0] if given else _most_frequent(found)
        kept.update(dict.fromkeys(found, label))
        if others := [f"{_shown(genre)} ({count})" for genre, count in found.items() if genre != label]:
            kept_as = f"genre {_shown(label)} ({found.get(label, 0)} samples)"
            lines.append(f"{kept_as} is also written {', '.join(others)}: merged")
    return [tuple(dict.fromkeys(kept.get(genre, genre) for genre in genres)) for genres in samples], lines


def _essence(genre: str) -> str:
    """Return a key that is equal for all spellings of a genre."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", genre).casefold()).translate(PLAIN_FORMS)
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c) != "Cf" and c not in FILLERS)


def _most_frequent(found: dict[str, int]) -> str:
    counts: Counter[str] = Counter()
    for genre, count in found.items():
        counts[tidy(genre)] += count
    return min(counts, key=lambda genre: (-counts[genre], genre))


def _shown(genre: str) -> str:
    """Return the genre in quotes. Use escapes if some of its characters look like other characters."""
    plain = genre == unicodedata.normalize("NFKC", genre) and not FILLERS.intersection(genre)
    return repr(genre) if plain else ascii(genre)


def difference(left_name: str, left: LabelSet, right_name: str, right: LabelSet) -> str:
    """Describe the difference between two label sets in a few words."""
    only_left = [repr(g) for g in left.genres if g not in right.index]
    only_right = [repr(g) for g in right.genres if g not in left.index]
    if only_left or only_right:
        sides = ((left_name, only_left), (right_name, only_right))
        return "; ".join(f"only in {name}: {some(only)}" for name, only in sides if only)
    first = next(i for i, (a, b) in enumerate(zip(left.genres, right.genres, strict=True)) if a != b)
    two = f"{left.genres[first]!r} in {left_name}, {right.genres[first]!r} in {right_name}"
    return f"same genres in another order, with the first difference at column {first}: {two}"


def require_same(left_name: str, left: LabelSet, right_name: str, right: LabelSet) -> None:
    """Raise UserError if two label sets differ. With different sets, outputs get the names of wrong genres."""
    if left.fingerprint != right.fingerprint:
        in_left, in_right = f"{len(left)} genres ({left.fingerprint})", f"{len(right)} ({right.fingerprint})"
        what = f"labels differ: {left_name} has {in_left}, {right_name} has {in_right}"
        raise UserError("labels-differ", f"{what}; {difference(left_name, left, right_name, right)}")


def read_labels(path: StoragePath) -> LabelSet:
    """Return the genres in a manifest, a labels.json, or a JSON file with a list of them. Raises UserError."""
    raw = read_json(path, "labels file")
    holder = raw.get("labels", raw) if isinstance(raw, dict) else {"genres": raw}
    remedy = 'give a model\'s labels.json, a manifest.json, or a JSON list such as ["Drama", "War"]'
    if not isinstance(holder, dict) or not holder.get("genres"):
        raise UserError("labels-invalid", f"{path} has no list of genres; {remedy}")
    genres = check_as(holder["genres"], Genres, path, "list of genres", remedy, "labels-invalid")
    if problem := genres_problem(genres):
        raise UserError("labels-invalid", f"{path} is not a valid list of genres: {problem}; {remedy}")
    return LabelSet(tuple(genres))
