"""Options that several commands have: the CSV's columns, and which posters are good enough."""

from __future__ import annotations

import argparse

from shards.errors import UserError


def add_columns(parser: argparse.ArgumentParser, genres: bool = True) -> None:
    """Where a CSV has its ids (and genres), and how its text is encoded."""
    parser.add_argument("--id-column", default="0", help="CSV column of ids, by name or number (default 0)")
    if genres:
        parser.add_argument(
            "--genre-column", default="3", help="CSV column of genres, by name or number (default 3)"
        )
        parser.add_argument(
            "--genre-separator", default="|", help="separator where genres are no list (default '|')"
        )
    parser.add_argument("--encoding", default="utf-8-sig", help="text encoding of the CSV (default UTF-8)")


def add_limits(parser: argparse.ArgumentParser, aspect: bool = True) -> None:
    """Which posters are rejected for their size (and shape)."""
    parser.add_argument("--min-side", type=int, default=32, help="reject posters with a shorter side, pixels")
    parser.add_argument("--max-pixels", type=int, default=64_000_000, help="reject larger posters as bombs")
    if aspect:
        parser.add_argument("--aspect", metavar="LOW,HIGH", help="reject posters of another width / height")


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
