"""Convert any picture that Pillow can open to upright RGB. Transparent pixels become white, 16 bits become 8 bits."""

from __future__ import annotations

from functools import cache
from typing import cast

import numpy as np
from PIL import Image

from shards.inputs.jpeg_header import orientation_of

#: EXIF orientation -> transposition that turns the picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Largest number of pixels that are converted at a time, to limit memory.
STRIP = 2_000_000

_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_LAYERED = ("RGBA", "LA", "PA", "La", "RGBa")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as upright RGB (see `orientation` and `rgb`)."""
    turn = orientation(image)  # this call loads the pixels, because the EXIF of a PNG may come after them
    return turned(rgb(image), turn)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return the picture turned upright. ``orientation`` is the EXIF value."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def orientation(image: Image.Image) -> int:
    """Load a picture's pixels. Return its EXIF orientation. Return 1 for TIFF, because Pillow turns TIFFs upright."""
    image.load()
    if image.format == "TIFF":
        return 1
    exif, profile = image.info.get("exif"), image.info.get("Raw profile type exif")
    if exif is None and isinstance(profile, str):  # the form that ImageMagick writes into PNGs
        try:
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            exif = None
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    xmp = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    return orientation_of(exif if isinstance(exif, bytes) else b"", xmp if isinstance(xmp, bytes) else b"")


def rgb(image: Image.Image) -> Image.Image:
    """Return the picture as RGB, not turned. Raises ValueError for float pixels and levels below 0 or over 65535."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    scale = _scale(image)
    rows = max(1, STRIP // max(1, image.width))
    if rows >= image.height:
        return _strip(image, scale)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        whole.paste(_strip(image.crop(box), scale), box)
    return whole


def _strip(image: Image.Image, scale: bool) -> Image.Image:
    if image.mode in _DEEP:
        pixels = np.asarray(image)
        # Image.convert would clip the levels above 255, and 16-bit scans would become white.
        grey = _levels()[pixels] if scale else pixels.astype(np.uint8)
        key = image.info.get("transparency")
        if isinstance(key, int):
            grey[pixels == key] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in _LAYERED or "transparency" in image.info:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale(image: Image.Image) -> bool:
    """Return whether the picture has 16-bit grey levels."""
    if image.mode not in _DEEP:
        return False
    low, high = cast(tuple[float, float], image.getextrema())  # these modes have one channel
    if not (low >= 0 and high <= 65535) or image.mode == "F":
        raise ValueError(f"32-bit pixels from {low} to {high}: save the picture with 8 or 16 bits")
    return bool(high > 255)


@cache
def _levels() -> np.ndarray:
    """Return a (65536,) uint8 array that maps each 16-bit grey level to 8 bits."""
    return (np.arange(65536) * (255.0 / 65535.0)).astype(np.uint8)
