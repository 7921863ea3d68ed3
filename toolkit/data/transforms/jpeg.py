"""Decode the part of a JPEG that a crop needs, directly into memory of the caller. Decoding releases the GIL.

Two methods save time (docs/results/loader.md has the measurements):

- Rows below the crop are not decoded. The height in the frame header is lowered to the last row of the crop, rounded up
  to whole blocks, and the decoder stops there. Two more rows than needed are decoded for the chroma upsampling, so the
  decoded pixels are exact. Columns beside the crop are decoded. nvidia-nvimgcodec can skip these columns, but was never
  faster in our measurements.
- A large crop is decoded at 1/2, 1/4 or 1/8 of its size by libjpeg's scaled inverse DCT. The decoded crop is still at
  least crops.MARGIN times as large as the output, so the error is small (measured at crops.MARGIN).

shards.inputs.images.decode decodes JPEG files that libjpeg-turbo refuses, JPEG files with an EXIF rotation, and files
of all other formats. `posters shards build` uses the same function, so pixels and errors are the same.
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

BLOCK_ROWS = 16  # block height of the usual chroma subsamplings; other heights are multiples or divisors of it
#: libjpeg's last warning if the last rows of an undamaged file are not decoded. All requested rows are then in memory.
#: The warning has no other cause: plain_jpeg refuses files with extra bytes between segments, and missing pixels give a
#: different last warning.
_STOPPED = "extraneous bytes before marker"


class SwappedSize(Undecodable):
    """A valid image whose width and height are exchanged in the index, because old indexes ignored EXIF rotations."""


def rows_to_decode(last: Any, denominator: Any, height: Any) -> Any:
    """Return how many rows must be decoded so that the top ``last`` rows are exact. Takes numbers or int64 arrays."""
    return np.minimum(height, -(-(last + 2 * denominator) // BLOCK_ROWS) * BLOCK_ROWS)


def scaled(length: Any, denominator: Any) -> Any:
    """Return a length in pixels after libjpeg's scaled inverse DCT. Takes numbers or int64 arrays."""
    return -(-length // denominator)


def decode_rows(
    data: memoryview, width: int, height: int, rows: int, denominator: int, out: np.ndarray, channels: int = 3
) -> np.ndarray:
    """Decode the first ``rows`` rows of a ``width`` x ``height`` image at 1/``denominator`` of its size.

    ``data`` must be writable, because decoding can change its header. ``out`` is flat uint8 memory, at least as large
    as the result. Returns the part of ``out`` with the pixels: (scaled(rows), scaled(width), channels) uint8 RGB. A
    fourth channel has no meaning. Raises Undecodable, or SwappedSize if ``width`` and ``height`` are exchanged.
    """
    shape = (scaled(rows, denominator), scaled(width, denominator), channels)
    target = out[: shape[0] * shape[1] * channels].reshape(shape)
    header = plain_jpeg(data)
    if header is not None:
        _check_size((header.width, header.height), (width, height))
    # decode_any handles truncated files and files with appended bytes.
    whole = rows == height or bytes(data[-2:]) == b"\xff\xd9"
    if header is not None and whole and _decode_plain(data, header, rows, denominator, target):
        return target
    image = decode_any(data)
    _check_size(image.size, (width, height))
    return copy_rows(image, denominator, target)


def plain_jpeg(data: memoryview | bytes) -> JpegHeader | None:
    """Return the header of a complete, upright, grey or RGB JPEG that libjpeg can decode. Else return None."""
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
    """Decode to ``target``. Return False after an error or an unexpected warning."""
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
    """Decode an image of any format to an upright RGB image. Raises Undecodable."""
    try:
        return decode(bytes(data), ANY)
    except BadImage as bad:
        raise Undecodable(f"{bad.reason} ({bad.detail})" if bad.detail else bad.reason) from None
    except MemoryError as error:
        raise Undecodable(f"not enough memory: {one_line(error)}") from None


def copy_rows(image: Image.Image, denominator: int, target: np.ndarray) -> np.ndarray:
    """Reduce an image by ``denominator``. Copy the first h rows of the result to the (h, w, 3 or 4) ``target``."""
    small = image.reduce(denominator) if denominator > 1 else image
    rows = max(1, STRIP // small.width)
    for top in range(0, len(target), rows):
        bottom = min(len(target), top + rows)
        target[top:bottom, :, :3] = np.asarray(small.crop((0, top, small.width, bottom)))
    return target


def _check_size(found: tuple[int, int], stated: tuple[int, int]) -> None:
    """Raise Undecodable or SwappedSize if an image's (width, height) differs from the size in its index."""
    if found != stated:
        kind = SwappedSize if found == stated[::-1] else Undecodable
        raise kind(f"the image is {found[0]}x{found[1]}, but its index has {stated[0]}x{stated[1]}")
