"""Compare the local files of a shard set with its manifest: sizes of tars, digests of indexes, and sample tables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from shards.dataset.checked_files import once_per_node
from shards.dataset.index import index_bytes, index_path, require_digest
from shards.dataset.manifest import Shard
from shards.dataset.sample_table import SampleTable, check_sample_table, map_sample_table, open_sample_table
from shards.errors import UserError
from shards.storage.files import fingerprint
from shards.storage.paths import StoragePath


def check_size(tar: Path, shard: Shard, moved: str = "") -> os.stat_result:
    """Return the os.stat result of a tar. Raises UserError if the tar is missing, or has a wrong size.

    moved: remedy if the tar is missing. Empty if the tar is in the folder of the set.
    """
    try:
        facts = tar.stat()
    except (FileNotFoundError, NotADirectoryError):
        remedy = moved or "copy it again, or build the set again"
        raise UserError("set-missing", f"shard {tar} is missing; {remedy}") from None
    if (size := facts.st_size) != shard.bytes:
        state = "truncated" if size < shard.bytes else "changed"
        what = f"shard {tar} is {state}: {size} bytes, but the manifest says {shard.bytes}"
        remedy = "copy it again, or index the tars again"
        if not moved:  # a tar of another tool may be the only copy, so the message must not say to delete it
            remedy += " if another tool made them, or else delete it and its index and run `posters shards build` again"
        raise UserError("set-damaged", f"{what}; {remedy}")
    return facts


def check_indexes(root: Path, shards: Sequence[Shard]) -> None:
    """Compare the indexes in a folder with their digests in the manifest, once per node. Raises UserError."""
    known = [shard for shard in shards if shard.index_sha256 is not None]
    paths = [index_path(root / shard.name) for shard in known]

    def check() -> None:
        for shard, path in zip(known, paths, strict=True):
            require_digest(index_bytes(root / shard.name), path, shard)

    expected = fingerprint([shard.index_sha256 for shard in known])
    once_per_node([(path, path.stat()) for path in paths], expected, check)


def local_records(root: Path, table: SampleTable, shards: Sequence[Shard], genres: int) -> np.ndarray:
    """Return the records of a sample table in a folder, mapped into memory."""
    path = root / table.name
    with open_sample_table(path) as stream:
        return mapped_records(stream, path, table, shards, genres)


def mapped_records(
    stream: IO[bytes], path: StoragePath, table: SampleTable, shards: Sequence[Shard], genres: int
) -> np.ndarray:
    """Return the records of an open sample table, mapped into memory. The table is checked once per node."""
    records = map_sample_table(stream, path, table, sum(shard.samples for shard in shards), genres)
    limits = np.array([(shard.samples, shard.bytes) for shard in shards], dtype=np.int64)
    expected = table.sha256 + hashlib.sha256(limits.tobytes()).hexdigest()
    seen = [(path, os.fstat(stream.fileno()))]
    once_per_node(seen, expected, lambda: check_sample_table(stream, path, records, table, shards))
    return records
