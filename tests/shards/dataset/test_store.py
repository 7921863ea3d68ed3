"""What a store vouches for: tables and indexes are the manifest's, in a folder and at a URL."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from misbehaving_server import MisbehavingServer, reply
from shard_tools import Source, draw, encoded, only_error, write_tar

from shards.build.index.tars import IndexOptions, index_folder
from shards.build.verify import verify_shards
from shards.dataset.cache_options import CacheOptions
from shards.dataset.index import read_index, write_index
from shards.dataset.manifest import Manifest
from shards.dataset.store import RemoteShards, ShardStore, open_store
from shards.storage.paths import storage_path

pytest_plugins = ("shard_fixtures", "remote_fixtures")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def copy(few_shards: Path, tmp_path: Path) -> Path:
    """A set that may be changed."""
    return shutil.copytree(few_shards, tmp_path / "copy")


def reorder(folder: Path, name: str) -> None:
    """Give every sample of a shard another one's id."""
    table, facts = read_index(folder / name)
    order = list(range(table.num_rows))[::-1]
    write_index(folder / name, table.set_column(1, table.schema.field(1), table["id"].take(order)), facts)


def roll(path: Path) -> None:
    """Give every sample of a table the genres of the one before. No size, count or layout changes."""
    records = np.load(path, mmap_mode="r+")
    records["genres"] = np.roll(records["genres"], 1, axis=0)
    records.flush()


def without_digests(folder: Path) -> Path:
    """The set as an earlier version wrote it."""
    raw = json.loads((folder / "manifest.json").read_text())
    for shard in raw["shards"]:
        del shard["index_bytes"], shard["index_sha256"]
    (folder / "manifest.json").write_text(json.dumps(raw))
    return folder


def records(store: ShardStore, split: str = "train") -> np.ndarray:
    manifest = store.manifest()
    return store.records(manifest.tables[split], manifest.of_split(split), len(manifest.genres))


def test_a_rolled_table_is_refused_though_it_was_sound_before(copy: Path) -> None:
    manifest = Manifest.read(copy)
    assert len(records(open_store(copy))) == sum(shard.samples for shard in manifest.of_split("train"))
    roll(copy / manifest.tables["train"].name)
    for _ in range(2):
        with fails("set-damaged", "samples.npy", "sha256"):
            records(open_store(copy))
    assert len(records(open_store(copy), "val"))


def test_tables_of_two_splits_are_not_exchanged(tmp_path: Path) -> None:
    """Neither the files, nor their names in the manifest; they are of one size."""
    out = tmp_path / "out"
    for number, split in enumerate(("val", "test")):
        write_tar(out / f"{split}-0.tar", {f"{split}.jpg": encoded(draw(split, 60 + number))})
    index_folder(IndexOptions(out, workers=1))
    raw = json.loads((out / "manifest.json").read_text())
    val, test = (raw["tables"][split] for split in ("val", "test"))
    assert val["bytes"] == test["bytes"]
    swapped = {**raw, "tables": {"val": test, "test": val}}
    (out / "manifest.json").write_text(json.dumps(swapped))
    with fails("set-damaged", "'val'"):
        open_store(out).manifest().table_of("val")
    assert any("does not belong to its split 'val'" in problem for problem in verify_shards(out, 1)[1])
    (out / "manifest.json").write_text(json.dumps(raw))
    shutil.move(out / val["name"], out / "keep")
    shutil.move(out / test["name"], out / val["name"])
    shutil.move(out / "keep", out / test["name"])
    with fails("set-damaged", "sha256"):
        records(open_store(out), "val")


def test_a_reordered_index_is_refused(copy: Path) -> None:
    store = open_store(copy)
    shard = store.manifest().shards[0]
    before = store.index(shard)["id"].to_pylist()
    reorder(copy, shard.name)
    with fails("set-damaged", "train-00000.index.parquet", "sha256"):
        open_store(copy).index(shard)
    (without,) = [s for s in open_store(without_digests(copy)).manifest().shards if s.name == shard.name]
    assert open_store(copy).index(without)["id"].to_pylist() == before[::-1]  # nothing vouches for it there


def test_a_set_of_an_earlier_version_is_read_with_one_line(
    copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(copy).manifest()
    assert not caplog.records
    without_digests(copy)
    monkeypatch.setenv("RANK", "1")
    open_store(copy).manifest()
    assert not caplog.records  # the main process says it for all
    monkeypatch.setenv("RANK", "0")
    for _ in range(2):
        store = open_store(copy)
        manifest = store.manifest()
        assert store.index(manifest.shards[0]).num_rows == manifest.shards[0].samples
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and f"`posters shards index {copy}`" in record.getMessage()


def test_split_like_reads_the_ids_that_the_manifest_vouches_for(
    few: Source, copy: Path, tmp_path: Path, command: Command
) -> None:
    reorder(copy, "val-00000.tar")
    status, _, err = command(
        *("shards", "build", "--images", few.images, "--metadata", few.csv, "--out", tmp_path / "out"),
        *("--split-like", copy, "--workers", 1),
    )
    assert status == 2 and "val-00000.index.parquet" in only_error(err) and "sha256 differs" in err


def serve(server: MisbehavingServer, name: str, folder: Path) -> str:
    """A folder's files at a URL."""
    for path in folder.iterdir():
        if path.is_file():
            server.add(f"/{name}/{path.name}", reply(path.read_bytes()))
    return server.url(f"/{name}")


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
@pytest.mark.parametrize("vouched", [True, False])
def test_a_set_does_not_poison_the_cache_for_another(
    few_shards: Path, copy: Path, tmp_path: Path, server: MisbehavingServer, quick: None, vouched: bool
) -> None:
    """A second set with the same tars, whose manifest and index are a stranger's."""
    honest = shutil.copytree(few_shards, tmp_path / "honest")
    reorder(copy, "train-00000.tar")
    manifest = Manifest.read(copy)
    manifest.write_tables(copy)
    manifest.write(copy)
    if not vouched:
        without_digests(honest), without_digests(copy)
    assert Manifest.read(copy).fingerprint == Manifest.read(honest).fingerprint
    ids = {}
    for name, folder in (("bad", copy), ("good", honest), ("bad again", copy)):
        store = open_store(
            storage_path(serve(server, name.split()[0], folder)), CacheOptions(tmp_path / "cache", remote_timeout=5)
        )
        assert isinstance(store, RemoteShards)
        ids[name] = store.index(store.manifest().shards[0])["id"].to_pylist()
    assert ids["good"] == read_index(few_shards / "train-00000.tar")[0]["id"].to_pylist()
    assert ids["bad"] == ids["bad again"] == ids["good"][::-1]


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_at_a_url_tables_and_indexes_are_the_manifests(
    copy: Path, tmp_path: Path, server: MisbehavingServer, quick: None
) -> None:
    table = copy / Manifest.read(copy).tables["train"].name
    url = serve(server, "set", copy)
    store = open_store(storage_path(url), CacheOptions(tmp_path / "cache", remote_timeout=5))
    manifest = store.manifest()
    assert records(store).tobytes() == records(open_store(copy)).tobytes()
    assert store.index(manifest.shards[0]).equals(open_store(copy).index(manifest.shards[0]))
    roll(table)
    reorder(copy, manifest.shards[0].name)
    serve(server, "set", copy)
    store = open_store(storage_path(url), CacheOptions(tmp_path / "another", remote_timeout=5))
    index = f"{manifest.shards[0].name.removesuffix('.tar')}.index.parquet"
    for read, name in ((lambda: records(store), table.name), (lambda: store.index(manifest.shards[0]), index)):
        with fails("set-damaged", name):
            read()


def test_nothing_outside_is_written_by_a_stranger_with_a_cache(
    few_shards: Path, tmp_path: Path, server: MisbehavingServer
) -> None:
    """Names and digests reach the cache from a manifest that was read, and from no other."""
    raw = json.loads((few_shards / "manifest.json").read_text())
    victim = tmp_path / "x.bashrc"
    victim.write_text("mine")
    raw["shards"][0].update(sha256=f"{tmp_path}/", name="x.bashrc")
    server.add("/set/manifest.json", reply(json.dumps(raw).encode()))
    store = open_store(storage_path(server.url("/set")), CacheOptions(tmp_path / "cache"))
    with fails("set-damaged", "shards[0].sha256"):
        store.manifest()
    assert victim.read_text() == "mine" and {p.name for p in tmp_path.iterdir()} <= {"x.bashrc", "cache"}
