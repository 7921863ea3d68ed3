"""``posters referee``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from shards.console import console
from shards.errors import UserError


def add_referee_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``referee`` to a command tree."""
    parser = commands.add_parser(
        "referee", help="look for text on cleaned posters, more strictly than cleaning did"
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of raw posters")
    parser.add_argument("--cleaned", type=Path, required=True, help="folder made by `posters clean`")
    parser.add_argument("--sample", type=int, default=0, help="look at so many posters only (default 0: all)")
    parser.add_argument(
        "--side", type=int, default=1152, help="short side of the searched copy (default 1152)"
    )
    parser.add_argument("--pixel-threshold", type=float, default=0.15, help="below cleaning's 0.2")
    parser.add_argument("--region-threshold", type=float, default=0.25, help="below cleaning's 0.3")
    parser.add_argument(
        "--no-anchor",
        action="store_true",
        help="no line of known text below the picture: the network then finds text in pictures without any",
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--workers", type=int, default=0, help="worker processes (0: one per core)")
    parser.set_defaults(run=_referee)


def _referee(args: argparse.Namespace) -> int:
    from shards.clean.verify import CLEAN_ENOUGH, RefereeOptions, judge
    from shards.storage.files import write_json

    if args.sample < 0:
        raise UserError(f"--sample must be 0 or more posters, not {args.sample}")
    options = RefereeOptions(args.side, args.pixel_threshold, args.region_threshold, not args.no_anchor)
    found = judge(args.images, args.cleaned, options, args.sample, args.workers)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("posters", f"{found['posters']}, {found['posters_with_text']} with text")
    table.add_row("text before", f"{found['text_before_mean']:.2%} of the picture on average")
    table.add_row(
        "text after",
        f"{found['text_after_mean']:.2%} of the picture, {found['text_after_of_before']:.2%} of before",
    )
    table.add_row(
        "clean enough",
        f"{found['clean_enough']:.1%} of posters keep {CLEAN_ENOUGH:.0%} of their text or less",
    )
    table.add_row("altered", f"{found['altered_median']:.1%} of the picture (median)")
    table.add_row("seconds", f"{found['seconds_mean']:.2f} a poster and core, cleaning")
    for row in found["worst"][:5]:
        table.add_row("left on", f"{row['id']}: {row['before']:.2%} before, {row['after']:.2%} after")
    console().print(table)
    if args.json:
        write_json(args.json, found)
        print(f"figures    {args.json}")
    return 0
