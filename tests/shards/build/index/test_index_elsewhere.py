"""`posters shards index --out`: tars at a URL or in another folder become a set, which is used as any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from failing import fails
from foreign_tars import adopt, pack, rejected
from misbehaving_server import MisbehavingServer, in_turn, reply
from shard_tools import draw, encoded, mtimes, only_error, posters, tree, write_file, write_tar
from shared_tools import small_file_system
from url_tools import upload

from shards.build.index.kept import WORK
from shards.build.index.tar_places import find_tars
from shards.build.planning import splits_like
from shards.build.verify import verify_shards
from shards.dataset.cache_options import CacheOptions
from shards.dataset.manifest import Manifest
from shards.dataset.store import LocalShards, RemoteTars, open_store
from shards.storage.paths import storage_path
from shards.storage.retrying_read import read_blocks
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.sources.shard_set import ShardSet

pytest_plugins = ("shard_fixtures", "remote_fixtures")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars of two splits, with a rejected sample."""
    folder = tmp_path / "tars"
    pack(folder / "train-0.tar", "a b c", a={"genres": ["War"]}, b={"genres": ["Drama", "War"]})
    pack(folder / "train-1.tar", "d", d={"genres": ["Drama"]})
    pack(folder / "val" / "0.tar", "e", e={"genres": ["War"]})
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def serve(server: MisbehavingServer, folder: Path) -> str:
    """The files of a folder at a URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            server.add(f"/set/{name}", reply(path.read_bytes(), ETag=f'"{name}"'))
    return server.url("/set")


PATTERN = "{train-0,train-1,val/0}.tar"


@pytest.fixture(params=["folder", "memory", "s3", "http", "pattern"])
def place(request: pytest.FixtureRequest, tars: Path, server: MisbehavingServer, quick: None) -> str:
    """The tars in a folder or at a URL."""
    if request.param == "folder":
        return str(tars)
    if request.param == "pattern":
        return f"{tars}/{PATTERN}"
    if request.param == "http":
        return f"{serve(server, tars)}/{PATTERN}"
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
    url = "memory://bucket/set" if request.param == "memory" else f"{request.getfixturevalue('bucket')}/set"
    upload(tars, url)
    return url


def without_places(folder: Path) -> dict[str, Any]:
    raw = json.loads((folder / "manifest.json").read_text())
    return {key: value for key, value in raw.items() if key not in ("format", "tars")}


def test_the_set_is_the_one_that_lies_beside_the_tars(place: str, tars: Path, tmp_path: Path, cache: Path) -> None:
    before, out = tree(tars), tmp_path / "out"
    manifest = adopt(place, out=out)
    assert tree(tars) == before
    assert manifest.tars == place.removesuffix(f"/{PATTERN}") and manifest == Manifest.read(out)
    assert rejected(out) == {"c": "no genres"}
    copy = shutil.copytree(tars, tmp_path / "copy")
    adopt(copy)
    for name, digest in tree(copy).items():
        if not name.endswith((".json", ".tar")):
            assert tree(out)[name] == digest
    others = {name for name in tree(copy) if not name.endswith((".tar", "_info.json"))}  # timm needs the tars beside it
    assert set(tree(out)) == others and not (out / WORK).exists()
    assert without_places(out) == without_places(copy)
    assert json.loads((out / "manifest.json").read_text())["format"] == 3

    store, beside = open_store(out), open_store(copy)
    assert isinstance(store, LocalShards if place.startswith("/") else RemoteTars)
    for split in ("train", "val"):
        ours, theirs = ShardReader.of_split(store, split), ShardReader.of_split(beside, split)
        assert ours.sample_ids() == theirs.sample_ids() and np.array_equal(ours.targets, theirs.targets)
        with ours.in_order():
            assert [ours.image_bytes(i) for i in range(len(ours))] == [theirs.image_bytes(i) for i in range(len(ours))]
        assert str(manifest.tars) in ours.where(0)
    assert len(list(ShardSet(out))) == 4
    assert verify_shards(out, 1)[1] == []
    assert splits_like(out, ["a", "e"], np.arange(2)).tolist() == [0, 1]
    if not place.startswith("/"):
        digests = {f"{shard.sha256}.tar" for shard in manifest.shards}
        assert {path.name for path in cache.glob("*.tar")} == digests  # the indexes and tables are in the folder


def test_indexing_again_changes_nothing(place: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = adopt(place, out=out)
    times = mtimes(out, "*.parquet")
    assert adopt(place, out=out) == first and mtimes(out, "*.parquet") == times


def test_the_command(tars: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    status, said, _ = command("shards", "index", *sorted(tars.rglob("*.tar")), "--out", out, "--workers", 1)
    assert status == 0 and f"shards          {out}\n" in said and f"tars            {tars}\n" in said
    assert f"rejected        {out / 'rejected.csv'}\n" in said and "taken           4 of 5 samples" in said
    status, said, _ = command("shards", "verify", out, "--workers", 1)
    assert status == 0 and "is sound: 3 shards, 4 samples" in said
    status, said, _ = command("shards", "info", out)
    assert status == 0 and f"tars            {tars}\n" in said


def test_a_relative_place_is_found_from_everywhere(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adopt("tars", out=Path("out"))
    monkeypatch.chdir("/")
    assert Manifest.read(tmp_path / "out").tars == str(tars) and verify_shards(tmp_path / "out", 1)[1] == []


def test_the_folder_of_the_tars_as_out_is_no_other_place(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tars)
    assert adopt(tars, out=tmp_path / "link").tars is None
    assert Manifest.read(tars).tars is None and json.loads((tars / "manifest.json").read_text())["format"] == 1


def test_moved_and_changed_tars(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adopt(tars, out=out)
    tars.rename(tmp_path / "new")
    manifest = Manifest.read(out)
    with fails("set-missing", f"{tars / 'train-0.tar'} is missing", f"the field 'tars' of {out / 'manifest.json'}"):
        ShardReader.of_split(out, "train", manifest)
    raw = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**raw, "tars": f"{tmp_path}/new/"}))
    assert len(ShardReader.of_split(out, "train")) == 3 and verify_shards(out, 1)[1] == []
    with open(tmp_path / "new" / "train-0.tar", "ab") as stream:
        stream.write(b"x")
    with fails("set-damaged", "train-0.tar is changed", "index the tars again"):
        ShardReader.of_split(out, "train")
    assert any("train-0.tar: the file has" in problem for problem in verify_shards(out, 1)[1])


def test_moved_and_changed_tars_at_a_url(tars: Path, tmp_path: Path, server: MisbehavingServer, quick: None) -> None:
    out = tmp_path / "out"
    adopt(f"{serve(server, tars)}/{PATTERN}", out=out)
    data = (tars / "train-1.tar").read_bytes()
    server.add("/set/train-0.tar", reply(b"", 404))
    server.add("/set/train-1.tar", reply(data[:700] + b"x" + data[701:]))
    store = open_store(out, CacheOptions(tmp_path / "cache", remote_timeout=5))
    reader = ShardReader.of_split(store, "train")
    moved = f"if the tars were moved, correct the field 'tars' of {out / 'manifest.json'}"
    with fails("path-missing", "/set/train-0.tar cannot be read", moved):
        reader.image_bytes(0)
    with fails("set-damaged", "/set/train-1.tar is not the file of the manifest"):
        reader.image_bytes(2)
    problems = verify_shards(out, 1, CacheOptions(tmp_path / "another", remote_timeout=5))[1]
    assert [moved in problem for problem in problems] == [True, False] and "sha256 differs" in problems[1]


def test_an_index_that_is_missing_or_changed(place: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adopt(place, out=out)
    (out / "train-1.index.parquet").write_bytes(b"changed")
    store = open_store(out, CacheOptions(tmp_path / "cache"))
    manifest = store.manifest()
    store.check(manifest.shards)
    for read in (lambda: store.check(manifest.shards, indexes=True), lambda: store.index(manifest.shards[1])):
        with fails("set-damaged", "train-1.index.parquet", "sha256"):
            read()
    (out / "train-1.index.parquet").unlink()
    with fails("set-missing", "no index beside"):
        store.check(manifest.shards)


# --- what cannot be


def test_a_url_needs_out(tmp_path: Path, command: Command) -> None:
    for place in ("s3://bucket/set", "https://me:word@host/{0..9}.tar?key=word", "memory://b/s"):
        status, _, err = command("shards", "index", place)
        assert status == 2 and "is a URL: name a folder for the indexes and the manifest with --out" in only_error(err)
        assert "word" not in err
    with fails("url-refused", "s3://b/out: the indexes and the manifest need a local folder as --out"):
        adopt(tmp_path, out=storage_path("s3://b/out"))


def test_places_that_no_manifest_can_name(tmp_path: Path) -> None:
    for place in ("http://[::1]:80/x-{0..1}.tar", "http://[::1]:80/set", tmp_path / "a\nb"):
        with fails("path-name", "a set cannot have its tars elsewhere, because their place"):
            adopt(place, out=tmp_path / "out")


def test_a_read_only_folder_needs_out(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before the first tar is read."""
    real = os.access
    for place in (tars, tars / "val"):
        monkeypatch.setattr("os.access", lambda path, mode, place=place: Path(path) != place and real(path, mode))
        monkeypatch.setattr("shards.build.index.tars.read_tars", None)
        with fails("path-unwritable", f"cannot write indexes beside the tars in {place}", "--out"):
            adopt(tars)
    monkeypatch.undo()
    assert adopt(tars, out=tmp_path / "out").tars == str(tars)


def test_a_file_system_that_is_read_only(tars: Path, tmp_path: Path, command: Command) -> None:
    with small_file_system(tmp_path / "disk", "16m") as disk:
        place = shutil.copytree(tars, disk / "tars")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        status, _, err = command("shards", "index", place, "--workers", 1)
        assert status == 2 and f"cannot write indexes beside the tars in {place}; " in only_error(err)
        status, _, err = command("shards", "index", place, "--out", disk / "out", "--workers", 1)
        assert status == 2 and "cannot make the folder" in only_error(err) and "Read-only file system" in err
        status, _, err = command("shards", "index", place, "--out", tmp_path / "out", "--workers", 1)
        assert status == 0 and verify_shards(tmp_path / "out", 1)[1] == []


def test_a_really_full_disk(tars: Path, tmp_path: Path, server: MisbehavingServer, quick: None) -> None:
    large = {"d.jpg": encoded(draw(1)), "d.json": b'{"genres": ["Drama"]}', "d.txt": bytes(1 << 20)}
    write_tar(tars / "train-1.tar", large)
    pattern = f"{serve(server, tars)}/{PATTERN}"
    with small_file_system(tmp_path / "disk", "1m") as disk:
        with fails("disk-full", "/set/train-1.tar (1 MiB) in", "No space left on device"):
            adopt(pattern, out=disk / "out")
        assert len(list((disk / "out" / WORK).iterdir())) == 1
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        adopt(pattern, out=disk / "out")
        assert verify_shards(disk / "out", 1, CacheOptions(tmp_path / "cache"))[1] == []


def test_out_that_is_another_folder(tars: Path, tmp_path: Path) -> None:
    out, copy = tmp_path / "out", shutil.copytree(tars, tmp_path / "copy")
    adopt(tars, out=out)
    before = tree(out)
    with fails("path-exists", f"{out} is a shard set whose tars are in {tars}; choose another --out"):
        adopt(copy, out=out)
    with fails("path-exists", f"{out} is a shard set whose tars are in {tars}; index {tars} with --out {out}"):
        adopt(out)
    with fails("path-exists", f"{copy} contains other tars, such as train-0.tar; choose a new folder"):
        adopt(tars, out=copy)
    adopt(copy)
    with fails("path-exists", f"{copy} is a shard set whose tars are in the folder itself; choose another --out"):
        adopt(tars, out=copy)
    with fails("path-exists", f"{out} is a shard set that also has train-0.tar, val/0.tar; name all its tars"):
        adopt(str(tars / "train-1.tar"), out=out)
    write_file(tmp_path / "run" / "config.yaml", b"")
    write_file(tmp_path / "run" / "checkpoints" / "x", b"")
    with fails("path-exists", "is a run folder, so no shard set is written there"):
        adopt(tars, out=tmp_path / "run")
    with fails("path-unwritable", "cannot make the folder", "is a file"):
        adopt(tars, out=write_file(tmp_path / "file", b"") / "out")
    assert tree(out) == before


def test_more_tars_of_a_pattern_join_the_set(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adopt(str(tars / "{train-1,val/0}.tar"), out=out)
    assert verify_shards(out, 1)[1] == [] and Manifest.read(out).split_names == ["train", "val"]
    manifest = adopt(str(tars / PATTERN), out=out)
    assert verify_shards(out, 1)[1] == [] and [shard.samples for shard in manifest.shards] == [2, 1, 1]


def test_a_built_set_is_not_indexed_by_a_pattern(few_shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(few_shards, tmp_path / "copy")
    with fails("option-conflict", "already has the genres of `posters shards build`", "--out"):
        adopt(str(copy / "train-00000.tar"))
    manifest = adopt(copy, out=tmp_path / "out")
    built = Manifest.read(copy)
    assert manifest.genres == built.genres and manifest.fingerprint == built.fingerprint
    assert verify_shards(tmp_path / "out", 1)[1] == []


def test_a_truncated_tar_at_a_url(tars: Path, tmp_path: Path, server: MisbehavingServer, quick: None) -> None:
    data = (tars / "train-1.tar").read_bytes()
    (tars / "train-1.tar").write_bytes(data[:600])
    url = serve(server, tars)
    with fails("tar-damaged", f"{url}/train-1.tar is truncated in member d.jpg") as caught:
        adopt(f"{url}/{PATTERN}", out=tmp_path / "out")
    assert "download" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out" / WORK).glob("download-*"))


@pytest.mark.parametrize("more", [b"", bytes(512)])
@pytest.mark.parametrize("late", [False, True])
def test_a_tar_at_a_url_that_changes_while_it_is_read(
    tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: bytes, late: bool
) -> None:
    place = upload(tars, "memory://bucket/changes")
    data = (tars / "train-1.tar").read_bytes()

    def blocks(path: Any, size: int, budget: Any) -> Iterator[bytes]:
        if path.name == "train-1.tar":
            path.fs.pipe(path.path, data + more)
        yield from read_blocks(path, size, budget)

    def tars_of(place: Any) -> Any:
        found = find_tars(place)
        place.fs.pipe((place / "train-1.tar").path, data + more)
        return found

    if late:
        monkeypatch.setattr("shards.build.index.kept.read_blocks", blocks)
    else:  # between the listing and the download: another size is a change, the same size is the tar to read
        monkeypatch.setattr("shards.build.index.tars.find_tars", tars_of)
    if late or more:
        with fails("file-changed", "memory://bucket/changes/train-1.tar changed while it was read"):
            adopt(place, out=tmp_path / "out")
        monkeypatch.undo()
    adopt(place, out=tmp_path / "out")
    assert verify_shards(tmp_path / "out", 1, CacheOptions(tmp_path / "cache"))[1] == []


def test_a_cut_connection_is_continued(tars: Path, tmp_path: Path, server: MisbehavingServer, quick: None) -> None:
    url = serve(server, tars)
    data = (tars / "train-0.tar").read_bytes()
    good = reply(data, ETag='"1"')
    server.add("/set/train-0.tar", in_turn(good, good, reply(data[:999], Content_Length=len(data)), good))
    adopt(f"{url}/{PATTERN}", out=tmp_path / "out")
    assert verify_shards(tmp_path / "out", 1, CacheOptions(tmp_path / "cache"))[1] == []


def test_no_room_for_a_download(
    tars: Path, tmp_path: Path, server: MisbehavingServer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, out = serve(server, tars), tmp_path / "out"
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=9))
    with fails("disk-full", f"no room for {url}/train-0.tar (0 MiB) in {out}: ", "name a larger disk with --out"):
        adopt(f"{url}/{PATTERN}", out=out)
    assert not list((out / WORK).iterdir())


def test_secrets_of_a_url_are_in_no_file(tars: Path, tmp_path: Path, server: MisbehavingServer, quick: None) -> None:
    url, out = serve(server, tars).replace("://", "://me:hidden-word@"), tmp_path / "out"
    for path in list(server.routes):
        server.add(f"{path}?token=hidden-word", server.routes.pop(path))
    done = posters("shards", "index", f"{url}/{PATTERN}?token=hidden-word", "--out", out, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert server.headers["/set/train-0.tar?token=hidden-word"]["authorization"].startswith("basic ")
    assert Manifest.read(out).tars == server.url("/set")
    assert "its user, password and query are not stored" in done.stderr
    assert not [file for file in out.rglob("*") if file.is_file() and b"hidden-word" in file.read_bytes()]
    assert "hidden-word" not in done.stdout + done.stderr
