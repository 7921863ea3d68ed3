"""Words of `posters app` for what a model names: its heading, and the noun for its labels.

``title`` and ``noun`` in labels.json set them. Without these keys, labels are called genres only if most of them are
genres of films.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from toolkit.config.model_files import read_labels
from toolkit.model_folder.folder import ModelFolder

#: Genres of MovieLens, TMDB and IMDb, in lower case and without spaces or punctuation.
FILM_GENRES = frozenset((
    "action", "adventure", "animation", "anime", "biography", "children", "comedy", "crime", "documentary",
    "drama", "family", "fantasy", "filmnoir", "history", "horror", "music", "musical", "mystery", "romance",
    "romantic", "scifi", "sciencefiction", "short", "sport", "superhero", "thriller", "tvmovie", "war", "western",
))  # fmt: skip


@dataclass(frozen=True)
class Wording:
    """Words for the page."""

    title: str
    """Heading of the page."""
    noun: str
    """What one label is, such as ``genre``."""
    thing: str
    """What one picture is: ``poster`` if labels are genres, else ``picture``."""

    @property
    def nouns(self) -> str:
        """The plural of ``noun``."""
        return plural(self.noun)

    @property
    def things(self) -> str:
        """The plural of ``thing``."""
        return plural(self.thing)


def wording_of(folder: ModelFolder) -> Wording:
    """Return the words for a model. Raises UserError if labels.json is damaged."""
    found = read_labels(folder.path)[0]
    known = sum(re.sub(r"[\W_]", "", genre.lower()) in FILM_GENRES for genre in found.genres)
    films = 2 * known >= len(found.genres)
    noun = found.noun or ("genre" if films else "label")
    thing = "poster" if noun == "genre" else "picture"
    return Wording(found.title or f"Which {plural(noun)} does a {thing} show?", noun, thing)


def plural(noun: str) -> str:
    """Return the regular English plural of a noun.

    >>> [plural(noun) for noun in ("genre", "category", "class", "day")]
    ['genres', 'categories', 'classes', 'days']
    """
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if re.search(r"(s|x|z|ch|sh)$", noun) else f"{noun}s"
