"""Rows of a CSV against the image folder: how many have an image, and are too many of those unreadable?"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Annotated

from shards.dataset.labels import LabelSet
from shards.errors import UserError, nearest, one_line, some
from shards.executors.local import ExecutorOptions, WorkersOption
from shards.inputs.csv_table import open_table
from shards.inputs.duplicates import MAX_DISTANCE
from shards.inputs.image_files import Walk, walk_images
from shards.inputs.listing import list_posters
from shards.inputs.metadata import GenreOptions, Metadata, Rejection, Row, first_reasons, read_rejected
from shards.inputs.scan import Scan
from shards.inputs.table_checks import PEEK
from shards.options import option
from shards.storage.endings import is_image_name
from shards.storage.files import names_in
from shards.storage.paths import StoragePath, as_user_error, is_remote
from shards.values import FromZeroToOne, between

log = logging.getLogger(__name__)

#: Reasons that tell nothing of unreadable genres or pixels: what is not there, and what a user's limits leave out.
NOT_COUNTED = frozenset({"missing file", "no genres", "bad id", "repeated id", "too small", "odd shape", "duplicate"})
#: Reasons that tell of a row: its poster may be there all the same.
OF_ROWS = frozenset({"bad id", "bad row", "repeated id", "conflicting rows"})
#: File names that are looked at to explain why no id names one.
NAMES = 20_000


def parse_share(text: str) -> float:
    """``0.05`` or ``5%`` → 0.05. Raises UserError."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (1 if number == text.strip() else 100)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UserError("option-value", f"--max-rejected takes a share such as 0.05 or 5%, not {text!r}")
    return share


@dataclass(frozen=True, kw_only=True)
class PostersOptions(GenreOptions, ExecutorOptions, WorkersOption):
    """What a build and a cleaning want of a CSV and its posters, and who does the work."""

    max_rejected: FromZeroToOne = option(0.05, metavar="SHARE", parse=parse_share, text="5%")
    """Fail if more of the rows whose image is there have unreadable genres (or pixels, in a build)."""
    near_duplicates: Annotated[int, between(0, 15, "from 0 to 15 bits")] = MAX_DISTANCE
    """Largest Hamming distance of two perceptual hashes (64 bits) that are taken for one poster (0-15 bits)."""


def problem_with_rows(
    csv: StoragePath,
    encoding: str,
    images: StoragePath,
    metadata: Metadata,
    scan: Scan,
    limit: float,
    pixels: bool = True,
) -> str:
    """Say how many rows have no image; return what is wrong if no id names a file, or too many rows are unreadable.

    limit: largest share of unreadable rows among those whose image is there; pixels: whether unreadable images count,
    beside genres. Not held against the limit are rows without an image, and those that `posters fetch` or
    `posters clean` listed in the folder's rejected.csv.
    """
    named = [r for r in metadata.rejected if r.reason != "bad id"]
    there = list_posters(images, {r.id for r in named}, quiet=True) if named else {}
    missing = [r.id for r in scan.rejected if r.reason == "missing file"]
    missing += [r.id for r in named if r.id not in there]
    present = [r for r in named if r.id in there] + [r for r in scan.rejected if r.reason != "missing file"]
    found = len(scan.digests) + len(present)
    if not found:
        return _no_match(csv, encoding, images, metadata, missing)
    earlier: dict[str, str] = {}  # reasons of posters, not of rows, that fetch or clean left out of the folder
    if missing or present:
        with as_user_error("read rejected.csv", images):
            found_before = read_rejected(images / "rejected.csv")
        earlier = {sample_id: reason for sample_id, reason in found_before.items() if reason not in OF_ROWS}
    if missing:
        listed = Counter(earlier[sample_id] for sample_id in missing if sample_id in earlier)
        why = some([f"{n} {reason}" for reason, n in listed.most_common()])
        known = f"; {listed.total()} of them are in its rejected.csv: {why}" if listed else ""
        log.warning("%d rows have no image in %s (the first is id %r)%s", len(missing), images, missing[0], known)
    judged = present if pixels else [r for r in named if r.id in there]
    unreadable = [r for r in judged if r.reason not in NOT_COUNTED and r.id not in earlier]
    if len(unreadable) <= limit * found:
        return ""
    return (
        f"{len(unreadable)} of {found} rows whose image is there are unreadable, over --max-rejected "
        f"{100 * limit:g}%: {first_reasons(unreadable)}"
    )


def _no_match(csv: StoragePath, encoding: str, images: StoragePath, metadata: Metadata, ids: list[str]) -> str:
    """Why no id names a file: the ids, the nearest file, and what may be wrong."""
    if is_remote(images):
        names = sorted(name for name in names_in(images) if is_image_name(name))
    else:
        names = sorted(islice(walk_images(images, Walk()), NAMES))
    ids = ids or [r.id for r in metadata.rejected]
    near = nearest(ids[0], names[:PEEK], cutoff=0.0) if ids and names else []
    hints = [f"the nearest file is {near[0]!r}"] if near else []
    if ids and all(re.fullmatch(r"\d+\.0+", sample_id) for sample_id in ids):
        hints.append(
            "these ids are whole numbers written as fractions, as pandas does where one is missing: write them as "
            "text (pandas: dtype=str)"
        )
    stems = {*names, *(name.removesuffix(PurePosixPath(name).suffix) for name in names)}
    with open_table(csv, encoding) as table:
        hits: Counter[int] = Counter()
        for _, row in islice(table.rows, PEEK):
            hits.update(at for at, cell in enumerate(row[: len(table.header)]) if cell.strip() in stems)
        if hits:
            hints.append(f"column {table.name(hits.most_common(1)[0][0])} does name files")
        listing = table.listing()
    shown = some([repr(sample_id) for sample_id in ids], 3)
    return (
        f"no id of {csv} names a file in {images}: the ids are column {metadata.id_column!r} ({shown}); "
        f"{''.join(hint + '; ' for hint in hints)}choose the column of ids with --id-column; its columns are {listing}"
    )


def with_known_genres(rows: Sequence[Row], labels: LabelSet) -> tuple[list[Row], list[Rejection]]:
    """(the rows with a genre that the labels have, the others)."""
    known, unknown = [], []
    strange = Counter(genre for row in rows for genre in row.genres if genre not in labels.index)
    if strange:
        names = some([f"{genre} ({count})" for genre, count in strange.most_common()])
        log.warning("genres that the given labels do not have are left out: %s", names)
    for row in rows:
        if labels.columns(row.genres):
            known.append(row)
        else:
            why = one_line(f"none of the given labels: {', '.join(row.genres)}")
            unknown.append(Rejection(row.id, "no genres", why))
    return known, unknown
