"""Image files of users, as a source of a Loader. The size and format of a file are unknown until it is read.

The files are decoded like samples of shards, so an image file and its sample in a shard give bit-identical pixels.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path

from shards.errors import UserError
from shards.inputs.image_files import Walk, no_folder, no_images, walk_images
from shards.inputs.image_structure import more_frames
from shards.storage.endings import is_image_name
from shards.storage.kinds import IMAGE, near_name, other_kind
from shards.storage.retry import of_one_file, retried, unreadable
from toolkit.data.sources.errors import Undecodable
from toolkit.data.sources.image_urls import ImageUrl

log = logging.getLogger(__name__)

#: Largest number of files with several frames that are logged one by one.
MAX_LOGGED = 5


def list_images(directory: Path) -> list[Path]:
    """Return the sorted image files below a folder. Raises UserError if there are none.

    Logs a warning about files that are not images, and about folders that cannot be read.
    """
    if not directory.is_dir():
        raise no_folder(directory)
    walk = Walk()
    found = sorted(directory / name for name in walk_images(directory, walk))
    if not found:
        raise no_images(directory, walk)
    walk.warn(directory)
    return found


def images_at(place: Path) -> list[Path]:
    """Return the images that a path means: a file, a folder with its subfolders, or a pattern such as ``x/*.jpg``.

    Raises UserError if a folder or pattern has no images, or if the path is known to be something else, such as a CSV.
    The path of a missing file is returned. Reading this file then gives an error for this file only.
    """
    if place.is_dir():
        return list_images(place)
    if not place.exists() and has_magic(str(place)):
        found = sorted(Path(name) for name in glob(str(place), recursive=True) if is_image_name(name))
        if not found:
            raise UserError("images-none", f"no image has a name like {place}; check the folder and the pattern")
        return found
    if wrong := other_kind(place, IMAGE):
        raise UserError("images-none", wrong)
    return [place]


#: A backslash in a file name that looks like the beginning of an escaped byte.
_LIKE_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")


def file_id(path: str) -> str:
    r"""Return the path of a file as valid UTF-8 text. Results use this text as the id of the file.

    Python reads bytes that are not UTF-8 as lone surrogates. Here, these bytes become ``\xHH``. A backslash before
    ``xHH`` in the name becomes ``\x5c``, so that two files never have the same id.

    >>> print(file_id("caf\udce9.jpg"), file_id(r"caf\xe9.jpg"), file_id(r"a\b.jpg"))
    caf\xe9.jpg caf\x5cxe9.jpg a\b.jpg
    """
    text = _LIKE_ESCAPE.sub(r"\\x5c", path)
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # the text has a surrogate that no file name has
        return text.encode("utf-8", "backslashreplace").decode()


def read_file(path: Path) -> bytes:
    """Read a user's file. After a temporary error, try again.

    Raises Undecodable if this file is missing or not readable. Raises UserError for other system errors.
    """
    try:
        return retried(path.read_bytes, str(path))
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise Undecodable(f"{error.strerror}{near_name(path)}") from None
        if of_one_file(error):
            raise Undecodable(error.strerror or str(error)) from None
        raise unreadable(str(path), error) from None


@dataclass(frozen=True)
class FileSource:
    """Image files and URLs as a source of a Loader. Files with several frames are logged. Their first frame is used."""

    paths: Sequence[Path | ImageUrl]
    several_frames: list[Path | ImageUrl] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> memoryview:
        place = self.paths[index]
        data = place.read() if isinstance(place, ImageUrl) else read_file(place)
        if more_frames(data):
            self.several_frames.append(place)
            if len(self.several_frames) <= MAX_LOGGED:
                log.warning("%s has several frames or pages; the first one is used", place)
            elif len(self.several_frames) == MAX_LOGGED + 1:
                log.warning("more files have several frames or pages; the first one of each file is used")
        return memoryview(bytearray(data))

    def where(self, index: int) -> str:
        return str(self.paths[index])
