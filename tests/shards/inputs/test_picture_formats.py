"""Every format that is taken: its modes, its damage, its cuts, its bombs; in bounded memory, with a word for each."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_tools import ROOT, draw, encoded, environment

from shards.inputs.image_structure import GIF, more_frames
from shards.inputs.images import ANY, FORMATS, BadImage, ImageOptions, decode, pack_image, upright_size
from shards.inputs.jpeg_header import ORIENTATION
from shards.inputs.orientation import TURNS

PICTURE, SECOND = draw("formats", 45, 60), draw("second", 45, 60)
FILM = {"save_all": True, "append_images": [SECOND]}
DEEP = Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) * 257)

SEEDS = {
    "jpeg": encoded(PICTURE),
    "progressive": encoded(PICTURE, progressive=True),
    "restarts": encoded(PICTURE, restart_marker_rows=1),
    "cmyk": encoded(PICTURE.convert("CMYK")),
    "png": encoded(PICTURE, "PNG"),
    "rgba": encoded(PICTURE.convert("RGBA"), "PNG"),
    "deep": encoded(DEEP, "PNG"),
    "apng": encoded(PICTURE, "PNG", **FILM),
    "gif": encoded(PICTURE, "GIF"),
    "film": encoded(PICTURE, "GIF", comment=b"c" * 600, **FILM),
    "webp": encoded(PICTURE, "WEBP"),
    "webp lossless": encoded(PICTURE, "WEBP", lossless=True),
    "webp film": encoded(PICTURE, "WEBP", **FILM),
    "avif": encoded(PICTURE, "AVIF", speed=10),
    "bmp": encoded(PICTURE, "BMP"),
    "tiff": encoded(PICTURE, "TIFF"),
    "tiff lzw": encoded(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff deep": encoded(DEEP, "TIFF"),
    "pages": encoded(PICTURE, "TIFF", **FILM),
}


def reason_of(data: bytes) -> str:
    """The reason for which a picture is refused, by all functions that judge; empty if it is taken."""
    found = set()
    for look in (lambda: decode(data, ANY), lambda: upright_size(data)):
        try:
            look()
            found.add("")
        except BadImage as bad:
            assert bad.detail and "\n" not in bad.detail
            found.add(bad.reason)
    assert len(found) == 1, found
    return found.pop()


def test_all_formats_are_taken_and_their_first_frame() -> None:
    assert {Image.open(io.BytesIO(data)).format for data in SEEDS.values()} == set(FORMATS)
    for name, data in SEEDS.items():
        image = decode(data, ANY)
        assert (image.mode, image.size, upright_size(data)) == ("RGB", (45, 60), (45, 60)), name
        apart = np.abs(np.asarray(image).astype(float) - np.asarray(PICTURE)).mean()
        assert apart < (60 if name in ("deep", "tiff deep", "cmyk") else 14), name
        assert more_frames(data) == (name in ("apng", "film", "webp film", "pages")), name
    assert more_frames(encoded(PICTURE, "AVIF", speed=10, **FILM))


@pytest.mark.parametrize("name", SEEDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8), st.booleans(), st.booleans())
def test_damaged_bytes_are_a_picture_or_a_reason(name: str, at: int, damage: bytes, insert: bool, near: bool) -> None:
    data = SEEDS[name]
    at %= 160 if near else len(data)
    spoilt = data[:at] + damage + data[at + (0 if insert else len(damage)) :]
    more_frames(spoilt)
    if reason_of(spoilt) == "" and min(upright_size(spoilt)) * 100 > max(upright_size(spoilt)):
        pack_image(spoilt, ImageOptions(min_side=1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_orientations_of_all_formats_that_have_them(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    how = {"tiffinfo": {ORIENTATION: orientation}} if kind == "TIFF" else {"exif": exif}
    data = encoded(PICTURE, kind, **how, **({"speed": 10} if kind == "AVIF" else {}))
    upright = PICTURE.transpose(TURNS[orientation]) if orientation > 1 else PICTURE
    found = decode(data, ANY)
    assert found.size == upright_size(data) == upright.size
    assert np.abs(np.asarray(found).astype(float) - np.asarray(upright)).mean() < 10


# Cuts

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3)).astype(np.uint8))


def png_cut(share: float) -> bytes:
    """Sound chunks to the end mark; pixels are missing."""
    data, parts, at = encoded(NOISE, "PNG"), [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    pixels = b"".join(body for kind, body in parts if kind == b"IDAT")
    kept = [parts[0], (b"IDAT", pixels[: int(len(pixels) * share)]), (b"IEND", b"")]
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in kept
    )


def webp_cut(share: float, **how: object) -> bytes:
    data = encoded(NOISE, "WEBP", **how)
    cut = bytearray(data[: int(len(data) * share) // 2 * 2])
    struct.pack_into("<I", cut, 4, len(cut) - 8)
    struct.pack_into("<I", cut, 16, len(cut) - 20)
    return bytes(cut)


def gif_cut(share: float) -> bytes:
    data = encoded(NOISE, "GIF")
    assert data.startswith(GIF)
    at = data.index(b"\x2c", 13 + 3 * 256)
    at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 128 else 0)
    while at < len(data) * share:
        at += 1 + data[at]
    return data[:at] + b"\0;"


CLOSED: dict[str, Callable[[float], bytes]] = {
    "png": png_cut,
    "webp": webp_cut,
    "webp lossless": lambda share: webp_cut(share, lossless=True),
    "gif": gif_cut,
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_cut_and_closed_is_refused(name: str, share: float) -> None:
    assert reason_of(CLOSED[name](share)) in ("truncated", "undecodable")


@pytest.mark.parametrize(
    "name", ["jpeg", "png", "webp", "webp lossless", "webp film", "avif", "bmp", "gif", "tiff", "tiff lzw"]
)
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_the_first_part_of_a_file_is_truncated(name: str, share: float) -> None:
    data = SEEDS[name]
    assert reason_of(data[: int(len(data) * share)]) == "truncated"


def test_what_is_said_of_cuts() -> None:
    half = {name: data[: len(data) // 2] for name, data in SEEDS.items()}
    for data, words in (
        (SEEDS["jpeg"][:-60] + b"\xff\xd9", "its pixel data ends too early"),
        (half["progressive"] + b"\xff\xd9", "its last scans are missing"),
        (half["webp"], "the file ends before the picture does"),
    ):
        with pytest.raises(BadImage) as caught:
            decode(data, ANY)
        assert (caught.value.reason, caught.value.detail) == ("truncated", words)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"subsampling": 0},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3},
        {"progressive": True, "restart_marker_rows": 1},
    ],
)
def test_a_jpeg_cut_and_closed_is_truncated(mode: str, how: dict[str, Any]) -> None:
    data = encoded(NOISE.convert(mode), **how)
    assert reason_of(data) == ""
    for share in (0.4, 0.5, 0.7, 0.9, 0.98):
        assert reason_of(data[: int(len(data) * share)] + b"\xff\xd9") == "truncated", share
        assert reason_of(data[:20] + b"junk" + data[20 : int(len(data) * share)] + b"\xff\xd9") == "truncated"
    # Harmless: bytes that stand between pixels and end mark, or behind it
    assert reason_of(data[:-2] + b"\0" * 40 + b"\xff\xd9") == "" == reason_of(data + b"\0" * 40)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 10_000), st.sampled_from(["jpeg", "progressive", "restarts", "cmyk"]))
def test_a_cut_anywhere_changes_no_pixel_unsaid(at: int, name: str) -> None:
    data = SEEDS[name]
    at %= len(data) - 4
    cut = data[:at] + b"\xff\xd9"
    if reason_of(cut) == "":  # then nothing was missing but padding
        assert np.array_equal(np.asarray(decode(cut, ANY)), np.asarray(decode(data, ANY)))


# Bombs


def directory_bomb(entries: int) -> bytes:
    """A TIFF whose tags each claim all of it."""
    size = 4_000_000
    head = struct.pack("<2sHIH", b"II", 42, 8, entries)
    body = b"".join(struct.pack("<HHII", 40_000 + k % 20_000, 7, size, 8) for k in range(entries))
    return (head + body).ljust(size, b"\0")


def gif_of_comments(blocks: int) -> bytes:
    data = encoded(PICTURE, "GIF")
    at = data.index(b"\x2c", 13 + 3 * 256)
    return data[:at] + b"\x21\xfe" + (b"\xff" + b"c" * 255) * blocks + b"\0" + data[at:]


def png_of_chunks(count: int) -> bytes:
    data = encoded(PICTURE, "PNG")
    body = b"teXt"
    return data[:33] + (struct.pack(">I", 0) + body + struct.pack(">I", zlib.crc32(body))) * count + data[33:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (directory_bomb(300), "more bytes than the file"),
        (directory_bomb(60_000), "entries in a directory"),
        (b"MM\0+" + bytes(5000), "BigTIFF"),
        (gif_of_comments(40_000), "blocks of comments"),
        (png_of_chunks(200_000), "chunks"),
        (encoded(PICTURE, "AVIF", speed=10) + directory_bomb(60_000), "entries in a directory"),
    ],
)
def test_metadata_that_takes_long_is_refused_at_once(data: bytes, words: str) -> None:
    started = time.process_time()
    with pytest.raises(BadImage, match="decompression bomb") as caught:
        decode(data, ANY)
    assert words in caught.value.detail and time.process_time() - started < 1.0


def test_much_metadata_is_no_harm() -> None:
    assert reason_of(png_of_chunks(500)) == reason_of(gif_of_comments(50)) == ""


LARGE = """
import io, sys
from PIL import Image
from shards.inputs.images import ANY, decode
kind, mode = sys.argv[1:]
side = 6000
out = io.BytesIO()
Image.new(mode, (side, side), 3).save(out, kind, **({"compress_level": 1} if kind == "PNG" else {}))
data = out.getvalue()
del out
def memory(kind):  # kB; getrusage's maximum is at least that of the process that started this one
    return int(open("/proc/self/status").read().split(kind)[1].split()[0])
with open("/proc/self/clear_refs", "w") as stream:
    stream.write("5")  # the maximum begins anew
made = memory("VmRSS:")
image = decode(data, ANY)
print((memory("VmHWM:") - made) * 1024 / side**2)
"""


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("PNG", "RGBA"), ("TIFF", "I;16")])
def test_large_ones_take_a_bounded_number_of_bytes_a_pixel(kind: str, mode: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE, kind, mode], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12  # 16-bit ones took 32


def test_heavy_decoders_have_fewer_pixels() -> None:
    data = encoded(Image.new("L", (200, 100)), "WEBP")
    assert decode(data, ImageOptions(max_pixels=40_000)).size == (200, 100)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(data, ImageOptions(max_pixels=39_000))
    assert decode(encoded(Image.new("L", (200, 100))), ImageOptions(max_pixels=20_000)).size == (200, 100)


def test_a_tiffs_tiles_are_bounded() -> None:
    pixels = zlib.compress(bytes(60_000))
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 200, 325: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = (struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries).ljust(200, b"\0") + pixels
    with pytest.raises(BadImage, match="decompression bomb") as caught:
        decode(data, ANY)
    assert caught.value.detail == "tiles of 3600000000 pixels, over 64000000"


def test_pixels_without_a_scale_are_refused() -> None:
    floats = Image.fromarray(np.linspace(0, 1, 1000, dtype=np.float32).reshape(20, 50))
    assert reason_of(encoded(floats, "TIFF")) == "undecodable"
    large = Image.fromarray(np.arange(1000, dtype=np.int32).reshape(20, 50) * 1000)
    assert reason_of(encoded(large, "TIFF")) == "undecodable"


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA", "P", "1", "CMYK", "L"])
def test_strips_give_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = DEEP if mode == "I;16" else PICTURE.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encoded(image, kind, **({"transparency": 3} if mode == "P" else {}))
    whole = np.asarray(decode(data, ANY))
    monkeypatch.setattr("shards.inputs.orientation.STRIP", 45 * 7)
    assert np.array_equal(np.asarray(decode(data, ANY)), whole)
