"""_info.json: what timm's reader needs to know of a set, written with the set and compared with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from foreign_tars import adopt, pack
from shard_tools import Source, build, mtimes, tree

from shards.build.index.tars import IndexOptions, index_folder
from shards.build.verify import verify_shards
from shards.dataset.manifest import Manifest

pytest_plugins = ("shard_fixtures",)

FOREIGN = {"splits": {"train": {"name": "train", "num_samples": 7, "filenames": ["x.tar"], "shard_lengths": [7]}}}


@pytest.fixture
def copy(few_shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(few_shards, tmp_path / "set"))


def info(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "_info.json").read_text())
    return found


def test_it_lists_every_split_and_tar_of_a_build(few_shards: Path) -> None:
    manifest = Manifest.read(few_shards)
    splits = info(few_shards)["splits"]
    assert list(splits) == manifest.split_names and len(splits) == 3
    for name, split in splits.items():
        shards = manifest.of_split(name)
        assert split["name"] == name and split["filenames"] == [shard.name for shard in shards]
        assert split["shard_lengths"] == [shard.samples for shard in shards]
        assert split["num_samples"] == sum(split["shard_lengths"])
        assert all((few_shards / tar).is_file() for tar in split["filenames"])


def test_tars_of_other_tools_have_it_too_also_in_subfolders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        pack(tmp_path / split / "0.tar", f"{split}1 {split}2")
    manifest = adopt(tmp_path)
    assert {split: found["filenames"] for split, found in info(tmp_path)["splits"].items()} == {
        "train": ["train/0.tar"],
        "val": ["val/0.tar"],
    }
    before = tree(tmp_path)
    assert adopt(tmp_path) == manifest and tree(tmp_path) == before


def test_sets_of_earlier_versions_need_none_and_index_adds_it(few: Source, copy: Path) -> None:
    whole, times = tree(copy), mtimes(copy)
    (copy / "_info.json").unlink()
    assert verify_shards(copy, 1)[1] == []
    index_folder(IndexOptions(folder=copy, workers=1))
    assert tree(copy).items() >= whole.items() and mtimes(copy) == times
    (copy / "_info.json").unlink()
    build(few, copy, samples_per_shard=8)  # a build that finds all its shards
    assert tree(copy).items() >= whole.items() and mtimes(copy) == times


def test_one_that_describes_other_shards_is_a_problem_that_index_repairs(copy: Path) -> None:
    whole, stale = tree(copy), info(copy)
    stale["splits"]["train"]["shard_lengths"][0] += 1
    (copy / "_info.json").write_text(json.dumps(stale))
    (problem,) = verify_shards(copy, 1)[1]
    assert problem.startswith("_info.json: ") and "`posters shards index`" in problem
    index_folder(IndexOptions(folder=copy, workers=1))
    assert verify_shards(copy, 1)[1] == [] and tree(copy).items() >= whole.items()


@pytest.mark.parametrize("more", [{}, {"made_by": "hand"}])
def test_that_of_another_tool_is_kept(tmp_path: Path, more: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path / "x.tar", "a b")
    text = json.dumps({**FOREIGN, **more})
    (tmp_path / "_info.json").write_text(text)
    manifest = adopt(tmp_path)
    assert (tmp_path / "_info.json").read_text() == text
    assert "_info.json is kept, because another tool wrote it" in caplog.text
    assert verify_shards(tmp_path, 1) == (manifest, [])


def test_an_unfinished_set_has_none(few: Source, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise timm would read tars that are being replaced."""
    whole = tree(copy)
    next(copy.glob("train-*.tar")).unlink()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shards.build.run.write_duplicates", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(few, copy, samples_per_shard=8)
    assert not (copy / "manifest.json").exists() and not (copy / "_info.json").exists()
    build(few, copy, samples_per_shard=8)
    assert tree(copy).items() >= whole.items()
