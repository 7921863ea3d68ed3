"""The commands ``posters shards build``, ``info``, ``verify`` and ``index``."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field

import msgspec
from rich.console import Console
from rich.table import Table

from shards.build.dry_run import dry_run
from shards.build.dry_run import render as render_plan
from shards.build.index.place import place_of_set
from shards.build.index.tar_places import NO_ENTRY, NO_SPLIT, NO_TAR
from shards.build.index.tars import NO_SAMPLES, REJECTED, IndexOptions, index_folder
from shards.build.run import BuildOptions, build_shards
from shards.build.verify import verify_shards
from shards.console import console
from shards.dataset.cache_options import CacheOptions
from shards.dataset.manifest import Manifest, Source, column_sums
from shards.errors import UserError, printable_line
from shards.executors.local import WorkersOption
from shards.options import option
from shards.storage.paths import StoragePath, is_remote, storage_path


@dataclass(frozen=True)
class InfoOptions:
    """Options of ``posters shards info``."""

    shards: StoragePath = option(MISSING, positional=True, parse=storage_path)
    """Folder or URL that contains manifest.json."""


@dataclass(frozen=True)
class VerifyOptions(WorkersOption):
    """Options of ``posters shards verify``."""

    shards: StoragePath = option(MISSING, positional=True, parse=storage_path)
    """Local folder with manifest.json."""
    cache: CacheOptions = field(default_factory=CacheOptions)


def run_build(options: BuildOptions) -> int:
    """Build a shard set, print a summary and return the exit status."""
    options.check_executor()
    if options.dry_run:
        plan = dry_run(options)
        render_plan(plan, console())
        if plan.problem:
            raise UserError("table-row", plan.problem)
        return 0
    manifest = build_shards(options)
    render_info(manifest, console())
    source = manifest.source
    columns = f"ids in column {source['id_column']!r}, genres in column {source['genre_column']!r}"
    read, counts = options.metadata or options.images, f"{source['samples']} of {source['rows']}"
    print(f"read            {read}: {columns}; {counts} posters are usable")
    print(f"shards          {options.out}")
    if any(source["rejected"].values()):
        print(f"rejected        {options.out / 'rejected.csv'}")
    return 0


def run_info(options: InfoOptions) -> int:
    """Print a summary of a shard set and return the exit status."""
    render_info(Manifest.read(options.shards), console())
    return 0


def run_verify(options: VerifyOptions) -> int:
    """Verify a shard set, print the problems and return the exit status: 1 if there is a problem, else 0."""
    if is_remote(options.shards):
        why = "only a shard set in a local folder can be verified; copy the set to a folder first"
        others = "Commands that read shards from a URL compare the SHA-256 of each file with the manifest"
        raise UserError("url-refused", f"{options.shards}: {why}. {others}")
    manifest, problems = verify_shards(options.shards, options.workers, options.cache)
    samples = sum(shard.samples for shard in manifest.shards)
    if not problems:
        print(f"{options.shards} is sound: {len(manifest.shards)} shards, {samples} samples, all decoded")
        return 0
    for problem in problems:
        print(printable_line(problem))
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    remedy = "delete the named tars and run the build of the set again"
    print(f"{options.shards} has {count} in {len(manifest.shards)} shards; {remedy}")
    return 1


def run_index(options: IndexOptions) -> int:
    """Index the tars at a place, print a summary and return the exit status."""
    manifest = index_folder(options)
    folder = place_of_set(options.folder, options.out).folder
    render_info(manifest, console())
    reasons: dict[str, int] = manifest.source.get("rejected", {})
    samples = sum(shard.samples for shard in manifest.shards)
    left_out = sum(count for reason, count in reasons.items() if reason not in (NO_TAR, NO_SAMPLES, NO_SPLIT, NO_ENTRY))
    print(f"taken           {samples} of {samples + left_out} samples")
    if manifest.source.get("other_members"):
        print(f"other members   {manifest.source['other_members']}")
    if reasons:
        print(f"rejected        {folder / REJECTED}")
    if options.out is not None:
        print(f"shards          {folder}")
    if not manifest.genres:
        print("no genres found: the set is for prediction only; to train, pass --genre-field or --metadata")
    return 0


def render_info(manifest: Manifest, console: Console) -> None:
    """Print the splits, sizes and genres of a shard set."""
    summary = manifest.split_summary()
    total = max(sum(split["samples"] for split in summary.values()), 1)
    table = Table(title="Splits", title_justify="left")
    for name in ("split", "samples", "share", "shards", "MB", "KB/sample"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in summary.items():
        samples, size = split["samples"], split["bytes"]
        each = f"{size / 1e6:.1f}", f"{size / 1e3 / max(samples, 1):.1f}"
        table.add_row(printable_line(name), f"{samples:,}", f"{samples / total:.1%}", str(split["shards"]), *each)
    console.print(table)

    sums = column_sums(manifest.shards, len(manifest.genres))
    genres = Table(title=f"Genres ({len(manifest.genres)})", title_justify="left")
    genres.add_column("genre")
    for name in ("samples", "prevalence", *summary):
        genres.add_column(printable_line(name), justify="right")
    for count, genre in sorted(zip(sums, manifest.genres, strict=True), key=lambda pair: (-pair[0], pair[1])):
        parts = (split["genre_counts"][genre] for split in summary.values())
        shares = [f"{part:,} ({part / max(count, 1):.0%})" for part in parts]
        genres.add_row(printable_line(genre), f"{count:,}", f"{count / total:.1%}", *shares)
    console.print(genres)

    height = max((shard.max_height for shard in manifest.shards), default=0)
    width = max((shard.max_width for shard in manifest.shards), default=0)
    console.print(f"largest image   {width} x {height} pixels (width x height)")
    source = msgspec.convert(manifest.source, Source)
    if rejected := [f"{count} {printable_line(reason)}" for reason, count in source.rejected.items()]:
        console.print(f"rejected rows   {', '.join(rejected)}")
    if source.duplicate_groups:
        groups = f"{source.duplicate_groups} groups, each group within one split"
        console.print(f"duplicates      {source.samples_in_duplicate_groups} samples in {groups}")
    if manifest.weighted:
        column = f"column {printable_line(repr(source.weight_column))} of the table"
        console.print(f"sample weights  from {'the JSON of each sample' if source.indexed else column}")
    if manifest.tars is not None:
        console.print(f"tars            {printable_line(manifest.tars)}", soft_wrap=True)
    console.print(f"labels          {manifest.labels.fingerprint}")
    console.print(f"shard set       {manifest.fingerprint}")
