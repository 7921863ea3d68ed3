"""Pictures of `posters app`: a heat map over the poster, and outlines of its text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from toolkit.metrics.multilabel import FloatArray

#: Colours of heat, from nearly black to pale yellow. Lightness increases, so colour-blind readers can use them.
MAP = colormaps["inferno"]
#: Opacity of the colour over the grey poster, from no heat to the highest heat.
VEIL = (0.25, 0.7)
TEXT, DOUBT = (255, 92, 32), (64, 156, 255)


def heat_picture(image: Image.Image, heat: FloatArray, box: tuple[int, int, int, int]) -> Image.Image:
    """Return the grey poster with the colours of ``heat`` (S, S) over ``box``. The area outside the box is pale.

    The brightest colour is the maximum of this map.
    """
    grey = np.asarray(image.convert("L"), np.float64)[..., None].repeat(3, axis=2)
    left, upper, right, lower = box
    highest = float(heat.max())
    share = np.clip(heat / highest, 0.0, 1.0) if highest > 0 else np.zeros_like(heat)
    over = Image.fromarray(share.astype(np.float32)).resize((right - left, lower - upper), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(over), 0.0, 1.0)[..., None]
    part = grey[upper:lower, left:right]
    colour = MAP(share[..., 0])[..., :3] * 255.0
    veil = VEIL[0] + (VEIL[1] - VEIL[0]) * share
    pixels = 215.0 + 0.12 * (grey - 128.0)
    pixels[upper:lower, left:right] = (1.0 - veil) * part * 0.85 + veil * colour
    picture = Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
    if box != (0, 0, *image.size):
        ImageDraw.Draw(picture).rectangle((left, upper, right - 1, lower - 1), outline=(90, 90, 90))
    return picture


def scale_colours() -> list[str]:
    """Return CSS colours of the scale, from no heat to the highest heat, over a medium grey."""
    share = np.linspace(0.0, 1.0, 9)[:, None]
    veil = VEIL[0] + (VEIL[1] - VEIL[0]) * share
    pixels = (1.0 - veil) * 128.0 * 0.85 + veil * MAP(share[:, 0])[:, :3] * 255.0
    return ["#{:02x}{:02x}{:02x}".format(*row) for row in np.rint(pixels).astype(int).tolist()]


def outlined(image: Image.Image, polygons: Sequence[np.ndarray], doubted: Sequence[np.ndarray]) -> Image.Image:
    """Return the poster with outlines of text and of rejected regions, given as shares of width and height."""
    scale = 2  # draw at twice the size and reduce, for smooth lines
    picture = image.resize((scale * image.width, scale * image.height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    width = max(2, round(scale * max(image.size) / 240))
    for colour, outlines in ((DOUBT, doubted), (TEXT, polygons)):
        for polygon in outlines:
            points = [tuple(point) for point in (polygon * picture.size).tolist()]
            if len(points) > 1:
                pen.line([*points, points[0]], fill=colour, width=width, joint="curve")
    return picture.resize(image.size, Image.Resampling.LANCZOS)
