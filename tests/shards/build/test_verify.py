"""`posters shards verify`: a sound set passes, and every kind of damage is named."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_tools import Source, build, draw, encoded, only_error, tree, write_csv, write_tar

from shards.build.index.tars import IndexOptions, index_folder
from shards.build.verify import verify_shards
from shards.dataset.index import index_path, read_index, write_index
from shards.dataset.manifest import Manifest

pytest_plugins = ("shard_fixtures",)

Command = Callable[..., tuple[int, str, str]]
SHARD = "train-00001.tar"


@pytest.fixture
def copy(few_shards: Path, tmp_path: Path) -> Path:
    """A set that may be damaged."""
    shutil.copytree(few_shards, tmp_path / "copy")
    return tmp_path / "copy"


def third(folder: Path, shard: str = SHARD) -> dict[str, Any]:
    return read_index(folder / shard)[0].to_pylist()[2]


def patch(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(at)
        stream.write(data)


def flip(path: Path, at: int, bits: int = 1) -> None:
    with open(path, "r+b") as stream:
        stream.seek(at)
        (old,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([old ^ bits]))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sound_set_passes(shard_set: Path, command: Command, workers: int) -> None:
    before = tree(shard_set)
    status, out, _ = command("shards", "verify", shard_set, "--workers", workers)
    assert status == 0 and "is sound" in out and "all decoded" in out
    assert tree(shard_set) == before


def problems(command: Command, folder: Path) -> list[str]:
    """The lines about what is wrong; the last line counts them."""
    status, out, err = command("shards", "verify", folder, "--workers", 1)
    assert status == 1 and "Traceback" not in err
    *lines, last = out.splitlines()
    assert f"has {len(lines)} problem" in last
    return lines


def test_a_flipped_bit_in_an_image(copy: Path, command: Command) -> None:
    sample = third(copy)
    flip(copy / SHARD, sample["image_offset"] + sample["image_size"] - 30)  # decodes all the same
    lines = problems(command, copy)
    assert len(lines) == 2 and all(SHARD in line for line in lines)
    assert "sha256" in lines[0] and repr(sample["key"]) in lines[1]


def test_a_flipped_bit_in_a_json(copy: Path, command: Command) -> None:
    sample = third(copy)
    flip(copy / SHARD, sample["json_offset"] + 12)
    lines = problems(command, copy)
    assert len(lines) == 2 and SHARD in lines[1] and repr(sample["key"]) in lines[1]


def test_an_image_that_no_longer_decodes(copy: Path, command: Command) -> None:
    sample = third(copy)
    patch(copy / SHARD, sample["image_offset"], b"\0" * 64)
    assert f"{SHARD}: member {sample['key']!r} at offset" in problems(command, copy)[-1]
    assert "cannot be decoded" in problems(command, copy)[-1]


def test_bits_outside_members(copy: Path, command: Command) -> None:
    flip(copy / SHARD, third(copy)["image_offset"] - 512 + 5)  # a member's name
    lines = problems(command, copy)
    assert all(SHARD in line for line in lines) and len(lines) == 2
    shutil.copy(copy / "val-00000.tar", copy / "keep")
    flip(copy / "val-00000.tar", (copy / "val-00000.tar").stat().st_size - 1)  # the end's padding
    assert any(line.startswith("val-00000.tar: its bytes changed") for line in problems(command, copy))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 30), st.integers(1, 255))
def test_any_flipped_byte_is_found(
    few_shards: Path, tmp_path_factory: pytest.TempPathFactory, at: int, bits: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        shutil.copytree(few_shards, folder)
    tar = folder / SHARD
    at %= tar.stat().st_size
    flip(tar, at, bits)
    found = verify_shards(folder, 1)[1]
    inside = [
        row["key"]
        for row in read_index(tar)[0].to_pylist()
        if any(0 <= at - row[f"{part}_offset"] < row[f"{part}_size"] for part in ("image", "json"))
    ]
    flip(tar, at, bits)
    assert found and all(line.startswith((SHARD, str(tar))) for line in found)
    assert not inside or any(repr(inside[0]) in line for line in found)


def test_a_truncated_tar(copy: Path, command: Command) -> None:
    data = (copy / SHARD).read_bytes()
    key = third(copy)["key"]
    (copy / SHARD).write_bytes(data[: third(copy)["image_offset"] + 100])
    lines = problems(command, copy)
    assert all(SHARD in line for line in lines)
    assert "the manifest says" in lines[0] and any("truncated in member" in line for line in lines)
    assert any(repr(key) in line and "at offset" in line for line in lines)


def test_missing_files(copy: Path, command: Command) -> None:
    (copy / SHARD).unlink()
    assert problems(command, copy) == [f"{SHARD}: the file is missing"]
    index_path(copy / "val-00000.tar").unlink()
    lines = problems(command, copy)
    assert len(lines) == 2 and "val-00000.tar: no index beside" in lines[1]


def test_a_swapped_index(copy: Path, command: Command) -> None:
    shutil.copy(index_path(copy / "train-00000.tar"), index_path(copy / SHARD))
    assert any(line == f"{SHARD}: the tar and the index have different members" for line in problems(command, copy))


def test_a_swapped_tar(copy: Path, command: Command) -> None:
    shutil.copy(copy / "train-00000.tar", copy / SHARD)
    assert all(line.startswith((SHARD, "key ")) for line in problems(command, copy))


def test_an_index_with_other_labels_or_sizes(copy: Path, command: Command) -> None:
    for column, value, message in (
        ("labels", [0, 1, 2], "its labels differ from the labels in the index"),
        ("height", 17, "the index says 60x17"),
        ("crc32", 5, "its bytes changed since it was packed"),
    ):
        table = pq.read_table(index_path(copy / SHARD))
        rows = table.to_pylist()
        rows[2][column] = value if rows[2][column] != value else [0]
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), index_path(copy / SHARD))
        assert any(message in line and repr(rows[2]["key"]) in line for line in problems(command, copy))
        pq.write_table(table, index_path(copy / SHARD))


def test_an_index_cut_short(copy: Path, command: Command) -> None:
    table = pq.read_table(index_path(copy / SHARD))
    pq.write_table(table.slice(1), index_path(copy / SHARD))
    lines = problems(command, copy)
    assert any("the manifest says" in line for line in lines)
    index_path(copy / SHARD).write_bytes(b"PAR1")
    assert any("cannot be read" in line and SHARD in line for line in problems(command, copy))


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("samples", 99, 1),
        ("bytes", 512, 1),
        ("max_height", 9, 1),
        ("max_width", 9, 1),
        ("genre_counts", [1, 1, 1, 1, 1], 1),
        ("sha256", "0" * 64, 2),
        ("split", "test", 2),
        ("name", "train-00000.tar", 2),
    ],
)
def test_an_edited_manifest(copy: Path, command: Command, field: str, value: Any, status: int) -> None:
    raw = json.loads((copy / "manifest.json").read_text())
    at = next(i for i, shard in enumerate(raw["shards"]) if shard["name"] == SHARD)
    raw["shards"][at][field] = value
    (copy / "manifest.json").write_text(json.dumps(raw))
    ended, out, err = command("shards", "verify", copy, "--workers", 1)
    assert ended == status
    assert (SHARD in out) if status == 1 else ("was edited" in only_error(err))


def test_no_manifest(copy: Path, command: Command) -> None:
    (copy / "manifest.json").unlink()
    status, _, err = command("shards", "verify", copy)
    assert status == 2 and "has no manifest.json" in only_error(err)


def test_one_key_in_two_tars(tmp_path: Path, command: Command) -> None:
    """Earlier versions indexed such tars with the key as the id of both."""
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"same.jpg": encoded(draw(name)), f"{name}.jpg": encoded(draw(name))})
    index_folder(IndexOptions(tmp_path, workers=1))
    assert verify_shards(tmp_path, 1)[1] == []
    for name in ("a.tar", "b.tar"):
        as_a_stranger_would(tmp_path, name, "id", lambda ids: [sample_id.partition("/")[2] for sample_id in ids])
    assert problems(command, tmp_path) == ["id 'same' occurs 2 times in the set"]


def test_one_key_twice_in_a_built_set(copy: Path, command: Command) -> None:
    """Its keys are made from the ids."""
    first = read_index(copy / "train-00000.tar")[0]["key"][0].as_py()
    as_a_stranger_would(copy, SHARD, "key", lambda keys: [first, *keys[1:]])
    assert f"key {first!r} occurs 2 times in the set" in problems(command, copy)


def test_images_that_were_broken_when_they_were_indexed(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indexing read headers alone in earlier versions; the check decodes every picture."""
    monkeypatch.setattr("shards.build.index.read.upright_size", lambda data: Image.open(io.BytesIO(data)).size)
    cut = encoded(draw("cut", 120, 180))[:-300]
    write_tar(tmp_path / "a.tar", {"cut.jpg": cut, "whole.jpg": encoded(draw("whole"))})
    index_folder(IndexOptions(tmp_path, workers=1))
    (line,) = problems(command, tmp_path)
    assert "a.tar: member 'cut' at offset 512: the image cannot be decoded" in line


def test_doing_what_verify_says_mends_the_set(few: Source, few_shards: Path, copy: Path, command: Command) -> None:
    flip(copy / SHARD, third(copy)["image_offset"] + 300)
    _, out, _ = command("shards", "verify", copy, "--workers", 1)
    assert "delete the named tars and run the build of the set again" in out
    (copy / SHARD).unlink()
    build(few, copy, samples_per_shard=8)
    assert tree(copy) == tree(few_shards)
    assert verify_shards(copy, 1)[1] == []


def test_a_table_of_samples_that_is_not_the_indexes(copy: Path, command: Command) -> None:
    manifest = Manifest.read(copy)
    table = copy / manifest.tables["train"].name
    whole = table.read_bytes()
    flip(table, len(whole) - 1)  # the last sample's genres
    last = manifest.of_split("train")[-1].name
    assert problems(command, copy) == [
        f"{table} is damaged (its sha256 differs from the manifest's); copy it again, or delete it and run the set's "
        f"build (or `posters shards index`) again",
        f"{last}: its samples differ between {table.name} and the index",
    ]
    table.write_bytes(whole[:-1])
    (line,) = problems(command, copy)
    assert str(table) in line and f"{len(whole) - 1} bytes, but the manifest says {len(whole)}" in line
    table.unlink()
    (line,) = problems(command, copy)
    assert str(table) in line and "missing" in line


def as_a_stranger_would(folder: Path, shard: str, column: str, values: Callable[[list[Any]], list[Any]]) -> None:
    """Change a column of an index; table and manifest then agree with it, digests included."""
    table, facts = read_index(folder / shard)
    at = table.schema.get_field_index(column)
    changed = pa.array(values(table[column].to_pylist()), table.schema.field(at).type)
    write_index(folder / shard, table.set_column(at, table.schema.field(at), changed), facts)
    manifest = Manifest.read(folder)
    manifest.write_tables(folder)
    manifest.write(folder)


@pytest.mark.parametrize(
    ("column", "message"),
    [("id", "its id differs from the id in the index"), ("labels", "its labels differ from the labels in the index")],
)
def test_what_table_and_index_agree_on_is_compared_with_the_tar(
    copy: Path, command: Command, column: str, message: str
) -> None:
    as_a_stranger_would(copy, SHARD, column, lambda values: values[::-1])
    lines = problems(command, copy)
    assert lines and all(SHARD in line and line.endswith(message) for line in lines)


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """Another tool's tar, whose JSONs spell a genre in two ways and write ids as pandas does."""
    members: dict[str, bytes] = {}
    for number, genres in enumerate((["Drama"], ["drama", "Comedy"], ["Comedy"])):
        members[f"{number}.jpg"] = encoded(draw(number))
        members[f"{number}.json"] = json.dumps({"id": number + 7.0, "tags": genres}).encode()
    write_tar(tmp_path / "train-0.tar", members)
    index_folder(IndexOptions(tmp_path, genre_field="tags", workers=1))
    return tmp_path


@pytest.mark.parametrize(
    ("column", "message"),
    [("id", "its id differs from the id in the index"), ("labels", "its labels differ from the labels in the index")],
)
def test_an_indexed_set_is_compared_with_its_jsons_too(
    indexed: Path, command: Command, column: str, message: str
) -> None:
    assert verify_shards(indexed, workers=1)[1] == []
    as_a_stranger_would(indexed, "train-0.tar", column, lambda values: [*values[1:], values[0]])
    lines = problems(command, indexed)
    assert len(lines) == 3 and all(line.endswith(message) for line in lines)


def test_ids_without_a_json_are_the_keys(tmp_path: Path, command: Command) -> None:
    write_tar(tmp_path / "a.tar", {f"{name}.jpg": encoded(draw(name)) for name in "xy"})
    index_folder(IndexOptions(tmp_path, workers=1))
    as_a_stranger_would(tmp_path, "a.tar", "id", lambda values: values[::-1])
    assert len(problems(command, tmp_path)) == 2


def test_genres_of_a_csv_are_not_the_jsons(indexed: Path) -> None:
    table = write_csv(indexed / "meta.csv", [(number, "t", 1999, f"['War', 'G{number}']") for number in (7, 8, 9)])
    index_folder(IndexOptions(indexed, metadata=table, workers=1))
    assert verify_shards(indexed, workers=1)[1] == []


def test_a_changed_index_is_told_though_it_says_the_same(copy: Path, command: Command) -> None:
    path = index_path(copy / SHARD)
    pq.write_table(pq.read_table(path), path, compression="none")
    assert problems(command, copy) == [f"{SHARD}: its index changed (sha256 differs from the manifest)"]


def test_one_id_twice(tmp_path: Path, command: Command) -> None:
    for name in ("a", "b"):
        members = {f"{name}.jpg": encoded(draw(name)), f"{name}.json": f'{{"id": "tt{name}"}}'.encode()}
        write_tar(tmp_path / f"{name}.tar", members)
    index_folder(IndexOptions(tmp_path, workers=1))
    as_a_stranger_would(tmp_path, "b.tar", "id", lambda ids: ["tta"])
    assert "id 'tta' occurs 2 times in the set" in problems(command, tmp_path)


@pytest.mark.parametrize("facts", [b"null", b"[]", b"5"])
def test_an_index_without_facts(copy: Path, command: Command, facts: bytes) -> None:
    path = index_path(copy / SHARD)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"poster_toolkit": facts}), path)
    assert any(SHARD in line and "is not a valid index" in line for line in problems(command, copy))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("id", None, "the column 'id' has empty values"),
        ("key", None, "the column 'key' has empty values"),
        ("labels", None, "the column 'labels' has empty values"),
        ("labels", [9], "a label is not one of the set's genres"),
        ("labels", [-1], "a label is below 0"),
        ("image_offset", 1 << 40, "a sample's image is outside of its tar"),
        ("json_size", 1 << 31, "a sample's json is outside of its tar"),
        ("height", 1 << 30, "the column 'height' has values"),
    ],
)
def test_an_index_with_values_that_break_other_commands(
    copy: Path, command: Command, column: str, value: Any, message: str
) -> None:
    path = index_path(copy / SHARD)
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    assert any(SHARD in line and message in line for line in problems(command, copy))


def test_a_poster_without_its_json(copy: Path, command: Command) -> None:
    """Of a built set: every sample of ours says what it is."""
    as_a_stranger_would(copy, SHARD, "json_offset", lambda values: [-1] * len(values))
    lines = problems(command, copy)
    assert any(line.endswith("it has no JSON with its id and genres") for line in lines)
