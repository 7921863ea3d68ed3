"""Poster files: find them, check them, and turn them into the JPEG that a shard holds.

Everything here is a pure function of the file's bytes and the options, so a shard built twice is the same.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, WebPImagePlugin  # noqa: F401  # Pillow registers WebP only when asked

from shards.errors import UserError, one_line
from shards.metadata import Rejection
from shards.places import Place, is_remote, told
from shards.remote import read_whole, remote_files

EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")

#: Only picture formats are tried: Pillow's document formats (EPS, PDF) would start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

#: Where cleaned posters lie by convention, in the order in which they are looked for.
DEFAULT_FOLDERS = ("cleaned_posters_local", "Data/cleaned_posters")

ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class ImageOptions:
    """How posters are checked and packed."""

    short_side: int = 256
    """Longest allowed short side in pixels; larger posters are shrunk, none is enlarged."""
    long_side: int = 512
    """Longest allowed long side in pixels; it bounds banners and scrolls."""
    quality: int = 90
    """JPEG quality of re-encoded posters (those that already fit keep their bytes)."""
    min_side: int = 32
    """Posters with a shorter side (pixels) are rejected as too small."""
    max_pixels: int = 64_000_000
    """Posters that claim more pixels are rejected as decompression bombs."""
    aspect: tuple[float, float] | None = None
    """Narrowest and widest width / height; posters outside are rejected as odd shapes."""

    def __post_init__(self) -> None:
        if not 8 <= self.short_side <= self.long_side:
            raise UserError(
                f"--short-side must be between 8 and --long-side, not {self.short_side} (--long-side {self.long_side})"
            )
        if not 1 <= self.quality <= 95:
            raise UserError(f"--quality must be from 1 to 95, not {self.quality}")
        if self.min_side < 1 or self.max_pixels < 1:
            raise UserError("--min-side and --max-pixels must be at least 1")
        if self.aspect is not None and not 0 < self.aspect[0] <= self.aspect[1] < float("inf"):
            raise UserError(
                f"--aspect takes two ratios of width to height, the smaller first, not {self.aspect}"
            )


class BadImage(Exception):
    """A poster that cannot be used; ``reason`` is one of rejected.csv's words."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def rejection(self, sample_id: str) -> Rejection:
        return Rejection(sample_id, self.reason, self.detail)


@dataclass(frozen=True)
class Packed:
    """A poster as the shard holds it: JPEG bytes, baseline orientation, RGB."""

    data: bytes
    width: int
    height: int


def image_names(sample_id: str) -> Iterator[str]:
    """Names, below the image folder, under which an id's poster may lie; the first one that is there counts.

    ``{id}.jpg|.jpeg|.png``, and an id that is itself a file name (``x.jpg``) is taken as such.
    """
    for extension in EXTENSIONS:
        yield f"{sample_id}{extension}"
    if sample_id.endswith(EXTENSIONS):
        yield sample_id


def find_image(folder: Path, sample_id: str) -> Path | None:
    """The file of an id's poster in a local folder, or None. (shards/listing.py finds those of remote ones.)"""
    for name in image_names(sample_id):
        path = folder / name
        if path.is_file():
            return path
    return None


def read_image_file(folder: Place, sample_id: str, name: str | None = None) -> bytes:
    """The bytes of a poster. Raises BadImage: missing file, zero bytes, unreadable.

    ``name`` is the file's below the folder, for who knows it from a listing. A remote store's failures, which may pass,
    arrive as they are; only a file that is not there is the poster's own fault.
    """
    path, data = (
        _read_remote(folder, sample_id, name) if is_remote(folder) else _read_local(folder, sample_id)
    )
    if not data:
        raise BadImage("zero bytes", path)
    return data


def _read_local(folder: Path, sample_id: str) -> tuple[str, bytes]:
    path = find_image(folder, sample_id)
    if path is None:
        raise missing_file(sample_id)
    try:
        return path.name, path.read_bytes()
    except OSError as error:
        raise BadImage("unreadable file", one_line(error)) from None


def _read_remote(folder: Any, sample_id: str, name: str | None) -> tuple[str, bytes]:
    for candidate in (name,) if name else image_names(sample_id):
        try:
            path = folder / candidate
            return path.name, read_whole(path)
        except (FileNotFoundError, IsADirectoryError):
            continue
    raise missing_file(sample_id)


def missing_file(sample_id: str) -> BadImage:
    """What is said of a poster that has no file."""
    return BadImage("missing file", f"no {sample_id}.jpg, .jpeg or .png")


def decode(data: bytes, options: ImageOptions, target: tuple[int, int] | None = None) -> Image.Image:
    """Decode fully and return RGB pixels in their upright orientation.

    ``target`` (width, height) lets a JPEG be decoded at a reduced scale of at least that size.
    Raises BadImage: not an image, decompression bomb, too small, truncated, odd shape.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd EXIF and of size; we judge both ourselves
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise BadImage("decompression bomb", one_line(error)) from None
        except Exception as error:  # parsers of hostile bytes raise nearly anything; the reason is recorded
            raise BadImage("not an image", _without_address(error)) from None
        width, height = image.size
        if width * height > options.max_pixels:
            raise BadImage("decompression bomb", f"{width}x{height} pixels, over {options.max_pixels}")
        if min(width, height) < options.min_side:
            raise BadImage("too small", f"{width}x{height} pixels, under {options.min_side}")
        try:
            if target is not None:
                image.draft(None, target)
            image.load()
            upright = upright_rgb(image)
        except Exception as error:
            reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
            raise BadImage(reason, _without_address(error)) from None
        if options.aspect and not options.aspect[0] <= upright.width / upright.height <= options.aspect[1]:
            low, high = options.aspect
            size = f"{upright.width}x{upright.height} pixels"
            raise BadImage("odd shape", f"{size}, not within {low:g} to {high:g}")
        return upright


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture of any size after its orientation. Raises BadImage as ``decode`` does."""
    return decode(data, ImageOptions(min_side=1)).size


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of an RGB JPEG without an EXIF rotation to apply, else None. Only headers are read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        try:
            orientation = image.getexif().get(ORIENTATION, 1)
        except Exception:  # a broken EXIF block raises nearly anything: re-encoding leaves it behind
            return None
    return image.size if image.format == "JPEG" and image.mode == "RGB" and orientation == 1 else None


def is_shard_jpeg(data: bytes, options: ImageOptions) -> tuple[int, int] | None:
    """(width, height) if these bytes can go into a shard untouched, else None: a plain JPEG within the bounds."""
    size = plain_jpeg_size(data)
    return size if size is not None and fitted_size(*size, options) == size else None


def pack_image(data: bytes, options: ImageOptions) -> Packed:
    """The JPEG for the shard: the original bytes where they fit, else a shrunk, upright, RGB re-encoding.

    Raises BadImage as ``decode`` does. The caller has usually checked the bytes by decoding them before.
    """
    size = is_shard_jpeg(data, options)
    if size is not None:
        return Packed(data, size[0], size[1])
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        # The file's own orientation may be sideways: the bound holds for a square box either way.
        bound = 2 * max(fitted_size(header.width, header.height, options))
    return shrunk(decode(data, options, target=(bound, bound)), options)


def shrunk(image: Image.Image, options: ImageOptions) -> Packed:
    """An RGB image within the size bounds, as JPEG."""
    size = fitted_size(image.width, image.height, options)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=options.quality, optimize=True)
    return Packed(out.getvalue(), *size)


def fitted_size(width: int, height: int, options: ImageOptions) -> tuple[int, int]:
    """Size after shrinking to the bounds, keeping the aspect ratio; never larger than before.

    >>> fitted_size(500, 750, ImageOptions(short_side=250, long_side=500))
    (250, 375)
    """
    scale = min(1.0, options.short_side / min(width, height), options.long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def upright_rgb(image: Image.Image) -> Image.Image:
    """RGB pixels of any picture: turned as its EXIF says, alpha on white, 16-bit greys scaled."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        pixels = np.asarray(image, dtype=np.float64)
        # 16-bit scans: convert() would clip at 255 and leave a white sheet
        scale = 255.0 / 65535.0 if pixels.max(initial=0) > 255 else 1.0
        return Image.fromarray((pixels * scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _without_address(error: Exception) -> str:
    """Pillow puts object addresses into messages; they would make rejected.csv differ from run to run."""
    text = one_line(error)
    return "no known picture format" if "BytesIO" in text else text[:200]


def default_image_folder(start: Path) -> Path:
    """The conventional folder of cleaned posters that holds images. Raises UserError if none does."""
    for name in DEFAULT_FOLDERS:
        folder = start / name
        if folder.is_dir() and holds_images(folder):
            return folder
    tried = " and ".join(DEFAULT_FOLDERS)
    raise UserError(f"no images found in {tried} (under {start}); name the folder with --images DIR")


def require_images(folder: Place) -> None:
    """Raise UserError unless there is such a folder, with images."""
    with told("look for posters", folder):
        if not folder.is_dir():
            raise UserError(f"image folder not found: {folder}")
        # A remote folder is listed by the ids anyway, and walking through a million others takes long.
        if not is_remote(folder) and not holds_images(folder):
            raise UserError(f"no .jpg, .jpeg or .png file in {folder}")


def holds_images(folder: Place) -> bool:
    """Whether at least one file with an image extension lies below the folder."""
    if is_remote(folder):
        return any(name.endswith(EXTENSIONS) for name in remote_files(folder))
    return any(name.endswith(EXTENSIONS) for _, _, names in os.walk(folder) for name in names)
