"""Find the table row of each sample in tars that another tool wrote. Check that keys and ids of samples are unique."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from shards.build.index_read import Contents
from shards.build.tar_reader import path_of
from shards.errors import UserError
from shards.storage.endings import is_image_name
from shards.tables.metadata import Metadata

log = logging.getLogger(__name__)


def require_unique_names(found: Sequence[Contents]) -> None:
    """Raise UserError if two samples have the same key or the same id. A row would then fit both samples."""
    keys: dict[str, Path] = {}
    ids: dict[str, tuple[Path, str]] = {}
    for contents in found:
        for key in [*contents.table["key"].to_pylist(), *(rejection.id for rejection in contents.rejected)]:
            if key in keys:
                two = f"{keys[key]} and {contents.tar.name} both contain a sample {key!r}"
                remedy = "give each sample its own key, or index each tar in its own folder"
                raise UserError("samples-repeated", f"{two}; {remedy}")
            keys[key] = contents.tar
        for sample_id, key in contents.names():
            if sample_id in ids:
                other, first = ids[sample_id]
                two = f"the samples {first!r} and {key!r} (in {contents.tar.name}) both have the id {sample_id!r}"
                remedy = "write a different id into each sample's JSON, or remove the ids"
                raise UserError("samples-repeated", f"{other}: {two}; {remedy}")
            ids[sample_id] = contents.tar, key


def join_csv(found: Sequence[Contents], metadata: Metadata, path: Path | None) -> None:
    """Copy the genres of rows to samples, and reject samples without a row.

    Raises UserError if a row fits two samples.
    """
    rows = {row.id: row.genres for row in metadata.rows}
    unusable = {r.id: r for r in metadata.rejected if r.id not in rows}
    find = RowFinder([*rows, *unusable])
    owners: dict[str, str] = {}

    def row_of(sample_id: str, key: str) -> str | None:
        row = find.row(sample_id, key)
        if row is not None and owners.setdefault(row, key) != key:
            two, remedy = f"{owners[row]!r} and {key!r}", "give each sample a row of the table with its name as the id"
            raise UserError("table-row", f"row {row!r} of {path} fits two samples, {two}; {remedy}")
        return row

    for contents in found:
        for rejection in contents.rejected:
            row_of(rejection.id, rejection.id)  # marks the row as used, so that no other sample gets this row
        taken = []
        for sample_id, key in contents.names():
            row = row_of(sample_id, key)
            taken.append(rows.get(row, ()) if row else ())
            if row is None:
                contents.reject(key, "not in the table")
            elif row not in rows:
                contents.reject(key, unusable[row].reason, f"table, {unusable[row].detail}")
        contents.genres = taken
        contents.keep([bool(genres) for genres in taken])
    log.info("%d of %d rows of %s have a sample", len(owners), len(rows) + len(unusable), path)


class RowFinder:
    """Find the table row of a sample by the sample's id, the sample's key, or the file name at the end of the key.

    The id in a row can contain folders and the extension of an image file. The id and the key of the sample can lack
    these parts, if no other row has the same shortened id.

    >>> find = RowFinder(["p1", "./posters/p2.jpg", "a/p3", "b/p3"])
    >>> [find.row(key, key) for key in ("x/p1", "p2", "posters/p2", "x/p2", "p3", "a/p3")]
    ['p1', './posters/p2.jpg', './posters/p2.jpg', None, None, 'a/p3']
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._exact = set(ids)
        self._paths: dict[str, str | None] = {}
        self._files: dict[str, str | None] = {}
        for row in ids:
            path = "/".join(path_of(row))
            path = path.rpartition(".")[0] if is_image_name(path) else path
            for names, name in ((self._paths, path), (self._files, path.rpartition("/")[2])):
                if name != row:
                    names[name] = row if name not in names else None  # None: several rows have this name

    def row(self, sample_id: str, key: str) -> str | None:
        """Return the id of the row that fits the sample. None if no row or more than one row fits."""
        names = [sample_id, key, re.split(r"[/\\]", key)[-1]]
        names += [unicodedata.normalize("NFC", name) for name in names]  # macOS writes names in the form NFD
        found = [name for name in names if name in self._exact] or [*filter(None, map(self._paths.get, names))]
        return found[0] if found else self._files.get(sample_id) or self._files.get(key)


def require_genres(found: Sequence[Contents]) -> None:
    """If any sample has genres, reject samples without genres. Training would use them as negatives of all genres."""
    if any(genres for contents in found for genres in contents.genres):
        for contents in found:
            for (_, key), genres in zip(contents.names(), contents.genres, strict=True):
                if not genres:
                    contents.reject(key, "no genres")
            contents.keep([bool(genres) for genres in contents.genres])
