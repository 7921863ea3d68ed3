"""Reading shards by index: the right bytes, and damage found at open."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.errors import UserError
from shards.index import index_path
from shards.manifest import Manifest
from toolkit.data.reader import ShardReader


def test_bytes_labels_and_names_are_what_webdataset_reads(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "train")
    urls = [str(path) for path in reader.paths]
    stock = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(stock) == len(reader) > 20
    for position, sample in enumerate(stock):
        assert reader.key(position) == sample["__key__"]
        assert reader.sample_id(position) == sample["json"]["id"]
        assert reader.targets[position].tolist() == sample["json"]["multi_hot"]
    raw = [s["jpg"] for s in webdataset.WebDataset(urls, shardshuffle=False)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.image_bytes, range(len(reader)))) == raw
    assert reader.where(3).startswith(str(reader.paths[0])) and reader.key(3) in reader.where(3)


@pytest.fixture
def copy(shard_set: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shard_set, tmp_path / "set")


def check_refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        ShardReader.of_split(folder, "train")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_truncated_tar_is_found_at_open(copy: Path):
    tar = copy / "train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:-5000])
    check_refused(copy, "train-00001.tar", "truncated")


def test_a_missing_tar_is_found_at_open(copy: Path):
    (copy / "train-00000.tar").unlink()
    check_refused(copy, "train-00000.tar", "missing")


def test_a_missing_index_is_found_at_open(copy: Path):
    index_path(copy / "train-00000.tar").unlink()
    check_refused(copy, "train-00000.tar", "no index")


def test_an_index_of_another_build_is_found_at_open(copy: Path):
    shutil.copy(index_path(copy / "train-00001.tar"), index_path(copy / "train-00000.tar"))
    check_refused(copy, "train-00000.tar", "another build")


def test_an_unknown_split_is_named(shard_set: Path):
    with pytest.raises(UserError, match=r"no split 'dev'; it has train, val, test"):
        ShardReader.of_split(shard_set, "dev")


def test_no_manifest(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        ShardReader.of_split(tmp_path, "train")


def test_targets_sum_to_the_manifests_counts(shard_set: Path):
    manifest = Manifest.read(shard_set)
    summary = manifest.split_summary()
    for split in manifest.split_names:
        reader = ShardReader.of_split(shard_set, split, manifest)
        assert reader.targets.sum(axis=0).tolist() == list(summary[split]["genre_counts"].values())
        assert reader.targets.dtype == np.uint8
