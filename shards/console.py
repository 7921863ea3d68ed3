"""What commands print: harmless to a terminal, and never the reason why a command's files are missing.

Names, ids and genres come from outside, and ``print`` sends them as they are. So the entry point replaces the two
standard streams for as long as a command runs:

- Text on stdout, and log records on stderr, are made ``printable``. Data for programs goes to ``exact_stdout()``.
- A reader that has gone (``| head``) or a full disk does not end the command: it goes on to write its files, and the
  entry point learns about it at the end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.text import Text

from shards.errors import printable, printable_line


class Output:
    """A text stream whose ``write`` and ``flush`` raise no OSError; the first one is kept as ``failure``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., object], *given: str) -> None:
        if self.failure is not None:
            return
        try:
            action(*given)
        except OSError as error:
            self.failure = error
            # What lies in the stream's buffer would be written again, and fail again, when the interpreter ends.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def problem(self) -> str | None:
        """Why stdout did not take all that was printed; None if it did, or if its reader wanted no more."""
        self.flush()
        if self.failure is None or self.failure.errno in (errno.EPIPE, errno.ECONNRESET):
            return None
        why = f"standard output cannot be written ({self.failure.strerror or self.failure})"
        return f"{why}; what the command shows is lost, the files that it writes are whole"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _ForPeople:
    """Text that is made printable on its way to ``exact``."""

    def __init__(self, exact: TextIO) -> None:
        self.exact = exact
        #: rich asks for it: its own escape codes must pass (see console()).
        self.rich_proxied_file = exact

    def write(self, text: str) -> int:
        return self.exact.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.exact, name)


def for_people(stream: TextIO) -> TextIO:
    """``stream`` for what others print: all of it is made printable, so no progress bar goes there."""
    return cast(TextIO, _ForPeople(stream))


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """Replace sys.stdout and sys.stderr as described above until the block ends; yields the former."""
    before, plain = (sys.stdout, sys.stderr), warnings.formatwarning
    exact, said = Output(_encoding_all(sys.stdout)), Output(_encoding_all(sys.stderr))
    sys.stdout, sys.stderr = for_people(cast(TextIO, exact)), cast(TextIO, said)
    warnings.formatwarning = lambda *args, **options: printable(plain(*args, **options))
    try:
        yield exact
    finally:
        exact.flush()
        said.flush()
        (sys.stdout, sys.stderr), warnings.formatwarning = before, plain


def _encoding_all(stream: TextIO | None) -> TextIO:
    """The stream, which writes what its encoding lacks as an escape; one to nowhere if it was closed from the start."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def exact_stdout() -> IO[str]:
    """Where data for programs is printed, character by character; on a terminal they are made printable, too."""
    out = sys.stdout
    return out if out.isatty() else getattr(out, "exact", out)


class PrintableFormatter(logging.Formatter):
    """Log records without what steers a terminal. Line breaks of arguments, such as names, are escaped, too."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = logging.makeLogRecord(record.__dict__)
            record.args = tuple(
                value if isinstance(value, (int, float)) else printable_line(str(value))
                for value in cast("tuple[object, ...]", record.args)
            )
        return printable(super().format(record))


class SafeConsole(Console):
    """A rich console that makes the text of tables printable, and takes none of it for markup."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Any:
        if isinstance(renderable, Text) and (plain := printable(renderable.plain)) != renderable.plain:
            renderable = Text(plain, renderable.style)
        return super().render(renderable, options)


def console(file: IO[str] | None = None, width: int | None = None) -> SafeConsole:
    """The console for tables. file: default stdout; width: columns, default the terminal's, and no wrapping."""
    return SafeConsole(file=file, width=width, soft_wrap=width is None, markup=False, emoji=False)
