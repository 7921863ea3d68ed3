"""Poster bytes: check them, decode them, and turn them into the JPEG that a shard holds. image_files.py finds them.

Everything here is a pure function of the bytes and the options, so a shard built twice is the same. Every command
decodes here, or in toolkit/data/transforms/jpeg.py, which gives the same pixels faster and leaves the rest to this.
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
from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401  # registered only when asked

from shards.errors import UserError, one_line
from shards.inputs.image_structure import check_structure, cut_off
from shards.inputs.jpeg_header import JpegHeader, TooMuchWork, missing_scans, most_scans, read_jpeg_header, without_junk
from shards.inputs.metadata import Unusable
from shards.inputs.orientation import orientation, rgb, turned
from shards.options import option
from shards.values import Checked, Count, between

#: Only picture formats are tried: Pillow's document formats (EPS, PDF) would start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
#: What libjpeg-turbo says where the pixels of a JPEG end before the picture does, though an end marker is there.
CUT_SHORT = re.compile("premature end of data segment|found marker 0xd9 instead of RST")
#: JPEGs of more pixels are decoded by Pillow after a look: the other decoder's copy would double the memory.
FAST_PIXELS = 16_000_000
#: Bytes a pixel that decoding takes at most, and those formats whose decoders take more.
_USUAL, _HEAVY = 10, {"WEBP": 20, "AVIF": 16}


def parse_aspect(text: str) -> tuple[float, float]:
    """``0.5,0.9`` → (0.5, 0.9). Raises UserError."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        message = f"--aspect takes two ratios of width to height such as 0.5,0.9, not {text!r}"
        raise UserError("option-value", message) from None
    return low, high


#: Fields of ImageOptions that say which posters are good enough.
LIMITS = ("min_side", "max_pixels", "aspect")


@dataclass(frozen=True)
class ImageOptions(Checked):
    """How posters are checked and packed.

    A shard remembers all of them (pack.PackTask.plan): a new one at its default must leave plans as they were.
    """

    short_side: int = 256
    """Longest allowed short side in pixels; larger posters are shrunk, none is enlarged."""
    long_side: int = 512
    """Longest allowed long side in pixels; it bounds banners and scrolls."""
    quality: Annotated[int, between(1, 95)] = 90
    """JPEG quality of re-encoded posters (those that already fit keep their bytes)."""
    min_side: Count = 32
    """Posters with a shorter side (pixels) are rejected as too small."""
    max_pixels: Count = 64_000_000
    """Posters that claim more pixels are rejected as decompression bombs."""
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


#: What can be decoded is taken: for commands that were given the pictures one by one, or made by others.
ANY = ImageOptions(min_side=1)


class BadImage(Unusable):
    """A picture that cannot be used."""


@contextmanager
def blamed_on_the_picture(reason: str) -> Iterator[None]:
    """Raise BadImage for what a library says of one picture: its shape is beyond OpenCV's limits, say.

    A full disk, and what is wrong with the environment (UserError), are not the picture's: they go through.
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
    """A poster as the shard holds it: JPEG bytes, baseline orientation, RGB."""

    data: bytes
    width: int
    height: int


def decode(data: bytes, options: ImageOptions, target: tuple[int, int] | None = None) -> Image.Image:
    """Decode fully and return RGB pixels in their upright orientation. Of several frames the first is taken.

    ``target`` (width, height) lets a JPEG be decoded at a reduced scale of at least that size; whether its pixels are
    all there is then not looked at.
    Raises BadImage: not an image, decompression bomb, too small, truncated, undecodable, odd shape.
    """
    image, header = _opened(data, options)
    pixels = None
    if header is not None and target is None:
        # Pillow decodes CMYK, and large ones: the other decoder's copy would double the memory.
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
        del image  # its memory, before the turned copy needs some
        upright = turned(pixels, turn)
    except Exception as error:  # parsers of hostile bytes raise nearly anything; the reason is recorded
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadImage(reason, _without_address(error)) from None
    low, high = options.aspect or (0.0, float("inf"))
    if not low <= upright.width / upright.height <= high:
        raise BadImage("odd shape", f"{upright.width}x{upright.height} pixels, not within {low:g} to {high:g}")
    return upright


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture after its orientation, as ``decode`` gives it. All of its pixels are looked at.

    Raises BadImage for what no command takes.
    """
    _, header = _opened(data, ANY)
    if header is None or _whole_jpeg(data, header, smallest=True) is None:
        return decode(data, ANY).size
    return (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)


def _opened(data: bytes, options: ImageOptions) -> tuple[Image.Image, JpegHeader | None]:
    """The picture, of which only headers are read, and its JPEG header if it has one that follows the rules."""
    try:
        header = check_structure(data)
    except TooMuchWork as error:
        raise BadImage("decompression bomb", str(error)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and of size; we judge both ourselves
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
        if found > limit:  # of all its tiles; each is a JPEG
            raise BadImage("decompression bomb", f"{width}x{height} in {found} scans, over {limit}")
    if max(width * height, tile) > most:
        what = f"{width}x{height} pixels" if width * height > most else f"tiles of {tile} pixels"
        raise BadImage("decompression bomb", f"{what}, over {most}")
    if min(width, height) < options.min_side:
        raise BadImage("too small", f"{width}x{height} pixels, under {options.min_side}")
    return image, header


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of a TIFF's tile, which is decoded whole; 0 without tiles."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    sides = [image.tag_v2.get(tag, 0) for tag in (322, 323)]
    return int(sides[0] * sides[1]) if all(isinstance(side, int) for side in sides) else 0


def _whole_jpeg(data: bytes, header: JpegHeader, smallest: bool) -> np.ndarray | None:
    """(h, w, c) uint8 stored pixels, or an eighth of them, of a JPEG without a fault; None if Pillow is to judge it.

    Raises BadImage for one that is cut: libjpeg fills what is missing with grey, and Pillow ignores its warning.
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
            raise BadImage("truncated", "its pixels end before the picture does") from None
    return None


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of an RGB JPEG without an EXIF rotation to apply, else None. Only headers are read."""
    image, header = _opened(data, ANY)
    plain = image.format == "JPEG" and image.mode == "RGB" and header is not None and header.orientation == 1
    return image.size if plain else None


def pack_image(data: bytes, options: ImageOptions) -> Packed:
    """The JPEG for the shard: the original bytes where they fit, else a shrunk, upright, RGB re-encoding.

    Raises BadImage as ``decode`` does. The caller has usually checked the bytes by decoding them before.
    """
    size = plain_jpeg_size(data)
    if size is not None and fitted_size(*size, options) == size:
        return Packed(data, *size)
    header, _ = _opened(data, options)
    # The file's own orientation may be sideways: the bound holds for a square box either way.
    bound = 2 * max(fitted_size(header.width, header.height, options))
    return shrunk(decode(data, options, target=(bound, bound)), options)


def shrunk(image: Image.Image, options: ImageOptions) -> Packed:
    """An RGB image within the size bounds, as JPEG."""
    size = fitted_size(image.width, image.height, options)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return Packed(jpeg(image, options.quality, optimize=True), *size)


def jpeg(image: Image.Image, quality: int, **how: Any) -> bytes:
    """The bytes of an RGB picture as JPEG; ``how``: other options of Pillow's writer."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, **how)
    return out.getvalue()


def fitted_size(width: int, height: int, options: ImageOptions) -> tuple[int, int]:
    """Size after shrinking to the bounds, keeping the aspect ratio; never larger than before.

    >>> fitted_size(500, 750, ImageOptions(short_side=250, long_side=500))
    (250, 375)
    """
    scale = min(1.0, options.short_side / min(width, height), options.long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _without_address(error: Exception) -> str:
    """Pillow puts object addresses into messages; they would make rejected.csv differ from run to run."""
    text = one_line(error)
    return "no known picture format" if "BytesIO" in text else text[:200]
