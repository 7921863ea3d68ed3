"""Verify a shard set. Compare its files with the manifest, and compare each shard's tar, index and sample table."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec

from shards.build.index_read import genres_of, id_of
from shards.build.tar_samples import has_members
from shards.dataset.index import Member, foreign_to, index_bytes, index_path, member_checksum, misfit_of, parse_index
from shards.dataset.labels import LabelSet, merge_spellings
from shards.dataset.manifest import Manifest, Shard, Source
from shards.dataset.sample_table import SampleTable, check_sample_table, map_sample_table, open_sample_table, records_of
from shards.dataset.store import warn_of_unknown_indexes
from shards.dataset.timm_info import timm_info_problem
from shards.errors import UserError
from shards.executors.chunks import results_in_order
from shards.executors.local import LocalExecutor
from shards.inputs.images import BadImage, upright_size
from shards.inputs.rejections import Unusable
from shards.storage.files import sha256_file


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


def verify_shards(folder: Path, workers: int = 0) -> tuple[Manifest, list[str]]:
    """Return the manifest, and one line for each problem. Raises UserError if the manifest cannot be used."""
    manifest = Manifest.read(folder)
    warn_of_unknown_indexes(folder, manifest)
    problem = timm_info_problem(folder, manifest)
    return manifest, check_set(folder, manifest, workers)[0] + ([problem] if problem else [])


def check_set(
    folder: Path, manifest: Manifest, workers: int = 0, decode: bool = True
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
            tasks.append(_Check(folder, shard, manifest.labels, source, decode, table, first, samples))
            first += shard.samples
    done = results_in_order(LocalExecutor(workers), check_shard, tasks, "verifying")
    found = {task.shard.name: checked for task, checked in zip(tasks, done, strict=True)}
    problems += [problem for shard in manifest.shards for problem in found[shard.name].problems]
    # Keys must be unique in the whole set.
    keys = Counter(key for checked in found.values() for key in checked.keys)
    ids = Counter(name for checked in found.values() for name in checked.ids)
    problems += [f"key {key!r} occurs {n} times in the set" for key, n in sorted(keys.items()) if n > 1]
    problems += [f"id {i!r} occurs {n} times in the set" for i, n in sorted(ids.items()) if n > max(keys[i], 1)]
    return problems, {name: checked.index for name, checked in found.items()}


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
    shard, labels, found = task.shard, task.labels, Checked()
    tar, problems = task.folder / shard.name, found.problems
    if not tar.is_file():
        problems.append(f"{tar.name}: the file is missing")
        return found
    if (size := tar.stat().st_size) != shard.bytes:
        problems.append(f"{tar.name}: the file has {size} bytes, but the manifest says {shard.bytes}")
    elif sha256_file(tar) != shard.sha256:
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
    indexed = [Member(*(row[name] for name in Member.__dataclass_fields__)) for row in rows]
    try:
        if not has_members(tar, indexed):
            problems.append(f"{tar.name}: the tar and the index have different members")
    except UserError as error:
        problems.append(str(error))
    with open(tar, "rb") as stream:
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
    return _json_problem(data, row, task) or ("its bytes changed since it was packed (crc32)" if changed else "")


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
    indexed, field = task.source.indexed, task.source.genre_field
    if not indexed and "multi_hot" not in record:
        return "its JSON has no labels (multi_hot)"
    genres = [task.labels.genres[column] for column in row["labels"]]
    stated = row["key"] if record.get("id") is None else str(record["id"])
    try:
        if row["id"] != stated and not (indexed and row["id"] == id_of(record, row["key"])):
            return "its id differs from the id in the index"
        if not indexed:
            same = record["multi_hot"] == task.labels.multi_hot(row["labels"]) and record.get("genres") == genres
            if record.get("weight") != row.get("weight"):
                return "its sample weight differs from the weight in the index"
        else:  # the JSONs may have several spellings of a genre, and the genres may come from a table
            own = genres_of(record, field, task.source.genre_separator)
            if "weight" in row and record.get("weight") != row["weight"]:
                return "its sample weight differs from the weight in the index"
            same = field is None or set(merge_spellings([own], genres)[0][0]) == set(genres)
    except Unusable as bad:
        return f"{bad.reason} ({bad.detail})"
    return "" if same else "its labels differ from the labels in the index"
