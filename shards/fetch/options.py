"""Options of ``posters fetch``."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Annotated

from shards.errors import UserError
from shards.executors.local import ExecutorOptions
from shards.inputs.images import ImageOptions
from shards.options import option
from shards.storage.paths import StoragePath, storage_path
from shards.tables.table import TableOptions
from shards.values import Checked, Count, NotNegative, Positive, at_least


@dataclass(frozen=True)
class FetchOptions(TableOptions, ExecutorOptions, Checked):
    """Links to download, the output folder, limits and timeouts."""

    metadata: StoragePath = option(MISSING, parse=storage_path)
    """Table with ids and links."""
    out: StoragePath = option(MISSING, parse=storage_path)
    """Folder or URL for the posters and rejected.csv."""
    url_column: str = option(MISSING)
    """Column of the links, by name or number from 0."""
    concurrency: Count = 64
    """Number of links that each machine or worker downloads at the same time, over all hosts."""
    per_host: Count = 8
    """Number of requests to one host at the same time. Cluster workers share this number, and each gets at least 1."""
    timeout: Positive = 30.0
    """Time limit of a request in seconds, from the connection to the last byte."""
    connect_timeout: Positive = 10.0
    """Time limit for opening a connection, in seconds."""
    retries: Annotated[int, at_least(0, "0 or more")] = 3
    """Number of retries of a link after temporary failures."""
    backoff: NotNegative = option(0.5, hidden=True)
    """Pause before the first retry in seconds. The pause doubles with each retry."""
    max_wait: NotNegative = option(60.0, hidden=True)
    """Longest accepted Retry-After of a server, in seconds. After a longer value, only a later run tries again."""
    max_bytes: Count = 20_000_000
    """Largest file in bytes. Larger files are rejected."""
    image: ImageOptions = option(factory=ImageOptions, only=("min_side", "max_pixels"))
    user_agent: str = "poster-toolkit"
    """User-Agent header of each request."""
    allow_private: bool = False
    """Allow links to this machine and to private networks."""
    retry_rejected: bool = False
    """Try again the links that an earlier run rejected."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            # The text is put into a header unchanged.
            raise UserError("option-value", "--user-agent takes one line of printable ASCII")

    def limits(self) -> str:
        """Return the limits as text. A rejected link is tried again if the limits have changed since its rejection."""
        return f"{self.max_bytes} bytes, {self.image.min_side} to {self.image.max_pixels} pixels"
