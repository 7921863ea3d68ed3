"""UserError, the exception for problems that a user can repair, and functions for the texts of messages."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal

#: Kind of problem. docs/reference/error-codes.md explains each kind and the repair.
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

#: A URL in four groups: scheme, user and password (up to the last @ before the path), host and path, query (up to a
#: space). One slash after the scheme is enough, because ``pathlib`` removes the second slash.
_URL = re.compile(r"([A-Za-z][\w+.-]{0,30}:/+)([^\s/?#]*@)?([^\s?]*)(\?\S*)?", re.ASCII)


class UserError(Exception):
    """A problem that the user can repair, such as bad input or a missing package. The message has one line.

    The command line prints ``error: <message>`` without a traceback and exits with ``status``. Any other exception
    that ends a command is a bug, and its traceback is printed.
    """

    status = 2
    """Exit status of the command. Subclasses may have another status."""

    def __init__(self, code: Code, message: str) -> None:
        """Store the message without the secrets in its URLs. ``code`` is the kind of problem."""
        super().__init__(without_secrets(message))
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), str(self), vars(self))


def _unpickled(kind: type[UserError], message: str, attributes: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    vars(error).update(attributes)
    return error


def one_line(error: object) -> str:
    """Return the text of an exception (or any object) in one line, without secrets in URLs."""
    return without_secrets(" ".join(str(error).split())) or type(error).__name__


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return at most ``count`` known names that are similar to ``name``. Case is ignored.

    Names that begin with ``name`` come first, if it has three characters or more.
    """
    lowered, start = {other.lower(): other for other in known}, name[:100].lower()
    near = [other for other in lowered if len(start) > 2 and other.startswith(start)]
    near += [other for other in get_close_matches(start, lowered, n=count, cutoff=cutoff) if other not in near]
    return [lowered[other] for other in near[:count]]


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr, count: int = 1) -> str:
    """Return the end of a message about an unknown name. It suggests similar names, and is empty if there are none.

    >>> did_you_mean("resnet5O", ["resnet50", "vit"])
    "; did you mean 'resnet50'?"
    """
    near = " or ".join(map(show, nearest(name, known, count)))
    return f"; did you mean {near}?" if near else ""


def without_secrets(text: str) -> str:
    """Return ``text`` without the users, passwords and queries of its URLs.

    >>> without_secrets("GET http://me:secret@host/set?token=abc failed")
    'GET http://host/set?... failed'
    """
    if ":/" not in text:
        return text
    return _URL.sub(_shown, text)


def _shown(url: re.Match[str]) -> str:
    scheme, user, rest, query = url.groups(default="")
    # Remove a user that has a password after a colon, or is an HTTP user (maybe a token). Keep abfs://CONTAINER@ACCOUNT.
    kept = "" if ":" in user or scheme.lower().startswith("http") else user
    return f"{scheme}{kept}{rest}{'?...' if query else ''}"


def printable(text: str) -> str:
    """Return ``text`` with an escape sequence for each character that can control a terminal or reorder a line.

    Escaped characters are control characters except tab and newline (Unicode category Cc), format characters such as
    right-to-left overrides (Cf), lone surrogates from invalid bytes (Cs) and line separators (Zl, Zp).

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isascii() and text.isprintable():
        return text
    # ascii() escapes all letters that are not ASCII, so it is not used.
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in text)


def printable_line(text: str) -> str:
    """Return ``printable(text)`` with escaped line breaks. A message with a file name then stays in one line."""
    return printable(text).replace("\n", "\\n")


def some(names: Sequence[str], limit: int = 5, between: str = ", ") -> str:
    """Join the first ``limit`` names, and add the number of the others: ``a, b and 3 more``."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return between.join(names[:limit]) + more


def _is_control(character: str) -> bool:
    if character in "\t\n\u200c\u200d":  # the last two are needed in Persian and emoji
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
