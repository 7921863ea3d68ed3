"""What a text means in Python: a file, a folder, a pattern or a shard set."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from failing import fails

import toolkit


@pytest.fixture(scope="module")
def model(model_folder: Path) -> toolkit.Predictor:
    return toolkit.load_model(model_folder, device="cpu")


@pytest.fixture
def folder(drawn_posters: Path, tmp_path: Path) -> Path:
    for name in ("a.jpg", "sub/b.jpg", "c[1].jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(drawn_posters / "images" / "p00000.jpg", tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["a.jpg", "c[1].jpg", "sub/b.jpg"]),
        ("*", ["a.jpg", "c[1].jpg"]),
        ("**/*.jpg", ["a.jpg", "c[1].jpg", "sub/b.jpg"]),
        ("[ab].jpg", ["a.jpg"]),
        ("c[1].jpg", ["c[1].jpg"]),
        ("a.jpg", ["a.jpg"]),
        ("notes.txt", ["notes.txt"]),
    ],
)
def test_files(text: str, names: list[str], model: toolkit.Predictor, folder: Path):
    found = model.predict(folder / text if text else str(folder))
    assert found["image"].tolist() == [str(folder / name) for name in names] and found["error"].isna().all()


def test_a_missing_file_has_a_row_and_a_pattern_without_files_a_line(model: toolkit.Predictor, folder: Path):
    error = model.predict(folder / "d[1].jpg")["error"][0]
    assert error == "No such file or directory; did you mean 'c[1].jpg'?"
    assert model.predict(folder / "none" / "a.jpg")["error"][0] == "No such file or directory"
    with fails("images-none", folder / "*.png"):
        model.predict(folder / "*.png")
    with fails("images-none", folder / "empty"):
        (folder / "empty").mkdir()
        model.predict(folder / "empty")


def test_a_list_has_files_folders_and_patterns(model: toolkit.Predictor, folder: Path):
    found = model.predict([folder / "sub", str(folder / "[ac]*.jpg"), folder / "a.jpg"])
    names = ["sub/b.jpg", "a.jpg", "c[1].jpg", "a.jpg"]
    assert found["image"].tolist() == [str(folder / name) for name in names] and found["error"].isna().all()


def test_addresses_that_are_not_read(model: toolkit.Predictor):
    for images in ("ftp://host/a.jpg", ["s3://bucket/a.jpg"]):
        with fails("url-refused", "is not read: name a file, or an http:// or https:// URL"):
            model.predict(images)
    with fails("url-refused", "password"):
        model.predict("https://me:secret@host/a")


def test_a_shard_set(model: toolkit.Predictor, drawn_set: Path):
    shards = toolkit.open_shards(drawn_set)
    found = model.predict(shards, embeddings=True, batch_size=8)
    assert list(found.columns) == ["id", "genres", *model.genres, "error", "embedding"]
    assert found["id"].tolist() == shards.ids
    pd.testing.assert_frame_equal(found, model.predict(str(drawn_set), embeddings=True, batch_size=8))
    one = model.predict(shards[3][0], embeddings=True)
    genres = list(model.genres)
    np.testing.assert_allclose(one[genres].iloc[0], found[genres].iloc[3], atol=1e-3)  # pixels differ by rounding
    val = model.predict(toolkit.open_shards(drawn_set, "val"))
    assert val["id"].tolist() == toolkit.open_shards(drawn_set, "val").ids
