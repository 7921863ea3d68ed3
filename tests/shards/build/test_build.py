"""Whole builds from real files: what goes in, what comes out, and that it is the same every time."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from failing import fails
from PIL import Image, ImageOps
from shard_tools import (
    GENRES,
    Source,
    build,
    build_command,
    draw_posters,
    environment,
    posters,
    python,
    read_csv,
    rows_of,
    samples,
    tree,
    write_csv,
    write_file,
)

from shards.build.run import BuildOptions, build_shards
from shards.build.verify import verify_shards
from shards.dataset.index import list_tars, read_index
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.inputs.scan import Scan

pytest_plugins = ("shard_fixtures",)


def test_every_row_is_a_sample_or_a_rejection(source: Source, shard_set: Path) -> None:
    found = samples(shard_set)
    assert {i: set(s["genres"]) for i, s in found.items()} == {i: set(g) for i, g in source.good.items()}
    rejected = read_csv(shard_set / "rejected.csv")
    assert sorted((r["id"], r["reason"]) for r in rejected) == sorted(source.bad.items())
    assert not Path("/tmp/pwned").exists()
    stated = Manifest.read(shard_set).source
    assert stated["rows"] == len(source.good) + len(source.bad) and stated["samples"] == len(source.good)
    assert stated["rejected"] == dict(Counter(source.bad.values()))


def test_labels_and_pictures(source: Source, shard_set: Path) -> None:
    manifest = Manifest.read(shard_set)
    assert manifest.genres == sorted(GENRES)
    for sample_id, sample in samples(shard_set).items():
        assert sample["multi_hot"] == [int(g in source.good[sample_id]) for g in manifest.genres]
        assert unquote(sample["key"]) == sample_id
        image = Image.open(io.BytesIO(sample["image"]))
        image.load()
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert min(image.size) <= 256 and max(image.size) <= 512
    for sample_id in ("p0000", "ünï-日本-🎬", "sub/folder/x", "upper", "jpeg"):
        path = next(p for e in (".jpg", ".JPG", ".jpeg") if (p := source.images / f"{sample_id}{e}").exists())
        assert samples(shard_set)[sample_id]["image"] == path.read_bytes()


def test_the_folder_holds_only_what_it_should(shard_set: Path) -> None:
    manifest = Manifest.read(shard_set)
    expected = {"manifest.json", "_info.json", "rejected.csv", "duplicates.csv"}
    for shard in manifest.shards:
        expected |= {shard.name, shard.name.replace(".tar", ".index.parquet")}
    expected |= {table.name for table in manifest.tables.values()}
    assert set(tree(shard_set)) == expected
    assert all(shard.samples <= 20 for shard in manifest.shards)
    assert verify_shards(shard_set, 1)[1] == []


def test_duplicates_are_in_one_split(source: Source, shard_set: Path) -> None:
    found = samples(shard_set)
    groups: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(shard_set / "duplicates.csv"):
        groups.setdefault(row["group"], []).append(row)
    group_of = {row["id"]: number for number, rows in groups.items() for row in rows}
    for left, right in source.copies:
        assert found[left]["split"] == found[right]["split"], (left, right)
        assert group_of[left] == group_of[right]
    for rows in groups.values():
        assert len(rows) > 1 and {row["split"] for row in rows} == {found[rows[0]["id"]]["split"]}
    assert Manifest.read(shard_set).source["duplicate_groups"] == len(groups) == len(source.copies)


def test_the_manifest_says_which_samples_are_duplicates(source: Source, shard_set: Path) -> None:
    manifest, known = Manifest.read(shard_set), Counter[str]()
    ids = {row["id"]: row["group"] for row in read_csv(shard_set / "duplicates.csv")}
    for split in manifest.split_names:
        names = [i for s in manifest.of_split(split) for i in read_index(shard_set / s.name)[0]["id"].to_pylist()]
        units = manifest.units_of(split)
        assert units is not None and len(units) == len(names) and set(units.tolist()) == set(range(units.max() + 1))
        together: dict[int, set[str]] = {}
        for name, unit in zip(names, units.tolist(), strict=True):
            together.setdefault(unit, set()).add(name)
        for group in (group for group in together.values() if len(group) > 1):
            assert len({ids[name] for name in group}) == 1
            known.update(group)
    assert set(known) == set(ids)
    raw = json.loads((shard_set / "manifest.json").read_text())
    del raw["duplicates"]  # as earlier versions wrote it
    (old := shard_set.parent / "old").mkdir(exist_ok=True)
    (old / "manifest.json").write_text(json.dumps(raw))
    assert Manifest.read(old).units_of("train") is None
    assert Manifest.read(old).fingerprint == manifest.fingerprint


@pytest.fixture
def mirrored(tmp_path: Path) -> Source:
    """40 posters; the last 20 are mirror images of the first, in another quality."""
    own = draw_posters(tmp_path / "own", 40)
    for number in range(20):
        image = ImageOps.mirror(Image.open(own.images / f"p{number:04d}.jpg"))
        image.save(own.images / f"p{number + 20:04d}.jpg", quality=70)
    return own


def test_mirrored_copies_are_in_one_split(mirrored: Source, tmp_path: Path) -> None:
    build(mirrored, tmp_path / "out", fractions=(0.5, 0.25, 0.25))
    split = {row["id"]: row["split"] for row in read_csv(tmp_path / "out" / "duplicates.csv")}
    assert len(split) == 40
    assert all(split[f"p{k:04d}"] == split[f"p{k + 20:04d}"] for k in range(20))


@pytest.mark.parametrize("under_way", [False, True])
def test_a_set_of_before_mirrored_copies_were_looked_for_keeps_its_splits(
    mirrored: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, under_way: bool
) -> None:
    out, groups = tmp_path / "out", Scan.duplicate_groups
    with monkeypatch.context() as earlier:
        earlier.setattr(Scan, "duplicate_groups", lambda scan, ids, bits, mirrored=0: groups(scan, ids, bits, False))
        before = build(mirrored, out, samples_per_shard=5)
    manifest = (out / "manifest.json").read_bytes()
    if under_way:  # killed after some shards
        for name in ("manifest.json", "train-00003.index.parquet", "test-00000.index.parquet", "test-00000.tar"):
            (out / name).unlink()
    after = build(mirrored, out, samples_per_shard=5)
    assert "did not detect mirrored copies. The splits are kept, so 20 posters may" in caplog.text
    assert after.fingerprint == before.fingerprint and (out / "manifest.json").read_bytes() == manifest
    again = build(mirrored, out, samples_per_shard=5, overwrite=True)  # as the user says: by the new rule
    assert again.source["duplicate_groups"] == 20 and again.fingerprint != before.fingerprint


def shuffled(path: Path, to: Path, seed: int) -> Path:
    rows = rows_of(path)
    order = np.random.default_rng(seed).permutation(len(rows))
    return write_csv(to, [rows[i] for i in order])


def test_bytes_depend_on_content_alone(source: Source, shard_set: Path, tmp_path: Path) -> None:
    """Another folder, other times, another row order, two workers, another process, hash seed and locale."""
    images = tmp_path / "elsewhere" / "images"
    shutil.copytree(source.images, images)
    for path in images.rglob("*"):
        os.utime(path, (1e9, 1e9))
    moved = Source(images, shuffled(source.csv, tmp_path / "other.csv", 5), source.good, source.bad)
    done = posters(
        *build_command(moved, tmp_path / "out", "--workers", 2),
        cwd=tmp_path,
        env=environment(PYTHONHASHSEED="7", LC_ALL="C", TZ="Asia/Tokyo"),
    )
    assert done.returncode == 0, done.stderr
    before, after = tree(shard_set), tree(tmp_path / "out")
    in_csv_order = {"rejected.csv", "duplicates.csv"}
    assert {n: d for n, d in after.items() if n not in in_csv_order} == {
        n: d for n, d in before.items() if n not in in_csv_order
    }
    pairs = [{(r["id"], r["reason"]) for r in read_csv(f / "rejected.csv")} for f in (shard_set, tmp_path / "out")]
    assert pairs[0] == pairs[1]
    partitions = []
    for folder in (shard_set, tmp_path / "out"):
        groups: dict[str, set[str]] = {}
        for row in read_csv(folder / "duplicates.csv"):
            groups.setdefault(row["group"], set()).add(row["id"])
        partitions.append({frozenset(ids) for ids in groups.values()})
    assert partitions[0] == partitions[1]


def test_the_same_csv_gives_the_same_bytes_with_any_workers(source: Source, shard_set: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", workers=2)
    assert tree(tmp_path / "out") == tree(shard_set)


def test_seed_and_options_change_the_set(few: Source, few_shards: Path, tmp_path: Path) -> None:
    one = {i: s["split"] for i, s in samples(few_shards).items()}
    build(few, tmp_path / "seed", samples_per_shard=8, seed=1)
    assert {i: s["split"] for i, s in samples(tmp_path / "seed").items()} != one
    build(few, tmp_path / "fractions", samples_per_shard=8, fractions=(0.5, 0.5, 0.0))
    counts = Counter(s["split"] for s in samples(tmp_path / "fractions").values())
    assert set(counts) == {"train", "val"} and abs(counts["train"] - 15) <= 2


@pytest.mark.parametrize("bound", [1, 7, 24, 1000])
def test_samples_per_shard(few: Source, tmp_path: Path, bound: int) -> None:
    manifest = build(few, tmp_path / "out", samples_per_shard=bound)
    assert sum(shard.samples for shard in manifest.shards) == 30
    for split in ("train", "val", "test"):
        sizes = [shard.samples for shard in manifest.of_split(split)]
        assert len(sizes) == -(-sum(sizes) // bound) and max(sizes) - min(sizes) <= 1


READ_STOCK = """
import glob, json, sys
import webdataset
found = {}
for sample in webdataset.WebDataset(sorted(glob.glob(sys.argv[1] + "/*.tar")), shardshuffle=False).decode("pil"):
    found[sample["__key__"]] = [sample["json"], sample["jpg"].size]
print(json.dumps(found))
"""

READ_HUGGING_FACE = """
import glob, json, sys
from datasets import load_dataset
files = sorted(glob.glob(sys.argv[1] + "/*.tar"))
found = {}
for sample in load_dataset("webdataset", data_files=files, split="train", cache_dir=sys.argv[2]):
    found[sample["__key__"]] = [sample["json"], sample["jpg"].size]
print(json.dumps(found))
"""


@pytest.mark.parametrize("script", [READ_STOCK, READ_HUGGING_FACE], ids=["webdataset", "datasets"])
def test_stock_readers_read_the_tars(source: Source, shard_set: Path, tmp_path: Path, script: str) -> None:
    env = environment(HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    done = python("-c", script, shard_set, tmp_path / "cache", env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {record["id"] for record, _ in found.values()} == set(source.good)
    expected = {}
    for tar in list_tars(shard_set):
        for row in read_index(tar)[0].to_pylist():
            expected[row["key"]] = (row["id"], [row["width"], row["height"]], row["labels"])
    assert {
        key: (record["id"], size, [i for i, hot in enumerate(record["multi_hot"]) if hot])
        for key, (record, size) in found.items()
    } == expected


def test_labels_file_fixes_genres_and_order(few: Source, few_shards: Path, tmp_path: Path) -> None:
    wanted = ["Western", "Sci-Fi", "Drama", "Action"]
    (tmp_path / "labels.json").write_text(json.dumps({"genres": wanted, "fingerprint": "x", "thresholds": []}))
    manifest = build(few, tmp_path / "out", labels=tmp_path / "labels.json")
    assert manifest.genres == wanted
    found = samples(tmp_path / "out")
    assert set(found) == {i for i, genres in few.good.items() if set(genres) & set(wanted)}
    for sample_id, sample in found.items():
        assert sample["multi_hot"] == [int(genre in few.good[sample_id]) for genre in wanted]
        assert sample["genres"] == [genre for genre in wanted if genre in few.good[sample_id]]
    left_out = [r for r in read_csv(tmp_path / "out" / "rejected.csv") if "not among the given labels" in r["detail"]]
    assert {r["id"] for r in left_out} == set(few.good) - set(found) and left_out
    # A manifest serves too: the same genres and posters make the same set.
    build(few, tmp_path / "again", labels=few_shards / "manifest.json", samples_per_shard=8)
    assert tree(tmp_path / "again") == tree(few_shards)
    # So does a list.
    (tmp_path / "list.json").write_text(json.dumps(wanted))
    assert build(few, tmp_path / "of list", labels=tmp_path / "list.json").genres == wanted


@pytest.mark.parametrize(
    "content",
    ["[]", '["War", "War"]', "{}", '{"labels": ["Drama"]}', '{"labels": 3}', '{"genres": []}', '{"genres": [1]}', "{",
     '{"genres": ["Drama", "Drama"]}'],
)  # fmt: skip
def test_labels_files_that_are_none(few: Source, tmp_path: Path, content: str) -> None:
    (tmp_path / "labels.json").write_text(content)
    with fails("path-unreadable" if content == "{" else "labels-invalid", "labels.json"):
        build(few, tmp_path / "out", labels=tmp_path / "labels.json")
    assert not (tmp_path / "out").exists()  # it is read before the hours of checking posters


def test_nothing_to_build_from(few: Source, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "sub").mkdir(parents=True)
    spoilt = write_file(tmp_path / "spoilt" / "p0000.jpg", b"text").parent
    header = write_csv(tmp_path / "header.csv", [])
    no_genres = write_csv(tmp_path / "none.csv", [("p0000", "", "", "[]")])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": tmp_path / "absent"}, "image folder not found"),
        ({"images": few.csv}, "is a table, not a folder of images; pass it with --metadata"),
        ({"images": empty}, r"no \.jpg, \.jpeg, .* or \.tiff file in"),
        ({"images": spoilt}, r"no usable poster in .* 1 not an image.*for example id 'p00\d\d'"),
        ({"metadata": tmp_path / "absent.csv"}, "metadata not found"),
        ({"metadata": header}, "no usable row: the file has only a header line"),
        ({"metadata": no_genres}, "no usable row: 1 no genres; for example id 'p0000'"),
        ({"genre_column": "genres"}, "did you mean 'genre'"),
        ({"labels": tmp_path / "absent.json"}, "labels file not found"),
    ]
    for number, (changes, message) in enumerate(cases):
        options = {"metadata": few.csv, "images": few.images, "out": tmp_path / f"out{number}", "workers": 1, **changes}
        with pytest.raises(UserError, match=message) as caught:
            build_shards(BuildOptions(**options))
        assert "\n" not in str(caught.value)
        assert list(tmp_path.glob(f"out{number}/*.tar")) + list(tmp_path.glob(f"out{number}/*.json")) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"samples_per_shard": 0}, "--samples-per-shard"),
        ({"near_duplicates": 16}, "--near-duplicates"),
        ({"near_duplicates": -1}, "--near-duplicates"),
        ({"workers": -1}, "--workers"),
        ({"fractions": (0.9, 0.1)}, "--splits"),
        ({"fractions": (0.9, 0.1, 0.1)}, "0.9,0.1,0.1"),
        ({"fractions": (1.1, -0.1, 0.0)}, "--splits"),
        ({"fractions": (float("nan"), 0.5, 0.5)}, "--splits"),
        ({"fractions": (float("inf"), 0.0, 0.0)}, "--splits"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], part: str) -> None:
    with fails("option-value", part):
        BuildOptions(metadata=Path("x"), out=Path("y"), **options)


def test_one_poster_is_a_set(tmp_path: Path) -> None:
    manifest = build(draw_posters(tmp_path, 1), tmp_path / "out")
    assert [(shard.split, shard.samples) for shard in manifest.shards] == [("train", 1)]
    assert verify_shards(tmp_path / "out", 1)[1] == []


def test_a_row_with_a_thousand_genres_is_no_harm(few: Source, tmp_path: Path) -> None:
    rows = rows_of(few.csv)
    rows[0][3] = "|".join(f"genre {number}" for number in range(40_000))
    rows[1][3] = "|".join(f"genre {number}" for number in range(1000))
    rows[2][3] = "Drama|[/b]|[red]"
    table = write_csv(tmp_path / "meta.csv", rows)
    done = posters(*build_command(Source(few.images, table, {}, {}), tmp_path / "out", "--workers", 1))
    assert done.returncode == 0, done.stderr
    assert [r["reason"] for r in read_csv(tmp_path / "out" / "rejected.csv")] == ["unparsable genres"]
    assert "[/b]" in done.stdout and "genre 999" in done.stdout


def test_the_conventional_folder_is_found(few: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(few.images, tmp_path / "cleaned_posters_local")
    monkeypatch.chdir(tmp_path)
    build_shards(BuildOptions(metadata=few.csv, out=tmp_path / "out", workers=1))
    assert set(samples(tmp_path / "out")) == set(few.good)


@pytest.mark.parametrize(
    "text",
    [
        '{"genres": [["Drama"]]}',
        '{"genres": [1, 2]}',
        '{"genres": ["Drama", "Drama"]}',
        '{"genres": ["Drama", " "]}',
        '{"labels": {"genres": [""]}}',
        '{"labels": null}',
        '{"genres": {"Drama": 1}}',
        "[]",
        '"Drama"',
        "7",
        '["Drama", 7]',
        "[" * 100_000,
    ],
)
def test_given_labels_that_are_no_genres_are_one_line(few: Source, tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with fails("path-unreadable" if len(text) > 1000 else "labels-invalid", "labels.json"):
        build(few, tmp_path / "out", labels=tmp_path / "labels.json")
    assert not (tmp_path / "out").exists()
