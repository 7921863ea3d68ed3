"""The one error that users see: a line that says what, where and how to repair it; text that is safe to print."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal

#: What kind of problem a UserError is; docs/reference/error-codes.md says what each means, and what to do.
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
    # Models and what they give
    "model-missing", "model-damaged", "model-unknown", "model-unfit", "model-other", "weights-refused", "not-finite",
    "predictions-other", "predictions-damaged", "export-unsupported", "export-differs",
    # Runs
    "run-exists", "run-differs", "checkpoint-damaged", "nothing-to-train", "too-many-bad", "out-of-memory",
    # Processes and the environment
    "ranks-differ", "rank-lost", "scheduler-lost", "worker-lost", "tasks-failed", "extra-missing", "environment",
    "device",
]  # fmt: skip

#: A URL, also one that was taken for a path and has one slash left: scheme, user and password (up to the last @ before
#: its path), host and path, query (signatures and tokens; up to a space, for quotes may be part of it).
_URL = re.compile(r"([A-Za-z][\w+.-]{0,30}:/+)([^\s/?#]*@)?([^\s?]*)(\?\S*)?", re.ASCII)


class UserError(Exception):
    """Bad input or a bad environment, explained in one line.

    Command-line entry points print ``error: <message>`` and exit with status 2; no traceback.
    Library callers may catch it. Anything else that escapes is a bug of ours and keeps its traceback.
    """

    status = 2
    """Exit status. Another one for what is nobody's bad input."""

    def __init__(self, code: Code, message: str) -> None:
        """``message`` may name URLs: what is secret in them is left out."""
        super().__init__(without_secrets(message))
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self), vars(self))


def _again(kind: type[UserError], message: str, facts: dict[str, Any]) -> UserError:
    """A UserError that came from another process."""
    error = kind.__new__(kind, message)
    error.args = (message,)
    vars(error).update(facts)
    return error


def one_line(error: object) -> str:
    """An exception's (or any) text folded into one line, without the passwords of URLs."""
    return without_secrets(" ".join(str(error).split())) or type(error).__name__


def nearest(name: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names most like ``name``, whatever their case; at most ``count``."""
    lowered = {other.lower(): other for other in known}
    return [lowered[near] for near in get_close_matches(name[:100].lower(), lowered, n=count, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr, count: int = 1) -> str:
    """The end of a message about an unknown name: the names that may have been meant; empty if none is near.

    >>> did_you_mean("resnet5O", ["resnet50", "vit"])
    "; did you mean 'resnet50'?"
    """
    near = " or ".join(map(show, nearest(name, known, count)))
    return f"; did you mean {near}?" if near else ""


def without_secrets(text: str) -> str:
    """``text`` with every URL shown without its user, password and query.

    >>> without_secrets("GET 'http://me:secret@host/set?token=abc' failed")
    "GET 'http://host/set?... failed"
    """
    if ":/" not in text:
        return text
    return _URL.sub(_shown, text)


def _shown(url: re.Match[str]) -> str:
    scheme, user, rest, query = url.groups(default="")
    # abfs://CONTAINER@ACCOUNT names a place; a password has a colon before it, and HTTP's user may be a token.
    kept = "" if ":" in user or scheme.lower().startswith("http") else user
    return f"{scheme}{kept}{rest}{'?...' if query else ''}"


def printable(text: str) -> str:
    """``text`` for a terminal: characters that steer it or reorder a line are written as escapes.

    These are control characters (Unicode category Cc, but tab and newline), format characters (Cf, such as
    right-to-left overrides), lone surrogates, which stand for bytes that are no text, and line separators.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isascii() and text.isprintable():
        return text
    # Not ascii(): it would escape every other script, too.
    return "".join(c.encode("unicode_escape").decode() if _steers(c) else c for c in text)


def printable_line(text: str) -> str:
    """As ``printable``, in one line: line breaks, which names of files may hold, are escaped, too."""
    return printable(text).replace("\n", "\\n")


def some(names: Sequence[str], limit: int = 5, between: str = ", ") -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return between.join(names[:limit]) + more


def _steers(character: str) -> bool:
    if character in "\t\n\u200c\u200d":  # the last two join letters in Persian and emoji
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
