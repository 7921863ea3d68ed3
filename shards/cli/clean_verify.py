"""``posters referee``."""

from __future__ import annotations

from rich.table import Table

from shards.clean.verify import CLEAN_ENOUGH, RefereeCommand, judge
from shards.console import console
from shards.storage.files import write_json


def run_referee(options: RefereeCommand) -> int:
    """Look, and show what was found; returns the exit status."""
    found = judge(options.images, options.cleaned, options.look, options.sample, options.workers)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("posters", f"{found['posters']}, {found['posters_with_text']} with text")
    table.add_row("text before", f"{found['text_before_mean']:.2%} of the picture on average")
    table.add_row(
        "text after", f"{found['text_after_mean']:.2%} of the picture, {found['text_after_of_before']:.2%} of before"
    )
    table.add_row(
        "clean enough", f"{found['clean_enough']:.1%} of posters keep {CLEAN_ENOUGH:.0%} of their text or less"
    )
    table.add_row("altered", f"{found['altered_median']:.1%} of the picture (median)")
    table.add_row("seconds", f"{found['seconds_mean']:.2f} a poster and core, cleaning")
    for row in found["worst"][:5]:
        table.add_row("left on", f"{row['id']}: {row['before']:.2%} before, {row['after']:.2%} after")
    console().print(table)
    if options.json:
        write_json(options.json, found)
        print(f"figures    {options.json}")
    return 0
