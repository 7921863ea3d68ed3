"""Names of the splits, as folders and cells of a table have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from shards.errors import UserError
from shards.tables.genre_cells import NO_GENRE_WORDS
from shards.tables.table import Table

#: Name of a folder or a cell, in lower case → split.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_of_folder(name: str) -> str:
    """Return the split that the name of a folder means. Empty if it means none.

    >>> split_of_folder("Validation"), split_of_folder("train_images"), split_of_folder("Drama")
    ('val', 'train', '')
    """
    return SPLIT_NAMES.get(re.sub(r"[-_ ]?(images?|imgs?|set|data|posters)$", "", name.lower()), "")


def split_of_path(path: str) -> str:
    """Return the split of the first folder of a path that means one. Empty if no folder does."""
    return next(filter(None, map(split_of_folder, PurePosixPath(path).parts[:-1])), "")


def value_or_empty(cell: str) -> str:
    """Return a cell without spaces around it. Words such as nan and None, which mean a missing value, become empty."""
    return "" if cell.strip().lower() in NO_GENRE_WORDS else cell.strip()


def split_of_row(table: Table, row: Sequence[str], at: int | None) -> tuple[str, tuple[str, str] | None]:
    """Return the split in cell ``at`` of a row, and (reason, detail) if the row has none. ``at`` may be None.

    Raises UserError if the cell has another text.
    """
    if at is None:
        return "", None
    written = value_or_empty(row[at])
    split = SPLIT_NAMES.get(written.lower(), "")
    if written and not split:
        remedy = "the values are train, val (valid, validation, dev) and test"
        raise UserError("table-row", f"{table.path}: column {table.name(at)} has {written[:40]!r}, no split; {remedy}")
    return split, None if split else ("no split", f"column {table.name(at)} is empty")
