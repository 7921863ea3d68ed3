"""Decoding only as far as needed gives the very pixels of decoding everything; damage gets Pillow's verdict."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pixel_tools import jpeg, picture

from toolkit.data.sources.errors import Undecodable
from toolkit.data.transforms.jpeg import decode_rows, rows_to_decode, scaled


def decode(data: bytes, width: int, height: int, rows: int, denominator: int = 1) -> np.ndarray:
    """decode_rows, with a guard behind the memory that it may use."""
    size = scaled(rows, denominator) * scaled(width, denominator) * 3
    memory = np.full(size + 64, 99, dtype=np.uint8)
    pixels = decode_rows(memoryview(bytearray(data)), width, height, rows, denominator, memory)
    assert (memory[size:] == 99).all()
    assert np.shares_memory(pixels, memory)
    return pixels


KINDS = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"progressive": True},
    {"optimize": True},
    {"restart_marker_blocks": 3},
    {"quality": 40},
]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 150), st.integers(1, 200), st.data(), st.sampled_from(KINDS), st.booleans())
def test_rows_before_the_last_are_exact(width, height, data, options, grey):
    image = picture(width, height).convert("L") if grey else picture(width, height)
    encoded = jpeg(image, **options)
    last = data.draw(st.integers(1, height))
    rows = int(rows_to_decode(last, 1, height))
    assert last <= rows <= height
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert np.array_equal(decode(encoded, width, height, rows)[:last], expected[:last])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 150), st.integers(1, 200), st.data(), st.sampled_from([2, 4, 8]), st.sampled_from(KINDS))
def test_smaller_sizes_are_libjpegs(width, height, data, denominator, options):
    encoded = jpeg(picture(width, height), **options)
    last = data.draw(st.integers(1, height))
    rows = int(rows_to_decode(last, denominator, height))
    whole = simplejpeg.decode_jpeg(
        encoded, min_height=scaled(height, denominator), min_width=scaled(width, denominator)
    )
    assert whole.shape[:2] == (scaled(height, denominator), scaled(width, denominator))
    part = decode(encoded, width, height, rows, denominator)
    usable = last // denominator
    assert np.array_equal(part[:usable], whole[:usable])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_four_bytes_a_pixel_hold_the_same_colours(kind: str):
    out = io.BytesIO()
    picture(41, 60).save(out, kind)
    three = decode(out.getvalue(), 41, 60, 48)
    memory = np.zeros(48 * 41 * 4, dtype=np.uint8)
    four = decode_rows(memoryview(bytearray(out.getvalue())), 41, 60, 48, 1, memory, channels=4)
    assert four.shape == (48, 41, 4) and np.array_equal(four[..., :3], three)


def test_fewer_rows_are_less_work():
    encoded = jpeg(picture(400, 600))
    junk = bytearray(encoded)
    junk[len(junk) // 2 : -2] = b"\x00" * (len(junk) - 2 - len(junk) // 2)  # the lower half is gone
    top = decode(bytes(junk), 400, 600, int(rows_to_decode(158, 1, 600)))
    assert len(top) == 160  # the last two have no neighbours to take their colours from
    assert np.array_equal(top[:158], np.asarray(Image.open(io.BytesIO(encoded)))[:158])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_other_formats_go_to_pillow(mode: str):
    out = io.BytesIO()
    image = picture(40, 60).convert(mode)
    image.save(out, "PNG")
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(out.getvalue(), 40, 60, 32), expected[:32])
    half = decode(out.getvalue(), 40, 60, 60, 2)
    assert half.shape == (30, 20, 3)
    blocks = expected.reshape(30, 2, 20, 2, 3).mean(axis=(1, 3))
    assert np.abs(half - blocks).max() <= 1


def test_cmyk_is_pillows():
    encoded = jpeg(picture(40, 60).convert("CMYK"))
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert np.array_equal(decode(encoded, 40, 60, 16), expected[:16])


def test_bytes_after_the_end_do_no_harm():
    encoded = jpeg(picture(40, 60))
    expected = np.asarray(Image.open(io.BytesIO(encoded)))
    assert np.array_equal(decode(encoded + b"trailer", 40, 60, 16), expected[:16])


@pytest.mark.parametrize("rows", [16, 60])
@pytest.mark.parametrize("keep", [0, 1, 3, 20, 200, 700])
def test_a_file_cut_short_is_undecodable_however_little_of_it_is_needed(rows: int, keep: int):
    encoded = jpeg(picture(40, 60))
    assert len(encoded) > 1000
    with pytest.raises(Undecodable):
        decode(encoded[:keep], 40, 60, rows)


@pytest.mark.parametrize("rows", [16, 60])
@pytest.mark.parametrize("data", [b"\x00" * 500, b"<html>not found</html>", b"\xff\xd8\xff\xe0" + b"\xff" * 300])
def test_no_picture_is_undecodable_and_says_so(data: bytes, rows: int):
    with pytest.raises(Undecodable) as caught:
        decode(data, 40, 60, rows)
    assert "\n" not in str(caught.value) and str(caught.value)


@pytest.mark.parametrize("size", [(40, 61), (41, 60), (60, 40)])
def test_a_size_other_than_the_index_says_is_named(size: tuple[int, int]):
    with pytest.raises(Undecodable, match=f"is 40x60, but its index has {size[0]}x{size[1]}"):
        decode(jpeg(picture(40, 60)), *size, rows=16)


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=40), st.integers(0, 3000), st.integers(1, 90))
def test_damaged_bytes_are_decoded_or_refused_never_more(garbage, at, rows):
    encoded = bytearray(jpeg(picture(64, 90)))
    at %= len(encoded)
    encoded[at : at + len(garbage)] = garbage
    try:
        assert decode(bytes(encoded), 64, 90, int(rows_to_decode(rows, 1, 90))).shape[1:] == (64, 3)
    except Undecodable as error:
        assert str(error)
