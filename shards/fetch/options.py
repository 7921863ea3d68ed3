"""What a user may choose about a download."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shards.errors import UserError
from shards.inputs.images import ImageOptions
from shards.storage.paths import Place


@dataclass(frozen=True)
class FetchOptions:
    """Which links, to where, and how patiently."""

    metadata: Place
    """CSV with a header line."""
    out: Place
    """Folder for the posters and rejected.csv."""
    url_column: str
    """CSV column of the links, by name or number from 0."""
    id_column: str | None = None
    """The first column, unless it holds row numbers."""
    encoding: str = "utf-8-sig"
    concurrency: int = 64
    """Links in work at a time, over all hosts, on each machine or worker."""
    per_host: int = 8
    """Requests to one host at a time. A cluster's workers share them out, with at least one for each."""
    timeout: float = 30.0
    """Seconds for a request, from the connection to the last byte."""
    connect_timeout: float = 10.0
    """Seconds for a connection to be made."""
    retries: int = 3
    """Further tries of a link whose failure may pass."""
    backoff: float = 0.5
    """Seconds before the first further try; they double with each."""
    max_wait: float = 60.0
    """Longest wait in seconds that a server may ask for; who asks for more is asked again in another run."""
    max_bytes: int = 20_000_000
    """Larger files are not read to their end."""
    image: ImageOptions = field(default_factory=ImageOptions)
    """``min_side`` and ``max_pixels`` count here."""
    user_agent: str = "poster-toolkit"
    allow_private: bool = False
    """Whether links may lead to this machine and to private networks."""
    retry_rejected: bool = False
    """Whether links that an earlier run found dead for good are tried again."""
    scheduler: str | None = None
    """A Dask scheduler, by address or scheduler file, whose workers fetch instead of this machine."""
    take_over: bool = False
    """Go on although a run on another machine, which must be dead, claims ``out`` (a URL)."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "per_host", "max_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{_option(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("timeout", "connect_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{_option(name)} takes seconds above 0, not {getattr(self, name)}")
        for name in ("retries", "backoff", "max_wait"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{_option(name)} must be 0 or more, not {getattr(self, name)}")
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            raise UserError("--user-agent takes a line of plain ASCII")  # it goes into a header as it is

    def limits(self) -> str:
        """What a rejected poster was judged by: other limits may judge it otherwise."""
        return f"{self.max_bytes} bytes, {self.image.min_side} to {self.image.max_pixels} pixels"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
