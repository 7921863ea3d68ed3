"""Write one shard: a tar of posters and labels, and its index file. shards/inputs/images.py encodes the posters."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from shards.build.tar_samples import read_members
from shards.build.tar_writer import tar_writer
from shards.dataset.index import build_table, write_index
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Shard
from shards.errors import UserError
from shards.inputs.image_files import read_checked
from shards.inputs.images import BadImage, ImageOptions, Packed, decode, pack_image, shrunk
from shards.storage.files import atomic_path, fingerprint, sha256_file, write_json
from shards.storage.paths import StoragePath
from shards.text.pipeline import MAX_FAILURES_IN_A_ROW, TextRemoval, clean_image, require_same_removal


@dataclass(frozen=True)
class Sample:
    """A poster that passed all checks and goes into a shard."""

    id: str
    digest: str
    """SHA-256 of the source file at the time of its check. If it differs later, the file was changed."""
    genres: tuple[str, ...]
    name: str | None = None
    """Path of the source file relative to the image folder. None if unknown."""
    weight: float | None = None
    """Weight of the sample in loss and metrics. None if the set has no weights."""


@dataclass(frozen=True)
class PackTask:
    """Everything that is needed to write one shard."""

    folder: StoragePath
    out: StoragePath
    name: str
    split: str
    samples: tuple[Sample, ...]
    labels: LabelSet
    options: ImageOptions
    text: TextRemoval | None = None
    """Settings of text removal. None keeps the text of the posters."""
    text_facts: str = ""
    """Fingerprint of ``text``. Empty if ``text`` is None."""

    def __len__(self) -> int:
        return len(self.samples)

    def __str__(self) -> str:
        return f"shard {self.name}"

    @property
    def weighted(self) -> bool:
        """Whether the samples have weights. All samples of a set have weights, or none has."""
        return any(sample.weight is not None for sample in self.samples)

    @property
    def tar(self) -> StoragePath:
        return self.out / f"{self.name}.tar"

    def plan(self) -> str:
        """Return a fingerprint of everything that determines the shard's bytes. Paths and times are not included."""
        samples = [[s.id, s.digest, list(s.genres), *([] if s.weight is None else [s.weight])] for s in self.samples]
        content = [self.name, self.split, samples, list(self.labels.genres), asdict(self.options)]
        return fingerprint([*content, self.text_facts] if self.text else content)


def text_rows_path(tar: StoragePath) -> StoragePath:
    """Return the path of the file with the shard's rows of the cleaning report. The file is beside the tar."""
    return tar.with_name(f"{tar.stem}.cleaning.json")


def sample_key(sample_id: str) -> str:
    """Return the id as a WebDataset key. Dots and slashes are percent-encoded, because they end a key or a folder name.

    >>> sample_key("tt0324127"), sample_key("se7en/v1.2")
    ('tt0324127', 'se7en%2Fv1%2E2')
    """
    key = quote(sample_id, safe="").replace(".", "%2E")
    # WebDataset skips members with names such as __x__
    return "%5F" + key[1:] if key.startswith("__") else key


def pack_shard(task: PackTask) -> Shard:
    """Write the tar and then its index, each atomically. Raises UserError if a poster has changed since its check."""
    if task.text:
        require_same_removal(task.text, task.text_facts)
    with atomic_path(task.tar) as tar:
        table, rows = _write_tar(task, tar)
        facts = {"plan": task.plan(), "bytes": tar.stat().st_size, "sha256": sha256_file(tar)}
    if task.text:
        write_json(text_rows_path(task.tar), rows)  # the index must be last: it marks the shard as finished
    write_index(task.tar, table, facts)
    return describe(task.tar.name, task.split, table, facts, len(task.labels))


def _write_tar(task: PackTask, tar: Path) -> tuple[pa.Table, list[dict[str, Any] | None]]:
    """Write the samples to the local file ``tar``. Return the index table and the rows of the cleaning report."""
    rows: list[dict[str, Any] | None] = []
    packed_samples, sizes, columns = list[Sample](), list[tuple[int, int]](), list[list[int]]()
    with open(tar, "wb") as stream:
        # PAX allows keys of any length, and adds no extra headers if mtime is an int and the names are ASCII.
        with tar_writer()(stream, encoder=False, mtime=0, user="", group="", format="PAX_FORMAT") as writer:
            for sample in task.samples:
                try:
                    packed, row = _pack_sample(task, sample)
                except BadImage as bad:
                    rows.append({"id": sample.id, "rejected": [bad.reason, bad.detail]})
                    if not packed_samples and len(rows) == MAX_FAILURES_IN_A_ROW:
                        what = f"none of {MAX_FAILURES_IN_A_ROW} posters could be cleaned: {bad.detail}"
                        raise UserError("images-none", what) from None
                    continue
                rows.append(row)
                packed_samples.append(sample)
                columns.append(task.labels.columns(sample.genres))
                names, multi_hot = [task.labels.genres[c] for c in columns[-1]], task.labels.multi_hot(columns[-1])
                record: dict[str, Any] = {"id": sample.id, "genres": names, "multi_hot": multi_hot}
                record |= {} if sample.weight is None else {"weight": sample.weight}
                text = json.dumps(record, ensure_ascii=False).encode()
                writer.write({"__key__": sample_key(sample.id), "jpg": packed.data, "json": text})
                sizes.append((packed.width, packed.height))
    ids, weights = [sample.id for sample in packed_samples], [s.weight for s in packed_samples if s.weight is not None]
    return build_table(tar, read_members(tar), ids, sizes, columns, weights if task.weighted else None), rows


def _pack_sample(task: PackTask, sample: Sample) -> tuple[Packed, dict[str, Any] | None]:
    """Return the encoded poster and its row of the cleaning report. The row is None without text removal."""
    when = "the shards were built", "run the build again"
    data = read_checked(task.folder, sample.id, sample.name, sample.digest, *when)
    if task.text is None:
        return pack_image(data, task.options), None
    cleaned = clean_image(sample.id, decode(data, task.options), task.text)
    # Paint at full size, then shrink and encode once. pack_image may keep the bytes of an unpainted poster.
    packed = shrunk(cleaned.image, task.options) if cleaned.painted else pack_image(data, task.options)
    return packed, cleaned.row


def describe(name: str, split: str, table: Any, facts: dict[str, Any], genres: int) -> Shard:
    """Return the manifest entry of the tar ``name``. ``facts`` is the metadata of the index file."""
    counts = Counter(column for labels in table["labels"].to_pylist() for column in labels)
    height, width = (int(np.max(table[side].to_numpy(), initial=0)) for side in ("height", "width"))
    per_genre = [counts[column] for column in range(genres)]
    return Shard(name, split, table.num_rows, facts["bytes"], facts["sha256"], height, width, per_genre)
