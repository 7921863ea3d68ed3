"""A progress bar with images per second and remaining time, for terminals and log files."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from shards.errors import printable_line


def progress(total: int, description: str, unit: str = "img", **options: Any) -> tqdm:
    """Return a tqdm bar on stderr. It is updated every 0.2 s on a terminal or in a notebook, every 10 s in a file."""
    interactive = sys.stderr.isatty()
    watched = interactive or "ipykernel" in sys.modules
    return tqdm(
        total=total,
        desc=printable_line(description),
        unit=unit,
        dynamic_ncols=interactive,
        ncols=None if interactive else 100,
        mininterval=0.2 if watched else 10.0,
        smoothing=0.1,
        **options,
    )
