"""A user's in-painting network: whatever its size and range, the mask is painted; what is no such network is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import fails
from text_tools import FREE, constant_network, copying_network, gradient, one_line_error, save_network, sized

from shards.text.inpaint_model import FillModel
from shards.text.registry import make_fill

onnx = pytest.importorskip("onnx")

COLOUR = (51, 102, 204)
UNIT = tuple(level / 255 for level in COLOUR)


def picture(width: int = 70, height: int = 50) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : 3 * width // 4] = True
    return np.asarray(gradient(width, height)), mask


@pytest.mark.parametrize("inputs", [FREE, sized(32), sized(128)], ids=["free", "smaller", "larger"])
@pytest.mark.parametrize("colour", [UNIT, COLOUR], ids=["0..1", "0..255"])
def test_the_network_paints_the_mask_and_nothing_else(
    tmp_path: Path, inputs: dict[str, tuple[Any, ...]], colour: Sequence[float]
) -> None:
    fill = make_fill("surround", constant_network(tmp_path / "net.onnx", colour, inputs))
    image, mask = picture()
    before = image.copy()
    out = fill(image, mask)
    assert (out[mask] == COLOUR).all() and (out[~mask] == image[~mask]).all()
    assert (image == before).all() and (fill(image, mask) == out).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (64, 64), (65, 71)])
def test_any_size_of_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    fill = FillModel(constant_network(tmp_path / "net.onnx", UNIT))
    image = np.asarray(gradient(*size))
    for mask in (np.zeros(size[::-1], bool), np.ones(size[::-1], bool)):
        out = fill(image, mask)
        assert (out == (COLOUR if mask.any() else image)).all()
        assert not np.shares_memory(out, image)


@pytest.mark.parametrize("inputs", [FREE, sized(64)], ids=["free", "fixed"])
def test_a_network_that_copies_what_is_around_the_mask(tmp_path: Path, inputs: dict[str, tuple[Any, ...]]) -> None:
    fill = FillModel(copying_network(tmp_path / "net.onnx", UNIT, inputs))
    image, mask = picture(64, 64)
    out = fill(image, mask)
    assert np.abs(out[mask].astype(int) - COLOUR).max() <= 1 and (out[~mask] == image[~mask]).all()


def test_inputs_in_another_order_are_told_apart_by_their_channels(tmp_path: Path) -> None:
    swapped = {"mask": FREE["mask"], "image": FREE["image"]}
    image, mask = picture()
    assert (FillModel(constant_network(tmp_path / "net.onnx", UNIT, swapped))(image, mask)[mask] == COLOUR).all()


def test_a_network_that_takes_0_to_255_gets_it(tmp_path: Path) -> None:
    """It gives its input back, less a tenth of white: in 0..1 that would be no grey."""
    path = save_network(tmp_path / "net.onnx", FREE, [("Sub", ["image", "step"], "out")], {"step": np.float32(25.5)})
    image, mask = picture(64, 64)
    expected = np.maximum(image.astype(float) - 25.5, 0)
    assert np.abs(FillModel(path)(image, mask)[mask] - expected[mask]).max() <= 1


def test_a_hole_does_not_shrink_on_its_way_into_a_small_network(tmp_path: Path) -> None:
    """Else the network takes the rest of a letter for its surroundings, and paints it back."""
    fill = FillModel(copying_network(tmp_path / "net.onnx", UNIT, sized(32)))
    image = np.full((256, 256, 3), 250, np.uint8)
    mask = np.zeros((256, 256), bool)
    mask[101:103, 20:230] = True
    out = fill(image, mask)
    assert np.abs(out[mask].astype(int) - COLOUR).mean() < 40


def copied(path: Path, inputs: dict[str, tuple[Any, ...]], kind: str = "FLOAT") -> Path:
    return save_network(path, inputs, [("Identity", ["image"], "out")], {}, kind=kind)


def not_onnx(path: Path) -> Path:
    path.write_bytes(b"<html>404</html>")
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def cut(path: Path) -> Path:
    data = constant_network(path, UNIT).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


IMAGE = ("n", 3, "h", "w")
BAD = {
    "one input": (lambda p: copied(p, {"image": IMAGE}), "takes image"),
    "two images": (lambda p: copied(p, {"image": IMAGE, "mask": IMAGE}), "an image (n, 3, h, w) and a mask"),
    "three inputs": (lambda p: copied(p, {**FREE, "more": (1,)}), "an image (n, 3, h, w) and a mask"),
    "flat image": (lambda p: copied(p, {"image": (3, "h", "w"), "mask": FREE["mask"]}), "an image (n, 3, h, w)"),
    "doubles": (lambda p: copied(p, FREE, "DOUBLE"), "tensor(float)"),
    "bytes": (lambda p: copied(p, FREE, "UINT8"), "tensor(float)"),
    "another shape": (
        lambda p: save_network(p, FREE, [("Transpose", ["image"], "out")], {}),
        "has the shape of its input",
    ),
    "the mask": (lambda p: save_network(p, FREE, [("Identity", ["mask"], "out")], {}), "has the shape of its input"),
    "not finite numbers": (
        lambda p: save_network(p, FREE, [("Mul", ["image", "nan"], "out")], {"nan": np.float32("nan")}),
        "not finite numbers",
    ),
    "infinite": (
        lambda p: save_network(p, FREE, [("Div", ["image", "zero"], "out")], {"zero": np.float32(0)}),
        "not finite numbers",
    ),
    "fails when run": (
        lambda p: save_network(p, FREE, [("Add", ["image", "much"], "out")], {"much": np.zeros(63, np.float32)}),
        "failed on a 64x64 picture",
    ),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_what_is_no_network_for_this_is_one_line(tmp_path: Path, make: Any, words: str) -> None:
    path = make(tmp_path / "net.onnx")
    with fails("not-finite" if words == "not finite numbers" else "model-unfit", path, words):
        make_fill("surround", path)


NO_FILES: dict[str, tuple[Any, str]] = {
    "html": (not_onnx, "cannot be loaded"),
    "empty": (empty, "cannot be loaded"),
    "cut": (cut, "cannot be loaded"),
    "missing": (lambda p: p, "not found"),
    "a folder": (lambda p: p.mkdir() or p, "not found"),
}


@pytest.mark.parametrize(("make", "words"), NO_FILES.values(), ids=NO_FILES)
def test_what_is_no_onnx_file_is_one_line(tmp_path: Path, make: Any, words: str) -> None:
    path = make(tmp_path / "net.onnx")
    message = one_line_error(lambda: make_fill("surround", path))
    assert str(path) in message and words in message
