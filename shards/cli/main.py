"""``posters shards build | info | verify | index``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

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
from shards.dataset.manifest import Manifest
from shards.errors import UserError, printable_line
from shards.storage.paths import is_remote, place

log = logging.getLogger(__name__)


def add_shards_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``shards`` and its four verbs to a command tree."""
    parser = commands.add_parser("shards", help="build, describe, verify or index a shard set")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="build|info|verify|index")
    _add_build(verbs)

    info = verbs.add_parser("info", help="print counts, genres and sizes of a shard set")
    info.add_argument("shards", type=place, help="folder with manifest.json, or its URL")
    info.set_defaults(run=_info)

    verify = verbs.add_parser("verify", help="check every byte, count and image; exit 1 if anything is wrong")
    verify.add_argument("shards", type=place, help="folder with manifest.json")
    verify.add_argument("--workers", type=int, default=0, help="worker processes (0: one per core)")
    verify.set_defaults(run=_verify)

    index = verbs.add_parser(
        "index",
        help="write index and manifest for tars that another tool made",
        description="Write index and manifest for tars that another tool made; they stay as they are. Every image is "
        "decoded once, as a build does: some 2 ms of a core each for posters of 300 x 450 pixels. What is not taken "
        "is in rejected.csv, with its reason.",
    )
    index.add_argument("folder", type=Path, help="folder of .tar files (WebDataset, img2dataset)")
    index.add_argument("--split", default="train", help="split of tars not named train-*, val-* or test-*")
    index.add_argument("--genre-field", default="genres", help="field of each sample's JSON with its genres")
    index.add_argument(
        "--metadata", type=Path, help="CSV with the genres instead, joined by id, key or file name"
    )
    add_columns(index)
    index.add_argument("--workers", type=int, default=0, help="worker processes (0: one per core)")
    index.set_defaults(run=_index)


def _add_build(verbs: argparse._SubParsersAction) -> None:
    build = verbs.add_parser("build", help="pack posters and a CSV into WebDataset shards")
    build.add_argument(
        "--images",
        type=place,
        help="poster folder, or its URL (default: cleaned_posters_local, then Data/cleaned_posters)",
    )
    build.add_argument("--metadata", type=place, required=True, help="CSV with ids and genre lists")
    build.add_argument("--out", type=place, required=True, help="folder for the shard set, or its URL")
    add_columns(build)
    build.add_argument(
        "--labels", type=place, help="labels.json or manifest.json whose genres and order to use"
    )
    build.add_argument(
        "--splits", default="0.8,0.1,0.1", help="shares of train, val, test (default 0.8,0.1,0.1)"
    )
    build.add_argument("--seed", type=int, default=0, help="seed of splits and order (default 0)")
    build.add_argument("--samples-per-shard", type=int, default=1000, help="at most this many posters a tar")
    build.add_argument(
        "--near-duplicates", type=int, help="largest hash distance taken for one poster (0-15 bits)"
    )
    build.add_argument(
        "--short-side", type=int, default=256, help="shrink to this short side, pixels (default 256)"
    )
    build.add_argument(
        "--long-side", type=int, default=512, help="and to this long side, pixels (default 512)"
    )
    build.add_argument(
        "--quality", type=int, default=90, help="JPEG quality of re-encoded posters (default 90)"
    )
    add_limits(build)
    add_max_rejected(build, "unreadable genres or pixels")
    build.add_argument(
        "--split-like", type=place, help="shard set whose splits to use, to compare models between the sets"
    )
    build.add_argument(
        "--text-removal", action="store_true", help="paint the posters' text over, as `posters clean` does"
    )
    add_text_options(build)
    add_executor(build)
    build.add_argument("--overwrite", action="store_true", help="replace another shard set in --out")
    build.set_defaults(run=_build)


def _build(args: argparse.Namespace) -> int:
    from shards.build.info import render_info
    from shards.build.run import BuildOptions, build_shards
    from shards.inputs.duplicates import MAX_DISTANCE
    from shards.inputs.images import ImageOptions

    try:
        fractions = tuple(float(part) for part in args.splits.split(","))
    except ValueError:
        raise UserError(f"--splits takes three numbers such as 0.8,0.1,0.1, not {args.splits!r}") from None
    manifest = build_shards(
        BuildOptions(
            metadata=args.metadata,
            out=args.out,
            images=args.images,
            id_column=args.id_column,
            genre_column=args.genre_column,
            genre_separator=args.genre_separator,
            encoding=args.encoding,
            spellings=args.spellings,
            max_rejected=parse_share(args.max_rejected),
            labels=args.labels,
            fractions=fractions,  # type: ignore[arg-type]  # its length is checked there
            seed=args.seed,
            samples_per_shard=args.samples_per_shard,
            near_duplicates=MAX_DISTANCE if args.near_duplicates is None else args.near_duplicates,
            image=ImageOptions(
                args.short_side,
                args.long_side,
                args.quality,
                args.min_side,
                args.max_pixels,
                parse_aspect(args.aspect),
            ),
            text=text_options(args) if args.text_removal else None,
            split_like=args.split_like,
            workers=args.workers,
            scheduler=parse_scheduler(args),
            take_over=args.take_over,
            overwrite=args.overwrite,
        )
    )
    render_info(manifest, console())
    source = manifest.source
    rejected = sum(source["rejected"].values())
    print(
        f"read            {args.metadata}: ids in column {source['id_column']!r}, genres in column "
        f"{source['genre_column']!r}; {source['samples']} of {source['rows']} posters are usable"
    )
    print(f"shards          {args.out}")
    if rejected:
        print(f"rejected        {args.out / 'rejected.csv'}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from shards.build.info import render_info

    render_info(Manifest.read(args.shards), console())
    return 0


def _verify(args: argparse.Namespace) -> int:
    from shards.build.verify import verify_shards

    if is_remote(args.shards):
        raise UserError(
            f"{args.shards}: every byte of a set is verified in a folder; copy it to one first. Commands that read "
            f"shards from a URL compare each one's SHA-256 with the manifest's as it comes"
        )
    manifest, problems = verify_shards(args.shards, args.workers)
    samples = sum(shard.samples for shard in manifest.shards)
    if not problems:
        print(f"{args.shards} is sound: {len(manifest.shards)} shards, {samples} samples, all decoded")
        return 0
    for problem in problems:
        print(printable_line(problem))
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(
        f"{args.shards} has {count} in {len(manifest.shards)} shards; "
        f"delete the named tars and run their build again"
    )
    return 1


def _index(args: argparse.Namespace) -> int:
    from shards.build.index_tars import NO_SAMPLES, NO_TAR, REJECTED, AdoptOptions, index_folder
    from shards.build.info import render_info

    manifest = index_folder(
        AdoptOptions(
            args.folder,
            args.split,
            args.genre_field,
            args.metadata,
            args.id_column,
            args.genre_column,
            args.genre_separator,
            args.encoding,
            args.spellings,
            args.workers,
        )
    )
    render_info(manifest, console())
    reasons: dict[str, int] = manifest.source.get("rejected", {})
    samples = sum(shard.samples for shard in manifest.shards)
    left_out = sum(count for reason, count in reasons.items() if reason not in (NO_TAR, NO_SAMPLES))
    print(f"taken           {samples} of {samples + left_out} samples")
    if manifest.source.get("other_members"):
        print(f"other members   {manifest.source['other_members']}")
    if reasons:
        print(f"rejected        {args.folder / REJECTED}")
    if not manifest.genres:
        print(
            "no genres found: the set can be predicted on, not trained on (see --genre-field and --metadata)"
        )
    return 0
