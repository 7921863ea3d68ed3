"""The poster folder: which posters are there, and how a new one gets in, whole and checked."""

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

#: Posters on their way in. Short names there: an id may be as long as a file name can be.
INCOMING = ".incoming"
JOURNAL, REJECTED = ".fetch.jsonl", "rejected.csv"
#: No id may make folders of these.
OUR_NAMES = (INCOMING, JOURNAL, PARTS, REJECTED, ".lock")


@contextmanager
def incoming(folder: StoragePath) -> Iterator[None]:
    """An empty place for posters on their way into a local folder, gone when the block ends."""
    remove_tree(folder / INCOMING)
    (folder / INCOMING).mkdir()
    try:
        yield
    finally:
        remove_tree(folder / INCOMING)


class PosterStore(ABC):
    """Posters by id in a folder, which the caller, or who sent it, holds."""

    def __init__(self, folder: StoragePath, journal: EntryLog, options: ImageOptions) -> None:
        self._folder, self.journal, self._options = folder, journal, options

    def save(self, link: Link, data: bytes) -> None:
        """Check a poster and put it in place. Raises BadImage for what is no whole, usable picture.

        The link is in the journal before the poster gets its name, and an older poster is gone before
        that. So whatever moment a kill chooses, a poster that is there came from the journal's link.
        """
        parts = PurePosixPath(link.id).parts
        if len(parts) > 1 and parts[0] in OUR_NAMES:
            raise BadImage("bad id", "its place is taken by our own files")
        extension, data = checked(data, self._options)
        self._put(link, self._folder / f"{link.id}{extension}", data)

    @abstractmethod
    def _put(self, link: Link, final: StoragePath, data: bytes) -> None: ...

    @abstractmethod
    def remove(self, link: Link) -> None:
        """Delete the poster of an earlier link."""


class FolderStore(PosterStore):
    """A folder of this machine or of a file system that several machines share."""

    def _put(self, link: Link, final: Path, data: bytes) -> None:
        # A chunk may be in work twice, on two machines.
        incoming = self._folder / INCOMING / f"{link.line}-{secrets.token_hex(4)}"
        with atomic_write(incoming) as stream:
            stream.write(data)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            self.remove(link)
            self.journal.add(Entry(link.id, link.url))
            os.replace(incoming, final)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise BadImage("bad id", f"its place is taken: {error.strerror}") from None

    def remove(self, link: Link) -> None:
        for path in poster_paths(self._folder, link.id):
            if path.is_file():
                path.unlink()


class RemoteStore(PosterStore):
    """A folder at a URL. ``replaces`` are the ids that have a poster of an earlier link."""

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
    """Where an id's poster may lie. Not ``folder/{id}`` itself: ``x.jpg`` may be the poster of the id ``x``."""
    return [folder / f"{sample_id}{extension}" for extension in USUAL_ENDINGS]


def checked(data: bytes, options: ImageOptions) -> tuple[str, bytes]:
    """Extension and bytes under which a poster is kept. Raises BadImage for what is no usable picture.

    The bytes decide, not what the link or the server call them. JPEG and PNG are kept as they are; other formats become
    PNGs of the same pixels, which every tool reads.
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
