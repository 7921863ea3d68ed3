"""Decode the part of a JPEG that a crop needs, straight into the caller's memory, with the GIL released.

Two savings, each exact or bounded (docs/results/loader.md has the measurements):

- Rows below the crop are not decoded: the height in the frame header is lowered to the crop's last row, rounded up to
  whole blocks, and the decoder stops there. Entropy coding, inverse DCT and colour conversion of the rest are saved;
  the pixels that remain are the same to the bit, because two more rows than needed keep the chroma upsampling's
  neighbours. Region decoders skip the columns beside the crop too, but hardly gain by it: in our measurements this was
  never slower than nvidia-nvimgcodec's region decoding.
- Where the crop is ``denominator`` times the output or more, libjpeg's scaled inverse DCT gives 1/2, 1/4 or 1/8 of it.

What libjpeg-turbo refuses, what its EXIF turns, and every other format goes to shards.images.decode: pixels and
verdicts are those of `posters shards build`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from shards.errors import one_line
from shards.inputs.images import ANY, BadImage, decode
from shards.inputs.jpeg_header import JpegHeader, TooMuchWork, check_scans, missing_scans, read_jpeg_header
from shards.inputs.orientation import STRIP
from toolkit.data.sources.errors import Undecodable

BLOCK_ROWS = 16  # rows of a block of the usual chroma subsamplings; others are multiples or divisors
#: libjpeg's last warning where rows of a sound file were left out. It comes after decoding, when all rows that were
#: asked for are in memory: headers with such bytes between their segments are not plain, and where pixels are missing,
#: that is the last warning.
_STOPPED = "extraneous bytes before marker"


class Turned(Undecodable):
    """A valid image whose width and height are exchanged in the index, as in old indexes that ignored EXIF."""


def rows_to_decode(last: Any, denominator: Any, height: Any) -> Any:
    """Rows of the stored image to decode so that rows before ``last`` come out exact; numbers or arrays of int64."""
    return np.minimum(height, -(-(last + 2 * denominator) // BLOCK_ROWS) * BLOCK_ROWS)


def scaled(length: Any, denominator: Any) -> Any:
    """Length in pixels after libjpeg's scaled inverse DCT; numbers or arrays of int64."""
    return -(-length // denominator)


def decode_rows(
    data: memoryview, width: int, height: int, rows: int, denominator: int, out: np.ndarray, channels: int = 3
) -> np.ndarray:
    """Decode the first ``rows`` rows of a ``width`` x ``height`` image at 1/``denominator`` of its size.

    ``data`` is writable: its header may be changed. ``out`` is flat uint8 memory, at least as large as the result.
    Returns the (scaled(rows), scaled(width), channels) uint8 view of ``out``: RGB, or with four channels RGB and one
    that means nothing. Raises Undecodable, and Turned if ``width`` and ``height`` change places.
    """
    shape = (scaled(rows, denominator), scaled(width, denominator), channels)
    target = out[: shape[0] * shape[1] * channels].reshape(shape)
    header = plain_jpeg(data)
    if header is not None:
        _check_size((header.width, header.height), (width, height))
    # A truncated file, or one with appended bytes, is left to the other decoder, which handles both cases.
    whole = rows == height or bytes(data[-2:]) == b"\xff\xd9"
    if header is not None and whole and _decode_plain(data, header, rows, denominator, target):
        return target
    image = decode_any(data)
    _check_size(image.size, (width, height))
    return place(image, denominator, target)


def plain_jpeg(data: memoryview | bytes) -> JpegHeader | None:
    """Return the header of a JPEG for libjpeg alone (grey or three colours, upright, complete), else None."""
    try:
        header = read_jpeg_header(data)
        if header is None or header.components not in (1, 3) or header.orientation != 1:
            return None
        if header.width * header.height > ANY.max_pixels:
            return None
        if not header.one_scan:
            whole = bytes(data)
            check_scans(whole, header)
            return None if missing_scans(whole, header) else header
    except TooMuchWork:
        return None
    return header


def _decode_plain(data: memoryview, header: JpegHeader, rows: int, denominator: int, target: np.ndarray) -> bool:
    """Decode to ``target``. Return whether there was no error or warning."""
    at, height, cut = header.frame + 5, header.height, rows < header.height
    if cut:
        data[at], data[at + 1] = rows >> 8, rows & 255
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB" if target.shape[2] == 3 else "RGBX",
            min_height=target.shape[0],
            min_width=target.shape[1],
            min_factor=denominator,
            buffer=target.reshape(-1),
        )
        done = pixels.shape == target.shape
    except ValueError as error:
        done = cut and _STOPPED in str(error)
    if cut and not done:
        data[at], data[at + 1] = height >> 8, height & 255
    return done


def decode_any(data: memoryview | bytes) -> Image.Image:
    """Decode any format to an upright RGB image, as in all commands. Raises Undecodable."""
    try:
        return decode(bytes(data), ANY)
    except BadImage as bad:
        raise Undecodable(f"{bad.reason} ({bad.detail})" if bad.detail else bad.reason) from None
    except MemoryError as error:
        raise Undecodable(f"not enough memory: {one_line(error)}") from None


def place(image: Image.Image, denominator: int, target: np.ndarray) -> np.ndarray:
    """Copy the first rows of a picture, at 1/``denominator`` of its size, to ``target`` (h, w, 3 or 4)."""
    small = image.reduce(denominator) if denominator > 1 else image
    rows = max(1, STRIP // small.width)
    for top in range(0, len(target), rows):
        bottom = min(len(target), top + rows)
        target[top:bottom, :, :3] = np.asarray(small.crop((0, top, small.width, bottom)))
    return target


def _check_size(found: tuple[int, int], told: tuple[int, int]) -> None:
    """Raise Undecodable or Turned for an image of another size than its index says; sizes are (width, height)."""
    if found != told:
        kind = Turned if found == told[::-1] else Undecodable
        raise kind(f"the image is {found[0]}x{found[1]}, its index says {told[0]}x{told[1]}")
