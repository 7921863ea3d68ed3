"""What a user may choose about a download."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Annotated

from shards.errors import UserError
from shards.executors.local import ExecutorOptions
from shards.inputs.csv_table import CsvOptions
from shards.inputs.images import ImageOptions
from shards.options import option
from shards.storage.paths import StoragePath, storage_path
from shards.values import Checked, Count, NotNegative, Positive, at_least


@dataclass(frozen=True)
class FetchOptions(CsvOptions, ExecutorOptions, Checked):
    """Which links, to where, and how patiently."""

    metadata: StoragePath = option(MISSING, parse=storage_path)
    """CSV with ids and links."""
    out: StoragePath = option(MISSING, parse=storage_path)
    """Folder for the posters and rejected.csv, or its URL."""
    url_column: str = option(MISSING)
    """CSV column of the links, by name or number from 0."""
    concurrency: Count = 64
    """Links in work at a time, over all hosts, on each machine or worker."""
    per_host: Count = 8
    """Requests to one host at a time. A cluster's workers share them out, with at least one for each."""
    timeout: Positive = 30.0
    """Seconds for a request, from the connection to the last byte."""
    connect_timeout: Positive = 10.0
    """Seconds for a connection to be made."""
    retries: Annotated[int, at_least(0, "0 or more")] = 3
    """Further tries of a link whose failure may pass."""
    backoff: NotNegative = option(0.5, hidden=True)
    """Seconds before the first further try; they double with each."""
    max_wait: NotNegative = option(60.0, hidden=True)
    """Longest wait in seconds that a server may ask for; who asks for more is asked again in another run."""
    max_bytes: Count = 20_000_000
    """Larger files are not read to their end."""
    image: ImageOptions = option(factory=ImageOptions, only=("min_side", "max_pixels"))
    user_agent: str = "poster-toolkit"
    """What servers are told we are."""
    allow_private: bool = False
    """Let links lead to this machine and to private networks."""
    retry_rejected: bool = False
    """Try links again that an earlier run found dead for good."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.user_agent.isprintable() or not self.user_agent.isascii():
            # It goes into a header as it is.
            raise UserError("option-value", "--user-agent takes a line of plain ASCII")

    def limits(self) -> str:
        """What a rejected poster was judged by: other limits may judge it otherwise."""
        return f"{self.max_bytes} bytes, {self.image.min_side} to {self.image.max_pixels} pixels"
