"""What the tests of `posters shards index` share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shard_tools import draw, encoded, rows_of, write_tar

from shards.build.index.tar_places import Place
from shards.build.index.tars import IndexOptions, index_folder
from shards.dataset.index import read_index
from shards.dataset.manifest import Manifest


def adopt(folder: Place, **options: Any) -> Manifest:
    """Index a folder, or tars at another place, in this process."""
    return index_folder(IndexOptions(folder, **{"workers": 1, **options}))


def pack(tar: Path, names: str, **records: Any) -> Path:
    """A tar of drawn images ``NAME.jpg``, with a JSON of the fields that ``records`` gives for a name."""
    members = {}
    for name in names.split():
        members[f"{name}.jpg"] = encoded(draw(name, 9, 12))
        if name in records:
            members[f"{name}.json"] = json.dumps(records[name]).encode()
    return write_tar(tar, members)


def found(folder: Path) -> dict[str, list[str]]:
    """Genres by key, of what was taken."""
    manifest = Manifest.read(folder)
    return {
        row["key"]: [manifest.genres[c] for c in row["labels"]]
        for shard in manifest.shards
        for row in read_index(folder / shard.name)[0].to_pylist()
    }


def rejected(folder: Path) -> dict[str, str]:
    """Reasons by key, of what was not."""
    return {key: reason for key, reason, _ in rows_of(folder / "rejected.csv")}
