"""Verify a shard set. Compare its files with the manifest, and compare each shard's tar, index and sample table."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from shards.build.index.read import class_of, id_of
from shards.build.index.targets import columns_of, json_target
from shards.build.tar_samples import has_members
from shards.dataset.cache_options import CacheOptions
from shards.dataset.index import (
    Member,
    foreign_to,
    index_bytes,
    index_path,
    member_checksum,
    members_of,
    misfit_of,
    parse_index,
)
from shards.dataset.labels import LabelSet, merge_spellings
from shards.dataset.manifest import Manifest, Shard, Source
from shards.dataset.sample_table import SampleTable, check_sample_table, map_sample_table, open_sample_table, records_of
from shards.dataset.store import store_at, warn_of_unknown_indexes
from shards.dataset.timm_info import timm_info_problem
from shards.errors import UserError
from shards.executors.chunks import results_in_order
from shards.executors.local import LocalExecutor
from shards.inputs.images import BadImage, upright_size
from shards.inputs.rejections import Unusable
from shards.storage.files import sha256_file

OTHER_LABELS = "its labels differ from the labels in the index"


@dataclass(frozen=True)
class _Check:
    folder: Path
    shard: Shard
    labels: LabelSet
    source: Source
    """Origin of the set. In tars of other tools, samples can lack the JSON, or the JSON can lack the id or genres."""
    decode: bool
    """Whether to decode the images."""
    table: SampleTable | None
    """Sample table of the split. None if the table does not exist or cannot be opened."""
    first: int
    """Position of the shard's first sample in the table."""
    samples: int
    """Number of samples in the split."""
    tars: str | None
    """Place of the tars. None if they are in ``folder``."""
    cache: CacheOptions | None
    """Cache of the tars if they are at a URL."""

    def __len__(self) -> int:
        return self.shard.samples


@dataclass
class Checked:
    """Results of the check of one shard."""

    problems: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    index: tuple[int, str] = (0, "")
    """Size in bytes and SHA-256 of the index file."""


def verify_shards(folder: Path, workers: int = 0, cache: CacheOptions | None = None) -> tuple[Manifest, list[str]]:
    """Return the manifest, and one line for each problem. Raises UserError if the manifest cannot be used.

    cache: cache of the tars if they are at a URL.
    """
    manifest = Manifest.read(folder)
    warn_of_unknown_indexes(folder, manifest)
    problem = timm_info_problem(folder, manifest)
    return manifest, check_set(folder, manifest, workers, cache=cache)[0] + ([problem] if problem else [])


def check_set(
    folder: Path, manifest: Manifest, workers: int = 0, decode: bool = True, cache: CacheOptions | None = None
) -> tuple[list[str], dict[str, tuple[int, str]]]:
    """Return a line per problem, and each index's (size, SHA-256) by shard name. ``decode``: also decode the images."""
    tasks: list[_Check] = []
    problems: list[str] = []
    source = msgspec.convert(manifest.source, Source)
    for split, shards in manifest.by_split.items():
        samples = sum(shard.samples for shard in shards)
        table = _sound_table(folder, manifest, split, shards, problems)
        first = 0
        for shard in shards:
            part = table, first, samples
            tasks.append(_Check(folder, shard, manifest.labels, source, decode, *part, manifest.tars, cache))
            first += shard.samples
    done = results_in_order(LocalExecutor(workers), check_shard, tasks, "verifying")
    found = {task.shard.name: checked for task, checked in zip(tasks, done, strict=True)}
    problems += [problem for shard in manifest.shards for problem in found[shard.name].problems]
    problems += _repeated_names(found, source)
    return problems, {name: checked.index for name, checked in found.items()}


def _repeated_names(found: Mapping[str, Checked], source: Source) -> list[str]:
    """Return a line for each id or key that occurs several times. Tars of other tools can share keys, but not ids."""
    keys = Counter((name if source.indexed else "", key) for name, checked in found.items() for key in checked.keys)
    ids = Counter(sample_id for checked in found.values() for sample_id in checked.ids)
    where = {name: f"in {name}" if name else "in the set" for name, _ in keys}
    lines = [f"key {key!r} occurs {n} times {where[name]}" for (name, key), n in sorted(keys.items()) if n > 1]
    named = {key for (_, key), n in keys.items() if n > 1}
    return lines + [f"id {i!r} occurs {n} times in the set" for i, n in sorted(ids.items()) if n > 1 and i not in named]


def _sound_table(
    folder: Path, manifest: Manifest, split: str, shards: Sequence[Shard], problems: list[str]
) -> SampleTable | None:
    """Return a split's sample table. None if the table is missing or cannot be opened. Add errors to ``problems``."""
    table = None
    try:
        if (named := manifest.table_of(split)) is not None:
            path = folder / named.name
            with open_sample_table(path) as stream:
                records = map_sample_table(stream, path, named, sum(s.samples for s in shards), len(manifest.genres))
                table = named
                check_sample_table(stream, path, records, table, shards)
    except UserError as error:
        problems.append(str(error))
    return table


def check_shard(task: _Check) -> Checked:
    """Compare the tar and the index of one shard with each other, with the manifest and with the sample table."""
    try:
        with store_at(task.folder, task.tars, task.cache).whole_tar(task.shard) as file:
            return _check_files(task, file)
    except UserError as error:  # a remote tar that cannot be fetched
        return Checked([str(error)])


def _check_files(task: _Check, file: Path) -> Checked:
    """``file``: local path of the tar."""
    shard, labels, found = task.shard, task.labels, Checked()
    tar, problems = task.folder / shard.name, found.problems
    if not file.is_file():
        problems.append(f"{tar.name}: the file is missing")
        return found
    if (size := file.stat().st_size) != shard.bytes:
        problems.append(f"{tar.name}: the file has {size} bytes, but the manifest says {shard.bytes}")
    elif sha256_file(file) != shard.sha256:
        problems.append(f"{tar.name}: its bytes changed (sha256 differs from the manifest)")
    try:
        data = index_bytes(tar)
        found.index = len(data), hashlib.sha256(data).hexdigest()
        if shard.index_sha256 not in (None, found.index[1]):
            problems.append(f"{tar.name}: its index changed (sha256 differs from the manifest)")
        table, facts = parse_index(data, index_path(tar))
    except UserError as error:
        problems.append(f"{tar.name}: {error}")
        return found
    if foreign := foreign_to(table, facts, shard):
        problems.append(f"{tar.name}: the index {foreign}")
    if table.num_rows != shard.samples:
        problems.append(f"{tar.name}: the index has {table.num_rows} samples, but the manifest says {shard.samples}")
    if misfit := misfit_of(table, shard):
        problems.append(f"{tar.name}: in its index, {misfit}")
        return found
    if task.table is not None:
        path = task.folder / task.table.name
        with open_sample_table(path) as stream:
            records = map_sample_table(stream, path, task.table, task.samples, len(labels))
        own = records[task.first : task.first + shard.samples]
        if records_of(table, len(labels)).tobytes() != own.tobytes():
            problems.append(f"{tar.name}: its samples differ between {task.table.name} and the index")
    rows = table.to_pylist()
    counts = Counter(column for row in rows for column in row["labels"])
    if [counts[column] for column in range(len(labels))] != shard.genre_counts:
        problems.append(f"{tar.name}: the manifest and the index differ in the counts of genres")
    largest = tuple(max((row[side] for row in rows), default=0) for side in ("height", "width"))
    if largest != (shard.max_height, shard.max_width):
        problems.append(f"{tar.name}: the manifest and the index differ in the largest image")
    indexed = members_of(table)
    try:
        if not has_members(file, indexed):
            problems.append(f"{tar.name}: the tar and the index have different members")
    except UserError as error:
        problems.append(str(error))
    with open(file, "rb") as stream:
        for member, row in zip(indexed, rows, strict=True):
            if problem := _member_problem(stream, member, row, task):
                problems.append(f"{tar.name}: member {member.key!r} at offset {member.image_offset}: {problem}")
    found.keys, found.ids = [row["key"] for row in rows], [row["id"] for row in rows]
    return found


def _member_problem(stream: IO[bytes], member: Member, row: dict[str, Any], task: _Check) -> str:
    changed = member_checksum(stream, member) != row["crc32"]
    if task.decode:
        stream.seek(member.image_offset)
        if problem := _image_problem(stream.read(member.image_size), row["width"], row["height"]):
            return problem
    data = b"{}"
    if member.json_offset >= 0:
        stream.seek(member.json_offset)
        data = stream.read(member.json_size)
    elif not task.source.indexed:
        return "it has no JSON with its id and genres"
    problem = _json_problem(data, row, task) or _class_problem(stream, member, row, task)
    return problem or ("its bytes changed since it was packed (crc32)" if changed else "")


def _image_problem(data: bytes, width: int, height: int) -> str:
    try:
        size = upright_size(data)
    except BadImage as bad:
        return f"the image cannot be decoded ({bad.reason}{': ' if bad.detail else ''}{bad.detail})"
    if size == (width, height):
        return ""
    turned = "; run `posters shards index` again, which uses the EXIF orientation"
    hint = turned if size == (height, width) else ""
    return f"the image is {size[0]}x{size[1]}, but the index says {width}x{height}{hint}"


def _json_problem(data: bytes, row: dict[str, Any], task: _Check) -> str:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return "its JSON cannot be parsed"
    record = record if isinstance(record, dict) else {}
    if task.source.indexed:
        return _indexed_problem(record, row, task)
    if "multi_hot" not in record:
        return "its JSON has no labels (multi_hot)"
    if row["id"] != (row["key"] if record.get("id") is None else str(record["id"])):
        return "its id differs from the id in the index"
    if record.get("weight") != row.get("weight"):
        return "its sample weight differs from the weight in the index"
    genres = [task.labels.genres[column] for column in row["labels"]]
    same = record["multi_hot"] == task.labels.multi_hot(row["labels"]) and record.get("genres") == genres
    return "" if same else OTHER_LABELS


def _indexed_problem(record: dict[str, Any], row: dict[str, Any], task: _Check) -> str:
    source = task.source
    try:
        own_id = id_of(record)
        # If tars share keys, ids begin with the name of the tar.
        ids = (row["key"], f"{task.shard.name.removesuffix('.tar')}/{row['key']}") if own_id is None else (own_id,)
        if row["id"] not in ids:
            return "its id differs from the id in the index"
        if "weight" in row and record.get("weight") != row["weight"]:
            return "its sample weight differs from the weight in the index"
        if source.genre_field is None:  # the genres come from a table, or from .cls members
            return ""
        target = json_target(record, source.genre_field, source.genre_separator)
        if target.form == "bad":
            raise Unusable(*target.values)
    except Unusable as bad:
        return f"{bad.reason} ({bad.detail})"
    if source.genre_form:
        return "" if sorted(columns_of(target, source.genre_form)) == row["labels"] else OTHER_LABELS
    genres = [task.labels.genres[column] for column in row["labels"]]
    # The JSONs may have several spellings of a genre.
    return "" if set(merge_spellings([target.values], genres)[0][0]) == set(genres) else OTHER_LABELS


def _class_problem(stream: IO[bytes], member: Member, row: dict[str, Any], task: _Check) -> str:
    if not task.source.classes or task.source.genre_field is not None:
        return ""
    target = class_of(stream, member)
    return "" if target.form == "class" and list(target.values) == row["labels"] else OTHER_LABELS
