"""Tables that people read about a shard set."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from shards.dataset.manifest import Manifest, column_sums
from shards.errors import printable_line


def render_info(manifest: Manifest, console: Console) -> None:
    """Print splits, sizes and genres of a shard set on one of shards/console.py's."""
    summary = manifest.split_summary()
    total = sum(split["samples"] for split in summary.values())
    table = Table(title="Splits", title_justify="left")
    for name in ("split", "samples", "share", "shards", "MB", "KB/sample"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in summary.items():
        table.add_row(
            printable_line(name),
            f"{split['samples']:,}",
            f"{split['samples'] / max(total, 1):.1%}",
            str(split["shards"]),
            f"{split['bytes'] / 1e6:.1f}",
            f"{split['bytes'] / 1e3 / max(split['samples'], 1):.1f}",
        )
    console.print(table)

    sums = column_sums(manifest.shards, len(manifest.genres))
    genres = Table(title=f"Genres ({len(manifest.genres)})", title_justify="left")
    genres.add_column("genre")
    for name in ("samples", "prevalence", *summary):
        genres.add_column(printable_line(name), justify="right")
    for count, genre in sorted(zip(sums, manifest.genres, strict=True), key=lambda pair: (-pair[0], pair[1])):
        parts = [split["genre_counts"][genre] for split in summary.values()]
        genres.add_row(
            printable_line(genre),
            f"{count:,}",
            f"{count / max(total, 1):.1%}",
            *(f"{part:,} ({part / max(count, 1):.0%})" for part in parts),
        )
    console.print(genres)

    height = max((shard.max_height for shard in manifest.shards), default=0)
    width = max((shard.max_width for shard in manifest.shards), default=0)
    console.print(f"largest image   {width} x {height} pixels (width x height)")
    rejected = manifest.source.get("rejected", {})
    if rejected:
        console.print(
            "rejected rows   " + ", ".join(f"{count} {printable_line(reason)}" for reason, count in rejected.items())
        )
    if manifest.source.get("duplicate_groups"):
        console.print(
            f"duplicates      {manifest.source.get('samples_in_duplicate_groups', 0)} samples in "
            f"{manifest.source['duplicate_groups']} groups, each group within one split"
        )
    console.print(f"labels          {manifest.labels.fingerprint}")
    console.print(f"shard set       {manifest.fingerprint}")
