"""Give each sample in tars that another tool wrote a unique id, and find its row of a table."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from shards.build.index.read import Contents
from shards.build.tar_reader import path_of
from shards.errors import UserError
from shards.storage.endings import is_image_name
from shards.tables.metadata import Metadata

log = logging.getLogger(__name__)


def require_unique_names(found: Sequence[Contents], names: Sequence[str], joined: bool) -> None:
    """Fill the column ``id`` of samples whose JSON has no id. Raises UserError if two samples have the same id.

    The id is the key. But many tools number the samples of each tar from 0. If two tars share a key, these ids begin
    with the name of the tar, such as ``train-00001/000000``. names: the name of each tar, such as ``train-00001.tar``.
    joined: whether a table is joined. Then a shared key is an error, because a row would fit both samples. Two tars
    with the same bytes are always an error.
    """
    tars: dict[str, Path] = {}
    for contents in found:
        if contents.table.num_rows and tars.setdefault(contents.sha256, contents.tar) != contents.tar:
            two = f"{tars[contents.sha256]} and {contents.tar} have the same bytes"
            raise UserError("samples-repeated", f"{two}; remove one of the two, or index each tar in its own folder")
    shared = _shared_key(found)
    if shared and joined:
        remedy = "give each sample its own key, or index each tar in its own folder"
        raise UserError("samples-repeated", f"{shared}; {remedy}")
    for contents, name in zip(found, names, strict=True):
        ids = contents.table["key"]
        if shared:
            ids = pc.binary_join_element_wise(name.removesuffix(".tar"), ids, "/")
        ids = pc.coalesce(contents.table["id"], ids)
        contents.table = contents.table.set_column(contents.table.schema.get_field_index("id"), "id", ids)
    if shared:
        log.info("%s; so ids are written as TAR/KEY, except for samples with an id in their JSON", shared)
    owners: dict[str, tuple[Path, str]] = {}
    for contents in found:
        for sample_id, key in contents.names():
            if sample_id in owners:
                other, first = owners[sample_id]
                two = f"the samples {first!r} and {key!r} (in {contents.tar.name}) both have the id {sample_id!r}"
                remedy = "write a different id into each sample's JSON, or remove the ids"
                raise UserError("samples-repeated", f"{other}: {two}; {remedy}")
            owners[sample_id] = contents.tar, key


def _shared_key(found: Sequence[Contents]) -> str:
    """Return a message about the first key that two tars share. Empty if there is none."""
    keys: dict[str, Path] = {}
    for contents in found:
        for key in [*contents.table["key"].to_pylist(), *(rejection.id for rejection in contents.rejected)]:
            if keys.setdefault(key, contents.tar) != contents.tar:
                return f"{keys[key]} and {contents.tar} both contain a sample {key!r}"
    return ""


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
