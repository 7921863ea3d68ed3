"""Show what a build would read and pack, without writing a file: ``posters shards build --dry-run``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from shards.build.planning import splits_of_table
from shards.build.run import BuildOptions, read_tables
from shards.dataset.labels import LabelSet
from shards.errors import UserError, printable_line
from shards.executors.local import LocalExecutor
from shards.inputs.duplicates import perceptual_hashes, poster_signature
from shards.inputs.image_files import default_image_folder, read_image_file, require_images
from shards.inputs.images import BadImage, decode, pack_image
from shards.inputs.listing import Listed, find_posters
from shards.inputs.rejections import Rejection, first_reasons
from shards.storage.paths import StoragePath
from shards.tables.metadata import Metadata, Row
from shards.tables.row_checks import NOT_COUNTED, no_match, with_known_genres

#: Number of rows of the table on the screen, and of posters whose packing is timed.
SHOWN, TIMED = 10, 24
#: Reason of a rejection → what to do about it.
REMEDIES = {
    "missing file": "correct --images or the column of ids, or download the posters with `posters fetch`",
    "no genres": "add genres to these rows, or leave them out",
    "unparsable genres": "write the cells as Drama|War or ['Drama', 'War'], or as 0 or 1 if each genre has a column",
    "bad row": "correct the number of cells; a text with the separator of the columns needs quotes",
    "bad id": "write file names or paths below the image folder",
    "repeated id": "no change is needed, because the earlier row has the same genres",
    "conflicting rows": "correct the other row of this id, keep one row for each id, or write one genre in each row",
    "no weight": "write a number into the column of weights",
    "bad weight": "write a number above 0, with a point: 0.5",
    "no split": "write train, val or test into the column of splits",
}


@dataclass(frozen=True)
class DryRun:
    """What a build would do."""

    metadata: Metadata
    rows: list[Row]
    """Rows with an image and with genres. Images are not decoded, so a build can still reject some of them."""
    files: dict[str, Listed]
    rejected: list[Rejection]
    labels: LabelSet
    seconds: float
    """Estimated time of the build in seconds."""
    problem: str = ""
    """Why a build would stop, such as too many unreadable rows. Empty if a build would not stop."""


def dry_run(options: BuildOptions) -> DryRun:
    """Read the table, look for the images, and time some of them. Write nothing.

    Raises UserError if the table cannot be read, or if no row has an image.
    """
    images = options.images or default_image_folder(Path.cwd())
    require_images(images)
    given, metadata, _ = read_tables(options, images)
    files = find_posters(images, [row.id for row in metadata.rows], metadata.paths)
    rows = [row for row in metadata.rows if row.id in files]
    missing = [Rejection(row.id, "missing file") for row in metadata.rows if row.id not in files]
    labels = given or LabelSet.from_samples(row.genres for row in rows)
    rows, unknown = with_known_genres(rows, labels)
    rejected = metadata.rejected + missing + unknown
    if not rows:
        reasons = first_reasons(rejected)
        why = f"{metadata.path} has no usable row: {reasons}"
        if missing and not files:
            why = no_match(options, images, metadata, [r.id for r in missing])
        raise UserError("table-row", why)
    if any(row.split for row in rows):
        splits_of_table(rows, np.arange(len(rows)))
    timed = rows[:: max(1, len(rows) // TIMED)][:TIMED]
    seconds = _seconds(options, images, timed, files) * len(rows) / max(1, len(timed))
    seconds /= LocalExecutor(options.workers).slots()
    problem = _problem(options, images, metadata, len(files))
    return DryRun(metadata, rows, files, rejected, labels, seconds, problem)


def _problem(options: BuildOptions, images: StoragePath, metadata: Metadata, good: int) -> str:
    """Return a message if the share of unreadable rows exceeds --max-rejected. Count only rows with an image."""
    unreadable = [r for r in metadata.rejected if r.reason not in (*NOT_COUNTED, "no split")]
    there = find_posters(images, list({r.id for r in unreadable}), metadata.paths, quiet=True) if unreadable else {}
    bad = [r for r in unreadable if r.id in there]
    if len(bad) <= options.max_rejected * (good + len(bad)):
        return ""
    counts = f"{len(bad)} of {good + len(bad)} rows with an image are unreadable"
    return f"a build stops: {counts}, over --max-rejected {100 * options.max_rejected:g}%: {first_reasons(bad)}"


def _seconds(options: BuildOptions, images: StoragePath, rows: Sequence[Row], files: dict[str, Listed]) -> float:
    """Return the seconds that one process needs to check and pack the posters of some rows."""
    started = time.perf_counter()
    for row in rows:
        try:
            data = read_image_file(images, row.id, files[row.id].name)
            image = decode(data, options.image)
            perceptual_hashes(image)
            poster_signature(image)
            pack_image(data, options.image)
        except BadImage:
            continue
    return time.perf_counter() - started


def render(plan: DryRun, console: Console) -> None:
    """Print the first rows as a table, the genres, the rejected rows with remedies, and the estimated time."""
    console.print(f"{printable_line(str(plan.metadata.path))}: {printable_line(plan.metadata.reading)}")
    more = {"split": lambda row: row.split} if any(row.split for row in plan.rows) else {}
    if any(row.weight is not None for row in plan.rows):
        more["weight"] = lambda row: f"{row.weight:g}"
    table = Table(title=f"The first {min(SHOWN, len(plan.rows))} of {len(plan.rows)} posters", title_justify="left")
    for name in ("id", "file", "genres", *more):
        table.add_column(name, overflow="fold")
    for row in plan.rows[:SHOWN]:
        cells = row.id, plan.files[row.id].name, ", ".join(row.genres), *(text(row) for text in more.values())
        table.add_row(*map(printable_line, cells))
    console.print(table)
    counts = Counter(genre for row in plan.rows for genre in row.genres)
    genres = Table(title=f"Genres ({len(plan.labels)})", title_justify="left")
    genres.add_column("genre")
    genres.add_column("posters", justify="right")
    for genre in sorted(plan.labels.genres, key=lambda name: (-counts[name], name)):
        genres.add_row(printable_line(genre), f"{counts[genre]:,}")
    console.print(genres)
    if plan.rejected:
        console.print(_rejections(plan.rejected))
    console.print(f"usable          {len(plan.rows)} of {plan.metadata.posters} posters have genres and an image")
    console.print(f"estimated time  {_duration(plan.seconds)}; without --dry-run the set is built")


def _rejections(rejected: Sequence[Rejection]) -> Table:
    table = Table(title=f"Rejected ({len(rejected)})", title_justify="left")
    for name in ("reason", "rows", "first id", "what to do"):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    first = {rejection.reason: rejection for rejection in reversed(rejected)}
    for reason, count in Counter(rejection.reason for rejection in rejected).most_common():
        detail = f"{first[reason].id} ({first[reason].detail})" if first[reason].detail else first[reason].id
        table.add_row(reason, f"{count:,}", printable_line(detail), REMEDIES.get(reason, "see the detail"))
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
