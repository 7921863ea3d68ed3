"""Names of the splits in the names of folders and in the cells of a table."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

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
    """Return the split that a folder of a path means. The first such folder decides. Empty if there is none."""
    return next(filter(None, map(split_of_folder, PurePosixPath(path).parts[:-1])), "")
