"""Check how many rows of a table have no image or cannot be read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Annotated

from shards.dataset.labels import LabelSet
from shards.errors import UserError, nearest, one_line, some
from shards.executors.local import ExecutorOptions, WorkersOption
from shards.inputs.duplicates import MAX_DISTANCE
from shards.inputs.image_files import Walk, walk_images
from shards.inputs.listing import find_posters
from shards.inputs.rejections import REJECTED_COLUMNS, Rejection, first_reasons
from shards.inputs.scan import Scan
from shards.options import option
from shards.storage.csv_text import unescaped
from shards.storage.endings import is_image_name
from shards.storage.files import file_bytes, names_in
from shards.storage.paths import StoragePath, as_user_error, is_remote, storage_path
from shards.tables.csv_tables import text_table
from shards.tables.genre_columns import PEEK
from shards.tables.metadata import GenreOptions, Metadata, Row
from shards.tables.readers import open_table
from shards.tables.table import TableOptions
from shards.values import FromZeroToOne, between

log = logging.getLogger(__name__)

#: Reasons of rejections that do not count as unreadable: data is missing or repeated, or outside of the user's limits.
NOT_COUNTED = frozenset({"missing file", "no genres", "bad id", "repeated id", "too small", "odd shape", "duplicate"})
#: Reasons of rejections that concern a row of the table. The poster of this row may be good.
OF_ROWS = frozenset({"bad id", "bad row", "repeated id", "conflicting rows"})
#: Largest number of file names that are read to explain why no id has a file.
NAMES = 20_000


def parse_share(text: str) -> float:
    """Convert a text such as ``0.05`` or ``5%`` to a number from 0 to 1. Raises UserError for other texts."""
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
    """Options of ``shards build`` and ``clean``: the table, the posters and the workers."""

    metadata: StoragePath | None = option(None, parse=storage_path)
    """Table with the ids and genres of the posters: CSV, JSON, JSONL or Parquet. A folder is also accepted: with
    metadata.csv or metadata.jsonl, a .json or .txt file for each image, or a subfolder for each genre. The default is
    the image folder."""

    max_rejected: FromZeroToOne = option(0.05, metavar="SHARE", parse=parse_share, text="5%")
    """Largest share of unreadable genres among the rows with an image. A build also counts unreadable images."""
    near_duplicates: Annotated[int, between(0, 15, "from 0 to 15 bits")] = MAX_DISTANCE
    """Largest Hamming distance (0 to 15 bits) between the 64-bit perceptual hashes of near-duplicates."""


def problem_with_rows(
    options: PostersOptions, images: StoragePath, metadata: Metadata, scan: Scan, limit: float, pixels: bool = True
) -> str:
    """Return a message if no row has an image or too many rows are unreadable, else "". Log rows without an image.

    limit: largest share of unreadable rows among the rows with an image. pixels: whether rows with unreadable images
    count as unreadable. Posters that `fetch` or `clean` rejected before (see rejected.csv) do not count.
    """
    named = [r for r in metadata.rejected if r.reason != "bad id"]
    there = find_posters(images, list({r.id for r in named}), metadata.paths, quiet=True) if named else {}
    missing = [r.id for r in scan.rejected if r.reason == "missing file"]
    missing += [r.id for r in named if r.id not in there]
    present = [r for r in named if r.id in there] + [r for r in scan.rejected if r.reason != "missing file"]
    found = len(scan.digests) + len(present)
    if not found:
        return no_match(options, images, metadata, missing)
    earlier: dict[str, str] = {}  # id -> reason of the posters that `fetch` or `clean` rejected
    if missing or present:
        with as_user_error("read rejected.csv", images):
            found_before = read_rejected(images / "rejected.csv")
        earlier = {sample_id: reason for sample_id, reason in found_before.items() if reason not in OF_ROWS}
    if missing:
        listed = Counter(earlier[sample_id] for sample_id in missing if sample_id in earlier)
        why = some([f"{n} {reason}" for reason, n in listed.most_common()])
        known = f"; {listed.total()} of these ids are in the rejected.csv of this folder: {why}" if listed else ""
        near = nearest(missing[0], _image_names(images))
        file = f", the nearest file is {near[0]!r}" if near else ""
        first = f"the first is id {missing[0]!r}{file}"
        log.warning("%d rows have no image in %s (%s)%s", len(missing), images, first, known)
    counted = present if pixels else [r for r in named if r.id in there]
    unreadable = [r for r in counted if r.reason not in NOT_COUNTED and r.id not in earlier]
    if len(unreadable) <= limit * found:
        return ""
    return (
        f"{len(unreadable)} of {found} rows with an image are unreadable, over --max-rejected "
        f"{100 * limit:g}%: {first_reasons(unreadable)}"
    )


def read_rejected(path: StoragePath) -> dict[str, str]:
    """Return id → reason of a rejected.csv. Empty if the file is missing or has unknown columns."""
    if not path.is_file():
        return {}
    table = text_table(path, file_bytes(path), TableOptions(encoding="utf-8", delimiter=","))
    if tuple(table.header) != REJECTED_COLUMNS:
        return {}
    return {unescaped(row[0]): row[1] for _, row in table.rows if len(row) == len(REJECTED_COLUMNS)}


def no_match(options: PostersOptions, images: StoragePath, metadata: Metadata, ids: list[str]) -> str:
    """Return a message that shows ids without a file, a file with a similar name, and the probable cause."""
    names = _image_names(images)
    ids = ids or [r.id for r in metadata.rejected]
    near = nearest(ids[0], names[:PEEK], cutoff=0.0) if ids and names else []
    hints = [f"The nearest file is {near[0]!r}"] if near else []
    stems = {*names, *(name.removesuffix(PurePosixPath(name).suffix) for name in names)}
    with open_table(metadata.path, options) as table:
        hits: Counter[int] = Counter()
        for _, row in islice(table.rows, PEEK):
            hits.update(at for at, cell in enumerate(row[: len(table.header)]) if cell.strip() in stems)
        if hits:
            hints.append(f"Column {table.name(hits.most_common(1)[0][0])} contains file names")
        listing = table.listing()
    choose = "Choose" if hits else "Write the names of the files into this column, or choose"
    shown = some([repr(sample_id) for sample_id in ids], 3)
    return (
        f"no id of {metadata.path} names a file in {images}: the ids in column {metadata.id_column!r} are {shown}. "
        f"{''.join(hint + '. ' for hint in hints)}{choose} the column of ids with --id-column. "
        f"The columns are {listing}"
    )


def _image_names(images: StoragePath) -> list[str]:
    if is_remote(images):
        return sorted(name for name in names_in(images) if is_image_name(name))
    return sorted(islice(walk_images(images, Walk()), NAMES))


def with_known_genres(rows: Sequence[Row], labels: LabelSet) -> tuple[list[Row], list[Rejection]]:
    """Return (rows, rejections): rows with at least one genre of ``labels``, and a rejection for each other row."""
    known, unknown = [], []
    strange = Counter(genre for row in rows for genre in row.genres if genre not in labels.index)
    if strange:
        names = some([f"{genre} ({count})" for genre, count in strange.most_common()])
        log.warning("genres that are not among the given labels are left out: %s", names)
    for row in rows:
        if labels.columns(row.genres):
            known.append(row)
        else:
            why = one_line(f"not among the given labels: {', '.join(row.genres)}")
            unknown.append(Rejection(row.id, "no genres", why))
    return known, unknown
