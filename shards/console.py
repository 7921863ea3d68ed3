"""Output of commands that is safe for a terminal. A write error on stdout does not stop a command.

Names, ids and genres come from a user's files and can contain control characters. So the entry point of the command
line replaces stdout and stderr while a command runs:

- Control characters are escaped on stdout and in log records, but not in data for programs (see ``exact_stdout``).
- A closed pipe (``| head``) or a full disk does not end the command. The command still writes its files, and the
  entry point reports the write error at the end.
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
from typing import IO, Any, Literal, TextIO, cast

from rich.console import Console
from rich.text import Text

from shards.errors import printable, printable_line


class Output:
    """A text stream whose ``write`` and ``flush`` do not raise OSError. ``failure`` is the first OSError, or None."""

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
            # Python flushes the stream again at exit. It then writes to the null device, so this cannot fail.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def problem(self) -> str | None:
        """Return a message if text could not be written. None if all text was written or the reader closed the pipe."""
        self.flush()
        if self.failure is None or self.failure.errno in (errno.EPIPE, errno.ECONNRESET):
            return None
        why = f"standard output cannot be written ({self.failure.strerror or self.failure})"
        return f"{why}; the printed text is incomplete, but the files of the command are complete"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _ForPeople:
    """A stream that escapes control characters in text, and then writes the text to the stream ``exact``."""

    def __init__(self, exact: TextIO) -> None:
        self.exact = exact
        #: rich writes to the stream in this attribute, so the escape codes of rich are not escaped.
        self.rich_proxied_file = exact

    def write(self, text: str) -> int:
        return self.exact.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.exact, name)


def for_people(stream: TextIO) -> TextIO:
    """Return a stream that escapes control characters in text. Progress bars do not work on this stream."""
    return cast(TextIO, _ForPeople(stream))


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """Replace sys.stdout and sys.stderr until the block ends. Yield the Output that receives the text of stdout."""
    before, plain = (sys.stdout, sys.stderr), warnings.formatwarning
    exact, errors = Output(_encoding_all(sys.stdout)), Output(_encoding_all(sys.stderr))
    sys.stdout, sys.stderr = for_people(cast(TextIO, exact)), cast(TextIO, errors)
    warnings.formatwarning = lambda *args, **options: printable(plain(*args, **options))
    try:
        yield exact
    finally:
        exact.flush()
        errors.flush()
        (sys.stdout, sys.stderr), warnings.formatwarning = before, plain


def _encoding_all(stream: TextIO | None) -> TextIO:
    """Escape characters that the encoding of ``stream`` cannot write. If ``stream`` is None, return a null stream."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def exact_stdout() -> IO[str]:
    """Return the stream for data that programs read. Control characters are escaped only on a terminal."""
    out = sys.stdout
    return out if out.isatty() else getattr(out, "exact", out)


class PrintableFormatter(logging.Formatter):
    """A log formatter that escapes control characters. In the arguments of a message it also escapes line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = logging.makeLogRecord(record.__dict__)
            record.args = tuple(
                value if isinstance(value, (int, float)) else printable_line(str(value))
                for value in cast("tuple[object, ...]", record.args)
            )
        return printable(super().format(record))


class SafeConsole(Console):
    """A rich console that escapes control characters in the text of tables."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Any:
        if isinstance(renderable, Text) and (plain := printable(renderable.plain)) != renderable.plain:
            renderable = Text(plain, renderable.style)
        return super().render(renderable, options)


def console(file: IO[str] | None = None, width: int | None = None) -> SafeConsole:
    """Return a console that prints to ``file`` (default stdout). Lines are wrapped if ``width`` is given.

    The text has colours and styles if ``file`` is a terminal and $NO_COLOR is not set.
    """
    colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return SafeConsole(file=file, width=width, soft_wrap=width is None, markup=False, emoji=False, color_system=colors)
