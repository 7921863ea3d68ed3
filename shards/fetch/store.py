"""The poster folder: which posters are there, and how a new one gets in, whole and checked."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path, PurePosixPath

from shards.fetch.journal import Entry, Journal
from shards.fetch.links import Link
from shards.files import atomic_write
from shards.images import EXTENSIONS, BadImage, ImageOptions, decode

#: Posters on their way in. Short names there: an id may be as long as a file name can be.
INCOMING = ".incoming"

JOURNAL = ".fetch.jsonl"

REJECTED = "rejected.csv"

#: No id may make folders of these.
OUR_NAMES = (INCOMING, JOURNAL, REJECTED, ".lock")


class PosterStore:
    """Posters by id in a folder. Only for the holder of the folder's lock."""

    def __init__(self, folder: Path, journal: Journal, options: ImageOptions) -> None:
        self._folder = folder
        self._journal = journal
        self._options = options

    def __enter__(self) -> PosterStore:
        self._clear()
        (self._folder / INCOMING).mkdir()
        return self

    def __exit__(self, *error: object) -> None:
        self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self._folder / INCOMING, ignore_errors=True)

    def save(self, link: Link, data: bytes) -> None:
        """Check a poster and put it in place. Raises BadImage for what is no whole, usable picture.

        The link is in the journal before the poster gets its name, and an older poster is gone before
        that. So whatever moment a kill chooses, a poster that is there came from the journal's link.
        """
        if outer_folder(link.id) in OUR_NAMES:
            raise BadImage("bad id", "its place is taken by our own files")
        extension, data = checked(data, self._options)
        incoming = self._folder / INCOMING / str(link.line)
        with atomic_write(incoming) as stream:
            stream.write(data)
        final = self._folder / f"{link.id}{extension}"
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            self.remove(link)
            self._journal.add(Entry(link.id, link.url))
            os.replace(incoming, final)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise BadImage("bad id", f"its place is taken: {error.strerror}") from None

    def has(self, link: Link) -> bool:
        return any(path.is_file() for path in poster_paths(self._folder, link.id))

    def remove(self, link: Link) -> None:
        """Delete the poster of an earlier link."""
        for path in poster_paths(self._folder, link.id):
            if path.is_file():
                path.unlink()


def poster_paths(folder: Path, sample_id: str) -> list[Path]:
    """Where an id's poster may lie. Not ``folder/{id}`` itself: ``x.jpg`` may be the poster of the id ``x``."""
    return [folder / f"{sample_id}{extension}" for extension in EXTENSIONS]


def outer_folder(sample_id: str) -> str:
    """The outermost folder of an id's poster below the poster folder; empty if it has none."""
    parts = PurePosixPath(sample_id).parts
    return parts[0] if len(parts) > 1 else ""


def checked(data: bytes, options: ImageOptions) -> tuple[str, bytes]:
    """Extension and bytes under which a poster is kept. Raises BadImage for what is no usable picture.

    The bytes decide, not what the link or the server call them. JPEG and PNG are kept as they are; shards
    are built from nothing else, so other formats become PNGs of the same pixels.
    """
    if not data:
        raise BadImage("zero bytes")
    image = decode(data, options)
    if data.startswith(b"\xff\xd8"):
        return ".jpg", data
    if data.startswith(b"\x89PNG"):
        return ".png", data
    out = io.BytesIO()
    image.save(out, "PNG")
    return ".png", out.getvalue()
