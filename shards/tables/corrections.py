"""Read a table of corrected genres (``id,genres``), and replace the genres of these ids in a user's table."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shards.errors import UserError, did_you_mean, some
from shards.inputs.rejections import Rejection
from shards.storage.csv_text import unescaped, write_for_people
from shards.storage.files import atomic_write, remove_file, sha256_file
from shards.storage.paths import StoragePath
from shards.tables.metadata import GenreOptions, Metadata, Row, read_metadata
from shards.tables.readers import open_table

log = logging.getLogger(__name__)

#: File in a shard set with the posters whose genres were replaced.
APPLIED = "corrections-applied.csv"
ID, GENRES, SEPARATOR = "id", "genres", "|"
_OPTIONS = GenreOptions(metadata_format="csv", id_column=ID, genre_column=GENRES, genre_separator=SEPARATOR)


@dataclass(frozen=True)
class Corrections:
    """Corrections that were applied to a table."""

    sha256: str
    """SHA-256 of the file."""
    rows: int
    """Number of posters in the file."""
    changed: dict[str, tuple[Row, Row]] = field(default_factory=dict)
    """Id → the row before and after. Posters that keep their genres are left out."""

    def facts(self, packed: Sequence[Row]) -> dict[str, object]:
        """Return the entry of the manifest."""
        changed = sum(row.id in self.changed for row in packed)
        return {"sha256": self.sha256, "rows": self.rows, "changed": changed}


def write_applied(path: StoragePath, corrections: Corrections | None, packed: Sequence[Row]) -> None:
    """Write `APPLIED`: the id and the genres before and after of each packed poster whose genres changed.

    Without corrections, delete the file, which an earlier build can have left.
    """
    if corrections is None:
        remove_file(path)
        return
    pairs = [(row.id, corrections.changed[row.id]) for row in packed if row.id in corrections.changed]
    cells = [(sample_id, "|".join(old.genres), "|".join(new.genres)) for sample_id, (old, new) in pairs]
    with atomic_write(path, "w") as stream:
        write_for_people(stream, [(ID, "before", "after"), *cells], end="\r\n")


def apply_corrections(
    metadata: Metadata, path: StoragePath, images: StoragePath, known: Sequence[str] = ()
) -> tuple[Metadata, Corrections]:
    """Return the table with the genres of the file ``path``, and what changed.

    known: labels that are always accepted. images: the image folder, for ids that are absolute paths. Genres that
    neither the table nor ``known`` has are new genres, and a warning lists them. Raises UserError for a row that cannot
    be used, a repeated id with different genres, and an id that the table does not have.
    """
    genres = list(dict.fromkeys([*known, *(genre for row in metadata.rows for genre in row.genres)]))
    found = _read(path, images, genres)
    at = {row.id: row for row in metadata.rows}
    wanted = {_plain(row.id, at): row for row in found.rows}
    if strange := [sample_id for sample_id in wanted if sample_id not in at]:
        raise UserError("table-row", f"--corrections {path}: {_unknown(strange, metadata)}")
    vocabulary, changed = set(genres), {}
    for sample_id, row in wanted.items():
        names = tuple(_plain(genre, vocabulary) for genre in row.genres)
        if set(names) != set(at[sample_id].genres):
            changed[sample_id] = at[sample_id], replace(at[sample_id], genres=names)
    if new := sorted({genre for _, row in changed.values() for genre in row.genres} - vocabulary):
        shown = some([f"{genre!r}{did_you_mean(genre, genres)}" for genre in new])
        log.warning("--corrections %s has genres that %s does not have: %s", path, metadata.path, shown)
    log.info("--corrections %s: the genres of %d of %d posters change", path, len(changed), len(wanted))
    rows = [changed[row.id][1] if row.id in changed else row for row in metadata.rows]
    return replace(metadata, rows=rows), Corrections(sha256_file(path), len(wanted), changed)


def _read(path: StoragePath, images: StoragePath, genres: Sequence[str]) -> Metadata:
    """Return the rows of the file. Raises UserError unless each row can be used."""
    if not path.is_file():
        raise UserError("path-missing", f"--corrections {path} is not a file; name a CSV with columns id and genres")
    with open_table(path, _OPTIONS) as table:
        names = [name.strip() for name in table.header]
    if missing := [name for name in (ID, GENRES) if names.count(name) != 1]:
        what = f"has {names.count(missing[0])} columns named {missing[0]!r}"
        raise UserError("table-column", f"--corrections {path} {what}; it needs one column id and one column genres")
    found = read_metadata(path, _OPTIONS, known=genres, images=images)
    bad = [rejection for rejection in found.rejected if rejection.reason != "repeated id"]
    if bad:
        raise UserError("table-row", f"--corrections {path}: {_unusable(bad[0])}")
    if found.joined:
        remedy = "write one row for each id, with all genres of the poster"
        raise UserError("table-row", f"--corrections {path} has several rows with different genres for an id; {remedy}")
    return found


def _unusable(rejection: Rejection) -> str:
    detail = f" ({rejection.detail})" if rejection.detail else ""
    return f"the row of id {rejection.id!r} cannot be used: {rejection.reason}{detail}; correct or delete this row"


def _unknown(ids: Sequence[str], metadata: Metadata) -> str:
    """Return a message about ids that have no usable row in the table."""
    first = next((rejection for rejection in metadata.rejected if rejection.id == ids[0]), None)
    others = f" and {len(ids) - 1} other ids" if len(ids) > 1 else ""
    what = f"{metadata.path} has no usable row for {ids[0]!r}{others}"
    if first is not None:
        return f"{what} (its row was rejected: {first.reason}); correct the table, or delete these rows"
    return f"{what}{did_you_mean(ids[0], [row.id for row in metadata.rows])}; correct the ids, or delete these rows"


def _plain(text: str, known: Collection[str] | Mapping[str, object]) -> str:
    """Return a text without the apostrophe that a CSV for spreadsheets has before = or +, if ``known`` has it so."""
    return unescaped(text) if text not in known and unescaped(text) in known else text
