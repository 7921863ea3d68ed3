"""Recognise image files by the endings of their names. Pillow is not imported, so indexes and listings start fast."""

from __future__ import annotations

import os
from collections import Counter

from shards.errors import printable_line

#: Endings of image files, in lower case; file names may use any case. If an id has several files, the file with the
#: first of these endings is used.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")

#: The same endings as text for messages.
ENDINGS_TEXT = f"{', '.join(IMAGE_ENDINGS[:-1])} or {IMAGE_ENDINGS[-1]}"


def is_image_name(name: str) -> bool:
    """Return whether a file is an image, by its name.

    >>> is_image_name("a/POSTER.JPE"), is_image_name("poster.heic"), is_image_name(".jpg")
    (True, False, False)
    """
    return ending(name) in IMAGE_ENDINGS


def ending(name: str) -> str:
    """Return the ending of a file name in lower case, with its dot. Empty if there is none."""
    return os.path.splitext(os.path.basename(name))[1].lower()


def others_text(others: Counter[str]) -> str:
    """Return a message about files that are not images, counted by ending.

    >>> others_text(Counter({".txt": 2, ".heic": 1}))
    '3 files of other kinds were left out: 2 .txt, 1 .heic'
    """
    shown = others.most_common(8)
    rest = others.total() - sum(count for _, count in shown)
    kinds = [f"{count} {printable_line(kind) or 'without an ending'}" for kind, count in shown]
    kinds += [f"{rest} more"] if rest else []
    what = "1 file of another kind was" if others.total() == 1 else f"{others.total()} files of other kinds were"
    return f"{what} left out: {', '.join(kinds)}"
