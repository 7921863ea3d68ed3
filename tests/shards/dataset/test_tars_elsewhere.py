"""The field ``tars`` of a manifest: what it can be, and when it is followed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving_server import MisbehavingServer, reply

from shards.dataset.cache_options import CacheOptions
from shards.dataset.manifest import Manifest
from shards.dataset.store import LocalShards, RemoteTars, open_store
from shards.dataset.tars_elsewhere import PROTOCOLS, place_in, place_problem, text_of
from shards.errors import UserError
from shards.storage.paths import is_url, storage_path
from toolkit.data.sources.shard_reader import ShardReader

pytest_plugins = ("shard_fixtures", "remote_fixtures")


def write(folder: Path, **values: Any) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**raw, **values}))


@pytest.fixture
def moved(few_shards: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A set and, in another folder, its tars."""
    folder, tars = shutil.copytree(few_shards, tmp_path / "set"), tmp_path / "tars"
    tars.mkdir()
    for tar in folder.glob("*.tar"):
        shutil.move(tar, tars)
    return folder, tars


@pytest.mark.parametrize(
    "place",
    [
        "/data/set",
        "s3://bucket/set",
        "https://host:8080/set",
        "hf://datasets/a/b",
        "memory://x",
        "abfs://box@account/x",
    ],
)
def test_places_that_can_be(place: str) -> None:
    assert place_problem(place) == "" and place_problem(None) == ""


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", "too long, empty"),
        ("/x" * 3000, "too long, empty"),
        ("/a\nb", "control characters"),
        ("/a\x1b[2J", "control characters"),
        ("/a\udc80", "control characters"),
        ("set", "not an absolute path"),
        ("../set", "not an absolute path"),
        ("s3:/bucket", "not an absolute path"),
        ("file:///etc", "another protocol"),
        ("local:///etc", "another protocol"),
        ("ssh://host/x", "another protocol"),
        ("S3://bucket", "another protocol"),
        ("zip://x::https://host/a.zip", "another protocol"),
        ("s3://x::file:///etc", "not a plain URL"),
        ("http://[::1]/set", "not a plain URL"),
        ("https://me@host/set", "without user, password and query"),
        ("s3://key:secret@bucket/set", "without user, password and query"),
        ("https://host/set?token=secret", "without user, password and query"),
        ("https://host/set#x", "without user, password and query"),
        ("https:///set", "without user, password and query"),
        ("http://[1/set", "without user, password and query"),
    ],
)
def test_places_that_cannot_be(place: str, words: str, moved: tuple[Path, Path]) -> None:
    problem = place_problem(place)
    assert words in problem
    assert "secret" not in problem and "\n" not in problem and "\x1b" not in problem
    write(moved[0], tars=place, format=3)
    with fails("set-damaged", "is not a valid manifest: ", "surrogate" if "\udc80" in place else words):
        open_store(moved[0]).manifest()


@pytest.mark.parametrize("value", [5, [], {}, True])
def test_values_of_another_type(value: Any, moved: tuple[Path, Path]) -> None:
    write(moved[0], tars=value, format=3)
    with fails("set-damaged", "tars"):
        open_store(moved[0]).manifest()


@settings(max_examples=200)
@given(st.one_of(st.text(), st.builds("{}://{}".format, st.sampled_from([*PROTOCOLS, "file", "ssh"]), st.text())))
def test_any_text_is_a_problem_or_a_place_without_secrets(text: str) -> None:
    if place_problem(text):
        assert place_in(json.dumps({"format": 3, "tars": text}).encode()) is None
    else:
        assert place_in(json.dumps({"format": 3, "tars": text}).encode()) == text
        assert os.path.isabs(text) or (is_url(text) and text.partition("://")[0] in PROTOCOLS)


def test_text_of_places_has_no_secrets() -> None:
    assert text_of(storage_path("https://me:word@host/set/?token=word")) == "https://host/set"
    assert text_of(storage_path("s3://bucket")) == "s3://bucket"
    assert text_of(Path("x/../y")) == f"{os.getcwd()}/y"


def test_a_folder_is_followed(moved: tuple[Path, Path]) -> None:
    folder, tars = moved
    with fails("set-missing", f"shard {folder / 'train-00000.tar'} is missing; copy it again"):
        ShardReader.of_split(folder, "train")
    write(folder, tars=str(tars), format=3)
    store = open_store(folder)
    assert isinstance(store, LocalShards) and store.where(store.manifest().shards[0]).startswith(str(tars))
    assert ShardReader.of_split(store, "train").image_bytes(0)
    manifest = Manifest.read(folder)
    manifest.write(folder)
    assert Manifest.read(folder) == manifest and manifest.tars == str(tars)


def test_only_files_with_the_size_of_a_shard_are_read(moved: tuple[Path, Path]) -> None:
    folder, tars = moved
    write(folder, tars=str(tars), format=3)
    with open(tars / "train-00000.tar", "ab") as stream:
        stream.write(b"x")
    with fails("set-damaged", f"shard {tars / 'train-00000.tar'} is changed"):
        ShardReader.of_split(folder, "train")


@pytest.mark.parametrize("format", [1, 2])
def test_earlier_formats_do_not_have_the_field(few_shards: Path, tmp_path: Path, format: int) -> None:
    """Earlier versions ignore it, so this version does, too: both read the same tars."""
    folder = shutil.copytree(few_shards, tmp_path / "set")
    write(folder, tars="/nowhere", format=format)
    store = open_store(folder)
    assert store.manifest().tars is None and ShardReader.of_split(store, "train").image_bytes(0)


def test_a_manifest_at_a_url_is_not_followed(
    moved: tuple[Path, Path], tmp_path: Path, server: MisbehavingServer, quick: None
) -> None:
    folder, tars = moved
    for place in (str(tars), server.url("/tars"), "s3://bucket/private"):
        write(folder, tars=place, format=3)
        for path in folder.iterdir():
            server.add(f"/set/{path.name}", reply(path.read_bytes()))
        store = open_store(server.url("/set"), CacheOptions(tmp_path / "cache", remote_timeout=1))
        with fails("url-refused", "/set/manifest.json", "has its tars at another place, which is not followed"):
            store.manifest()
    assert not any(path.endswith(".tar") for path in server.requests)


def test_a_manifest_that_is_replaced_meanwhile(moved: tuple[Path, Path], tmp_path: Path) -> None:
    folder, tars = moved
    write(folder, tars=str(tars), format=3)
    store = open_store(folder)
    write(folder, tars=str(tmp_path), format=3)
    with fails("file-changed", "was replaced while it was read"):
        store.manifest()


def test_names_cannot_leave_the_place(moved: tuple[Path, Path], tmp_path: Path) -> None:
    folder, tars = moved
    raw = json.loads((folder / "manifest.json").read_text())
    for name in ("../x.tar", "/etc/x.tar", "a/b/c.tar", "x.tar?query", "x"):
        raw["shards"][0]["name"] = name
        write(folder, tars=str(tars), format=3, shards=raw["shards"])
        with pytest.raises(UserError):
            store = open_store(folder)
            store.check(store.manifest().shards)


def test_a_url_is_followed_from_a_folder(
    moved: tuple[Path, Path], few_shards: Path, tmp_path: Path, server: MisbehavingServer, quick: None
) -> None:
    folder, tars = moved
    for path in tars.iterdir():
        server.add(f"/tars/{path.name}", reply(path.read_bytes()))
    write(folder, tars=server.url("/tars/"), format=3)
    store = open_store(folder, CacheOptions(tmp_path / "cache", remote_timeout=1))
    assert isinstance(store, RemoteTars)
    reader, beside = ShardReader.of_split(store, "train"), ShardReader.of_split(few_shards, "train")
    assert [reader.image_bytes(i) for i in range(len(reader))] == [beside.image_bytes(i) for i in range(len(reader))]
    assert reader.sample_ids() == beside.sample_ids()
    server.add("/tars/val-00000.tar", reply(b"something else"))
    with fails("set-damaged", "/tars/val-00000.tar"):
        ShardReader.of_split(store, "val").image_bytes(0)
