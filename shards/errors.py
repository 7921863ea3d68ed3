"""UserError, the one error that users see (what, where, how to repair it), and functions for text safe to print."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal

#: Kind of problem of a UserError. docs/reference/error-codes.md explains each kind and its repair.
Code = Literal[
    # The command line and configurations
    "option-unknown", "option-missing", "option-value", "option-conflict", "config-file",
    # Files, folders and storage
    "path-missing", "path-exists", "path-unreadable", "path-unwritable", "path-locked", "path-name", "disk-full",
    "file-changed", "url-refused", "network",
    # Tables, images and labels
    "table-unreadable", "table-column", "table-row", "images-none", "image-unreadable", "labels-differ",
    "labels-invalid", "samples-repeated",
    # Shards and shard sets
    "tar-damaged", "tar-unsupported", "set-missing", "set-damaged", "set-format", "set-split", "set-other", "cache",
    # Models and their outputs
    "model-missing", "model-damaged", "model-unknown", "model-unfit", "model-other", "weights-refused", "not-finite",
    "predictions-other", "predictions-damaged", "export-unsupported", "export-differs",
    # Runs
    "run-exists", "run-differs", "checkpoint-damaged", "nothing-to-train", "too-many-bad", "out-of-memory",
    # Processes and the environment
    "ranks-differ", "rank-lost", "scheduler-lost", "worker-lost", "tasks-failed", "extra-missing", "environment",
    "device",
]  # fmt: skip

#: A URL: scheme, user and password (up to the last @ before the path), host and path, query (up to a space; it may
#: contain signatures, tokens and quotes). ``pathlib`` may have reduced the two slashes to one.
_URL = re.compile(r"([A-Za-z][\w+.-]{0,30}:/+)([^\s/?#]*@)?([^\s?]*)(\?\S*)?", re.ASCII)


class UserError(Exception):
    """Bad input or a bad environment, explained in one line.

    Command-line entry points print ``error: <message>`` and exit with status 2; no traceback.
    Library callers may catch it. Any other exception that escapes is a bug and keeps its traceback.
    """

    status = 2
    """Exit status. Errors that bad input did not cause may have another one."""

    def __init__(self, code: Code, message: str) -> None:
        """Keep ``message`` without the secrets of its URLs."""
        super().__init__(without_secrets(message))
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self), vars(self))


def _again(kind: type[UserError], message: str, facts: dict[str, Any]) -> UserError:
    """Return a UserError that was pickled in another process."""
    error = kind.__new__(kind, message)
    error.args = (message,)
    vars(error).update(facts)
    return error


def one_line(error: object) -> str:
    """Return the text of an exception (or any object) in one line, without the secrets of URLs."""
    return without_secrets(" ".join(str(error).split())) or type(error).__name__


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return at most ``count`` known names that are similar to ``name``; case does not matter."""
    lowered = {other.lower(): other for other in known}
    return [lowered[near] for near in get_close_matches(name[:100].lower(), lowered, n=count, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr, count: int = 1) -> str:
    """Return the end of a message about an unknown name: a question with similar names. Empty if none is similar.

    >>> did_you_mean("resnet5O", ["resnet50", "vit"])
    "; did you mean 'resnet50'?"
    """
    near = " or ".join(map(show, nearest(name, known, count)))
    return f"; did you mean {near}?" if near else ""


def without_secrets(text: str) -> str:
    """Return ``text`` with the user, password and query of every URL left out.

    >>> without_secrets("GET http://me:secret@host/set?token=abc failed")
    'GET http://host/set?... failed'
    """
    if ":/" not in text:
        return text
    return _URL.sub(_shown, text)


def _shown(url: re.Match[str]) -> str:
    scheme, user, rest, query = url.groups(default="")
    # abfs://CONTAINER@ACCOUNT is an address. A password follows a colon; the user of an HTTP URL may be a token.
    kept = "" if ":" in user or scheme.lower().startswith("http") else user
    return f"{scheme}{kept}{rest}{'?...' if query else ''}"


def printable(text: str) -> str:
    """Return ``text`` with an escape for every character that controls a terminal or reorders a line.

    These are control characters (Unicode category Cc, except tab and newline), format characters (Cf, such as
    right-to-left overrides), lone surrogates (bytes that are not valid text) and line separators.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isascii() and text.isprintable():
        return text
    # ascii() would also escape all letters of other scripts.
    return "".join(c.encode("unicode_escape").decode() if _steers(c) else c for c in text)


def printable_line(text: str) -> str:
    """Return ``printable(text)`` in one line. File names may contain line breaks: these are escaped, too."""
    return printable(text).replace("\n", "\\n")


def some(names: Sequence[str], limit: int = 5, between: str = ", ") -> str:
    """Return the first ``limit`` names, joined, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return between.join(names[:limit]) + more


def _steers(character: str) -> bool:
    if character in "\t\n\u200c\u200d":  # the last two join letters in Persian and emoji
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
