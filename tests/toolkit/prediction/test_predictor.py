"""``toolkit.load_model(folder).predict(images)``: any kind of image, in order, the same numbers as the command's."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from failing import fails
from PIL import Image
from toolkit_helpers import ROOT, make_model_folder, some_decisions

import toolkit
from shards.dataset.labels import LabelSet
from shards.errors import UserError
from shards.storage.files import sha256_file
from toolkit.cli.main import main
from toolkit.distributed.collectives import make_accelerator
from toolkit.models.heads import HeadSpec
from toolkit.prediction.files import predict_files


@pytest.fixture(scope="module")
def folder(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictor") / "model"
    return make_model_folder(
        path, labels, HeadSpec("levels", (), 0.0), decisions=some_decisions(len(labels)), fit="stretch"
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> toolkit.Predictor:
    return toolkit.load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def paths(posters: Path) -> list[Path]:
    return [posters / "images" / f"p{number:05d}.jpg" for number in range(5)]


def test_the_same_numbers_as_the_command(model: toolkit.Predictor, paths: list[Path]) -> None:
    found = model.predict(paths, batch_size=2)
    expected = predict_files(model.folder, paths, make_accelerator(), batch_size=2)
    assert list(found.columns) == ["image", "genres", *model.genres, "error"]
    assert found["image"].tolist() == [str(path) for path in paths]
    genres = list(model.genres)
    for row, probabilities in zip(found.to_dict("records"), expected.probabilities, strict=True):
        np.testing.assert_allclose([row[g] for g in genres], probabilities, rtol=1e-6)
        assert row["genres"] == [g for g in genres if row[g] >= model.thresholds[g]]
        assert row["error"] is None


def test_all_kinds_of_images_at_once(model: toolkit.Predictor, paths: list[Path]) -> None:
    with Image.open(paths[0]) as image:
        picture = image.convert("RGB")
    pixels = np.asarray(picture)
    found = model.predict([str(paths[0]), paths[0].read_bytes(), picture, pixels, pixels[..., 0]])
    assert found["image"].tolist() == [str(paths[0]), "1", "2", "3", "4"]
    values = found[list(model.genres)].to_numpy()
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)
    np.testing.assert_allclose(values[2:4], values[[0, 0]], atol=2e-3)  # another resize, a grey level apart
    assert np.abs(values[4] - values[0]).max() > 1e-4  # grey is another picture
    for one in (paths[0], str(paths[0]), picture, pixels):  # a single image needs no list
        assert len(model.predict(one)) == 1
    assert len(model.predict(np.stack([pixels, pixels]))) == 2
    assert model.predict(iter([])).empty and "Drama" in model.predict([]).columns


def test_what_cannot_be_read_is_a_row(model: toolkit.Predictor, posters: Path, paths: list[Path]) -> None:
    bad = [posters / "images" / "bad_truncated.jpg", Path("no-such.jpg"), np.zeros((4, 4), np.float32), 7]
    found = model.predict([paths[0], *bad, paths[1]], embeddings=True)  # type: ignore[list-item]
    errors = found["error"].tolist()
    assert errors[0] is None and errors[5] is None
    for error, word in zip(errors[1:5], ("truncated", "No such file", "uint8", "int"), strict=True):
        assert word in error
    assert found["genres"][1] == [] and found.loc[1:4, list(model.genres)].isna().all(axis=None)
    assert found["embedding"][1] is None and found["embedding"][0].shape == (model.model.num_features,)
    assert found["image"].tolist()[1:4] == [str(bad[0]), "no-such.jpg", "3"]
    np.testing.assert_array_equal(found.loc[[0, 5], list(model.genres)], model.predict(paths[:2])[list(model.genres)])


def test_any_array_and_any_open_file(model: toolkit.Predictor, paths: list[Path]) -> None:
    pixels = np.asarray(Image.open(paths[0]).convert("RGB"))
    solid = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    with open(paths[0], "rb") as stream, open(paths[1], "rb") as alone:
        alike: list[Any] = [pixels, solid, pixels[..., :1], pixels[..., 0], stream, io.BytesIO(paths[0].read_bytes())]
        found = model.predict([*alike, bytearray(paths[0].read_bytes())], batch_size=4)
        assert len(model.predict(alone)) == len(model.predict(bytearray(paths[0].read_bytes()))) == 1
    assert found["error"].isna().all()
    values = found[list(model.genres)].to_numpy()
    np.testing.assert_allclose(values[[1, 3, 5, 6]], values[[0, 2, 4, 4]], rtol=1e-6)
    np.testing.assert_array_equal(model.predict(np.array([str(p) for p in paths]))["image"], list(map(str, paths)))
    assert model.preprocess([]).shape == (0, 3, 32, 32)


class BadPath(os.PathLike[str]):
    def __fspath__(self) -> str:
        raise TypeError("no path")


def test_one_bad_image_is_one_row(model: toolkit.Predictor, paths: list[Path]) -> None:
    closed = io.BytesIO(b"")
    closed.close()
    gone = Image.open(paths[0])
    gone.close()
    scans = io.BytesIO()
    Image.new("RGB", (64, 64)).save(scans, "JPEG", progressive=True)
    whole_scans = scans.getvalue()
    last = whole_scans[whole_scans.rindex(b"\xff\xda") : -2]
    bad: dict[str, Any] = {
        "in 1[0-9]+ scans, over 100": Image.open(io.BytesIO(whole_scans[:-2] + 100 * last + b"\xff\xd9")),
        "truncated": Image.open(io.BytesIO(whole_scans[: whole_scans.rindex(b"\xff\xda")] + b"\xff\xd9")),
        "No such file|not allowed": "caf\udce9.jpg",
        "not allowed": "\ud800.jpg",
        "TypeError: no path": BadPath(),
        "empty array": np.zeros((0, 5, 3), np.uint8),
        "an empty array of shape": np.zeros((5, 0), np.uint8),
        "pixels must be uint8": np.zeros((4, 4, 3), np.float32),
        "not bool": np.zeros((4, 4), bool),
        "not uint16": np.zeros((4, 4), np.uint16),
        r"\(4, 4, 2\)": np.zeros((4, 4, 2), np.uint8),
        r"\(4,\)": np.zeros(4, np.uint8),
        "0x5 pixels": Image.new("RGB", (0, 5)),
        "5x0 pixels": Image.new("L", (5, 0)),
        "closed": closed,
        "read.. returned str": io.StringIO("text"),
        "ValueError|closed|seek": gone,
        "not an image": b"",
        "not NoneType": None,
        "not Tensor": torch.zeros(3, 4, 4),
        "null byte|null character": "a\0b",
        "No such file": Path("none.jpg"),
        "directory": "",
    }
    found = model.predict([paths[0], *bad.values(), paths[1]])
    whole = model.predict(paths[:2])
    genres = list(model.genres)
    np.testing.assert_allclose(found[genres].to_numpy()[[0, -1]], whole[genres], rtol=1e-6)
    for words, error, names in zip(bad, found["error"][1:-1], found["genres"][1:-1], strict=True):
        assert error is not None and re.search(words, error) and "\n" not in error, (words, error)
        assert names == []
    assert found.loc[1 : len(bad), genres].isna().all(axis=None)
    assert {r"caf\xe9.jpg", r"\ud800.jpg"} < set(found["image"])  # text that any file can hold


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": "0.5"},
        {"threshold": True},
        {"threshold": float("nan")},
        {"threshold": [0.5]},
        {"threshold": {"Drama": 2}},
        {"threshold": {"Drama": "0.5"}},
        {"threshold": {"": 0.5, "Drama": True}},
        {"top_k": 0},
        {"top_k": 99},
        {"top_k": 1.5},
        {"top_k": True},
        {"batch_size": 2.5},
        {"batch_size": "8"},
        {"batch_size": None},
        {"tta": "flop"},
        {"tta": True},
        {"tta": ["flip"]},
    ],
)
def test_wrong_options_are_one_line(model: toolkit.Predictor, paths: list[Path], options: dict[str, Any]) -> None:
    (name, value), *_ = options.items()
    with fails("option-value", name, repr(list(value.values())[-1] if isinstance(value, dict) else value)):
        model.predict(paths, **options)
    assert len(model.predict(paths[0], batch_size=10**12, threshold=np.float32(0.5))) == 1


@pytest.mark.parametrize("images", [7, None, {"a.jpg": 1}, pd.DataFrame({"path": ["a.jpg"]}), 0.5])
def test_what_holds_no_images_is_one_line(model: toolkit.Predictor, images: Any) -> None:
    with pytest.raises(UserError, match="images must be an image or a list of images, not"):
        model.predict(images)


def test_a_genre_named_like_a_column_has_its_own(tmp_path: Path, paths: list[Path]) -> None:
    genres = ("image", "genre:image", "genre:genre:image", "Error", "id", "embedding", "Drama", "genre:Drama")
    folder = make_model_folder(tmp_path / "m", LabelSet(genres), HeadSpec("linear", (), 0.0))
    found = toolkit.load_model(folder, device="cpu").predict(paths[:2], embeddings=True, threshold=0)
    assert list(found.columns) == [
        "image", "genres", "genre:genre:genre:image", "genre:image", "genre:genre:image", "genre:Error", "genre:id",
        "genre:embedding", "Drama", "genre:Drama", "error", "embedding",
    ]  # fmt: skip
    assert found["genres"][0] == list(genres)


def test_outputs_that_are_not_finite_end_with_a_line(folder: Path, paths: list[Path]) -> None:
    model = toolkit.load_model(folder, device="cpu")
    with torch.no_grad():
        model.model.get_parameter("fc.bias")[1] = torch.inf  # behind the back of what loads it
    with fails("not-finite", "5 of 5", paths[0], paths[2], ", ..."):
        model.predict(paths)


def test_options(model: toolkit.Predictor, paths: list[Path]) -> None:
    genres = list(model.genres)
    plain = model.predict(paths)
    assert all(names == genres for names in model.predict(paths, threshold=0)["genres"])
    assert all(names == [] for names in model.predict(paths, threshold=1)["genres"])
    np.testing.assert_array_equal(model.predict(paths, threshold=1)[genres], plain[genres])
    flipped = [Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT) for path in paths]
    both = model.predict(paths, tta="flip")[genres]
    assert np.abs(both - plain[genres]).to_numpy().max() > 1e-4
    np.testing.assert_allclose(both, model.predict(flipped, tta="flip")[genres], atol=2e-3)
    with pytest.raises(
        UserError, match=r"^threshold must be a number from 0 to 1, a dict of genres .* or None, not 2\.0$"
    ):
        model.predict(paths, threshold=2.0)
    with pytest.raises(UserError, match=r"^threshold must be a number [^\n]*, not Drama 0\.3 dtype: float64$"):
        model.predict(paths, threshold=pd.Series({"Drama": 0.3}))
    with fails("option-value", "threshold: the model has no genre 3"):
        model.predict(paths, threshold={3: 0.5})  # type: ignore[dict-item]
    with fails("option-value", "trust_code must be a list of names of modules, not True"):
        toolkit.load_model(model.folder.path, trust_code=True)  # type: ignore[arg-type]
    with fails("option-value", "batch_size", "-1"):
        model.predict(paths, batch_size=-1)


def test_top_k_and_thresholds_of_some_genres_are_those_of_the_command(
    model: toolkit.Predictor, paths: list[Path], tmp_path: Path
) -> None:
    for given, words in (
        ({"top_k": 2}, ["--top-k=2"]),
        ({"threshold": {"Drama": 0}}, ["-t", "Drama=0"]),
        ({"threshold": {"": 1, "Drama": 0.0}}, ["-t", "1", "-t", "Drama=0"]),
    ):
        found = model.predict(paths, **given)
        command = ["predict", "-m", str(model.folder.path), *map(str, paths), *words, "-o", str(tmp_path / "p.csv")]
        assert main(command) == 0
        listed = pd.read_csv(tmp_path / "p.csv")["genres"].fillna("")
        assert [sorted(names) for names in found["genres"]] == [
            sorted(filter(None, text.split("|"))) for text in listed
        ]
    assert all(names == ["Drama"] for names in found["genres"])
    with fails("option-conflict", "top_k does not use thresholds; remove threshold or top_k"):
        model.predict(paths, threshold=0.5, top_k=1)
    with fails("option-value", "threshold: the model has no genre 'Dramma'; did you mean 'Drama'?"):
        model.predict(paths, threshold={"Dramma": 0.5})
    with fails("option-unknown", "unknown argument 'thresholds'; did you mean 'threshold'?"):
        toolkit.predict(model, paths, thresholds={"Drama": 0.5})


def test_what_loading_says_has_the_keywords_of_python() -> None:
    with fails("option-value", "trust_code takes names of modules such as my_module, not 'a/b'"):
        toolkit.load_model("RUN", trust_code=["a/b"])


def test_pixels_for_ones_own_use(model: toolkit.Predictor, paths: list[Path]) -> None:
    pixels = model.preprocess(paths)
    assert pixels.shape == (5, 3, 32, 32) and pixels.dtype == torch.float32
    with torch.inference_mode():
        logits = model.model(pixels)
    expected = model.predict(paths)[list(model.genres)]
    np.testing.assert_allclose(model.folder.decisions.probabilities(logits.numpy()), expected, rtol=1e-5)
    with fails("image-unreadable", "no-such.jpg"):
        model.preprocess([paths[0], "no-such.jpg"])


def test_bad_folders_are_told_in_a_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder at"):
        toolkit.load_model(tmp_path / "none")
    for wrong in (7, None):
        with fails("option-value", type(wrong).__name__):
            toolkit.load_model(wrong)  # type: ignore[arg-type]
    with fails("device", "'tpu9'", "cpu or cuda"):
        toolkit.load_model(folder, device="tpu9")
    with fails("option-value", "precision", "bf16", "'fp8'"):
        toolkit.load_model(folder, precision="fp8")
    with fails("option-value", "precision", "bf16", "['no']"):
        toolkit.load_model(folder, precision=["no"])  # type: ignore[arg-type]
    changed = shutil.copytree(folder, tmp_path / "changed")
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="damaged or was replaced: its sha256"):
        toolkit.load_model(changed)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    torch.save({"fc.weight": torch.zeros(1)}, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors; pytorch_model\.bin is a pickle"):
        toolkit.load_model(pickled)
    weights_file = pickled / "model.safetensors"
    torch.save({"fc.weight": torch.zeros(1)}, weights_file)  # a pickle under the safe name
    with pytest.raises(UserError, match="damaged or was replaced"):
        toolkit.load_model(pickled)
    config = json.loads((pickled / "config.json").read_text())  # even one whose checksum was put right
    config["poster_toolkit"]["weights_sha256"] = sha256_file(weights_file)
    (pickled / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not a valid safetensors file, but a zip archive"):
        toolkit.load_model(pickled)


def test_a_model_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(repository: str, revision: str | None) -> Path:
        asked.append((repository, revision))
        return folder

    monkeypatch.setattr("toolkit.export.hub.fetch_model", fetch)
    assert toolkit.load_model("hf://user/name").folder.path == folder
    toolkit.load_model("hf://user/name@v2")
    assert asked == [("user/name", None), ("user/name", "v2")]


def test_the_example_of_the_readme(
    folder: Path, posters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block under "From Python" runs as it stands, in a folder that has what it names."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From Python", 1)[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    shutil.copytree(folder, tmp_path / "RUN" / "model")
    for name in ("poster.jpg", "another.jpg"):
        shutil.copy(posters / "images" / "p00000.jpg", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code[1], "README.md", "exec"), names)
    assert isinstance(names["found"], pd.DataFrame) and len(names["found"]) == 2
    assert capsys.readouterr().out
