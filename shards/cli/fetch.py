"""``posters fetch``."""

from __future__ import annotations

import argparse

from shards.cli.arguments import add_columns, add_executor, add_limits, parse_scheduler
from shards.storage.paths import place


def add_fetch_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``fetch`` to a command tree."""
    fetch = commands.add_parser("fetch", help="download posters from the links of a CSV")
    fetch.add_argument("--metadata", type=place, required=True, help="CSV with ids and links")
    fetch.add_argument("--url-column", required=True, help="CSV column of links, by name or number")
    fetch.add_argument(
        "--out", type=place, required=True, help="folder for the posters and rejected.csv, or its URL"
    )
    add_columns(fetch, genres=False)
    fetch.add_argument("--concurrency", type=int, default=64, help="links in work at a time (default 64)")
    fetch.add_argument("--per-host", type=int, default=8, help="requests to one host at a time (default 8)")
    fetch.add_argument("--timeout", type=float, default=30.0, help="seconds for a request (default 30)")
    fetch.add_argument(
        "--connect-timeout", type=float, default=10.0, help="seconds for a connection (default 10)"
    )
    fetch.add_argument(
        "--retries", type=int, default=3, help="further tries of failures that may pass (default 3)"
    )
    fetch.add_argument(
        "--max-bytes", type=int, default=20_000_000, help="reject larger files (default 20000000)"
    )
    add_limits(fetch, aspect=False)
    fetch.add_argument("--user-agent", default="poster-toolkit", help="what servers are told we are")
    fetch.add_argument(
        "--allow-private", action="store_true", help="let links lead to this machine and private networks"
    )
    fetch.add_argument(
        "--retry-rejected",
        action="store_true",
        help="try links again that an earlier run found dead for good",
    )
    add_executor(fetch, workers=False)
    fetch.set_defaults(run=_fetch)


def _fetch(args: argparse.Namespace) -> int:
    from shards.fetch.run import FetchOptions, fetch_posters
    from shards.inputs.images import ImageOptions

    fetch_posters(
        FetchOptions(
            metadata=args.metadata,
            out=args.out,
            url_column=args.url_column,
            id_column=args.id_column,
            encoding=args.encoding,
            concurrency=args.concurrency,
            per_host=args.per_host,
            timeout=args.timeout,
            connect_timeout=args.connect_timeout,
            retries=args.retries,
            max_bytes=args.max_bytes,
            image=ImageOptions(min_side=args.min_side, max_pixels=args.max_pixels),
            user_agent=args.user_agent,
            allow_private=args.allow_private,
            retry_rejected=args.retry_rejected,
            scheduler=parse_scheduler(args),
            take_over=args.take_over,
        )
    )
    return 0
