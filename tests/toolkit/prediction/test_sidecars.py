"""``posters predict --sidecar``: a file beside each image, and what is refused before any work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from failing import fails
from toolkit_helpers import make_model_folder

from shards.dataset.index import read_index
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from toolkit.cli.main import main
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec
from toolkit.prediction.sidecars import sidecar_paths


@pytest.fixture
def images(posters: Path, tmp_path: Path) -> Path:
    """Four images in nested folders, one with a name that is not UTF-8; one that cannot be decoded; one other file."""
    folder = tmp_path / "images"
    (folder / "sub" / "deep").mkdir(parents=True)
    names = ("p00000.jpg", "b.v2.PNG", "sub/a.jpg", f"sub/deep/{os.fsdecode(b'caf' + bytes([0xE9]))}.jpg")
    for number, name in enumerate(names):
        shutil.copy(posters / "images" / f"p{number:05d}.jpg", folder / name)
    shutil.copy(posters / "images" / "bad_truncated.jpg", folder / "sub")
    (folder / "notes.md").write_text("mine")
    return folder


def predict(model: Path, *options: object) -> int:
    return main(["predict", "-m", str(model), *map(str, options)])


def sidecars(folder: Path, ending: str) -> list[str]:
    return sorted(os.fsencode(path.relative_to(folder)).decode("latin-1") for path in folder.rglob(f"*{ending}"))


EXPECTED = ["b.v2", "p00000", "sub/a", "sub/deep/caf\xe9"]


def test_text(model_folder: Path, images: Path, labels: LabelSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    assert predict(model_folder, "-d", images, "-o", tmp_path / "a.jsonl", "--top-k", 3) == 0
    assert predict(model_folder, "-d", images, "--sidecar", "txt", "--top-k", 3) == 0
    assert "4 .txt files beside their images" in capsys.readouterr().out
    assert sidecars(images, ".txt") == [f"{name}.txt" for name in EXPECTED]
    rows = {row["image"]: row for row in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())}
    row = rows[str(images / "sub" / "a.jpg")]
    ranked = sorted(labels.genres, key=lambda genre: -row["probabilities"][genre])
    assert (images / "sub" / "a.txt").read_bytes() == (", ".join(ranked[:3]) + "\n").encode()
    assert {path: path.read_bytes() for path in before} == before and not list(images.rglob("*.partial"))


def test_json(model_folder: Path, images: Path, labels: LabelSet):
    assert predict(model_folder, "-i", images / "b.v2.PNG", images / "p00000.jpg", "--sidecar", "json", "-t", "1") == 0
    assert sidecars(images, ".json") == ["b.v2.json", "p00000.json"]
    found = json.loads((images / "b.v2.json").read_text())
    assert found["image"] == "b.v2.PNG" and found["genres"] == []
    assert list(found["probabilities"]) == list(labels.genres) and 0 < found["probabilities"]["Drama"] < 1


def test_genres_with_other_letters_and_none(images: Path, tmp_path: Path):
    genres = LabelSet(("Комедия", "Sci-Fi & more", "\x1b[2J"))
    model = make_model_folder(tmp_path / "model", genres, HeadSpec("linear", (), 0.0))
    assert predict(model, "-i", images / "p00000.jpg", "--sidecar", "txt", "-t", "0") == 0
    assert sorted((images / "p00000.txt").read_text("utf-8").removesuffix("\n").split(", ")) == sorted(genres.genres)
    assert predict(model, "-i", images / "p00000.jpg", "--sidecar", "txt", "-t", "1", "--overwrite") == 0
    assert (images / "p00000.txt").read_text() == "\n"
    assert predict(model, "-i", images / "p00000.jpg", "--sidecar", "json") == 0
    assert "\x1b" not in (images / "p00000.json").read_text()


def test_files_of_others_are_kept(model_folder: Path, images: Path):
    mine = images / "sub" / "a.txt"
    mine.write_text("mine")
    with fails("path-exists", mine, "--overwrite"):
        predict(model_folder, "-d", images, "--sidecar", "txt")
    assert sidecars(images, ".txt") == ["sub/a.txt"] and mine.read_text() == "mine"
    assert predict(model_folder, "-d", images, "--sidecar", "txt", "--overwrite") == 0
    assert mine.read_text() != "mine"
    # our own files are asked for, too
    with fails("path-exists", images / "b.v2.txt", "3 more", "--overwrite"):
        predict(model_folder, "-d", images, "--sidecar", "txt")
    (images / "p00000.json").mkdir()
    with fails("path-exists", images / "p00000.json", "folder"):
        predict(model_folder, "-d", images, "--sidecar", "json", "--overwrite")


def test_two_images_never_share_a_sidecar(model_folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(images / "sub" / "a.jpg", images / "sub" / "a.png")
    with fails("option-conflict", images / "sub" / "a.jpg", images / "sub" / "a.png", "the same sidecar a.txt"):
        predict(model_folder, "-d", images, "--sidecar", "txt", "--overwrite")
    assert not sidecars(images, ".txt")
    # a.jpg and A.png differ here, and not on file systems without upper case; one image twice is one image
    pair = [images / "A.jpg", images / "a.jpg", images / "a.jpg"]
    assert sidecar_paths(pair, "txt", False) == [images / "A.txt", images / "a.txt", images / "a.txt"]
    with fails("option-conflict", images / "a.jpg", images / "a.png"):
        sidecar_paths([*pair, images / "a.png"], "txt", False)
    monkeypatch.setattr("toolkit.prediction.sidecars.place_key", lambda folder: str.casefold)
    with fails("option-conflict", images / "A.jpg", images / "a.jpg"):
        sidecar_paths(pair, "txt", False)


@pytest.mark.parametrize("name", ["sub", ".", ".."])
def test_a_folder_is_not_an_image(images: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(images / "sub")
    with fails("option-value", f"{name} is a folder" if name != "sub" else images / "sub", "--directory"):
        sidecar_paths([images / "p00000.jpg", Path(name) if name != "sub" else images / "sub"], "txt", False)


def test_an_image_is_never_a_sidecar(model_folder: Path, images: Path):
    odd = images / "p00000.txt"
    shutil.copy(images / "p00000.jpg", odd)
    for chosen in ([odd], [images / "p00000.jpg", odd]):
        with fails("option-conflict" if chosen[1:] else "path-exists", odd):
            predict(model_folder, "-i", *chosen, "--sidecar", "txt", "--overwrite")
    assert odd.read_bytes() == (images / "p00000.jpg").read_bytes()


@pytest.mark.parametrize("genre", ["Drama, old", "two\nlines", " space"])
def test_genres_that_the_text_cannot_hold(images: Path, tmp_path: Path, genre: str):
    model = make_model_folder(tmp_path / "model", LabelSet(("Drama", genre)), HeadSpec("linear", (), 0.0))
    with fails("option-conflict", repr(genre), "--sidecar json"):
        predict(model, "-d", images, "--sidecar", "txt")
    assert predict(model, "-d", images, "--sidecar", "json", "--top-k", "2") == 0
    assert sorted(json.loads((images / "p00000.json").read_text())["genres"]) == sorted(("Drama", genre))


def test_options_that_do_not_fit(model_folder: Path, images: Path, shard_set: Path):
    one = ["-i", images / "p00000.jpg"]
    for options, facts in (
        (["--shards", shard_set, "--sidecar", "txt"], ["--shards", "tar files", "--directory"]),
        (["-i", "https://host/a.jpg", "--sidecar", "json"], ["https://host/a.jpg", "--out"]),
        ([*one, "--sidecar", "txt", "--out", images / "x.csv"], ["--out"]),
        ([*one, "--sidecar", "txt", "--format", "json", "--verbose"], ["--format and --verbose"]),
        ([*one, "--overwrite"], ["--overwrite", "--sidecar"]),
    ):
        with fails("option-conflict", *facts):
            predict(model_folder, *options)


def test_nothing_readable_is_a_failure(model_folder: Path, images: Path, caplog: pytest.LogCaptureFixture):
    assert predict(model_folder, "-i", images / "sub" / "bad_truncated.jpg", "--sidecar", "txt") == 1
    assert "truncated" in caplog.text and "no image was predicted" in caplog.text
    assert not sidecars(images, ".txt")


def test_sidecars_of_a_folder_of_several_chunks(model_folder: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.prediction.files.FILES_PER_CHUNK", 2)
    assert predict(model_folder, "-d", images, "--sidecar", "json") == 0
    assert sidecars(images, ".json") == [f"{name}.json" for name in EXPECTED]
    assert len(load_model_folder(model_folder).labels) == len(
        json.loads((images / "p00000.json").read_text())["probabilities"]
    )


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_a_shard_set_can_be_built_from_sidecars(model_folder: Path, posters: Path, tmp_path: Path, kind: str):
    folder = tmp_path / "more"
    (folder / "sub").mkdir(parents=True)
    for number in range(12):
        shutil.copy(posters / "images" / f"p{number:05d}.jpg", folder / ("sub" if number % 2 else ""))
    assert predict(model_folder, "-d", folder, "--sidecar", kind, "--top-k", 3) == 0
    assert predict(model_folder, "-d", folder, "--top-k", 3, "-o", tmp_path / "out.json") == 0
    assert main(["shards", "build", "--images", str(folder), "--out", str(tmp_path / "set"), "--workers", "1"]) == 0
    rows = pd.concat([index_table(path) for path in sorted((tmp_path / "set").glob("*.tar"))])
    genres = Manifest.read(tmp_path / "set").genres
    built = {Path(row["id"]).name: {genres[column] for column in row["labels"]} for _, row in rows.iterrows()}
    found = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert built == {Path(row["image"]).stem: set(row["genres"]) for row in found}


def index_table(tar: Path) -> pd.DataFrame:
    return read_index(tar)[0].to_pandas()
