"""Add a line of known text below every picture that a detector searches.

These detectors are trained on pictures with text. In a picture without text, they detect the most prominent object
instead: on posters without text, PP-OCRv6 and v4 "found" faces and whole figures, up to a third of the picture, with
scores up to 0.88. With a line of real text in the picture, these false regions disappear
(tests/bench/text_detection.py measures this, and the lower recall that it costs).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = "The quick brown fox jumps over the lazy dog 1987 "
STRIDE = 32


def strip_height(side: int) -> int:
    """Return the rows of the strip for a short side in pixels: a tenth of it, as a multiple of STRIDE."""
    return max(STRIDE, round(side / 10 / STRIDE) * STRIDE)


@lru_cache(maxsize=64)
def reference_strip(width: int, height: int) -> np.ndarray:
    """Return black words on white, (height, width, 3) uint8."""
    image = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(height * 0.5)
    pen = ImageDraw.Draw(image)
    pen.text((height // 4, height // 2), WORDS * (1 + 4 * width // (height * len(WORDS))), "black", font, anchor="lm")
    pen.rectangle((width - height // 4, 0, width, height), "white")  # so that no word touches the border
    pixels = np.array(image)
    pixels.flags.writeable = False
    return pixels
