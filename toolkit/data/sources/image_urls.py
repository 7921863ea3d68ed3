"""Images at ``http://`` and ``https://`` URLs that the user names, as items of a FileSource.

The rules of `posters fetch` apply: only public addresses, also after a redirect, and limits of size and time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError, without_secrets
from shards.extras import require_extra
from shards.storage.endings import is_image_name
from shards.storage.paths import is_url
from shards.storage.retry import unreadable
from toolkit.data.sources.errors import Undecodable

#: The remedy for a private address. The row of an image has this text, also in Python.
ALLOW_PRIVATE = "; --allow-private (in Python: allow_private=True) allows it"
_HTTP = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class ImageUrl:
    """An image at a URL."""

    url: str
    allow_private: bool = False
    """Whether the URL and its redirects may lead to this machine and to private networks."""

    def __str__(self) -> str:
        return without_secrets(self.url)

    def read(self) -> bytes:
        """Download the image. Raises Undecodable with the reason of a failure, and UserError if this machine fails."""
        from shards.fetch.download import Unfetched, download_one  # needs aiohttp

        try:
            return download_one(self.url, self.allow_private)
        except Unfetched as failure:
            remedy = ALLOW_PRIVATE if failure.reason == "private address" else ""
            raise Undecodable(f"{failure.reason}: {failure.detail}{remedy}") from None
        except OSError as error:
            raise unreadable(str(self), error) from None


def image_places(texts: Sequence[str]) -> list[Path | ImageUrl]:
    """Convert texts to paths and URLs. Raises UserError for URLs that are not ``http://`` or ``https://``."""
    places: list[Path | ImageUrl] = []
    for text in texts:
        if is_url(text) and not _HTTP.match(text):
            raise UserError("url-refused", f"{text} is not read: name a file, or an http:// or https:// URL")
        places.append(ImageUrl(text) if is_url(text) else Path(text))
    return places


def is_set_url(text: str) -> bool:
    """Return whether a URL is the address of a shard set. Any http:// or https:// URL is the address of an image."""
    return is_url(text) and not _HTTP.match(text) and not is_image_name(text)


def require_urls(urls: Sequence[ImageUrl]) -> None:
    """Raise UserError if a URL is malformed or contains a password, or if the HTTP client is not installed."""
    if not urls:
        return
    require_extra("http", "an image at a URL", "aiohttp")
    from shards.fetch.links import BadLink, parse_link

    for image in urls:
        try:
            parse_link(image.url)
        except BadLink as bad:
            raise UserError("url-refused", f"{image} cannot be downloaded: {bad}") from None
