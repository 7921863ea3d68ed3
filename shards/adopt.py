"""Index and manifest for tars that another tool wrote: plain WebDataset, img2dataset.

    tars ─ adopt_read.read_contents, a task each ─→ samples that can be taken, with ids and genres; the others
         ─ require_names_of_one, join_csv ─→ no key, id or CSV row stands for two samples
         ─→ NAME.index.parquet beside each tar, tables, rejected.csv, manifest.json (last)

What is not taken is a row of rejected.csv, with its reason. What is ambiguous is refused as a whole.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.adopt_read import Contents, ReadTask, read_contents
from shards.claim import folder_lock
from shards.errors import UserError, printable
from shards.executor import run
from shards.files import PARTIAL, names_in, remove_file
from shards.index import SUFFIX, index_path, list_tars, read_index, write_index
from shards.labels import LabelSet
from shards.manifest import NAME as MANIFEST
from shards.manifest import Manifest, Shard, library_versions
from shards.metadata import Metadata, Rejection, first_reasons, read_metadata, write_rejected
from shards.progress import progress
from shards.split import SPLITS

log = logging.getLogger(__name__)

REJECTED = "rejected.csv"
NO_TAR, NO_SAMPLES = "not a .tar", "no samples"
"""Reasons of files, not of samples."""
SPLIT_NAME = re.compile(r"(train|val|validation|test)[-_.]", re.IGNORECASE)
LIKE_TARS = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
OWN_PARTIAL = re.compile(rf"(.+{re.escape(SUFFIX)}|.+\.samples\.npy|{MANIFEST}|{REJECTED})\.[^.]+{PARTIAL}")


@dataclass(frozen=True)
class AdoptOptions:
    """What ``posters shards index`` is told."""

    folder: Path
    split: str = "train"
    """Split of tars whose name does not begin with train-, val- or test-."""
    genre_field: str = "genres"
    """Field of each sample's JSON that holds its genres (a list, or text as in a CSV)."""
    metadata: Path | None = None
    """A CSV with the genres, joined by the sample's JSON ``id``, its key or file name; the JSON's are not asked."""
    id_column: str = "0"
    genre_column: str = "3"
    genre_separator: str = "|"
    encoding: str = "utf-8-sig"
    workers: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.split, re.ASCII):
            raise UserError(f"--split takes a name of letters, digits, dots and dashes, not {self.split!r}")


def index_folder(options: AdoptOptions) -> Manifest:
    """Write an index beside every tar of a folder, rejected.csv and the manifest. The tars stay as they are.

    Labels are optional: a set without genres can be predicted on, not trained on. In a set with genres, samples that
    have none are rejected. Raises UserError for a folder without tars, a damaged tar, samples that cannot be told
    apart, and if no sample can be taken.
    """
    if not options.folder.is_dir():
        raise UserError(f"no such folder: {options.folder}")
    tars, rejected = _tars(options.folder)
    metadata = _read_csv(options)
    with folder_lock(options.folder):
        if (options.folder / MANIFEST).exists() and not Manifest.read(options.folder).source.get("indexed"):
            raise UserError(
                f"{options.folder} was made by `posters shards build` and has its indexes already"
            )
        _sweep(options.folder)
        found = _read(options, tars)
        require_names_of_one(found)
        if metadata is not None:
            join_csv(found, metadata, options.metadata)
        _require_genres(found)
        for contents in found:
            rejected += contents.rejected
            if not contents.genres and not contents.rejected:
                rejected.append(
                    Rejection(contents.tar.name, NO_SAMPLES, _members(contents.others) or "it is empty")
                )
        return _write_set(options, found, rejected)


def _tars(folder: Path) -> tuple[list[Path], list[Rejection]]:
    """The tars to read; files that look like tars and are not read. Raises UserError if there is none to read."""
    tars = list_tars(folder)
    like = {name for name in names_in(folder) if LIKE_TARS.search(name) and PARTIAL not in name}
    rejected = [
        Rejection(printable(name), NO_TAR, "decompress it, or rename it to end with .tar")
        for name in sorted(like - {tar.name for tar in tars})
    ]
    if not tars:
        raise UserError(f"no .tar file in {folder}" + (f": {first_reasons(rejected)}" if rejected else ""))
    for tar in tars:
        if printable(tar.name) != tar.name or "\n" in tar.name or "\\" in tar.name:
            raise UserError(f"{str(tar)!r} has characters that not every system allows: rename it")
    return tars, rejected


def _read_csv(options: AdoptOptions) -> Metadata | None:
    if options.metadata is None:
        return None
    return read_metadata(
        options.metadata, options.id_column, options.genre_column, options.genre_separator, options.encoding
    )


def _sweep(folder: Path) -> None:
    """Delete what a killed run left half-written, and no other tool's ``.partial`` files."""
    for name in names_in(folder):
        if OWN_PARTIAL.fullmatch(name):
            remove_file(folder / name)


def _read(options: AdoptOptions, tars: Sequence[Path]) -> list[Contents]:
    field = options.genre_field if options.metadata is None else None
    tasks = [ReadTask(tar, field, options.genre_separator) for tar in tars]
    found: dict[Path, Contents] = {}
    with progress(len(tars), "reading tars", unit="tar") as bar:
        for task, contents in run(read_contents, tasks, options.workers):
            found[task.tar] = contents
            bar.update()
    return [found[tar] for tar in tars]


def require_names_of_one(found: Sequence[Contents]) -> None:
    """Raise UserError if two samples of the set have one key, or one id: joins and predictions would mix them."""
    keys: dict[str, Path] = {}
    ids: dict[str, tuple[Path, str]] = {}
    for contents in found:
        for key in contents.all_keys():
            if key in keys:
                raise UserError(
                    f"{keys[key]} and {contents.tar.name} both hold a sample {key!r}; give every sample a key of its "
                    f"own, or index each tar in a folder of its own"
                )
            keys[key] = contents.tar
        for sample_id, key in contents.names():
            if sample_id in ids:
                other, first = ids[sample_id]
                raise UserError(
                    f"{other}: the samples {first!r} and {key!r} (in {contents.tar.name}) both have the id "
                    f"{sample_id!r}; give every sample's JSON an id of its own, or none"
                )
            ids[sample_id] = contents.tar, key


def join_csv(found: Sequence[Contents], metadata: Metadata, path: Path | None) -> None:
    """Give samples the genres of their CSV rows; those without a usable row are rejected.

    A sample's row is that of its id, else of its key, else of its key's file name without folders. Raises UserError if
    a row fits two samples.
    """
    rows = {row.id: row.genres for row in metadata.rows}
    unusable = {r.id: r for r in metadata.rejected if r.id not in rows}
    owners: dict[str, str] = {}

    def row_of(sample_id: str, key: str) -> str | None:
        names = [sample_id, key, re.split(r"[/\\]", key)[-1]]
        names += [unicodedata.normalize("NFC", name) for name in names]  # macOS writes names as NFD
        row = next((name for name in names if name in rows or name in unusable), None)
        if row is not None and owners.setdefault(row, key) != key:
            raise UserError(
                f"row {row!r} of {path} fits two samples, {owners[row]!r} and {key!r}; write their ids with the "
                f"folders into the CSV"
            )
        return row

    for contents in found:
        for rejection in contents.rejected:
            row_of(rejection.id, rejection.id)  # its row must not go to another sample
        taken = []
        for sample_id, key in contents.names():
            row = row_of(sample_id, key)
            taken.append(rows.get(row, ()) if row else ())
            if row is None:
                contents.reject(key, "not in the CSV")
            elif row not in rows:
                contents.reject(key, unusable[row].reason, f"CSV, {unusable[row].detail}")
        contents.genres = taken
        contents.keep([bool(genres) for genres in taken])
    log.info("%d of %d rows of %s have a sample", len(owners), len(rows) + len(unusable), path)


def _require_genres(found: Sequence[Contents]) -> None:
    """Reject samples without genres in a set with genres: they would be learned as "none of all"."""
    if any(genres for contents in found for genres in contents.genres):
        for contents in found:
            for (_, key), genres in zip(contents.names(), contents.genres, strict=True):
                if not genres:
                    contents.reject(key, "no genres")
            contents.keep([bool(genres) for genres in contents.genres])


def _write_set(options: AdoptOptions, found: Sequence[Contents], rejected: list[Rejection]) -> Manifest:
    """Write the set's files. Indexes that are there already keep their time of change."""
    folder, others = options.folder, Counter[str]()
    for contents in found:
        others.update(contents.others)
    if not any(contents.genres for contents in found):
        write_rejected(folder / REJECTED, rejected)
        raise UserError(
            f"no sample of {folder} can be taken: {first_reasons(rejected)}; all are in {folder / REJECTED}"
        )
    labels = LabelSet.from_samples(genres for contents in found for genres in contents.genres)
    for contents in found:
        contents.label(labels)
    todo = [contents for contents in found if not _is_indexed(contents)]
    if todo:
        remove_file(folder / MANIFEST)  # from here to the end the folder is no finished set
    for contents in todo:
        if contents.genres:
            write_index(contents.tar, contents.table, contents.facts())
        else:
            remove_file(index_path(contents.tar))  # of an earlier run
    shards = [_shard(contents, len(labels), options.split) for contents in found if contents.genres]
    order = {split: position for position, split in enumerate(SPLITS)}
    shards.sort(key=lambda shard: (order.get(shard.split, len(order)), shard.split, shard.name))
    manifest = Manifest(
        genres=list(labels.genres),
        shards=shards,
        source={
            "indexed": True,
            "samples": sum(shard.samples for shard in shards),
            "rejected": dict(sorted(Counter(r.reason for r in rejected).items())),
            "other_members": _members(others),
        },
        versions=library_versions(),
    )
    write_rejected(folder / REJECTED, rejected)
    manifest.write_tables(folder)
    manifest.write(folder)
    return manifest


def _is_indexed(contents: Contents) -> bool:
    """Whether the files of an earlier run say of a tar what this one would."""
    if not contents.genres:
        return not index_path(contents.tar).exists()
    try:
        table, facts = read_index(contents.tar)
    except UserError:
        return False
    return facts == contents.facts() and table.equals(contents.table)


def _shard(contents: Contents, genres: int, default_split: str) -> Shard:
    named = SPLIT_NAME.match(contents.tar.name)
    counts = Counter(column for row in contents.table["labels"].to_pylist() for column in row)
    return Shard(
        name=contents.tar.name,
        split=named.group(1).lower().replace("validation", "val") if named else default_split,
        samples=contents.table.num_rows,
        bytes=contents.bytes,
        sha256=contents.sha256,
        max_height=max(contents.table["height"].to_pylist()),
        max_width=max(contents.table["width"].to_pylist()),
        genre_counts=[counts[column] for column in range(genres)],
    )


def _members(others: Counter[str], limit: int = 10) -> str:
    """``12 txt, 3 hidden``: members that are no part of a sample."""
    shown = ", ".join(f"{count} {printable(kind[:40])}" for kind, count in others.most_common(limit))
    rest = sum(others.values()) - sum(count for _, count in others.most_common(limit))
    return shown + (f" and {rest} of other kinds" if rest else "")
