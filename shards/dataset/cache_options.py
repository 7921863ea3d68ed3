"""Options of the cache of remote files on a node, and the description of a cached file. The cache is in cache.py."""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, dataclass, field
from pathlib import Path

from shards.errors import UserError, printable_line
from shards.options import option
from shards.storage.paths import StoragePath, storage_path

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: A file name with an alphanumeric extension. The cached file has the same extension.
_NAME = re.compile(r"[^/\\\x00]*[^/\\\x00.]\.[A-Za-z0-9]{1,16}")
#: Extensions of files that the cache makes for itself.
_MARKS = (".partial", ".failed")


def parse_limit(text: str) -> int:
    """Convert ``200GB``, ``1.5 TiB``, ``500 MB`` or a plain number to bytes. Raises UserError for other text.

    >>> parse_limit("2kB"), parse_limit("1 GiB"), parse_limit("0")
    (2000, 1073741824, 0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?))?b?\s*", text.lower())
    if found is None:
        raise UserError("option-value", f"--cache-limit takes a size such as 200GB or 1.5TiB, not {text!r}")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgtp".index(prefix) if prefix else 0))


def parse_remote_timeout(text: str) -> float:
    """Convert a text such as ``300`` or ``2.5`` to seconds. Raises UserError for other text."""
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise UserError("option-value", f"--remote-timeout takes seconds, 0 or more, not {text!r}")
    return float(text)


@dataclass(frozen=True)
class CacheOptions:
    """Folder, size limit and timeout of the cache of remote files."""

    folder: Path | None = option(None, "--cache-dir", metavar="DIR", parse=Path)
    """Cache folder of this node for shards at a URL. The default is $POSTERS_CACHE. If that is not set, the default is
    poster-toolkit in $XDG_CACHE_HOME or in ~/.cache."""
    limit: int = option(0, "--cache-limit", metavar="SIZE", parse=parse_limit)
    """Size limit of the cache, in bytes or with a unit, such as 200GB. The default 0 means no limit."""
    remote_timeout: float = option(300.0, old=("--patience",), metavar="SECONDS", parse=parse_remote_timeout)
    """Seconds of retries if a remote store does not respond or sends no data (default 300)."""

    @property
    def is_usual(self) -> bool:
        """True if neither the option ``folder`` nor $POSTERS_CACHE names a folder."""
        return self.folder is None and not os.environ.get("POSTERS_CACHE")

    @property
    def path(self) -> Path:
        if named := self.folder or os.environ.get("POSTERS_CACHE"):
            return Path(named)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poster-toolkit"


@dataclass(frozen=True, kw_only=True)
class SetOptions:
    """Options of commands that read a shard set."""

    shards: StoragePath = option(MISSING, parse=storage_path)
    """Shard set: a folder or URL (s3://, gs://, hf://, http://)."""
    cache: CacheOptions = field(default_factory=CacheOptions)


class NoRoom(Exception):
    """A file does not fit under the size limit of the cache, because the cached files are in use."""


@dataclass(frozen=True)
class RemoteFile:
    """A remote file. Raises UserError if the name, the size or the SHA-256 in the manifest is not valid."""

    place: StoragePath
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not _DIGEST.fullmatch(self.sha256):
            found = str(self.sha256)[:80]
            raise UserError("set-damaged", f"{self.place} has no sha256 of 64 hex digits in its manifest: {found!r}")
        if not isinstance(self.bytes, int) or not 0 <= self.bytes <= 1 << 53:
            raise UserError("set-damaged", f"{self.place} has no valid size in its manifest: {str(self.bytes)[:80]!r}")
        if not _NAME.fullmatch(self.place.name) or self.place.suffix.lower() in _MARKS:
            where = printable_line(str(self.place))
            why = f"cannot be a file of a shard set: its name is {self.place.name!r}"
            raise UserError("set-damaged", f"{where} {why}")

    @property
    def name(self) -> str:
        """Name of the file in a cache."""
        return f"{self.sha256}{self.place.suffix}"
