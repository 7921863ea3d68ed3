"""Which tars `posters shards index` reads: of a folder, a URL, a pattern or timm's list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from failing import fails
from foreign_tars import adopt, pack
from misbehaving_server import MisbehavingServer, reply
from shard_tools import write_file
from url_tools import upload

from shards.build.index.tar_places import (
    MAX_TARS,
    TarFile,
    Tars,
    _expanded,
    find_tars,
    is_pattern,
    parse_place,
    root_of,
)
from shards.storage.paths import storage_path

pytest_plugins = ("remote_fixtures",)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> str:
    """URL of a folder that does not exist yet."""
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/set"


def files(folder: Path, *names: str) -> Path:
    for name in names:
        write_file(folder / name, b"x")
    return folder


def names(tars: Tars) -> list[str]:
    return [tar.name for tar in tars.files]


def rejected(tars: Tars) -> dict[str, str]:
    return {rejection.id: rejection.reason for rejection in tars.rejected}


MANY = ("a.tar", "b.tar.gz", "c.TAR", "train/x.tar", "Validation/y.tar", "other/z.tar", "a.tar.partial", "x/y/z.tar")
LEFT_OUT = {
    "b.tar.gz": "not a .tar", "c.TAR": "not a .tar", "other/z.tar": "in another folder",
    "x/y/z.tar": "in another folder",
}  # fmt: skip


def test_a_folder_and_a_url_have_the_same_tars(tmp_path: Path, memory: str, bucket: str) -> None:
    files(tmp_path, *MANY)
    found = [find_tars(tmp_path)]
    for url in (memory, f"{bucket}/set"):
        upload(tmp_path, url)
        found.append(find_tars(url))
        assert {str(tar.place) for tar in found[-1].files} == {f"{url}/{tar.name}" for tar in found[-1].files}
    for tars in found:
        assert names(tars) == ["a.tar", "Validation/y.tar", "train/x.tar"]
        assert rejected(tars) == LEFT_OUT
        assert all(tar.size == 1 and tar.version and tar.split is None for tar in tars.files)


@pytest.mark.parametrize(
    ("place", "root", "tars"),
    [
        ("/d/set/train-{000..002}.tar", "/d/set", ["train-000.tar", "train-001.tar", "train-002.tar"]),
        ("x-{a,b}.tar", ".", ["x-a.tar", "x-b.tar"]),
        ("d/a.tar", "d", ["a.tar"]),
        (("d/train/a.tar", "d/val/b-{0..1}.tar"), "d", ["train/a.tar", "val/b-0.tar", "val/b-1.tar"]),
        ("memory://b/set/{train,val}/{0..0}.tar", "memory://b/set", ["train/0.tar", "val/0.tar"]),
        ("https://me:word@host:8/set/{9..10}.tar?key=1", "https://host:8/set", ["9.tar", "10.tar"]),
    ],
)  # fmt: skip
def test_patterns(place: Any, root: str, tars: list[str]) -> None:
    found: Any
    found, expanded = _expanded(place)
    assert str(found) == root and expanded == tars and is_pattern(place) and str(root_of(place)) == root
    if "?" in str(place):
        assert found.storage_options["query"] == "key=1" and "Authorization" in found.storage_options["headers"]
        assert (found / "9.tar").storage_options == found.storage_options


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("d/x-{0..1.tar", ["d/x-{0..1.tar is not a pattern of tars", "Unbalanced"]),
        ("d/x-{0..1}.zip", ["d/x-{0..1}.zip must name .tar files", "d/x-0.zip"]),
        (("d/a.tar", "d"), ["d/a.tar and 1 more must name .tar files", "one of the names is d;"]),
        ("x-{0..9999999}.tar", [f"over {MAX_TARS} tars"]),
        ("x-{0,0}.tar", ["names x-0.tar 2 times"]),
        ("d/{a/b,c}/d/x.tar", ["not in one folder"]),
        ("s3://{a,b}/x.tar", ["not in one folder"]),
        (("https://h/a.tar?x", "https://h/b.tar?y"), ["not in one folder"]),
        (("https://h/a.tar", "a.tar"), ["not in one folder"]),
        ("https://me:word@h/x-{0.tar?token=word", ["https://h/x-{0.tar is not a pattern"]),
    ],
)
def test_patterns_that_cannot_be(place: Any, words: list[str]) -> None:
    with fails("option-value", *words) as caught:
        find_tars(place)
    assert "word" not in str(caught.value)


def test_missing_tars_of_a_pattern_are_named(
    tmp_path: Path, memory: str, server: MisbehavingServer, quick: None
) -> None:
    files(tmp_path, "x-0.tar", "x-2.tar")
    upload(tmp_path, memory)
    for name in ("x-0.tar", "x-2.tar"):
        server.add(f"/set/{name}", reply(b"x"))
    server.add("/set/x-1.tar", reply(b"no such file", 404))
    server.add("/set/x-3.tar", reply(b"gone", 410))
    for place in (str(tmp_path), memory, server.url("/set")):
        with fails("path-missing", f"2 of 4 named tars are missing: {place}/x-1.tar, {place}/x-3.tar;"):
            find_tars(f"{place}/x-{{0..3}}.tar")
    with fails("path-missing", f"the tar is missing: {tmp_path}/y.tar;"):
        find_tars(str(tmp_path / "y.tar"))
    with fails("path-missing", f"the tar is missing: {tmp_path}/x-*.tar; use braces instead of * and ?"):
        find_tars(str(tmp_path / "x-*.tar"))


def test_words_of_a_command_line() -> None:
    assert parse_place(["x"]) == "x" and parse_place(["x", "y"]) == ("x", "y")
    with fails("option-value", "empty"):
        parse_place(["x", ""])


def test_a_folder_whose_name_has_braces_is_a_folder(tmp_path: Path) -> None:
    assert names(find_tars(files(tmp_path / "{a,b}.tar", "x.tar"))) == ["x.tar"]


def test_a_file_whose_name_has_braces_is_a_file(tmp_path: Path) -> None:
    files(tmp_path, "{a,b}.tar", "c.tar")
    assert names(find_tars((str(tmp_path / "{a,b}.tar"), str(tmp_path / "{c..c}.tar")))) == ["{a,b}.tar", "c.tar"]


def test_places_without_tars(tmp_path: Path, memory: str) -> None:
    with fails("path-missing", "no such folder", tmp_path / "absent"):
        find_tars(tmp_path / "absent")
    for place in (files(tmp_path / "set", "a.tar.gz", "y/z.tar"), storage_path(memory)):
        if place != tmp_path / "set":
            upload(tmp_path / "set", memory)
        with fails("set-missing", f"no .tar file in {place}: 1 not a .tar, 1 in another folder"):
            find_tars(place)
    with fails("set-missing", "no .tar file in memory://bucket/none"):
        find_tars("memory://bucket/none")


def info(**splits: Any) -> bytes:
    """The list that timm writes."""
    return json.dumps(
        {"name": "x", "splits": {split: {"name": split, "filenames": tars, "num_samples": 1, "shard_lengths": [1]}
                                 for split, tars in splits.items()}}
    ).encode()  # fmt: skip


def test_timms_list_gives_the_tars_and_the_splits(
    tmp_path: Path, memory: str, server: MisbehavingServer, quick: None
) -> None:
    listed = {"im-train-0.tar": "train", "sub/im-0.tar": "val", "im-2.tar": "odd"}
    data = info(train=["im-train-0.tar"], validation=["sub/im-0.tar"], odd=["im-2.tar"])
    write_file(files(tmp_path, "im-train-0.tar", "im-2.tar", "new.tar", "sub/im-0.tar") / "_info.json", data)
    upload(tmp_path, memory)
    server.add("/set/_info.json", reply(data))
    for name in listed:
        server.add(f"/set/{name}", reply(b"x", ETag='"1"'))
    for place in (str(tmp_path), memory, server.url("/set")):
        tars = find_tars(place)
        assert {tar.name: tar.split for tar in tars.files} == listed
        assert rejected(tars) == ({} if place.startswith("http") else {"new.tar": "not in _info.json"})
    assert [tar.version for tar in tars.files] == ['ETag "1"'] * 3
    (tmp_path / "im-2.tar").unlink()
    with fails("path-missing", "1 of 3 named tars are missing", "im-2.tar"):
        find_tars(tmp_path)


def test_the_list_of_an_earlier_run_is_not_followed(
    tmp_path: Path, memory: str, server: MisbehavingServer, quick: None
) -> None:
    """Tars and options can have changed since. A web server has no other list."""
    pack(tmp_path / "a.tar", "1")
    pack(tmp_path / "b.tar", "2")
    adopt(tmp_path, split="val")
    server.add("/set/_info.json", reply((tmp_path / "_info.json").read_bytes()))
    for name in "ab":
        server.add(f"/set/{name}.tar", reply(b"x", ETag='"1"'))
    assert {tar.name: tar.split for tar in find_tars(server.url("/set")).files} == {"a.tar": "val", "b.tar": "val"}
    (tmp_path / "a.tar").unlink()
    pack(tmp_path / "c.tar", "3")
    upload(tmp_path, memory)
    for place in (tmp_path, memory):
        tars = find_tars(place)
        assert {tar.name: tar.split for tar in tars.files} == {"b.tar": None, "c.tar": None} and not tars.rejected
    assert [(shard.name, shard.split) for shard in adopt(tmp_path).shards] == [("b.tar", "train"), ("c.tar", "train")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "is not a valid list of tars"),
        (b'{"splits": {"train": 5}}', "splits"),
        (b'{"splits": {}}', "names no tar"),
        (info(train=["../x.tar"]), "'../x.tar' is not a plain name"),
        (info(train=["/etc/x.tar"]), "is not a plain name"),
        (info(train=["x.zip"]), "is not a plain name"),
        (info(train=["x.tar", "x.tar"]), "'x.tar' is named twice"),
        (info(train=["x.tar"], val=["x.tar"]), "'x.tar' is named twice"),
        (info(**{"a/b": ["x.tar"]}), "an unsafe name, 'a/b'"),
        (info(**{"\x1b[2J": ["x.tar"]}), "an unsafe name"),
    ],
)
def test_wrong_lists(tmp_path: Path, data: bytes, words: str) -> None:
    write_file(files(tmp_path, "x.tar") / "_info.json", data)
    with fails("path-unreadable", "_info.json", words, "name the tars with braces") as caught:
        find_tars(tmp_path)
    assert "\x1b" not in str(caught.value)
    assert names(find_tars(str(tmp_path / "{x,x}.tar").replace("{x,x}", "{x..x}"))) == ["x.tar"]


def test_a_web_server_has_no_list(server: MisbehavingServer, quick: None) -> None:
    server.add("/set/_info.json", reply(b"", 404))
    server.add("/set/", reply(b'<a href="x.tar">x.tar</a>'))
    with fails("set-missing", "cannot be listed, and has no _info.json", "/set/train-{000000..000147}.tar"):
        find_tars(server.url("/set"))


@pytest.mark.parametrize(("status", "words"), [(403, "403"), (405, "405"), (503, "503")])
def test_a_web_server_that_refuses(
    server: MisbehavingServer, quick: None, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    """A refusal is not a missing tar."""
    monkeypatch.setattr("shards.build.index.tar_places.FIRST_RETRY_SECONDS", 0.2)
    server.add("/set/x.tar", reply(b"", status))
    with fails("network", "/set/x.tar cannot be read", words):
        find_tars(server.url("/set/x.tar"))


def test_a_web_server_that_does_not_tell_the_size(server: MisbehavingServer, quick: None) -> None:
    server.add("/set/x.tar", reply(b"", Content_Length=0, Content_Encoding="gzip"))
    with fails("network", "does not tell its size"):
        find_tars(server.url("/set/x.tar"))


def test_versions_follow_changes(tmp_path: Path, memory: str) -> None:
    def version() -> TarFile:
        return find_tars(place).files[0]

    for place in (str(tmp_path), memory):
        storage_path(place).mkdir(parents=True, exist_ok=True)
        tar = storage_path(place) / "x.tar"
        tar.write_bytes(b"1")
        before = version()
        assert version() == before
        tar.write_bytes(b"2")
        assert version() != before
