"""Check a shard set against its manifest: every byte, every count, every image."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import UserError
from shards.executor import run
from shards.files import sha256_file
from shards.images import BadImage, upright_size
from shards.index import Member, member_checksum, read_index, read_members
from shards.labels import LabelSet
from shards.manifest import Manifest, Shard
from shards.progress import progress
from shards.samples import SampleTable, open_sample_table, records_of


@dataclass(frozen=True)
class _Check:
    folder: Path
    shard: Shard
    labels: LabelSet
    table: SampleTable | None
    """Of its split, if the set has tables and this one can be opened."""
    first: int
    """Where the shard's samples begin in it."""
    samples: int
    """Of the split."""


def verify_shards(folder: Path, workers: int = 0) -> tuple[Manifest, list[str]]:
    """(manifest, problems): one line a problem, naming shard and member; an empty list is a sound set.

    Raises UserError if there is no readable manifest to check against.
    """
    manifest = Manifest.read(folder)
    tasks: list[_Check] = []
    of_tables: list[str] = []
    for split in manifest.split_names:
        shards = manifest.of_split(split)
        samples = sum(shard.samples for shard in shards)
        table = manifest.tables.get(split)
        if table is not None:
            try:
                open_sample_table(folder / table.name, table, samples, len(manifest.labels))
                if sha256_file(folder / table.name) != table.sha256:
                    of_tables.append(f"{table.name}: its bytes changed (sha256 differs from the manifest)")
            except UserError as error:
                of_tables.append(str(error))
                table = None
        first = 0
        for shard in shards:
            tasks.append(_Check(folder, shard, manifest.labels, table, first, samples))
            first += shard.samples
    found: dict[str, list[str]] = {}
    keys: Counter[str] = Counter()
    with progress(sum(shard.samples for shard in manifest.shards), "verifying") as bar:
        for task, (problems, names) in run(check_shard, tasks, workers):
            found[task.shard.name] = problems
            keys.update(names)
            bar.update(task.shard.samples)
    problems = of_tables + [problem for shard in manifest.shards for problem in found[shard.name]]
    # img2dataset restarts its numbering in no shard, and neither do we: a key names one sample of the set
    problems += [
        f"key {key!r} occurs {count} times in the set" for key, count in sorted(keys.items()) if count > 1
    ]
    return manifest, problems


def check_shard(task: _Check) -> tuple[list[str], list[str]]:
    """(problems, keys) of one shard."""
    tar = task.folder / task.shard.name
    if not tar.exists():
        return [f"{tar.name}: the file is missing"], []
    problems = []
    size = tar.stat().st_size
    if size != task.shard.bytes:
        problems.append(f"{tar.name}: {size} bytes, the manifest says {task.shard.bytes}")
    elif sha256_file(tar) != task.shard.sha256:
        problems.append(f"{tar.name}: its bytes changed (sha256 differs from the manifest)")
    try:
        table, _ = read_index(tar)
    except UserError as error:
        return [*problems, f"{tar.name}: {error}"], []
    if table.num_rows != task.shard.samples:
        problems.append(
            f"{tar.name}: the index has {table.num_rows} samples, the manifest says {task.shard.samples}"
        )
    if task.table is not None:
        records = open_sample_table(
            tar.with_name(task.table.name), task.table, task.samples, len(task.labels)
        )
        own = records[task.first : task.first + task.shard.samples]
        if records_of(table, len(task.labels)).tobytes() != own.tobytes():
            problems.append(f"{tar.name}: {task.table.name} does not say of it what its index says")
    rows = table.to_pylist()
    counts = Counter(column for row in rows for column in row["labels"])
    if [counts[column] for column in range(len(task.labels))] != task.shard.genre_counts:
        problems.append(f"{tar.name}: the manifest's counts of genres are not those of the index")
    largest = tuple(max((row[side] for row in rows), default=0) for side in ("height", "width"))
    if largest != (task.shard.max_height, task.shard.max_width):
        problems.append(f"{tar.name}: the manifest's largest image is not that of the index")
    indexed = [Member(*(row[name] for name in Member.__dataclass_fields__)) for row in rows]
    try:
        if read_members(tar) != indexed:
            problems.append(f"{tar.name}: its members are not those of the index")
    except UserError as error:
        problems.append(str(error))
    with open(tar, "rb") as stream:
        for member, row in zip(indexed, rows, strict=True):
            problem = _member_problem(stream, member, row, task.labels)
            if problem:
                problems.append(
                    f"{tar.name}: member {member.key!r} at offset {member.image_offset}: {problem}"
                )
    return problems, [member.key for member in indexed]


def _member_problem(stream: IO[bytes], member: Member, row: dict[str, Any], labels: LabelSet) -> str:
    changed = member_checksum(stream, member) != row["crc32"]
    stream.seek(member.image_offset)
    problem = _image_problem(stream.read(member.image_size), row["width"], row["height"])
    if not problem and member.json_offset >= 0:
        stream.seek(member.json_offset)
        problem = _json_problem(stream.read(member.json_size), row["labels"], labels)
    return problem or ("its bytes changed since it was packed (crc32)" if changed else "")


def _image_problem(data: bytes, width: int, height: int) -> str:
    try:
        size = upright_size(data)
    except BadImage as bad:
        return f"the image does not decode ({bad.reason}{': ' if bad.detail else ''}{bad.detail})"
    if size == (width, height):
        return ""
    turned = "; run `posters shards index` again, which takes EXIF's orientation into account"
    return (
        f"the image is {size[0]}x{size[1]}, the index says {width}x{height}"
        f"{turned if size == (height, width) else ''}"
    )


def _json_problem(data: bytes, columns: list[int], labels: LabelSet) -> str:
    try:
        record = json.loads(data)
    except ValueError:
        return "its JSON does not parse"
    # Only our own packing writes multi_hot; foreign JSON is free in its layout.
    stated = record.get("multi_hot") if isinstance(record, dict) else None
    return (
        ""
        if stated is None or stated == labels.multi_hot(columns)
        else "its labels are not those of the index"
    )
