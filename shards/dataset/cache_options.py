"""What a node's cache of remote files is told, and what it keeps: for those who cannot or need not load the cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError
from shards.storage.paths import Place

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: One name, with an ending that is one word: it becomes the ending of a name in the cache.
_NAME = re.compile(r"[^/\\\x00]*[^/\\\x00.]\.[A-Za-z0-9]{1,16}")
#: Endings by which a cache knows its own files.
_MARKS = (".partial", ".failed")


@dataclass(frozen=True)
class CacheOptions:
    """Where remote files are kept and how much of them; see ``--cache-dir`` and ``--cache-limit``."""

    folder: Path | None = None
    """None: $POSTERS_CACHE, else poster-toolkit in $XDG_CACHE_HOME or ~/.cache."""
    limit: int = 0
    """Bytes. 0: no limit but the disk's."""
    patience: float = 300.0
    """Seconds for which a store that does not answer is asked again."""

    @property
    def is_usual(self) -> bool:
        """Whether it is the folder that is used where the user names none."""
        return self.folder is None and not os.environ.get("POSTERS_CACHE")

    @property
    def path(self) -> Path:
        """The folder that is used."""
        if self.folder is not None:
            return self.folder
        if own := os.environ.get("POSTERS_CACHE"):
            return Path(own)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poster-toolkit"


class NoRoom(Exception):
    """The limit leaves no room for a file: what is there is in use."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that a manifest vouches for. Raises UserError for what would be no plain name of a file in a cache."""

    place: Place
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not _DIGEST.fullmatch(self.sha256):
            raise UserError(
                f"{self.place} has no sha256 of 64 hex digits in its manifest: {str(self.sha256)[:80]!r}"
            )
        if not isinstance(self.bytes, int) or not 0 <= self.bytes <= 1 << 53:
            raise UserError(f"{self.place} has no size in its manifest: {str(self.bytes)[:80]!r}")
        if not _NAME.fullmatch(self.place.name) or self.place.suffix.lower() in _MARKS:
            raise UserError(
                f"{self.place} is not a file that a shard set holds: its name is {self.place.name!r}"
            )

    @property
    def name(self) -> str:
        """Its name in a cache."""
        return f"{self.sha256}{self.place.suffix}"
