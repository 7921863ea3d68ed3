"""A progress bar with images per second and time left; calm when the output is a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from shards.errors import printable_line


def progress(total: int, description: str, unit: str = "img", **options: Any) -> tqdm:
    """A tqdm bar on stderr. On a terminal it is redrawn often, in a log a line every ten seconds."""
    interactive = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=printable_line(description),
        unit=unit,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        mininterval=0.2 if interactive else 10.0,
        smoothing=0.1,
        **options,
    )
