"""A progress bar with images per second and remaining time, for terminals and log files."""

from __future__ import annotations

import contextlib
import sys
from typing import IO, Any

from tqdm import tqdm

from shards.errors import printable_line

#: Seconds between two updates of a bar in a file. A short-lived bar appears in a file after this time.
IN_FILES = 10.0
_wanted = True


def show_progress(wanted: bool) -> None:
    """Choose whether later calls of `progress` in this process show a bar."""
    global _wanted
    _wanted = wanted


def progress(total: int, description: str, unit: str = "img", *, lasting: bool = True, **options: Any) -> tqdm:
    """Return a tqdm bar on stderr. It is updated every 0.2 s on a terminal or in a notebook, every 10 s in a file.

    If ``lasting`` is false, a terminal shows the bar only until its end, and a file has it only if it takes over 10 s.
    """
    interactive = sys.stderr.isatty()
    watched = interactive or "ipykernel" in sys.modules
    if not lasting:
        options |= {"leave": not watched, "delay": 0 if watched else IN_FILES}
    if not _wanted:
        options["disable"] = True
    return tqdm(
        total=total,
        desc=printable_line(description),
        unit=unit,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        mininterval=0.2 if watched else IN_FILES,
        smoothing=0.1,
        **options,
    )


def aside(stream: IO[str]) -> contextlib.AbstractContextManager[None]:
    """Return a context manager that removes the bars from a terminal while its block writes lines to ``stream``."""
    manager: contextlib.AbstractContextManager[None] = tqdm.external_write_mode(stream)
    return manager
