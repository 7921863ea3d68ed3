"""Lines of the log: text, which has colours on a terminal, or one JSON object per line.

A record can have the attribute ``shown``, an instance of `Shown`. For example, the line of an epoch has a style on a
terminal, and its JSON object has the figures of the epoch.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, Any, Literal

from rich.text import Text

from shards.console import PrintableFormatter, console
from shards.errors import one_line, printable, printable_line
from shards.progress import aside

Form = Literal["text", "json", "quiet"]
#: Style of a line on a terminal, for levels from WARNING on.
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


@dataclass(frozen=True)
class Shown:
    """How a record is shown. Pass it as ``extra={"shown": Shown(...)}`` to a logger."""

    style: str = ""
    """Style of rich for the line on a terminal."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the JSON object. They replace keys that every object has, such as ``message``."""
    always: bool = False
    """Whether the line is printed in the form "quiet" as well."""
    text_only: bool = False
    """Whether the line is left out in the form "json", because another object has its facts."""


def shown(record: logging.LogRecord) -> Shown:
    """Return how a record is shown."""
    found = getattr(record, "shown", None)
    return found if isinstance(found, Shown) else Shown()


class JsonFormatter(logging.Formatter):
    """Converts a record to one line with a JSON object. Text is ASCII with escapes, so it is safe on a terminal."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "rank": self.rank,
            "logger": record.name,
            "message": record.getMessage(),
            **shown(record).facts,
        }
        if record.exc_info and record.exc_info[0] is not None:
            found["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps({key: _finite(value) for key, value in found.items()}, default=one_line)


def _finite(value: Any) -> Any:
    """Return None for NaN and infinite numbers, which JSON does not have. Return other values unchanged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class LineHandler(logging.StreamHandler):
    """Writes records to a stream. On a terminal, lines have styles, and a progress bar stays below the lines."""

    def __init__(self, form: Form, rank: int = 0, debug: bool = False, stream: IO[str] | None = None) -> None:
        """``debug``: whether to begin each line with time, level and rank. The default stream is sys.stderr."""
        super().__init__(stream or sys.stderr)
        self.form, self.debug = form, debug
        out = console(self.stream)
        self.console = out if form != "json" and out.is_terminal else None
        prefix = "%(asctime)s %(levelname)s " if debug else ""
        prefix += f"[rank {rank}] " if rank or debug else ""
        self.setFormatter(JsonFormatter(rank) if form == "json" else PrintableFormatter(f"{prefix}%(message)s"))

    def filter(self, record: logging.LogRecord) -> Any:
        how = shown(record)
        wanted = {"text": True, "json": not how.text_only, "quiet": how.always or record.levelno >= logging.WARNING}
        return wanted[self.form] and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        if self.console is None:
            return super().emit(record)
        try:
            line = Text(self.format(record), shown(record).style or STYLES.get(record.levelno, ""))
            with aside(self.stream):
                self.console.print(line, soft_wrap=True)
        except Exception:
            self.handleError(record)


def print_error(message: str, facts: Mapping[str, Any], trace: bool = False) -> None:
    """Print the error that ends a command on stderr: ``error: <message>``, or a JSON object with ``facts``.

    trace: whether --debug prints the traceback of the current exception as well.
    """
    handler = next((h for h in logging.getLogger().handlers if isinstance(h, LineHandler)), None)
    if handler is None or (handler.form != "json" and not handler.debug):
        line = f"error: {printable_line(message)}"
        if handler is None or handler.console is None:
            print(line, file=sys.stderr, flush=True)
        else:
            handler.console.print(Text(line, "bold red"), soft_wrap=True)
        return
    in_json, trace = handler.form == "json", trace and handler.debug
    if trace and not in_json:
        print(printable(traceback.format_exc()), end="", file=sys.stderr, flush=True)
    extra = {"shown": Shown(facts={"message": message, "event": "error", **facts})}
    logging.getLogger("posters").error("error: %s", message, extra=extra, exc_info=trace and in_json)
