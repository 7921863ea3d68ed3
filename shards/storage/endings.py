"""Decide by the ending of a file name whether the file is an image. Pillow is not imported, so this is fast."""

from __future__ import annotations

import os
from collections import Counter

from shards.errors import printable_line

#: Endings of image files in lower case. File names may use any case. If an id has several files, the file whose ending
#: comes first in this tuple is used.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
#: IMAGE_ENDINGS as text for messages.
ENDINGS_TEXT = f"{', '.join(IMAGE_ENDINGS[:-1])} or {IMAGE_ENDINGS[-1]}"


def is_image_name(name: str) -> bool:
    """Return whether a file name has the ending of an image.

    >>> is_image_name("a/POSTER.JPE"), is_image_name("poster.heic"), is_image_name(".jpg")
    (True, False, False)
    """
    return ending(name) in IMAGE_ENDINGS


def ending(name: str) -> str:
    """Return the ending of a file name with its dot, in lower case. Empty if the name has no ending."""
    return os.path.splitext(os.path.basename(name))[1].lower()


def others_text(others: Counter[str]) -> str:
    """Return a message about files that are not images, with the number of files of each ending.

    >>> others_text(Counter({".txt": 2, ".heic": 1}))
    '3 files without a supported image ending were left out: 2 .txt, 1 .heic'
    """
    shown = others.most_common(8)
    rest = others.total() - sum(count for _, count in shown)
    kinds = [f"{count} {printable_line(kind) or 'without an ending'}" for kind, count in shown]
    kinds += [f"{rest} more"] if rest else []
    files, were = ("file", "was") if others.total() == 1 else ("files", "were")
    return f"{others.total()} {files} without a supported image ending {were} left out: {', '.join(kinds)}"
