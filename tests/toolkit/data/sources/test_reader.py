"""Reading shards by index: the right bytes, and damage found at open."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from failing import fails

from shards.dataset.index import index_path
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.storage.retrying_read import Abandoned
from toolkit.data.sources.shard_reader import ShardReader


def test_bytes_labels_and_names_are_what_webdataset_reads(shard_set: Path):
    reader = ShardReader.of_split(shard_set, "train")
    urls = [reader.store.where(shard) for shard in reader.shards]
    stock = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(stock) == len(reader) > 20
    for position, sample in enumerate(stock):
        assert reader.key(position) == sample["__key__"]
        assert reader.sample_id(position) == sample["json"]["id"]
        assert reader.targets[position].tolist() == sample["json"]["multi_hot"]
    raw = [s["jpg"] for s in webdataset.WebDataset(urls, shardshuffle=False)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.image_bytes, range(len(reader)))) == raw
    assert reader.where(3).startswith(urls[0]) and reader.key(3) in reader.where(3)


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


def test_an_index_of_another_build_gives_nobody_a_name(copy: Path):
    whole = ShardReader.of_split(copy, "train")
    before = whole.image_bytes(0)
    shutil.copy(index_path(copy / "train-00001.tar"), index_path(copy / "train-00000.tar"))
    reader = ShardReader.of_split(copy, "train")
    assert reader.image_bytes(0) == before  # bytes and labels are the table's
    manifest = Manifest.read(copy)
    for ask in (
        reader.sample_ids,
        lambda: reader.key(0),
        lambda: ShardReader(copy, manifest.of_split("train")[:1], manifest.labels),
    ):
        with pytest.raises(UserError, match=r"train-00000\.tar belongs to another build"):
            ask()


def test_a_damaged_table_is_found_at_open(copy: Path):
    table = copy / Manifest.read(copy).tables["train"].name
    data = table.read_bytes()
    table.write_bytes(data[:-1])
    check_refused(copy, table.name, "damaged", f"{len(data) - 1} bytes, but the manifest says {len(data)}")
    table.unlink()
    check_refused(copy, table.name, "missing")


def test_sets_without_tables_are_read_by_their_indexes(copy: Path):
    """Those of earlier versions, and any choice of shards."""
    expected = ShardReader.of_split(copy, "train")
    raw = json.loads((copy / "manifest.json").read_text())
    del raw["tables"]
    (copy / "manifest.json").write_text(json.dumps(raw))
    for table in copy.glob("*.samples.npy"):
        table.unlink()
    reader = ShardReader.of_split(copy, "train")
    assert reader.records.tobytes() == expected.records.tobytes() and len(reader) == len(expected) > 0
    shutil.copy(index_path(copy / "train-00001.tar"), index_path(copy / "train-00000.tar"))
    check_refused(copy, "train-00000.tar", "another build")


def test_a_process_holds_few_tars_open_and_no_sample(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.data.sources.shard_reader.OPEN_TARS", 2)
    tars = {str(path) for path in copy.glob("train-*.tar")}
    reader = ShardReader.of_split(copy, "train")
    expected = [ShardReader.of_split(copy, "train").image_bytes(i) for i in range(len(reader))]
    assert len(tars) > 2

    def opened() -> int:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        return sum(os.readlink(link) in tars for link in links if link.is_symlink())

    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(reader)), 20)).tolist()
    with ThreadPoolExecutor(4) as pool:
        for position, data in zip(order, pool.map(reader.image_bytes, order), strict=True):
            assert data == expected[position]
    assert opened() <= 2
    assert isinstance(reader.records.base, np.memmap) and not reader.records.flags.writeable
    del reader
    assert opened() == 0


def test_an_unknown_split_is_named(shard_set: Path):
    with pytest.raises(UserError, match=r"no split 'dev'; it has train, val, test"):
        ShardReader.of_split(shard_set, "dev")


def test_no_manifest(tmp_path: Path):
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        ShardReader.of_split(tmp_path, "train")


def test_a_tar_that_is_replaced_while_it_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch):
    """Tars are opened again and again: other pictures must not come under the old labels."""
    monkeypatch.setattr("toolkit.data.sources.shard_reader.OPEN_TARS", 1)
    reader = ShardReader.of_split(copy, "train")
    last = len(reader) - 1
    for index in (0, last):  # the first tar is closed by now
        reader.image_bytes(index)
    tar = copy / "train-00000.tar"
    data = tar.read_bytes()
    tar.unlink()
    tar.write_bytes(data[::-1])
    with pytest.raises(UserError, match=r"train-00000\.tar was replaced while it was read"):
        reader.image_bytes(0)
    tar.unlink()
    with pytest.raises(UserError, match=r"train-00000\.tar cannot be opened"):
        reader.image_bytes(0)
    assert reader.image_bytes(last)


def test_a_split_without_samples(copy: Path):
    manifest = Manifest.read(copy)
    empty = [replace(shard, samples=0) for shard in manifest.of_split("train")]
    with fails("set-split", copy):
        ShardReader(copy, empty, manifest.labels, np.zeros(0))


def test_targets_sum_to_the_manifests_counts(shard_set: Path):
    manifest = Manifest.read(shard_set)
    summary = manifest.split_summary()
    for split in manifest.split_names:
        reader = ShardReader.of_split(shard_set, split, manifest)
        assert reader.targets.sum(axis=0).tolist() == list(summary[split]["genre_counts"].values())
        assert reader.targets.dtype == np.uint8


class Flaky:
    """A function of os that fails for a shard's tar as often as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, tar: Path) -> None:
        self.real, self.tar = getattr(os, name), tar
        self.fails: list[int] = []
        self.calls = 0
        monkeypatch.setattr(os, name, self)
        monkeypatch.setattr("shards.storage.retry.PAUSES", (0.001, 0.001))
        monkeypatch.setattr("shards.storage.retry.LONGEST", 0.1)

    def __call__(self, file: Any, *arguments: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file)
        if path == str(self.tar):
            self.calls += 1
            if self.fails:
                number = self.fails.pop()
                raise OSError(number, os.strerror(number))
        return self.real(file, *arguments, **options)


@pytest.mark.parametrize("name", ["open", "preadv"])
@pytest.mark.parametrize("error", ["EIO", "ESTALE", "ETIMEDOUT", "ECONNRESET", "EAGAIN", "ENETDOWN"])
def test_what_fails_in_passing_is_read_again(
    name: str, error: str, copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    expected = ShardReader.of_split(copy, "train").image_bytes(0)
    reader = ShardReader.of_split(copy, "train")
    flaky = Flaky(monkeypatch, name, copy / "train-00000.tar")
    number = getattr(errno, error)
    flaky.fails = [number, number]
    assert reader.image_bytes(0) == expected and flaky.calls == 3
    flaky.fails = [number] * 10_000
    reader.end()
    reader._handles.close_idle()
    with pytest.raises(UserError, match=rf"train-00000.tar cannot be read on .*\[Errno {number}\]") as caught:
        reader.image_bytes(0)
    assert caught.value.status == 69 and flaky.calls > 5
    flaky.fails = []
    assert reader.image_bytes(0) == expected


@pytest.mark.parametrize("error", ["EACCES", "EMFILE", "ENOMEM"])
def test_what_does_not_pass_is_said_at_once(error: str, copy: Path, monkeypatch: pytest.MonkeyPatch):
    reader = ShardReader.of_split(copy, "train")
    flaky = Flaky(monkeypatch, "preadv", copy / "train-00000.tar")
    flaky.fails = [getattr(errno, error)] * 10
    with pytest.raises(UserError, match=r"train-00000.tar cannot be read on") as caught:
        reader.image_bytes(0)
    assert caught.value.status == 2 and flaky.calls == 1


def test_a_tar_that_ends_early_is_its_shards_damage(copy: Path):
    """Its index and the manifest say otherwise: no image is at fault."""
    reader = ShardReader.of_split(copy, "train")
    last = reader.shard_sizes[0] - 1
    reader.image_bytes(0)
    os.truncate(copy / "train-00000.tar", int(reader.records[last]["offset"]) + 10)
    with fails("tar-damaged", "train-00000.tar", "ends at byte", "copy the shard again"):
        reader.image_bytes(last)


def test_who_waits_for_a_file_that_fails_gives_up_when_nobody_reads(copy: Path, monkeypatch: pytest.MonkeyPatch):
    reader = ShardReader.of_split(copy, "train")
    flaky = Flaky(monkeypatch, "preadv", copy / "train-00000.tar")
    monkeypatch.setattr("shards.storage.retry.LONGEST", 60.0)
    monkeypatch.setattr("shards.storage.retry.PAUSES", (30.0, 30.0))
    flaky.fails = [errno.EIO] * 10
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.image_bytes, 0)
        while not flaky.calls:
            time.sleep(0.01)
        reader.abandon()
        with pytest.raises(Abandoned):
            waiting.result(timeout=20)
