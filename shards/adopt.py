"""Index and manifest for tars that another tool wrote: plain WebDataset, img2dataset."""

from __future__ import annotations

import io
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shards.claim import folder_lock
from shards.errors import UserError
from shards.executor import run
from shards.files import sha256_file
from shards.images import FORMATS
from shards.index import Member, build_table, list_tars, read_members, write_index
from shards.labels import LabelSet
from shards.manifest import NAME as MANIFEST
from shards.manifest import Manifest, Shard, library_versions
from shards.metadata import parse_genres, read_metadata
from shards.progress import progress

log = logging.getLogger(__name__)

SPLIT_NAME = re.compile(r"^(train|val|validation|test)[-_.]")


@dataclass(frozen=True)
class AdoptOptions:
    """What ``posters shards index`` is told."""

    folder: Path
    split: str = "train"
    """Split of tars whose name does not begin with train-, val- or test-."""
    genre_field: str = "genres"
    """Field of each sample's JSON that holds its genres (a list, or text as in a CSV)."""
    metadata: Path | None = None
    """A CSV with the genres, joined by the sample's id (its JSON ``id``) or key; the JSON is then not asked."""
    id_column: str = "0"
    genre_column: str = "3"
    genre_separator: str = "|"
    encoding: str = "utf-8-sig"
    workers: int = 0


@dataclass(frozen=True)
class _Read:
    tar: Path
    genre_field: str
    separator: str


@dataclass
class _Contents:
    members: list[Member]
    ids: list[str]
    sizes: list[tuple[int, int]]
    genres: list[tuple[str, ...]]
    sha256: str


def index_folder(options: AdoptOptions) -> Manifest:
    """Write an index beside every tar of a folder, and the manifest. The tars stay as they are.

    Labels are optional: a set without genres can be predicted on, not trained on.
    Raises UserError for a folder without tars, a damaged tar, an unreadable image or JSON.
    """
    if not options.folder.is_dir():
        raise UserError(f"no such folder: {options.folder}")
    tars = list_tars(options.folder)
    if not tars:
        raise UserError(f"no .tar file in {options.folder}")
    csv_genres = _csv_genres(options)
    with folder_lock(options.folder):
        if (options.folder / MANIFEST).exists() and not Manifest.read(options.folder).source.get("indexed"):
            raise UserError(
                f"{options.folder} was made by `posters shards build` and has its indexes already"
            )
        tasks = [_Read(tar, options.genre_field, options.genre_separator) for tar in tars]
        found: dict[Path, _Contents] = {}
        with progress(len(tars), "reading tars", unit="tar") as bar:
            for task, contents in run(read_contents, tasks, options.workers):
                found[task.tar] = contents
                bar.update()
        unlabelled = 0
        for contents in found.values():
            if csv_genres is not None:
                contents.genres = [
                    csv_genres.get(i, csv_genres.get(m.key, ()))
                    for i, m in zip(contents.ids, contents.members, strict=True)
                ]
            unlabelled += sum(not genres for genres in contents.genres)
        labels = LabelSet.from_samples(genres for contents in found.values() for genres in contents.genres)
        if unlabelled and labels.genres:
            log.warning("%d samples have no genres", unlabelled)
        shards = [_write(tar, found[tar], labels, options.split) for tar in tars]
        order = {"train": 0, "val": 1, "test": 2}
        shards.sort(key=lambda shard: (order.get(shard.split, 3), shard.split, shard.name))
        manifest = Manifest(
            genres=list(labels.genres),
            shards=shards,
            source={"indexed": True, "samples": sum(shard.samples for shard in shards)},
            versions=library_versions(),
        )
        manifest.write_tables(options.folder)
        manifest.write(options.folder)
    return manifest


def read_contents(task: _Read) -> _Contents:
    """Keys, sizes and genres of one tar. Only image headers are decoded."""
    members = read_members(task.tar)
    ids, sizes, genres = [], [], []
    with open(task.tar, "rb") as stream:
        for member in members:
            sizes.append(_image_size(stream, member, task.tar))
            record = _json(stream, member, task.tar)
            sample_id = record.get("id")  # img2dataset's own JSON has none, only the key
            ids.append(member.key if sample_id is None else str(sample_id))
            genres.append(_genres(record.get(task.genre_field), member, task))
    return _Contents(members, ids, sizes, genres, sha256_file(task.tar))


def _image_size(stream: Any, member: Member, tar: Path) -> tuple[int, int]:
    stream.seek(member.image_offset)
    try:
        with Image.open(io.BytesIO(stream.read(member.image_size)), formats=FORMATS) as image:
            return image.size
    except Exception as error:  # a parser of foreign bytes may raise anything; it is reported, not hidden
        raise UserError(
            f"{tar}: image of sample {member.key!r} cannot be read ({type(error).__name__})"
        ) from None


def _json(stream: Any, member: Member, tar: Path) -> dict[str, Any]:
    if member.json_offset < 0:
        return {}
    stream.seek(member.json_offset)
    try:
        record = json.loads(stream.read(member.json_size))
    except (ValueError, RecursionError):
        raise UserError(f"{tar}: the JSON of sample {member.key!r} does not parse") from None
    return record if isinstance(record, dict) else {}


def _genres(value: Any, member: Member, task: _Read) -> tuple[str, ...]:
    if value is None:
        return ()
    try:
        return parse_genres(value if isinstance(value, str) else json.dumps(value), task.separator)
    except ValueError as error:
        raise UserError(f"{task.tar}: genres of sample {member.key!r}: {error}") from None


def _csv_genres(options: AdoptOptions) -> Mapping[str, tuple[str, ...]] | None:
    if options.metadata is None:
        return None
    read = read_metadata(
        options.metadata, options.id_column, options.genre_column, options.genre_separator, options.encoding
    )
    return {row.id: row.genres for row in read.rows}


def _write(tar: Path, contents: _Contents, labels: LabelSet, default_split: str) -> Shard:
    columns = [labels.columns(genres) for genres in contents.genres]
    table = build_table(
        tar,
        contents.members,
        {
            "id": contents.ids,
            "height": [height for _, height in contents.sizes],
            "width": [width for width, _ in contents.sizes],
            "labels": columns,
        },
    )
    size = tar.stat().st_size
    write_index(tar, table, {"plan": "indexed", "bytes": size, "sha256": contents.sha256})
    named = SPLIT_NAME.match(tar.name)
    split = named.group(1).replace("validation", "val") if named else default_split
    counts = Counter(column for row in columns for column in row)
    return Shard(
        name=tar.name,
        split=split,
        samples=len(contents.members),
        bytes=size,
        sha256=contents.sha256,
        max_height=max((height for _, height in contents.sizes), default=0),
        max_width=max((width for width, _ in contents.sizes), default=0),
        genre_counts=[counts[column] for column in range(len(labels))],
    )
