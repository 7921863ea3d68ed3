"""What the tests of ``shards`` share about URLs: sources put into a store, folders there compared with local ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from shard_tools import Source

from shards.storage.paths import storage_path


def upload(folder: Path, url: str) -> Any:
    """Put a local folder's files below a URL; gives the place."""
    target: Any = storage_path(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target.fs.put_file(str(path), f"{target.path}/{path.relative_to(folder).as_posix()}")
    return target


def remote_tree(folder: Any) -> dict[str, str]:
    """SHA-256 of every file below a URL, as shard_tools.tree gives it for folders; a lock that was left is told."""
    folder.fs.invalidate_cache()
    root = folder.path.rstrip("/") + "/"
    return {
        path[len(root) :]: hashlib.sha256(folder.fs.cat_file(path)).hexdigest() for path in folder.fs.find(folder.path)
    }


def at_url(source: Source, bucket: str) -> Source:
    """The same posters and CSV in a bucket."""
    images = upload(source.images, f"{bucket}/raw/posters")
    table = storage_path(f"{bucket}/raw/meta.csv")
    table.write_bytes(source.csv.read_bytes())
    return Source(images, table, source.good, source.bad, source.copies)
