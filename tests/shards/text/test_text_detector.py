"""The packaged network finds drawn words of all sizes, and every way to name a detector wrongly is one line."""

from __future__ import annotations

import json
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import fails
from PIL import Image
from shard_tools import environment, python
from text_tools import (
    LOOKS,
    QUICK,
    LevelOptions,
    bright_network,
    gradient,
    one_line_error,
    poster,
    save_network,
    write_words,
)

from shards.errors import Code
from shards.inputs.images import parse_aspect
from shards.text.db_detector import MAX_SIDE, DBDetector, packaged_model
from shards.text.detector import DetectorOptions, Region, TextDetector, parse_scales
from shards.text.masks import MaskOptions, text_mask
from shards.text.pipeline import TextRemoval, removal_fingerprint, remove_text
from shards.text.reference_strip import reference_strip, strip_height
from shards.text.registry import DETECTORS, Entry, make_detector


@cache
def detector(looks: tuple[tuple[int, ...], ...] = LOOKS) -> TextDetector:
    return make_detector(DetectorOptions(scales=looks))


def found(image: Image.Image, looks: tuple[tuple[int, ...], ...] = LOOKS) -> np.ndarray:
    """(h, w) bool: where the detector finds text at its first look."""
    pixels = np.asarray(image)
    return text_mask(detector(looks).detect(pixels), pixels.shape[:2])


def words_on(background: str, size: float, angle: float) -> tuple[Image.Image, np.ndarray]:
    image = gradient(240, 320, 3) if background == "gradient" else Image.new("RGB", (240, 320), (35, 50, 80))
    return image, write_words(image, "MOONRISE" if size < 60 else "MOON", (120, 160), size, angle)


@pytest.mark.parametrize("background", ["plain", "gradient"])
@pytest.mark.parametrize(("size", "angle"), [(14, 0), (32, 0), (72, 0), (32, 90), (32, 20)])
def test_drawn_words_are_found(background: str, size: float, angle: float) -> None:
    image, ink = words_on(background, size, angle)
    mask = found(image, ((256, 608),))
    assert mask[ink].mean() >= 0.9
    assert mask.mean() < 8 * ink.mean(), "and little else"


def noise() -> Image.Image:
    grain = np.random.default_rng(5).normal(0, 12, (300, 200, 1))
    return Image.fromarray(np.clip(np.asarray(gradient(200, 300, 7)) + grain, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "image",
    [gradient(200, 300, 7), noise(), Image.new("RGB", (200, 300), "white"), Image.new("RGB", (40, 400))],
    ids=["gradient", "noise", "white", "black banner"],
)
def test_a_picture_without_text_has_none(image: Image.Image) -> None:
    assert not found(image, ((256, 608),)).any()


def test_the_size_of_the_picture_matters_little() -> None:
    image = poster("scale", (320, 480))
    large = found(image)
    for size in ((160, 240), (640, 960)):
        again = np.asarray(Image.fromarray(found(image.resize(size))).resize((320, 480)))
        assert (again & large).sum() >= 0.8 * (again | large).sum()


def told(regions: list[Region]) -> list[Any]:
    return [[r.outline.astype(float).tolist(), r.height, r.score] for r in regions]


def test_the_same_picture_gives_the_same_regions_in_any_process(tmp_path: Path) -> None:
    image = poster("same")
    image.save(tmp_path / "poster.png")
    first = told(detector().detect(np.asarray(image)))
    assert first and told(detector().detect(np.asarray(image))) == first
    script = """
        import json, sys
        import numpy as np
        from PIL import Image
        from text_tools import QUICK
        from test_text_detector import told
        from shards.text.registry import make_detector
        print(json.dumps(told(make_detector(QUICK).detect(np.asarray(Image.open(sys.argv[1]))))))
    """
    path = ":".join([environment()["PYTHONPATH"], *(str(folder) for folder in Path(__file__).parents[:3])])
    done = python("-c", textwrap.dedent(script), tmp_path / "poster.png", env=environment(PYTHONPATH=path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == first


def test_what_a_region_is() -> None:
    image = np.asarray(poster("region"))
    before = image.copy()
    regions = detector().detect(image)
    assert len(regions) == 2 and (image == before).all()
    for each in regions:
        assert each.outline.dtype == np.float32 and each.outline.shape[1:] == (2,) and len(each.outline) >= 3
        assert 0.3 <= each.score <= 1
    title, line = sorted(regions, key=lambda r: r.outline[:, 1].mean())
    # letters 24 and 16 pixels high
    assert 16 < title.height < 44 and 9 < line.height < 30 and title.height > line.height


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (300, 5), (33, 47)])
def test_odd_shapes_are_searched(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    for each in detector().detect(image):
        assert (each.outline >= 0).all() and (each.outline <= shape[::-1]).all()


# --- the anchor


@pytest.mark.parametrize(("side", "height"), [(32, 32), (256, 32), (608, 64), (1024, 96), (1152, 128)])
def test_the_strip_is_a_tenth_in_steps_of_32(side: int, height: int) -> None:
    assert strip_height(side) == height


@pytest.mark.parametrize(("width", "height"), [(32, 32), (256, 32), (4096, 32), (700, 96)])
def test_the_strip_has_its_size_and_words(width: int, height: int) -> None:
    pixels = reference_strip(width, height)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    assert (pixels[:, -1] == 255).all() and pixels.min() < 100
    assert reference_strip(width, height) is pixels
    with pytest.raises(ValueError, match="read-only"):
        pixels[0] = 0


def test_the_strip_is_text_for_the_network_and_in_no_result() -> None:
    line = np.array(reference_strip(256, 32))
    assert text_mask(detector().detect(np.concatenate([np.full((224, 256, 3), 90, np.uint8), line])), (256, 256))[
        224:
    ].any()
    low = gradient(200, 300)
    ink = write_words(low, "at the bottom", (100, 290), 18)  # beside the strip
    for each in detector().detect(np.asarray(low)):
        assert (each.outline >= 0).all() and (each.outline <= (200, 300)).all()
    assert found(low)[ink].mean() > 0.8


# --- a network of one's own: pixels that are bright are text


@pytest.fixture
def bright(tmp_path: Path) -> DBDetector:
    made = make_detector(DetectorOptions(str(bright_network(tmp_path / "bright.onnx")), LOOKS))
    assert isinstance(made, DBDetector) and made.passes == 1 and made.name.startswith("bright.onnx ")
    return made


def test_a_core_is_grown_by_area_over_perimeter(bright: DBDetector) -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[100:140, 60:180] = 255
    (only,) = bright.detect(image)
    grow = 1.6 * 40 * 120 / (2 * (40 + 120))
    left, top = only.outline.min(axis=0)
    right, bottom = only.outline.max(axis=0)
    assert np.allclose((left, top, right, bottom), (60 - grow, 100 - grow, 180 + grow, 140 + grow), atol=2)
    assert only.height == pytest.approx(40 + 2 * grow, abs=3) and only.score > 0.95


def test_an_arc_keeps_its_shape(bright: DBDetector) -> None:
    """Its rectangle would cover the middle of the picture."""
    y, x = np.mgrid[:256, :256]
    radius = np.hypot(x - 128, y - 160)
    image = np.zeros((256, 256, 3), np.uint8)
    arc = (radius > 80) & (radius < 95) & (y < 150)
    image[arc] = 255
    (only,) = bright.detect(image)
    mask = text_mask([only], (256, 256))
    assert mask[arc].mean() > 0.98 and not mask[140, 128] and len(only.outline) > 4
    assert only.height == pytest.approx(15 * 2.6, rel=0.25)


def test_a_banner_is_searched_within_bounds(bright: DBDetector) -> None:
    image = np.zeros((40, 4000, 3), np.uint8)
    image[10:30, 3900:3980] = 255
    (only,) = bright.detect(image)
    assert only.outline[:, 0].max() > 3970 and MAX_SIDE == 4096


def test_specks_and_weak_regions_are_noise(tmp_path: Path, bright: DBDetector) -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[50:52, 50:52] = 255
    assert bright.detect(image) == []
    weak = np.full((256, 256, 3), 0, np.uint8)
    weak[100:140, 60:180] = 190  # -1..1: 0.49, probability 0.38
    path = str(bright_network(tmp_path / "again.onnx", 0.5))
    for threshold, count in ((0.3, 1), (0.6, 0)):
        made = make_detector(DetectorOptions(path, LOOKS, region_threshold=threshold))
        assert len(made.detect(weak)) == count


# --- what can be wrong


def test_the_packaged_model_is_there() -> None:
    assert packaged_model().is_file() and make_detector(QUICK).name.startswith(packaged_model().name)


X = ("n", 3, "h", "w")
NO_DETECTORS: dict[str, tuple[dict[str, Any], list[Any], dict[str, Any], tuple[str, ...]]] = {
    "one channel": ({"x": ("n", 1, "h", "w")}, [("Identity", ["x"], "out")], {}, ("out",)),
    "two inputs": ({"x": X, "y": X}, [("Add", ["x", "y"], "out")], {}, ("out",)),
    "flat": ({"x": ("n", "k")}, [("Identity", ["x"], "out")], {}, ("out",)),
    "two outputs": ({"x": X}, [("Identity", ["x"], "out"), ("Neg", ["x"], "more")], {}, ("out", "more")),
}


@pytest.mark.parametrize("what", NO_DETECTORS)
def test_a_network_that_is_no_detector(tmp_path: Path, what: str) -> None:
    inputs, nodes, constants, outputs = NO_DETECTORS[what]
    path = save_network(tmp_path / "net.onnx", inputs, nodes, constants, outputs)
    with fails("model-unfit", path, "(n, 3, h, w)", "(n, 1, h, w)"):
        make_detector(DetectorOptions(str(path)))


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        ([("Identity", ["x"], "out")], {}, "gives (1, 3, "),
        ([("Add", ["x", "much"], "out")], {"much": np.zeros(63, np.float32)}, "failed on a "),
    ],
    ids=["three maps", "fails"],
)
def test_a_network_that_shows_its_fault_when_it_looks(
    tmp_path: Path, nodes: list[Any], constants: dict[str, Any], words: str
) -> None:
    path = save_network(tmp_path / "net.onnx", {"x": X}, nodes, constants)
    made = make_detector(DetectorOptions(str(path), LOOKS))
    with fails("model-unfit", "net.onnx", words):
        made.detect(np.zeros((60, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("data", "words"), [(None, "not found"), (b"", "cannot be loaded"), (b"<html>", "cannot be loaded")]
)
def test_a_missing_or_broken_model(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "net.onnx"
    if data is not None:
        path.write_bytes(data)
    message = one_line_error(lambda: make_detector(DetectorOptions(str(path))))
    assert str(path) in message and words in message


def test_cuda_is_asked_for_where_there_is_none() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    message = one_line_error(lambda: make_detector(DetectorOptions(device="cuda")))
    assert "onnxruntime-gpu" in message


# --- a detector of one's own


def test_a_custom_detector() -> None:
    made = make_detector(DetectorOptions("text_tools:Bright"))
    assert (made.name, made.passes) == ("bright", 1)
    image = np.zeros((50, 50, 3), np.uint8)
    image[10:20, 10:40] = 255
    assert len(made.detect(image)) == 1
    assert TextRemoval(DetectorOptions("text_tools:Bright")).facts()["detector"] == "bright"


def test_a_detector_with_the_old_name_of_passes(caplog: pytest.LogCaptureFixture) -> None:
    detector = make_detector(DetectorOptions("text_tools:OldName"))
    result = remove_text(np.zeros((50, 50, 3), np.uint8), detector, lambda image, mask: image + 1, MaskOptions())
    assert (result.before, result.after, result.passes) == (1, 0, 1), "both passes"
    assert "OldName has the attribute `looks`" in "".join(caplog.messages) and len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:make", "No module named"),
        ("text_tools:no_such_thing", "no attribute"),
        ("text_tools:LOOKS", "not callable"),
        ("text_tools:Scripted", "missing 1 required positional argument"),
        ("broken_for_test:make", "SyntaxError"),
        ("builtins:dict", "returns a dict; it must have detect(), a text `name` and an integer `passes` >= 1"),
        (":make", "Empty module name"),
        ("text_tools:", "no attribute"),
    ],
)
def test_a_custom_detector_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    (tmp_path / "broken_for_test.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with fails("option-value", f"--detector {name} ", words):
        make_detector(DetectorOptions(name))


def test_a_detector_of_the_registry_has_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, "level", Entry("text_tools:Level", LevelOptions))
    plain, dark = DetectorOptions("level"), DetectorOptions("level:least=30, passes = 2")
    image = np.full((50, 50, 3), 40, np.uint8)
    assert make_detector(plain).detect(image) == [] and make_detector(plain).passes == 1
    assert len(make_detector(dark).detect(image)) == 1 and make_detector(dark).passes == 2
    assert removal_fingerprint(TextRemoval(dark)) != removal_fingerprint(TextRemoval(plain))


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("level:least", "option-value", "least: expected int"),
        ("level:last=3", "option-unknown", "unknown option 'last'; the detector takes least, passes"),
        ("level:least=much", "option-value", "least: expected int"),
        ("rapidocr:least=3", "option-unknown", "unknown option 'least'; the detector has no options of its own"),
    ],
)
def test_wrong_options_of_a_detector(monkeypatch: pytest.MonkeyPatch, name: str, code: Code, words: str) -> None:
    monkeypatch.setitem(DETECTORS, "level", Entry("text_tools:Level", LevelOptions))
    with fails(code, f"--detector {name}: ", words):
        make_detector(DetectorOptions(name))


def test_another_network_of_the_same_name_is_another_way_to_clean(tmp_path: Path) -> None:
    paths = [bright_network(tmp_path / f"{level}" / "net.onnx", level) for level in (0.2, 0.8)]
    one, other = (removal_fingerprint(TextRemoval(DetectorOptions(str(path)))) for path in paths)
    assert one != other


def test_where_a_network_lies_plays_no_part(tmp_path: Path) -> None:
    paths = [bright_network(tmp_path / folder / "net.onnx") for folder in ("a", "b")]
    one, other = (removal_fingerprint(TextRemoval(DetectorOptions(str(path)))) for path in paths)
    assert one == other


# --- options


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scales": ()}, "--scales"),
        ({"scales": ((),)}, "--scales"),
        ({"scales": ((16,),)}, "32 to 2048"),
        ({"scales": ((4096,),)}, "32 to 2048"),
        ({"pixel_threshold": 0.0}, "--pixel-threshold"),
        ({"region_threshold": 1.0}, "--region-threshold"),
        ({"region_threshold": float("nan")}, "--region-threshold"),
        ({"device": "tpu"}, "--device"),
    ],
)
def test_options_out_of_range(values: dict[str, Any], words: str) -> None:
    with fails("option-value", words):
        DetectorOptions(**values)


def test_looks_and_aspect_are_read() -> None:
    for text, looks in (("256", ((256,),)), ("256,608/416,1024", ((256, 608), (416, 1024)))):
        assert parse_scales(text) == looks
    for text in ("", "256/", "big", "256;608"):
        with fails("option-value", "--scales", repr(text)):
            parse_scales(text)
    assert parse_aspect("0.5,0.9") == (0.5, 0.9)
    for text in ("0.5", "a,b", "1,2,3"):
        with fails("option-value", "--aspect", repr(text)):
            parse_aspect(text)
    with fails("option-value", "--passes", 0):
        TextRemoval(passes=0)
