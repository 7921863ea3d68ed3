"""``posters clean``."""

from __future__ import annotations

import time
from collections import Counter

from rich.table import Table

from shards.clean.contact_sheet import PAGE, summary_lines
from shards.clean.run import CleanOptions, clean_posters
from shards.console import console
from shards.text.report import summarize


def run_clean(options: CleanOptions) -> int:
    """Clean, and show what came of it; returns the exit status."""
    options.check_executor()
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
