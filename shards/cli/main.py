"""``posters shards build | info | verify | index``."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from shards.build.index_tars import NO_SAMPLES, NO_TAR, REJECTED, AdoptOptions, index_folder
from shards.build.info import render_info
from shards.build.run import BuildOptions, build_shards
from shards.build.verify import verify_shards
from shards.console import console
from shards.dataset.manifest import Manifest
from shards.errors import UserError, printable_line
from shards.executors.local import WorkersOption
from shards.options import option
from shards.storage.paths import Place, is_remote, place


@dataclass(frozen=True)
class InfoOptions:
    """What ``posters shards info`` is asked for."""

    shards: Place = option(MISSING, positional=True, parse=place)
    """Folder with manifest.json, or its URL."""


@dataclass(frozen=True)
class VerifyOptions(WorkersOption):
    """What ``posters shards verify`` is asked for."""

    shards: Place = option(MISSING, positional=True, parse=place)
    """Folder with manifest.json."""


def run_build(options: BuildOptions) -> int:
    """Build, and describe the set; returns the exit status."""
    options.check_executor()
    manifest = build_shards(options)
    render_info(manifest, console())
    source = manifest.source
    rejected = sum(source["rejected"].values())
    print(
        f"read            {options.metadata}: ids in column {source['id_column']!r}, genres in column "
        f"{source['genre_column']!r}; {source['samples']} of {source['rows']} posters are usable"
    )
    print(f"shards          {options.out}")
    if rejected:
        print(f"rejected        {options.out / 'rejected.csv'}")
    return 0


def run_info(options: InfoOptions) -> int:
    """Describe a set; returns the exit status."""
    render_info(Manifest.read(options.shards), console())
    return 0


def run_verify(options: VerifyOptions) -> int:
    """Verify a set; returns the exit status: 1 if anything is wrong."""
    if is_remote(options.shards):
        raise UserError(
            f"{options.shards}: every byte of a set is verified in a folder; copy it to one first. Commands that read "
            f"shards from a URL compare each one's SHA-256 with the manifest's as it comes"
        )
    manifest, problems = verify_shards(options.shards, options.workers)
    samples = sum(shard.samples for shard in manifest.shards)
    if not problems:
        print(f"{options.shards} is sound: {len(manifest.shards)} shards, {samples} samples, all decoded")
        return 0
    for problem in problems:
        print(printable_line(problem))
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(
        f"{options.shards} has {count} in {len(manifest.shards)} shards; "
        f"delete the named tars and run their build again"
    )
    return 1


def run_index(options: AdoptOptions) -> int:
    """Index a folder of tars, and describe it; returns the exit status."""
    manifest = index_folder(options)
    render_info(manifest, console())
    reasons: dict[str, int] = manifest.source.get("rejected", {})
    samples = sum(shard.samples for shard in manifest.shards)
    left_out = sum(count for reason, count in reasons.items() if reason not in (NO_TAR, NO_SAMPLES))
    print(f"taken           {samples} of {samples + left_out} samples")
    if manifest.source.get("other_members"):
        print(f"other members   {manifest.source['other_members']}")
    if reasons:
        print(f"rejected        {options.folder / REJECTED}")
    if not manifest.genres:
        print("no genres found: the set can be predicted on, not trained on (see --genre-field and --metadata)")
    return 0
