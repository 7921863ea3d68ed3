"""The check of exported files: what it compares, on which pictures, and that it finds what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from failing import fails
from PIL import Image
from toolkit_helpers import make_model_folder, some_decisions

from shards.dataset.labels import LabelSet
from toolkit.export.onnx_preprocessing import NORMALISED
from toolkit.export.parity_check import Differences, Run, measure, pictures_to_check, require_parity
from toolkit.model_folder.folder import ModelFolder, load_model_folder
from toolkit.models.heads import HeadSpec, backbone_features

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Calibrated; posters are made squares, so that a crop is another picture."""
    path = tmp_path_factory.mktemp("check") / "model"
    make_model_folder(
        path, LabelSet(("a", "b", "c")), HeadSpec("linear", (), 0.0), decisions=some_decisions(3), fit="stretch"
    )
    return load_model_folder(path)


def exact(folder: ModelFolder, seen: list[tuple[int, ...]] | None = None) -> Run:
    """What a perfect file does, and which shapes it was asked for."""

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        if seen is not None:
            seen.append(images.shape)
        with torch.inference_mode():
            logits = folder.model(torch.from_numpy(images)).numpy()
            embedding = backbone_features(folder.model, torch.from_numpy(images)).numpy()
        return {"logits": logits, "probabilities": folder.decisions.probabilities(logits), "embedding": embedding}

    return run


def with_pixels(folder: ModelFolder, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Run:
    """A file with preprocessing, by Pillow; with another filter it is wrong."""
    size = folder.preprocessing.image_size

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        squares = [np.asarray(Image.fromarray(image).resize((size, size), resample)) for image in images]
        pixels = folder.preprocessing.normalize(torch.from_numpy(np.stack(squares))).contiguous().numpy()
        return {**exact(folder)(pixels), NORMALISED: pixels}

    return run


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


def test_batches_of_one_three_and_more(folder: ModelFolder):
    for count in (1, 5, 30):
        seen: list[tuple[int, ...]] = []
        found = measure(exact(folder, seen), folder, pictures(*[(40, 30)] * count), preprocess=False)
        sizes = [shape[0] for shape in seen]
        assert sizes[:3] == [1, 3, 8] and sum(sizes) == max(count, 12)
        assert found.images == count and found.batches >= {1, 3, 8}
        assert found.logits < 1e-5 and found.levels is None
        require_parity(found, preprocess=False, tolerance=None)


def test_with_preprocessing_a_batch_has_one_size(folder: ModelFolder):
    given = pictures((40, 30), (60, 30), (40, 30), (80, 80))
    shapes: list[tuple[int, ...]] = []
    whole = with_pixels(folder)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(images.shape)
        return whole(images)

    found = measure(run, folder, given, preprocess=True)
    assert {shape[1:] for shape in shapes} == {(40, 30, 3), (60, 30, 3), (80, 80, 3)}
    assert found.levels == 0.0 and found.batches >= {1, 3, 8}
    require_parity(found, preprocess=True, tolerance=None)


@pytest.mark.parametrize("output", ["logits", "probabilities", "embedding"])
@pytest.mark.parametrize("row", [0, -1])
def test_one_wrong_number_is_found(folder: ModelFolder, output: str, row: int):
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        given = exact(folder)(images)
        given[output] = given[output].copy()
        if len(images) == 3:
            given[output][row, -1] += 0.5
        return given

    found = measure(run, folder, pictures((40, 30)), preprocess=False)
    with fails("export-differs", f": {output}", "--tolerance"):
        require_parity(found, preprocess=False, tolerance=None)


def test_nan_and_other_shapes_are_never_within_a_tolerance(folder: ModelFolder):
    def nan(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values * np.nan for name, values in exact(folder)(images).items()}

    def narrow(images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[:, :1] for name, values in exact(folder)(images).items()}

    for run in (nan, narrow):
        found = measure(run, folder, pictures((40, 30)), preprocess=False)
        with fails("export-differs", "inf"):
            require_parity(found, preprocess=False, tolerance=1e9)


@pytest.mark.parametrize("resample", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
def test_other_pixels_are_found_though_probabilities_hardly_move(folder: ModelFolder, resample: Image.Resampling):
    found = measure(with_pixels(folder, resample), folder, pictures((80, 70)), preprocess=True)
    assert found.probabilities < 0.05  # an untrained network does not tell
    with fails("export-differs", "Pillow", "--preprocess"):
        require_parity(found, preprocess=True, tolerance=None)


def test_right_pixels_with_a_wrong_network_are_found(folder: ModelFolder):
    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        given = with_pixels(folder)(images)
        return {**given, "logits": given["logits"] + 0.01}

    with fails("export-differs", "logits", "0.01", "--preprocess"):
        require_parity(measure(run, folder, pictures((80, 70)), preprocess=True), preprocess=True, tolerance=None)


def test_the_tolerance_is_the_users(folder: ModelFolder):
    require_parity(Differences(1, logits=0.009), preprocess=False, tolerance=0.01)
    with fails("export-differs", "logits", "0.011", "0.01;"):
        require_parity(Differences(1, logits=0.011), preprocess=False, tolerance=0.01)
    require_parity(Differences(1, logits=9.0, probabilities=0.04), preprocess=True, tolerance=None)
    with fails("export-differs", "probabilities", "0.06", "0.05"):
        require_parity(Differences(1, probabilities=0.06), preprocess=True, tolerance=None)


def test_files_and_folders_to_check_with(posters: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert len(pictures_to_check([posters / "images" / "p00001.jpg"])) == 1
    found = pictures_to_check([posters / "images"])
    assert len(found) <= 64 and all(picture.shape[2] == 3 for picture in found)
    assert "cannot read" in caplog.text and "bad_" in caplog.text  # spoilt files are named and left out
    assert len(pictures_to_check(None)) == 12
    (tmp_path / "text.jpg").write_bytes(b"no image")
    with fails("images-none", "--check", "1 files"):
        pictures_to_check([tmp_path / "text.jpg"])
    (tmp_path / "empty").mkdir()
    with fails("images-none", "--check", ".jpg", ".tiff", tmp_path / "empty"):
        pictures_to_check([tmp_path / "empty"])
