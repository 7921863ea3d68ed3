"""manifest.json: counts that hold, and edits that are noticed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from misbehaving_server import MisbehavingServer, reply
from shard_tools import contents, only_error, tree

from shards.dataset.index import index_path, read_index
from shards.dataset.manifest import Manifest, Shard, is_plain
from shards.storage.files import fingerprint, sha256_file
from shards.storage.paths import storage_path

pytest_plugins = ("shard_fixtures", "remote_fixtures")


def shard(name: str = "train-00000.tar", split: str = "train", sha256: str = "0" * 64) -> Shard:
    return Shard(name, split, 2, 10240, sha256, 90, 60, [1, 2])


def honest(raw: Any) -> Any:
    """A manifest's JSON with the fingerprint that fits the rest, as a stranger would make it."""
    genres, shards = raw["labels"]["genres"], raw["shards"]
    raw["fingerprint"] = fingerprint([genres, [[s["name"], s["split"], s["sha256"]] for s in shards]])[:16]
    return raw


def test_round_trip(tmp_path: Path) -> None:
    manifest = Manifest(["Drama", "Comédie"], [shard()], {"quality": 90}, {"rows": 3}, {"python": "3"})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert manifest.split_summary()["train"]["genre_counts"] == {"Drama": 1, "Comédie": 2}


def test_fingerprint_is_of_content() -> None:
    one = Manifest(["A", "B"], [shard()])
    assert one.fingerprint == Manifest(["A", "B"], [shard()], {"x": 1}, {"y": 1}, {"z": "1"}).fingerprint
    others = [
        Manifest(["B", "A"], [shard()]),
        Manifest(["A", "B"], [shard(sha256="1" * 64)]),
        Manifest(["A", "B"], [shard(split="val")]),
        Manifest(["A", "B"], [shard(), shard("train-00001.tar")]),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_counts_checksums_and_bytes_of_a_built_set(shard_set: Path) -> None:
    manifest = Manifest.read(shard_set)
    raw = json.loads((shard_set / "manifest.json").read_text())
    for entry in manifest.shards:
        tar = shard_set / entry.name
        records = [json.loads(data) for name, data in contents(tar).items() if name.endswith(".json")]
        assert entry.bytes == tar.stat().st_size and entry.sha256 == sha256_file(tar)
        assert entry.samples == len(records)
        assert entry.genre_counts == [sum(column) for column in zip(*(r["multi_hot"] for r in records), strict=True)]
    for name, split in raw["splits"].items():
        mine = [entry for entry in manifest.shards if entry.split == name]
        assert split["samples"] == sum(entry.samples for entry in mine) and split["shards"] == len(mine)
        assert list(split["genre_counts"].values()) == [
            sum(c) for c in zip(*(e.genre_counts for e in mine), strict=True)
        ]
    assert manifest.split_names == ["train", "val", "test"]


def test_unknown_split(shard_set: Path) -> None:
    with fails("set-split", "'valid'", "train, val, test"):
        Manifest.read(shard_set).of_split("valid")


def test_absent_manifests_say_what_to_do(tmp_path: Path) -> None:
    with fails("set-missing", tmp_path / "absent", "posters shards build --out"):
        Manifest.read(tmp_path / "absent")
    with fails("set-missing", tmp_path, "`posters shards build`", "`posters shards index"):
        Manifest.read(tmp_path)


def edit(*path: Any, to: Any) -> Callable[[Any], Any]:
    def change(raw: Any) -> Any:
        place = raw
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to
        return raw

    return change


DUPLICATES: list[Any] = [
    [], {"train": 1}, {"train": [[0]]}, {"train": [[]]}, {"train": [[0, 0]]}, {"train": [[0, 1], [1, 2]]},
    {"train": [[0, 10**7]]}, {"train": [[-1, 0]]}, {"none": [[0, 1]]}, {"train": [[0, "1"]]},
]  # fmt: skip
EDITS = {
    "another format": edit("format", to=99),
    "format missing": lambda raw: {k: v for k, v in raw.items() if k != "format"},
    "a list": lambda raw: [raw],
    "genre renamed": edit("labels", "genres", 0, to="Akshun"),
    "genres reordered": lambda raw: edit("labels", "genres", to=raw["labels"]["genres"][::-1])(raw),
    "shard dropped": lambda raw: edit("shards", to=raw["shards"][1:])(raw),
    "sha256": edit("shards", 0, "sha256", to="0" * 64),
    "split moved": edit("shards", 0, "split", to="test"),
    "count as text": edit("shards", 0, "samples", to="20"),
    "count missing": edit("shards", 0, "genre_counts", to=[1]),
    "shards null": edit("shards", to=None),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_edited_manifests_are_user_errors(shard_set: Path, tmp_path: Path, change: Callable[[Any], Any]) -> None:
    raw = change(json.loads((shard_set / "manifest.json").read_text()))
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with fails("set-format" if change is EDITS["another format"] else "set-damaged", "manifest.json"):
        Manifest.read(tmp_path)


#: What a stranger's manifest may say: every other field fits it.
HOSTILE: dict[str, Callable[[Any], Any]] = {
    **{
        f"shard {name!r}": edit("shards", 0, "name", to=name)
        for name in (
            "../victim.tar", "/tmp/victim.tar", "file:///tmp/victim.tar", "a/../b.tar", "./b.tar", "sub/c/b.tar",
            "..\\victim.tar", "C:victim.tar", "http://127.0.0.1/b.tar", "", ".", "..", ".tar/", "b.tar\0", "b\n.tar",
            "x.bashrc", "b", "b.tar.gz", "b" * 250 + ".tar", 7, None, ["b.tar"],
        )
    },
    **{
        f"split {name!r}": edit("shards", 0, "split", to=name)
        for name in ("../train", "/train", "a/b", "a\\b", "", "..", "x\x1b[2J", 1, None)
    },
    **{
        f"sha256 {digest!r}": edit("shards", 0, "sha256", to=digest)
        for digest in ("/some/dir/", "../" * 21 + "x", "", "0" * 63, "0" * 64 + "\n", "G" * 64, "a/" * 32, 5, None)
    },
    **{
        f"{name} {value!r}": edit("shards", 0, name, to=value)
        for name in ("samples", "bytes", "max_height", "max_width", "index_bytes")
        for value in (-1, 1 << 54, 10**400, 1.5, "3", True, None, [1])
    },
    "not one class per sample": edit("source", "classes", to=True),
    "classes as text": edit("source", "classes", to="yes"),
    "an index of gigabytes": edit("shards", 0, "index_bytes", to=1 << 33),
    **{f"index {d!r}": edit("shards", 0, "index_sha256", to=d) for d in ("../x", "", "0" * 65, 3)},
    **{
        f"counts {value!r}": edit("shards", 0, "genre_counts", to=value)
        for value in ([1], [10**6] * 5, [-1] * 5, ["1"] * 5, [None] * 5, 5, None, [[1]] * 5)
    },
    **{
        f"genres {value!r}": edit("labels", "genres", to=value)
        for value in (["Drama"] * 5, [["Drama"]] * 5, [1, 2, 3, 4, 5], [*"ABCD", ""], [*"ABCD", " "])
    },
    "genres, too long": edit("labels", "genres", to=["A", "B", "C", "D", "E" * 5000]),
    "genres, too many": edit("labels", "genres", to=[str(n) for n in range(40_000)]),
    "labels null": edit("labels", to=None),
    "no shards": lambda raw: {**raw, "shards": [], "tables": {}},
    "no samples": lambda raw: {
        **raw, "shards": [{**s, "samples": 0, "genre_counts": [0] * 5} for s in raw["shards"]],
    },
    "a shard is text": edit("shards", 0, to="train-00000.tar"),
    "a name twice": lambda raw: edit("shards", 1, "name", to=raw["shards"][0]["name"])(raw),
    "a name in capitals": lambda raw: edit("shards", 1, "name", to=raw["shards"][0]["name"].replace("t", "T", 1))(raw),
    "table sha256": edit("tables", "train", "sha256", to="../" * 21 + "x"),
    "table bytes": edit("tables", "train", "bytes", to=-3),
    "table null": edit("tables", "train", to=None),
    **{
        f"table {name!r}": edit("tables", "train", "name", to=name)
        for name in ("../x.samples.npy", "/x.samples.npy", "x.npy", ".samples.npy/", "", None)
    },
    "tables a list": edit("tables", to=[]),
    "packing null": edit("packing", to=None),
    "source null": edit("source", to=None),
    "source rejected": edit("source", "rejected", to=[1]),
    "source duplicates": edit("source", "duplicate_groups", to="many"),
    "source indexed": edit("source", "indexed", to="no"),
    **{f"duplicates {value!r}"[:60]: edit("duplicates", to=value) for value in DUPLICATES},
    "versions": edit("versions", to={"python": 3}),
    "deep": edit("packing", to={"x": [[[[]]]]}),
}  # fmt: skip
TOO_DEEP = b'{"format": 1, "packing": ' + b"[" * 100_000


@pytest.mark.parametrize(
    "change", [v for k, v in HOSTILE.items() if k != "deep"], ids=[k for k in HOSTILE if k != "deep"]
)
def test_a_strangers_manifest_is_refused_in_one_line(
    few_shards: Path, tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    raw = change(json.loads((few_shards / "manifest.json").read_text()))
    with contextlib.suppress(TypeError, AttributeError):  # too wrong to have a fingerprint
        raw = honest(raw)
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with fails("set-damaged", tmp_path / "manifest.json") as caught:
        Manifest.read(tmp_path)
    assert "was edited" not in str(caught.value)


def test_the_same_manifest_unchanged_is_read(few_shards: Path, tmp_path: Path) -> None:
    """Else the test above could not fail; what a later version may add is passed over."""
    raw = json.loads((few_shards / "manifest.json").read_text())
    raw["later"] = raw["labels"]["later"] = raw["shards"][0]["later"] = raw["tables"]["train"]["later"] = [None]
    raw["splits"] = 7
    raw = HOSTILE["deep"](raw)
    (tmp_path / "manifest.json").write_text(json.dumps(honest(raw)))
    assert Manifest.read(tmp_path).shards == Manifest.read(few_shards).shards


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"format": "1"}', b'{"format": NaN}', TOO_DEEP]
)
def test_bytes_that_are_no_manifest(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with fails("set-damaged", "manifest.json"):
        Manifest.read(tmp_path)


def test_names_are_checked_over_http_too(few_shards: Path, server: MisbehavingServer) -> None:
    raw = json.loads((few_shards / "manifest.json").read_text())
    server.add("/set/manifest.json", reply(json.dumps(raw).encode()))
    assert Manifest.read(storage_path(server.url("/set"))) == Manifest.read(few_shards)
    for name in ("../victim.tar", "file:///tmp/victim.tar", "http://127.0.0.1/x.tar"):
        hostile = honest(edit("shards", 0, "name", to=name)(json.loads(json.dumps(raw))))
        server.add("/set/manifest.json", reply(json.dumps(hostile).encode()))
        with fails("set-damaged", "manifest.json"):
            Manifest.read(storage_path(server.url("/set")))


@pytest.mark.parametrize("verb", ["info", "verify", "index"])
def test_every_command_refuses_a_set_whose_shards_lie_elsewhere(
    few_shards: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]], verb: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    raw = json.loads((few_shards / "manifest.json").read_text())
    raw["shards"][0]["name"] = "../victim.tar"
    (folder / "manifest.json").write_text(json.dumps(honest(raw)))
    (folder / "train-00000.tar").write_bytes((few_shards / "train-00000.tar").read_bytes())
    (tmp_path / "victim.tar").write_bytes((few_shards / "train-00000.tar").read_bytes())
    before = tree(tmp_path)
    status, out, err = command("shards", verb, folder)
    assert status == 2 and "'../victim.tar' is not a plain name of a .tar file" in only_error(err)
    assert not out and tree(tmp_path) == before


def test_plain_names() -> None:
    assert all(
        map(is_plain, ("train-00000.tar", "00000.tar", ".hidden.tar", "a b (1).tar", "映.tar", "..a", "x" * 242))
    )
    assert not any(
        map(is_plain, ("", ".", "..", "a/b", "a\\b", "a:b", "a\0", "a\n", "a\x7f", "\ud800", "x" * 243, "映" * 82))
    )


def test_a_manifest_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").symlink_to("/dev/zero")  # has no end
    with fails("set-missing", "manifest.json"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "train-00000.index.parquet"])
def test_files_of_terabytes_are_not_read(few_shards: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(few_shards, tmp_path / "set")
    os.truncate(folder / name, 1 << 43)  # all holes: a packed set of some KB may hold it
    with fails("path-unreadable", name, 8796093022208):
        read_index(folder / Manifest.read(folder).shards[0].name)


def test_indexes_have_digests_and_the_fingerprint_does_not_know(few_shards: Path, tmp_path: Path) -> None:
    """Sets of earlier versions have none; runs on a set go on when it gets them."""
    manifest = Manifest.read(few_shards)
    for entry in manifest.shards:
        path = index_path(few_shards / entry.name)
        assert (entry.index_bytes, entry.index_sha256) == (path.stat().st_size, sha256_file(path))
    raw = json.loads((few_shards / "manifest.json").read_text())
    for entry in raw["shards"]:
        del entry["index_bytes"], entry["index_sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    earlier = Manifest.read(tmp_path)
    assert earlier.fingerprint == manifest.fingerprint and earlier != manifest
    assert {entry.index_sha256 for entry in earlier.shards} == {None}


def test_a_set_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    for entry, genres in ((shard("a:b.tar"), ["A", "B"]), (shard(split="a/b"), ["A", "B"]), (shard(), ["A", "A"])):
        with fails("path-name", tmp_path):
            Manifest(genres, [entry]).write_tables(tmp_path)
    assert not list(tmp_path.iterdir())
