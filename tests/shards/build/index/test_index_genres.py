"""Genres of a whole set of tars: one form of target for all samples, or one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from failing import fails
from foreign_tars import adopt, found, rejected
from shard_tools import draw, encoded, rows_of, tree, write_csv, write_tar

from shards.build.index.tars import IndexOptions
from shards.build.verify import verify_shards
from shards.dataset.index import field_ranges, read_index
from shards.dataset.labels import MAX_GENRES
from shards.dataset.manifest import Manifest


def pack(tar: Path, **samples: Any) -> Path:
    """Write a tar with an image per name. A value is the .cls member (bytes), the JSON (a dict) or both (a tuple)."""
    members = {}
    for name, value in samples.items():
        members[f"{name}.jpg"] = encoded(draw(name, 9, 12))
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, bytes):
                members[f"{name}.cls"] = part
            elif part is not None:
                members[f"{name}.json"] = json.dumps(part).encode()
    return write_tar(tar, members)


def sound(folder: Path, genres: list[str], **source: Any) -> Manifest:
    """The set has these genres and this source, is sound, and stays the same if it is indexed again."""
    manifest = Manifest.read(folder)
    assert manifest.genres == genres
    about = {name: manifest.source.get(name) for name in ("genre_field", "genre_form", "classes")}
    assert {name: value for name, value in about.items() if value} == source
    assert verify_shards(folder, 1)[1] == []
    return manifest


def test_cls_members_are_classes(tmp_path: Path) -> None:
    pack(tmp_path / "train-0.tar", a=b"0", b=b"11\n", c=b"2")
    pack(tmp_path / "val-0.tar", d=(b"1", {"title": "x"}))
    adopt(tmp_path)
    manifest = sound(tmp_path, [str(n) for n in range(12)], genre_form="class", classes=True)
    assert found(tmp_path) == {"a": ["0"], "b": ["11"], "c": ["2"], "d": ["1"]}
    # The number of the column is the class, although the genres are texts.
    labels = read_index(tmp_path / "train-0.tar")[0]["labels"].to_pylist()
    assert labels == [[0], [11], [2]] and manifest.shards[0].genre_counts == [1, 0, 1, *[0] * 8, 1]
    assert field_ranges(read_index(tmp_path / "train-0.tar")[0], "cls")[1].tolist() == [1, 3, 1]
    before = tree(tmp_path)
    adopt(tmp_path)
    adopt(tmp_path, genre_field="cls")
    assert tree(tmp_path) == before


def test_a_json_field_has_classes(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", a={"label": 2}, b={"label": 0.0}, c={"label": -1}, d={"label": True}, e={}, f=None)
    adopt(tmp_path, genre_field="label")
    sound(tmp_path, ["0", "1", "2"], genre_field="label", genre_form="class", classes=True)
    assert found(tmp_path) == {"a": ["2"], "b": ["0"]}
    reasons = {"c": "bad class", "d": "unparsable genres", "e": "no genres", "f": "no genres"}
    assert rejected(tmp_path) == reasons


def test_bad_classes_are_rows(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", a=b"1", b=b"cat", c=b"-1", d=b"", e=b"99999999999", f=None)
    manifest = adopt(tmp_path)
    sound(tmp_path, ["0", "1"], genre_form="class", classes=True)
    assert manifest.source["rejected"] == {"bad class": 4, "no genres": 1}
    assert rows_of(tmp_path / "rejected.csv")[:2] == [
        ["b", "bad class", "a.tar: the .cls member is not a whole number: b'cat'"],
        ["c", "bad class", "a.tar: the class -1 is not from 0 to 2147483647"],
    ]
    assert manifest.source["other_members"] == "5 cls"


def test_classes_over_the_limit(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", a=b"1", b=str(MAX_GENRES - 1).encode())
    assert len(adopt(tmp_path).genres) == MAX_GENRES
    pack(tmp_path / "a.tar", a=b"1", b=str(MAX_GENRES).encode())
    with fails("labels-invalid", tmp_path, "the class 32767 (sample 'b' of a.tar), over the limit of 32766"):
        adopt(tmp_path)


def test_classes_without_samples_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Classes that are counted from 1 leave the class 0 empty."""
    pack(tmp_path / "a.tar", a=b"1", b=b"3", c=b"4")
    adopt(tmp_path)
    assert "the .cls member: 2 of 5 genres have no sample: 0, 2" in caplog.text
    caplog.clear()
    pack(tmp_path / "a.tar", a=b"1", b=b"0")
    adopt(tmp_path)
    assert caplog.text == ""


BOTH: dict[str, dict[str, Any]] = {
    "in one sample": {"a": (b"1", {"genres": ["War"]})},
    "in two samples": {"a": b"1", "b": {"genres": "War"}},
    "a bad class": {"a": b"cat", "b": {"genres": "War"}},
    "bad genres": {"a": b"1", "b": {"genres": {}}},
}


@pytest.mark.parametrize("kind", BOTH)
def test_cls_members_and_genres_are_not_mixed(tmp_path: Path, kind: str) -> None:
    pack(tmp_path / "x.tar", **BOTH[kind])
    other = "a" if kind == "in one sample" else "b"
    two = f"sample 'a' of x.tar has a .cls member, and sample '{other}' of x.tar has 'genres' in its JSON"
    with fails("labels-invalid", tmp_path, two, "choose with --genre-field cls or --genre-field genres"):
        adopt(tmp_path)
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / "x.index.parquet").exists()


def test_the_user_chooses_between_cls_members_and_genres(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", a=(b"1", {"genres": ["War"]}), b=(b"0", {"genres": {}}), c=(b"cat", {"genres": "Drama"}))
    adopt(tmp_path, genre_field="cls")
    sound(tmp_path, ["0", "1"], genre_form="class", classes=True)
    assert found(tmp_path) == {"a": ["1"], "b": ["0"]} and rejected(tmp_path) == {"c": "bad class"}
    adopt(tmp_path, genre_field="genres")
    sound(tmp_path, ["Drama", "War"], genre_field="genres")
    assert found(tmp_path) == {"a": ["War"], "c": ["Drama"]} and rejected(tmp_path) == {"b": "unparsable genres"}


def test_empty_genres_beside_cls_members_are_no_genres(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", a=(b"1", {"genres": []}), b=(b"0", {"genres": None}))
    adopt(tmp_path)
    assert found(tmp_path) == {"a": ["1"], "b": ["0"]}


def test_a_json_field_that_is_named_cls(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", a={"cls": 1}, b={"cls": 0})
    assert adopt(tmp_path).genres == []
    adopt(tmp_path, genre_field="cls")
    sound(tmp_path, ["0", "1"], genre_field="cls", genre_form="class", classes=True)


def test_a_table_is_used_instead_of_cls_members(tmp_path: Path) -> None:
    pack(tmp_path / "set" / "x.tar", a=b"1", b=b"cat")
    table = write_csv(tmp_path / "meta.csv", [("a", "", "", "['War']"), ("b", "", "", "['Drama']")])
    adopt(tmp_path / "set", metadata=table)
    sound(tmp_path / "set", ["Drama", "War"])
    assert found(tmp_path / "set") == {"a": ["War"], "b": ["Drama"]}


def test_multi_hot_vectors(tmp_path: Path) -> None:
    """A vector of zeros states that no label applies. A sample without a vector is rejected."""
    vectors = {"a": [1, 0, 1], "b": [0, 0, 0], "c": [0.0, 1.0, 0.0], "d": [True, False, False]}
    pack(tmp_path / "x.tar", **{name: {"targets": vector} for name, vector in vectors.items()}, e={"targets": []})
    adopt(tmp_path, genre_field="targets")
    sound(tmp_path, ["0", "1", "2"], genre_field="targets", genre_form="multi-hot")
    assert found(tmp_path) == {"a": ["0", "2"], "b": [], "c": ["1"], "d": ["0"]}
    assert rejected(tmp_path) == {"e": "no genres"}


def test_lists_of_numbers(tmp_path: Path) -> None:
    """timm's target format ``indices``."""
    lists = {"a": [5], "b": [0, 1], "c": [10, 2, 2], "d": []}
    pack(tmp_path / "x.tar", **{name: {"targets": numbers} for name, numbers in lists.items()})
    adopt(tmp_path, genre_field="targets")
    sound(tmp_path, [str(n) for n in range(11)], genre_field="targets", genre_form="indices")
    assert found(tmp_path) == {"a": ["5"], "b": ["0", "1"], "c": ["2", "10"]}


def test_numbers_in_nested_fields(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", a={"o": [{"id": 3}, {"id": 3}, {"id": 0}]}, b={"o": [{"id": 1}]}, c={"o": []})
    adopt(tmp_path, genre_field="o/id")
    sound(tmp_path, ["0", "1", "2", "3"], genre_field="o/id", genre_form="indices")
    assert found(tmp_path) == {"a": ["0", "3"], "b": ["1"]} and rejected(tmp_path) == {"c": "no genres"}


def test_fields_of_0_and_1_name_the_genres(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", a={"red": 1, "blue": 0}, b={"red": 0, "blue": 0}, c={"red": 1, "blue": True}, d={"red": 1})
    adopt(tmp_path, genre_field="red,blue")
    sound(tmp_path, ["red", "blue"], genre_field="red,blue", genre_form="flags")
    assert found(tmp_path) == {"a": ["red"], "b": [], "c": ["red", "blue"]}
    assert rejected(tmp_path) == {"d": "unparsable genres"}
    for field in ("red,", "red,red", ","):
        with fails("option-value", "--genre-field must name different fields", repr(field)):
            IndexOptions(tmp_path, genre_field=field)


#: Values of a field in samples a and b that have no clear meaning together, and a part of the message.
UNCLEAR = {
    "class and names": (5, ["War"], "a class number in sample 'a' of x.tar, but names of genres in sample 'b'"),
    "names and list": ("War", [1, 0], "names of genres in sample 'a' of x.tar, but a list of 0 and 1 in sample 'b'"),
    "class and list": (5, [3, 4], "a class number in sample 'a' of x.tar, but a list of numbers in sample 'b'"),
    "one number": ([0], [1], "lists of one number, 0 or 1, which can be a class or a multi-hot vector"),
    "lengths": ([0, 1, 0], [0, 1], "3 numbers, all 0 or 1 (sample 'a' of x.tar); 2 numbers, all 0 or 1 (sample 'b'"),
    "a 2 in a vector": (
        [0, 1, 0],
        [0, 2, 0],
        "3 numbers, all 0 or 1 (sample 'a' of x.tar); 3 numbers, one of them twice (sample 'b'",
    ),
    "another length and a 2": ([0, 1, 0], [0, 2], "3 numbers, all 0 or 1 (sample 'a' of x.tar); 2 numbers (sample 'b'"),
    "counts": ([0, 2, 2], [5, 1, 1], "no numbers of labels: 3 numbers, one of them twice (sample 'a' of x.tar)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNCLEAR)
def test_targets_without_a_clear_meaning_are_refused(tmp_path: Path, kind: str) -> None:
    one, two, words = UNCLEAR[kind]
    pack(tmp_path / "x.tar", a={"t": one}, b={"t": two}, c={})
    remedy = "choose another field with --genre-field, or give a table with --metadata"
    with fails("labels-invalid", f"{tmp_path}: the JSONs' field 't' has", words, remedy):
        adopt(tmp_path, genre_field="t")
    assert not (tmp_path / "manifest.json").exists()


def test_two_labels_are_a_vector(tmp_path: Path) -> None:
    """As numbers of labels, all samples would have both labels."""
    pack(tmp_path / "x.tar", a={"t": [0, 1]}, b={"t": [1, 0]})
    adopt(tmp_path, genre_field="t")
    assert found(tmp_path) == {"a": ["1"], "b": ["0"]}


def test_lists_of_0_and_1_of_different_lengths_without_repeats_are_numbers(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", a={"t": [0]}, b={"t": [1, 0]})
    adopt(tmp_path, genre_field="t")
    sound(tmp_path, ["0", "1"], genre_field="t", genre_form="indices")
    assert found(tmp_path) == {"a": ["0"], "b": ["0", "1"]}


def test_a_set_without_labels_says_nothing_of_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path / "x.tar", a=None, b={"url": "u"})
    adopt(tmp_path)
    sound(tmp_path, [], genre_field="genres")
    assert [record.message for record in caplog.records] == ["no JSON has genres in 'genres'; the fields are 'url'"]


@pytest.mark.parametrize("field", ["cls", "label"])
def test_a_changed_class_is_told(tmp_path: Path, field: str) -> None:
    pack(tmp_path / "x.tar", a=(b"1", {"label": 1}), b=(b"0", {"label": 0}))
    adopt(tmp_path, genre_field=field)
    data = (tmp_path / "x.tar").read_bytes()
    old, new = (b"1", b"0") if field == "cls" else (b'{"label": 1}', b'{"label": 0}')
    at = data.index(old + b"\0" * 100)
    (tmp_path / "x.tar").write_bytes(data[:at] + new + data[at + len(new) :])
    problems = verify_shards(tmp_path, 1)[1]
    assert any(
        "member 'a'" in line and line.endswith("its labels differ from the labels in the index") for line in problems
    )
    assert not any("member 'b'" in line for line in problems)
