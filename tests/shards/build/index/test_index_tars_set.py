"""`posters shards index` on a whole folder: what it says, writes and keeps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from foreign_tars import adopt, found, pack, rejected
from shard_tools import REAL, draw, encoded, mtimes, only_error, tree, write_file, write_tar

from shards.build.verify import verify_shards
from shards.dataset.index import index_path
from shards.dataset.manifest import Manifest
from shards.dataset.store import LocalShards

pytest_plugins = ("shard_fixtures",)

Command = Callable[..., tuple[int, str, str]]
Genres = dict[str, list[str]]


def test_the_summary_says_what_was_taken(tmp_path: Path, command: Command) -> None:
    pack(tmp_path / "a.tar", "1 2 3 c.1 c.2", **{"1": {"genres": ["A"]}, "2": {"genres": ["B"]}})
    write_tar(tmp_path / "b.tar", {"x.heic": b"", "y.heic": b"", "z.txt": b""})
    write_file(tmp_path / "c.tar.gz", b"")
    write_file(tmp_path / "d.TAR", b"")
    write_file(tmp_path / "notes.txt", b"")
    status, out, _ = command("shards", "index", tmp_path, "--workers", 1)
    assert status == 0
    assert "taken           2 of 4 samples\n" in out
    assert "other members   2 heic, 1 txt\n" in out
    assert "rejected rows   1 no genres, 1 no samples, 2 not a .tar, 1 several images\n" in out
    assert f"rejected        {tmp_path / 'rejected.csv'}\n" in out
    assert rejected(tmp_path) == {
        "c.tar.gz": "not a .tar",
        "d.TAR": "not a .tar",
        "c": "several images",
        "3": "no genres",
        "b.tar": "no samples",
    }
    assert [shard.name for shard in Manifest.read(tmp_path).shards] == ["a.tar"]
    assert verify_shards(tmp_path, 1)[1] == []


def test_the_fields_are_named_if_none_has_genres(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path / "a.tar", "x y", x={"url": "u", "tags": ["War"]}, y={"url": "u", "tags": ["Drama"]})
    assert adopt(tmp_path).genres == []
    assert "no JSON has genres in 'genres'; the fields are 'url', 'tags'" in caplog.text
    caplog.clear()
    assert adopt(tmp_path, genre_field="tags").genres == ["Drama", "War"] and "no JSON" not in caplog.text
    for wrong, words in (("tag", ()), ("cls", ("no sample has a .cls member",))):
        with fails("labels-invalid", f"{wrong}'; the fields are 'url', 'tags'", "--genre-field", *words):
            adopt(tmp_path, genre_field=wrong)
    assert Manifest.read(tmp_path).genres == ["Drama", "War"]
    with fails("option-conflict", "--metadata", "--genre-field"):
        adopt(tmp_path, genre_field="tags", metadata=tmp_path / "genres.csv")


def test_several_frames_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film = encoded(draw("1"), "GIF", save_all=True, append_images=[draw("2")])
    write_tar(tmp_path / "a.tar", {"a.gif": film, "b.gif": encoded(draw("1"), "GIF")})
    adopt(tmp_path)
    assert "1 posters have several frames or pages; the first of each is used: a" in caplog.text


@pytest.mark.parametrize(
    ("genres", "words"),
    [
        (["7", "8", "9"], "'genres' contains numbers instead of genres ('7', '8', '9')"),
        (["1990", "1991", "1992"], "'genres' contains years instead of genres"),
        (["movie"] * 3, "'genres' gives all 3 posters the same genres: 'movie'"),
        (["War;Drama", "Drama", "War"], "'genres' seems to contain several genres in one label: 'War;Drama'"),
        (["War", "Drama", "War"], ""),
    ],
)
def test_classes_that_are_hardly_meant_are_warned_of(
    tmp_path: Path, genres: list[str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    pack(tmp_path / "a.tar", "a b c", **{key: {"genres": [g]} for key, g in zip("abc", genres, strict=True)})
    assert adopt(tmp_path).genres == sorted(set(genres))
    assert words in caplog.text and ("--genre-field" in caplog.text) == bool(words)


def test_other_kinds_of_members_are_many(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x.jpg": encoded(draw(1))} | {f"{n}.e{n}": b"" for n in range(30)})
    text = adopt(tmp_path).source["other_members"]
    assert text.startswith("1 e0, 1 e1, ") and text.endswith("1 e9 and 20 more")


def test_nothing_taken_is_a_failure(tmp_path: Path, command: Command) -> None:
    for members, reason in (
        ({}, "1 no samples; for example id 'a.tar': no samples (it is empty)"),
        ({"x.heic": b"", "README": b""}, "no samples (1 heic, 1 without an extension)"),
        ({"c.0.jpg": b"", "c.1.jpg": b""}, "1 several images; for example id 'c'"),
    ):
        write_tar(tmp_path / "a.tar", members)
        status, out, err = command("shards", "index", tmp_path, "--workers", 1)
        assert (status, out) == (2, "")
        assert f"{tmp_path} has no usable sample: " in only_error(err) and reason in only_error(err)
        assert len(rejected(tmp_path)) == 1 and not (tmp_path / "manifest.json").exists()
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.zst")
    with fails("set-missing", tmp_path, "1 not a .tar"):
        adopt(tmp_path)


def test_indexing_again_follows_the_tars(tmp_path: Path) -> None:
    """Unchanged indexes keep their time of change, so that readers need not check them again."""
    for name in "abc":
        pack(tmp_path / f"{name}.tar", f"{name}1 {name}2")
    first = adopt(tmp_path)
    times = mtimes(tmp_path, "*.parquet")
    assert adopt(tmp_path).fingerprint == first.fingerprint
    assert mtimes(tmp_path, "*.parquet") == times
    write_tar(tmp_path / "b.tar", {"b1.jpg": b"broken"})
    pack(tmp_path / "c.tar", "c1 c3")
    adopt(tmp_path)
    assert list(found(tmp_path)) == ["a1", "a2", "c1", "c3"]
    assert mtimes(tmp_path, "a.*.parquet") == {"a.index.parquet": times["a.index.parquet"]}
    assert not index_path(tmp_path / "b.tar").exists()
    pack(tmp_path / "b.tar", "b1 b2")
    pack(tmp_path / "c.tar", "c1 c2")
    again = adopt(tmp_path)
    assert again.fingerprint == first.fingerprint and rejected(tmp_path) == {}
    assert verify_shards(tmp_path, 1)[1] == []


def test_a_run_that_ends_amid_its_writes_leaves_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        pack(tmp_path / f"{name}.tar", f"{name}1")
    adopt(tmp_path)
    whole = tree(tmp_path)
    pack(tmp_path / "b.tar", "b2")
    write_file(tmp_path / "b.index.parquet.host-7-0a0b0c0d.partial", b"of a killed run")
    write_file(tmp_path / "c.tar.partial", b"of another tool")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shards.build.index.tars.write_rejected", interrupt)
        adopt(tmp_path)
    with fails("set-missing", "manifest.json"):
        Manifest.read(tmp_path)
    pack(tmp_path / "b.tar", "b1")
    adopt(tmp_path)
    assert tree(tmp_path) == {**whole, "c.tar.partial": tree(tmp_path)["c.tar.partial"]}


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_tar_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = pack(tmp_path / "a.tar", "1")

    def grow(path: Path) -> str:
        tar.write_bytes(tar.read_bytes() + b"\0" * 512)
        return "0" * 64

    monkeypatch.setattr("shards.build.index.read.sha256_file", grow)
    with fails("file-changed", "a.tar changed while it was read"):
        adopt(tmp_path)


@pytest.mark.parametrize("name", ["a\nb.tar", "a\x1b[2J.tar", "caf\udce9.tar", "a\\b.tar", "\u202ea.tar"])
def test_names_of_tars_that_not_every_system_allows(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "ok.tar", "1").rename(tmp_path / name)
    with fails("path-name", "unsafe characters") as caught:
        adopt(tmp_path)
    str(caught.value).encode()
    assert "\x1b" not in str(caught.value)


def test_names_of_splits(tmp_path: Path) -> None:
    for number, name in enumerate(("Train-0", "VAL_0", "Validation.0", "x", "dev-0")):
        pack(tmp_path / f"{name}.tar", str(number))
    shards = adopt(tmp_path, split="my-split.2").shards
    assert [(s.name, s.split) for s in shards] == [
        ("Train-0.tar", "train"),
        ("VAL_0.tar", "val"),
        ("Validation.0.tar", "val"),
        ("dev-0.tar", "val"),
        ("x.tar", "my-split.2"),
    ]
    for split in ("../up", "", "a/b", ".hidden", "a b", "é"):
        with fails("option-value", "--split", repr(split)):
            adopt(tmp_path, split=split)


# --- the tars of ../shared/cases


CASES: dict[str, tuple[Any, Any, Any]] = {
    "dotted": ({}, {"c": "several images"}, ("images-none", "several images")),
    "exif_alpha_16bit": ({k: ["Drama"] for k in ("exif_6", "grey_16_bit", "palette_transparent", "alpha")}, {}, ""),
    "latin1_name": ({"caf%E9": ["Drama"]}, {}, ""),
    "links": ({"0": ["Drama"], "1": ["Drama"], "2": ["Drama"]}, {"6": "link", "7": "link"}, ""),
    "name_twice": ({}, {}, ("samples-repeated", "name_twice.tar", "'a.jpg'")),
    "one_broken_image": ({"0": ["Drama"], "2": ["War"]}, {"1": "truncated"}, ""),
}  # fmt: skip


def case(name: str, folder: Path) -> Path:
    path = REAL / "cases" / "tars" / f"{name}.tar"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return write_file(folder / path.name, path.read_bytes())


@pytest.mark.parametrize("name", CASES)
def test_cases(tmp_path: Path, name: str) -> None:
    taken, left_out, error = CASES[name]
    case(name, tmp_path)
    if error:
        with fails(*error):
            adopt(tmp_path)
    else:
        adopt(tmp_path)
        assert found(tmp_path) == taken
        assert verify_shards(tmp_path, 1)[1] == []
    assert left_out == (rejected(tmp_path) if name != "name_twice" else {})


def test_the_case_with_folders_in_names(tmp_path: Path) -> None:
    case("prefixed", tmp_path)
    adopt(tmp_path, metadata=REAL / "cases" / "csv" / "plain.csv")
    assert found(tmp_path) == {
        "posters/p00000": ["Drama"],
        "posters/p00001": ["Comedy", "Drama"],
        "posters/p00002": ["Drama", "Romance"],
        "posters/p00003": ["Drama", "Horror"],
    }


def test_subfolders_of_splits(tmp_path: Path) -> None:
    for number, name in enumerate(("train/0", "train/1", "Validation/0", "test/0", "others/0")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pack(tmp_path / f"{name}.tar", str(number))
    write_file(tmp_path / "test" / "more.tar.gz", b"")
    manifest = adopt(tmp_path)
    wanted = [("train/0.tar", "train"), ("train/1.tar", "train"), ("Validation/0.tar", "val"), ("test/0.tar", "test")]
    assert [(s.name, s.split) for s in manifest.shards] == wanted
    assert index_path(tmp_path / "train" / "0.tar").exists() and not (tmp_path / "others" / "0.index.parquet").exists()
    assert rejected(tmp_path) == {"more.tar.gz": "not a .tar", "others/0.tar": "in another folder"}
    before = tree(tmp_path)
    assert verify_shards(tmp_path, 1)[1] == [] and adopt(tmp_path) == manifest and tree(tmp_path) == before
    with open(tmp_path / "train" / "1.tar", "r+b") as stream:
        stream.seek(600)
        stream.write(b"x")
    assert any("1.tar" in problem for problem in verify_shards(tmp_path, 1)[1])


def test_tars_with_one_name_in_two_folders_of_a_split(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    pack(tmp_path / "0.tar", "a b")
    pack(tmp_path / "train" / "0.tar", "c d")
    adopt(tmp_path)
    assert verify_shards(tmp_path, 1)[1] == []
    store = LocalShards(tmp_path)
    store.check(Manifest.read(tmp_path).shards)
    for shard in Manifest.read(tmp_path).shards:
        os.close(store.open_tar(shard))
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:-1024])
    with fails("set-damaged", "is truncated", "index the tars again if another tool made them"):
        LocalShards(tmp_path).check(Manifest.read(tmp_path).shards)


def test_tars_are_divided_by_shares(tmp_path: Path) -> None:
    for number in range(10):
        pack(tmp_path / f"{number:05d}.tar", " ".join(f"{number}-{n}" for n in range(3)))
    pack(tmp_path / "test-0.tar", "t")
    splits = {s.name: s.split for s in adopt(tmp_path, fractions=(0.8, 0.1, 0.1)).shards}
    assert sorted(splits.values()) == ["test"] * 2 + ["train"] * 8 + ["val"] and splits["test-0.tar"] == "test"
    assert splits == {s.name: s.split for s in adopt(tmp_path, fractions=(0.8, 0.1, 0.1)).shards}


def test_shares_that_cannot_be(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", "a")
    with fails("option-value", "--splits cannot divide 1 tars into 3 splits", "more tars"):
        adopt(tmp_path, fractions=(0.8, 0.1, 0.1))
    with fails("option-value", "sum to 1"):
        adopt(tmp_path, fractions=(0.8, 0.1, 0.2))
    with fails("option-conflict", "--split and --splits"):
        adopt(tmp_path, fractions=(0.8, 0.1, 0.1), split="val")
