"""The place of the tars of a shard set, if they are not in the set's folder: the field ``tars`` of manifest.json.

`posters shards index --out FOLDER` writes such sets. The field is the absolute path of a folder, or a URL. Sets can
come from untrusted sources. So the field is used only if manifest.json is in a local folder. Below the place, only
files with the names and sizes of the manifest's shards are read. A manifest at a URL must not have the field.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from shards.errors import printable, without_secrets
from shards.storage.paths import StoragePath, is_remote, is_url
from shards.storage.remote_files import ATOMIC_PUT

#: Format of a manifest with the field. In earlier formats, the field is unknown and has no meaning.
ELSEWHERE_FORMAT = 3
#: Protocols of a place of tars. fsspec has other protocols, which read local files or start programs.
PROTOCOLS = (*ATOMIC_PUT, "http", "https")
#: Largest length of a place in bytes.
PLACE_BYTES = 4096


class _Tars(msgspec.Struct):
    format: int
    tars: str | None = None


def place_problem(place: str | None) -> str:
    """Return why a text cannot be the place of the tars of a set. Empty if it can, or if it is None.

    >>> place_problem("s3://bucket/set"), place_problem("../set")
    ('', "is not an absolute path or a URL: '../set'")
    """
    if place is None:
        return ""
    shown = repr(printable(without_secrets(place))[:200])
    if printable(place) != place or set(place) & set("\n\t") or not 0 < len(place.encode()) <= PLACE_BYTES:
        return f"is too long, empty or has control characters: {shown}"
    if not is_url(place):
        return "" if os.path.isabs(place) else f"is not an absolute path or a URL: {shown}"
    protocol = place.partition("://")[0]
    if protocol not in PROTOCOLS:
        return f"has another protocol than {', '.join(PROTOCOLS)}: {shown}"
    with contextlib.suppress(ValueError):
        url = urlsplit(place)
        web = protocol in ("http", "https")
        secret = url.password or (web and (url.query or url.fragment or url.username))
        # fsspec combines several file systems with two colons. IPv6 addresses have them, too (see storage_path).
        if not secret and "::" not in place and (url.hostname or not web):
            return ""
    return f"is not a plain URL without user, password and query: {shown}"


def field_problem(place: str | None) -> str:
    """Return a message if a text cannot be the field ``tars`` of a manifest. Empty if it can, or if it is None."""
    problem = place_problem(place)
    return f"its field 'tars' {problem}" if problem else ""


def text_of(place: StoragePath) -> str:
    """Return the text of a place for a manifest: an absolute path, or a URL without user, password and query."""
    return str(place).rstrip("/") if is_remote(place) else os.path.abspath(place)


def place_in(data: bytes) -> str | None:
    """Return the place of the tars from the bytes of a manifest. None if there is none, or if it is not valid."""
    with contextlib.suppress(msgspec.MsgspecError, RecursionError):
        found = msgspec.json.decode(data, type=_Tars)
        return None if found.format < ELSEWHERE_FORMAT or place_problem(found.tars) else found.tars
    return None


def same_place(first: str, second: str) -> bool:
    """Return whether two places are the same folder or URL, also through links."""
    if first == second or is_url(first) or is_url(second):
        return first == second
    with contextlib.suppress(OSError):
        return Path(first).samefile(second)
    return False
