"""Options that several commands have: the CSV's columns, and which posters are good enough."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import UserError

if TYPE_CHECKING:  # asking for help loads no NumPy
    from shards.dataset.cache_options import CacheOptions
    from shards.dataset.store import ShardStore


def add_columns(parser: argparse.ArgumentParser, genres: bool = True) -> None:
    """Where a CSV has its ids (and genres), and how its text is encoded."""
    parser.add_argument("--id-column", help="CSV column of ids, by name or number (default 0)")
    if genres:
        parser.add_argument(
            "--genre-column",
            help="CSV column of genres, by name or number (default: the one named genre, label or tag, or their "
            "plurals; else 3 if it holds lists). Naming it also insists on classes that are numbers, years or all "
            "the same",
        )
        parser.add_argument(
            "--genre-separator", default="|", help="separator where genres are no list (default '|')"
        )
        parser.add_argument(
            "--spellings",
            choices=("merge", "refuse"),
            default="merge",
            help="genres that differ only in case, spaces, invisible characters or Unicode form: merge them and say "
            "so (default), or refuse the table",
        )
    parser.add_argument("--encoding", default="utf-8-sig", help="text encoding of the CSV (default UTF-8)")


def add_limits(parser: argparse.ArgumentParser, aspect: bool = True) -> None:
    """Which posters are rejected for their size (and shape)."""
    parser.add_argument("--min-side", type=int, default=32, help="reject posters with a shorter side, pixels")
    parser.add_argument("--max-pixels", type=int, default=64_000_000, help="reject larger posters as bombs")
    if aspect:
        parser.add_argument("--aspect", metavar="LOW,HIGH", help="reject posters of another width / height")


def add_executor(parser: argparse.ArgumentParser, workers: bool = True) -> None:
    """Who does the work."""
    group = parser.add_argument_group("who does the work")
    group.add_argument(
        "--executor",
        choices=("local", "dask"),
        default="local",
        help="this machine (default), or the workers of a Dask scheduler",
    )
    group.add_argument(
        "--scheduler", metavar="ADDRESS", help="tcp://HOST:PORT of the Dask scheduler, or its scheduler file"
    )
    if workers:
        group.add_argument("--workers", type=int, default=0, help="worker processes (local; 0: one per core)")
    group.add_argument(
        "--take-over",
        action="store_true",
        help="go on although a run on another machine, which must be dead, claims --out (a URL)",
    )


def parse_scheduler(args: argparse.Namespace) -> str | None:
    """The Dask scheduler; None for this machine. Raises UserError for options that do not go together."""
    scheduler: str | None = args.scheduler
    if args.executor == "dask":
        if not scheduler:
            raise UserError(
                "--executor dask needs --scheduler: tcp://HOST:PORT, or the path of a scheduler file"
            )
        if getattr(args, "workers", 0):
            raise UserError(
                "--workers is for --executor local; a Dask cluster has the workers that were started"
            )
        return scheduler
    if scheduler:
        raise UserError(f"--scheduler {scheduler} is for --executor dask, which was not asked for")
    return None


def add_max_rejected(parser: argparse.ArgumentParser, what: str) -> None:
    """How many bad rows are too many."""
    parser.add_argument(
        "--max-rejected",
        default="5%",
        metavar="SHARE",
        help=f"fail if more of the rows whose image is there have {what} (default 5%%)",
    )


def parse_share(text: str) -> float:
    """``0.05`` or ``5%`` → 0.05. Raises UserError."""
    number, percent = (text.strip()[:-1], True) if text.strip().endswith("%") else (text, False)
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError(f"--max-rejected takes a share such as 0.05 or 5%, not {text!r}")
    return share


def parse_aspect(text: str | None) -> tuple[float, float] | None:
    """``0.5,0.9`` → (0.5, 0.9). Raises UserError."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--aspect takes two ratios of width to height such as 0.5,0.9, not {text!r}"
        ) from None
    return low, high


def parse_limit(text: str) -> int:
    """Bytes of ``200GB``, ``1.5 TiB``, ``500 MB`` or a plain number. Raises UserError.

    >>> parse_limit("2kB"), parse_limit("1 GiB"), parse_limit("0")
    (2000, 1073741824, 0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?))?b?\s*", text.lower())
    if found is None:
        raise UserError(f"--cache-limit takes a size such as 200GB or 1.5TiB, not {text!r}")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** (" kmgtp".index(prefix) if prefix else 0))


#: Options of whatever reads shards, beside ``--shards``: (name, metavar, help).
CACHE_OPTIONS = (
    (
        "--cache-dir",
        "DIR",
        "where shards at a URL are kept on this node (default: $POSTERS_CACHE, else ~/.cache/poster-toolkit)",
    ),
    ("--cache-limit", "SIZE", "how much of them is kept there, such as 200GB (default: all)"),
    (
        "--patience",
        "SECONDS",
        "for how long a store that does not answer, or hardly sends, is asked again (default 300)",
    ),
)


def add_shards(parser: Any, text: str, required: bool = True) -> None:
    """``--shards``, a folder or a URL, and how what comes from a URL is kept. ``parser`` may be a group of one."""
    parser.add_argument(
        "--shards", required=required, help=f"{text}: a folder or URL (s3://, gs://, hf://, http://)"
    )
    add_cache_options(parser)


def add_cache_options(parser: Any) -> None:
    """The options of CACHE_OPTIONS, as text."""
    for name, metavar, text in CACHE_OPTIONS:
        parser.add_argument(name, type=str, metavar=metavar, help=text)


def cache_options(args: Any) -> CacheOptions:
    """What these options say. Raises UserError."""
    from shards.dataset.cache_options import CacheOptions

    given = CacheOptions()
    if args.cache_dir:
        given = replace(given, folder=Path(args.cache_dir))
    if args.cache_limit:
        given = replace(given, limit=parse_limit(args.cache_limit))
    if args.patience:
        if not re.fullmatch(r"\d+(\.\d+)?", args.patience):
            raise UserError(f"--patience takes seconds, 0 or more, not {args.patience!r}")
        given = replace(given, patience=float(args.patience))
    return given


def store_of(args: Any) -> ShardStore:
    """The store that ``--shards`` names. Raises UserError for a URL that cannot be used here."""
    from shards.dataset.store import open_store

    return open_store(args.shards, cache_options(args))
