"""`posters shards index`: tars that another tool made become a set, and stay as they are."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing import fails
from PIL import Image
from shard_tools import bomb_png, draw, encoded, only_error, posters, rows_of, tree, write_csv, write_file, write_tar

from shards.build.index.read import MAX_JSON
from shards.build.index.tars import IndexOptions, index_folder
from shards.build.tar_samples import read_members
from shards.build.verify import verify_shards
from shards.dataset.index import index_path, read_index
from shards.dataset.manifest import Manifest

Samples = dict[str, dict[str, Any]]


def img2dataset_tar(folder: Path, number: int, samples: Samples) -> Path:
    """A tar as img2dataset lays it out, with its .parquet and _stats.json."""
    members = {}
    for key, record in samples.items():
        members[f"{key}.jpg"] = encoded(draw(key, 50, 70 + number))
        members[f"{key}.txt"] = b"a caption"
        members[f"{key}.json"] = json.dumps(
            {"key": key, "status": "success", "width": 50, "height": 70, **record}
        ).encode()
    tar = write_tar(folder / f"{number:05d}.tar", members)
    pq.write_table(pa.table({"key": list(samples), "url": ["http://x"] * len(samples)}), tar.with_suffix(".parquet"))
    (folder / f"{number:05d}_stats.json").write_text('{"count": 2}')
    return tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tars: lists of genres, text as in a CSV, and samples without any."""
    place = tmp_path / "images"
    img2dataset_tar(
        place, 0, {"000000000": {"genres": ["Drama", "War"]}, "000000001": {"genres": "Drama|Comedy", "id": "tt7"}}
    )
    empty: dict[str, object] = {"genres": [], "id": None}
    img2dataset_tar(place, 1, {"000010000": {"genres": "['War']", "id": 42.0}, "000010001": {}, "000010002": empty})
    return place


def adopt(folder: Path, **options: Any) -> Manifest:
    return index_folder(IndexOptions(folder, **{"workers": 1, **options}))


def labels(folder: Path) -> dict[str, list[str]]:
    genres = Manifest.read(folder).genres
    return {
        row["id"]: [genres[column] for column in row["labels"]]
        for shard in Manifest.read(folder).shards
        for row in read_index(folder / shard.name)[0].to_pylist()
    }


def test_img2dataset(folder: Path) -> None:
    before = tree(folder)
    manifest = adopt(folder)
    after = tree(folder)
    assert {name: after[name] for name in before} == before
    (table,) = manifest.tables.values()
    added = {"manifest.json", "_info.json", "00000.index.parquet", "00001.index.parquet", table.name, "rejected.csv"}
    assert set(after) - set(before) == added
    assert manifest.genres == ["Comedy", "Drama", "War"]
    assert [(s.name, s.split, s.samples, s.genre_counts) for s in manifest.shards] == [
        ("00000.tar", "train", 2, [1, 2, 1]),
        ("00001.tar", "train", 1, [0, 0, 1]),
    ]
    assert labels(folder) == {"000000000": ["Drama", "War"], "tt7": ["Comedy", "Drama"], "42": ["War"]}
    assert rows_of(folder / "rejected.csv") == [
        ["000010001", "no genres", "00001.tar"],
        ["000010002", "no genres", "00001.tar"],
    ]
    assert [(s.max_height, s.max_width) for s in manifest.shards] == [(70, 50), (71, 50)]
    assert verify_shards(folder, 1)[1] == []


def test_ranges_are_those_of_the_images(folder: Path) -> None:
    adopt(folder)
    data = (folder / "00000.tar").read_bytes()
    for row in read_index(folder / "00000.tar")[0].to_pylist():
        image = data[row["image_offset"] : row["image_offset"] + row["image_size"]]
        assert image == encoded(draw(row["key"], 50, 70))
        assert Image.open(io.BytesIO(image)).size == (row["width"], row["height"])
        record = json.loads(data[row["json_offset"] : row["json_offset"] + row["json_size"]])
        assert record["key"] == row["key"]


def test_indexing_again_and_with_workers_changes_nothing(folder: Path) -> None:
    adopt(folder)
    before = tree(folder)
    adopt(folder, workers=2)
    assert tree(folder) == before


def test_another_field(folder: Path) -> None:
    assert adopt(folder, genre_field="status").genres == ["success"]


def test_genres_from_a_csv_by_id_or_key(folder: Path, tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "meta.csv",
        [("tt7", "Sci-Fi, War"), ("000000000", "Western"), ("000010001", "War"), ("000010000", "Musical")],
        ("name", "kinds"),
    )
    adopt(folder, metadata=table, id_column="name", genre_column="kinds", genre_separator=",")
    assert labels(folder) == {
        "000000000": ["Western"],
        "tt7": ["Sci-Fi", "War"],
        "42": ["Musical"],
        "000010001": ["War"],
    }
    assert rows_of(folder / "rejected.csv") == [["000010002", "not in the table", "00001.tar"]]


def test_the_csvs_encoding(folder: Path, tmp_path: Path) -> None:
    table = write_file(tmp_path / "meta.csv", "id,t,y,genre\ntt7,x,1,Comédie\n".encode("latin-1"))
    done = posters("shards", "index", folder, "--metadata", table, "--encoding", "ascii")
    assert done.returncode == 2 and "is not ascii text" in only_error(done.stderr)
    for chosen in ((), ("--encoding", "latin-1")):
        done = posters("shards", "index", folder, "--metadata", table, *chosen)
        assert done.returncode == 0 and labels(folder)["tt7"] == ["Comédie"]


def test_a_set_without_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x.png": encoded(draw("x"), "PNG"), "y.webp": encoded(draw("y"), "WEBP")})
    done = posters("shards", "index", tmp_path, "--workers", 1)
    assert done.returncode == 0 and "the set is for prediction only" in done.stdout
    assert Manifest.read(tmp_path).genres == []
    assert labels(tmp_path) == {"x": [], "y": []}
    assert verify_shards(tmp_path, 1)[1] == []


def test_splits_from_names(tmp_path: Path) -> None:
    names = ["test-1", "train-00000", "val_0", "validation.2", "00000", "trainer-0", "testament"]
    for name in names:
        write_tar(tmp_path / f"{name}.tar", {f"{name}-x.jpg": encoded(draw(name))})
    manifest = adopt(tmp_path, split="extra")
    assert {s.name.removesuffix(".tar"): s.split for s in manifest.shards} == {
        "train-00000": "train",
        "val_0": "val",
        "validation.2": "val",
        "test-1": "test",
        "00000": "extra",
        "trainer-0": "extra",
        "testament": "extra",
    }
    assert manifest.split_names == ["train", "val", "test", "extra"]


def damage(tar: Path, kind: str) -> None:
    data = tar.read_bytes()
    last = read_members(tar)[-1]
    header = last.image_offset - 512
    flipped = bytearray(data)
    flipped[header + 2] ^= 1
    tar.write_bytes(
        {
            "truncated in a member": data[: last.image_offset + 700],
            "cut between members": data[:header],
            "compressed": gzip.compress(data),
            "damaged header": bytes(flipped),
            "empty": b"",
            "text": b"<html>" * 999,
        }[kind]
    )


@pytest.mark.parametrize(
    "kind", ["truncated in a member", "cut between members", "compressed", "damaged header", "empty", "text"]
)
def test_damaged_tars(folder: Path, kind: str) -> None:
    damage(folder / "00001.tar", kind)
    with fails("tar-unsupported" if kind in ("compressed", "text") else "tar-damaged", "00001.tar"):
        adopt(folder)
    assert not (folder / "manifest.json").exists()


def cut_jpeg() -> bytes:
    return encoded(draw("cut", 120, 180))[:-300]


GOOD = encoded(draw("b"))

#: Members of a sample "b" that cannot be taken: reason, and a part of the detail.
BAD = {
    "no image": ({"b.jpg": b"no image"}, "not an image", "no known picture format"),
    "cut": ({"b.jpg": cut_jpeg()}, "truncated", "truncated"),
    "empty": ({"b.jpg": b""}, "zero bytes", ""),
    "bomb": ({"b.png": bomb_png()}, "decompression bomb", ""),
    "JSON alone": ({"b.json": b"{}"}, "no image", "b.json"),
    "cut JSON": ({"b.jpg": GOOD, "b.json": b"{"}, "unreadable JSON", ""),
    "no UTF-8": ({"b.jpg": GOOD, "b.json": b"\xff"}, "unreadable JSON", ""),
    "deep": ({"b.jpg": GOOD, "b.json": b"[" * 100_000}, "unreadable JSON", "nested too deeply"),
    "deep object": ({"b.jpg": GOOD, "b.json": b'{"a":' * 100_000}, "unreadable JSON", "nested too deeply"),
    "large": ({"b.jpg": GOOD, "b.json": b" " * MAX_JSON + b"{}"}, "unreadable JSON", f"over the limit of {MAX_JSON}"),
    "digits": ({"b.jpg": GOOD, "b.json": b'{"id": ' + b"9" * 5000 + b"}"}, "unreadable JSON", "digits"),
    "twice": ({"b.jpg": GOOD, "b.json": b'{"genres": ["A"], "genres": ["B"]}'}, "unreadable JSON", "twice"),
    "list with a number": ({"b.jpg": GOOD, "b.json": b'{"genres": ["a", 1]}'}, "unparsable genres", "not a list of"),
    "object": ({"b.jpg": GOOD, "b.json": b'{"genres": {"a": 1}}'}, "unparsable genres", "a text or a whole number"),
    "number": ({"b.jpg": GOOD, "b.json": b'{"genres": 0.5}'}, "unparsable genres", "a text or a whole number: 0.5"),
    "true": ({"b.jpg": GOOD, "b.json": b'{"genres": true}'}, "unparsable genres", "a text or a whole number: true"),
    "call": ({"b.jpg": GOOD, "b.json": b'{"genres": "[open(1)]"}'}, "unparsable genres", "not a list of genres"),
    "long genre": ({"b.jpg": GOOD, "b.json": json.dumps({"genres": "x" * 5000}).encode()}, "unparsable genres", "5000"),
    "half a character": ({"b.jpg": GOOD, "b.json": b'{"genres": ["\\ud800"]}'}, "unparsable genres", "lone surrogate"),
    "no genres": ({"b.jpg": GOOD, "b.json": b'{"genres": null}'}, "no genres", ""),
    "id is a list": ({"b.jpg": GOOD, "b.json": b'{"id": [1]}'}, "bad id", "is a list"),
    "id is an object": ({"b.jpg": GOOD, "b.json": b'{"id": {}}'}, "bad id", "is a dict"),
    "id is true": ({"b.jpg": GOOD, "b.json": b'{"id": true}'}, "bad id", "is a bool"),
    "id is 1.5": ({"b.jpg": GOOD, "b.json": b'{"id": 1.5}'}, "bad id", "is a float"),
    "id is NaN": ({"b.jpg": GOOD, "b.json": b'{"id": NaN}'}, "bad id", "is a float"),
    "id is empty": ({"b.jpg": GOOD, "b.json": b'{"id": " "}'}, "bad id", "empty"),
    "id with a bell": ({"b.jpg": GOOD, "b.json": b'{"id": "a\\u0007"}'}, "bad id", "control characters: 'a\\x07'"),
    "long id": ({"b.jpg": GOOD, "b.json": b'{"id": "' + b"x" * 5000 + b'"}'}, "bad id", "longer than 4096 bytes"),
    "id of half a character": ({"b.jpg": GOOD, "b.json": b'{"id": "\\udc80"}'}, "bad id", "control characters"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_samples_that_cannot_be_taken_are_rows(tmp_path: Path, kind: str) -> None:
    members, reason, detail = BAD[kind]
    sound = {"a.jpg": encoded(draw("a")), "a.json": b'{"genres": ["War"]}'}
    write_tar(tmp_path / "x.tar", {**members, **sound})
    manifest = adopt(tmp_path)
    assert labels(tmp_path) == {"a": ["War"]}
    assert manifest.source["rejected"] == {reason: 1}
    ((key, why, text),) = rows_of(tmp_path / "rejected.csv")
    assert (key, why) == ("b", reason) and text.startswith("x.tar") and detail in text and "\n" not in text
    assert verify_shards(tmp_path, 1)[1] == []


def test_keys_that_are_longer_than_a_path(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"n" * 5000 + ".jpg": GOOD, "b.jpg": GOOD}, format=tarfile.GNU_FORMAT)
    adopt(tmp_path)
    assert list(labels(tmp_path)) == ["b"]
    ((key, reason, _),) = rows_of(tmp_path / "rejected.csv")
    assert (key, reason) == ("n" * 5000, "bad key")


def test_images_too_large_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.build.index.read.MAX_IMAGE", 1000)
    write_tar(tmp_path / "x.tar", {"a.jpg": b"x" * 1001, "b.png": encoded(draw("b", 9, 9), "PNG")})
    adopt(tmp_path)
    assert rows_of(tmp_path / "rejected.csv") == [["a", "file too large", "x.tar: 1001 bytes, over the limit of 1000"]]


def test_json_that_is_no_object_has_no_genres(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.jpg": encoded(draw("a")), "a.json": b"[1]"})
    adopt(tmp_path)
    assert labels(tmp_path) == {"a": []}


def test_folders_with_nothing_to_index(tmp_path: Path) -> None:
    with fails("path-missing", tmp_path / "absent"):
        adopt(tmp_path / "absent")
    with fails("set-missing", ".tar", tmp_path):
        adopt(tmp_path)
    assert not index_path(tmp_path / "x.tar").exists()


def test_words_for_a_missing_value_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = {"a": ["None"], "b": ["War", "none"], "c": ["Drama"]}
    members = {f"{key}.jpg": encoded(draw(key)) for key in cells}
    write_tar(
        tmp_path / "x.tar", members | {f"{key}.json": json.dumps({"genres": g}).encode() for key, g in cells.items()}
    )
    adopt(tmp_path)
    assert labels(tmp_path) == {"b": ["War"], "c": ["Drama"]}
    said = (
        "the JSONs' field 'genres': these texts are read as a missing genre: 'None' (1), 'none' (1); if one is a genre"
    )
    assert said in caplog.text
    assert [row[:2] for row in rows_of(tmp_path / "rejected.csv")] == [["a", "no genres"]]
