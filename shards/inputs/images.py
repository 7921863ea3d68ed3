"""Check and decode the bytes of a poster, and encode the pixels as the JPEG of a shard. image_files.py finds the files.

The results depend only on the bytes and the options, so a second build gives the same shard. Every command decodes
here or in toolkit/data/transforms/jpeg.py. The module jpeg.py is faster for most JPEGs, gives the same pixels, and
calls this module for all other files.
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
from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # registers formats

from shards.errors import UserError, one_line
from shards.inputs.image_structure import check_structure, cut_off
from shards.inputs.jpeg_header import JpegHeader, TooMuchWork, missing_scans, most_scans, read_jpeg_header, without_junk
from shards.inputs.orientation import orientation, rgb, turned
from shards.inputs.rejections import Unusable
from shards.options import option
from shards.values import Checked, Count, between

#: Names of the allowed formats. EPS and PDF documents are not allowed, because Pillow starts programs to read them.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
#: Messages of libjpeg-turbo for a JPEG that has an end marker, but too little pixel data.
CUT_SHORT = re.compile("premature end of data segment|found marker 0xd9 instead of RST")
#: Pixels of the largest JPEG that is decoded with simplejpeg. Larger JPEGs are decoded with Pillow in half the memory.
FAST_PIXELS = 16_000_000
#: Largest memory for decoding in bytes per pixel: for usual formats, and for two heavy formats.
_USUAL, _HEAVY = 10, {"WEBP": 20, "AVIF": 16}


def parse_aspect(text: str) -> tuple[float, float]:
    """Parse two ratios of width to height: ``0.5,0.9`` becomes (0.5, 0.9). Raises UserError."""
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
    """How posters are checked, and how they are encoded for a shard.

    PackTask.plan computes a fingerprint from the fields. The default of a new field must not change the fingerprint.
    """

    short_side: int = 256
    """Largest short side in pixels. Larger posters are shrunk. Smaller posters are not enlarged."""
    long_side: int = 512
    """Largest long side in pixels, for very wide and very tall posters."""
    quality: Annotated[int, between(1, 95)] = 90
    """JPEG quality of posters that are encoded again. Upright RGB JPEGs within both size limits keep their bytes."""
    min_side: Count = 32
    """Smallest allowed side in pixels. Posters with a shorter side are rejected."""
    max_pixels: Count = 64_000_000
    """Largest allowed number of pixels. Posters with more pixels are rejected as decompression bombs."""
    aspect: tuple[float, float] | None = option(None, metavar="LOW,HIGH", parse=parse_aspect)
    """Smallest and largest allowed ratio of width to height. Other posters are rejected (default: no limits)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.short_side <= self.long_side:
            given = f"{self.short_side} (--long-side {self.long_side})"
            raise UserError("option-value", f"--short-side must be between 8 and --long-side, not {given}")
        if self.aspect is not None and not 0 < self.aspect[0] <= self.aspect[1] < float("inf"):
            message = f"--aspect takes two ratios of width to height, the smaller first, not {self.aspect}"
            raise UserError("option-value", message)


#: Options that accept every picture that can be decoded and is not a decompression bomb.
ANY = ImageOptions(min_side=1)


class BadImage(Unusable):
    """A picture that cannot be decoded or is outside of the limits of ImageOptions."""


@contextmanager
def blamed_on_the_picture(reason: str) -> Iterator[None]:
    """Raise BadImage instead of an error of a library, for example if a picture is too large for OpenCV.

    UserError and operating system errors (such as a full disk) are raised unchanged.
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
    """A poster for a shard. ``data`` is an upright RGB JPEG, ``width`` and ``height`` are its size in pixels."""

    data: bytes
    width: int
    height: int


def decode(data: bytes, options: ImageOptions, target: tuple[int, int] | None = None) -> Image.Image:
    """Return the upright RGB pixels of a picture. If the picture has several frames, the first frame is used.

    target: (width, height). To save time, a JPEG can be decoded at a smaller scale, but not below this size. With a
    target, a JPEG is not checked for missing pixel data.
    Raises BadImage with a reason: not an image, decompression bomb, too small, truncated, undecodable, odd shape.
    """
    image, header = _opened(data, options)
    pixels = None
    if header is not None and target is None:
        # Pillow decodes CMYK and large pictures. For these, simplejpeg only checks the pixel data.
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
    except Exception as error:  # bad bytes cause many kinds of exceptions in the parsers
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadImage(reason, _without_address(error)) from None
    low, high = options.aspect or (0.0, float("inf"))
    if not low <= upright.width / upright.height <= high:
        raise BadImage("odd shape", f"{upright.width}x{upright.height}: width / height is not from {low:g} to {high:g}")
    return upright


def upright_size(data: bytes) -> tuple[int, int]:
    """Check all pixel data. Return (width, height) of the upright picture. Raises BadImage if the data has a fault."""
    _, header = _opened(data, ANY)
    if header is None or _whole_jpeg(data, header, smallest=True) is None:
        return decode(data, ANY).size
    return (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)


def _opened(data: bytes, options: ImageOptions) -> tuple[Image.Image, JpegHeader | None]:
    """Read the headers. Return the Pillow image, and the JpegHeader (None if the bytes are not a valid JPEG)."""
    try:
        header = check_structure(data)
    except TooMuchWork as error:
        raise BadImage("decompression bomb", str(error)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of unusual EXIF and large sizes. Sizes are checked below.
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise BadImage("decompression bomb", one_line(error)) from None
        except Exception as error:  # bad bytes cause many kinds of exceptions in the parsers
            if cut_off(data):
                raise BadImage("truncated", "the file ends before the picture does") from None
            raise BadImage("not an image", _without_address(error)) from None
    width, height = image.size
    most = options.max_pixels * _USUAL // _HEAVY.get(str(image.format), _USUAL)
    tile = _tile_pixels(image)
    if image.format == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg"):
        found, limit = data.count(b"\xff\xda"), most_scans(width * height)
        if found > limit:  # each tile of the TIFF is a JPEG, and the scans of all tiles are counted
            raise BadImage("decompression bomb", f"{width}x{height} in {found} scans, over {limit}")
    if max(width * height, tile) > most:
        what = f"{width}x{height} pixels" if width * height > most else f"tiles of {tile} pixels"
        raise BadImage("decompression bomb", f"{what}, over {most}")
    if min(width, height) < options.min_side:
        raise BadImage("too small", f"{width}x{height} pixels, under {options.min_side}")
    return image, header


def _tile_pixels(image: Image.Image) -> int:
    """Return the number of pixels in a tile of a TIFF, 0 if there are no tiles. A tile is always decoded as a whole."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    sides = [image.tag_v2.get(tag, 0) for tag in (322, 323)]
    return int(sides[0] * sides[1]) if all(isinstance(side, int) for side in sides) else 0


def _whole_jpeg(data: bytes, header: JpegHeader, smallest: bool) -> np.ndarray | None:
    """Decode a JPEG with simplejpeg. Return (h, w, c) uint8, not rotated, or None if simplejpeg refuses the JPEG.

    smallest: decode at 1/8 size. Raises BadImage if pixel data is missing, because Pillow fills such gaps with grey.
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
    """Return the (width, height) of an upright RGB JPEG, None for other pictures. Only headers are read."""
    image, header = _opened(data, ANY)
    plain = image.format == "JPEG" and image.mode == "RGB" and header is not None and header.orientation == 1
    return image.size if plain else None


def pack_image(data: bytes, options: ImageOptions) -> Packed:
    """Return the JPEG for the shard. An upright RGB JPEG that fits the size limits keeps its bytes.

    All other pictures are turned upright, shrunk if they are too large, and encoded again. Raises BadImage.
    """
    size = plain_jpeg_size(data)
    if size is not None and fitted_size(*size, options) == size:
        return Packed(data, *size)
    header, _ = _opened(data, options)
    # The orientation may exchange width and height, so the target is a square.
    bound = 2 * max(fitted_size(header.width, header.height, options))
    return shrunk(decode(data, options, target=(bound, bound)), options)


def shrunk(image: Image.Image, options: ImageOptions) -> Packed:
    """Shrink an RGB image to the size limits, and encode it as JPEG."""
    size = fitted_size(image.width, image.height, options)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return Packed(jpeg(image, options.quality, optimize=True), *size)


def jpeg(image: Image.Image, quality: int, **how: Any) -> bytes:
    """Encode an RGB picture as JPEG. ``how`` are options of Pillow's JPEG writer."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, **how)
    return out.getvalue()


def fitted_size(width: int, height: int, options: ImageOptions) -> tuple[int, int]:
    """Return (width, height) after shrinking to the size limits. The aspect ratio is kept.

    >>> fitted_size(500, 750, ImageOptions(short_side=250, long_side=500))
    (250, 375)
    """
    scale = min(1.0, options.short_side / min(width, height), options.long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _without_address(error: Exception) -> str:
    """Return an error's message without memory addresses, because rejected.csv must be the same in each run."""
    text = one_line(error)
    return "no known picture format" if "BytesIO" in text else text[:200]
