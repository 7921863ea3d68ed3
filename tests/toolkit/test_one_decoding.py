"""A picture has the same pixels by every way in: loose file, Python, a shard of its bytes, a crop of training."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pixel_tools import picture

from shards.build.index.tars import IndexOptions, index_folder
from shards.inputs.images import ANY, decode, upright_size
from shards.inputs.jpeg_header import ORIENTATION
from toolkit.cli.main import main
from toolkit.config.schema import DataConfig
from toolkit.data.loader.faults import KEEP_ERRORS, FaultPolicy
from toolkit.data.loader.loader import Loader
from toolkit.data.sampling.plan import EvalPlan, MicroBatch
from toolkit.data.transforms.batch_transform import RawTransform, eval_transforms, train_transforms
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.prediction.api import load_model

CPU = torch.device("cpu")
PLAIN = Preprocessing(32, 0.9, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SIZE = (90, 140)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int, kind: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture(*SIZE), kind, exif=exif, **options)


def pictures() -> dict[str, bytes]:
    """A picture of every kind that has once been decoded in two ways."""
    image = picture(*SIZE)
    ramp = Image.linear_gradient("L").resize(SIZE)
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    found = {f"exif {o}.jpg": turned(o) for o in range(1, 9)}
    found |= {f"exif {o}.{kind.lower()}": turned(o, kind) for o in (3, 6, 8) for kind in ("PNG", "WEBP")}
    return found | {
        "plain.JPG": encoded(image),
        "progressive.jpe": encoded(image, progressive=True),
        "exif 5 progressive.jfif": turned(5, progressive=True),
        "grey.jpg": encoded(image.convert("L")),
        "cmyk.jpg": encoded(image.convert("CMYK")),
        "alpha.png": encoded(Image.merge("RGBA", [*image.split(), ramp]), "PNG"),
        "grey alpha.png": encoded(Image.merge("LA", [image.convert("L"), ramp]), "PNG"),
        "palette.png": encoded(image.quantize(16), "PNG", transparency=3),
        "key.png": encoded(image, "PNG", transparency=image.getpixel((5, 5))),
        "deep.png": encoded(deep, "PNG"),
        "bits.png": encoded(image.convert("1"), "PNG"),
        "poster.webp": encoded(image, "WEBP"),
        "poster.avif": encoded(image, "AVIF", speed=10),
        "poster.gif": encoded(image, "GIF"),
        "poster.bmp": encoded(image, "BMP"),
        "poster.TIFF": encoded(image, "TIFF"),
    }


PICTURES = pictures()


class Pictures:
    """Pictures as a shard's reader has them; ``stored`` sizes are those of an index that took no heed of EXIF."""

    def __init__(self, files: Sequence[bytes], stored: bool = False) -> None:
        self.files = files
        sizes = [Image.open(io.BytesIO(f)).size if stored else upright_size(f) for f in files]
        self.all_sizes = np.array(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def sizes(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.all_sizes[indices, 0], self.all_sizes[indices, 1]

    def read(self, index: int) -> memoryview:
        return memoryview(bytearray(self.files[index]))

    def where(self, index: int) -> str:
        return f"picture {index}"


def evaluated(source: Pictures, geometry: str = "cpu", preprocessing: Preprocessing = PLAIN) -> np.ndarray:
    transforms = eval_transforms(source, preprocessing, geometry, CPU)  # type: ignore[arg-type]
    with Loader(source, 2, 2) as loader:
        batches = [
            b.images.float().numpy().copy()
            for b in loader.batches(EvalPlan(len(source), 8).micro_batches(0, 1), transforms)
        ]
    return np.concatenate(batches)


def trained(source: Pictures, geometry: str) -> np.ndarray:
    config = DataConfig(image_size=32, geometry=geometry)  # type: ignore[arg-type]
    transforms = train_transforms(source, config, 0, 3, CPU)  # type: ignore[arg-type]
    every = np.arange(len(source))
    with Loader(source, 2, 2) as loader:
        (batch,) = loader.batches([MicroBatch(every, np.ones(len(source), bool))], transforms)
        return batch.images.float().numpy().copy()


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_loose_file_and_a_shards_sample_are_the_same_pixels(stored: bool, fit: str) -> None:
    ours = Preprocessing(32, 0.9, PLAIN.mean, PLAIN.std, fit)
    source = Pictures(list(PICTURES.values()), stored)
    loose = np.stack([RawTransform(ours)(data) for data in PICTURES.values()])
    together = evaluated(source, preprocessing=ours)
    for number, name in enumerate(PICTURES):
        assert np.array_equal(loose[number], together[number]), name
        # and those of `posters shards build`, by Pillow's resize of what it decodes
        reference = ours.square(decode(PICTURES[name], ANY)).astype(float)
        assert np.abs(loose[number] - reference).mean() < 1.5, name
    on_device = evaluated(source, "device", ours)
    assert np.abs(on_device - together).max() <= 3


@pytest.mark.parametrize("geometry", ["cpu", "device"])
def test_crops_of_training_are_of_the_upright_picture(geometry: str) -> None:
    upright = Pictures([encoded(decode(data, ANY), "PNG") for data in PICTURES.values()])
    expected = trained(upright, geometry)
    for stored in (False, True):
        found = trained(Pictures(list(PICTURES.values()), stored), geometry)
        for number, name in enumerate(PICTURES):
            # An old index: the crop of another geometry's kernel, a grey level apart
            assert np.abs(found[number] - expected[number]).max() <= (3 if stored else 2), name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 8), st.integers(8, 80), st.integers(8, 80), st.sampled_from(["JPEG", "PNG", "WEBP"]), st.booleans()
)
def test_any_size_and_orientation(orientation: int, width: int, height: int, kind: str, stored: bool) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(picture(width, height), kind, exif=exif)
    assert np.array_equal(evaluated(Pictures([data], stored))[0], RawTransform(PLAIN)(data))


def test_another_size_is_no_turn() -> None:
    source = Pictures([PICTURES["exif 6.jpg"]])
    source.all_sizes[:] = 80, 140
    with Loader(source, 1, 1, policy=KEEP_ERRORS) as loader:
        transforms = eval_transforms(source, PLAIN, "cpu", CPU)  # type: ignore[arg-type]
        (batch,) = loader.batches(EvalPlan(1, 1).micro_batches(0, 1), transforms)
    assert batch.errors == {0: "the image is 140x90, but its index has 80x140"}


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("geometry", ["cpu", "device"])
def test_a_jpeg_cut_and_closed_is_damage(how: dict[str, Any], geometry: str) -> None:
    whole = encoded(picture(*SIZE), **how)
    cut = whole[: len(whole) // 2] + b"\xff\xd9"
    with pytest.raises(ValueError, match="truncated"):
        RawTransform(PLAIN)(cut)
    # Below what the model is shown, too: nothing vouches for a loose file
    with pytest.raises(ValueError, match="truncated"):
        RawTransform(Preprocessing(32, 0.5, PLAIN.mean, PLAIN.std))(whole[: len(whole) * 97 // 100] + b"\xff\xd9")
    source = Pictures([whole, whole, whole])
    source.files = [whole, cut, whole]
    with Loader(source, 2, 2, policy=FaultPolicy("mask", 1.0)) as loader:
        transforms = eval_transforms(source, PLAIN, geometry, CPU)  # type: ignore[arg-type]
        (batch,) = loader.batches(EvalPlan(3, 3).micro_batches(0, 1), transforms)
        assert list(batch.errors) == [1] and batch.errors[1].startswith("truncated")


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (33_000, 40)])
def test_a_ribbon_needs_little_memory(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "teal")
    ours = Preprocessing(224, 0.875, PLAIN.mean, PLAIN.std)
    square = RawTransform(ours)(encoded(image, "PNG"))
    assert square.shape == (224, 224, 3) and (square == (0, 128, 128)).all()
    assert np.array_equal(ours.square(image), square)


def test_the_part_of_a_large_resize_is_the_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(700, 60)
    whole = PLAIN.square(image)
    monkeypatch.setattr("toolkit.data.transforms.preprocessing.MOST_RESIZED", 100)
    assert np.abs(PLAIN.square(image).astype(int) - whole).max() <= 1


def probabilities(path: Path) -> dict[str, list[float]]:
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    genres = [name for name in rows[0] if name not in ("image", "id", "genres", "error")]
    return {Path(row.get("image") or row["id"]).stem: [float(row[g]) for g in genres] for row in rows}


def test_predictions_of_a_folder_its_tar_and_python_agree(model_folder: Path, tmp_path: Path) -> None:
    folder, tars = tmp_path / "loose", tmp_path / "tars"
    folder.mkdir()
    tars.mkdir()
    with tarfile.open(tars / "test-0.tar", "w") as archive:
        for number, (name, data) in enumerate(PICTURES.items()):
            ending = name.rpartition(".")[2]
            (folder / f"{number:03d}.{ending}").write_bytes(data)
            if ending.lower() in ("jpg", "png", "webp"):
                info = tarfile.TarInfo(f"{number:03d}.{ending.lower()}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    index_folder(IndexOptions(tars, workers=1))
    common = ["--model", str(model_folder), "--format", "csv"]
    assert main(["predict", *common, "-d", str(folder), "--out", str(tmp_path / "a")]) == 0
    assert main(["predict", *common, "--shards", str(tars), "--ignore-labels", "--out", str(tmp_path / "b")]) == 0
    loose, packed = (probabilities(next((tmp_path / part).glob("*.csv"))) for part in ("a", "b"))
    assert len(loose) == len(PICTURES) and len(packed) > 15
    for name, row in packed.items():
        assert np.allclose(row, loose[name], atol=1e-6), name
    files = sorted(folder.iterdir())
    frame = load_model(model_folder, device="cpu").predict([str(file) for file in files])
    genres = [name for name in frame.columns if name not in ("image", "genres", "error")]
    for row, file in zip(frame[genres].to_numpy(), files, strict=True):
        assert np.allclose(row, loose[file.stem], atol=1e-6), file
