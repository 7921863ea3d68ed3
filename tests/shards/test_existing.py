"""A build's folder may hold its own unfinished work, another set, or somebody's own tars."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shard_tools import Source, build, tree

from shards.adopt import AdoptOptions, index_folder
from shards.errors import UserError
from shards.existing import OtherShards
from shards.index import index_path
from shards.verify import verify_shards

pytest_plugins = ("shard_fixtures",)


def test_a_tar_of_somebody_else_under_one_of_our_names_is_spared(
    few: Source, few_shards: Path, tmp_path: Path
):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(few_shards / "test-00000.tar", out / "train-00000.tar")  # sound, but with other samples
    before = tree(out)
    with pytest.raises(OtherShards, match=r"train-00000\.tar has no index and other samples.*--overwrite"):
        build(few, out)
    assert {k: v for k, v in tree(out).items() if not k.endswith(".lock")} == before
    build(few, out, overwrite=True)
    assert verify_shards(out, 1)[1] == []


def test_our_own_tar_whose_index_a_kill_prevented_is_finished(few: Source, tmp_path: Path):
    out = tmp_path / "out"
    build(few, out)
    whole = tree(out)
    index_path(out / "train-00000.tar").unlink()
    (out / "manifest.json").unlink()
    build(few, out)
    assert tree(out) == whole


def test_a_refused_build_leaves_no_litter(few: Source, tmp_path: Path):
    out = tmp_path / "out"
    build(few, out)
    whole = tree(out)
    with pytest.raises(OtherShards, match="other posters or options"):
        build(few, out, seed=7)
    assert tree(out) == whole


def test_indexing_a_built_set_is_refused(few: Source, tmp_path: Path):
    out = tmp_path / "out"
    build(few, out)
    whole = tree(out)
    with pytest.raises(UserError, match="has its indexes already"):
        index_folder(AdoptOptions(out))
    assert tree(out) == whole
