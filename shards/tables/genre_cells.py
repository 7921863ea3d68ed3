"""Parse a CSV cell of genres: names with separators, or a list in the notation of Python, NumPy, pandas or JSON."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
import warnings
from collections.abc import Collection
from typing import Any

from shards.dataset.labels import tidy

#: Cells that mean "no genre", in lower case. The last text is from the data set MovieLens.
NO_GENRE_WORDS = {"", "none", "nan", "null", "n/a", "\\n", "(no genres listed)"}
#: Those that can also be the name of a genre.
DOUBTFUL_WORDS = frozenset({"none", "nan", "null", "n/a"})
#: Longest cell that is parsed, in characters.
MAX_GENRE_TEXT = 100_000
#: The beginning of a list in a call, such as ``array([...], dtype=object)``, ``list([...])`` or ``set([...])``.
WRAPPER = re.compile(r"(?:np\.|numpy\.)?(?:array|list|tuple|set|frozenset)\(")
DTYPE = re.compile(r",\s*dtype=[\w.<>='\" ]{1,40}$")

STRING = r"[uU]?(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
#: A string in the notation of NumPy 2: ``np.str_('Drama')``.
NUMPY_STRING = re.compile(rf"\bn(?:p|umpy)\.str_\(({STRING})\)", re.DOTALL)
TOKEN = re.compile(rf"(?P<space>\s+)|(?P<comma>,)|(?P<string>{STRING})|(?P<other>[^\s,'\"]+)|(?P<open>.)", re.DOTALL)

#: A text that is not a name: a text in quotes, a piece of a list that was cut at a separator, or deque(['Drama']).
QUOTED = re.compile(
    r"(['\"]).*\1|[\u201c\u201e\u2018\u00ab].*[\u201d\u201c\u2019\u00bb]|\[['\"].*|.*['\"]\]|[\w.]+\(.*['\"][^()]*\)",
    re.DOTALL,
)

SHORTENED = "{!r} was shortened when it was printed; write all genres"
PARTNERS = {"[": "]", "(": ")", "{": "}"}


def parse_genres(text: str, separator: str = "|", known: Collection[str] = ()) -> tuple[str, ...]:
    """Parse ``"['Action', 'Drama']"``, ``"['Action' 'Drama']"`` (NumPy), ``'["Action"]'`` or ``Action|Drama``.

    Sets, tuples, ``array([...], dtype=object)`` and lists of dicts with a ``name`` (TMDB) are also accepted. No code in
    the text is executed. The order of the genres is kept. Repeated genres are dropped. Words that mean "no genre"
    (NO_GENRE_WORDS) are also dropped, unless ``known`` has them in lower case. Raises ValueError for other or ambiguous
    texts. The error message says what to write instead.
    """
    text = text.strip()
    if len(text) > MAX_GENRE_TEXT:
        raise ValueError(f"the cell has {len(text)} characters, over {MAX_GENRE_TEXT}")
    if text.lower() in NO_GENRE_WORDS and text.lower() not in known:
        return ()
    if is_list(text):
        values = _parse_list(text)
    elif separator in text or "," not in text:
        values = text.split(separator)
        if any(QUOTED.fullmatch(value.strip()) for value in (text, *values)):
            raise ValueError(f"{text[:60]!r} has quotes like a list, but is not a list; write ['Action', 'Drama']")
    else:
        raise ValueError(
            f"{text[:60]!r} has commas but is not a list; if commas separate genres, pass --genre-separator ','"
        )
    genres = [value.strip(" \t\r\n\f\v") for value in values]
    categories = {unicodedata.category(character) for genre in genres for character in genre}
    if "Cs" in categories:
        raise ValueError(f"{text[:60]!r} contains half a character (a lone surrogate)")  # such text cannot be encoded
    if "Cc" in categories:
        raise ValueError(
            f"{text[:60]!r} contains a line break or another control character in a genre; separate genres by |, or "
            f"pass the encoding of the file, such as --encoding cp1252"
        )
    if any(genre in ("...", "\u2026") for genre in genres):
        raise ValueError(SHORTENED.format(text[:60]))
    words = ((genre, tidy(genre).lower()) for genre in genres)
    return tuple(dict.fromkeys(genre for genre, word in words if word not in NO_GENRE_WORDS or word in known))


def is_list(text: str) -> bool:
    """Return whether a cell begins like a list. The cell must have no spaces around its text."""
    return text[:1] in PARTNERS or WRAPPER.match(text) is not None


def _parse_list(text: str) -> list[str]:
    if wrapper := WRAPPER.match(text):
        text = DTYPE.sub("", text[wrapper.end() : -1]).strip() if text.endswith(")") else text
        if not text:
            return []  # set()
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return _parse_python(NUMPY_STRING.sub(r"\1", text))
    return _names(values, text)


def _parse_python(text: str) -> list[str]:
    """Parse a list in the notation of Python or NumPy.

    Python reads ``['Action' 'Drama']`` as one string. So adjacent strings are handled before Python parses the text.
    """
    tokens = []
    for match in TOKEN.finditer(text[1:-1]):
        if match.lastgroup == "open":  # a quote is not closed: stop, because a longer search takes quadratic time
            raise ValueError(f"a quote is not closed in {text[:60]!r}; write ['Action', 'Drama']")
        if match[0] == "...":
            raise ValueError(SHORTENED.format(text[:60]))
        tokens.append((match.lastgroup, match[0]))
    kinds = "".join({"space": " ", "comma": ",", "string": "s"}.get(kind or "", "x") for kind, _ in tokens)
    flat = PARTNERS.get(text[0]) == text[-1] and "x" not in kinds
    strings = [token for kind, token in tokens if kind == "string"]
    if "ss" in kinds:
        raise ValueError(
            f'{text[:60]!r} has two quotes side by side: write "Children\'s" for a quote inside a name, and a comma '
            f"between names"
        )
    if flat and text[0] == "[" and "," not in kinds and len(strings) > 1:
        return [_literal(string, text) for string in strings]  # NumPy writes lists without commas
    if "s s" in kinds:
        raise ValueError(f"{text[:60]!r} lacks a comma between two names; write ['Action', 'Drama']")
    if flat and re.fullmatch(r"(s(,s)*,?)?", kinds.replace(" ", "")):
        return [_literal(string, text) for string in strings]  # literal_eval loses the order of a set
    return _names(_literal(text, text), text)


def _literal(part: str, text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown escapes such as \d cause warnings
            return ast.literal_eval(part)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all documented errors of literal_eval
        raise ValueError(f"not a list of genres: {text[:60]!r}; write ['Action', 'Drama'] or Action|Drama") from None


def _names(values: Any, text: str) -> list[str]:
    if isinstance(values, (list, tuple)):
        if all(isinstance(value, str) for value in values):
            return list(values)
        if all(isinstance(value, dict) and isinstance(value.get("name"), str) for value in values):
            return [value["name"] for value in values]  # TMDB: [{'id': 18, 'name': 'Drama'}]
    raise ValueError(f"not a list of strings: {text[:60]!r}; write names, such as ['Action', 'Drama']")
