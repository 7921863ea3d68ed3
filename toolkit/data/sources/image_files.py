"""Users' own image files, of which nothing is known before they are opened, as a Loader's source.

They go the way that shard samples go, so that a folder and the shards of its bytes give the same pixels to the bit.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import UserError
from shards.inputs.image_files import Walk, no_images, walk_images
from shards.inputs.image_structure import more_frames
from shards.storage.retry import of_one_file, retried, unreadable
from toolkit.data.sources.errors import Undecodable

log = logging.getLogger(__name__)

#: Files with several frames that are named one by one.
NAMED = 5


def list_images(directory: Path) -> list[Path]:
    """Image files below a folder, sorted. Raises UserError if there is none.

    Files of other kinds, and folders that cannot be read, are said in a line each.
    """
    if not directory.is_dir():
        raise UserError("path-missing", f"image folder not found: {directory}")
    walk = Walk()
    found = sorted(directory / name for name in walk_images(directory, walk))
    if not found:
        raise no_images(directory, walk)
    walk.warn(directory)
    return found


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
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, which no file's name has
        return text.encode("utf-8", "backslashreplace").decode()


def read_file(path: Path) -> bytes:
    """A user's file. What fails in passing is read again.

    Raises Undecodable for a file that is gone or may not be read, which its row says; UserError for what is not the
    file's own trouble: the rows of all others would say the same.
    """
    try:
        return retried(path.read_bytes, str(path))
    except OSError as error:
        if of_one_file(error):
            raise Undecodable(error.strerror or str(error)) from None
        raise unreadable(str(path), error) from None


@dataclass(frozen=True)
class FileSource:
    """Image files as a Loader's source. Those with several frames, of which the first is taken, are said."""

    paths: Sequence[Path]
    films: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> memoryview:
        data = read_file(self.paths[index])
        if more_frames(data):
            self.films.append(self.paths[index])
            if len(self.films) <= NAMED:
                log.warning("%s has several frames or pages; the first is taken", self.paths[index])
            elif len(self.films) == NAMED + 1:
                log.warning("more files have several frames or pages; the first of each is taken")
        return memoryview(bytearray(data))

    def where(self, index: int) -> str:
        return str(self.paths[index])
