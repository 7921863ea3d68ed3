"""`posters shards index` on a built set of an earlier version: digests for its indexes, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_tools import Source, only_error, tree
from test_store import reorder, roll, without_digests

from shards.build.verify import verify_shards
from shards.dataset.index import index_path
from shards.dataset.manifest import Manifest

pytest_plugins = ("shard_fixtures",)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def earlier(few_shards: Path, tmp_path: Path) -> Path:
    """A set without digests of its indexes."""
    return without_digests(shutil.copytree(few_shards, tmp_path / "earlier"))


def test_only_the_manifest_is_written_and_the_fingerprint_stays(
    few_shards: Path, earlier: Path, command: Command
) -> None:
    before = tree(earlier)
    status, out, err = command("shards", "index", earlier, "--workers", 1)
    assert status == 0 and Manifest.read(few_shards).fingerprint in out
    assert "the SHA-256 of their indexes" in err and "an earlier version wrote" not in err
    assert {name for name, digest in tree(earlier).items() if digest != before[name]} == {"manifest.json"}
    assert tree(earlier) == tree(few_shards)
    times = (earlier / "manifest.json").stat().st_mtime_ns
    assert command("shards", "index", earlier, "--workers", 1)[0] == 0
    assert (earlier / "manifest.json").stat().st_mtime_ns == times
    assert verify_shards(earlier, 1)[1] == []


def test_a_set_of_before_there_were_tables(earlier: Path, few_shards: Path, command: Command) -> None:
    manifest = Manifest.read(earlier)
    for table in manifest.tables.values():
        (earlier / table.name).unlink()
    manifest.tables = {}
    manifest.write(earlier)
    assert command("shards", "index", earlier, "--workers", 1)[0] == 0
    assert Manifest.read(earlier).shards == Manifest.read(few_shards).shards
    assert not Manifest.read(earlier).tables


@pytest.mark.parametrize("damage", ["index reordered", "table rolled", "tar changed", "index missing", "tar missing"])
def test_what_does_not_fit_together_gets_no_digests(earlier: Path, command: Command, damage: str) -> None:
    tar = earlier / "train-00000.tar"
    if damage == "index reordered":
        reorder(earlier, tar.name)
    elif damage == "table rolled":
        roll(earlier / Manifest.read(earlier).tables["train"].name)
    elif damage == "tar changed":
        data = bytearray(tar.read_bytes())
        data[700] ^= 1
        tar.write_bytes(data)
    else:
        (tar if damage == "tar missing" else index_path(tar)).unlink()
    before = tree(earlier)
    status, out, err = command("shards", "index", earlier, "--workers", 1)
    assert status == 2 and not out and "is damaged, and its manifest is not changed" in only_error(err)
    assert tree(earlier) == before


def test_genres_of_a_built_set_come_from_its_build(few: Source, earlier: Path, command: Command) -> None:
    before = tree(earlier)
    for option, value in (("--metadata", few.csv), ("--genre-field", "multi_hot")):
        status, _, err = command("shards", "index", earlier, option, value)
        assert status == 2 and f"leave {option} out" in only_error(err) and tree(earlier) == before
