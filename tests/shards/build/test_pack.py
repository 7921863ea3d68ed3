"""One shard: the same task gives the same bytes, and any id survives as a key."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import GENRES, Source, contents, draw, encoded, tree, write_file

from shards.build.pack import PackTask, Sample, pack_shard, sample_key
from shards.build.resume import finished_shard
from shards.build.tar_writer import tar_writer
from shards.dataset.index import index_path, read_index
from shards.dataset.labels import LabelSet
from shards.errors import UserError
from shards.executors.local import LocalExecutor
from shards.inputs.images import ImageOptions
from shards.inputs.rejections import id_problem

pytest_plugins = ("shard_fixtures",)


def task(source: Source, out: Path, ids: Iterable[str] | None = None, **changes: Any) -> PackTask:
    samples = [
        Sample(i, hashlib.sha256((source.images / f"{i}.jpg").read_bytes()).hexdigest(), source.good[i])
        for i in ids or list(source.good)[:6]
    ]
    whole = PackTask(source.images, out, "train-00000", "train", tuple(samples), LabelSet(GENRES), ImageOptions())
    return replace(whole, **changes)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_keys_of_any_id(sample_id: str) -> None:
    key = sample_key(sample_id)
    assert re.fullmatch(r"[A-Za-z0-9_~%-]+", key)  # neither dots nor slashes, which webdataset cuts at
    assert not (key.startswith("__") and key.endswith("__"))
    assert unquote(key) == sample_id


def test_the_same_task_gives_the_same_bytes(few: Source, tmp_path: Path) -> None:
    one = pack_shard(task(few, tmp_path / "a"))
    assert one == pack_shard(task(few, tmp_path / "b"))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_members_carry_nothing_of_the_machine(few: Source, tmp_path: Path) -> None:
    pack_shard(task(few, tmp_path))
    with tarfile.open(tmp_path / "train-00000.tar") as archive:
        infos = archive.getmembers()
    assert [info.name for info in infos[:2]] == ["p0000.jpg", "p0000.json"]
    assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode, i.isreg()) for i in infos} == {
        (0, 0, 0, "", "", infos[0].mode, True)
    }


def test_what_a_sample_holds(few: Source, tmp_path: Path) -> None:
    shard = pack_shard(task(few, tmp_path))
    by_name = contents(tmp_path / "train-00000.tar")
    for sample_id in list(few.good)[:6]:
        record = json.loads(by_name[f"{sample_id}.json"])
        assert record["id"] == sample_id and set(record["genres"]) == set(few.good[sample_id])
        assert record["multi_hot"] == [int(genre in few.good[sample_id]) for genre in GENRES]
        assert by_name[f"{sample_id}.jpg"] == (few.images / f"{sample_id}.jpg").read_bytes()
    assert (shard.samples, shard.max_width, shard.max_height) == (6, 60, 90)


def test_the_same_shard_by_two_processes_at_once(few: Source, tmp_path: Path) -> None:
    """As a cluster may do it when it has lost sight of a worker."""
    pack_shard(task(few, tmp_path / "once"))
    twice = task(few, tmp_path / "twice")
    shards = [shard for _, shard in LocalExecutor(2).run(pack_shard, [twice] * 8)]
    assert len(shards) == 8 and all(shard == shards[0] for shard in shards)
    assert tree(tmp_path / "twice") == tree(tmp_path / "once")


def test_a_finished_shard_is_recognised(few: Source, tmp_path: Path) -> None:
    todo = task(few, tmp_path)
    assert finished_shard(todo) is None
    shard = pack_shard(todo)
    assert finished_shard(todo) == shard
    todo.tar.write_bytes(todo.tar.read_bytes()[:-512])
    assert finished_shard(todo) is None
    todo.tar.unlink()
    assert finished_shard(todo) is None
    index_path(todo.tar).unlink()
    assert finished_shard(todo) is None


def test_another_plan_is_another_shard(few: Source, tmp_path: Path) -> None:
    todo = task(few, tmp_path)
    pack_shard(todo)
    others = [
        replace(todo, split="val"),
        replace(todo, samples=todo.samples[::-1]),
        replace(todo, samples=todo.samples[1:]),
        replace(todo, samples=(replace(todo.samples[0], genres=("Sci-Fi",)), *todo.samples[1:])),
        replace(todo, samples=(replace(todo.samples[0], digest="0" * 64), *todo.samples[1:])),
        replace(todo, labels=LabelSet(GENRES[::-1])),
        replace(todo, options=ImageOptions(quality=80)),
    ]
    assert len({other.plan() for other in [todo, *others]}) == 8
    for other in others:
        with fails("path-exists", "train-00000.tar", "other posters or options", "--out", "--overwrite"):
            finished_shard(other)
    elsewhere = replace(todo, folder=Path("/another/folder"))
    assert elsewhere.plan() == todo.plan() and finished_shard(elsewhere) == finished_shard(todo)


def test_a_missing_webdataset_is_named_and_found_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("shards._webdataset")]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as absent, pytest.raises(ModuleNotFoundError) as caught:
        absent.setattr("shards.build.tar_writer.find_spec", lambda name: None)
        tar_writer()
    assert caught.value.name == "webdataset" and tar_writer().__name__ == "TarWriter"


@pytest.mark.parametrize("change", ["replaced", "emptied", "removed"])
def test_a_poster_that_changed_since_it_was_checked(few: Source, tmp_path: Path, change: str) -> None:
    images = tmp_path / "images"
    for sample_id in list(few.good)[:6]:
        write_file(images / f"{sample_id}.jpg", (few.images / f"{sample_id}.jpg").read_bytes())
    if change == "removed":
        (images / "p0003.jpg").unlink()
    else:
        write_file(images / "p0003.jpg", b"" if change == "emptied" else encoded(draw("another")))
    with pytest.raises(UserError, match=r"poster p0003 .* changed while the shards were built"):
        pack_shard(task(few, tmp_path / "out", folder=images))
    assert list((tmp_path / "out").iterdir()) == []


def test_odd_ids_in_a_tar(source: Source, tmp_path: Path) -> None:
    odd = [i for i in source.good if not re.fullmatch(r"[a-z]+\d*", i) and (source.images / f"{i}.jpg").exists()]
    assert len(odd) >= 15 and not any(map(id_problem, odd))
    pack_shard(task(source, tmp_path, odd))
    table, _ = read_index(tmp_path / "train-00000.tar")
    assert table["id"].to_pylist() == odd
    assert [unquote(key) for key in table["key"].to_pylist()] == odd
    by_name = contents(tmp_path / "train-00000.tar")
    assert {json.loads(data)["id"] for name, data in by_name.items() if name.endswith(".json")} == set(odd)
