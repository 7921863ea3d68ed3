"""Tars as other tools lay them out: indexed, verified and read, with the targets that timm's own reader gives."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from PIL import Image
from shard_tools import draw, encoded, rows_of

from shards.build.index.tars import IndexOptions, index_folder
from shards.build.verify import verify_shards
from shards.dataset.index import field_ranges
from shards.dataset.manifest import Manifest
from toolkit.data.image_transforms import EvalTransform
from toolkit.data.shard_loader import ShardLoader
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.data.sources.shard_set import ShardSet


def write(tar: Path, samples: list[dict[str, Any]]) -> Path:
    """Write a tar as WebDataset's own writer does. Whole numbers, texts and records are encoded by their extension."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(tar)) as writer:
        for sample in samples:
            writer.write(sample)
    return tar


def index(folder: Path, **options: Any) -> Manifest:
    manifest = index_folder(IndexOptions(folder, **{"workers": 1, **options}))
    assert verify_shards(folder, 1)[1] == []
    return manifest


def field(reader: ShardReader, name: str) -> list[bytes | None]:
    """The bytes of a member of each sample, by the ranges in the indexes."""
    found: list[bytes | None] = []
    for shard in reader.shards:
        data = (Path(str(reader.store.root)) / shard.name).read_bytes()
        offsets, sizes = field_ranges(reader.store.index(shard), name)
        found += [data[at : at + size] if at >= 0 else None for at, size in zip(offsets, sizes, strict=True)]
    return found


def test_img2dataset(tmp_path: Path) -> None:
    """Images with captions and facts. Rows whose download failed are only in its Parquet."""
    images = {f"{number:05d}{row:04d}": encoded(draw((number, row), 40, 60)) for number in (0, 1) for row in (0, 2)}
    for number in (0, 1):
        samples, table = [], []
        for row in range(3):
            key = f"{number:05d}{row:04d}"
            record = {
                "url": f"https://host/{key}.jpg", "caption": f"poster {key}", "key": key, "status": "success",
                "error_message": None, "width": 40, "height": 60, "original_width": 400, "original_height": 600,
                "exif": "{}", "similarity": float("nan"), "sha256": None,
            }  # fmt: skip
            if key in images:
                record["sha256"] = hashlib.sha256(images[key]).hexdigest()
                text = json.dumps(record, indent=4)  # img2dataset's form, with NaN
                samples.append({"__key__": key, "jpg": images[key], "txt": record["caption"], "json": text.encode()})
            else:
                record |= {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found"}
            table.append(record)
        write(tmp_path / f"{number:05d}.tar", samples)
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{number:05d}.parquet")
        (tmp_path / f"{number:05d}_stats.json").write_text('{"count": 3, "successes": 2}')
    manifest = index(tmp_path)
    assert manifest.genres == [] and manifest.source["other_members"] == "4 txt" and manifest.source["rejected"] == {}
    reader = ShardReader.of_split(tmp_path, "train")
    assert reader.sample_ids() == list(images)
    for number, (key, image) in enumerate(images.items()):
        assert reader.image_bytes(number) == image and reader.key(number) == key
    assert field(reader, "txt") == [f"poster {key}".encode() for key in images]
    records = [json.loads(data or b"") for data in field(reader, "json")]
    assert [record["sha256"] for record in records] == [hashlib.sha256(image).hexdigest() for image in images.values()]
    assert field(reader, "cls") == [None] * 4


def test_timms_imagenet(tmp_path: Path) -> None:
    """Names such as imagenet1k-train-0000.tar, a class in .cls, and facts in the JSON."""
    classes = {"train": [3, 0, 1], "validation": [1, 3]}
    for split, numbers in classes.items():
        write(
            tmp_path / f"imagenet1k-{split}-0000.tar",
            [
                {
                    "__key__": f"n0144{number}_{row}",
                    "jpg": encoded(draw((split, row), 30, 40)),
                    "cls": number,
                    "json": {"label": number, "filename": f"n0144{number}/{row}.JPEG", "width": 30, "height": 40},
                }
                for row, number in enumerate(numbers)
            ],
        )
    manifest = index(tmp_path)
    assert manifest.source["classes"] is True and manifest.genres == ["0", "1", "2", "3"]
    assert [(s.name, s.split) for s in manifest.shards] == [
        ("imagenet1k-train-0000.tar", "train"),
        ("imagenet1k-validation-0000.tar", "val"),
    ]
    for split, name in (("train", "train"), ("validation", "val")):
        targets = ShardReader.of_split(tmp_path, name).targets
        assert targets.sum(axis=1).tolist() == [1] * len(classes[split])
        assert targets.argmax(axis=1).tolist() == classes[split]
    by_member = {shard.name: shard.genre_counts for shard in manifest.shards}
    manifest = index(tmp_path, genre_field="label")
    assert {shard.name: shard.genre_counts for shard in manifest.shards} == by_member


def test_webdatasets_examples(tmp_path: Path) -> None:
    """Keys from 0 in every tar, several kinds of members, and folders in the keys."""
    mask = encoded(draw("mask", 30, 40), "PNG")
    for number in range(2):
        write(
            tmp_path / f"train-{number:06d}.tar",
            [
                {
                    "__key__": f"images/sample{row:06d}",
                    "png": encoded(draw((number, row), 30, 40), "PNG"),
                    "cls": row,
                    "npy": np.arange(row + 1),
                    "seg.png": mask,
                    "txt": f"text {number} {row}",
                }
                for row in range(3)
            ],
        )
    manifest = index(tmp_path)
    assert manifest.genres == ["0", "1", "2"]
    assert manifest.source["other_members"] == "6 cls, 6 npy, 6 txt, 6 seg.png"
    reader = ShardReader.of_split(tmp_path, "train")
    assert reader.sample_ids() == [f"train-{n:06d}/images/sample{row:06d}" for n in range(2) for row in range(3)]
    assert {reader.key(number) for number in range(6)} == {f"images/sample{row:06d}" for row in range(3)}
    assert field(reader, "txt") == [f"text {n} {row}".encode() for n in range(2) for row in range(3)]
    assert field(reader, "seg.png") == [mask] * 6
    assert [np.load(io.BytesIO(data or b"")).size for data in field(reader, "npy")] == [1, 2, 3] * 2
    ours = ShardSet(tmp_path)
    pattern = str(tmp_path / "train-{000000..000001}.tar")
    theirs = webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("png", "cls")
    for (picture, genres), (image, number) in zip(ours, theirs, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(image)) and genres == [str(number)]


@pytest.mark.parametrize("opened", [False, True])
def test_a_loader_reads_classes_and_other_members(tmp_path: Path, opened: bool) -> None:
    for number in range(2):
        samples = [
            {
                "__key__": f"{row:06d}",
                "jpg": encoded(draw((number, row), 30, 40)),
                "cls": (row + number) % 3,
                "npy": np.array([number, row]),
                "txt": f"{number}/{row}",
            }
            for row in range(6)
        ]
        write(tmp_path / f"train-{number}.tar", samples)
    index(tmp_path)
    fields: dict[str, Any] = {"txt": bytes.decode, "npy": lambda data: np.load(io.BytesIO(data)).tolist()}
    place = ShardSet(tmp_path) if opened else tmp_path
    seen = []
    with ShardLoader(place, batch_size=4, fields=fields, transform=EvalTransform(image_size=32)) as loader:
        for batch in loader:
            assert batch.targets is not None and batch.targets.dtype == torch.int64
            for text, pair, target in zip(
                batch.fields["txt"], batch.fields["npy"], batch.targets.tolist(), strict=True
            ):
                assert text == f"{pair[0]}/{pair[1]}" and target == sum(pair) % 3
                seen.append(text)
    assert sorted(seen) == sorted(f"{number}/{row}" for number in range(2) for row in range(6))


def test_several_formats_of_images_in_a_set(tmp_path: Path) -> None:
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
    samples = [
        {"__key__": ending, ending: encoded(draw(ending, 20, 30), kind), "cls": number}
        for number, (ending, kind) in enumerate(kinds.items())
    ]
    write(tmp_path / "a.tar", samples)
    index(tmp_path)
    shards = ShardSet(tmp_path)
    for number, ((picture, genres), (ending, kind)) in enumerate(zip(shards, kinds.items(), strict=True)):
        image = Image.open(io.BytesIO(encoded(draw(ending, 20, 30), kind))).convert("RGB")
        assert np.abs(np.asarray(picture, np.int16) - np.asarray(image, np.int16)).max() <= 2
        assert genres == [str(number)]


#: --genre-field, timm's target key and format, and the records of the samples.
TIMM: dict[str, tuple[Any, Any, str, list[dict[str, Any]]]] = {
    "cls": (None, None, "indices", [{"cls": n} for n in (2, 0, 5)]),
    "class": ("label", "label", "indices", [{"json": {"label": n}} for n in (2, 0, 5)]),
    "class in a nested field": ("a/label", "a/label", "indices", [{"json": {"a": {"label": n}}} for n in (2, 0, 5)]),
    "multi-hot": ("t", "t", "multihot", [{"json": {"t": t}} for t in ([0, 1, 1], [0, 0, 0], [1, 0, 0])]),
    "indices": ("t", "t", "indices", [{"json": {"t": t}} for t in ([4], [0, 1, 2], [3, 1])]),
    "indices of objects": (
        "o/c", "o/c", "indices", [{"json": {"o": [{"c": c} for c in cs]}} for cs in ([1, 1], [0, 2, 0], [3])],
    ),
    "fields": (
        "red,green", "red,green", "indices", [{"json": {"red": r, "green": g}} for r, g in ((1, 0), (0, 0), (2, 1))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIMM)
def test_targets_are_those_of_timms_reader(tmp_path: Path, kind: str) -> None:
    """Compared as multi-hot vectors."""
    pytest.importorskip("timm.data.readers.targets", reason="this timm has no targets of several labels")
    from timm.data.readers.reader_wds import ReaderWds

    name, key, target_format, records = TIMM[kind]
    samples = [{"__key__": f"s{row}", "jpg": encoded(draw(row, 20, 30)), **r} for row, r in enumerate(records)]
    write(tmp_path / "a.tar", samples)
    manifest = index(tmp_path, genre_field=name)
    theirs = ReaderWds(
        str(tmp_path), split="a.tar", num_samples=len(samples), target_key=key, target_format=target_format
    )
    expected = np.zeros((len(samples), len(manifest.genres)), np.uint8)
    for row, (_, target) in enumerate(theirs):
        if target_format == "multihot":
            expected[row] = target
        else:
            expected[row, target] = 1
    assert ShardReader.of_split(tmp_path, "train").targets.tolist() == expected.tolist()


def test_a_sample_that_timm_skips_is_a_row(tmp_path: Path) -> None:
    """timm leaves out classes below 0 without a word."""
    records = [{"json": {"label": n}} for n in (1, -1, 0)]
    write(tmp_path / "a.tar", [{"__key__": f"s{n}", "jpg": encoded(draw(n)), **r} for n, r in enumerate(records)])
    index(tmp_path, genre_field="label")
    (row,) = rows_of(tmp_path / "rejected.csv")
    assert row[:2] == ["s1", "bad class"]
