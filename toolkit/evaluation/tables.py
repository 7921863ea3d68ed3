"""Create tables of numbers for terminals and CSV files, and convert results to JSON types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.console import console as console_of
from shards.storage.csv_text import escaped
from shards.storage.files import atomic_write

REPORT_WIDTH = 110


def report_console(file: IO[str] | None = None, width: int = REPORT_WIDTH) -> Console:
    """Return a console with the width of the terminal, or else ``width``. Rich's default of 80 columns cuts tables."""
    found = console_of(file)
    return console_of(file, found.width if found.is_terminal else width)


def json_types(value: Any) -> Any:
    """Convert numpy scalars and arrays, mappings and sequences to JSON types. NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): json_types(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return json_types(value.tolist())
    if isinstance(value, list | tuple):
        return [json_types(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number_table(title: str, first: str, others: Iterable[str]) -> Table:
    """Return an empty table with a title and without borders: a column of names, then columns of numbers."""
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    # On a narrow stream, rich by default replaces the end of a name by an ellipsis. Folding keeps all text.
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def write_table(path: Path, rows: pd.DataFrame) -> None:
    """Write a CSV file, atomically. Text that a spreadsheet runs as a formula is escaped."""
    with atomic_write(path, "w") as stream:
        rows.map(escaped).to_csv(stream, index=False, float_format="%.6g", lineterminator="\n")
