"""The command ``posters fetch``."""

from __future__ import annotations

from shards.fetch.options import FetchOptions
from shards.fetch.run import fetch_posters


def run_fetch(options: FetchOptions) -> int:
    """Download the posters and return the exit status."""
    options.check_executor()
    fetch_posters(options)
    return 0
