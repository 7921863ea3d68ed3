"""Decode the part of a JPEG that a crop needs, straight into the caller's memory, with the GIL released.

Two savings, each exact or bounded (toolkit/data/README.md has the measurements):

- Rows below the crop are not decoded: the height in the frame header is lowered to the crop's last row, rounded up to
  whole blocks, and the decoder stops there. Entropy coding, inverse DCT and colour conversion of the rest are saved;
  the pixels that remain are the same to the bit, because two more rows than needed keep the chroma upsampling's
  neighbours. Region decoders skip the columns beside the crop too, but hardly gain by it: in our measurements this was
  never slower than nvidia-nvimgcodec's region decoding.
- Where the crop is at least ``denominator`` times as large as the output, libjpeg's scaled inverse DCT gives 1/2, 1/4
  or 1/8 of the size.

Whatever libjpeg-turbo refuses, and every other format, goes to Pillow: its verdict on damaged bytes is the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from shards.errors import one_line
from toolkit.data.transforms import decode_rgb

BLOCK_ROWS = 16  # rows of a block of the usual chroma subsamplings; others are multiples or divisors
_NO_FRAME = frozenset(
    (0xC4, 0xC8, 0xCC)
)  # Huffman tables, reserved, arithmetic conditioning: among SOF0..SOF15


class Undecodable(Exception):
    """An image that neither decoder accepts. The message is one line."""


def rows_to_decode(last: Any, denominator: Any, height: Any) -> Any:
    """Rows of the stored image to decode so that rows before ``last`` come out exact; numbers or arrays of int64."""
    return np.minimum(height, -(-(last + 2 * denominator) // BLOCK_ROWS) * BLOCK_ROWS)


def scaled(length: Any, denominator: Any) -> Any:
    """Length in pixels after libjpeg's scaled inverse DCT; numbers or arrays of int64."""
    return -(-length // denominator)


def decode_rows(
    data: memoryview,
    width: int,
    height: int,
    rows: int,
    denominator: int,
    out: np.ndarray,
    channels: int = 3,
) -> np.ndarray:
    """Decode the first ``rows`` rows of a ``width`` x ``height`` image at 1/``denominator`` of its size.

    ``data`` is writable: its header may be changed. ``out`` is flat uint8 memory, at least as large as the result.
    Returns the (scaled(rows), scaled(width), channels) uint8 view of ``out``: RGB, or with four channels RGB and one
    that means nothing. Raises Undecodable.
    """
    shape = (scaled(rows, denominator), scaled(width, denominator), channels)
    target = out[: shape[0] * shape[1] * channels]
    frame = _frame_header(data)
    if frame is None or data[frame + 9] not in (1, 3):  # no JPEG, or CMYK
        return _with_pillow(data, width, height, rows, denominator, target.reshape(shape))
    found = data[frame + 7] << 8 | data[frame + 8], data[frame + 5] << 8 | data[frame + 6]
    if found != (width, height):
        raise Undecodable(_wrong_size(found, (width, height)))
    cut = rows < height
    if cut and bytes(data[-2:]) != b"\xff\xd9":  # cut short, or something appended: Pillow knows which
        return _with_pillow(data, width, height, rows, denominator, target.reshape(shape))
    if cut:
        data[frame + 5], data[frame + 6] = rows >> 8, rows & 255
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "RGB" if channels == 3 else "RGBX",
            min_height=shape[0],
            min_width=shape[1],
            min_factor=denominator,
            buffer=target,
            strict=not cut,  # the rows left out are "extraneous bytes"
        )
    except ValueError:
        pixels = None
    if pixels is None or pixels.shape != shape:
        if cut:
            data[frame + 5], data[frame + 6] = height >> 8, height & 255
        return _with_pillow(data, width, height, rows, denominator, target.reshape(shape))
    return pixels


def _frame_header(data: memoryview) -> int | None:
    """Offset of the start-of-frame marker; None if this is no JPEG or its header is broken."""
    if len(data) < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return None
    at, end = 2, len(data) - 10
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            return at
        if marker == 0xDA:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _with_pillow(
    data: memoryview, width: int, height: int, rows: int, denominator: int, target: np.ndarray
) -> np.ndarray:
    try:
        image = decode_rgb(bytes(data))
    except Exception as error:  # damaged bytes raise nearly anything in Pillow's many formats
        raise Undecodable(_why(error)) from error
    if image.size != (width, height):
        raise Undecodable(_wrong_size(image.size, (width, height)))
    if denominator > 1:
        image = image.reduce(denominator)
    target[..., :3] = np.asarray(image)[: target.shape[0]]
    return target


def _wrong_size(found: tuple[int, int], told: tuple[int, int]) -> str:
    return f"the image is {found[0]}x{found[1]}, its index says {told[0]}x{told[1]}"


def _why(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no known picture format"
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
