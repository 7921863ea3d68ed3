"""Find the images that a text means in Python: a file, a folder, a pattern (``posters/*.jpg``) or a shard set."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from shards.dataset.manifest import NAME
from shards.errors import UserError
from shards.storage.endings import is_image_name
from shards.storage.paths import is_url
from toolkit.data.sources.image_files import list_images
from toolkit.data.sources.shard_set import ShardSet


def shard_set_of(images: Any) -> ShardSet | None:
    """Return the shard set that ``images`` is or names. Return None for all other images."""
    if isinstance(images, ShardSet):
        return images
    if isinstance(images, (str, os.PathLike)):
        text = os.fsdecode(images)
        if (is_url(text) and not is_image_name(text)) or os.path.isfile(os.path.join(text, NAME)):
            return ShardSet(text)
    return None


def files_of(path: str | os.PathLike[str]) -> list[Path] | None:
    """Return the images of a folder or the files of a pattern, sorted. Return None for the path of one file.

    Raises UserError if a folder has no images, or if a pattern with * or ? has no files.
    """
    text = os.fsdecode(path)
    if os.path.isdir(text):
        return list_images(Path(text))
    if os.path.lexists(text) or not glob.has_magic(text):
        return None
    found = sorted(Path(name) for name in glob.iglob(text, recursive=True) if is_image_name(os.path.basename(name)))
    if not found and ("*" in text or "?" in text):
        raise UserError("images-none", f"no image file matches {text}: check the folder and the pattern")
    return found or None
