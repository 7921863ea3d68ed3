"""What the tests of text removal share: drawn titles, small networks, detectors that say what they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from shard_tools import Source, encoded, hash_of, posters, tree, write_csv, write_file

from shards.clean.run import CleanOptions, CleanResult, clean_posters
from shards.errors import UserError
from shards.inputs.jpeg_header import ORIENTATION
from shards.text.detector import DetectorOptions, Region
from shards.text.pipeline import TextRemoval

LOOKS = ((256,),)
"""One look at one size: a twentieth of a second for a small poster."""
QUICK = DetectorOptions(scales=LOOKS)
WORDS = ("MIDNIGHT", "a long night")
TITLES = (WORDS, ("HARBOUR", "home at last"), ("WINTER", "snow and iron"), ("RED SAND", "no way back"))


def gradient(width: int, height: int, seed: object = 0) -> Image.Image:
    """A text-free background: two soft dark colours, from one corner to the other."""
    rng = np.random.default_rng(abs(hash_of(seed)))
    corners = rng.integers(10, 120, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def write_words(image: Image.Image, words: str, centre: tuple[int, int], size: float, angle: float = 0) -> np.ndarray:
    """Write on the picture; returns the pixels (h, w) bool that are ink."""
    ink = Image.new("L", image.size)
    pen = ImageDraw.Draw(ink)
    pen.text(centre, words, 255, ImageFont.load_default(size), anchor="mm")
    if angle:
        ink = ink.rotate(angle, Image.Resampling.BICUBIC, center=centre)
    image.paste((245, 240, 225), mask=ink)
    return np.asarray(ink) > 127


def poster(seed: object, size: tuple[int, int] = (160, 240), words: Sequence[str] = WORDS) -> Image.Image:
    """A poster with a title above and a line below."""
    image = gradient(*size, seed)
    for word, place, share in zip(words, (0.25, 0.75), (0.15, 0.1), strict=False):
        write_words(image, word, (size[0] // 2, round(size[1] * place)), size[0] * share)
    return image


def titled_posters(folder: Path, count: int, size: tuple[int, int] = (160, 240)) -> Source:
    """``count`` posters t0000.jpg ... with titles in folder/images, and folder/meta.csv."""
    good: dict[str, tuple[str, ...]] = {}
    for number in range(count):
        name = f"t{number:04d}"
        write_file(folder / "images" / f"{name}.jpg", encoded(poster(name, size, TITLES[number % 4]), quality=95))
        good[name] = ("Drama",) if number % 2 else ("Comedy", "Drama")
    return Source(folder / "images", write_meta(folder, good), good, {})


def write_meta(folder: Path, genres: dict[str, tuple[str, ...]]) -> Path:
    return write_csv(folder / "meta.csv", [(i, "a title", 1999, repr(list(g))) for i, g in genres.items()])


def clean_command(source: Source, out: Path, *options: object) -> list[str]:
    """``posters clean``'s arguments: one quick look, one worker, unless ``options`` say more."""
    return [
        *("clean", "--images", str(source.images), "--metadata", str(source.csv), "--out", str(out)),
        *("--scales", "256", "--workers", "1", *map(str, options)),
    ]


def clean(source: Source, out: Path, *options: object) -> str:
    """Run ``posters clean`` in a process of its own; returns what it said."""
    done = posters(*clean_command(source, out, *options))
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def run_clean(source: Source, out: Path, **options: Any) -> CleanResult:
    """In this process, with one quick look and no sheet."""
    options = {"text": TextRemoval(QUICK), "workers": 1, "sheet": 0, **options}
    return clean_posters(CleanOptions(source.images, out, metadata=source.csv, **options))


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def upright(source: Source, sample_id: str) -> np.ndarray:
    path = next(p for e in (".jpg", ".jpeg", ".png") if (p := source.images / f"{sample_id}{e}").exists())
    with Image.open(path) as image:
        turned = image.getexif().get(ORIENTATION, 1) == 6
        return np.asarray((image.rotate(-90, expand=True) if turned else image).convert("RGB"))


def jpegs(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in tree(folder).items() if name.endswith(".jpg")}


def written(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*.jpg")}


def one_line_error(call: Callable[[], Any]) -> str:
    """The one line of the UserError that the call ends in."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def region(box: tuple[float, float, float, float], score: float = 0.99, height: float | None = None) -> Region:
    """A region that is the rectangle left, top, right, bottom."""
    left, top, right, bottom = box
    outline = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float32)
    return Region(outline, min(right - left, bottom - top) if height is None else height, score)


@dataclass(frozen=True)
class LevelOptions:
    least: int = 200
    passes: int = 1


class Level:
    """A detector that takes a rectangle for text: where pixels of a level and more are."""

    name = "level"

    def __init__(self, options: LevelOptions) -> None:
        self.least, self.passes = options.least, options.passes

    def detect(self, image: np.ndarray, index: int = 0) -> list[Region]:
        ys, xs = np.nonzero(image.min(axis=2) >= self.least)
        return [region((xs.min(), ys.min(), xs.max(), ys.max()))] if len(xs) else []


class OldName:
    """A detector that was written when ``passes`` was called ``looks``."""

    name, looks = "old", 2

    def detect(self, image: np.ndarray, look: int = 0) -> list[Region]:
        return [region((0, 0, 20, 10))] if look == 1 and image.max() == 0 else []


class Bright(Level):
    """A detector that takes a white rectangle for text: where pixels of 200 and more are."""

    name = "bright"

    def __init__(self) -> None:
        super().__init__(LevelOptions())


class Scripted:
    """A detector that answers what its list says, call after call, and nothing after its end."""

    name = "scripted"

    def __init__(self, answers: Sequence[Sequence[Region]], passes: int = 1) -> None:
        self.answers, self.passes = list(answers), passes
        self.seen: list[int] = []

    def detect(self, image: np.ndarray, index: int = 0) -> list[Region]:
        self.seen.append(index)
        number = len(self.seen) - 1
        return list(self.answers[number]) if number < len(self.answers) else []


# --- networks


def save_network(
    path: Path,
    inputs: dict[str, tuple[Any, ...]],
    nodes: Sequence[tuple[str, Sequence[str], str]],
    constants: dict[str, Any],
    outputs: Sequence[str] = ("out",),
    kind: str = "FLOAT",
) -> Path:
    """Write an ONNX file: shapes of the inputs, and nodes as (operator, names of inputs, name of output)."""
    onnx = pytest.importorskip("onnx")
    helper, element = onnx.helper, getattr(onnx.TensorProto, kind)
    graph = helper.make_graph(
        [helper.make_node(operator, list(takes), [gives]) for operator, takes, gives in nodes],
        "network",
        [helper.make_tensor_value_info(name, element, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def bright_network(path: Path, level: float = 0.5) -> Path:
    """A text detector of the DB kind for which pixels brighter than ``level`` (-1 to 1) are text."""
    return save_network(
        path,
        {"x": ("n", 3, "h", "w")},
        [("Slice", ["x", "from", "to", "axis"], "red"), ("Sub", ["red", "level"], "more"),
         ("Mul", ["more", "gain"], "sharp"), ("Sigmoid", ["sharp"], "out")],
        {"from": np.array([0]), "to": np.array([1]), "axis": np.array([1]),
         "level": np.float32(level), "gain": np.float32(50)},
    )  # fmt: skip


FREE = {"image": ("n", 3, "h", "w"), "mask": ("n", 1, "h", "w")}


def sized(side: int) -> dict[str, tuple[Any, ...]]:
    """Inputs of an in-painting network of a fixed size."""
    return {"image": (1, 3, side, side), "mask": (1, 1, side, side)}


def constant_network(path: Path, colour: Sequence[float], inputs: dict[str, tuple[Any, ...]] = FREE) -> Path:
    """An in-painting network that returns one colour everywhere."""
    return save_network(
        path,
        inputs,
        [("Mul", ["image", "zero"], "black"), ("Add", ["black", "colour"], "out")],
        {"zero": np.float32(0), "colour": np.array(colour, np.float32).reshape(1, 3, 1, 1)},
    )


def copying_network(path: Path, colour: Sequence[float], inputs: dict[str, tuple[Any, ...]] = FREE) -> Path:
    """An in-painting network that returns the image, and one colour where the mask is."""
    return save_network(
        path,
        inputs,
        [("Sub", ["one", "mask"], "kept"), ("Mul", ["image", "kept"], "around"),
         ("Mul", ["colour", "mask"], "hole"), ("Add", ["around", "hole"], "out")],
        {"one": np.float32(1), "colour": np.array(colour, np.float32).reshape(1, 3, 1, 1)},
    )  # fmt: skip
