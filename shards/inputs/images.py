"""Check and decode the bytes of a poster, and turn them into the JPEG of a shard. image_files.py finds the files.

All functions depend on the bytes and the options only, so a shard built twice is the same. Every command decodes here
or in toolkit/data/transforms/jpeg.py, which is faster, gives the same pixels, and calls this module for other files.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import simplejpeg
from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # to register formats

from shards.errors import UserError, one_line
from shards.inputs.image_structure import check_structure, cut_off
from shards.inputs.jpeg_header import JpegHeader, TooMuchWork, missing_scans, most_scans, read_jpeg_header, without_junk
from shards.inputs.metadata import Unusable
from shards.inputs.orientation import orientation, rgb, turned
from shards.options import option
from shards.values import Checked, Count, between

#: Only picture formats are allowed: Pillow starts other programs for document formats (EPS, PDF).
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
#: Messages of libjpeg-turbo for a JPEG with an end marker whose pixel data ends too early.
CUT_SHORT = re.compile("premature end of data segment|found marker 0xd9 instead of RST")
#: Larger JPEGs are only checked by simplejpeg and decoded by Pillow: another copy would double the memory.
FAST_PIXELS = 16_000_000
#: Largest memory of decoding in bytes per pixel: the usual value, and formats that need more.
_USUAL, _HEAVY = 10, {"WEBP": 20, "AVIF": 16}


def parse_aspect(text: str) -> tuple[float, float]:
    """``0.5,0.9`` → (0.5, 0.9). Raises UserError."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        message = f"--aspect takes two ratios of width to height such as 0.5,0.9, not {text!r}"
        raise UserError("option-value", message) from None
    return low, high


#: Fields of ImageOptions that decide which posters are accepted.
LIMITS = ("min_side", "max_pixels", "aspect")


@dataclass(frozen=True)
class ImageOptions(Checked):
    """How posters are checked and packed.

    All fields are part of a shard's plan (pack.PackTask.plan): a new field at its default must not change plans.
    """

    short_side: int = 256
    """Largest short side in pixels; larger posters are shrunk, smaller ones are not enlarged."""
    long_side: int = 512
    """Largest long side in pixels; it limits very wide and very tall posters."""
    quality: Annotated[int, between(1, 95)] = 90
    """JPEG quality of re-encoded posters; posters that already fit keep their bytes."""
    min_side: Count = 32
    """Posters with a shorter side (pixels) are rejected as too small."""
    max_pixels: Count = 64_000_000
    """Posters with more pixels in their header are rejected as decompression bombs."""
    aspect: tuple[float, float] | None = option(None, metavar="LOW,HIGH", parse=parse_aspect)
    """Narrowest and widest width / height; posters outside are rejected as odd shapes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.short_side <= self.long_side:
            given = f"{self.short_side} (--long-side {self.long_side})"
            raise UserError("option-value", f"--short-side must be between 8 and --long-side, not {given}")
        if self.aspect is not None and not 0 < self.aspect[0] <= self.aspect[1] < float("inf"):
            message = f"--aspect takes two ratios of width to height, the smaller first, not {self.aspect}"
            raise UserError("option-value", message)


#: Accepts everything that can be decoded: for pictures that were named one by one, or checked before.
ANY = ImageOptions(min_side=1)


class BadImage(Unusable):
    """A picture that cannot be used."""


@contextmanager
def blamed_on_the_picture(reason: str) -> Iterator[None]:
    """Turn a library's error about one picture, such as a shape beyond OpenCV's limits, into BadImage.

    Errors of a full disk or a wrong environment (UserError) pass unchanged.
    """
    try:
        yield
    except (BadImage, UserError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadImage(reason, f"{type(error).__name__}: {_without_address(error)}") from error


@dataclass(frozen=True)
class Packed:
    """A poster as it is stored in a shard: the bytes of an upright RGB JPEG, and its size in pixels."""

    data: bytes
    width: int
    height: int


def decode(data: bytes, options: ImageOptions, target: tuple[int, int] | None = None) -> Image.Image:
    """Decode fully and return RGB pixels in their upright orientation. Of several frames, the first is used.

    ``target`` (width, height): a JPEG may be decoded at a reduced scale, not below this size. It is then not checked
    for missing pixels.
    Raises BadImage: not an image, decompression bomb, too small, truncated, undecodable, odd shape.
    """
    image, header = _opened(data, options)
    pixels = None
    if header is not None and target is None:
        # Pillow decodes CMYK and large pictures: another decoder's copy would double the memory.
        fast = header.components != 4 and header.width * header.height <= FAST_PIXELS
        found = _whole_jpeg(data, header, smallest=not fast)
        pixels = Image.fromarray(found) if fast and found is not None else None
    elif image.format == "JPEG" and target is None:
        plain = without_junk(data)
        if rules := read_jpeg_header(plain):
            _whole_jpeg(plain, rules, smallest=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            turn = orientation(image) if header is None else header.orientation
            if pixels is None:
                if target is not None:
                    image.draft(None, target)
                image.load()
                pixels = rgb(image)
        del image  # free its memory before the turned copy is made
        upright = turned(pixels, turn)
    except Exception as error:  # parsers of hostile bytes raise nearly anything; the reason is recorded
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadImage(reason, _without_address(error)) from None
    low, high = options.aspect or (0.0, float("inf"))
    if not low <= upright.width / upright.height <= high:
        raise BadImage("odd shape", f"{upright.width}x{upright.height} pixels, not within {low:g} to {high:g}")
    return upright


def upright_size(data: bytes) -> tuple[int, int]:
    """Return the (width, height) of the picture that ``decode`` returns. All pixel data is checked.

    Raises BadImage if the picture cannot be decoded.
    """
    _, header = _opened(data, ANY)
    if header is None or _whole_jpeg(data, header, smallest=True) is None:
        return decode(data, ANY).size
    return (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)


def _opened(data: bytes, options: ImageOptions) -> tuple[Image.Image, JpegHeader | None]:
    """Return the picture with only its headers read, and the header of a valid JPEG, else None."""
    try:
        header = check_structure(data)
    except TooMuchWork as error:
        raise BadImage("decompression bomb", str(error)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and of size; both are checked here
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise BadImage("decompression bomb", one_line(error)) from None
        except Exception as error:  # parsers of hostile bytes raise nearly anything; the reason is recorded
            if cut_off(data):
                raise BadImage("truncated", "the file ends before the picture does") from None
            raise BadImage("not an image", _without_address(error)) from None
    width, height = image.size
    most = options.max_pixels * _USUAL // _HEAVY.get(str(image.format), _USUAL)
    tile = _tile_pixels(image)
    if image.format == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        found, limit = data.count(b"\xff\xda"), most_scans(width * height)
        if found > limit:  # of all tiles; each tile is a JPEG
            raise BadImage("decompression bomb", f"{width}x{height} in {found} scans, over {limit}")
    if max(width * height, tile) > most:
        what = f"{width}x{height} pixels" if width * height > most else f"tiles of {tile} pixels"
        raise BadImage("decompression bomb", f"{what}, over {most}")
    if min(width, height) < options.min_side:
        raise BadImage("too small", f"{width}x{height} pixels, under {options.min_side}")
    return image, header


def _tile_pixels(image: Image.Image) -> int:
    """Return the pixels of a TIFF's tile, since a tile is decoded as a whole; 0 if there are no tiles."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    sides = [image.tag_v2.get(tag, 0) for tag in (322, 323)]
    return int(sides[0] * sides[1]) if all(isinstance(side, int) for side in sides) else 0


def _whole_jpeg(data: bytes, header: JpegHeader, smallest: bool) -> np.ndarray | None:
    """Return the stored pixels of a faultless JPEG, (h, w, c) uint8; None if Pillow must decode it.

    ``smallest``: at 1/8 size. Raises BadImage if data is missing: libjpeg fills gaps with grey, Pillow ignores that.
    """
    lack = "" if header.one_scan else missing_scans(data, header)
    if lack:
        raise BadImage("truncated", lack)
    try:
        colours = "CMYK" if header.components == 4 else "RGB"
        least = {"min_height": 1, "min_width": 1, "min_factor": 8} if smallest else {}
        return simplejpeg.decode_jpeg(data, colours, **least)
    except ValueError as error:
        if CUT_SHORT.search(str(error)):
            raise BadImage("truncated", "its pixel data ends too early") from None
    return None


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) of an upright RGB JPEG, else None. Only headers are read."""
    image, header = _opened(data, ANY)
    plain = image.format == "JPEG" and image.mode == "RGB" and header is not None and header.orientation == 1
    return image.size if plain else None


def pack_image(data: bytes, options: ImageOptions) -> Packed:
    """Return the JPEG for the shard: the original bytes if they fit, else a shrunk, upright RGB re-encoding.

    Raises BadImage as ``decode`` does. Callers usually check the bytes before, by decoding them.
    """
    size = plain_jpeg_size(data)
    if size is not None and fitted_size(*size, options) == size:
        return Packed(data, *size)
    header, _ = _opened(data, options)
    # The stored picture may lie on its side, so the target is a square.
    bound = 2 * max(fitted_size(header.width, header.height, options))
    return shrunk(decode(data, options, target=(bound, bound)), options)


def shrunk(image: Image.Image, options: ImageOptions) -> Packed:
    """Shrink an RGB image to the size limits, and encode it as JPEG."""
    size = fitted_size(image.width, image.height, options)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return Packed(jpeg(image, options.quality, optimize=True), *size)


def jpeg(image: Image.Image, quality: int, **how: Any) -> bytes:
    """Return the bytes of an RGB picture as JPEG; ``how``: other options of Pillow's JPEG writer."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, **how)
    return out.getvalue()


def fitted_size(width: int, height: int, options: ImageOptions) -> tuple[int, int]:
    """Return (width, height) after shrinking to the size limits. The aspect ratio is kept; pictures are never enlarged.

    >>> fitted_size(500, 750, ImageOptions(short_side=250, long_side=500))
    (250, 375)
    """
    scale = min(1.0, options.short_side / min(width, height), options.long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _without_address(error: Exception) -> str:
    """Return an error's message without object addresses, which would make rejected.csv differ between runs."""
    text = one_line(error)
    return "no known picture format" if "BytesIO" in text else text[:200]
