"""A shard set in Python: its length, its pictures with their genres, and its table."""

from __future__ import annotations

import ast
import csv
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from failing import fails
from PIL import Image

from shards.dataset.manifest import Manifest
from shards.storage.files import write_json
from toolkit.data.sources.shard_set import ShardSet


@pytest.fixture(scope="module")
def shards(drawn_set: Path) -> ShardSet:
    return ShardSet(drawn_set)


def test_samples_have_the_genres_of_the_table(shards: ShardSet, drawn_posters: Path):
    rows = csv.DictReader((drawn_posters / "metadata.csv").open(encoding="utf-8"))
    genres = {row["poster_id"]: row["genre"] for row in rows}
    for number in (0, 60, len(shards) - 1):
        picture, found = shards[number]
        assert sorted(found) == sorted(ast.literal_eval(genres[shards.ids[number]]))
        with Image.open(drawn_posters / "images" / f"{shards.ids[number]}.jpg") as image:
            small = [np.asarray(one.convert("RGB").resize((8, 12)), np.int16) for one in (picture, image)]
        assert picture.mode == "RGB" and np.abs(small[0] - small[1]).mean() < 5
    assert shards[-1][1] == shards[len(shards) - 1][1] == shards[np.int64(len(shards) - 1)][1]


def test_all_samples_are_there(shards: ShardSet):
    manifest = Manifest.read(Path(shards.path))
    assert shards.splits == {name: split["samples"] for name, split in manifest.split_summary().items()}
    assert len(shards) == sum(shards.splits.values()) == len(set(shards.ids)) == len(list(shards))
    assert shards.genres == tuple(manifest.genres) and shards.targets.shape == (len(shards), len(shards.genres))
    for number in (len(shards), -len(shards) - 1):
        with pytest.raises(IndexError):
            shards[number]
    with pytest.raises(TypeError):
        shards["p00000"]  # type: ignore[index]
    assert repr(shards).startswith(f"ShardSet({str(shards.path)!r}: {len(shards)} samples, ")


def test_the_table(shards: ShardSet):
    table = shards.to_pandas()
    assert list(table.columns) == ["id", "split", "shard", "width", "height", "genres"]
    assert table["id"].tolist() == shards.ids and table["split"].value_counts().to_dict() == shards.splits
    hot = [[int(genre in names) for genre in shards.genres] for names in table["genres"]]
    np.testing.assert_array_equal(np.array(hot), shards.targets)
    assert shards[5][0].size == (table["width"][5], table["height"][5])


def test_one_split(shards: ShardSet):
    val = ShardSet(shards.path, "val")
    table = shards.to_pandas().query("split == 'val'").reset_index(drop=True)
    pd.testing.assert_frame_equal(val.to_pandas(), table)
    assert val.splits == {"val": len(val)} and val[0][1] == table["genres"][0]
    again = pickle.loads(pickle.dumps(val))
    assert len(again) == len(val) and again[0][1] == val[0][1]


def test_a_set_without_tables(shards: ShardSet, tmp_path: Path):
    """As earlier versions wrote it."""
    old = shutil.copytree(shards.path, tmp_path / "old")
    manifest = Manifest.read(old)
    manifest.tables = {}
    manifest.write(old)
    np.testing.assert_array_equal(ShardSet(old).targets, shards.targets)


def test_bad_sets_are_told(tmp_path: Path, shards: ShardSet):
    with fails("set-missing", tmp_path / "none"):
        ShardSet(tmp_path / "none")
    with fails("set-split", "'dev'", "train, val, test"):
        ShardSet(shards.path, "dev")
    damaged = shutil.copytree(shards.path, tmp_path / "damaged")
    tar = next(iter(sorted(damaged.glob("train-*.tar"))))
    tar.write_bytes(bytes(tar.stat().st_size))
    with fails("image-unreadable", tar.name, "not an image"):
        ShardSet(damaged)[0]
    write_json(damaged / "manifest.json", {})
    with fails("set-damaged", "manifest.json"):
        ShardSet(damaged)
