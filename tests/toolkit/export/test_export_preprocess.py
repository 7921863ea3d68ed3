"""The evaluation transform in ONNX against Pillow: the same geometry to the pixel, and hardly another grey level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.export.onnx_preprocessing import MIN_OPSET, NORMALISED, images_info, preprocess_nodes
from toolkit.inference.onnx_runtime import open_exported, run_session

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Sides that round in all ways: odd and even spare, halves on both sides of an even number, squares, banners.
SIZES = [(200, 300), (300, 200), (182, 268), (97, 64), (64, 97), (51, 53), (32, 32), (33, 47), (400, 90), (20, 31)]


def graph_only(preprocessing: Preprocessing) -> Any:
    """These nodes as an ONNX model of their own: images → normalised."""
    nodes, constants = preprocess_nodes(preprocessing)
    size = preprocessing.image_size
    graph = helper.make_graph(
        nodes,
        "preprocess",
        [images_info()],
        [helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, ["batch", 3, size, size])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", MIN_OPSET)], ir_version=10)


def grey_levels(preprocessing: Preprocessing, image: Image.Image) -> np.ndarray:
    """(S, S, 3) what the graph makes of an image, before normalisation."""
    session = open_exported(graph_only(preprocessing).SerializeToString(), torch.device("cpu"))
    given = run_session(session, np.asarray(image)[None])[NORMALISED][0].transpose(1, 2, 0)
    return given * np.array(STD) * 255 + np.array(MEAN) * 255


@pytest.fixture(scope="module")
def pictures(posters: Path) -> list[Image.Image]:
    """Drawn posters, with grain and sharp edges, in many sizes; one is noise."""
    found = []
    for number, size in enumerate(SIZES):
        with Image.open(posters / "images" / f"p{number:05d}.jpg") as image:
            found.append(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    noise = np.random.default_rng(0).integers(0, 256, (75, 110, 3), dtype=np.uint8)
    return [*found, Image.fromarray(noise)]


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize(("size", "crop_pct"), [(32, 1.0), (32, 0.875), (61, 0.95), (224, 0.875)])
def test_pixels_are_pillows(pictures: list[Image.Image], fit: str, size: int, crop_pct: float):
    preprocessing = Preprocessing(size, crop_pct, MEAN, STD, fit)
    onnx.checker.check_model(graph_only(preprocessing), full_check=True)
    for image in pictures:
        apart = np.abs(grey_levels(preprocessing, image) - preprocessing.square(image))
        # Pillow 13 may do the vertical pass first: then up to a fourth of the pixels round the other way.
        assert apart.max() < 2.01, image.size
        assert apart.mean() < 0.3, image.size
        assert np.abs(apart - apart.round()).max() < 1e-3  # whole grey levels


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_picture_of_the_right_size_keeps_its_pixels(fit: str):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    apart = np.abs(grey_levels(Preprocessing(48, 1.0, MEAN, STD, fit), image) - np.asarray(image))
    assert apart.max() < 1e-3


def test_the_corner_is_pillows_for_every_size():
    """A shift of one pixel would be a step of 8 on this ramp."""
    preprocessing = Preprocessing(16, 0.8, MEAN, STD, "crop")
    for side in range(20, 61):
        for shape in ((20, side), (side, 20)):
            ramp = np.add.outer(np.arange(shape[0]) * 5 % 251, np.arange(shape[1]) * 3 % 241).clip(0, 255)
            image = Image.fromarray(np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8))
            apart = np.abs(grey_levels(preprocessing, image) - preprocessing.square(image))
            assert apart.max() < 2.01, shape


def test_normalised_is_what_the_network_is_given():
    preprocessing = Preprocessing(24, 1.0, MEAN, STD, "crop")
    image = np.random.default_rng(2).integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
    session = open_exported(graph_only(preprocessing).SerializeToString(), torch.device("cpu"))
    wanted = preprocessing.normalize(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(run_session(session, image)[NORMALISED], wanted, atol=1e-6)
