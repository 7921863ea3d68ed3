"""The commands ``posters clean`` (remove text) and ``posters referee`` (measure the remaining text)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from rich.table import Table

from shards.clean.contact_sheet import PAGE, summary_lines
from shards.clean.run import CleanOptions, clean_posters
from shards.clean.verify import CLEAN_ENOUGH, RefereeCommand, compare_text
from shards.console import console
from shards.storage.files import write_json
from shards.text.report import summarize


def run_clean(options: CleanOptions) -> int:
    """Clean the posters, print a summary and return the exit status."""
    options.check_executor()
    started = time.monotonic()
    result = clean_posters(options)
    seconds = time.monotonic() - started
    rows = [*summary_lines(summarize(result.rows))]
    if result.cleaned_now:
        rate = result.cleaned_now / seconds
        workers = result.slots
        rows.append(("speed", f"{rate:.2f} images/s on {workers} processes, {rate / workers:.2f} on each"))
    reasons = Counter(r.reason for r in result.rejected)
    _show([*rows, *(("rejected", f"{count} {reason}") for reason, count in sorted(reasons.items()))])
    print(f"posters    {options.out}")
    print(f"report     {options.out / 'clean_report.parquet'}")
    if result.rejected:
        print(f"rejected   {options.out / 'rejected.csv'}")
    if options.sheet:
        print(f"look at    {options.sheet_folder / PAGE}")
    return 0


def run_referee(options: RefereeCommand) -> int:
    """Compare the text in posters before and after cleaning, print the results and return the exit status."""
    found = compare_text(options.images, options.cleaned, options.referee, options.sample, options.workers)
    after = f"{found['text_after_mean']:.2%} of the picture"
    kept = f"{found['text_after_of_before']:.2%} of the text before"
    left = [(row["id"], f"{row['before']:.2%} before, {row['after']:.2%} after") for row in found["worst"][:5]]
    _show([
        ("posters", f"{found['posters']}, {found['posters_with_text']} with text"),
        ("text before", f"{found['text_before_mean']:.2%} of the picture on average"),
        ("text after", f"{after}, {kept}"),
        ("clean enough", f"{found['clean_enough']:.1%} of posters keep {CLEAN_ENOUGH:.0%} of their text or less"),
        ("altered", f"{found['altered_median']:.1%} of the picture (median)"),
        ("seconds", f"{found['seconds_mean']:.2f} per poster and core, for cleaning"),
        *(("most text left", f"{name}: {shares}") for name, shares in left),
    ])  # fmt: skip
    if options.json:
        write_json(options.json, found)
        print(f"figures    {options.json}")
    return 0


def _show(rows: Iterable[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console().print(table)
