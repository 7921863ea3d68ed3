"""What a JPEG's headers say: as Pillow reads them, hostile bytes too. Scans are counted as a decoder meets them."""

from __future__ import annotations

import io
import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from shard_tools import draw, encoded, many_scans

from shards.inputs.images import ANY, BadImage, decode, upright_size
from shards.inputs.jpeg_header import (
    MAX_EXIF,
    MAX_SCANS,
    ORIENTATION,
    TooMuchWork,
    check_scans,
    missing_scans,
    orientation_of,
    read_jpeg_header,
    scans,
)

PICTURE = draw("header", 40, 60)


def tiff(order: str, kind: int, value: int, count: int = 1, entries: int = 1) -> bytes:
    """EXIF whose directory has the orientation, as a value of some type, behind other entries."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    size = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}[kind]
    entry = struct.pack(f"{order}HHI", ORIENTATION, kind, count) + struct.pack(f"{order}{size}", value).ljust(4, b"\0")
    other = struct.pack(f"{order}HHII", 0x0128, 3, 1, 0)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", entries) + other * (entries - 1) + entry + b"\0" * 4


def pillows(data: bytes) -> int:
    """The orientation that Pillow applies."""
    image = Image.open(io.BytesIO(data))
    found = [o for o in range(1, 9) if image.getexif().get(ORIENTATION, 1) == o]
    return found[0] if found else 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4, 8, 9])
def test_orientation_is_pillows(order: str, kind: int) -> None:
    for value in range(10):
        data = encoded(PICTURE, exif=tiff(order, kind, value, entries=3))
        header = read_jpeg_header(data)
        assert header is not None and header.orientation == pillows(data), value


def test_orientation_of_xmp_counts_where_exif_has_none() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    for exif, expected in ((None, 8), (tiff("<", 3, 6), 6)):
        options: dict[str, Any] = {"exif": exif} if exif else {}
        data = encoded(PICTURE, xmp=xmp, **options)
        header = read_jpeg_header(data)
        assert header is not None and header.orientation == expected == pillows(data)
        image = Image.open(io.BytesIO(data))
        assert decode(data, ANY).size == ImageOps.exif_transpose(image).size == upright_size(data)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=80), st.integers(0, 60), st.booleans())
def test_any_exif_has_an_orientation(noise: bytes, at: int, insert: bool) -> None:
    exif = tiff(">", 3, 6, entries=2)
    assert 1 <= orientation_of(exif[:at] + noise + exif[at + (0 if insert else len(noise)) :]) <= 8


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=12), st.booleans())
def test_a_damaged_header_is_none_or_says_what_pillow_says(at: int, damage: bytes, insert: bool) -> None:
    data = encoded(PICTURE, exif=tiff("<", 3, 3), progressive=True)
    at %= 700
    spoilt = data[:at] + damage + data[at + (0 if insert else len(damage)) :]
    header = read_jpeg_header(spoilt)
    list(scans(spoilt))
    if header is None:
        return
    missing_scans(spoilt, header)
    try:
        image = Image.open(io.BytesIO(spoilt), formats=("JPEG",))
    except Exception:
        return
    assert image.size == (header.width, header.height)


def test_scans_are_counted_as_a_decoder_meets_them() -> None:
    data = encoded(PICTURE, progressive=True)
    header = read_jpeg_header(data)
    assert header is not None and not header.one_scan and len(list(scans(data))) == 10
    baseline = encoded(PICTURE)
    plain = read_jpeg_header(baseline)
    assert plain is not None and plain.one_scan and list(scans(baseline)) == [plain.scan]
    # Two bytes like a scan's in a preview, in a profile, and behind the end are none.
    noise = b"\xff\xda\x00\x08" * 4000
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(noise)) + noise
    padded = data[:2] + comment + data[2:] + noise
    assert padded.count(b"\xff\xda") > 8000 and len(list(scans(padded))) == 10
    check_scans(padded, read_jpeg_header(padded))
    assert decode(padded, ANY).size == (40, 60)


def test_a_hundred_scans_are_the_most() -> None:
    for count, fits in ((MAX_SCANS, True), (MAX_SCANS + 1, False), (500, False)):
        data = many_scans(count)
        if fits:
            assert decode(data, ANY).size == upright_size(data) == (40, 60)
            continue
        for look in (lambda: decode(data, ANY), lambda: upright_size(data)):  # noqa: B023  # called at once
            with pytest.raises(BadImage, match="decompression bomb") as caught:
                look()
            assert caught.value.detail == f"40x60 in {count} scans, over {MAX_SCANS}"


def test_a_large_one_may_have_fewer() -> None:
    data = bytearray(many_scans(60))
    header = read_jpeg_header(bytes(data))
    assert header is not None
    check_scans(bytes(data), header)
    struct.pack_into(">HH", data, header.frame + 5, 8000, 8000)
    with pytest.raises(TooMuchWork, match="8000x8000 in 60 scans, over 20"):
        check_scans(bytes(data), read_jpeg_header(bytes(data)))


def test_scans_of_sequential_files_are_counted_too() -> None:
    data = encoded(PICTURE)
    header = read_jpeg_header(data)
    assert header is not None
    scan = data[header.scan : -2]
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(data[:-2] + scan * MAX_SCANS + data[-2:], ANY)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (b"\xff\xfe\x00\x04ab" * 300_000, "segments before its pixels"),
        (b"\xff" * 2_000_000, "bytes of padding"),
        ((b"\xff\xe1\xff\xff" + b"Exif\0\0".ljust(65_533, b"\1")) * 8, "bytes of EXIF"),
    ],
)
def test_headers_that_take_long_are_refused_at_once(part: bytes, words: str) -> None:
    data = encoded(PICTURE)
    started = time.process_time()
    with pytest.raises(BadImage, match="decompression bomb") as caught:
        decode(data[:2] + part + data[2:], ANY)
    assert words in caught.value.detail and time.process_time() - started < 1.0


def test_long_exif_of_one_segment_passes() -> None:
    exif = tiff("<", 3, 6) + b"\0" * 60_000
    assert len(exif) < MAX_EXIF and decode(encoded(PICTURE, exif=exif), ANY).size == (60, 40)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_missing_scans_are_noticed(mode: str, options: dict[str, Any]) -> None:
    data = encoded(PICTURE.convert(mode), progressive=True, **options)
    header = read_jpeg_header(data)
    assert header is not None and missing_scans(data, header) == ""
    starts = list(scans(data))
    for at in starts[1:]:
        # Tables of a scan stand before it; what ends with them and an end mark is a valid file.
        cut = data[:at] + b"\xff\xd9"
        assert missing_scans(cut, header)
        with pytest.raises(BadImage, match="truncated"):
            decode(cut, ANY)
