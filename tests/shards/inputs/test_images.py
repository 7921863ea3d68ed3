"""Posters on disk: every way to be bad has its reason, every good one becomes an upright RGB JPEG."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from failing import fails
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from shard_tools import bomb_png, draw, encoded, write_file

from shards.inputs.image_files import default_image_folder, find_image, holds_images, read_image_file
from shards.inputs.images import BadImage, ImageOptions, decode, fitted_size, pack_image

OPTIONS = ImageOptions()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def difference(left: Image.Image, right: Image.Image) -> float:
    """Mean absolute difference of two pictures, in grey levels."""
    assert left.size == right.size
    return float(np.abs(np.asarray(left, dtype=float) - np.asarray(right, dtype=float)).mean())


def reason(folder: Path, sample_id: str, options: ImageOptions = OPTIONS) -> str:
    with pytest.raises(BadImage) as caught:
        decode(read_image_file(folder, sample_id), options)
    detail = caught.value.detail
    assert "\n" not in detail and " at 0x" not in detail, detail  # addresses would differ from run to run
    return caught.value.reason


JPEG = encoded(draw("jpeg", 120, 180))
PNG = encoded(draw("png", 120, 180), "PNG")
WEBP = encoded(draw("webp", 120, 180), "WEBP")
GIF = encoded(draw("gif", 120, 180), "GIF")


def jpeg_bomb() -> bytes:
    """A sound JPEG whose frame header claims 60000x60000."""
    data = bytearray(JPEG)
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "zero bytes"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[:-200], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:-200], "truncated"),
        (GIF[: len(GIF) // 2], "truncated"),
        (WEBP[: len(WEBP) // 2], ("truncated", "undecodable", "not an image")),
        (JPEG[:20], ("not an image", "truncated")),
        (PNG[:20], ("not an image", "truncated")),
        (PNG[:60] + b"\0" * 200 + PNG[260:], ("undecodable", "truncated")),
        (b"<html>404 not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image"),
        (encoded(draw("ppm"), "PPM"), "not an image"),
        (b"\0" * 5000, "not an image"),
        (encoded(draw("small", 31, 400)), "too small"),
        (encoded(draw("small", 400, 31), "PNG"), "too small"),
        (bomb_png(), "decompression bomb"),
        (bomb_png(9000, 9000), "decompression bomb"),  # over our limit, under Pillow's
        (jpeg_bomb(), "decompression bomb"),
    ],
)
def test_every_bad_file_has_its_reason(tmp_path: Path, data: bytes, expected: str | tuple[str, ...]) -> None:
    write_file(tmp_path / "x.jpg", data)
    assert reason(tmp_path, "x") in (expected if isinstance(expected, tuple) else (expected,))


def test_missing_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    for sample_id in ("folder", "dangling", "absent", "no/such/folder/x"):
        assert find_image(tmp_path, sample_id) is None
        assert reason(tmp_path, sample_id) == "missing file"


def test_a_file_beside_a_directory_of_its_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    write_file(tmp_path / "x.png", PNG)
    assert find_image(tmp_path, "x") == tmp_path / "x.png"


def test_a_bomb_is_refused_without_its_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(BadImage):
        decode(bomb_png(), OPTIONS)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from([JPEG, PNG, WEBP, GIF]), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_are_pictures_or_rejections(data: bytes, at: int, damage: bytes) -> None:
    at %= len(data)
    damaged = data[:at] + damage + data[at + len(damage) :]
    try:
        packed = pack_image(damaged, OPTIONS) if decode(damaged, OPTIONS) else None
    except BadImage:
        return
    assert packed is not None and opened(packed.data).size == (packed.width, packed.height)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    picture = draw("upright", 80, 120)
    exif = Image.Exif()
    exif[0x0112] = orientation
    # The transposition that undoes each orientation, from the EXIF specification
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    data = encoded(picture, quality=95, exif=exif)
    packed = pack_image(data, OPTIONS)
    upright = picture if orientation == 1 else picture.transpose(undo[orientation])
    result = opened(packed.data)
    assert result.size == upright.size == (packed.width, packed.height)
    assert difference(result, upright) < 4
    assert result.getexif().get(0x0112, 1) == 1
    assert (packed.data == data) == (orientation == 1)


def test_a_large_sideways_poster_is_turned_and_shrunk() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = draw("sideways", 1200, 800)
    packed = pack_image(encoded(picture, exif=exif), OPTIONS)
    assert (packed.width, packed.height) == (256, 384)
    upright = picture.transpose(Image.Transpose.ROTATE_270).resize((256, 384), Image.Resampling.LANCZOS)
    assert difference(opened(packed.data), upright) < 4


def test_orientation_of_a_png() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = draw("png turned", 80, 120)
    packed = pack_image(encoded(picture, "PNG", exif=exif), OPTIONS)
    assert difference(opened(packed.data), picture.transpose(Image.Transpose.ROTATE_180)) < 4


def on_white(image: Image.Image) -> Image.Image:
    rgba = np.asarray(image.convert("RGBA"), dtype=float)
    alpha = rgba[..., 3:] / 255
    return Image.fromarray((rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8))


def rgba_picture() -> Image.Image:
    ramp = Image.linear_gradient("L").resize((60, 90))
    return Image.merge("RGBA", [*draw("rgba").split(), ramp])


def palette_picture() -> Image.Image:
    return draw("palette").quantize(4)


def sixteen_bit() -> tuple[Image.Image, Image.Image]:
    grey = np.asarray(draw("16 bit").convert("L"))
    return Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey).convert("RGB")


def transparent_palette() -> tuple[bytes, Image.Image]:
    """A palette picture of which one colour is see-through, and how it looks on paper."""
    image = palette_picture()
    data = encoded(image, "PNG", transparency=0)
    expected = np.asarray(image.convert("RGB")).copy()
    expected[np.asarray(image) == 0] = 255
    return data, Image.fromarray(expected)


def colour_key() -> tuple[bytes, Image.Image]:
    """An RGB picture of which one colour is see-through, and how it looks on paper."""
    image = draw("key")
    image.paste((9, 200, 30), (10, 10, 50, 80))
    expected = image.copy()
    expected.paste("white", (10, 10, 50, 80))
    return encoded(image, "PNG", transparency=(9, 200, 30)), expected


def cases() -> list[Any]:
    rgb, rgba = draw("modes"), rgba_picture()
    film = encoded(rgb, "GIF", save_all=True, append_images=[draw("frame 2")])
    deep, shallow = sixteen_bit()
    see_through, on_paper = transparent_palette()
    return [
        pytest.param(encoded(rgb.convert("CMYK"), quality=95), rgb.convert("CMYK").convert("RGB"), id="CMYK JPEG"),
        pytest.param(encoded(rgb.convert("L"), quality=95), rgb.convert("L").convert("RGB"), id="grey JPEG"),
        pytest.param(encoded(rgb.convert("L"), "PNG"), rgb.convert("L").convert("RGB"), id="grey PNG"),
        pytest.param(encoded(rgb.convert("1"), "PNG"), rgb.convert("1").convert("RGB"), id="1-bit PNG"),
        pytest.param(encoded(palette_picture(), "PNG"), palette_picture().convert("RGB"), id="palette PNG"),
        pytest.param(see_through, on_paper, id="palette PNG with transparency"),
        pytest.param(*colour_key(), id="RGB PNG with a see-through colour"),
        pytest.param(encoded(rgba, "PNG"), on_white(rgba), id="RGBA PNG"),
        pytest.param(encoded(rgba.convert("LA"), "PNG"), on_white(rgba.convert("LA")), id="LA PNG"),
        pytest.param(encoded(deep, "PNG"), shallow, id="16-bit PNG"),
        pytest.param(encoded(rgb, "WEBP", lossless=True), rgb, id="WebP"),
        pytest.param(encoded(rgba, "WEBP", lossless=True, exact=True), on_white(rgba), id="RGBA WebP"),
        pytest.param(encoded(rgb, "BMP"), rgb, id="BMP"),
        pytest.param(encoded(palette_picture(), "GIF"), palette_picture().convert("RGB"), id="GIF"),
        pytest.param(film, rgb.quantize().convert("RGB"), id="GIF film"),
    ]


@pytest.mark.parametrize(("data", "expected"), cases())
def test_every_mode_becomes_an_rgb_jpeg_that_looks_the_same(data: bytes, expected: Image.Image) -> None:
    assert pack_image(data, OPTIONS).data != data
    packed = pack_image(data, ImageOptions(quality=95))
    result = opened(packed.data)
    assert (result.format, result.mode, result.size) == ("JPEG", "RGB", expected.size)
    limit = 12 if expected.getcolors(256) else 5  # few colours mean hard edges, which JPEG blurs
    assert difference(result, expected) < limit


@pytest.mark.parametrize("size", [(256, 384), (384, 256), (256, 512), (32, 32), (182, 268), (300, 200)])
def test_a_jpeg_that_fits_keeps_its_bytes(size: tuple[int, int]) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"icc_profile": profile}):
        data = encoded(draw(size, *size), **options)
        packed = pack_image(data, OPTIONS)
        assert packed.data == data and (packed.width, packed.height) == size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((257, 400), (256, 398)),
        ((300, 445), (256, 380)),
        ((1000, 1500), (256, 384)),
        ((2000, 2000), (256, 256)),
        ((200, 600), (171, 512)),
        ((4000, 300), (512, 38)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_larger_poster_is_shrunk(size: tuple[int, int], expected: tuple[int, int], kind: str) -> None:
    picture = draw(size, *size)
    packed = pack_image(encoded(picture, kind), OPTIONS)
    assert abs(packed.width - expected[0]) <= 1 and abs(packed.height - expected[1]) <= 1
    assert min(packed.width, packed.height) <= 256 and max(packed.width, packed.height) <= 512
    result = opened(packed.data)
    assert result.size == (packed.width, packed.height) and result.mode == "RGB"
    assert difference(result, picture.resize(result.size, Image.Resampling.LANCZOS)) < 4


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 70_000), st.integers(1, 70_000), st.integers(8, 600), st.integers(0, 2000))
def test_fitted_size(width: int, height: int, short: int, more: int) -> None:
    options = ImageOptions(short_side=short, long_side=short + more)
    w, h = fitted_size(width, height, options)
    assert 1 <= w <= width and 1 <= h <= height
    assert min(w, h) <= short and max(w, h) <= short + more
    if min(width, height) <= short and max(width, height) <= short + more:
        assert (w, h) == (width, height)
    else:  # no smaller than needed, and of the same shape
        assert min(w, h) == short or max(w, h) == short + more
        scale = max(w, h) / max(width, height)
        assert abs(w - width * scale) <= 1 and abs(h - height * scale) <= 1
    assert fitted_size(w, h, options) == (w, h)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(32, 900), st.integers(32, 900), st.sampled_from(["JPEG", "PNG"]))
def test_packing_bounds_hold_for_any_size(width: int, height: int, kind: str) -> None:
    packed = pack_image(encoded(Image.new("RGB", (width, height), "teal"), kind), OPTIONS)
    assert opened(packed.data).size == (packed.width, packed.height)
    assert min(packed.width, packed.height) <= 256 and max(packed.width, packed.height) <= 512
    assert packed.width <= width and packed.height <= height
    assert pack_image(packed.data, OPTIONS) == packed  # what a shard holds can go into a shard again


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"short_side": 7}, "--short-side"),
        ({"short_side": 300, "long_side": 299}, "--short-side"),
        ({"quality": 0}, "--quality"),
        ({"quality": 96}, "--quality"),
        ({"min_side": 0}, "--min-side"),
        ({"max_pixels": 0}, "--max-pixels"),
        ({"aspect": (1.0, 0.5)}, "--aspect"),
        ({"aspect": (0.0, 0.5)}, "--aspect"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], part: str) -> None:
    with fails("option-value", part):
        ImageOptions(**options)


def test_limits_are_the_users(tmp_path: Path) -> None:
    write_file(tmp_path / "x.jpg", encoded(draw("limits", 60, 90)))
    assert reason(tmp_path, "x", ImageOptions(min_side=61)) == "too small"
    assert reason(tmp_path, "x", ImageOptions(max_pixels=5399)) == "decompression bomb"
    assert decode(read_image_file(tmp_path, "x"), ImageOptions(min_side=60, max_pixels=5400)).size == (60, 90)


def test_default_folders(tmp_path: Path) -> None:
    with fails("images-none", "cleaned_posters_local", "Data/cleaned_posters", tmp_path, "--images"):
        default_image_folder(tmp_path)
    write_file(tmp_path / "Data/cleaned_posters/x.jpg", JPEG)
    (tmp_path / "cleaned_posters_local").mkdir()  # empty: passed over
    assert default_image_folder(tmp_path) == tmp_path / "Data/cleaned_posters"
    write_file(tmp_path / "cleaned_posters_local/sub/x.PNG", PNG)
    assert default_image_folder(tmp_path) == tmp_path / "cleaned_posters_local"


def test_a_folder_of_other_files_holds_no_images(tmp_path: Path) -> None:
    write_file(tmp_path / "sub/readme.txt", b"x")
    assert not holds_images(tmp_path)
    write_file(tmp_path / "sub/x.jpeg", b"x")
    assert holds_images(tmp_path)


def test_odd_shapes(tmp_path: Path) -> None:
    write_file(tmp_path / "x.jpg", encoded(draw("shape", 60, 90)))
    assert reason(tmp_path, "x", ImageOptions(aspect=(0.7, 1.0))) == "odd shape"
    assert read_back(tmp_path, "x", ImageOptions(aspect=(0.6, 1.0))).size == (60, 90)


def read_back(folder: Path, sample_id: str, options: ImageOptions) -> Image.Image:
    return decode(read_image_file(folder, sample_id), options)
