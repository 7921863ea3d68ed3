"""What a node's cache of remote files is told, and what it keeps: for those who cannot or need not load the cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shards.places import Place


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
    """A file that a manifest vouches for."""

    place: Place
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Its name in a cache."""
        return f"{self.sha256}{self.place.suffix}"
