"""What a user may choose about a download."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass

from shards.errors import UserError
from shards.executors.local import ExecutorOptions
from shards.inputs.csv_table import CsvOptions
from shards.inputs.images import ImageOptions
from shards.options import option
from shards.storage.paths import Place, place


@dataclass(frozen=True)
class FetchOptions(CsvOptions, ExecutorOptions):
    """Which links, to where, and how patiently."""

    metadata: Place = option(MISSING, parse=place)
    """CSV with ids and links."""
    out: Place = option(MISSING, parse=place)
    """Folder for the posters and rejected.csv, or its URL."""
    url_column: str = option(MISSING)
    """CSV column of the links, by name or number from 0."""
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
    backoff: float = option(0.5, hidden=True)
    """Seconds before the first further try; they double with each."""
    max_wait: float = option(60.0, hidden=True)
    """Longest wait in seconds that a server may ask for; who asks for more is asked again in another run."""
    max_bytes: int = 20_000_000
    """Larger files are not read to their end."""
    image: ImageOptions = option(factory=ImageOptions, only=("min_side", "max_pixels"))
    user_agent: str = "poster-toolkit"
    """What servers are told we are."""
    allow_private: bool = False
    """Let links lead to this machine and to private networks."""
    retry_rejected: bool = False
    """Try links again that an earlier run found dead for good."""

    def __post_init__(self) -> None:
        for name in ("concurrency", "per_host", "max_bytes"):
            if getattr(self, name) < 1:
                raise UserError("option-value", f"{_option(name)} must be at least 1, not {getattr(self, name)}")
        for name in ("timeout", "connect_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError("option-value", f"{_option(name)} takes seconds above 0, not {getattr(self, name)}")
        for name in ("retries", "backoff", "max_wait"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError("option-value", f"{_option(name)} must be 0 or more, not {getattr(self, name)}")
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            # It goes into a header as it is.
            raise UserError("option-value", "--user-agent takes a line of plain ASCII")

    def limits(self) -> str:
        """What a rejected poster was judged by: other limits may judge it otherwise."""
        return f"{self.max_bytes} bytes, {self.image.min_side} to {self.image.max_pixels} pixels"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
