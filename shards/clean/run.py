"""Remove the text from the posters of a table. Write the cleaned posters, rejected.csv and a report.

    table ─ metadata.read_metadata ─→ rows ─ scan.scan_images ─→ checked posters (─ duplicates ─→ one per group)
        ─ split_into_chunks ─→ tasks ─ task.clean_chunk on every core ─→ OUT/{id}.jpg
        ─→ rejected.csv, contact sheet, clean_report.parquet (last)

A cleaned poster depends only on the raw poster and the options. The number of workers and restarts do not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any

from shards.clean.contact_sheet import write_sheet
from shards.clean.task import CHUNK, CleanTask, clean_chunk, cleaned_path, finished, of_own_places, rejection_of
from shards.errors import Code, UserError
from shards.executors.chunks import run_chunks, split_into_chunks
from shards.executors.local import Executor, open_executor
from shards.inputs.image_files import holds_images, require_images
from shards.inputs.images import LIMITS, ImageOptions
from shards.inputs.listing import list_sizes
from shards.inputs.rejections import Rejection, first_reasons, id_problem, write_rejected
from shards.inputs.scan import Scan, scan_images
from shards.options import option
from shards.storage.files import read_json, read_present, remove_file, remove_partials, write_json
from shards.storage.lock import folder_lock
from shards.storage.paths import StoragePath, as_user_error, is_remote, storage_path
from shards.tables.metadata import read_metadata
from shards.tables.row_checks import PostersOptions, problem_with_rows
from shards.text.pipeline import MAX_FAILURES_IN_A_ROW, TEXT_LIBRARIES, TextRemoval, removal_fingerprint
from shards.text.report import NAME as REPORT
from shards.text.report import write_report
from shards.values import between, or_more

log = logging.getLogger(__name__)

WORK, REJECTED = ".work", "rejected.csv"
OWN_FILES = ".posters-clean.json"
"""File with the ids of the posters that this command wrote. Other pictures are never overwritten or deleted."""


@dataclass(frozen=True)
class CleanOptions(PostersOptions):
    """Options of ``posters clean``."""

    images: StoragePath = option(MISSING, parse=storage_path)
    """Folder of raw posters, or its URL."""
    out: StoragePath = option(MISSING, parse=storage_path)
    """Folder of cleaned posters, or its URL."""
    image: ImageOptions = option(factory=ImageOptions, only=LIMITS)
    """Limits for accepted posters. A cleaned poster has the size of the raw poster."""
    drop_duplicates: bool = False
    """Keep only the first poster of each group of near-duplicates, in the order of the table."""
    text: TextRemoval = field(default_factory=TextRemoval)
    quality: Annotated[int, between(1, 100)] = 95
    """JPEG quality of the posters that were painted over."""
    sheet: Annotated[int, or_more("none")] = 48
    """Number of posters on the contact sheet, worst first (0: no contact sheet)."""

    @property
    def sheet_folder(self) -> StoragePath:
        """Folder of the contact sheet. It is beside ``out``, because other commands expect only posters in ``out``."""
        return self.out.resolve().with_name(f"{self.out.resolve().name}-sheet")  # the path "." has no name

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_remote(self.out) and self.sheet and not self.out.name:
            message = f"--out {self.out} needs a folder in the bucket, because the contact sheet is written beside it"
            raise UserError("option-value", message)


@dataclass(frozen=True)
class CleanResult:
    """Result of ``posters clean``."""

    rows: list[dict[str, Any]]  # the rows of the report, in the order of the table
    rejected: list[Rejection]
    cleaned_now: int  # number of posters that this run cleaned; earlier runs cleaned the others
    slots: int  # number of posters cleaned at the same time


def clean_posters(options: CleanOptions) -> CleanResult:
    """Clean all posters of the table. Raises UserError if there is no usable poster."""
    if options.images.resolve() == options.out.resolve():
        message = f"--out {options.out} is the folder of raw posters; choose another folder for cleaned posters"
        raise UserError("option-conflict", message)
    require_images(options.images)
    facts = options.text.facts()  # a missing model must fail before anything is read
    # Cleaning does not use the genres.
    metadata = read_metadata(options.metadata or options.images, options, strict=False, images=options.images)
    _refuse_foreign(options.out)
    with (
        folder_lock(options.out, options.break_lock),
        open_executor(options.workers, options.scheduler, [options.images], [options.out], TEXT_LIBRARIES) as executor,
        as_user_error("clean posters", options.out),
    ):
        if _ours(options.out) is None:
            _write_ours(options.out, [])
        ours = (WORK, OWN_FILES, REJECTED, REPORT, ".lock")
        ids, shared = of_own_places([row.id for row in metadata.rows], options.out, ours)
        where = options.images, ids, options.image, options.out / WORK, executor
        scan = scan_images(*where, paths=metadata.paths)
        rejected = metadata.rejected + shared + scan.rejected
        ids = [sample_id for sample_id in ids if sample_id in scan.digests]
        if options.drop_duplicates and ids:
            ids, doubles = _first_of_each(ids, scan, options.near_duplicates)
            rejected += doubles
        write_rejected(options.out / REJECTED, rejected)
        limit = options.max_rejected if ids else 1.0
        problem = problem_with_rows(options, options.images, metadata, scan, limit, pixels=False)
        if problem or not ids:
            code: Code = "table-row" if problem else "images-none"
            problem = problem or f"no usable poster in {options.images}"
            raise UserError(code, f"{problem}; reasons are in {options.out / REJECTED}")
        log.info("%d of %d posters are usable, in %s", len(ids), metadata.posters, options.images)
        _remove_replaced(options.out, ids)
        rows, now = _clean(options, ids, scan, executor, rejected)
        if failed := [rejection for row in rows if (rejection := rejection_of(row))]:
            rejected += failed
            rows = [row for row in rows if not rejection_of(row)]
            write_rejected(options.out / REJECTED, rejected)
            log.warning("%d posters could not be cleaned: %s", len(failed), first_reasons(failed))
        _remove_partials(options.out, ids)
        if options.sheet:
            write_sheet(options, rows, facts)
        write_report(options.out / REPORT, rows, facts)
        return CleanResult(rows, rejected, now, executor.slots())


def _remove_partials(out: StoragePath, ids: Iterable[str]) -> None:
    """Delete the unfinished files of killed runs and workers in ``out`` and in its folders of posters."""
    for folder in {cleaned_path(out, sample_id).parent for sample_id in ids} | {out, out / WORK}:
        remove_partials(folder)


def _clean(
    options: CleanOptions, ids: Sequence[str], scan: Scan, executor: Executor, rejected: Sequence[Rejection]
) -> tuple[list[dict[str, Any]], int]:
    """Return the report rows in the order of ``ids``, and the number of posters that this run cleaned."""
    known, work = removal_fingerprint(options.text), options.out / WORK
    samples = [(sample_id, scan.digests[sample_id], scan.names[sample_id]) for sample_id in ids]
    tasks = [
        CleanTask(options, part, known, work / f"clean-{number:06d}.json")
        for number, part in enumerate(split_into_chunks(samples, CHUNK))
    ]
    sizes = _cleaned_sizes(options.out, ids)
    by_name = {task.answer.name: task for task in tasks}
    found = ((name, finished(by_name[name], data, sizes)) for name, data in read_present(work, by_name))
    answers = {name: rows for name, rows in found if rows is not None}
    todo = [task for task in tasks if task.answer.name not in answers]
    left = sum(map(len, todo))
    if answers:
        log.info("%d of %d posters were cleaned before and are kept", len(ids) - left, len(ids))
    failed: list[Rejection] = []
    good = len(ids) - left
    for task, rows in run_chunks(executor, clean_chunk, todo, "cleaning posters"):
        answers[task.answer.name] = rows
        bad = [rejection for row in rows if (rejection := rejection_of(row))]
        failed, good = failed + bad, good + len(rows) - len(bad)
        if not good and len(failed) >= min(MAX_FAILURES_IN_A_ROW, len(ids)):
            write_rejected(options.out / REJECTED, [*rejected, *failed])
            problem = f"none of {len(failed)} posters could be cleaned, so the others were not tried"
            raise UserError("images-none", f"{problem}: {first_reasons(failed)}")
    return [row for name in by_name for row in answers[name]], left


def _cleaned_sizes(out: StoragePath, ids: Iterable[str]) -> dict[str, int]:
    if is_remote(out):
        listed = list_sizes(out, [f"{sample_id}.jpg" for sample_id in ids])
        return {name.removesuffix(".jpg"): size for name, size in listed.items()}
    paths = ((sample_id, cleaned_path(out, sample_id)) for sample_id in ids)
    return {sample_id: path.stat().st_size for sample_id, path in paths if path.exists()}


def _ours(out: StoragePath) -> set[str] | None:
    """Return the ids of posters that earlier runs wrote or planned. None if this command did not make the folder."""
    if not (out / OWN_FILES).exists():
        return None
    kept = read_json(out / OWN_FILES, "list of cleaned posters")
    ids = kept.get("ids") if isinstance(kept, dict) else None
    # Posters on this list may be deleted, and the file may come from a stranger. So check the ids.
    if not isinstance(ids, list) or not all(isinstance(i, str) and not id_problem(i) for i in ids):
        raise UserError("path-exists", f"{out / OWN_FILES} is not a list of cleaned posters; choose another --out")
    return set(ids)


def _write_ours(out: StoragePath, ids: Sequence[str]) -> None:
    write_json(out / OWN_FILES, {"made_by": "posters clean", "ids": list(ids)})


def _refuse_foreign(out: StoragePath) -> None:
    """Raise UserError if the folder has pictures that this command did not make. Call this before any change."""
    with as_user_error("list posters", out):
        foreign = out.is_dir() and _ours(out) is None and holds_images(out)
    if foreign:
        raise UserError("path-exists", f"{out} has pictures that `posters clean` did not make; choose another --out")


def _remove_replaced(out: StoragePath, ids: Sequence[str]) -> None:
    """Delete posters of earlier runs that are not in ``ids``. Raises UserError if a file of others has such a name."""
    ours = _ours(out) or set()
    for other in _cleaned_sizes(out, [sample_id for sample_id in ids if sample_id not in ours]):
        path = cleaned_path(out, other)
        raise UserError("path-exists", f"{path} was not made by `posters clean`; move it away, or choose another --out")
    remove_file(out / REPORT)  # a folder without a report counts as unfinished
    _remove_partials(out, ours.union(ids))
    for sample_id in ours - set(ids):
        remove_file(cleaned_path(out, sample_id))
    _write_ours(out, ids)


def _first_of_each(ids: Sequence[str], scan: Scan, distance: int) -> tuple[list[str], list[Rejection]]:
    first: dict[int, str] = {}
    kept, doubles = [], []
    for sample_id, group in zip(ids, scan.duplicate_groups(ids, distance).tolist(), strict=True):
        if group in first:
            doubles.append(Rejection(sample_id, "duplicate", f"of {first[group]}"))
        else:
            first[group] = sample_id
            kept.append(sample_id)
    return kept, doubles
