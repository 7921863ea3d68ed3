"""``posters clean``."""

from __future__ import annotations

import argparse
import time
from collections import Counter

from rich.table import Table

from shards.cli.arguments import (
    add_columns,
    add_executor,
    add_limits,
    add_max_rejected,
    parse_aspect,
    parse_scheduler,
    parse_share,
)
from shards.cli.text_options import add_text_options, text_options
from shards.console import console
from shards.storage.paths import place


def add_clean_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``clean`` to a command tree."""
    parser = commands.add_parser("clean", help="paint the text of posters over, and prove that it is gone")
    parser.add_argument("--images", type=place, required=True, help="folder of raw posters, or its URL")
    parser.add_argument("--metadata", type=place, required=True, help="CSV with ids and genre lists")
    parser.add_argument("--out", type=place, required=True, help="folder for cleaned posters, or its URL")
    add_columns(parser)
    add_limits(parser)
    add_max_rejected(parser, "unreadable genres")
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="keep one of posters taken for one another"
    )
    parser.add_argument(
        "--near-duplicates", type=int, help="largest hash distance taken for one poster (0-15 bits)"
    )
    parser.add_argument(
        "--quality", type=int, default=95, help="JPEG quality of painted posters (default 95)"
    )
    parser.add_argument(
        "--sheet", type=int, default=48, help="posters on the contact sheet (default 48, 0: none)"
    )
    add_executor(parser)
    add_text_options(parser)
    parser.set_defaults(run=_clean)


def _clean(args: argparse.Namespace) -> int:
    from shards.clean.contact_sheet import PAGE, summary_lines
    from shards.clean.run import CleanOptions, clean_posters
    from shards.inputs.duplicates import MAX_DISTANCE
    from shards.inputs.images import ImageOptions
    from shards.text.report import summarize

    options = CleanOptions(
        images=args.images,
        metadata=args.metadata,
        out=args.out,
        id_column=args.id_column,
        genre_column=args.genre_column,
        genre_separator=args.genre_separator,
        encoding=args.encoding,
        spellings=args.spellings,
        max_rejected=parse_share(args.max_rejected),
        image=ImageOptions(
            min_side=args.min_side, max_pixels=args.max_pixels, aspect=parse_aspect(args.aspect)
        ),
        drop_duplicates=args.drop_duplicates,
        near_duplicates=MAX_DISTANCE if args.near_duplicates is None else args.near_duplicates,
        text=text_options(args),
        quality=args.quality,
        sheet=args.sheet,
        workers=args.workers,
        scheduler=parse_scheduler(args),
        take_over=args.take_over,
    )
    started = time.monotonic()
    result = clean_posters(options)
    seconds = time.monotonic() - started
    table = Table(show_header=False, box=None, pad_edge=False)
    for what, value in summary_lines(summarize(result.rows)):
        table.add_row(what, value)
    if result.cleaned_now:
        rate = result.cleaned_now / seconds
        workers = result.slots
        table.add_row("speed", f"{rate:.2f} images/s on {workers} processes, {rate / workers:.2f} on each")
    for reason, count in sorted(Counter(r.reason for r in result.rejected).items()):
        table.add_row("rejected", f"{count} {reason}")
    console().print(table)
    print(f"posters    {options.out}")
    print(f"report     {options.out / 'clean_report.parquet'}")
    if result.rejected:
        print(f"rejected   {options.out / 'rejected.csv'}")
    if options.sheet:
        print(f"look at    {options.sheet_folder / PAGE}")
    return 0
