"""manifest.json: counts that hold, and edits that are noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shard_tools import contents

from shards.errors import UserError
from shards.files import sha256_file
from shards.manifest import Manifest, Shard

pytest_plugins = ("shard_fixtures",)


def shard(name: str = "train-00000.tar", split: str = "train", sha256: str = "0" * 64) -> Shard:
    return Shard(name, split, 2, 10240, sha256, 90, 60, [1, 2])


def test_round_trip(tmp_path: Path) -> None:
    manifest = Manifest(["Drama", "Comédie"], [shard()], {"quality": 90}, {"rows": 3}, {"python": "3"})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert manifest.split_summary()["train"]["genre_counts"] == {"Drama": 1, "Comédie": 2}


def test_fingerprint_is_of_content() -> None:
    one = Manifest(["A", "B"], [shard()])
    assert one.fingerprint == Manifest(["A", "B"], [shard()], {"x": 1}, {"y": 1}, {"z": "1"}).fingerprint
    others = [
        Manifest(["B", "A"], [shard()]),
        Manifest(["A", "B"], [shard(sha256="1" * 64)]),
        Manifest(["A", "B"], [shard(split="val")]),
        Manifest(["A", "B"], [shard(), shard("train-00001.tar")]),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_counts_checksums_and_bytes_of_a_built_set(shard_set: Path) -> None:
    manifest = Manifest.read(shard_set)
    raw = json.loads((shard_set / "manifest.json").read_text())
    for entry in manifest.shards:
        tar = shard_set / entry.name
        records = [json.loads(data) for name, data in contents(tar).items() if name.endswith(".json")]
        assert entry.bytes == tar.stat().st_size and entry.sha256 == sha256_file(tar)
        assert entry.samples == len(records)
        assert entry.genre_counts == [
            sum(column) for column in zip(*(r["multi_hot"] for r in records), strict=True)
        ]
    for name, split in raw["splits"].items():
        mine = [entry for entry in manifest.shards if entry.split == name]
        assert split["samples"] == sum(entry.samples for entry in mine) and split["shards"] == len(mine)
        assert list(split["genre_counts"].values()) == [
            sum(c) for c in zip(*(e.genre_counts for e in mine), strict=True)
        ]
    assert manifest.split_names == ["train", "val", "test"]


def test_unknown_split(shard_set: Path) -> None:
    with pytest.raises(UserError, match="no split 'valid'; it has train, val, test"):
        Manifest.read(shard_set).of_split("valid")


def test_absent_manifests_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="posters shards build --out"):
        Manifest.read(tmp_path / "absent")
    with pytest.raises(UserError, match="finish its `posters shards build`"):
        Manifest.read(tmp_path)


def edit(*path: Any, to: Any) -> Callable[[Any], Any]:
    def change(raw: Any) -> Any:
        place = raw
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to
        return raw

    return change


EDITS = {
    "another format": edit("format", to=99),
    "format missing": lambda raw: {k: v for k, v in raw.items() if k != "format"},
    "a list": lambda raw: [raw],
    "genre renamed": edit("labels", "genres", 0, to="Akshun"),
    "genres reordered": lambda raw: edit("labels", "genres", to=raw["labels"]["genres"][::-1])(raw),
    "shard dropped": lambda raw: edit("shards", to=raw["shards"][1:])(raw),
    "sha256": edit("shards", 0, "sha256", to="0" * 64),
    "split moved": edit("shards", 0, "split", to="test"),
    "count as text": edit("shards", 0, "samples", to="20"),
    "count missing": edit("shards", 0, "genre_counts", to=[1]),
    "shards null": edit("shards", to=None),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_edited_manifests_are_user_errors(
    shard_set: Path, tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    raw = change(json.loads((shard_set / "manifest.json").read_text()))
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(UserError) as caught:
        Manifest.read(tmp_path)
    assert "\n" not in str(caught.value) and "manifest.json" in str(caught.value)
