"""`posters shards index`: tars that another tool made become a set, and stay as they are."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from shard_tools import draw, encoded, only_error, posters, tree, write_csv, write_file, write_tar

from shards.adopt import AdoptOptions, index_folder
from shards.errors import UserError
from shards.index import index_path, read_index
from shards.manifest import Manifest
from shards.tarsamples import read_members
from shards.verify import verify_shards

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
    pq.write_table(
        pa.table({"key": list(samples), "url": ["http://x"] * len(samples)}), tar.with_suffix(".parquet")
    )
    (folder / f"{number:05d}_stats.json").write_text('{"count": 2}')
    return tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tars: lists of genres, text as in a CSV, and samples without any."""
    place = tmp_path / "images"
    img2dataset_tar(
        place,
        0,
        {"000000000": {"genres": ["Drama", "War"]}, "000000001": {"genres": "Drama|Comedy", "id": "tt7"}},
    )
    empty: dict[str, object] = {"genres": [], "id": None}
    img2dataset_tar(
        place, 1, {"000010000": {"genres": "['War']", "id": 42}, "000010001": {}, "000010002": empty}
    )
    return place


def adopt(folder: Path, **options: Any) -> Manifest:
    return index_folder(AdoptOptions(folder, **{"workers": 1, **options}))


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
    added = {"manifest.json", "00000.index.parquet", "00001.index.parquet", table.name}
    assert set(after) - set(before) == added
    assert manifest.genres == ["Comedy", "Drama", "War"]
    assert [(s.name, s.split, s.samples, s.genre_counts) for s in manifest.shards] == [
        ("00000.tar", "train", 2, [1, 2, 1]),
        ("00001.tar", "train", 3, [0, 0, 1]),
    ]
    assert labels(folder) == {
        "000000000": ["Drama", "War"],
        "tt7": ["Comedy", "Drama"],
        "42": ["War"],
        "000010001": [],
        "000010002": [],
    }
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
        "000010002": [],
    }


def test_the_csvs_encoding(folder: Path, tmp_path: Path) -> None:
    table = write_file(tmp_path / "meta.csv", "id,t,y,genre\ntt7,x,1,Comédie\n".encode("latin-1"))
    done = posters("shards", "index", folder, "--metadata", table)
    assert done.returncode == 2 and "--encoding latin-1" in only_error(done.stderr)
    done = posters("shards", "index", folder, "--metadata", table, "--encoding", "latin-1")
    assert done.returncode == 0 and labels(folder)["tt7"] == ["Comédie"]


def test_a_set_without_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x.png": encoded(draw("x"), "PNG"), "y.webp": encoded(draw("y"), "WEBP")})
    done = posters("shards", "index", tmp_path, "--workers", 1)
    assert done.returncode == 0 and "can be predicted on, not trained on" in done.stdout
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
    done = posters("shards", "index", folder, "--workers", 1)
    assert done.returncode == 2
    assert "00001.tar" in only_error(done.stderr)
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"b.jpg": b"no image", "b.json": b"{}"}, "image of sample 'b' cannot be read"),
        ({"b.jpg": b""}, "image of sample 'b' cannot be read"),
        ({"b.jpg": encoded(draw("b")), "b.json": b"{"}, "JSON of sample 'b' does not parse"),
        ({"b.jpg": encoded(draw("b")), "b.json": b"\xff"}, "JSON of sample 'b' does not parse"),
        ({"b.jpg": encoded(draw("b")), "b.json": b"[" * 100_000}, "JSON of sample 'b' does not parse"),
        ({"b.jpg": encoded(draw("b")), "b.json": b'{"genres": ["a", 1]}'}, "of sample 'b': not a list of strings"),
        ({"b.jpg": encoded(draw("b")), "b.json": b'{"genres": {"a": 1}}'}, "genres of sample 'b'"),
        ({"b.jpg": encoded(draw("b")), "b.json": b'{"genres": "[open(1)]"}'}, "of sample 'b': not a list of genres"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_read(tmp_path: Path, member: dict[str, bytes], message: str) -> None:
    sound = {"a.jpg": encoded(draw("a"))}
    write_tar(tmp_path / "x.tar", {**sound, **member})
    write_tar(tmp_path / "y.tar", {"y.jpg": encoded(draw("y"))})
    with pytest.raises(UserError, match=message) as caught:
        adopt(tmp_path)
    assert "x.tar" in str(caught.value) and "\n" not in str(caught.value)


def test_json_that_is_no_object_has_no_genres(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.jpg": encoded(draw("a")), "a.json": b"[1]"})
    adopt(tmp_path)
    assert labels(tmp_path) == {"a": []}


def test_folders_with_nothing_to_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        adopt(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no \.tar file in"):
        adopt(tmp_path)
    assert not index_path(tmp_path / "x.tar").exists()
