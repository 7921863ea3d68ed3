"""Pictures of `posters app`: a heat map over the poster, and outlines of its text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from toolkit.metrics.helpers import FloatArray

#: Colours of the heat map. Their lightness increases, so colour-blind readers can distinguish them.
MAP = colormaps["inferno"]
#: Opacity of the colour over the grey poster, for no heat and for the highest heat.
OPACITY = (0.25, 0.7)
TEXT, REJECTED = (255, 92, 32), (64, 156, 255)


def heat_picture(image: Image.Image, heat: FloatArray, box: tuple[int, int, int, int]) -> Image.Image:
    """Return the grey poster with the heat map ``heat`` (S, S) in colours, scaled to the maximum of ``heat``.

    ``box`` (left, upper, right, lower) is the area of the heat map. The poster is pale outside ``box``.
    """
    grey = np.asarray(image.convert("L"), np.float64)[..., None].repeat(3, axis=2)
    left, upper, right, lower = box
    highest = float(heat.max())
    share = np.clip(heat / highest, 0.0, 1.0) if highest > 0 else np.zeros_like(heat)
    over = Image.fromarray(share.astype(np.float32)).resize((right - left, lower - upper), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(over), 0.0, 1.0)[..., None]
    part = grey[upper:lower, left:right]
    colour = MAP(share[..., 0])[..., :3] * 255.0
    opacity = OPACITY[0] + (OPACITY[1] - OPACITY[0]) * share
    pixels = 215.0 + 0.12 * (grey - 128.0)
    pixels[upper:lower, left:right] = (1.0 - opacity) * part * 0.85 + opacity * colour
    picture = Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
    if box != (0, 0, *image.size):
        ImageDraw.Draw(picture).rectangle((left, upper, right - 1, lower - 1), outline=(90, 90, 90))
    return picture


def scale_colours() -> list[str]:
    """Return CSS colours of the scale, from no heat to the highest heat, over a medium grey."""
    share = np.linspace(0.0, 1.0, 9)[:, None]
    opacity = OPACITY[0] + (OPACITY[1] - OPACITY[0]) * share
    pixels = (1.0 - opacity) * 128.0 * 0.85 + opacity * MAP(share[:, 0])[:, :3] * 255.0
    return ["#{:02x}{:02x}{:02x}".format(*row) for row in np.rint(pixels).astype(int).tolist()]


def outlined(image: Image.Image, polygons: Sequence[np.ndarray], rejected: Sequence[np.ndarray]) -> Image.Image:
    """Return the poster with outlines of text and of rejected regions. Points are (x, y), from 0 to 1."""
    scale = 2  # draw at twice the size and reduce, for smooth lines
    picture = image.resize((scale * image.width, scale * image.height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    width = max(2, round(scale * max(image.size) / 240))
    for colour, outlines in ((REJECTED, rejected), (TEXT, polygons)):
        for polygon in outlines:
            points = [tuple(point) for point in (polygon * picture.size).tolist()]
            if len(points) > 1:
                pen.line([*points, points[0]], fill=colour, width=width, joint="curve")
    return picture.resize(image.size, Image.Resampling.LANCZOS)
