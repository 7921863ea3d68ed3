"""Folder of posters: find the paths of a poster, check a new poster and save it."""

from __future__ import annotations

import io
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from shards.fetch.journal import PARTS, Entry, EntryLog
from shards.inputs.image_files import USUAL_ENDINGS
from shards.inputs.images import BadImage, ImageOptions, decode
from shards.storage.files import atomic_write, remove_file, remove_tree
from shards.storage.paths import StoragePath

if TYPE_CHECKING:  # links.py needs an extra
    from shards.fetch.links import Link

#: Folder of half-written posters. Their names do not contain the id, because a name with a long id can be too long.
INCOMING = ".incoming"
JOURNAL, REJECTED = ".fetch.jsonl", "rejected.csv"
#: Names that cannot be the first folder in the path of an id.
OUR_NAMES = (INCOMING, JOURNAL, PARTS, REJECTED, ".lock")


@contextmanager
def incoming(folder: StoragePath) -> Iterator[None]:
    """Make an empty folder for half-written posters in a local folder. Delete it when the block ends."""
    remove_tree(folder / INCOMING)
    (folder / INCOMING).mkdir()
    try:
        yield
    finally:
        remove_tree(folder / INCOMING)


class PosterStore(ABC):
    """Folder of posters, named by id. This process or the main process must hold the folder's lock."""

    def __init__(self, folder: StoragePath, journal: EntryLog, options: ImageOptions) -> None:
        self._folder, self.journal, self._options = folder, journal, options

    def save(self, link: Link, data: bytes) -> None:
        """Check a poster and save it. Raises BadImage if it is not a complete, usable image.

        First the older poster is deleted, then the link is written to the journal, then the new poster gets its name.
        So a poster always comes from the link in the journal, even if the run is killed.
        """
        parts = PurePosixPath(link.id).parts
        if len(parts) > 1 and parts[0] in OUR_NAMES:
            raise BadImage("bad id", "its path is used by files of `posters fetch`")
        extension, data = checked(data, self._options)
        self._put(link, self._folder / f"{link.id}{extension}", data)

    @abstractmethod
    def _put(self, link: Link, final: StoragePath, data: bytes) -> None: ...

    @abstractmethod
    def remove(self, link: Link) -> None:
        """Delete the poster that was downloaded from an earlier link of the same id."""


class FolderStore(PosterStore):
    """Posters in a folder on this machine, or on a file system that several machines share."""

    def _put(self, link: Link, final: Path, data: bytes) -> None:
        # The name is random, because two machines may download the same links.
        incoming = self._folder / INCOMING / f"{link.line}-{secrets.token_hex(4)}"
        with atomic_write(incoming) as stream:
            stream.write(data)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            self.remove(link)
            self.journal.add(Entry(link.id, link.url))
            os.replace(incoming, final)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise BadImage("bad id", f"its path is already used: {error.strerror}") from None

    def remove(self, link: Link) -> None:
        for path in poster_paths(self._folder, link.id):
            if path.is_file():
                path.unlink()


class RemoteStore(PosterStore):
    """Posters in a folder at a URL. ``replaces``: ids that have a poster from an earlier link."""

    def __init__(
        self, folder: StoragePath, journal: EntryLog, options: ImageOptions, replaces: Collection[str]
    ) -> None:
        super().__init__(folder, journal, options)
        self._replaces = replaces

    def _put(self, link: Link, final: StoragePath, data: bytes) -> None:
        self.remove(link)
        self.journal.add(Entry(link.id, link.url))
        with atomic_write(final) as stream:
            stream.write(data)

    def remove(self, link: Link) -> None:
        if link.id in self._replaces:
            for path in poster_paths(self._folder, link.id):
                remove_file(path)


def poster_paths(folder: StoragePath, sample_id: str) -> list[StoragePath]:
    """Return the paths that an id's poster can have. For the id ``x``, ``x.jpg`` is one of the paths."""
    return [folder / f"{sample_id}{extension}" for extension in USUAL_ENDINGS]


def checked(data: bytes, options: ImageOptions) -> tuple[str, bytes]:
    """Return the extension and the bytes to save. Raises BadImage if the data are not a usable image.

    The format is read from the bytes, not from the link or the server. JPEG and PNG are kept unchanged. Other formats
    are converted to PNG with the same pixels, because every tool reads PNG.
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
