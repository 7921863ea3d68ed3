"""Build a shard set from posters and a table.

    table ─ metadata.read_metadata, corrections.apply_corrections ─→ rows ─ scan.scan_images ─→ checked posters
        ─ planning.plan_shards: duplicates.group_duplicates, split.split_samples ─→ tasks
        ─ pack.pack_shard ─→ NAME.tar, then NAME.index.parquet
        ─→ rejected.csv, duplicates.csv, corrections-applied.csv, _info.json for timm, manifest.json (last)

The bytes of the set depend only on the posters, the table, the seed and the options. Paths, times and the number of
workers do not matter. If a killed build is started again, it skips the finished shards and writes the same bytes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.build.pack import PackTask, pack_shard, text_rows_path
from shards.build.planning import duplicate_positions, plan_shards, warn_of_other_genres, write_duplicates
from shards.build.resume import OtherShards, find_finished
from shards.build.split import SPLITS, check_fractions, parse_splits
from shards.dataset.index import index_path, tar_path
from shards.dataset.labels import LabelSet, read_labels
from shards.dataset.manifest import NAME as MANIFEST
from shards.dataset.manifest import Manifest, Shard
from shards.dataset.timm_info import remove_timm_info, write_timm_info
from shards.errors import Code, UserError
from shards.executors.chunks import run_chunks
from shards.executors.local import Executor, open_executor
from shards.inputs.image_files import default_image_folder, require_images
from shards.inputs.images import ImageOptions
from shards.inputs.rejections import Rejection, first_reasons, write_rejected
from shards.inputs.scan import Scan, scan_images
from shards.options import option
from shards.storage.files import read_json, remove_file, remove_partials, remove_tree
from shards.storage.kinds import MODEL, RUN, kind_of
from shards.storage.lock import folder_lock
from shards.storage.paths import StoragePath, as_user_error, is_remote, storage_path
from shards.tables.corrections import APPLIED, Corrections, apply_corrections, write_applied
from shards.tables.metadata import Metadata, Row, read_metadata
from shards.tables.row_checks import PostersOptions, problem_with_rows, with_known_genres
from shards.tables.table import SampleColumns
from shards.text.pipeline import REPORT, TEXT_LIBRARIES, TextRemoval
from shards.values import Count
from shards.versions import library_versions

log = logging.getLogger(__name__)

WORK = ".work"


@dataclass(frozen=True)
class BuildOptions(PostersOptions, SampleColumns):
    """Options of ``posters shards build``."""

    out: StoragePath = option(MISSING, parse=storage_path)
    """Folder or URL of the new shard set."""
    images: StoragePath | None = option(None, parse=storage_path)
    """Folder or URL of the posters (default: ./cleaned_posters_local, or else ./Data/cleaned_posters)."""
    labels: StoragePath | None = option(None, parse=storage_path)
    """Take the genres and their order from this labels.json, manifest.json or JSON list. Other genres are left out."""
    fractions: tuple[float, ...] = option((0.8, 0.1, 0.1), "--splits", parse=parse_splits, text="0.8,0.1,0.1")
    """Shares of the posters in train, val and test."""
    seed: int = 0
    """Seed of the splits and of the order of the posters."""
    samples_per_shard: Count = 1000
    """Largest number of posters in a shard. Each split is divided evenly into as few shards as possible."""
    image: ImageOptions = field(default_factory=ImageOptions)
    text: TextRemoval | None = option(None, switch="--text-removal")
    """Remove the text from the posters before they are packed, as `posters clean` does."""
    split_like: StoragePath | None = option(None, parse=storage_path)
    """Give each poster the split that it has in this other shard set. Models of both sets can then be compared. A new
    poster goes to the split of its duplicate in the other set. A new poster without such a duplicate goes to train."""
    corrections: StoragePath | None = option(None, metavar="FILE", parse=storage_path)
    """CSV with the columns ``id`` and ``genres``. Its lists replace the genres of these ids in the table.
    corrections-applied.csv in --out lists what changed."""
    overwrite: bool = False
    """Replace the shards in --out if they belong to another set."""
    dry_run: bool = False
    """Show what would be read, the first ten posters, the genres and the rejected rows, and write nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fractions(self.fractions)
        if self.split_column is not None and self.split_like is not None:
            raise UserError("option-conflict", "--split-column and --split-like exclude each other: choose one of them")


def build_shards(options: BuildOptions) -> Manifest:
    """Build the shard set and return its manifest. Raises UserError if the input has no usable posters."""
    if options.dry_run:
        remedy = "leave dry_run out, or call shards.build.dry_run.dry_run"
        raise UserError("option-conflict", f"dry_run builds nothing: {remedy}")
    images = options.images or default_image_folder(Path.cwd())
    require_images(images)
    _refuse_other_folder(options.out)
    given, metadata, corrections = read_tables(options, images)
    if not metadata.rows:
        raise UserError("table-row", f"{metadata.path} has no usable row: {first_reasons(metadata.rejected)}")
    rejected_csv = options.out / "rejected.csv"
    with _at_work(options, images) as executor:
        rows, rejected, labels, scan = _usable(options, images, metadata, given, executor)
        tasks, groups = plan_shards(options, images, rows, scan, labels)
        planned = rows
        shards = _pack(options, tasks, executor)
        if options.text:
            failed = _write_text_report(options, tasks)
            rejected += failed
            rows = [row for row in rows if row.id not in {rejection.id for rejection in failed}]
            if not rows:
                write_rejected(rejected_csv, rejected)
                why = first_reasons(failed)
                raise UserError("images-none", f"none of {len(planned)} posters could be cleaned: {why}")
            for tar in [options.out / shard.name for shard in shards if not shard.samples]:  # no poster was cleaned
                remove_file(index_path(tar))
                remove_file(tar)
            shards = [shard for shard in shards if shard.samples]
        else:
            remove_file(options.out / REPORT)  # an earlier build in this folder may have left a report
        write_rejected(rejected_csv, rejected)
        write_duplicates(options.out / "duplicates.csv", tasks, planned, groups)
        write_applied(options.out / APPLIED, corrections, rows)
        text = options.text.facts() if options.text else None
        manifest = Manifest(
            list(labels.genres),
            shards,
            {**asdict(options.image), "samples_per_shard": options.samples_per_shard, "text_removal": text},
            _source(options, metadata, len(rows), rejected, groups)
            | _given_columns(options, rows)
            | ({"corrections": corrections.facts(rows)} if corrections else {}),
            library_versions(),
            duplicates=duplicate_positions(tasks, planned, groups, rows),
        )
        manifest.write_tables(options.out, weighted=options.weight_column is not None)
        write_timm_info(options.out, manifest)
        manifest.write(options.out)
        remove_tree(options.out / WORK)
    _report_balance(manifest)
    return manifest


def read_tables(options: BuildOptions, images: StoragePath) -> tuple[LabelSet | None, Metadata, Corrections | None]:
    """Return the labels of --labels, the table with the corrected genres, and the corrections."""
    given = read_labels(options.labels) if options.labels else None
    known = given.genres if given else ()
    metadata = read_metadata(options.metadata or images, options, known=known, images=images, others=options)
    if options.corrections is None:
        return given, metadata, None
    return given, *apply_corrections(metadata, options.corrections, images, known)


def _refuse_other_folder(out: StoragePath) -> None:
    """Raise UserError if ``out`` is the folder of a training or a model."""
    kind = None if is_remote(out) else kind_of(out)
    # A config.yaml alone may also be in a folder of other files.
    if kind == MODEL or (kind == RUN and any((out / name).exists() for name in ("checkpoints", "model"))):
        raise UserError("path-exists", f"{out} is {kind}, so no shard set is written there: choose another --out")


def _usable(
    options: BuildOptions, images: StoragePath, metadata: Metadata, given: LabelSet | None, executor: Executor
) -> tuple[list[Row], list[Rejection], LabelSet, Scan]:
    ids = [row.id for row in metadata.rows]
    scan = scan_images(images, ids, options.image, options.out / WORK, executor, paths=metadata.paths)
    rows = [row for row in metadata.rows if row.id in scan.digests]
    labels = given or LabelSet.from_samples(row.genres for row in rows)
    rows, unknown = with_known_genres(rows, labels)
    rejected = metadata.rejected + scan.rejected + unknown
    limit = options.max_rejected if rows else 1.0
    problem = problem_with_rows(options, images, metadata, scan, limit)
    if problem or not rows:
        code: Code = "table-row" if problem else "images-none"
        write_rejected(options.out / "rejected.csv", rejected)
        problem = problem or f"no usable poster in {images}: {first_reasons(rejected)}"
        raise UserError(code, f"{problem}; all reasons are in {options.out / 'rejected.csv'}")
    log.info("%d of %d posters are usable, in %s", len(rows), metadata.posters, images)
    warn_of_other_genres(rows, scan)
    return rows, rejected, labels, scan


def _source(
    options: BuildOptions, metadata: Metadata, samples: int, rejected: Sequence[Rejection], groups: np.ndarray
) -> dict[str, Any]:
    sizes = np.unique(groups, return_counts=True)[1]
    return {
        "rows": metadata.posters,
        "samples": samples,
        "rejected": dict(sorted(Counter(r.reason for r in rejected).items())),
        "id_column": metadata.id_column,
        "genre_column": metadata.genre_column,
        "duplicate_groups": int((sizes > 1).sum()),
        "samples_in_duplicate_groups": int(sizes[sizes > 1].sum()),
        "near_duplicates": options.near_duplicates,
        "seed": options.seed,
        "fractions": dict(zip(SPLITS, options.fractions, strict=True)),
    }


def _given_columns(options: BuildOptions, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the facts about splits, groups and weights that the table gives. Empty if it gives none."""
    named = {"group_column": options.group_column, "weight_column": options.weight_column}
    facts: dict[str, Any] = {key: name for key, name in named.items() if name is not None}
    if any(row.split for row in rows):
        counts = Counter(row.split for row in rows)
        facts |= {"split_column": options.split_column or "", "fractions": {s: counts[s] / len(rows) for s in SPLITS}}
    return facts


@contextmanager
def _at_work(options: BuildOptions, images: StoragePath) -> Iterator[Executor]:
    """Lock the output folder, delete the unfinished files of killed runs and workers, and yield an executor."""
    where = options.workers, options.scheduler, [images], [options.out], TEXT_LIBRARIES if options.text else ()
    with folder_lock(options.out, options.break_lock):
        remove_partials(options.out)
        with open_executor(*where) as executor, as_user_error("build shards", options.out):
            yield executor
        remove_partials(options.out)


def _pack(options: BuildOptions, tasks: Sequence[PackTask], executor: Executor) -> list[Shard]:
    try:
        shards, todo, foreign = find_finished(options.out, tasks, options.overwrite)
    except OtherShards:
        remove_tree(options.out / WORK)  # a refused build leaves the folder as it was
        raise
    if todo or foreign:
        remove_file(options.out / MANIFEST)  # a set without a manifest counts as unfinished
        remove_timm_info(options.out)
    for path in foreign + [index_path(task.tar) for task in todo]:
        # Delete the index first: it marks the tar as finished.
        for name in (path, tar_path(path), text_rows_path(tar_path(path))):
            remove_file(name)
    if shards:
        log.info("%d of %d shards were finished before and are kept", len(shards), len(tasks))
    for task, shard in run_chunks(executor, pack_shard, todo, "packing shards"):
        shards[task.name] = shard
    return [shards[task.name] for task in tasks]


def _write_text_report(options: BuildOptions, tasks: Sequence[PackTask]) -> list[Rejection]:
    from shards.text.report import write_report  # imports pandas, which only text removal needs

    assert options.text is not None
    rows = [row for task in tasks for row in read_json(text_rows_path(task.tar), "rows of the cleaning report")]
    failed = [Rejection(row["id"], *row["rejected"]) for row in rows if "rejected" in row]
    if failed:
        log.warning("%d posters could not be cleaned: %s", len(failed), first_reasons(failed))
    write_report(options.out / REPORT, [row for row in rows if "rejected" not in row], options.text.facts())
    return failed


def _report_balance(manifest: Manifest) -> None:
    """Warn if a genre's count in a split differs from its target by over 20%. Ignore genres with under 30 posters."""
    summary = manifest.split_summary()
    for column, genre in enumerate(manifest.genres):
        total = sum(shard.genre_counts[column] for shard in manifest.shards)
        for split, share in manifest.source["fractions"].items():
            count = summary[split]["genre_counts"][genre] if split in summary else 0
            if total >= 30 and share > 0 and abs(count - share * total) > 0.2 * share * total:
                log.warning("%s has %d of %d %s posters; %.1f are expected", split, count, total, genre, share * total)
