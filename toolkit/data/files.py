"""Users' own image files, of which nothing is known before they are opened, as a Loader's source.

A plain JPEG (RGB, upright) goes the way that shard samples go, so that a folder and the shards of its bytes give the
same pixels to the bit. Everything else goes through Pillow: upright by its EXIF, alpha on white, bombs refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import UserError
from shards.images import EXTENSIONS, BadImage, ImageOptions, decode, plain_jpeg_size
from toolkit.data.cuts import SquareCut
from toolkit.data.jpeg import Undecodable
from toolkit.data.transforms import Preprocessing
from toolkit.data.views import eval_views

RAW = ImageOptions(min_side=1)  # a user's own file may be small; what can be decoded is predicted


def list_images(directory: Path) -> list[Path]:
    """Image files below a folder, sorted. Raises UserError if there is none."""
    if not directory.is_dir():
        raise UserError(f"image folder not found: {directory}")
    found = [
        Path(root) / name
        for root, _, names in os.walk(directory)
        for name in names
        if name.endswith(EXTENSIONS)
    ]
    if not found:
        raise UserError(f"no .jpg, .jpeg or .png file in {directory}")
    return sorted(found)


#: A backslash that, left as it is, would read as the escape of a byte.
_LIKE_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")


def file_id(path: str) -> str:
    r"""The name by which a file is listed: its path, as text that any file can hold.

    Bytes that are not UTF-8 (Python reads them as lone surrogates) are written as ``\xHH``, and a backslash that
    stands before ``xHH`` in the name as ``\x5c``, so two files never have one id.

    >>> print(file_id("caf\udce9.jpg"), file_id(r"caf\xe9.jpg"), file_id(r"a\b.jpg"))
    caf\xe9.jpg caf\x5cxe9.jpg a\b.jpg
    """
    text = _LIKE_ESCAPE.sub(r"\\x5c", path)
    return os.fsencode(text).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class FileSource:
    """Image files as a Loader's source."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> memoryview:
        """See Source."""
        return memoryview(bytearray(self.paths[index].read_bytes()))

    def where(self, index: int) -> str:
        """See Source."""
        return str(self.paths[index])


@dataclass(frozen=True)
class RawTransform:
    """The model's preprocessing on the bytes of any image file."""

    preprocessing: Preprocessing

    def __call__(self, data: bytes) -> np.ndarray:
        """(S, S, 3) uint8. Raises ValueError with the reason in one line."""
        fast = self._plain_jpeg(data)
        if fast is not None:
            return fast
        try:
            image = decode(data, RAW)
        except BadImage as bad:
            raise ValueError(f"{bad.reason} ({bad.detail})" if bad.detail else bad.reason) from None
        return self.preprocessing.square(image)

    def _plain_jpeg(self, data: bytes) -> np.ndarray | None:
        try:
            size = plain_jpeg_size(data)
        except Exception:  # parsers of hostile bytes raise nearly anything; the other way says what it is
            return None
        if size is None or size[0] * size[1] > RAW.max_pixels:
            return None
        ours = self.preprocessing
        views = eval_views(ours.image_size, ours.crop_pct, np.array([size[0]]), np.array([size[1]]), ours.fit)
        try:
            return SquareCut(views).square(0, memoryview(bytearray(data)))
        except Undecodable:  # damaged: the other way says how
            return None
